"""How the interrupt path is shown: handlers, softirqs and polls, with what the CPUs drop and leave for later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nettop.core import histogram as hist
from nettop.core import units
from nettop.core.frame import Frame
from nettop.core.histogram import Histogram
from nettop.render import draw, heatmap
from nettop.render.canvas import (
    BAD,
    DIM,
    LABEL,
    PLAIN,
    TITLE,
    VALUE,
    WARN,
    Canvas,
    History,
    Line,
    Pane,
    Span,
    line,
)

if TYPE_CHECKING:
    from nettop.probes.irq.section import Irq, Poll, SoftIrq
    from nettop.probes.irq.section import Line as IrqLine

NAME = "irq"
_BUDGET = 64  # what a device may do in one poll (NAPI_POLL_WEIGHT)
_HEADS = ((7, "/s"),)
_USUAL = ("NET_RX", "NET_TX")

HELP = """\
From the interrupt to the packet: how long the device's interrupt handlers run, how long a softirq waits from its \
first raise to its run and how long it runs, and how long the device waits from its interrupt to its poll.

Each column of a row is a frame: its height is the median, from 100 ns to 100 ms on a logarithmic scale, its shade \
how often. Work is packets a poll; a poll that spends its whole budget leaves packets for the next. Squeezed: \
net_rx_action ran out of time or budget with work left; dropped: a CPU's backlog was full.

veth, loopback and tun have no interrupts: their packets come by the CPU's backlog, whose polls are counted instead. \
Zoomed (z) all interrupt lines and all softirqs are there, other devices' too.
"""


def _section(frame: Frame) -> Irq | None:
    section: Irq | None = frame.sections.get(NAME)  # type: ignore[assignment]
    return section


def _line_of(section: Irq, irq: int) -> IrqLine | None:
    return next((x for x in section.hard if x.irq == irq), None)


def _soft_of(section: Irq, vector: str) -> SoftIrq | None:
    return next((s for s in section.soft if s.vector == vector), None)


def _rate(histogram: Histogram, frame: Frame) -> tuple[tuple[int, Line], ...]:
    text = units.si(histogram.count / frame.seconds) if histogram.count else "-"
    return ((7, (Span(draw.fit(text, 7, "right"), VALUE if histogram.count else DIM),)),)


def _named(history: History, everything: bool) -> list[str]:
    """Rows by name: ours first, the network's softirqs, the poll; then, on demand, whatever else there is."""
    section = _section(history[-1])
    if section is None:
        return []
    held = [s for s in map(_section, heatmap.holding(history)) if s is not None]
    ran = {s.vector for h in held for s in h.soft if s.run.count}
    some = ran | {s.vector for h in held for s in h.soft if s.wait.count}
    own = [f"irq {x.irq}" for x in section.hard if x.own]
    others = [f"irq {x.irq}" for x in section.hard if not x.own]
    soft = [
        s.vector for s in section.soft if s.vector == "NET_RX" or (s.vector in _USUAL and s.vector in ran)
    ]
    rest = [s.vector for s in section.soft if s.vector not in soft and s.vector in some]
    names = [*own, *(f"{v} {what}" for v in soft for what in ("wait", "run"))]
    if any(p.irq_to_poll is not None for p in section.poll):
        names.append("irq to poll")
    names.append("poll")
    if everything:
        names += [*(f"{v} {what}" for v in rest for what in ("wait", "run")), *others]
    return names


def _histogram(section: Irq | None, name: str) -> Histogram | None:
    """What a row shows of one frame."""
    if section is None:
        return None
    if name == "irq to poll":
        return next((p.irq_to_poll for p in section.poll if p.irq_to_poll is not None), None)
    if name == "poll":
        poll = _poll(section)
        return poll.run if poll else None
    word, _, rest = name.partition(" ")
    if word == "irq":
        found = _line_of(section, int(rest))
        return found.latency if found else None
    soft = _soft_of(section, word)
    return getattr(soft, rest) if soft else None


def _poll(section: Irq) -> Poll | None:
    """The device's own polls, or the backlog's where it has none."""
    own = next(iter(section.poll), None)
    if own is not None and not own.polls and section.hardware is False:
        return next((p for p in section.poll[1:] if p.polls), own)
    return own


def _label(section: Irq, name: str, canvas: Canvas) -> str:
    if name == "irq to poll":
        return "irq→poll" if canvas.unicode else "irq>poll"
    if name == "poll":
        poll = _poll(section)
        return "backlog poll" if poll is not None and poll.device == "backlog" else "poll"
    word, _, rest = name.partition(" ")
    if word == "irq" and (found := _line_of(section, int(rest))) is not None:
        return draw.shorten(units.clean(found.name) or name, 16)
    return name


def _note(section: Irq, name: str) -> str:
    word, _, rest = name.partition(" ")
    if name == "irq to poll":
        return "from the beginning of the handler that asked for the poll to the poll's beginning, in its softirq"
    if name == "poll":
        poll = _poll(section)
        return (
            f"polls of {poll.device}: from the end of the one before, or the softirq's beginning, to its end"
            if poll
            else ""
        )
    if word == "irq":
        found = _line_of(section, int(rest))
        unhandled = (
            f"; {units.count(found.unhandled)} were another device's" if found and found.unhandled else ""
        )
        return f"interrupt {rest}: how long its handler runs{unhandled}"
    return {"wait": "from its first raise to its run", "run": "how long it runs"}.get(rest, "")


def _rows(history: History, canvas: Canvas, everything: bool) -> list[heatmap.Row]:
    frames = history[-max(canvas.width, 60) :]
    section = _section(frames[-1])
    if section is None:
        return []
    rows = []
    for name in _named(frames, everything):
        histograms = [_histogram(_section(f), name) for f in frames]
        back, age = heatmap.behind(frames, histograms)
        latest = histograms[-1 - back] or Histogram.empty()
        rows.append(
            heatmap.Row(
                name,
                _label(section, name, canvas),
                histograms,
                _rate(latest, frames[-1 - back]),
                _note(section, name),
                back,
                age,
            )
        )
    return rows


def names(history: History) -> tuple[str, ...]:
    """What can be entered: every row that there is."""
    return tuple(_named(history, True))


def pane(history: History, canvas: Canvas) -> list[Line]:
    """The usual rows, poll work and CPUs; zoomed, all rows and one of them as a plane."""
    chosen = [r for r in _rows(history, canvas, True) if r.name == canvas.selected] if canvas.selected else []
    if chosen:
        return heatmap.page(chosen[0], history, canvas)
    rows = _rows(history, canvas, canvas.zoomed)
    section = _section(history[-1])
    if section is None:
        return []

    def listed(inner: Canvas) -> list[Line]:
        return [*heatmap.table(rows, inner, "interrupts", _HEADS), *_foot(history, section, inner)]

    if canvas.zoomed:
        return heatmap.zoomed(rows, history, canvas, listed)
    lines = heatmap.table(rows, canvas, "interrupts", _HEADS)
    foot = _foot(history, section, canvas)
    room = max(canvas.height - len(foot), 2)
    return draw.clip([*lines[:room], *foot], canvas)


def _foot(history: History, section: Irq, canvas: Canvas) -> list[Line]:
    lines: list[Line] = []
    if section.hardware is False:
        lines.append(
            draw.parts(
                [(0, line(("no hardware interrupts: packets come by the CPU's backlog", DIM)))], canvas.width
            )
        )
    if (work := _work(history, section, canvas)) is not None:
        lines.append(work)
    if section.cpus is not None:
        lines.append(_cpus(section, canvas))
    return lines


def _polled(frame: Frame) -> bool:
    """Whether there were polls in the frame."""
    section = _section(frame)
    poll = _poll(section) if section is not None else None
    return poll is not None and bool(poll.polls)


def _work(history: History, section: Irq, canvas: Canvas) -> Line | None:
    """Packets a poll, polls that spent their budget, squeezes and drops."""
    back, age = heatmap.newest(history, _polled)
    then = _section(history[-1 - back])
    poll = _poll(then) if then is not None else None
    if poll is None:
        return None
    work = poll.work / poll.polls if poll.polls else None
    squeezed = None if section.cpus is None else sum(c.time_squeeze for c in section.cpus)
    dropped = None if section.cpus is None else sum(c.dropped for c in section.cpus)
    pieces = [
        (
            0,
            line(
                ("poll work ", LABEL),
                (units.figure(work) if work is not None else "-", VALUE),
                (f" of {_BUDGET}", LABEL),
            ),
        ),
        (0, heatmap.ago(age)),
        (1, _count("budget spent", poll.budget_exhausted, WARN)),
        (2, _count("squeezed", squeezed, WARN)),
        (3, _count("dropped", dropped, BAD)),
    ]
    return draw.parts(pieces, canvas.width)


def _count(name: str, value: int | None, role: str) -> Line:
    return line((f"{name} ", LABEL), (units.count(value), role if value else PLAIN))


def _cpus(section: Irq, canvas: Canvas) -> Line:
    """What each CPU took of the work: a bar each, as many as fit."""
    assert section.cpus is not None
    most = max((c.processed for c in section.cpus), default=0) or 1
    pieces: list[tuple[int, Line]] = [(0, line(("cpu", LABEL)))]
    for index, cpu in enumerate(section.cpus):
        bad = cpu.dropped or cpu.time_squeeze
        bar = draw.bar(cpu.processed / most, canvas, 4, WARN if bad else VALUE)
        pieces.append((index + 1, line((f"{cpu.cpu} ", LABEL), bar)))
    return draw.parts(pieces, canvas.width)


def subtitle(history: History, canvas: Canvas) -> str:
    """The network's softirq in the newest interval."""
    found, age = _net_rx(history)
    if found is None or not found.wait.count:
        return ""
    text = f"NET_RX waits p99 {units.duration(hist.percentile(found.wait, 0.99))}"
    return f"{text} · {units.age(age)} ago" if age else text


def _net_rx(history: History) -> tuple[SoftIrq | None, int]:
    """The network's softirq as it was last seen to wait, and how long ago, in ns."""

    def of(frame: Frame) -> SoftIrq | None:
        section = _section(frame)
        return _soft_of(section, "NET_RX") if section is not None else None

    back, age = heatmap.newest(
        history, lambda frame: (soft := of(frame)) is not None and bool(soft.wait.count)
    )
    return of(history[-1 - back]), age


def compact(history: History, canvas: Canvas) -> list[Line]:
    """Two lines for a small terminal."""
    section = _section(history[-1])
    if section is None:
        return []
    found, age = _net_rx(history)
    pieces: list[tuple[int, Line]] = [(0, line(("irq", TITLE))), (0, heatmap.ago(age))]
    if found is not None:
        for name, histogram in (("wait", found.wait), ("run", found.run)):
            value = units.duration(hist.percentile(histogram, 0.5))
            pieces.append((1, line((f"NET_RX {name} ", LABEL), (value, VALUE))))
    lines = [draw.parts(pieces, canvas.width)]
    if (work := _work(history, section, canvas)) is not None:
        lines.append(work)
    return draw.clip(lines, canvas)


def rows_of(history: History, canvas: Canvas) -> Sequence[heatmap.Row]:
    """The rows as they are drawn, for tests."""
    return _rows(history, canvas, canvas.zoomed)


PANES = (
    Pane(
        name="irq",
        title="IRQ",
        number=5,
        band="bottom",
        draw=pane,
        compact=compact,
        subtitle=subtitle,
        weight=5,
        height=10,
        help=HELP,
        rows=names,
    ),
)

"""How the interrupt path is shown: handlers, softirqs and polls, with what the CPUs drop and leave for later."""

from __future__ import annotations

from nettop.core import units
from nettop.core.frame import Frame
from nettop.core.histogram import Histogram, percentile
from nettop.probes.irq.section import BACKLOG, Cpu, Irq, Poll, SoftIrq
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

_BUDGET = 64  # what a device may do in one poll (NAPI_POLL_WEIGHT)
_HEADS = ((7, "/s"),)

HELP = """\
From the interrupt to the packet: how long the device's interrupt handlers run, how long a softirq waits from its \
first raise to its run and how long it runs, and how long the device waits from its interrupt to its poll.

Each column of a row is a frame: its height is the median, from 100 ns to 100 ms on a logarithmic scale, its shade \
how often. Work is packets a poll; a poll that spends its whole budget leaves packets for the next. Squeezed: \
net_rx_action ran out of time or budget with work left; dropped: a CPU's backlog was full.

veth, loopback and tun have no interrupts: their packets come by the CPU's backlog, whose polls are counted instead. \
Zoomed (z) all interrupt lines and all softirqs are there, other devices' too.
"""


def _rate(histogram: Histogram, frame: Frame) -> tuple[tuple[int, Line], ...]:
    text = units.si(histogram.count / frame.seconds) if histogram.count else "-"
    return ((7, (Span(draw.fit(text, 7, "right"), VALUE if histogram.count else DIM),)),)


def _named(history: History, everything: bool) -> list[str]:
    """Rows by name: ours first, the network's softirqs, the poll; then, on demand, whatever else there is."""
    section = Irq.of(history[-1])
    held = [s for s in map(Irq.find, heatmap.holding(history)) if s is not None]
    ran = {s.vector for h in held for s in h.soft if s.run.count}
    some = ran | {s.vector for h in held for s in h.soft if s.wait.count}
    soft = [
        s.vector for s in section.soft if s.vector == "NET_RX" or (s.vector == "NET_TX" and s.vector in ran)
    ]
    rest = [s.vector for s in section.soft if s.vector not in soft and s.vector in some]
    names = [f"irq {x.irq}" for x in section.hard if x.own]
    names += [f"{v} {what}" for v in soft for what in ("wait", "run")]
    if any(p.irq_to_poll is not None for p in section.poll):
        names.append("irq to poll")
    names.append("poll")
    if everything:
        names += [f"{v} {what}" for v in rest for what in ("wait", "run")]
        names += [f"irq {x.irq}" for x in section.hard if not x.own]
    return names


def _histograms(section: Irq | None) -> dict[str, Histogram]:
    if section is None:
        return {}
    found = {f"irq {x.irq}": x.latency for x in section.hard}
    found |= {f"{s.vector} wait": s.wait for s in section.soft}
    found |= {f"{s.vector} run": s.run for s in section.soft}
    if (poll := _poll(section)) is not None:
        found["poll"] = poll.run
    if waits := [p.irq_to_poll for p in section.poll if p.irq_to_poll is not None]:
        found["irq to poll"] = waits[0]
    return found


def _poll(section: Irq) -> Poll | None:
    """The device's own polls, or the backlog's where it has none."""
    own = next(iter(section.poll), None)
    if own is not None and not own.polls and section.hardware is False:
        return next((p for p in section.poll[1:] if p.polls), own)
    return own


def _words(section: Irq, name: str, canvas: Canvas) -> tuple[str, str]:
    """A row's label, and what its page says of it."""
    word, _, rest = name.partition(" ")
    if name == "irq to poll":
        return (
            "irq→poll" if canvas.unicode else "irq>poll",
            "from the beginning of the handler that asked for the poll to the poll's beginning, in its softirq",
        )
    if name == "poll":
        device = poll.device if (poll := _poll(section)) is not None else ""
        return (
            "backlog poll" if device == BACKLOG else "poll",
            f"polls of {device}: from the end of the one before, or the softirq's beginning, to its end",
        )
    if word == "irq":
        found = next(x for x in section.hard if f"irq {x.irq}" == name)
        unhandled = f"; {units.count(found.unhandled)} were another device's" if found.unhandled else ""
        label = draw.shorten(units.clean(found.name) or name, 16)
        return label, f"interrupt {rest}: how long its handler runs{unhandled}"
    return name, {"wait": "from its first raise to its run", "run": "how long it runs"}[rest]


def _rows(history: History, canvas: Canvas, everything: bool) -> list[heatmap.Row]:
    frames = history[-max(canvas.width, 60) :]
    found = [_histograms(Irq.find(f)) for f in frames]
    rows = []
    for name in _named(frames, everything):
        histograms = [each.get(name) for each in found]
        back, age = heatmap.behind(frames, histograms)
        rate = _rate(histograms[-1 - back] or Histogram.empty(), frames[-1 - back])
        label, note = _words(Irq.of(frames[-1]), name, canvas)
        rows.append(heatmap.Row(name, label, histograms, rate, note, back, age))
    return rows


def names(history: History) -> tuple[str, ...]:
    """What can be entered: every row that there is."""
    return tuple(_named(history, True))


def pane(history: History, canvas: Canvas) -> list[Line]:
    """The usual rows, poll work and CPUs; zoomed, all rows and one of them as a plane."""
    if canvas.selected:
        for row in _rows(history, canvas, True):
            if row.name == canvas.selected:
                return heatmap.page(row, history, canvas)
    rows = _rows(history, canvas, canvas.zoomed)

    def listed(inner: Canvas) -> list[Line]:
        foot = _foot(history, inner)
        room = len(rows) + 1 if inner.zoomed else max(inner.height - len(foot), 2)
        return [*heatmap.table(rows, inner, "interrupts", _HEADS)[:room], *foot]

    return (
        heatmap.zoomed(rows, history, canvas, listed) if canvas.zoomed else draw.clip(listed(canvas), canvas)
    )


def _foot(history: History, canvas: Canvas) -> list[Line]:
    section = Irq.of(history[-1])
    lines = []
    if section.hardware is False:
        text = line(("no hardware interrupts: packets come by the CPU's backlog", DIM))
        lines.append(draw.parts([(0, text)], canvas.width))
    if (work := _work(history, canvas)) is not None:
        lines.append(work)
    if section.cpus is not None:
        lines.append(_cpus(section.cpus, canvas))
    return lines


def _poll_of(frame: Frame) -> Poll | None:
    section = Irq.find(frame)
    return None if section is None else _poll(section)


def _work(history: History, canvas: Canvas) -> Line | None:
    back, age = heatmap.newest(history, lambda frame: bool((poll := _poll_of(frame)) and poll.polls))
    poll = _poll_of(history[-1 - back])
    if poll is None:
        return None
    work = units.figure(poll.work / poll.polls) if poll.polls else units.NONE
    cpus = Irq.of(history[-1]).cpus
    squeezed = None if cpus is None else sum(c.time_squeeze for c in cpus)
    dropped = None if cpus is None else sum(c.dropped for c in cpus)
    pieces = [
        (0, line(("poll work ", LABEL), (work, VALUE), (f" of {_BUDGET}", LABEL))),
        (0, heatmap.ago(age)),
        (1, _count("budget spent", poll.budget_exhausted, WARN)),
        (2, _count("squeezed", squeezed, WARN)),
        (3, _count("dropped", dropped, BAD)),
    ]
    return draw.parts(pieces, canvas.width)


def _count(name: str, value: int | None, role: str) -> Line:
    return line((f"{name} ", LABEL), (units.count(value), role if value else PLAIN))


def _cpus(cpus: tuple[Cpu, ...], canvas: Canvas) -> Line:
    """What each CPU took of the work: a bar each, as many as fit."""
    most = max((c.processed for c in cpus), default=0) or 1
    pieces: list[tuple[int, Line]] = [(0, line(("cpu", LABEL)))]
    for index, cpu in enumerate(cpus):
        role = WARN if cpu.dropped or cpu.time_squeeze else VALUE
        bar = draw.bar(cpu.processed / most, canvas, 4, role)
        pieces.append((index + 1, line((f"{cpu.cpu} ", LABEL), bar)))
    return draw.parts(pieces, canvas.width)


def subtitle(history: History, canvas: Canvas) -> str:
    """The network's softirq in the newest interval."""
    found, age = _net_rx(history)
    if found is None or not found.wait.count:
        return ""
    text = f"NET_RX waits p99 {units.duration(percentile(found.wait, 0.99))}"
    return f"{text} · {units.age(age)} ago" if age else text


def _net_rx(history: History) -> tuple[SoftIrq | None, int]:
    """The network's softirq as it was last seen to wait, and how long ago, in ns."""

    def of(frame: Frame) -> SoftIrq | None:
        section = Irq.find(frame)
        soft = section.soft if section is not None else ()
        return next((s for s in soft if s.vector == "NET_RX"), None)

    back, age = heatmap.newest(history, lambda frame: bool((soft := of(frame)) and soft.wait.count))
    return of(history[-1 - back]), age


def compact(history: History, canvas: Canvas) -> list[Line]:
    """Two lines for a small terminal."""
    found, age = _net_rx(history)
    pieces: list[tuple[int, Line]] = [(0, line(("irq", TITLE))), (0, heatmap.ago(age))]
    if found is not None:
        for name, histogram in (("wait", found.wait), ("run", found.run)):
            value = units.duration(percentile(histogram, 0.5))
            pieces.append((1, line((f"NET_RX {name} ", LABEL), (value, VALUE))))
    lines = [draw.parts(pieces, canvas.width)]
    if (work := _work(history, canvas)) is not None:
        lines.append(work)
    return draw.clip(lines, canvas)


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

"""How stages are shown: a row a stage in the packet's order, one of them as a plane, and where the time goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache

from nettop.core import histogram as hist
from nettop.core import units
from nettop.core.frame import Frame
from nettop.core.histogram import Histogram
from nettop.probes.stages.section import Stage, Stages
from nettop.render import draw, heatmap
from nettop.render.canvas import (
    ACCENT,
    DIM,
    LABEL,
    TITLE,
    TX,
    VALUE,
    WARN,
    Canvas,
    History,
    Line,
    Pane,
    Span,
    line,
)

_HEADS = ((8, "share"), (5, "seen"))
_RECENT, _MINUTE = 5, 60  # frames that are "now", and seconds that they are compared with
_CHANGED = 1.5  # times: less is no change worth a word
_WORTH = 1_000  # ns of it
_PACED = 0.5  # of the qdisc's time: more, and it is no queue that is spoken of

# By direction and stage: its label, and where a packet is meanwhile: "a received packet's mean 1.4 ms: 92 % waiting for
# its reader".
_STAGES = {
    ("rx", "stack"): ("driver→stack", "between driver and stack"),
    ("rx", "ip"): ("stack→ip", "on its way to IP"),
    ("rx", "local"): ("ip→local", "in routing and filters"),
    ("rx", "transport"): ("transport", "on its way to TCP"),
    ("rx", "socket"): ("socket", "in TCP"),
    ("rx", "application"): ("application", "waiting for its reader"),
    ("rx", "forward"): ("forward", "being forwarded"),
    ("tx", "application"): ("app→ip", "in the send buffer"),
    ("tx", "ip"): ("ip→qdisc", "in IP and filters"),
    ("tx", "qdisc"): ("qdisc", "in the qdisc"),
    ("tx", "driver"): ("driver", "in the driver"),
    ("tx", "done"): ("→done", "done"),
}
PACED = "paced: not to leave the qdisc yet"
BELOW = "driver→stack and stack→ip are seen at the device below: watch that one for them"
WAYS = {"rx": "received", "tx": "sent"}

HELP = """\
How long packets of this interface take from one boundary of the network stack to the next, receiving above sending.

Each column of a row is a frame: its height is the median delay, from 100 ns to 100 ms on a logarithmic scale, its \
shade the number of packets. Share is the stage's part of the mean way from driver to application (or back); seen, \
how many of the packets that reached the stage's end could be timed. Medians do not add up; means do.

application, received: data waits for its reader. socket: TCP, and what waits there behind a gap. transport: on the \
way to TCP, the socket's backlog included. app→ip, sent: data waits in the send buffer. qdisc: traffic control, and \
the pacing of fq, whose part its page says. done: until the skb is freed; on veth and loopback that is when the \
other side has read it.

On a VLAN, a bond or a macvlan what is received is seen from IP on: what is before names the device below. A boundary \
that this kernel cannot show is merged into the next stage, whose page says so. Enter opens one stage; \
zoomed (z) it fills the screen, and the arrows move a cursor that names its cell.
"""


def _label(direction: str, stage: str, canvas: Canvas) -> str:
    label, _ = _STAGES.get((direction, stage), (stage, ""))
    return label if canvas.unicode else label.replace("→", ">")


def _each(history: History, direction: str, stage: str) -> list[Stage | None]:
    """A stage in each frame; None where it is not there."""
    return [None if s is None else s.stage(direction, stage) for s in map(Stages.find, history)]


def _shown(history: History) -> list[tuple[str, Stage]]:
    """The rows of the newest frame; those beside the usual way only where there is something in them."""
    held = heatmap.holding(history)
    return [
        (direction, stage)
        for direction, stage in Stages.of(history[-1]).rows()
        if stage.stage not in ("forward", "done")
        or any(found and found.matched for found in _each(held, direction, stage.stage))
    ]


def names(history: History) -> tuple[str, ...]:
    """What can be entered: ``rx ip``, ``tx qdisc``, ..."""
    return tuple(f"{direction} {stage.stage}" for direction, stage in _shown(history))


def shares(frames: Sequence[Frame]) -> dict[str, tuple[float, dict[str, float]]]:
    """By direction: the mean of the whole way in ns, and each stage's part of it; over several frames."""
    result: dict[str, tuple[float, dict[str, float]]] = {}
    sections = [s for s in map(Stages.find, frames) if s is not None]
    for direction in ("rx", "tx"):
        mean = hist.mean(Histogram.total([s.whole(direction) for s in sections]))
        spent: Counter[str] = Counter()
        for section in sections:
            spent.update({s.stage: s.path_ns for way, s in section.rows() if way == direction and s.path_ns})
        if spent and mean is not None:
            result[direction] = mean, {name: ns / spent.total() for name, ns in spent.items()}
    return result


def _note(stage: Stage) -> str:
    """What a stage's page says of its boundaries, its coverage, and what could not be seen."""
    text = f"from {stage.begin} to {stage.end} (by {stage.via}); {units.count(stage.matched)} timed"
    if stage.missed is not None:
        text += f", {units.count(stage.missed)} not"
    if stage.dropped:
        text += f", {units.count(stage.dropped)} dropped in it"
    if part := _paced((stage,)):
        text += f"; {units.percent(part)} of its time is pacing, before which they were not to leave"
    if stage.merged:
        text += f"; with {', '.join(stage.merged)}, whose boundary this kernel cannot show"
    return text


def _paced(qdiscs: Sequence[Stage]) -> float:
    """The part of the qdisc's time that is pacing."""
    spent = sum(stage.latency.sum_ns for stage in qdiscs)
    return min(sum(stage.paced_ns or 0 for stage in qdiscs) / spent, 1.0) if spent else 0.0


def _seen_below(frame: Frame) -> bool:
    """On a VLAN, a bond, a macvlan packets are seen from IP on: what is before names the device below."""
    here = {stage.stage: stage for stage in Stages.of(frame).rx}
    return "local" in here and not here["local"].merged and not {"stack", "ip"} & set(here)


def _rows(history: History, canvas: Canvas) -> list[heatmap.Row]:
    frames = history[-max(canvas.width, 60) :]
    parts = cache(lambda back: shares([frames[-1 - back]]))
    rows: list[heatmap.Row] = []
    for direction, newest in _shown(frames):
        found = _each(frames, direction, newest.stage)
        histograms = [None if each is None else each.latency for each in found]
        back, age = heatmap.behind(frames, histograms)
        stage = found[-1 - back] or newest
        part = parts(back).get(direction, (0.0, {}))[1].get(stage.stage)
        extra = (8, _share(part, canvas)), (5, _seen(stage))
        label = _label(direction, stage.stage, canvas)
        rows.append(
            heatmap.Row(f"{direction} {stage.stage}", label, histograms, extra, _note(stage), back, age)
        )
    return rows


def _share(part: float | None, canvas: Canvas) -> Line:
    if part is None:
        return (Span(draw.fit("-", 8, "right"), DIM),)
    return (draw.bar(part, canvas, 3, ACCENT), Span(draw.fit(units.percent(part), 5, "right"), VALUE))


def _seen(stage: Stage) -> Line:
    coverage = stage.coverage
    role = DIM if coverage is None else WARN if coverage < 0.8 else LABEL
    # 99.96 % is not all.
    text = "-" if coverage is None else "100 %" if coverage == 1 else f"{int(coverage * 100)} %"
    return (Span(draw.fit(text, 5, "right"), role),)


def pane(history: History, canvas: Canvas) -> list[Line]:
    """The rows and where the time goes; entered, one stage's plane; zoomed, both."""
    rows = _rows(history, canvas)
    if not rows:
        return draw.clip([line(("no packets yet", DIM))], canvas)
    chosen = next((r for r in rows if r.name == canvas.selected), None)
    if chosen is not None:
        return heatmap.page(chosen, history, canvas)
    if canvas.zoomed:
        return heatmap.zoomed(rows, history, canvas, lambda c: _listed(rows, history, c, len(rows) + 4))
    return draw.clip(_listed(rows, history, canvas, canvas.height), canvas)


def _listed(rows: Sequence[heatmap.Row], history: History, canvas: Canvas, height: int) -> list[Line]:
    """In at most ``height`` lines: what is sent shrinks to one where there is little room."""
    received = [r for r in rows if r.name.startswith("rx")]
    footer = [where(history, canvas)]
    if _seen_below(history[-1]) and height > len(rows) + 3:
        footer.insert(0, line((BELOW if canvas.unicode else BELOW.replace("→", ">"), LABEL)))
        height -= 1
    lines = heatmap.table(rows, canvas, "received", _HEADS)
    if height < len(lines) + 2 or not received:
        sent = [r for r in rows if r.name.startswith("tx")]
        lines = [*lines[: 1 + len(received)], _in_one(sent, canvas, len(received))]
        kept = max(height - 2, 1)
        return [*lines[: kept - 1], lines[-1], *footer] if len(lines) > kept + 1 else [*lines, *footer]
    head = line((draw.fit("sent", 12), LABEL))
    result = [*lines[: 1 + len(received)], head, *lines[1 + len(received) :], *footer]
    return [*result[:-1], heatmap.scale_line(canvas), result[-1]] if height > len(result) else result


def _in_one(sent: Sequence[heatmap.Row], canvas: Canvas, before: int) -> Line:
    at = canvas.cursor[1] - before if canvas.cursor is not None else -1
    pieces: list[tuple[int, Line]] = [(0, line(("sent ", TX)))]
    for index, row in enumerate(sent):
        median = units.duration(hist.percentile(row.latest, 0.5))
        name = (f"{row.label} ", ACCENT if index == at else LABEL)
        pieces.append((index + (row.name == "tx done") * 9, line(name, (median, VALUE))))
    return draw.parts(pieces, canvas.width)


def where(history: History, canvas: Canvas) -> Line:
    """Where a packet's mean microsecond goes, and what changed most in the last minute."""
    recent = history[-max(_RECENT, len(heatmap.holding(history))) :]
    found = sorted(shares(recent).items(), key=lambda item: -item[1][0])
    if not found:
        return line(("no packet has gone the whole way yet", DIM))
    change = _change(history, canvas)
    part = _paced([s for s in _each(recent, "tx", "qdisc") if s is not None])
    when = heatmap.ago(heatmap.newest(history, _went)[1])
    for full in (True, False):
        pieces = [(2 * index, _where_one(*entry, full, part)) for index, entry in enumerate(found)]
        pieces[1:1] = [(0, when), (1, change)]
        if draw.cells_of(pieces[0][1]) + 2 + draw.cells_of(change) <= canvas.width:
            break
    return draw.parts(pieces, canvas.width)


def _went(frame: Frame) -> bool:
    section = Stages.find(frame)
    return section is not None and bool(section.rx_whole.count or section.tx_whole.count)


def _where_one(direction: str, whole: tuple[float, dict[str, float]], full: bool, paced: float) -> Line:
    """One direction in words, as many as there is room for."""
    mean, parts = whole
    stage = max(parts, key=lambda name: parts[name])
    paces = (direction, stage) == ("tx", "qdisc") and paced >= _PACED
    words = PACED if paces else _STAGES.get((direction, stage), ("", stage))[1]
    return line(
        (f"a {WAYS[direction]} packet's mean " if full else f"{WAYS[direction]} ", LABEL),
        (units.duration(mean), TITLE),
        (": ", LABEL),
        (units.percent(parts[stage]), TITLE),
        (f" {words}", LABEL),
    )


def _change(history: History, canvas: Canvas) -> Line:
    found = changed(history)
    if found is None:
        return ()
    direction, stage, before, now = found
    moved = f"{units.duration(before)} {'→' if canvas.unicode else '>'} {units.duration(now)}"
    return line(("most changed: ", LABEL), (f"{_label(direction, stage, canvas)} {moved}", VALUE))


def changed(history: History) -> tuple[str, str, float, float] | None:
    """The stage whose mean is furthest from that of the minute before: direction, stage, mean then and now in ns."""
    newest = history[-1].time_ns
    recent = history[-_RECENT:]
    earlier = [f for f in history[:-_RECENT] if newest - f.time_ns <= _MINUTE * 1_000_000_000]
    if len(earlier) < _RECENT:
        return None
    moves = []
    for direction, stage in _shown(history):
        before, now = (
            hist.mean(Histogram.total([s.latency for s in _each(frames, direction, stage.stage) if s]))
            for frames in (earlier, recent)
        )
        if stage.stage == "done" or before is None or now is None:
            continue
        if abs(now - before) >= _WORTH and max(now, before) >= _CHANGED * min(now, before):
            moves.append((direction, stage.stage, before, now))
    return max(moves, key=lambda move: abs(move[3] - move[2]), default=None)


def subtitle(history: History, canvas: Canvas) -> str:
    """The whole way, both ways."""
    back, age = heatmap.newest(history, _went)
    section = Stages.of(history[-1 - back])
    texts = [
        f"{name} {units.duration(hist.percentile(whole, 0.5))}"
        for name, whole in (("rx", section.rx_whole), ("tx", section.tx_whole))
        if whole.count
    ]
    if not texts:
        return "no packets"
    return "whole way p50 " + " · ".join([*texts, f"{units.age(age)} ago"] if age else texts)


def compact(history: History, canvas: Canvas) -> list[Line]:
    """Two lines for a small terminal."""
    back, age = heatmap.newest(history, _went)
    pieces: list[tuple[int, Line]] = [(0, line(("stages", TITLE))), (0, heatmap.ago(age))]
    pieces += [
        (1, line((f"{WAYS[direction]} ", LABEL), (units.duration(mean), VALUE)))
        for direction, (mean, _) in shares([history[-1 - back]]).items()
    ]
    return draw.clip([draw.parts(pieces, canvas.width), where(history, canvas)], canvas)


PANES = (
    Pane(
        name="stages",
        title="Stages",
        number=4,
        band="bottom",
        draw=pane,
        compact=compact,
        subtitle=subtitle,
        weight=6,
        height=10,
        help=HELP,
        rows=names,
    ),
)

"""How throughput is shown: rates over time for each direction, bursts, drops, protocols and packet sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nettop.core import units
from nettop.core.frame import Frame
from nettop.probes.throughput.section import Direction, Throughput
from nettop.render import draw
from nettop.render.canvas import (
    ACCENT,
    BAD,
    DIM,
    LABEL,
    PLAIN,
    RX,
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

NAME = "throughput"
_AXIS = 9  # "200 Mb/s" and the rule
_NEAR = 0.95  # of the link's speed: a burst that fills the link
_WAYS = (("rx", RX), ("tx", TX))
_SIZE_NAMES = ("64", "128", "256", "512", "1k", "1518", "9k", "64k")

HELP = """\
Bytes and packets that cross the interface, received (rx) and sent (tx), counted at its hooks for every packet, as the \
interface's own counters count them.

Each graph has a scale of its own, at its left; one column is one frame.

peak: the busiest millisecond of the interval. A mean of a second hides bursts that fill queues; this does not. It is \
marked when it comes near the link's speed.

dropped, errors: by the interface and by the queue (qdisc) in front of it, in the interval.

queue: bytes that wait in the qdisc for the device.

sizes: packets by their size on the wire, up to so many bytes; 9k and 64k are jumbo frames.

in no flow: bytes of what is no IP (ARP, LLDP, spanning tree, PPPoE's and MPLS's own, broken IP headers), of all bytes.

counts differ: the interface's own counters count something else than its packets; the zoomed pane says what.
"""


def _rate(way: str, history: History, width: int) -> list[float | None]:
    return draw.series(history, NAME, width, lambda f, s: getattr(s, way).bytes / f.seconds)


def _summary(way: str, role: str, frame: Frame, canvas: Canvas, width: int) -> Line:
    """One direction in one line: rate, peak, packets, what was lost."""
    section = Throughput.of(frame)
    one: Direction = getattr(section, way)
    pieces: list[tuple[int, Line]] = [
        (0, line((f"{way} ", role), (_rate_text(one.bytes / frame.seconds, canvas), VALUE))),
        (2, _peak(one, section.speed_bits_per_s, canvas)),
        (3, line((draw.quantity(units.si(one.packets / frame.seconds, "/s"), 8, 3), PLAIN))),
        (1, _lost(one, section.qdisc.drops if way == "tx" else None)),
    ]
    return draw.parts(pieces, width)


def _rate_text(bytes_per_s: float | None, canvas: Canvas) -> str:
    return draw.quantity(units.rate(bytes_per_s, canvas.bits), 9, 4)


def _peak(one: Direction, speed: int | None, canvas: Canvas) -> Line:
    peak = one.peak_bits_per_s
    full = peak is not None and speed and peak >= _NEAR * speed
    rate = _rate_text(None if peak is None else peak / 8, canvas)
    return line(("peak ", LABEL), (rate, WARN if full else PLAIN), (" in 1 ms", LABEL))


def _lost(one: Direction, queue_drops: int | None) -> Line:
    """Drops and errors of the interval, with those of the queue in front of the interface."""
    dropped = one.drops if queue_drops is None else (one.drops or 0) + queue_drops
    text = draw.fit(f"{units.count(dropped)} drop", 7, "right")
    pieces = [Span(text, WARN if dropped else LABEL if dropped == 0 else DIM)]
    if one.errors:
        pieces.append(Span(f"  {units.count(one.errors)} errors", BAD))
    return tuple(pieces)


def _graphs(history: History, canvas: Canvas, rows: int) -> list[Line]:
    """For each direction its figures over a graph of so many rows, with its scale at the left."""
    lines: list[Line] = []
    width = max(canvas.width - _AXIS, 1)
    rule = Span("▕" if canvas.unicode else "|", DIM)
    per = 8 if canvas.bits else 1
    for way, role in _WAYS:
        lines.append(_summary(way, role, history[-1], canvas, canvas.width))
        values = _rate(way, history, width)
        top = draw.top_of([None if v is None else v * per for v in values], 1000.0) / per
        label = draw.scale(units.rate(top, canvas.bits))
        for row in draw.area(values, Canvas(width, rows, unicode=canvas.unicode), rows, top, role):
            lines.append(draw.pad((Span(draw.fit(label, _AXIS - 1, "right"), DIM), rule, *row), canvas.width))
            label = ""
    return lines


def _mix(frame: Frame, canvas: Canvas, width: int) -> Line:
    section = Throughput.of(frame)
    shares = [(units.clean(p.protocol), p.rx_bytes + p.tx_bytes) for p in section.protocols]
    total = sum(count for _, count in shares)
    named = [*shares[:4], ("in no flow", section.in_no_flow.rx_bytes + section.in_no_flow.tx_bytes)]
    pieces = [
        (index, line((f"{name} ", LABEL), (draw.quantity(units.percent(count / total), 5, 1), PLAIN)))
        for index, (name, count) in enumerate(named, 1)
        if total and (count or index <= len(shares[:4]))
    ]
    sizes = [a + b for a, b in zip(section.rx.sizes, section.tx.sizes, strict=True)]
    right = line(("sizes 64 ", LABEL), draw.blocks(sizes, canvas, ACCENT), (" 64k", LABEL))
    return draw.sides(pieces, [(0, right)], width)


def pane(history: History, canvas: Canvas) -> list[Line]:
    """Both directions: a line of figures over a graph each; then the mix, as tables where there is room."""
    if canvas.zoomed and canvas.height >= 20:
        return _whole(history, canvas)
    lines = _graphs(history, canvas, max((canvas.height - 3) // 2, 1))
    return draw.clip([*lines, _mix(history[-1], canvas, canvas.width)], canvas)


def _whole(history: History, canvas: Canvas) -> list[Line]:
    """Zoomed: tall graphs over a time axis, and the mix as tables."""
    tables = _tables(history[-1], canvas)
    lines = _graphs(history, canvas, max((canvas.height - len(tables) - 4) // 2, 2))
    width = max(canvas.width - _AXIS, 1)
    axis = draw.time_axis([f.time_ns for f in history[-width:]], width, canvas)
    differs = Throughput.of(history[-1]).differs
    why = line((f"counts differ: {units.clean(differs, 256)}", DIM)) if differs else ()
    return draw.clip([*lines, (Span(" " * _AXIS), *axis), why, *tables], canvas)


def _tables(frame: Frame, canvas: Canvas) -> list[Line]:
    """Protocols with their rates at the left, sizes with their packets at the right."""
    section = Throughput.of(frame)
    half = (canvas.width - 3) // 2
    sizes = list(zip(_SIZE_NAMES, section.rx.sizes, section.tx.sizes, strict=True))
    protocols = [(units.clean(p.protocol), p.rx_bytes, p.tx_bytes) for p in section.protocols[: len(sizes)]]

    def rate(count: int) -> str:
        return _rate_text(count / frame.seconds, canvas)

    def packets(count: int) -> str:
        return draw.quantity(units.si(count / frame.seconds), 9, 1)

    left = _table(("protocol", "rx", "tx"), protocols, rate, half, canvas)
    right = _table(("size up to", "rx /s", "tx /s"), sizes, packets, half, canvas)
    left += [()] * (len(right) - len(left))
    return [(*draw.pad(a, half), Span("   "), *draw.pad(b, half)) for a, b in zip(left, right, strict=True)]


def _table(
    heads: tuple[str, str, str],
    rows: Sequence[tuple[str, int, int]],
    text: Callable[[int], str],
    width: int,
    canvas: Canvas,
) -> list[Line]:
    """A name, and for each direction a figure and a bar against the largest of the table."""
    bars = max((width - 32) // 2, 1)
    most = max((max(rx, tx) for _, rx, tx in rows), default=0) or 1
    name, *ways = heads
    cells = [draw.fit(way, 9, "right") for way in ways]
    head = line((draw.fit(name, 11), LABEL), ((" " * (bars + 2)).join(cells), LABEL))
    return [
        head,
        *(
            line(
                (draw.fit(name, 11), PLAIN),
                (text(rx) + " ", VALUE if rx else DIM),
                draw.bar(rx / most, canvas, bars, RX),
                (" " + text(tx) + " ", VALUE if tx else DIM),
                draw.bar(tx / most, canvas, bars, TX),
            )
            for name, rx, tx in rows
        ),
    ]


def compact(history: History, canvas: Canvas) -> list[Line]:
    """Each direction in one line: rate, a small graph, peak, packets, drops."""
    lines: list[Line] = []
    for way, role in _WAYS:
        figures = _summary(way, role, history[-1], canvas, canvas.width - 12)
        width = max(canvas.width - draw.cells_of(figures) - 2, 0)
        values = _rate(way, history, width)
        graph = draw.spark(values, canvas, width, draw.top_of(values), role)
        lines.append((*figures[:2], Span("  "), graph, *figures[2:]))
    return draw.clip(lines, canvas)


def subtitle(history: History, canvas: Canvas) -> str:
    """The queue in front of the device, and the MTU."""
    section = Throughput.of(history[-1])
    words: list[str] = []
    qdisc = section.qdisc
    if qdisc.kind:
        waits = qdisc.kind != "noqueue" and qdisc.backlog_bytes is not None
        words.append(units.clean(qdisc.kind) + (f" queue {units.size(qdisc.backlog_bytes)}" if waits else ""))
    if section.mtu:
        words.append(f"mtu {section.mtu}")
    if section.differs:
        words.append("counts differ")
    return " · ".join(words)


def badge(frame: Frame) -> str:
    """The link's speed."""
    section = Throughput.find(frame)
    speed = None if section is None else section.speed_bits_per_s
    return draw.scale(units.si(speed, "b/s")) if speed else ""


PANES = (
    Pane(
        name=NAME,
        title="Throughput",
        number=1,
        band="top",
        draw=pane,
        compact=compact,
        subtitle=subtitle,
        height=7,
        help=HELP,
        badge=badge,
    ),
)

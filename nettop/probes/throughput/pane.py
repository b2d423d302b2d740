"""How throughput is shown: rates over time for each direction, bursts, drops, protocols and packet sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nettop.core import units
from nettop.core.frame import Frame
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
    Role,
    Span,
    line,
)

if TYPE_CHECKING:
    from nettop.probes.throughput.section import Direction, Throughput

NAME = "throughput"
_AXIS = 9  # "200 Mb/s" and the rule
_NEAR = 0.95  # of the link's speed: a burst that fills the link
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


def _section(frame: Frame) -> Throughput:
    section: Throughput = frame.sections[NAME]  # type: ignore[assignment]
    return section


def _rate(direction: str, history: History, width: int) -> list[float | None]:
    return draw.series(history, NAME, width, lambda f, s: getattr(s, direction).bytes / f.seconds)


def _summary(name: str, frame: Frame, canvas: Canvas, width: int) -> Line:
    """One direction in one line: rate, peak, packets, what was lost."""
    section = _section(frame)
    one: Direction = getattr(section, name)
    role = RX if name == "rx" else TX
    pieces: list[tuple[int, Line]] = [
        (0, line((f"{name} ", role), (_rate_text(one.bytes / frame.seconds, canvas), VALUE))),
        (2, _peak(one, section.speed_bits_per_s, canvas)),
        (3, line((draw.quantity(units.si(one.packets / frame.seconds, "/s"), 8, 3), PLAIN))),
        (1, _lost(name, section)),
    ]
    return draw.parts(pieces, width)


def _rate_text(bytes_per_s: float | None, canvas: Canvas) -> str:
    return draw.quantity(units.rate(bytes_per_s, canvas.bits), 9, 4)


def _peak(one: Direction, speed: int | None, canvas: Canvas) -> Line:
    peak = one.peak_bits_per_s
    full = peak is not None and speed and peak >= _NEAR * speed
    rate = _rate_text(None if peak is None else peak / 8, canvas)
    return line(("peak ", LABEL), (rate, WARN if full else PLAIN), (" in 1 ms", LABEL))


def _lost(name: str, section: Throughput) -> Line:
    """Drops and errors of the interval; the queue's own count as sent ones."""
    one: Direction = getattr(section, name)
    dropped = one.drops
    if name == "tx" and section.qdisc.drops is not None:
        dropped = (dropped or 0) + section.qdisc.drops
    text = draw.fit(f"{units.count(dropped)} drop", 7, "right")
    pieces: list[Span] = [Span(text, WARN if dropped else LABEL if dropped == 0 else DIM)]
    if one.errors:
        pieces.append(Span(f"  {units.count(one.errors)} errors", BAD))
    return tuple(pieces)


def _graph(name: str, history: History, canvas: Canvas, rows: int) -> list[Line]:
    """A direction over time, its scale at the left."""
    width = max(canvas.width - _AXIS, 1)
    values = _rate(name, history, width)
    per = 8 if canvas.bits else 1
    top = draw.top_of([None if v is None else v * per for v in values], 1000.0) / per
    role = RX if name == "rx" else TX
    graph = draw.area(values, Canvas(width, rows, unicode=canvas.unicode), rows, top, role)
    rule = "▕" if canvas.unicode else "|"
    labels = [draw.scale(units.rate(top, canvas.bits))] + [""] * (rows - 1)
    return [
        draw.pad((Span(draw.fit(label, _AXIS - 1, "right"), DIM), Span(rule, DIM), *row), canvas.width)
        for label, row in zip(labels, graph, strict=True)
    ]


def _mix(frame: Frame, canvas: Canvas, width: int) -> Line:
    """Protocols by bytes, and packets by size."""
    section = _section(frame)
    total = sum(p.rx_bytes + p.tx_bytes for p in section.protocols)
    pieces: list[tuple[int, Line]] = [
        (
            1 + index,
            line(
                (f"{units.clean(p.protocol)} ", LABEL),
                (draw.quantity(units.percent((p.rx_bytes + p.tx_bytes) / total), 5, 1), PLAIN),
            ),
        )
        for index, p in enumerate(section.protocols[:4])
        if total
    ]
    if beyond := section.in_no_flow.rx_bytes + section.in_no_flow.tx_bytes:
        share = draw.quantity(units.percent(beyond / total), 5, 1)
        pieces.append((5, line(("in no flow ", LABEL), (share, PLAIN))))
    sizes = [a + b for a, b in zip(section.rx.sizes, section.tx.sizes, strict=True)]
    pieces.append((0, line(("sizes 64 ", LABEL), draw.blocks(sizes, canvas, ACCENT), (" 64k", LABEL))))
    right = [pieces.pop()]
    return draw.sides(pieces, right, width)


def pane(history: History, canvas: Canvas) -> list[Line]:
    """Both directions: a line of figures over a graph each; then the mix, as tables where there is room."""
    frame = history[-1]
    if canvas.zoomed and canvas.height >= 20:
        return _whole(history, canvas)
    rows = max((canvas.height - 3) // 2, 1)
    lines: list[Line] = []
    for name in ("rx", "tx"):
        lines.append(_summary(name, frame, canvas, canvas.width))
        lines += _graph(name, history, canvas, rows)
    lines.append(_mix(frame, canvas, canvas.width))
    return draw.clip(lines, canvas)


def _whole(history: History, canvas: Canvas) -> list[Line]:
    """Zoomed: tall graphs over a time axis, and the mix as tables."""
    frame = history[-1]
    tables = _tables(frame, canvas)
    rows = max((canvas.height - len(tables) - 4) // 2, 2)
    lines: list[Line] = []
    for name in ("rx", "tx"):
        lines.append(_summary(name, frame, canvas, canvas.width))
        lines += _graph(name, history, canvas, rows)
    width = max(canvas.width - _AXIS, 1)
    axis = draw.time_axis([f.time_ns for f in history[-width:]], width, canvas)
    differs = _section(frame).differs
    why = [line((f"counts differ: {units.clean(differs, 256)}", DIM))] if differs else [()]
    lines += [(Span(" " * _AXIS), *axis), *why, *tables]
    return draw.clip(lines, canvas)


def _tables(frame: Frame, canvas: Canvas) -> list[Line]:
    """Protocols with their rates at the left, sizes with their packets at the right."""
    section = _section(frame)
    half = (canvas.width - 3) // 2
    rows = len(_SIZE_NAMES)
    heads = (_columns("protocol", half, "rx", "tx"), _columns("size up to", half, "rx /s", "tx /s"))
    most_bytes = max([max(p.rx_bytes, p.tx_bytes) for p in section.protocols], default=0)
    left = [
        _pair(
            units.clean(p.protocol),
            p.rx_bytes,
            p.tx_bytes,
            most_bytes,
            half,
            canvas,
            _rate_text(p.rx_bytes / frame.seconds, canvas),
            _rate_text(p.tx_bytes / frame.seconds, canvas),
        )
        for p in section.protocols[:rows]
    ]
    most = max([*section.rx.sizes, *section.tx.sizes], default=0)
    right = [
        _pair(
            name,
            rx,
            tx,
            most,
            half,
            canvas,
            *(draw.quantity(units.si(n / frame.seconds), 9, 1) for n in (rx, tx)),
        )
        for name, rx, tx in zip(_SIZE_NAMES, section.rx.sizes, section.tx.sizes, strict=True)
    ]
    left += [()] * (rows - len(left))
    return [
        (*draw.pad(a, half), Span("   "), *draw.pad(b, half))
        for a, b in zip([heads[0], *left], [heads[1], *right], strict=True)
    ]


def _columns(name: str, width: int, rx: str, tx: str) -> Line:
    bars = max((width - 32) // 2, 1)
    return line(
        (draw.fit(name, 11), LABEL),
        (draw.fit(rx, 9, "right") + " " * (bars + 2), LABEL),
        (draw.fit(tx, 9, "right"), LABEL),
    )


def _pair(
    name: str, rx: int, tx: int, most: int, width: int, canvas: Canvas, rx_text: str, tx_text: str
) -> Line:
    """A name, and for each direction a figure and a bar against the largest of the table."""
    bars = max((width - 32) // 2, 1)

    def share(value: int) -> float:
        return value / most if most else 0.0

    def quiet(value: int, role: Role) -> Role:
        return role if value else DIM

    return line(
        (draw.fit(name, 11), PLAIN),
        (rx_text + " ", quiet(rx, VALUE)),
        draw.bar(share(rx), canvas, bars, RX),
        " ",
        (tx_text + " ", quiet(tx, VALUE)),
        draw.bar(share(tx), canvas, bars, TX),
    )


def compact(history: History, canvas: Canvas) -> list[Line]:
    """Each direction in one line: rate, a small graph, peak, packets, drops."""
    frame = history[-1]
    lines: list[Line] = []
    for name in ("rx", "tx"):
        role = RX if name == "rx" else TX
        figures = _summary(name, frame, canvas, canvas.width - 12)
        width = canvas.width - draw.cells_of(figures) - 2
        values = _rate(name, history, width)
        graph = draw.spark(values, canvas, max(width, 0), draw.top_of(values), role)
        lines.append((*figures[:2], Span("  "), graph, *figures[2:]))
    return draw.clip(lines, canvas)


def subtitle(history: History, canvas: Canvas) -> str:
    """The queue in front of the device, and the MTU."""
    section = _section(history[-1])
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
    section = frame.sections.get(NAME)
    speed = getattr(section, "speed_bits_per_s", None)
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

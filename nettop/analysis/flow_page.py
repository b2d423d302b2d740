"""The page of one flow: its verdict, its delay as one stacked bar over time, and what it did meanwhile."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, zip_longest
from typing import Any

from nettop.analysis.verdict.evidence import WAY, Parts, split
from nettop.analysis.verdict.explain import DelayPart, Explanation, explain
from nettop.analysis.verdict.flow import focused_of, round_trips
from nettop.analysis.verdict.rules import APP_LIMITED, HEALTHY, NOTHING_FOUND
from nettop.core import units
from nettop.core.frame import Frame
from nettop.probes.flows import rtt_pane as flows_rtt_pane
from nettop.probes.flows.constants import METHODS, PROTOCOLS, STATES, both_ways
from nettop.probes.flows.rows import spinning
from nettop.probes.flows.section import row_of
from nettop.probes.flows.table import ends, named, process, since, tunnel_of
from nettop.render import draw
from nettop.render.canvas import (
    ACCENT,
    DIM,
    GOOD,
    LABEL,
    PLAIN,
    RX,
    TITLE,
    TX,
    VALUE,
    WARN,
    Canvas,
    History,
    Line,
    Role,
    Span,
    line,
)

_AXIS = 9
_SIDE = 40  # cells of the figures beside the graphs
_NARROW = 62  # below this there is no room for both
_LEAST_BAR = 8  # lines: one for each part beside it

# By part: the role, a texture where there are no shades, and one where there is no Unicode either.  What is sent, what
# is away and what is received have a hue each; the part that the verdict speaks of is warm.
_LOOKS: dict[str, tuple[Role, str, str]] = {
    "buffer": ("tx-fill", "▪", "o"),
    "send": ("tx-fill", "╱", "/"),
    "qdisc": (TX, "▓", "q"),
    "wire": (DIM, "░", "."),
    "beyond": (LABEL, "▒", ":"),
    "softirq": ("rx-fill", "╳", "x"),
    "receive": (RX, "╲", "\\"),
    "reader": (ACCENT, "█", "#"),
}
_VERDICTS = {"": DIM, NOTHING_FOUND: LABEL, HEALTHY: GOOD, APP_LIMITED: ACCENT}  # others are warm

HELP = """\
What is wrong with this flow, and where the time of its packets goes. docs/verdict.md has the rules.

The verdict comes first, then the figures behind it; also: what holds besides. refused: a RST answered the SYN. \
unanswered: a SYN, or SYN-ACK, that nobody answers. not accepted: the handshake is repeated, and no data follows. \
rwnd-limited: the far end takes data too slowly. server latency: it answers too slowly. receiver-limited: what has \
arrived waits for this host's process. qdisc queueing: packets wait in this host's own queue. softirq latency: a CPU \
comes late to what has arrived. packet loss: segments had to be sent again. stack latency: in the code between driver \
and socket. path queueing: packets wait on the path (bufferbloat). propagation: the path is long. app-limited: the \
sender has nothing to send. healthy: every part was seen, and none is wrong. nothing found: not every part was seen. \
no verdict yet: two intervals with packets are needed.

delay: a packet's way to the far end and back, and to its reader. Each column of the bar is an interval; the figures \
are the mean of the last ones, and each part's share of the sum. An arrow marks the parts that the verdict speaks of.

send stack: from IP to the qdisc, and in the driver. qdisc: in this host's own queue. RTT, least seen: the shortest \
round trip. RTT, above least: what comes on top of it now, most often queues on the way. interrupt to poll: until a \
CPU fetches what has arrived; host-wide, of all flows. receive stack: from the driver to the socket. wait for reader: \
from there until the process has read it. send buffer: from its write until the segment may go; not in the bar. not \
in focus: this is measured while the page is open, and comes with the next frames.

sent, received: rates. RTT: the newest round trip, the least, and the method (the table's help has them); kernel srtt \
and min: what its socket has measured; internal: from here to the local end. cwnd: the congestion window in segments; \
in flight: bytes sent and not acknowledged; window: bytes that each end still takes. retr: segments sent again; \
reordered: overtaken on the way, not lost. buffered: how long data waits in the send buffer, and how much does.
"""


def _glyph(name: str, canvas: Canvas) -> str:
    if canvas.unicode and canvas.shades:
        return "█"
    return _LOOKS[name][1 if canvas.unicode else 2]


def _role(name: str, culprits: Sequence[str]) -> Role:
    return WARN if name in culprits else _LOOKS[name][0]


# --- words ---------------------------------------------------------------------------------------------------------


def verdict_lines(found: Explanation, canvas: Canvas, reasons: int) -> list[Line]:
    """The verdict and at most ``reasons`` lines of what it rests on."""
    mark = "▌ " if canvas.unicode else "> "
    role = _VERDICTS.get(found.verdict, WARN)
    word = found.verdict or "no verdict yet"
    head: list[tuple[int, Line]] = [(0, line((mark, role), (word, role), "  ", (found.headline, TITLE)))]
    if found.also:
        head.append((1, line(("also ", LABEL), (", ".join(found.also), WARN))))
    lines = [draw.parts(head, canvas.width)]
    for reason in found.reasons:
        bullet = "· " if canvas.unicode else "- "
        for row in draw.wrap(reason, max(canvas.width - 4, 1)):
            lines.append((Span(mark, role), Span(bullet, DIM), *row))
            bullet = "  "
    return lines[: 1 + max(reasons, 0)]


def said(found: Explanation, frame: Frame, canvas: Canvas) -> list[Line]:
    """All of it without a graph: the text output."""
    row = row_of(frame, found.flow)
    who = "" if row is None else "  ".join(ends(row))
    lines = [line(("Focus  ", TITLE), (who, PLAIN)), *verdict_lines(found, canvas, 20)]
    legend = _legend(found, replace(canvas, width=min(canvas.width, 60)))
    return draw.clip([*lines, *legend], replace(canvas, height=99))


def _legend(found: Explanation, canvas: Canvas) -> list[Line]:
    """A line for each part, last first, as they stand in the bar; the send buffer, which is not in it, last."""
    return [_legend_line(part, found.culprits, canvas) for part in reversed(found.parts)]


def _legend_line(part: DelayPart, culprits: Sequence[str], canvas: Canvas) -> Line:
    here = part.name in culprits
    glyph = _glyph(part.name, canvas) if part.ns is not None else " "
    swatch = Span(f"{glyph} ", _role(part.name, culprits))
    width = max(canvas.width - 2 - 9 - 6 - 2, 4)
    words = Span(draw.fit(part.words, width), TITLE if here else PLAIN if part.ns is not None else DIM)
    if part.ns is None:
        return swatch, words, Span(draw.fit(part.note, 17, "right"), DIM)
    figure = Span(draw.fit(units.duration(part.ns), 9, "right"), WARN if here else VALUE)
    share = "" if part.share is None else "0 %" if part.share < 0.001 else units.percent(part.share)
    mark = (" ◂" if canvas.unicode else " <") if here else "  "
    return swatch, words, figure, Span(draw.fit(share, 6, "right"), LABEL), Span(mark, WARN)


# --- the bar -------------------------------------------------------------------------------------------------------


def bars(columns: Sequence[Parts], canvas: Canvas, top: float, culprits: Sequence[str]) -> list[Line]:
    """One stacked bar a column over canvas.height lines: its parts from the bottom up in the packet's order.

    A cell belongs to the part that its middle is in; the topmost one is drawn in eighths.
    """
    height = canvas.height
    grid = [[Span(" ")] * canvas.width for _ in range(height)]
    for x, parts in enumerate(columns, canvas.width - len(columns)):
        sums = list(accumulate(parts[name] or 0.0 for name in WAY))
        tops = [end / top * height for end in sums]
        filled = min(tops[-1], float(height))
        for level in range(max(int(filled + 0.999), 1) if filled > 0 else 0):
            share = min(filled - level, 1.0)
            name = WAY[min(bisect_left(tops, level + share / 2), len(WAY) - 1)]
            glyph = _glyph(name, canvas)
            if level == height - 1 and sums[-1] > top:
                glyph = "↑" if canvas.unicode else "^"  # beyond the scale
            elif canvas.unicode and canvas.shades:
                glyph = " ▁▂▃▄▅▆▇█"[max(min(round(share * 8), 8), 1)]
            grid[height - 1 - level][x] = Span(glyph, _role(name, culprits))
    return [draw.merged(row) for row in grid]


# --- strips --------------------------------------------------------------------------------------------------------


class _Page:
    """What the page is drawn from: the frames that have a column, and what each says of the flow."""

    def __init__(self, history: History, flow: int, canvas: Canvas) -> None:
        self.canvas = canvas
        self.flow = flow
        self.side = min(_SIDE, canvas.width // 2) if canvas.width >= _NARROW else 0
        self.width = max(canvas.width - _AXIS - (self.side + 2 if self.side else 0), 1)
        self.frames = list(history[-self.width :])
        self.rows = [row_of(frame, flow) for frame in self.frames]
        self.looks = [focused_of(frame, flow) for frame in self.frames]
        self.sockets = [None if look is None else look.socket for look in self.looks]
        self.socket = next((s for s in reversed(self.sockets) if s is not None), None)
        self.newest = next((row for row in reversed(self.rows) if row is not None), None)

    def graph_canvas(self, height: int) -> Canvas:
        """For a graph of so many lines."""
        return replace(self.canvas, width=self.width, height=height, cursor=None)

    def beside(self, graph: Sequence[Line], labels: Sequence[str], side: Sequence[Line]) -> list[Line]:
        """A graph's lines between labels on the left and figures on the right, as far as there are any."""
        rule = Span("▕" if self.canvas.unicode else "|", DIM)
        result: list[Line] = []
        for row, label, figures in zip_longest(graph, labels, side[: len(graph)]):
            left = (Span(draw.fit(label or "", _AXIS - 1, "right"), DIM), rule, *row)
            if self.side:
                left = (*draw.pad(left, _AXIS + self.width), Span("  "), *draw.pad(figures or (), self.side))
            result.append(left)
        return result

    def strip(
        self,
        values: Sequence[float | None],
        role: Role,
        side: Sequence[Line],
        height: int,
        text: Callable[[float], str],
        label: str = "",
    ) -> list[Line]:
        """A small graph over ``height`` lines with its scale on the left and its figures on the right."""
        if not any(values):
            height, label = 1, label or " "
        top = draw.top_of(values)
        graph = draw.area(values, self.graph_canvas(height), height, top, role)
        return self.beside(graph, [label or draw.scale(text(top))], side)


def _figures(word: str, value: str, more: str, role: Role = LABEL, value_role: Role = VALUE) -> Line:
    return line((draw.fit(word, 9), role), (draw.fit(value, 10, "right"), value_role), (more, LABEL))


def _newest(values: Sequence[float | None], text: Callable[[float], str]) -> str:
    return next((text(value) for value in reversed(values) if value is not None), units.NONE)


def _whole(value: float) -> str:
    return units.count(round(value))


def _rates(page: _Page, name: str, role: Role, word: str, height: int) -> list[Line]:
    per = 8 if page.canvas.bits else 1
    values = [
        None if row is None else int(row[f"{name}_bytes"]) / frame.seconds * per
        for row, frame in zip(page.rows, page.frames, strict=True)
    ]

    def text(value: float) -> str:
        return units.rate(value / per, page.canvas.bits)

    known = [v for v in values if v is not None]
    most = f"   most {text(max(known))}" if known else ""
    return page.strip(values, role, [_figures(word, _newest(values, text), most, role)], height, text)


def _trips(page: _Page, height: int) -> list[Line]:
    """Round trips: every sample of the flow in focus as a heat map where there is room, the means elsewhere."""
    trips = [round_trips(frame, page.flow) for frame in page.frames]
    assert page.newest is not None
    rtt, kernel, inward = (page.newest[name] for name in ("rtt", "kernel_rtt", "internal_rtt"))
    if not rtt["samples_total"]:
        side = [line((draw.fit("RTT", 9), LABEL), (_no_trips(page), LABEL))]
    else:
        least = f"   least {units.duration(int(rtt['min']))}"
        side = [_figures("RTT", units.duration(int(rtt["last"])), least)]
        how = f"by {METHODS[int(rtt['method'])]}, jitter {units.duration(int(rtt['variance']))}"
        pieces = []
        if kernel["smoothed"]:
            pieces.append(f"kernel srtt {units.duration(int(kernel['smoothed']))}")
            if page.socket is not None and page.socket.rtt_min_ns is not None:
                pieces.append(f"min {units.duration(page.socket.rtt_min_ns)}")
        if inward["samples_total"]:
            pieces.append(f"internal {units.duration(int(inward['last']))}")
        side += [line((how, LABEL)), line((", ".join(pieces), LABEL))]
    if height > 2 and any(len(t) > 1 for t in trips):
        heaps = [flows_rtt_pane.heap(t) for t in trips]
        inner = page.graph_canvas(height)
        plane = draw.Plane.of(heaps, inner, *flows_rtt_pane.decades(heaps))
        axis = draw.delay_axis(plane.edges, inner, _AXIS - 1)
        return page.beside(plane.lines(inner), [label[0].text.strip() for label in axis], side)
    return page.strip([sum(t) / len(t) if t else None for t in trips], LABEL, side, height, units.duration)


def _no_trips(page: _Page) -> str:
    """Why there is no round trip, and what the kernel has instead; short, as it stands in the place of a figure."""
    row = page.newest
    assert row is not None
    if spinning(row) is False:
        return "does not spin"
    if not row["tx_packets_total"] or not row["rx_packets_total"]:
        return "one direction only"
    if int(row["protocol"]) != PROTOCOLS["tcp"]:
        return "not measured: no TCP"
    looks = [look for look in page.looks if look is not None]
    why = "no data sent" if looks and not any(look.data[1] for look in looks) else "no sample"
    if row["kernel_rtt"]["smoothed"]:
        return f"{why}; kernel {units.duration(int(row['kernel_rtt']['smoothed']))}"
    if page.socket is not None and page.socket.rtt_min_ns is not None:
        return f"{why}; kernel {'≥' if page.canvas.unicode else '>'}{units.duration(page.socket.rtt_min_ns)}"
    return why


def _buffer(page: _Page, columns: Sequence[Parts], culprits: Sequence[str]) -> list[Line]:
    """The wait in the send buffer, which the bar leaves out."""
    values = [parts["buffer"] for parts in columns]
    role = WARN if "buffer" in culprits else TX
    unsent = "" if page.socket is None else f"   {units.size(page.socket.unsent)}"
    side = _figures("buffered", _newest(values, units.duration), unsent, role)
    return page.strip(values, role, [side], 1, units.duration)


def _window(page: _Page, height: int) -> list[Line]:
    """The congestion window, and what else limits a sender."""
    values: list[float | None] = []
    for socket, row in zip(page.sockets, page.rows, strict=True):
        known = (
            socket.cwnd if socket is not None else int(row["kernel_rtt"]["cwnd"]) if row is not None else 0
        )
        values.append(float(known) if known or socket is not None else None)
    newest = page.socket
    flying = "" if newest is None else f"  in flight {units.size(newest.in_flight)}"
    side = [_figures("cwnd", _newest(values, _whole), flying)]
    if newest is not None:
        windows = f"window {units.size(newest.send_window)} there, {units.size(newest.receive_window)} here"
        if page.side < draw.cells(windows):
            windows = f"their window {units.size(newest.send_window)}"
        side.append(line((windows, LABEL)))
    return page.strip(values, LABEL, side, height, _whole)


def _retransmits(page: _Page) -> list[Line]:
    values: list[float | None] = []
    before: int | None = None
    for row in page.rows:
        now = None if row is None else sum(both_ways(row, "retransmits"))
        values.append(None if now is None or before is None else float(max(now - before, 0)))
        before = now if now is not None else before
    assert page.newest is not None
    received, sent = both_ways(page.newest, "retransmits")
    role = WARN if any(values) else LABEL
    more = f"   {units.count(received)} received"
    side = _figures("retr", f"{units.count(sent)} sent", more, role, VALUE if sent else LABEL)
    return page.strip(values, role, [side], 1, _whole, "retr")


# --- the page ------------------------------------------------------------------------------------------------------


def _page(history: History, flow: int, canvas: Canvas, head: Sequence[Line]) -> list[Line]:
    """Verdict, bar and strips under the lines of ``head``; at most canvas.height lines."""
    p = _Page(history, flow, canvas)
    if p.newest is None:
        return draw.clip(list(head), canvas)
    found = explain(history, flow)
    tall = canvas.height >= 32
    gap: list[Line] = [()] * tall
    reasons = 4 if tall else 2
    words = verdict_lines(found, canvas, reasons)
    # As many lines for one verdict as for the next: the bar stays where it is.
    lines = [*head, *gap, *words, *[()] * (reasons + 1 - len(words)), *gap]
    # What is left after the strips is the bar's, which must have room for its parts.
    large = 2 if tall else 1
    columns = [split(frame, flow) for frame in p.frames]
    strips = [
        *_rates(p, "tx", TX, "sent", large),
        *_rates(p, "rx", RX, "received", large),
        *_trips(p, 3 if tall else 1),
    ]
    if int(p.newest["protocol"]) == PROTOCOLS["tcp"]:
        strips += [*_window(p, large), *_retransmits(p)]
        if any(parts["buffer"] is not None for parts in columns):
            strips += _buffer(p, columns, found.culprits)
    room = canvas.height - len(lines) - 2  # title and axis
    del strips[max(room - _LEAST_BAR, 0) :]
    height = min(max(room - len(strips), 1), 16)
    lines += [_title(found, p), *_bar(found, p, columns, height), *strips]
    axis = draw.time_axis([f.time_ns for f in p.frames], p.width, canvas)
    return draw.clip([*lines[: max(canvas.height - 1, 0)], (Span(" " * _AXIS), *axis)], canvas)


def _title(found: Explanation, page: _Page) -> Line:
    room = page.canvas.width - (page.side + 2 if page.side else 0)
    left = line(("delay ", TITLE), (units.duration(found.whole_ns), VALUE), "  ")
    words = ("a packet's way to the far end and back, and to its reader", "a packet's way there and back", "")
    unknown = [part.words for part in found.parts if part.ns is None and part.name in WAY]
    if unknown:  # the shares are of what is known, which is not the whole
        count = f"{len(unknown)} of {len(WAY)} parts are not known"
        words = (f"a packet's way as far as it is known: {count}", count, "")
    left = (*left, Span(next(w for w in words if draw.cells_of(left) + len(w) <= room or not w), LABEL))
    if not page.side:
        return draw.pad(left, room)
    right = line(
        (draw.fit(f"mean of {units.age(found.span_ns)}", page.side - 10, "right"), LABEL),
        (draw.fit("share", 8, "right"), LABEL),
    )
    return (*draw.pad(left, room), Span("  "), *draw.pad(right, page.side))


def _top(sums: Sequence[float]) -> float:
    """The scale's top: the longest way, unless that is a rare exception beside which all others would be flat."""
    some = sorted(s for s in sums if s > 0)
    if not some:
        return 1.0
    usual = some[int(0.9 * (len(some) - 1))]
    return draw.ceiling(some[-1] if some[-1] <= 4 * usual else 2 * usual)


def _bar(found: Explanation, page: _Page, columns: Sequence[Parts], height: int) -> list[Line]:
    top = _top([sum(parts[name] or 0.0 for name in WAY) for parts in columns])
    graph = bars(columns, page.graph_canvas(height), top, found.culprits)
    legend = _legend(found, replace(page.canvas, width=page.side)) if page.side else []
    if len(legend) < height:
        legend.insert(-1, ())  # the send buffer is not in the bar: it stands apart
    labels = [draw.scale(units.duration(top))] + [""] * (height - 1)
    if height >= _LEAST_BAR:
        labels[height // 2] = draw.scale(units.duration(top / 2))
    return page.beside(graph, labels, legend)


def detail(history: History, identity: int, canvas: Canvas) -> list[Line]:
    """Who it is, what it did, and the whole of its delay (focus_view)."""
    at = next((frame for frame in reversed(history) if row_of(frame, identity) is not None), None)
    if at is None:
        return draw.clip([line(("This flow is not in the frames that are kept.", DIM))], canvas)
    newest = row_of(at, identity)
    head = [_identity(newest, canvas, at is not history[-1]), _did(newest, at, canvas)]
    return _page(history, identity, canvas, head)


def _identity(row: Any, canvas: Canvas, gone: bool) -> Line:
    word = "gone" if gone else STATES[int(row["state"])]
    role = {"gone": DIM, "open": GOOD, "reset": WARN}.get(word, LABEL)
    pieces = [
        (0, line((units.protocol(int(row["protocol"])), LABEL))),
        (2, line((f"in {tunnel_of(row)}", LABEL)) if row["tunnel"] else ()),
        (1, line((named(row, "local", canvas), TITLE))),
        (0, line(("⇄" if canvas.unicode else "<>", DIM))),
        (0, line((named(row, "remote", canvas), TITLE))),
        (2, line((process(row), PLAIN))),
        (3, line((word, role))),
    ]
    return draw.parts(pieces, canvas.width)


def _did(row: Any, frame: Frame, canvas: Canvas) -> Line:
    received, sent = map(units.size, both_ways(row, "bytes_total"))
    pieces = [
        (0, line(("age ", LABEL), (units.age(since(frame, row["first"])), PLAIN))),
        (1, line(("received ", LABEL), (received, PLAIN))),
        (1, line(("sent ", LABEL), (sent, PLAIN))),
    ]
    if int(row["protocol"]) == PROTOCOLS["tcp"]:
        for way, word in (("tx", "retr sent "), ("rx", "retr received ")):
            count = int(row[f"{way}_retransmits"])
            pieces.append((2, line((word, LABEL), (units.count(count), WARN if count else PLAIN))))
        late = units.count(sum(both_ways(row, "out_of_order")))
        pieces.append((3, line(("reordered ", LABEL), (late, PLAIN))))
        # Rare, and worth their place where they are: copies that the network made, and what nothing tells apart.
        for field, word in (("uncertain", "uncertain "), ("duplicates", "duplicated ")):
            if count := sum(both_ways(row, field)):
                pieces.append((4, line((word, LABEL), (units.count(count), PLAIN))))
    return draw.parts(pieces, canvas.width, gap=3)

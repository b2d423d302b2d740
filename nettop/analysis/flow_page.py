"""The page of one flow: its verdict, its delay as one stacked bar over time, and what it did meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nettop.analysis.verdict.explain import (
    HEALTHY,
    NOTHING_FOUND,
    WAY,
    WRITES_LITTLE,
    DelayPart,
    Explanation,
    explain,
    focused_of,
    round_trips,
    split,
)
from nettop.core import units
from nettop.core.frame import Frame
from nettop.probes.flows import rtt_pane as flows_rtt_pane
from nettop.probes.flows.constants import METHODS, PROTOCOLS, STATES
from nettop.probes.flows.rows import spinning
from nettop.probes.flows.section import row_of
from nettop.probes.flows.table import _named, _process, _since, _tunnel
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

if TYPE_CHECKING:
    pass

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


HELP = """\
What is wrong with this flow, and where the time of its packets goes. docs/verdict.md has the rules.

The verdict comes first, then the field's own term and the figures behind it; also: what holds besides. no \
connection: refused, or not answered. far end: it takes data, or answers, too slowly. application reads late: what \
has arrived waits for this host's process. queue: this host's own qdisc. interrupts: a CPU comes late to what has \
arrived. loss: segments had to be sent again. stack: the code between driver and socket. application writes little: \
nothing holds the flow up but that its sender has nothing to send. network: the way is long, or packets wait on it. \
healthy: every part was seen, and none is wrong. nothing found: not every part was seen. no verdict yet: two \
intervals with packets are needed.

delay: a packet's way to the far end and back, and to its reader. Each column of the bar is an interval; the figures \
are the mean of the last ones, and each part's share of the sum. An arrow marks the parts that the verdict speaks of.

send stack: from IP to the qdisc, and in the driver. qdisc: in this host's own queue. RTT, least seen: the shortest \
round trip. RTT, above least: what comes on top of it now, most often queues on the way. interrupt to poll: until a \
CPU fetches what has arrived; host-wide, of all flows. receive stack: from the driver to the socket. wait for reader: \
from there until the process has read it. send buffer: from its write until the segment may go; not in the bar. not \
in focus: this is measured while the page is open, and comes with the next frames.

sent, received: rates. RTT: the newest round trip, the least, and the method (the table's help has them); the \
kernel's: what its socket has measured. cwnd: the congestion window in segments; in flight: bytes sent and not \
acknowledged; window: bytes that each end still takes. again: segments sent again; late: out of order, and not lost. \
buffered: how long data waits in the send buffer, and how much does.
"""


def _glyph(name: str, canvas: Canvas) -> str:
    if canvas.unicode and canvas.shades:
        return "█"
    return _LOOKS[name][1 if canvas.unicode else 2]


def _role(name: str, culprits: Sequence[str]) -> Role:
    return WARN if name in culprits else _LOOKS[name][0]


def _verdict_role(verdict: str) -> Role:
    return {"": DIM, NOTHING_FOUND: LABEL, HEALTHY: GOOD, WRITES_LITTLE: ACCENT}.get(verdict, WARN)


# --- words ---------------------------------------------------------------------------------------------------------


def verdict_lines(found: Explanation, canvas: Canvas, reasons: int) -> list[Line]:
    """The verdict and at most ``reasons`` lines of what it rests on."""
    mark = "▌ " if canvas.unicode else "> "
    role = _verdict_role(found.verdict)
    word = found.verdict or "no verdict yet"
    head: list[tuple[int, Line]] = [(0, line((mark, role), (word, role), "  ", (found.headline, TITLE)))]
    if found.term and found.term != word:
        head.append((2, line((found.term, LABEL))))
    if found.also:
        head.append((1, line(("also ", LABEL), (", ".join(found.also), WARN))))
    lines = [draw.parts(head, canvas.width)]
    bullet = "· " if canvas.unicode else "- "
    width = max(canvas.width - 4, 1)
    for reason in found.reasons:
        if draw.cells(reason) <= width:
            lines.append(line((mark, role), (bullet, DIM), (reason, PLAIN)))
            continue
        for number, row in enumerate(draw.wrap(reason, width, PLAIN)):
            lines.append((Span(mark, role), Span(bullet if not number else "  ", DIM), *row))
    return lines[: 1 + max(reasons, 0)]


def said(found: Explanation, row: Any | None, canvas: Canvas) -> list[Line]:
    """All of it without a graph: the text output."""
    who = "" if row is None else _who(row)
    lines = [line(("Focus  ", TITLE), (who, PLAIN)), *verdict_lines(found, canvas, 20)]
    return draw.clip(
        [*lines, *_legend(found, replace(canvas, width=min(canvas.width, 60)))], replace(canvas, height=99)
    )


def _who(row: Any) -> str:
    ends = [units.endpoint(bytes(row[end]), int(row[f"{end}_port"])) for end in ("local", "remote")]
    return f"{units.protocol(int(row['protocol']))}  {ends[0]}  {ends[1]}"


def _legend(found: Explanation, canvas: Canvas) -> list[Line]:
    """A line for each part, last first, as they stand in the bar; the send buffer, which is not in it, last."""
    return [_legend_line(part, found.culprits, canvas) for part in reversed(found.parts)]


def _legend_line(part: DelayPart, culprits: Sequence[str], canvas: Canvas) -> Line:
    here = part.name in culprits
    mark = (" ◂" if canvas.unicode else " <") if here else "  "
    swatch = Span(
        (_glyph(part.name, canvas) if part.ns is not None else " ") + " ", _role(part.name, culprits)
    )
    width = max(canvas.width - 2 - 9 - 6 - 2, 4)
    words = Span(draw.fit(part.words, width), TITLE if here else PLAIN if part.ns is not None else DIM)
    if part.ns is None:
        return swatch, words, Span(draw.fit(part.note, 17, "right"), DIM)
    figure = Span(draw.fit(units.duration(part.ns), 9, "right"), WARN if here else VALUE)
    share = "" if part.share is None else units.percent(part.share)
    if part.share is not None and 0 < part.share < 0.001:
        share = "0 %"
    return swatch, words, figure, Span(draw.fit(share, 6, "right"), LABEL), Span(mark, WARN)


# --- the bar -------------------------------------------------------------------------------------------------------


def bars(
    columns: Sequence[dict[str, float | None]], canvas: Canvas, top: float, culprits: Sequence[str]
) -> list[Line]:
    """One stacked bar a column over canvas.height lines: its parts from the bottom up in the packet's order.

    A cell belongs to the part that its middle is in; the topmost one is drawn in eighths.
    """
    height = canvas.height
    grid: list[list[Span]] = [[Span(" ")] * canvas.width for _ in range(height)]
    start = canvas.width - len(columns)
    eighths = " ▁▂▃▄▅▆▇█"
    for number, parts in enumerate(columns):
        ends: list[tuple[float, str]] = []
        total = 0.0
        for name in WAY:
            total += parts[name] or 0.0
            ends.append((total / top * height, name))
        filled = min(total / top * height, float(height))
        if total <= 0:
            continue
        for level in range(max(int(filled + 0.999), 1)):
            share = min(filled - level, 1.0)
            middle = level + share / 2
            name = next((n for end, n in ends if middle <= end), ends[-1][1])
            glyph = _glyph(name, canvas)
            if level == height - 1 and total > top:
                glyph = "↑" if canvas.unicode else "^"  # beyond the scale
            elif canvas.unicode and canvas.shades:
                glyph = eighths[max(min(round(share * 8), 8), 1)]
            grid[height - 1 - level][start + number] = Span(glyph, _role(name, culprits))
    return [draw.merged(row) for row in grid]


# --- strips --------------------------------------------------------------------------------------------------------


class _Page:
    """What the page is drawn from: the frames that have a column, and what each says of the flow."""

    def __init__(self, history: History, flow: int, canvas: Canvas) -> None:
        self.canvas = canvas
        self.flow = flow
        self.wide = canvas.width >= _NARROW
        self.side = min(_SIDE, canvas.width // 2) if self.wide else 0
        self.width = max(canvas.width - _AXIS - (self.side + 2 if self.side else 0), 1)
        self.frames = list(history[-self.width :])
        self.rows = [row_of(frame, flow) for frame in self.frames]
        self.looks = [focused_of(frame, flow) for frame in self.frames]
        self.sockets = [None if look is None else look.socket for look in self.looks]
        self.socket = next((s for s in reversed(self.sockets) if s is not None), None)
        self.newest = next((row for row in reversed(self.rows) if row is not None), None)

    def beside(self, graph: Line, label: str, side: Line) -> Line:
        """Label, graph and what stands beside it."""
        rule = "▕" if self.canvas.unicode else "|"
        left = (Span(draw.fit(label, _AXIS - 1, "right"), DIM), Span(rule, DIM), *graph)
        if not self.side:
            return left
        return (*draw.pad(left, _AXIS + self.width), Span("  "), *draw.pad(side, self.side))

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
        inner = replace(self.canvas, width=self.width, cursor=None)
        top = draw.top_of(values)
        drawn = draw.area(values, inner, height, top, role)
        labels = [label] if label else [draw.scale(text(top))]
        result = []
        for number, graph in enumerate(drawn):
            result.append(
                self.beside(
                    graph,
                    labels[number] if number < len(labels) else "",
                    side[number] if number < len(side) else (),
                )
            )
        return result


def _rates(page: _Page, name: str, role: Role, word: str, height: int) -> list[Line]:
    per = 8 if page.canvas.bits else 1
    values = [
        None if row is None else int(row[f"{name}_bytes"]) / frame.seconds * per
        for row, frame in zip(page.rows, page.frames, strict=True)
    ]
    known = [v for v in values if v is not None]

    def text(value: float) -> str:
        return units.rate(value / per, page.canvas.bits)

    side = line(
        (draw.fit(word, 9), role),
        (draw.fit(text(known[-1]) if known else "-", 10, "right"), VALUE),
        (f"   most {text(max(known))}" if known else "", LABEL),
    )
    return page.strip(values, role, [side], height, text)


def _trips(page: _Page, height: int) -> list[Line]:
    """Round trips: every sample of the flow in focus as a heat map where there is room, the means elsewhere."""
    trips = [round_trips(frame, page.flow) for frame in page.frames]
    assert page.newest is not None
    rtt = page.newest["rtt"]
    how = METHODS[int(rtt["method"])] if rtt["samples_total"] else ""
    side: list[Line] = [
        line(
            (draw.fit("RTT", 9), LABEL),
            (draw.fit(units.duration(int(rtt["last"])), 10, "right"), VALUE),
            (f"   least {units.duration(int(rtt['min']))}", LABEL),
        )
        if how
        else line((draw.fit("RTT", 9), LABEL), (_no_trips(page), LABEL))
    ]
    if height > 1 and how:
        side.append(line((f"by {how}, jitter {units.duration(int(rtt['variance']))}", LABEL)))
        pieces = []
        socket = page.socket
        if page.newest["kernel_rtt"]["smoothed"]:
            pieces.append(f"the kernel's {units.duration(int(page.newest['kernel_rtt']['smoothed']))}")
            if socket is not None and socket.rtt_min_ns is not None:
                pieces.append(f"least {units.duration(socket.rtt_min_ns)}")
        inward = page.newest["internal_rtt"]
        if inward["samples_total"]:
            pieces.append(f"inward {units.duration(int(inward['last']))}")
        side.append(line((", ".join(pieces), LABEL)))
    if height > 2 and any(len(t) > 1 for t in trips):
        heaps = [flows_rtt_pane.heap(t) for t in trips]
        inner = replace(page.canvas, width=page.width, height=height, cursor=None)
        plane = draw.Plane.of(heaps, inner, *flows_rtt_pane.decades(heaps))
        axis = draw.delay_axis(plane.edges, inner, _AXIS - 1)
        return [
            page.beside(graph, draw.cut("".join(s.text for s in label[:1]), _AXIS - 1).strip(), text)
            for graph, label, text in zip(
                plane.lines(inner), axis, [*side, *[()] * height][:height], strict=True
            )
        ]
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
    silent = bool(looks) and not any(look.data[1] for look in looks)
    why = "no data sent" if silent else "no sample"
    socket = page.socket
    if row["kernel_rtt"]["smoothed"]:
        return f"{why}; kernel {units.duration(int(row['kernel_rtt']['smoothed']))}"
    if socket is not None and socket.rtt_min_ns is not None:
        return f"{why}; kernel {'≥' if page.canvas.unicode else '>'}{units.duration(socket.rtt_min_ns)}"
    return why


def _buffer(
    page: _Page, columns: Sequence[dict[str, float | None]], culprits: Sequence[str], height: int
) -> list[Line]:
    """The wait in the send buffer, which the bar leaves out."""
    values = [parts["buffer"] for parts in columns]
    known = [v for v in values if v is not None]
    role = _role("buffer", culprits) if "buffer" in culprits else TX
    side = line(
        (draw.fit("buffered", 9), role),
        (draw.fit(units.duration(known[-1]) if known else "-", 10, "right"), VALUE),
        ("" if page.socket is None else f"   {units.size(page.socket.unsent)}", LABEL),
    )
    return page.strip(values, role, [side], height, units.duration)


def _window(page: _Page, height: int) -> list[Line]:
    """The congestion window, and what else limits a sender."""
    values: list[float | None] = [
        float(s.cwnd)
        if s is not None
        else float(r["kernel_rtt"]["cwnd"])
        if r is not None and r["kernel_rtt"]["cwnd"]
        else None
        for s, r in zip(page.sockets, page.rows, strict=True)
    ]
    known = [v for v in values if v is not None]
    socket = next((s for s in reversed(page.sockets) if s is not None), None)
    side: list[Line] = [
        line(
            (draw.fit("cwnd", 9), LABEL),
            (draw.fit(units.count(round(known[-1])) if known else "-", 10, "right"), VALUE),
            ("" if socket is None else f"  in flight {units.size(socket.in_flight)}", LABEL),
        )
    ]
    if socket is not None:
        windows = f"window {units.size(socket.send_window)} there, {units.size(socket.receive_window)} here"
        if page.side < draw.cells(windows):
            windows = f"their window {units.size(socket.send_window)}"
        side.append(line((windows, LABEL)))
    return page.strip(values, LABEL, side, height, lambda v: units.count(round(v)))


def _again(page: _Page) -> list[Line]:
    """Segments sent again, an interval each."""
    values: list[float | None] = []
    before: int | None = None
    for row in page.rows:
        now = None if row is None else int(row["rx_retransmits"]) + int(row["tx_retransmits"])
        values.append(None if now is None or before is None else float(max(now - before, 0)))
        before = now if now is not None else before
    assert page.newest is not None
    sent, received = (int(page.newest[f"{way}_retransmits"]) for way in ("tx", "rx"))
    late = int(page.newest["rx_out_of_order"]) + int(page.newest["tx_out_of_order"])
    role = WARN if any(values) else LABEL
    side = line(
        (draw.fit("again", 9), role),
        (draw.fit(f"{units.count(sent)} sent", 10, "right"), VALUE if sent else LABEL),
        (f"   {units.count(received)} recv, {units.count(late)} late", LABEL),
    )
    return page.strip(values, role, [side], 1, lambda v: units.count(round(v)), "again")


# --- the page ------------------------------------------------------------------------------------------------------


def page(history: History, flow: int, canvas: Canvas, head: Sequence[Line]) -> list[Line]:
    """Verdict, bar and strips under the lines of ``head``; at most canvas.height lines."""
    p = _Page(history, flow, canvas)
    if p.newest is None:
        return draw.clip(list(head), canvas)
    found = explain(history, flow)
    tall = canvas.height >= 32
    lines: list[Line] = list(head)
    lines += [()] * tall
    reasons = 4 if tall else 2
    words = verdict_lines(found, canvas, reasons)
    # As many lines for one verdict as for the next: the bar stays where it is.
    lines += [*words, *[()] * (reasons + 1 - len(words))]
    lines += [()] * tall
    tcp = int(p.newest["protocol"]) == 6
    # What is left after the strips is the bar's, which must have room for its parts.
    small, large = (1, 2) if tall else (1, 1)
    columns = [split(frame, flow) for frame in p.frames]
    strips = [
        *_rates(p, "tx", TX, "sent", large),
        *_rates(p, "rx", RX, "received", large),
        *_trips(p, 3 if tall else 1),
    ]
    if tcp:
        strips += [*_window(p, large), *_again(p)]
        if any(parts["buffer"] is not None for parts in columns):
            strips += _buffer(p, columns, found.culprits, small)
    room = canvas.height - len(lines) - 2  # title and axis
    while strips and room - len(strips) < _LEAST_BAR:
        strips.pop()
    height = min(max(room - len(strips), 1), 16)
    lines += [_title(found, p), *_bar(found, p, columns, height), *strips]
    axis = draw.time_axis([f.time_ns for f in p.frames], p.width, canvas)
    lines = [*lines[: max(canvas.height - 1, 0)], (Span(" " * _AXIS), *axis)]
    return draw.clip(lines, canvas)


def _title(found: Explanation, page: _Page) -> Line:
    """What the bar is, and what its figures are."""
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


def _bar(
    found: Explanation, page: _Page, columns: Sequence[dict[str, float | None]], height: int
) -> list[Line]:
    sums = [sum(parts[name] or 0.0 for name in WAY) for parts in columns]
    top = _top(sums)
    inner = replace(page.canvas, width=page.width, height=height, cursor=None)
    graph = bars(columns, inner, top, found.culprits)
    legend = _legend(found, replace(page.canvas, width=page.side)) if page.side else []
    if len(legend) < height and legend:
        # The send buffer is not in the bar: it stands apart.
        legend = [*legend[:-1], *[()] * min(height - len(legend), 1), legend[-1]]
    labels = [draw.scale(units.duration(top))] + [""] * (height - 1)
    if height >= _LEAST_BAR:
        labels[height // 2] = draw.scale(units.duration(top / 2))
    if not page.side:
        return [page.beside(g, text, ()) for g, text in zip(graph, labels, strict=True)]
    return [
        page.beside(g, text, legend[n] if n < len(legend) else ())
        for n, (g, text) in enumerate(zip(graph, labels, strict=True))
    ]


def detail(history: History, identity: int, canvas: Canvas) -> list[Line]:
    """Who it is, what it did, and the whole of its delay (focus_view)."""
    at = next((frame for frame in reversed(history) if row_of(frame, identity) is not None), None)
    if at is None:
        return draw.clip([line(("This flow is not in the frames that are kept.", DIM))], canvas)
    newest = row_of(at, identity)
    head = [_identity(newest, canvas, at is not history[-1]), _did(newest, at, canvas)]
    return page(history, identity, canvas, head)


def _identity(row: Any, canvas: Canvas, gone: bool) -> Line:
    word = "gone" if gone else STATES[int(row["state"])]
    return draw.parts(
        [
            (0, line((units.protocol(int(row["protocol"])), LABEL))),
            (2, line((f"in {_tunnel(row)}", LABEL)) if row["tunnel"] else ()),
            (1, line((_named(row, "local", canvas), TITLE))),
            (0, line(("⇄" if canvas.unicode else "<>", DIM))),
            (0, line((_named(row, "remote", canvas), TITLE))),
            (2, line((_process(row), PLAIN))),
            (
                3,
                line((word, DIM if gone else GOOD if word == "open" else WARN if word == "reset" else LABEL)),
            ),
        ],
        canvas.width,
    )


def _did(row: Any, frame: Frame, canvas: Canvas) -> Line:
    pieces = [
        (0, line(("age ", LABEL), (units.age(_since(frame, row["first"])), PLAIN))),
        (1, line(("received ", LABEL), (units.size(int(row["rx_bytes_total"])), PLAIN))),
        (1, line(("sent ", LABEL), (units.size(int(row["tx_bytes_total"])), PLAIN))),
    ]
    if int(row["protocol"]) == 6:
        for way, word in (("tx", "retransmitted "), ("rx", "received again ")):
            count = int(row[f"{way}_retransmits"])
            pieces.append((2, line((word, LABEL), (units.count(count), WARN if count else PLAIN))))
        late = int(row["rx_out_of_order"]) + int(row["tx_out_of_order"])
        pieces.append((3, line(("out of order ", LABEL), (units.count(late), PLAIN))))
        # Rare, and worth their place where they are: copies that the network made, and what nothing tells apart.
        for field, word in (("uncertain", "late, cannot tell "), ("duplicates", "duplicated ")):
            count = int(row[f"rx_{field}"]) + int(row[f"tx_{field}"])
            if count:
                pieces.append((4, line((word, LABEL), (units.count(count), PLAIN))))
    return draw.parts(pieces, canvas.width, gap=3)

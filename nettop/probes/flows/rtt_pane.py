"""How round trips are shown: all of them as a heat map of delay over time, and by subnet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nettop.core import histogram as hist
from nettop.core import units
from nettop.core.frame import Frame
from nettop.core.histogram import SLOTS, Histogram
from nettop.probes.flows.section import Flows
from nettop.render import draw
from nettop.render.canvas import ACCENT, DIM, LABEL, PLAIN, VALUE, Canvas, History, Line, Pane, Span
from nettop.render.heatmap import named_cell

_AXIS = 8  # "100 ms" and the rule
_SUBNETS = 10  # rows of the table below the zoomed map

HELP = """\
Every round trip to a remote end that was measured in the flows' own packets: nothing is sent.

Time goes to the right, one column a frame, delay upwards on a logarithmic scale; the more samples in a cell, the \
brighter it is. Two bands are two distances; a band that rises is a queue that fills.

Zoomed (z), round trips by subnet of the remote end stand below, and the arrows move a cursor that names its cell.
"""


def heap(delays_ns: list[int]) -> Histogram:
    """Single delays as a histogram."""
    counts = np.bincount([hist.bucket_of(delay) for delay in delays_ns], minlength=SLOTS).astype(np.uint64)
    return Histogram(counts, sum(delays_ns))


def decades(histograms: Sequence[Histogram | None]) -> tuple[int, int]:
    """The axis of round trips, from 1 µs on."""
    return hist.decades(histograms, 1000, (1_000_000, 100_000_000))


def pane(history: History, canvas: Canvas) -> list[Line]:
    """The map over a time axis; zoomed, subnets below it."""
    table = _subnets(history[-1], canvas, min(_SUBNETS, canvas.height // 3)) if canvas.zoomed else []
    width, height = max(canvas.width - _AXIS, 1), max(canvas.height - 1 - len(table), 1)
    inner = replace(canvas, width=width, height=height)
    sections = map(Flows.find, history[-width:])
    histograms = [None if section is None else section.rtt.outward for section in sections]
    plane = draw.Plane.of(histograms, inner, *decades(histograms))
    lines = [(*a, *b) for a, b in zip(draw.delay_axis(plane.edges, inner), plane.lines(inner), strict=True)]
    if canvas.cursor is not None:
        lines.append(named_cell(plane, history, canvas.cursor, inner))
    else:
        axis = draw.time_axis([f.time_ns for f in history[-width:]], width, canvas)
        lines.append((Span(" " * _AXIS), *axis))
    return draw.clip([*lines, *table], canvas)


def _subnets(frame: Frame, canvas: Canvas, most: int) -> list[Line]:
    """The subnets with the most samples: counts, percentiles, the smallest ever, a small distribution."""
    shown = [s for s in Flows.of(frame).rtt.subnets if s.rtt.count][: max(most, 0)]
    if not shown or most < 2:
        return []
    columns = (("samples", 8), ("p50", 8), ("p90", 8), ("p99", 8), ("min", 8))
    name = min(max(max(draw.cells(s.prefix) for s in shown), 10), max(canvas.width - 54, 10))
    bars = max(min(canvas.width - name - sum(w + 1 for _, w in columns) - 2, 40), 0)
    low, high = decades([s.rtt for s in shown])
    edges = draw.log_edges(low, high, bars) if bars else None
    scale = f"{draw.scale(units.duration(low))} to {draw.scale(units.duration(high))}"
    title = [Span(draw.fit("subnet", name), LABEL)]
    title += [Span(" " + draw.fit(text, width, "right"), LABEL) for text, width in columns]
    title.append(Span("  " + scale if draw.cells(scale) <= bars else "", LABEL))
    lines: list[Line] = [(), tuple(title)]
    for subnet in shown:
        row = [Span(draw.fit(units.clean(subnet.prefix), name), PLAIN)]
        row.append(Span(" " + draw.fit(units.count(subnet.rtt.count), 8, "right"), VALUE))
        for value in (*(hist.percentile(subnet.rtt, share) for share in (0.5, 0.9, 0.99)), subnet.min_ns):
            text = draw.quantity(units.duration(value), 8, 2)
            row.append(Span(" " + text, PLAIN if value is not None else DIM))
        if edges is not None:
            row += [Span("  "), draw.blocks(draw.binned([subnet.rtt], edges)[0].tolist(), canvas, ACCENT)]
        lines.append(tuple(row))
    return lines


def subtitle(history: History, canvas: Canvas) -> str:
    """The middle of them and how many, in the interval."""
    rtt = Flows.of(history[-1]).rtt.outward
    if not rtt.count:
        return "no samples"
    return f"p50 {units.duration(hist.percentile(rtt, 0.5))} · {units.count(rtt.count)} samples"


PANE = Pane(name="rtt", title="RTT", number=2, band="top", draw=pane, subtitle=subtitle, height=7, help=HELP)

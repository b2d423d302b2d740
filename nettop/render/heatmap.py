"""Rows of delays over time, as the panes of stages and of interrupts show them.

A row is a histogram a frame.  In one line its newest frames are a strip: the height of a column is the median delay,
on a logarithmic scale that all rows of the pane share, its shade the number of samples.  On a page of its own it is
a plane of delay against time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nettop.core import histogram as hist
from nettop.core import units
from nettop.core.frame import Frame
from nettop.core.histogram import Histogram
from nettop.render import draw
from nettop.render.canvas import (
    ACCENT,
    DIM,
    LABEL,
    PLAIN,
    TITLE,
    VALUE,
    WARN,
    Canvas,
    History,
    Line,
    Span,
    line,
)

_AXIS = 8  # "100 ms" and the rule
_LOW, _HIGH = 100, 100_000_000  # ns: the heights of a strip; what is beyond stands at the edge
_USUAL = 8  # frames before anything is called unusual
_FAR = 4.0  # times its own usual p99: worth a warm colour
_NOTABLE = 10_000  # ns: below this nothing is worth one


@dataclass(frozen=True)
class Row:
    """One row: its name for ``enter``, its label, a histogram for each frame (None: not measured), its other cells."""

    name: str
    label: str
    histograms: Sequence[Histogram | None]
    extra: tuple[tuple[int, Line], ...] = ()  # cells with their widths, after the percentiles
    note: str = ""  # said on its page
    behind: int = 0  # how many frames ago what it says is from
    age_ns: int = 0  # and how long

    @property
    def latest(self) -> Histogram:
        """The newest interval's histogram, or the one that is ``behind``."""
        found = self.histograms[-1 - self.behind] if len(self.histograms) > self.behind else None
        return Histogram.empty() if found is None else found


def holding(history: History) -> History:
    """The frames whose values still stand: the newest one.

    Where the budget has the hooks attached in some of the seconds only, those of twice their pause; a frame without
    samples is then no figure.
    """
    one_in = history[-1].health.seconds_one_in
    if one_in <= 1:
        return history[-1:]
    since = history[-1].time_ns - 2 * one_in * 1_000_000_000
    return [frame for frame in history if frame.time_ns >= since]


def _since(history: History, seen: Iterable[object]) -> tuple[int, int]:
    for back, (frame, there) in enumerate(zip(reversed(holding(history)), seen, strict=False)):
        if there:
            return back, history[-1].time_ns - frame.time_ns
    return 0, 0


def newest(history: History, seen: Callable[[Frame], bool]) -> tuple[int, int]:
    """How many frames ago there was something, among those that hold, and ns; 0 where there was nothing in any."""
    return _since(history, map(seen, reversed(history)))


def behind(frames: History, histograms: Sequence[Histogram | None]) -> tuple[int, int]:
    """The same of one row: frames since its last samples, and ns."""
    return _since(frames, (h is not None and h.count for h in reversed(histograms)))


def ago(age_ns: int) -> Line:
    """From when a figure is that is not of now; empty where it is of now."""
    return line((f"{units.age(age_ns)} ago", DIM)) if age_ns else ()


def percentiles(counts: NDArray[np.int64], fraction: float) -> NDArray[np.float64]:
    """float64[n]: of each of n histograms int64[n, SLOTS] at once, in ns by bucket middle; NaN where one is empty."""
    cumulative = counts.cumsum(axis=1)
    total = cumulative[:, -1:]
    place = (cumulative >= np.maximum(total * fraction, 1)).argmax(axis=1)
    lowers = hist.bucket_lowers()
    middles = (lowers[:-1] + lowers[1:]) / 2
    return np.where(total[:, 0] > 0, middles[place], np.nan)


def strip(row: Row, canvas: Canvas, width: int, most: float) -> Line:
    """The newest frames in ``width`` cells; ``most`` samples a frame are the brightest shade."""
    shown = row.histograms[-width:] if width > 0 else []
    counts = draw.counts_of(shown)
    heats = draw.levels(counts.sum(axis=1).astype(np.float64), 1.0, max(most, 10.0))
    medians = percentiles(counts, 0.5)
    share = np.log(np.clip(np.nan_to_num(medians, nan=_LOW), _LOW, _HIGH) / _LOW) / np.log(_HIGH / _LOW)
    heights = 1 + np.rint(share * 7).astype(int)
    glyphs = " ▁▂▃▄▅▆▇█" if canvas.unicode else " .:-=+*#@"
    spans = [Span(" " * (width - len(shown)))]
    spans += [
        Span(glyphs[height], f"heat:{heat}") if heat >= 0 else Span("·" if canvas.unicode else ".", DIM)
        for height, heat in zip(heights.tolist(), heats.tolist(), strict=True)
    ]
    return draw.merged(spans)


def _role(row: Row) -> str:
    """Warm where the newest p99 is far above the row's own usual one."""
    counts = draw.counts_of(row.histograms[-60:])
    p99 = percentiles(counts, 0.99)
    before = p99[:-1][~np.isnan(p99[:-1])]
    if not p99.size or np.isnan(p99[-1]) or before.size < _USUAL:
        return VALUE
    return WARN if p99[-1] > max(_FAR * float(np.median(before)), _NOTABLE) else VALUE


def _delay(value: float | None, role: str = VALUE) -> Span:
    return Span(" " + draw.quantity(units.duration(value), 7, 2), role if value is not None else DIM)


def table(rows: Sequence[Row], canvas: Canvas, title: str, heads: Sequence[tuple[int, str]]) -> list[Line]:
    """A line of headings and one a row: label, strip, p50, p99, max, and the rows' other cells (``heads``: theirs).

    The column of maxima leaves first where it is narrow, then the strip, then other cells from the right.
    """
    labels = [f"{r.label} {units.age(r.age_ns)}" if r.behind else r.label for r in rows]
    label = max(map(draw.cells, labels), default=0)
    label = max(label, min(draw.cells(title), 12)) + 2
    extras = len(heads)
    largest = True
    room = canvas.width - label - 24 - sum(w + 1 for w, _ in heads)
    if room < 10:
        largest, room = False, room + 8
    while room < 0 and extras:
        extras -= 1
        room += heads[extras][0] + 1
    width = max(room - 1, 0)
    most = max(
        (float(h.count) for r in rows for h in r.histograms[-max(width, 1) :] if h is not None), default=1.0
    )
    names = [(7, name) for name in ("p50", "p99", "max")[: 3 if largest else 2]]
    head = [Span(draw.fit(title, label) + " " * width, LABEL)]
    head += [Span(" " + draw.fit(text, w, "right"), LABEL) for w, text in (*names, *heads[:extras])]
    lines: list[Line] = [tuple(head)]
    at = min(canvas.cursor[1], len(rows) - 1) if canvas.cursor is not None else -1
    for index, row in enumerate(rows):
        latest = row.latest
        mark = " " if index != at else "▸" if canvas.unicode else ">"
        role = ACCENT if index == at else PLAIN if latest.count else DIM
        usual = DIM if row.behind else VALUE
        delays = [
            _delay(hist.percentile(latest, 0.5), usual),
            _delay(hist.percentile(latest, 0.99), usual if row.behind else _role(row)),
            _delay(hist.largest(latest), usual),
        ]
        spans = [Span(mark + draw.fit(labels[index], label - 1), role), *strip(row, canvas, width, most)]
        spans += delays[: len(names)]
        for (w, _), (_, cell) in zip(heads[:extras], row.extra, strict=False):
            spans += [Span(" "), *draw.pad(cell, w)]
        lines.append(tuple(spans))
    return lines


def scale_line(canvas: Canvas) -> Line:
    """What a strip's heights and shades say."""
    low, high = draw.scale(units.duration(_LOW)), draw.scale(units.duration(_HIGH))
    heights = "▁▂▃▄▅▆▇█" if canvas.unicode else ".:-=+*#@"
    return line(
        (f"{low} ", LABEL), (heights, DIM), (f" {high}  ", LABEL), *draw.legend(canvas, "few", "many")
    )


def page(row: Row, history: History, canvas: Canvas) -> list[Line]:
    """One row on a page of its own: figures, the plane with both axes, a legend or the cell under the cursor."""
    latest = row.latest
    values = (
        (1, "p50", hist.percentile(latest, 0.5)),
        (4, "p90", hist.percentile(latest, 0.9)),
        (2, "p99", hist.percentile(latest, 0.99)),
        (3, "max", hist.largest(latest)),
        (5, "mean", hist.mean(latest)),
    )
    seconds = history[-1 - row.behind].seconds if history else 1.0
    pieces: list[tuple[int, Line]] = [
        (0, line((row.label, TITLE))),
        (0, ago(row.age_ns) if row.behind else ()),
        *((priority, line((f"{name} ", LABEL), (units.duration(v), VALUE))) for priority, name, v in values),
        (6, line((units.si(latest.count / seconds, ""), VALUE), ("/s", LABEL))),
    ]
    head = draw.parts(pieces, canvas.width)
    notes = draw.wrap(row.note, canvas.width, DIM)[:3] if row.note and canvas.height >= 12 else []
    return draw.clip([head, *notes, *plane(row, history, canvas, canvas.height - 1 - len(notes))], canvas)


def plane(row: Row, history: History, canvas: Canvas, height: int) -> list[Line]:
    """Delay against time in ``height`` lines, the last two of which are the time axis and the legend or the cell."""
    if height < 3:
        return []
    inner = replace(canvas, width=max(canvas.width - _AXIS, 1), height=height - 2)
    shown = row.histograms[-inner.width :]
    whole = draw.Plane.of(shown, inner, *hist.decades(shown, 10, (100, 1_000_000)))
    lines = [(*a, *b) for a, b in zip(draw.delay_axis(whole.edges, inner), whole.lines(inner), strict=True)]
    axis = draw.time_axis([f.time_ns for f in history[-inner.width :]], inner.width, canvas)
    lines.append((Span(" " * _AXIS), *axis))
    if canvas.cursor is not None:
        return [*lines, named_cell(whole, history, canvas.cursor, inner)]
    legend = draw.legend(canvas, "1", f"{units.count(int(whole.counts.max(initial=0)))} samples a cell")
    return [*lines, draw.pad((Span(" " * _AXIS), *legend), canvas.width)]


def named_cell(whole: draw.Plane, history: History, cursor: tuple[int, int], inner: Canvas) -> Line:
    """The cell under the cursor: when, from which delay to which, how many."""
    back, low, high, count = whole.under(cursor, inner)
    return _at(history, back, (("from", low), ("to", high)), count)


def _at(history: History, back: int, delays: Iterable[tuple[str, float | None]], count: int) -> Line:
    """What there was so many frames ago, below a plane."""
    ago = history[-1].time_ns - history[-1 - back].time_ns if back < len(history) else 0
    named = [part for name, ns in delays for part in ((f" {name} ", LABEL), (units.duration(ns), VALUE))]
    return line(
        " " * _AXIS, (f"{units.age(ago)} ago ", VALUE), *named, (f"  {units.count(count)} samples", VALUE)
    )


def zoomed(
    rows: Sequence[Row],
    history: History,
    canvas: Canvas,
    listed: Callable[[Canvas], list[Line]],
    least: int = 6,
) -> list[Line]:
    """All rows, and below them the plane of the one that the cursor is on; sideways it names a moment."""
    lines = listed(canvas)
    at = min(canvas.cursor[1], len(rows) - 1) if canvas.cursor is not None else _busiest(rows)
    left = canvas.height - len(lines) - 2
    if not rows or left < least:
        return draw.clip(lines, canvas)
    row = rows[at]
    lines += [(), line((row.label, TITLE), ("  enter: this one alone", DIM))]
    moment = _moment(row, history, canvas) if canvas.cursor is not None and canvas.cursor[0] else None
    below = plane(row, history, replace(canvas, cursor=None), left)
    if moment is not None and below:
        below[-1] = moment
    return draw.clip([*lines, *below], canvas)


def _busiest(rows: Sequence[Row]) -> int:
    """The row in which the most time was spent."""
    spent = [sum(h.sum_ns for h in r.histograms[-60:] if h is not None) for r in rows]
    return spent.index(max(spent)) if spent else 0


def _moment(row: Row, history: History, canvas: Canvas) -> Line | None:
    """One frame of a row in words."""
    assert canvas.cursor is not None
    back = min(canvas.cursor[0], len(row.histograms) - 1, len(history) - 1)
    then = row.histograms[-1 - back] if back >= 0 else None
    if then is None:
        return None
    delays = (("p50", hist.percentile(then, 0.5)), (" p99", hist.percentile(then, 0.99)))
    return _at(history, back, delays, then.count)

"""Pure drawing for panes: graphs, bars, heat maps and text that fits, as styled lines.

Everything here takes values and a Canvas and gives Lines; widths are in cells of the terminal, not characters.  Where a
canvas has no Unicode, ASCII glyphs stand in; where it has no shades, glyphs alone tell heats apart.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nettop.core import units
from nettop.core.frame import Frame
from nettop.core.histogram import SLOTS, Histogram, bucket_lowers
from nettop.render.canvas import CURSOR, DIM, LABEL, PLAIN, Canvas, History, Line, Role, Span

Values = Sequence[float | None]

ELLIPSIS = "…"
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_LEFTS = " ▏▎▍▌▋▊▉█"
_RAMP = "░░░▒▒▒▓▓██"  # heat 0-9
_ASCII_EIGHTHS = "  ..::||#"
_ASCII_RAMP = "...:::++##"


# --- text that fits ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _wide(text: str) -> int:
    width = 0
    for c in text:
        if unicodedata.combining(c) or unicodedata.category(c) in ("Mn", "Me", "Cf"):
            continue
        width += 2 if unicodedata.east_asian_width(c) in "WF" else 1
    return width


def cells(text: str) -> int:
    """The width of a text on the terminal, in cells."""
    return len(text) if text.isascii() else _wide(text)


def cells_of(line: Line) -> int:
    """The width of a line in cells."""
    return sum(cells(span.text) for span in line)


def cut(text: str, width: int) -> str:
    """The longest beginning of at most ``width`` cells; no mark where it was cut."""
    if cells(text) <= width:
        return text
    if text.isascii():
        return text[: max(width, 0)]
    used = 0
    for index, c in enumerate(text):
        used += _wide(c)
        if used > width:
            return text[:index]
    return text


def shorten(text: str, width: int) -> str:
    """At most ``width`` cells, an ellipsis where something left.  A figure leaves whole or not at all."""
    if cells(text) <= width:
        return text
    if width < 1:
        return ""
    kept = cut(text, width - 1)
    if kept and _in_figure(kept[-1]) and _in_figure(text[len(kept)]):
        kept = kept.rstrip("0123456789.,:")
    return kept.rstrip() + ELLIPSIS


def _in_figure(c: str) -> bool:
    return c.isdigit() or c in ".,"


def fit(text: str, width: int, align: str = "left") -> str:
    """Exactly ``width`` cells: padded, or shortened.  ``align``: left, right, center."""
    text = shorten(text, width)
    room = max(width - cells(text), 0)
    before = {"left": 0, "center": room // 2}.get(align, room)
    return " " * before + text + " " * (room - before)


def quantity(text: str, width: int, unit: int) -> str:
    """A number and its unit in exactly ``width`` cells: numbers end, and units begin, in the same place in every row.

    ``unit`` is the width of the widest unit.  What does not fit becomes an ellipsis: half a number is a lie.
    """
    number, space, name = text.rpartition(" ")
    if not space:
        number, name = text, ""
    whole = number + (" " + name.ljust(unit) if unit else "")
    if cells(whole) > width:
        whole = f"{number} {name}".rstrip()
    return fit(whole if cells(whole) <= width else ELLIPSIS, width, "right")


def scale(text: str) -> str:
    """A round figure without its zeros: ``5.00 Gb/s`` is ``5 Gb/s``."""
    number, space, unit = text.partition(" ")
    return (number.rstrip("0").rstrip(".") if "." in number else number) + space + unit


def endpoint(text: str, width: int) -> str:
    """``address:port`` in at most ``width`` cells: the address gives way in its middle, the port stays whole."""
    if len(text) <= width:
        return text
    address, colon, port = text.rpartition(":")
    tail = ("]" if address.endswith("]") else "") + colon + port
    room = width - len(tail) - 1
    if room < 4:
        return (colon + port) if len(colon + port) <= width else ELLIPSIS[:width]
    body = address.removesuffix("]")
    back = room // 3
    return body[: room - back] + ELLIPSIS + body[len(body) - back :] + tail


def pad(line: Line, width: int) -> Line:
    """The line in exactly ``width`` cells; what is cut ends in an ellipsis."""
    used = cells_of(line)
    if used == width:
        return line
    if used < width:
        return (*line, Span(" " * (width - used)))
    kept: list[Span] = []
    room = width
    for span in line:
        size = cells(span.text)
        if size >= room:  # something left, here or behind it
            text = shorten(span.text if size > room else span.text + " ", room)
            kept += [Span(text, span.role), Span(" " * (room - cells(text)))]
            break
        kept.append(span)
        room -= size
    return tuple(kept)


def clip(lines: Sequence[Line], canvas: Canvas) -> list[Line]:
    """What of the lines is inside the canvas: the last thing a pane does, for the smallest of canvases."""
    return [
        row if cells_of(row) <= canvas.width else pad(row, canvas.width) for row in lines[: canvas.height]
    ]


def _chosen(pieces: Iterable[tuple[int, int, Line]], width: int, gap: int) -> list[tuple[int, int, Line]]:
    """The pieces (priority, side, spans) that fit: the highest number leaves first, of equal ones the last."""
    chosen = [each for each in pieces if each[2]]
    while len(chosen) > 1 and sum(cells_of(p) + gap for _, _, p in chosen) - gap > width:
        del chosen[max(range(len(chosen)), key=lambda i: (chosen[i][0], i))]
    return chosen


def parts(pieces: Iterable[tuple[int, Line]], width: int, gap: int = 2) -> Line:
    """Pieces side by side, in order, as many as fit: those of the highest priority number leave first, whole.

    Where not even the last one fits, it is shortened.
    """
    chosen = _chosen(((priority, 0, piece) for priority, piece in pieces), width, gap)
    line = tuple(span for _, _, piece in chosen for span in (Span(" " * gap), *piece))[1:]
    return line if cells_of(line) <= width else pad(line, max(width, 0))


def sides(
    left: Sequence[tuple[int, Line]], right: Sequence[tuple[int, Line]], width: int, gap: int = 2
) -> Line:
    """Pieces at the left edge and at the right one, as ``parts``, in exactly ``width`` cells."""
    pieces = ((priority, side, p) for side, group in enumerate((left, right)) for priority, p in group)
    chosen = _chosen(pieces, width, gap)
    start, end = (parts([(0, p) for _, s, p in chosen if s == side], width, gap) for side in (0, 1))
    room = width - cells_of(start) - cells_of(end)
    return (*start, Span(" " * room), *end) if end and room > 0 else pad(start, width)


def wrap(text: str, width: int, role: Role = PLAIN) -> list[Line]:
    """A paragraph in lines of at most ``width`` cells, broken at spaces; a word that is too long is shortened."""
    lines: list[Line] = []
    for paragraph in text.split("\n"):
        row = ""
        for word in paragraph.split():
            word = shorten(word, width)
            if row and cells(row) + 1 + cells(word) > width:
                lines.append((Span(row, role),))
                row = word
            else:
                row = f"{row} {word}" if row else word
        lines.append((Span(row, role),) if row else ())
    return lines


def merged(pieces: Iterable[Span]) -> Line:
    """Neighbours of one role joined: fewer bytes to the terminal."""
    result: list[Span] = []
    for span in pieces:
        if not span.text:
            continue
        if result and result[-1].role == span.role:
            result[-1] = Span(result[-1].text + span.text, span.role)
        else:
            result.append(span)
    return tuple(result)


# --- graphs ------------------------------------------------------------------------------------------------------


def ceiling(value: float) -> float:
    """The next of 1, 2, 3, 5 times a power of ten: a scale's top that doesn't jump with every frame."""
    if value <= 0:
        return 1.0
    power = 10.0 ** floor(log10(value))
    return next(step * power for step in (1.0, 2.0, 3.0, 5.0, 10.0) if value <= step * power * (1 + 1e-9))


def series(
    history: History, section: str, width: int, value: Callable[[Frame, Any], float | None]
) -> list[float | None]:
    """One value a frame for the newest ``width`` frames; None where a frame lacks the section."""
    frames = history[-width:] if width > 0 else []
    return [value(f, f.sections[section]) if section in f.sections else None for f in frames]


def top_of(values: Values, least: float = 1.0) -> float:
    """A round top for the scale of a graph."""
    return ceiling(max([v for v in values if v is not None], default=0.0) or least)


def area(values: Values, canvas: Canvas, rows: int, top: float, role: Role) -> list[Line]:
    """A filled graph of the newest values over ``rows`` lines, in eighths of a cell; unknown values are blank.

    Canvas.width columns, one a value.  A value above 0 is never drawn as nothing.  Where it is tall, the body below
    the edge is in a quieter shade.
    """
    glyphs = _EIGHTHS if canvas.unicode else _ASCII_EIGHTHS
    steps = 8 * rows
    heights = [
        0 if v is None or v <= 0 else min(max(round(v / top * steps), 1), steps) if top > 0 else 0
        for v in [*[None] * canvas.width, *values][len(values) :]  # the newest, flush right
    ]
    lines: list[Line] = []
    for row in range(rows - 1, -1, -1):
        # What reaches above this line is body here.
        roles = [f"{role}-fill" if rows > 2 and h > 8 * (row + 1) else role for h in heights]
        texts = [glyphs[min(max(h - 8 * row, 0), 8)] for h in heights]
        lines.append(merged(map(Span, texts, roles)))
    return lines


def spark(values: Values, canvas: Canvas, width: int, top: float, role: Role) -> Span:
    """A graph of one line in the middle of others."""
    if width < 1:
        return Span("", role)
    return area(values, Canvas(width, 1, unicode=canvas.unicode), 1, top, role)[0][0]


def bar(fraction: float | None, canvas: Canvas, width: int, role: Role) -> Span:
    """A horizontal bar in eighths of a cell, padded to ``width``; a share above 0 is never drawn as nothing."""
    share = min(max(fraction or 0.0, 0.0), 1.0)
    steps = round(share * width * 8)
    if share > 0:
        steps = max(steps, 1)
    if not canvas.unicode:
        full = -(-steps // 8)
        return Span(("#" * full).ljust(width), role)
    text = "█" * (steps // 8) + (_LEFTS[steps % 8] if steps % 8 else "")
    return Span(text.ljust(width), role)


def blocks(values: Sequence[float], canvas: Canvas, role: Role) -> Span:
    """A few values as neighbouring columns of one line, against the largest of them: a small distribution."""
    top = max(values, default=0.0)
    return spark(list(values), canvas, len(values), top or 1.0, role)


def time_axis(times_ns: Sequence[int], width: int, canvas: Canvas) -> Line:
    """The line under a graph of one column a frame: how long ago its left edge and its middle were.

    ``times_ns`` are the ends of the frames drawn, oldest first; the graph is flush right in ``width`` columns.
    """
    rule = "─" if canvas.unicode else "-"
    marks = [rule] * width
    shown = list(times_ns[-width:]) if width > 0 else []
    if len(shown) > 1:
        for index in (0, len(shown) - len(shown) // 2):
            text = f" -{units.age(shown[-1] - shown[index])} "
            _mark(marks, width - len(shown) + index, text, width - 5)
    _mark(marks, width - 5, " now ", width)
    return (Span("".join(marks), DIM),)


def _mark(marks: list[str], column: int, text: str, limit: int) -> None:
    """Write a label from ``column`` on, if it fits below ``limit`` beside what is there already."""
    end = column + len(text)
    if column < 0 or end > limit or any(m.isalnum() for m in marks[column:end]):
        return
    marks[column:end] = list(text)


# --- heat --------------------------------------------------------------------------------------------------------


def levels(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.int8]:
    """Heats 0..9 of values from ``low`` to ``high``, both above 0, by the logarithm; -1 of NaN and values up to 0."""
    some = np.nan_to_num(values, nan=0.0) > 0
    safe = np.where(some, values, 1.0)
    share = np.log(safe / low) / np.log(high / low)
    return np.where(some, np.clip(np.floor(share * 10), 0, 9), -1).astype(np.int8)


def _heats(heats: Iterable[int], canvas: Canvas) -> list[Span]:
    """A cell for each of the heats -1..9: glyph and colour say the same."""
    ramp = _RAMP if canvas.unicode else _ASCII_RAMP
    return [Span(ramp[h], f"heat:{h}") if h >= 0 else Span(" ") for h in heats]


def legend(canvas: Canvas, low: str, high: str) -> Line:
    """What the heats mean: ``few ░▒▓█ many``."""
    return merged([Span(f"{low} ", LABEL), *_heats((0, 2, 4, 6, 8, 9), canvas), Span(f" {high}", LABEL)])


def log_edges(low_ns: int, high_ns: int, bins: int) -> NDArray[np.int64]:
    """int64[bins + 1]: edges in ns from ``low_ns`` to ``high_ns``, evenly spaced in the logarithm."""
    return np.rint(np.geomspace(max(low_ns, 1), max(high_ns, low_ns + 1, 2), bins + 1)).astype(np.int64)


def counts_of(histograms: Sequence[Histogram | None]) -> NDArray[np.int64]:
    """int64[len(histograms), SLOTS]: their counts; zeros for None."""
    counts = np.zeros((len(histograms), SLOTS), np.int64)
    for row, histogram in zip(counts, histograms, strict=True):
        if histogram is not None:
            row[:] = histogram.counts
    return counts


def binned(histograms: Sequence[Histogram | None], edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[len(histograms), len(edges) - 1]: counts between ascending edges in ns.

    A bucket is put where its middle lies; outliers go to the end bins.
    """
    bins = len(edges) - 1
    lowers = bucket_lowers()
    middles = (lowers[:-1] + lowers[1:]) // 2
    place = np.clip(np.searchsorted(edges, middles, side="right") - 1, 0, bins - 1)
    used, starts = np.unique(place, return_index=True)
    result = np.zeros((len(histograms), bins), np.int64)
    result[:, used] = np.add.reduceat(counts_of(histograms), starts, axis=1)
    return result


@dataclass(frozen=True)
class Plane:
    """Delay against time: ``counts`` int64[columns, bins], oldest column and shortest delay first; bins' ``edges``."""

    counts: NDArray[np.int64]
    edges: NDArray[np.int64]

    @classmethod
    def of(cls, histograms: Sequence[Histogram | None], canvas: Canvas, low_ns: int, high_ns: int) -> Plane:
        """The newest canvas.width histograms in as many bins as canvas.height lines have halves (or lines)."""
        bins = max(canvas.height, 1) * (2 if halves(canvas) else 1)
        edges = log_edges(low_ns, high_ns, bins)
        return cls(binned(histograms[-canvas.width :] if canvas.width > 0 else [], edges), edges)

    def lines(self, canvas: Canvas) -> list[Line]:
        """canvas.height lines of canvas.width cells, the longest delay on top, the newest column at the right."""
        high = float(self.counts.max(initial=1))
        heats = levels(self.counts.astype(np.float64), 1.0, max(high, 10.0))
        blank = Span(" " * (canvas.width - heats.shape[0]))
        rows = heats.T[::-1].tolist()
        if halves(canvas):
            drawn = [list(map(_half, rows[2 * n], rows[2 * n + 1])) for n in range(canvas.height)]
        else:
            drawn = [_heats(row, canvas) for row in rows[: canvas.height]]
        lines = [merged([blank, *row]) for row in drawn]
        if canvas.cursor is not None:
            x, y = self.clip(canvas.cursor, canvas)
            lines[y] = _with_cursor(lines[y], canvas.width - 1 - x)
        return lines

    def clip(self, cursor: tuple[int, int], canvas: Canvas) -> tuple[int, int]:
        """The cursor inside the plane: columns back from the newest, rows down from the top."""
        return (
            min(max(cursor[0], 0), max(min(self.counts.shape[0], canvas.width) - 1, 0)),
            min(max(cursor[1], 0), max(canvas.height - 1, 0)),
        )

    def under(self, cursor: tuple[int, int], canvas: Canvas) -> tuple[int, int, int, int]:
        """The cell under the cursor: columns back from the newest, lower and upper edge in ns, count."""
        x, y = self.clip(cursor, canvas)
        step = 2 if halves(canvas) else 1
        top = self.counts.shape[1] - y * step
        count = int(self.counts[-1 - x, top - step : top].sum()) if self.counts.shape[0] else 0
        return x, int(self.edges[top - step]), int(self.edges[top]), count


def halves(canvas: Canvas) -> bool:
    """Whether a cell can carry two heats: its halves in two shades."""
    return canvas.unicode and canvas.shades


def _half(upper: int, lower: int) -> Span:
    if upper < 0 and lower < 0:
        return Span(" ")
    if lower < 0:
        return Span("▀", f"heat:{upper}")
    if upper < 0:
        return Span("▄", f"heat:{lower}")
    return Span("█", f"heat:{upper}") if upper == lower else Span("▀", f"heat:{upper}:{lower}")


def _with_cursor(line: Line, column: int) -> Line:
    """The line with one cell in the role of the cursor.  Every glyph of a plane is one cell wide."""
    result: list[Span] = []
    for span in line:
        if 0 <= column < len(span.text):
            result += [
                Span(span.text[:column], span.role),
                Span(span.text[column], CURSOR),
                Span(span.text[column + 1 :], span.role),
            ]
        else:
            result.append(span)
        column -= len(span.text)
    return tuple(s for s in result if s.text)


def delay_axis(edges: NDArray[np.int64], canvas: Canvas, width: int = 7) -> list[Line]:
    """The left axis of a plane: one label of ``width`` cells and a rule for each of canvas.height lines.

    Labels stand at powers of ten, where the line holds one.
    """
    bins = len(edges) - 1
    step = bins // max(canvas.height, 1) or 1
    rule = "┊" if canvas.unicode else "|"
    lines: list[Line] = []
    for row in range(canvas.height):
        top = bins - row * step
        low, high = int(edges[max(top - step, 0)]), int(edges[top])
        power = 10 ** floor(log10(max(high, 1)))
        here = low <= power < high or (row == 0 and power == high)
        label = scale(units.duration(power)) if here else ""
        lines.append((Span(fit(label, width, "right"), LABEL), Span(rule, DIM)))
    return lines

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
    room = width - cells(text)
    if room <= 0:
        return text
    if align == "right":
        return " " * room + text
    if align == "center":
        return " " * (room // 2) + text + " " * (room - room // 2)
    return text + " " * room


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
    return (
        fit(whole, width, "right")
        if cells(whole) <= width
        else fit(ELLIPSIS if width else "", width, "right")
    )


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
    for index, span in enumerate(line):
        size = cells(span.text)
        last = index == len(line) - 1
        if size < room or (size == room and last):
            kept.append(span)
            room -= size
            continue
        text = shorten(span.text if size > room else span.text + " ", room)
        kept.append(Span(text, span.role))
        room -= cells(text)
        break
    if room > 0:
        kept.append(Span(" " * room))
    return tuple(kept)


def clip(lines: Sequence[Line], canvas: Canvas) -> list[Line]:
    """What of the lines is inside the canvas: the last thing a pane does, for the smallest of canvases."""
    return [
        row if cells_of(row) <= canvas.width else pad(row, canvas.width) for row in lines[: canvas.height]
    ]


def between(left: Line, right: Line, width: int) -> Line:
    """``left`` at the left edge and ``right`` at the right one; where both don't fit, right gives way."""
    room = width - cells_of(left) - cells_of(right)
    if room < 1:
        return pad(left, width)
    return (*left, Span(" " * room), *right)


def parts(pieces: Iterable[tuple[int, Line]], width: int, gap: int = 2) -> Line:
    """Pieces side by side, in order, as many as fit: those of the highest priority number leave first, whole.

    Where not even the last one fits, it is shortened.
    """
    chosen = [(priority, index, piece) for index, (priority, piece) in enumerate(pieces) if piece]
    while len(chosen) > 1 and sum(cells_of(p) + gap for _, _, p in chosen) - gap > width:
        chosen.remove(max(chosen, key=lambda c: (c[0], c[1])))
    result: list[Span] = []
    for number, (_, _, piece) in enumerate(chosen):
        if number:
            result.append(Span(" " * gap))
        result.extend(piece)
    line = tuple(result)
    return line if cells_of(line) <= width else pad(line, max(width, 0))


def sides(
    left: Sequence[tuple[int, Line]], right: Sequence[tuple[int, Line]], width: int, gap: int = 2
) -> Line:
    """Pieces at the left edge and at the right one, as ``parts``, in exactly ``width`` cells."""
    pieces = [
        (priority, side, piece)
        for side, group in enumerate((left, right))
        for priority, piece in group
        if piece
    ]
    while len(pieces) > 1 and sum(cells_of(p) + gap for _, _, p in pieces) - gap > width:
        worst = max(range(len(pieces)), key=lambda i: (pieces[i][0], i))
        del pieces[worst]
    ends = [parts([(0, p) for _, s, p in pieces if s == side], width, gap) for side in (0, 1)]
    return between(ends[0], ends[1], width) if ends[1] else pad(ends[0], width)


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


def last(values: Values, width: int) -> list[float | None]:
    """The newest ``width`` values, filled up on the left with unknowns."""
    taken = list(values[-width:]) if width > 0 else []
    return [None] * (width - len(taken)) + taken


def area(values: Values, canvas: Canvas, rows: int, top: float, role: Role) -> list[Line]:
    """A filled graph of the newest values over ``rows`` lines, in eighths of a cell; unknown values are blank.

    Canvas.width columns, one a value.  A value above 0 is never drawn as nothing.  Where it is tall, the body below
    the edge is in a quieter shade.
    """
    glyphs = _EIGHTHS if canvas.unicode else _ASCII_EIGHTHS
    steps = 8 * rows
    heights = [
        0 if v is None or v <= 0 else min(max(round(v / top * steps), 1), steps) if top > 0 else 0
        for v in last(values, canvas.width)
    ]
    lines: list[Line] = []
    for row in range(rows - 1, -1, -1):
        if rows < 3:
            lines.append((Span("".join(glyphs[min(max(h - 8 * row, 0), 8)] for h in heights), role),))
            continue
        body = 8 * (row + 1)  # what reaches above this line is body here
        lines.append(
            merged(
                Span(glyphs[min(max(h - 8 * row, 0), 8)], f"{role}-fill" if h > body else role)
                for h in heights
            )
        )
    return lines


def spark(values: Values, canvas: Canvas, width: int, top: float, role: Role) -> Span:
    """A graph of one line in the middle of others."""
    return (
        area(values, Canvas(width, 1, unicode=canvas.unicode), 1, top, role)[0][0]
        if width > 0
        else Span("", role)
    )


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
        for column in (width - len(shown), width - len(shown) // 2):
            _mark(
                marks, column, f" -{units.age(shown[-1] - shown[column - (width - len(shown))])} ", width - 5
            )
    _mark(marks, width - 5, " now ", width)
    return (Span("".join(marks), DIM),)


def _mark(marks: list[str], column: int, text: str, limit: int) -> None:
    """Write a label from ``column`` on, if it fits below ``limit`` beside what is there already."""
    end = column + len(text)
    if column < 0 or end > limit or any(m.isalnum() for m in marks[column:end]):
        return
    marks[column:end] = list(text)


# --- heat --------------------------------------------------------------------------------------------------------


def levels(
    values: NDArray[np.float64], low: float, high: float, logarithmic: bool = True
) -> NDArray[np.int8]:
    """Heats -1..9 of values between ``low`` (0) and ``high`` (9); -1, nothing, where a value is not above 0 or NaN."""
    some = np.nan_to_num(values, nan=0.0) > 0
    safe = np.where(some, values, 1.0)
    if logarithmic:
        low, high = max(low, 1e-9), max(high, 1e-9)
        span = np.log(high / low) if high > low else 0.0
        share = np.log(safe / low) / span if span > 0 else np.ones_like(safe)
    else:
        share = (safe - low) / (high - low) if high > low else np.ones_like(safe)
    return np.where(some, np.clip(np.floor(share * 10), 0, 9), -1).astype(np.int8)


def heat_strip(heats: Sequence[int] | NDArray[np.int8], canvas: Canvas, width: int) -> Line:
    """The newest heats (-1..9) as one line of ``width`` cells: glyph and colour say the same."""
    ramp = _RAMP if canvas.unicode else _ASCII_RAMP
    taken = [int(h) for h in heats[-width:]] if width > 0 else []
    spans = [Span(" " * (width - len(taken)))]
    spans.extend(Span(ramp[h], f"heat:{h}") if h >= 0 else Span(" ") for h in taken)
    return merged(spans)


def legend(canvas: Canvas, low: str, high: str) -> Line:
    """What the heats mean: ``few ░▒▓█ many``."""
    ramp = _RAMP if canvas.unicode else _ASCII_RAMP
    shades = [Span(ramp[h], f"heat:{h}") for h in range(0, 10, 2)]
    return merged([Span(f"{low} ", LABEL), *shades, Span(ramp[9], "heat:9"), Span(f" {high}", LABEL)])


def log_edges(low_ns: int, high_ns: int, bins: int) -> NDArray[np.int64]:
    """int64[bins + 1]: edges in ns from ``low_ns`` to ``high_ns``, evenly spaced in the logarithm."""
    return np.rint(np.geomspace(max(low_ns, 1), max(high_ns, low_ns + 1, 2), bins + 1)).astype(np.int64)


def binned(histograms: Sequence[Histogram | None], edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[len(histograms), len(edges) - 1]: counts between edges, as stats.rebin, for many histograms at once."""
    bins = len(edges) - 1
    if not histograms:
        return np.zeros((0, bins), np.int64)
    none = np.zeros(SLOTS, np.uint64)
    counts = np.stack([none if h is None else h.counts for h in histograms]).astype(np.int64)
    lowers = bucket_lowers()
    middles = (lowers[:-1] + lowers[1:]) // 2
    place = np.clip(np.searchsorted(edges, middles, side="right") - 1, 0, bins - 1)
    used, starts = np.unique(place, return_index=True)
    result = np.zeros((len(histograms), bins), np.int64)
    result[:, used] = np.add.reduceat(counts, starts, axis=1)
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
        blank = canvas.width - heats.shape[0]
        ramp = _RAMP if canvas.unicode else _ASCII_RAMP
        step = 2 if halves(canvas) else 1
        lines: list[Line] = []
        for row in range(canvas.height):
            upper_bin = heats.shape[1] - 1 - row * step
            upper = heats[:, upper_bin].tolist()
            spans = [Span(" " * blank)]
            if step == 2:
                lower = heats[:, upper_bin - 1].tolist()
                spans.extend(_half(u, w) for u, w in zip(upper, lower, strict=True))
            else:
                spans.extend(Span(ramp[h], f"heat:{h}") if h >= 0 else Span(" ") for h in upper)
            lines.append(merged(spans))
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
    at = 0
    for span in line:
        if at <= column < at + len(span.text):
            inside = column - at
            glyph = span.text[inside]
            result += [
                Span(span.text[:inside], span.role),
                Span(glyph, CURSOR),
                Span(span.text[inside + 1 :], span.role),
            ]
        else:
            result.append(span)
        at += len(span.text)
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

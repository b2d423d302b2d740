"""How a probe says what its pane looks like, without knowing of any screen toolkit.

A pane is a pure function from frames to styled lines; a table pane names its columns.  The screen, batch text and the
tests use the same functions, so whatever is on the screen can be printed, and tested as text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nettop.core.frame import Frame
from nettop.core.table import Sorting

_STRETCH_MAX = 30  # cells that a column of the screen grows by: no name gets more readable

# What a piece of text means.  The screen gives each a style; on plain output it is dropped.  "heat:N" with N in 0-9
# is a shade of the one heat hue, "heat:N:M" the same on a ground of shade M (two heats in a cell's two halves).
# "ROLE-fill" is the quieter body of an area whose edge is in ROLE; "cursor" is the cell under the user's cursor,
# shown reversed.
Role = str
PLAIN, TITLE, LABEL, VALUE, DIM, GOOD, WARN, BAD, RX, TX, ACCENT, CURSOR = (
    "plain title label value dim good warn bad rx tx accent cursor".split()
)


@dataclass(frozen=True, slots=True)
class Span:
    """A run of text in one role.  The text holds no control characters and no markup."""

    text: str
    role: Role = PLAIN


Line = tuple[Span, ...]


def line(*parts: str | Span | tuple[str, Role]) -> Line:
    """A line from strings, spans and (text, role) pairs."""
    return tuple(Span(p) if isinstance(p, str) else p if isinstance(p, Span) else Span(*p) for p in parts)


def text_of(spans: Line) -> str:
    """The line without its roles."""
    return "".join(s.text for s in spans)


@dataclass(frozen=True, slots=True)
class Canvas:
    """What a pane is drawn for: its inner size in cells, and the state that the user controls.

    ``cursor`` counts from the newest column (x, leftwards) and the top row (y); None where the pane has no focus.
    ``selected`` is the row that was entered (a stage, say), by name.  A pane with ``rows`` that is not zoomed moves
    only ``cursor[1]``, over its rows.  ``shades`` is false where the terminal has no shades of a colour (16 colours or
    none): only glyphs tell heats apart then.  ``names`` gives the host name of a 16-byte address, "" where there is
    none (yet); None where names are off.  For a table's cell, ``width`` is what the column has at present.
    """

    width: int
    height: int
    zoomed: bool = False
    cursor: tuple[int, int] | None = None
    selected: str = ""
    bits: bool = True
    unicode: bool = True
    shades: bool = True
    names: Callable[[bytes], str] | None = None


History = Sequence[Frame]  # oldest first; the last is the one shown
Detail = Callable[[History, int, Canvas], list[Line]]  # the page of one row, by its identity


@dataclass(frozen=True)
class Column:
    """A table's column.  ``cell`` formats one row (a numpy record) to exactly at most ``width`` cells.

    ``sort`` gives the array that orders rows, of any type that numpy sorts (largest first unless ``ascending``); NaN
    is a value that is not known and comes last either way.  Columns leave from the highest
    ``priority`` number when the pane is narrow; priority 0 always stays.
    """

    key: str
    title: str
    width: int
    cell: Callable[[Any, Canvas, Frame], Span]
    sort: Callable[[NDArray[Any]], NDArray[Any]]
    align: Literal["left", "right"] = "right"
    priority: int = 0
    ascending: bool = False
    stretch: bool = False  # takes a share of what width is left over
    # By rows: the column comes, and stays, when it has something to say.
    wanted: Callable[[NDArray[Any]], bool] | None = None
    # Where this column has no room: the key of the one whose cell it takes, in the rows that need it said.
    instead: str = ""
    needed: Callable[[Any], bool] | None = None


def cell_of(column: Column, absent: Sequence[Column], row: Any, canvas: Canvas, frame: Frame) -> Span:
    """A row's cell, or that of a column for which there is no room (``absent``), where the row needs it said."""
    for other in absent:
        if other.instead == column.key and other.needed is not None and other.needed(row):
            return other.cell(row, canvas, frame)
    return column.cell(row, canvas, frame)


@dataclass(frozen=True)
class Placed:
    """A column where it stands, in cells."""

    column: Column
    x: int
    width: int


def place_columns(
    columns: Sequence[Column], width: int, keep: str = "", gap: int | None = None
) -> tuple[Placed, ...]:
    """As many columns as fit into ``width`` cells, ``keep`` among them, those that stretch widened where there is room.

    ``gap`` cells between two; None: one or, where there is room, two, and one more between a word and a figure.
    Depends on nothing but these, so that nothing jumps when a value grows.
    """
    chosen = _chosen(columns, width, keep, gap or 1)
    spare = width - sum(c.width for c in chosen) - (gap or 1) * (len(chosen) - 1)
    turns: set[str] = set()
    most = max(spare, 0) if gap else _STRETCH_MAX
    if gap is None:
        gap = 1
        if spare >= len(chosen) - 1 + 12:
            gap, spare = 2, spare - (len(chosen) - 1)
        # A figure that follows a word is set off from it.
        turns = {b.key for a, b in pairwise(chosen) if (a.align, b.align) == ("left", "right")}
        turns = turns if 0 < len(turns) <= spare else set()
        spare -= len(turns)
    wide = [c.key for c in chosen if c.stretch]
    extra = {key: min(share, most) for key, share in zip(wide, shares(max(spare, 0), len(wide)), strict=True)}
    placed: list[Placed] = []
    x = 0
    for column in chosen:
        x += column.key in turns
        size = min(column.width + extra.get(column.key, 0), max(width - x, 0))
        placed.append(Placed(column, x, size))
        x += size + gap
    return tuple(placed)


def _chosen(columns: Sequence[Column], width: int, keep: str, gap: int) -> list[Column]:
    """Those that fit: the highest priority number leaves first, of equal ones the last; priority 0 stays."""
    chosen = list(columns)

    def rank(index: int) -> tuple[int, int]:
        return (0 if chosen[index].key == keep else chosen[index].priority, index)

    while len(chosen) > 1 and sum(c.width for c in chosen) + gap * (len(chosen) - 1) > width:
        worst = max(range(len(chosen)), key=rank)
        if rank(worst)[0] == 0:
            break
        del chosen[worst]
    return chosen


def shares(cells: int, count: int) -> list[int]:
    """Cells divided among so many, none left over."""
    return [cells * (i + 1) // count - cells * i // count for i in range(count)]


@dataclass(frozen=True)
class Table:
    """A sortable table over a structured array.

    ``rows`` takes the frame's rows out; ``identity`` names the field (uint64) by which the cursor follows a row;
    ``detail`` draws the page of the entered row, which ``detail_help`` explains.  ``fields``: what else the rows can be
    sorted by, the frame's fields by name.
    """

    columns: tuple[Column, ...]
    rows: Callable[[Frame], NDArray[np.void]]
    identity: str
    default_sort: str
    detail: Detail | None = None
    detail_help: str = ""
    copy: Callable[[Any], str] | None = None  # one row as text for the clipboard
    matches: Callable[[NDArray[np.void], str], NDArray[np.bool_]] | None = None  # a plain word in the filter
    fields: Mapping[str, Sorting] = field(default_factory=dict)

    @property
    def sorts(self) -> Mapping[str, Sorting]:
        """All that rows can be sorted by, by name."""
        return {**self.fields, **{c.key: Sorting(c.sort, c.ascending) for c in self.columns}}

    def column(self, name: str) -> Column:
        """The column of this name, or one that is not shown for a field; the default where there is no such name."""
        shown = {c.key: c for c in self.columns}
        by = self.fields.get(name)
        if name in shown or by is None:
            return shown.get(name) or shown[self.default_sort]
        return Column(name, name, 0, lambda row, canvas, frame: Span(""), by.sort, ascending=by.ascending)


@dataclass(frozen=True)
class Pane:
    """A pane of the screen.

    ``band``: top, middle or bottom of the screen, left to right by number, widths by ``weight`` (10 is usual);
    ``height`` is the wanted number of inner lines (0: whatever is left).  ``draw`` gives at most canvas.height lines
    of at most canvas.width cells; ``compact`` is what is drawn of a pane of the top band when the terminal is
    small: two lines without a frame.  (Others then share one place in full, chosen by number.)
    ``badge`` is a word for the screen's header, beside the interface (its speed, say).  Every function is called only
    with frames whose last one holds the probe's section; an earlier one may lack it.
    """

    name: str
    title: str
    number: int
    band: Literal["top", "middle", "bottom"]
    draw: Callable[[History, Canvas], list[Line]] | None = None
    table: Table | None = None
    compact: Callable[[History, Canvas], list[Line]] | None = None
    subtitle: Callable[[History, Canvas], str] | None = None
    weight: int = 10
    height: int = 0
    help: str = ""
    rows: Callable[[History], tuple[str, ...]] | None = field(default=None)  # names that ``enter`` can select
    badge: Callable[[Frame], str] | None = None

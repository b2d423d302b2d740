"""A table pane: any probe's Table over a structured array, ordered at the interval, only visible rows formatted."""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod

import numpy as np
from numpy.typing import NDArray
from textual import events

from nettop.core import units
from nettop.core.frame import Frame
from nettop.core.table import MOST, Sorting, order
from nettop.render.canvas import (
    ACCENT,
    DIM,
    GOOD,
    LABEL,
    PLAIN,
    Canvas,
    Column,
    Line,
    Pane,
    Span,
    cell_of,
    place_columns,
)
from nettop.render.draw import cells, fit
from nettop.ui.edges import Footer
from nettop.ui.keys import bindings
from nettop.ui.lines import thumb_of
from nettop.ui.panes import PaneWidget
from nettop.ui.screens import SortPage, SortScreen
from nettop.ui.state import State

_MARK = 2  # columns in front of a row, for the cursor


class TablePane(PaneWidget):
    """The cursor stays on its row by identity while rows move; before it was moved, it stays on top.

    What is in view changes by keys alone: a row that moves out of it (another order, a flow that falls silent) is drawn
    at the edge where it left, so that it is found, and does not take the others with it.
    """

    BINDINGS = bindings("sort", "reverse", "sort_left", "sort_right", "copy")

    def __init__(self, state: State, pane: Pane, probe: str, sort: str) -> None:
        super().__init__(state, pane, probe)
        assert pane.table is not None
        self.table = pane.table
        self.column = self.table.column(sort)
        self.reversed = False
        self.at = 0  # the cursor's row
        self.first = 0  # the first visible row
        self._follow = False  # the cursor was moved: it has to be in view
        self._shown: list[int] = []  # the rows in view, by their place in the order
        self.pinned: int | None = None  # identity under the cursor, once the user moved it
        self.entered: int | None = None  # identity of the row whose page is open
        self._loose = False  # the cursor was not pinned before that
        self._of: tuple[Frame, str, bool, str] | None = None
        self._rows: NDArray[np.void] = np.zeros(0, [(self.table.identity, np.uint64)])
        self._order: NDArray[np.intp] = np.zeros(0, np.intp)
        self._ids: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._places = place_columns((), 0)
        self._wanted = {self.column.key}  # columns that are not always there

    # --- rows

    def put_in_order(self, frame: Frame) -> None:
        key = (frame, self.column.key, self.reversed, self.state.filter_word)
        if self._of is not None and self._of[0] is frame and self._of[1:] == key[1:]:
            return
        rows = self.table.rows(frame)
        if self.state.filter_word and self.table.matches is not None:
            rows = rows[self.table.matches(rows, self.state.filter_word)]
        by = Sorting(self.column.sort, self.column.ascending)
        self._order = order(rows, self.table.identity, by, self.reversed)
        self._rows = rows
        self._ids = rows[self.table.identity][self._order]
        self._of = key
        if self.pinned is not None:
            found = np.flatnonzero(self._ids == np.uint64(self.pinned))
            if found.size:
                self.at = int(found[0])
            elif self.first <= self.at < self.first + len(self._shown):
                self._pin(self.at)
            else:
                self.at, self.pinned = self.first, None
        self.at = min(self.at, max(len(self._ids) - 1, 0))

    def _pin(self, row: int) -> None:
        self.at = min(max(row, 0), max(len(self._ids) - 1, 0))
        self.pinned = int(self._ids[self.at]) if len(self._ids) else None
        self._follow = True

    @property
    def under(self) -> int | None:
        return int(self._ids[self.at]) if self.at < len(self._ids) else None

    @property
    def inside(self) -> bool:
        return self.entered is not None

    # --- drawing

    def content(self, frame: Frame, width: int, height: int, compact: bool) -> list[Line]:
        self.put_in_order(frame)
        if self.entered is not None and self.table.detail is not None:
            return self.table.detail(self.state.frames(), self.entered, self.canvas(width, height))
        self._places = place_columns(
            self._columns(),
            width - _MARK,
            "" if self.column.key == self.table.default_sort else self.column.key,
        )
        self._shown = self._in_view(max(height - 1, 1))
        lines = [self._titles()]
        canvas = self.state.canvas(width, height)
        canvases = [replace(canvas, width=p.width) for p in self._places]
        placed = {p.column.key for p in self._places}
        absent = [c for c in self.table.columns if c.instead and c.key not in placed]
        lines += [self._row(place, frame, canvases, absent) for place in self._shown]
        if not len(self._ids):
            word = self.state.filter_word
            lines.append((Span(f"  nothing matches {word}" if word else "  none yet", DIM),))
        return lines

    def _columns(self) -> tuple[Column, ...]:
        self._wanted |= {c.key for c in self.table.columns if c.wanted is not None and c.wanted(self._rows)}
        return tuple(c for c in self.table.columns if c.wanted is None or c.key in self._wanted)

    def _in_view(self, room: int) -> list[int]:
        """The rows to show, by their place in the order; the cursor's is always among them."""
        if self._follow or self.pinned is None:
            self.first = max(min(self.first, self.at), self.at - room + 1)
            self._follow = False
        self.first = max(min(self.first, len(self._ids) - room), 0)
        shown = list(range(self.first, min(self.first + room, len(self._ids))))
        if shown and self.at < shown[0]:
            shown[0] = self.at
        elif shown and self.at > shown[-1]:
            shown[-1] = self.at
        return shown

    def _titles(self) -> Line:
        spans = [Span(" " * _MARK)]
        down = self.column.ascending == self.reversed
        arrow = ("▾" if down else "▴") if self.state.unicode else ("v" if down else "^")
        x = 0
        for p in self._places:
            spans.append(Span(" " * (p.x - x)))
            sorted_by = p.column.key == self.column.key
            text = p.column.title + arrow if sorted_by else p.column.title
            spans.append(Span(fit(text, p.width, p.column.align), ACCENT if sorted_by else LABEL))
            x = p.x + p.width
        return tuple(s for s in spans if s.text)

    def _row(self, place: int, frame: Frame, canvases: list[Canvas], absent: list[Column]) -> Line:
        row = self._rows[self._order[place]]
        here = place == self.at and self.current
        suffix = "+row" if here else ""
        mark = ("▸ " if self.state.unicode else "> ") if here else "  "
        spans = [Span(mark, ACCENT + suffix)]
        x = 0
        for p, canvas in zip(self._places, canvases, strict=True):
            cell = cell_of(p.column, absent, row, canvas, frame)
            text = cell.text if cells(cell.text) == p.width else fit(cell.text, p.width, p.column.align)
            # The gap goes with the cell: a style's escape sequence is five times as long as the gap.
            spans.append(Span(" " * (p.x - x) + text, cell.role + suffix))
            x = p.x + p.width
        if here:
            spans.append(Span(" " * max(self.size.width - 4 - _MARK - x, 0), PLAIN + suffix))
        return tuple(spans)

    def subtitle(self, width: int) -> Line:
        said = super().subtitle(width)
        if self.entered is not None or self.state.shown is None or not len(self._ids):
            return said
        text = f"by {self.column.title}{', reversed' if self.reversed else ''} "
        if self.state.filter_word:
            text = f"{units.count(len(self._ids))} match {self.state.filter_word} · {text}"
        elif len(self._rows) > MOST:
            text = f"first {units.count(len(self._ids))} {text}"
        return (*said, Span("· " if said else " ", DIM), Span(text, LABEL))

    def help(self) -> str:
        return self.table.detail_help if self.entered is not None else super().help()

    def heading(self) -> str:
        """The title, and whether a row's page is open, or which field orders the rows where it is no column."""
        if self.entered is not None:
            return f"{self.pane.title} › details"
        return self.pane.title if self.column.width else f"{self.pane.title} by {self.column.key}"

    def thumb(self, height: int) -> range:
        room, total = height - 1, len(self._ids)
        if self.entered is not None or total <= room or room < 2:
            return range(0)
        mark = thumb_of(self.first, room, total)
        return range(mark.start + 1, mark.stop + 1)

    # --- what keys do

    def move(self, x: int, y: int) -> None:
        """The cursor, to another row; from now on it follows that row."""
        if self.entered is None and y:
            self._pin(self.at + y)
            self.redraw()

    def action_top(self) -> None:
        """To the first row, whichever that is from now on."""
        super().action_top()
        if self.entered is None:
            self.pinned = None

    def open_page(self) -> bool:
        if self.entered is not None or self.under is None or self.table.detail is None:
            return False
        self._loose = self.pinned is None
        self.entered = self.under
        self._pin(self.at)
        return True

    def open_row(self, identity: int) -> bool:
        """Open the page of a row that the newest frame has; whether it has it."""
        frame = self.state.shown
        if frame is None or self.probe not in frame.sections or self.table.detail is None:
            return False
        ids = self.table.rows(frame)[self.table.identity]
        if not (0 < identity < 1 << 64 and np.any(ids == np.uint64(identity))):
            return False
        self.entered = self.pinned = identity
        self._loose, self._follow = False, True
        self.post_message(self.PageChanged(self))
        return True

    def leave_page(self) -> bool:
        was, self.entered = self.entered, None
        if was is not None and self._loose:  # it stood on top before, and does so again
            self.at, self.pinned = 0, None
        return was is not None

    def sort_by(self, column: Column) -> None:
        """Order by a column, in its own direction, and show the first; by the same one again: the other way round."""
        self.reversed = not self.reversed if column.key == self.column.key else False
        self.column = column
        self.first = 0
        self.redraw()

    def action_sort(self) -> None:
        self.app.push_screen(SortScreen(SortPage(self.state, self.table, self.column.key)), self._chosen)

    def _chosen(self, key: str | None) -> None:
        column = next((c for c in self.table.columns if c.key == key), None)
        if column is not None and column.key != self.column.key:
            self.sort_by(column)

    def action_reverse(self) -> None:
        self.sort_by(self.column)

    def _sort_by_neighbour(self, step: int) -> None:
        columns = [p.column for p in self._places] or self._columns()
        at = next((i for i, c in enumerate(columns) if c.key == self.column.key), 0)
        self.sort_by(columns[(at + step) % len(columns)])

    action_sort_left = partialmethod(_sort_by_neighbour, -1)
    action_sort_right = partialmethod(_sort_by_neighbour, 1)

    def action_copy(self) -> None:
        if self.under is None or self.table.copy is None:
            return
        if text := self.table.copy(self._rows[self._order[self.at]]):
            self.app.copy_to_clipboard(text)
            self.post_message(Footer.Notice("copied the row", GOOD))

    # --- mouse

    def on_click(self, event: events.Click) -> None:
        """A title sorts; a row gets the cursor, and is entered by a second click."""
        event.stop()
        row, x = event.y - 2, event.x - 2 - _MARK
        again = False
        if self.entered is None and event.y == 1:
            for p in self._places:
                if p.x <= x < p.x + p.width:
                    self.sort_by(p.column)
        elif self.entered is None and 0 <= row < len(self._shown) and row < self.size.height - 3:
            again = self.current and self._shown[row] == self.at
            self._pin(self._shown[row])
            self.redraw()
        self.focus(scroll_visible=False)
        if again:
            self.action_enter()

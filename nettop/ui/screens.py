"""Pages over the panes: help, and the choice of a column to sort by."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from nettop.analysis.health_help import EDGES
from nettop.core import units
from nettop.core.frame import Frame
from nettop.probes.base import Probe
from nettop.render.canvas import ACCENT, DIM, LABEL, PLAIN, TITLE, WARN, Line, Table, line
from nettop.render.draw import cells_of, pad, wrap
from nettop.ui.keys import GROUPS, Action, shown_keys
from nettop.ui.lines import LineWidget, framed
from nettop.ui.panes import clean_lines
from nettop.ui.state import State
from nettop.ui.terminal import Written
from nettop.ui.textual_private import forget_styles

_KEYS_WIDTH = 64
Result = TypeVar("Result")


def help_lines(
    actions: Sequence[Action], title: str, text: str, probe: Probe | None, frame: Frame | None, width: int
) -> list[Line]:
    """Keys, then what the pane in focus shows and how it is measured; side by side where there is room."""
    keys: list[Line] = []
    for group in GROUPS:
        mine = [a for a in actions if a.group == group and a.keys]
        if not mine:
            continue
        keys += [line((group.capitalize(), TITLE))]
        keys += [line((f"{shown_keys(a):>13} ", "key"), (a.help, PLAIN)) for a in mine]
        keys += [()]
    beside = width >= 2 * _KEYS_WIDTH - 20
    room = width - _KEYS_WIDTH - 3 if beside else width
    meaning: list[Line] = [line((title, TITLE)), *wrap(text or "No description.", room, PLAIN), ()]
    meaning += _hooks(probe, frame, room)
    for head, *texts in EDGES:
        meaning += [(), line((head, TITLE))]
        for text in texts:
            meaning += wrap(text, room, PLAIN)
    if not beside:
        return [*keys, *meaning]
    rows = max(len(keys), len(meaning))
    keys += [()] * (rows - len(keys))
    meaning += [()] * (rows - len(meaning))
    return [(*pad(k, _KEYS_WIDTH), *line((" ", PLAIN)), *m) for k, m in zip(keys, meaning, strict=True)]


def _hooks(probe: Probe | None, frame: Frame | None, width: int) -> list[Line]:
    """The mechanism by which each hook is attached at present, and which are not."""
    if probe is None:
        return []
    status = frame.probes.get(probe.name) if frame else None
    held = {h.hook: h for h in status.hooks} if status else {}
    rows: list[Line] = [line(("Measured at", TITLE))]
    for hook in probe.hooks:
        found = held.get(hook.name)
        if found is None:
            rows.append(line((f"{hook.name:<24} ", PLAIN), ("not watched here", WARN)))
            continue
        cost = f"  {found.run_ns // found.runs} ns a run" if found.runs and found.run_ns is not None else ""
        missed = f"  {found.recursion_misses} runs left out by the kernel" if found.recursion_misses else ""
        rows.append(line((f"{hook.name:<24} ", PLAIN), (found.via, ACCENT), (cost, LABEL), (missed, WARN)))
    if status and status.detail:
        rows += [(), *wrap(clean_lines(status.detail), width, WARN)]
    return rows


class Page(LineWidget):
    """Lines in a frame, scrolled."""

    hint = "esc closes"

    def __init__(self, state: State, title: str) -> None:
        super().__init__(state)
        self.title = title
        self.first = 0

    def rows(self, width: int) -> list[Line]:
        """All lines of the page."""
        return []

    def draw(self, width: int, height: int) -> list[Line]:
        """The visible lines in their frame."""
        rows, room = self.rows(max(width - 4, 1)), max(height - 2, 1)
        self.first = min(max(self.first, 0), max(len(rows) - room, 0))
        size = max(room * room // max(len(rows), 1), 1)
        top = (room - size) * self.first // max(len(rows) - room, 1)
        thumb = range(top, top + size) if len(rows) > room else range(0)
        title = line((f" {self.title} ", TITLE))
        hint = line((f" {self.hint} ", DIM))
        shown = rows[self.first : self.first + room]
        return framed(shown, width, height, title, hint, "border-focus", self.state.unicode, thumb)

    def scroll_by(self, rows: int) -> None:
        """Down, or up below 0."""
        self.first += rows
        self.redraw()

    def on_mouse_scroll_down(self) -> None:
        """The wheel."""
        self.scroll_by(3)

    def on_mouse_scroll_up(self) -> None:
        """The wheel."""
        self.scroll_by(-3)


class HelpPage(Page):
    """Keys, and the meaning of the pane in focus."""

    def __init__(
        self,
        state: State,
        actions: Sequence[Action],
        title: str,
        text: str,
        probe: Probe | None,
        written: Written,
    ) -> None:
        super().__init__(state, "Help")
        self._actions, self._of, self._text, self._probe = actions, title, text, probe
        self._written = written

    def rows(self, width: int) -> list[Line]:
        """As help_lines."""
        rows = help_lines(self._actions, self._of, self._text, self._probe, self.state.shown, width)
        if self._written.total:
            rate = units.si(self._written.rate(time.monotonic()), "B/s")
            text = (
                f"written to this terminal: {rate} in the last 10 s, {units.size(self._written.total)} in all"
            )
            rows += [(), line((text, LABEL))]
        return rows


class Over(ModalScreen[Result]):
    """A page over the panes, gone without a trace when it is closed."""

    def on_unmount(self) -> None:
        """Textual keeps the cache of a closed screen's lines: empty it, or each that is opened costs 40 kB."""
        forget_styles(self)


class HelpScreen(Over[None]):
    """Help.  Any of its keys, or escape, closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1", "dismiss"),
        Binding("j,down", "scroll_page(1)"),
        Binding("k,up", "scroll_page(-1)"),
        Binding("pagedown,space", "scroll_page(15)"),
        Binding("pageup", "scroll_page(-15)"),
        Binding("g,home", "scroll_page(-10000)"),
        Binding("G,end", "scroll_page(10000)"),
    ]

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page

    def compose(self) -> ComposeResult:
        """The page alone."""
        yield self.page

    def action_scroll_page(self, rows: int) -> None:
        """Scroll."""
        self.page.scroll_by(rows)


class SortPage(Page):
    """The columns of a table, one to choose; also those that the pane has no room for."""

    hint = "enter sorts · esc"

    def __init__(self, state: State, table: Table, key: str) -> None:
        super().__init__(state, "Sort by")
        self._table = table
        self.at = next((i for i, c in enumerate(table.columns) if c.key == key), 0)

    @property
    def key(self) -> str:
        """The chosen column."""
        return self._table.columns[self.at].key

    def rows(self, width: int) -> list[Line]:
        """One column a line."""
        rows: list[Line] = []
        for index, column in enumerate(self._table.columns):
            suffix = "+row" if index == self.at else ""
            mark = "▸ " if self.state.unicode else "> "
            row = line((mark if suffix else "  ", ACCENT + suffix), (column.title, PLAIN + suffix))
            rows.append((*row, *line((" " * (width - cells_of(row)), PLAIN + suffix))))
        return rows

    def step(self, rows: int) -> None:
        """Another column."""
        self.at = min(max(self.at + rows, 0), len(self._table.columns) - 1)
        room = max(self.size.height - 2, 1)
        self.first = min(max(self.first, self.at - room + 1), self.at)
        self.redraw()


class SortScreen(Over[str | None]):
    """The choice of a column; gives its key, None for none."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)"),
        Binding("enter,s", "choose"),
        Binding("j,down", "step(1)"),
        Binding("k,up", "step(-1)"),
        Binding("g,home", "step(-1000)"),
        Binding("G,end", "step(1000)"),
    ]

    def __init__(self, page: SortPage) -> None:
        super().__init__()
        self.page = page
        self.page.styles.height = len(page._table.columns) + 2

    def compose(self) -> ComposeResult:
        """The page alone."""
        yield self.page

    def action_step(self, rows: int) -> None:
        """Move."""
        self.page.step(rows)

    def action_choose(self) -> None:
        """Take it."""
        self.dismiss(self.page.key)

    def on_click(self) -> None:
        """A click outside closes."""
        self.dismiss(None)

"""Pages over the panes: help, and the choice of a column to sort by."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partialmethod
from itertools import zip_longest
from typing import ClassVar, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from nettop.analysis.health_help import EDGES
from nettop.core import units
from nettop.core.frame import Frame
from nettop.probes.base import Probe
from nettop.render.canvas import ACCENT, DIM, LABEL, PLAIN, TITLE, WARN, Line, Table, line
from nettop.render.draw import fit, pad, wrap
from nettop.ui.keys import GROUPS, Action, shown_keys
from nettop.ui.lines import LineWidget, framed, thumb_of
from nettop.ui.panes import clean_lines
from nettop.ui.state import State
from nettop.ui.textual_private import Written, forget_styles

_KEYS_WIDTH = 64
Result = TypeVar("Result")


def help_lines(
    actions: Sequence[Action], title: str, text: str, probe: Probe | None, frame: Frame | None, width: int
) -> list[Line]:
    """Keys, then what the pane in focus shows and how it is measured; side by side where there is room."""
    keys: list[Line] = []
    for group in GROUPS:
        if mine := [a for a in actions if a.group == group and a.keys]:
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
    return [
        (*pad(k, _KEYS_WIDTH), *line((" ", PLAIN)), *m) for k, m in zip_longest(keys, meaning, fillvalue=())
    ]


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
            rows.append(line((f"{hook.name:<24} ", PLAIN), ("not attached", WARN)))
            continue
        cost = f"  {found.run_ns // found.runs} ns a run" if found.runs and found.run_ns is not None else ""
        missed = f"  {found.recursion_misses} runs skipped by the kernel" if found.recursion_misses else ""
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
        return []

    def draw(self, width: int, height: int) -> list[Line]:
        rows, room = self.rows(max(width - 4, 1)), max(height - 2, 1)
        self.first = min(max(self.first, 0), max(len(rows) - room, 0))
        thumb = thumb_of(self.first, room, len(rows))
        title, hint = line((f" {self.title} ", TITLE)), line((f" {self.hint} ", DIM))
        shown = rows[self.first : self.first + room]
        return framed(shown, width, height, title, hint, "border-focus", self.state.unicode, thumb)

    def step(self, rows: int) -> None:
        """Scroll down, or up below 0."""
        self.first += rows
        self.redraw()

    on_mouse_scroll_down, on_mouse_scroll_up = partialmethod(step, 3), partialmethod(step, -3)


class HelpPage(Page):
    """Keys, and the meaning of the pane in focus: ``lines``, of the frame that is shown, and the width."""

    def __init__(
        self, state: State, lines: Callable[[Frame | None, int], list[Line]], written: Written
    ) -> None:
        super().__init__(state, "Help")
        self._lines_of = lines
        self._written = written

    def rows(self, width: int) -> list[Line]:
        rows = self._lines_of(self.state.shown, width)
        if total := self._written.total:
            rate = units.si(self._written.rate(time.monotonic()), "B/s")
            text = f"written to this terminal: {rate} in the last 10 s, {units.size(total)} in all"
            rows += [(), line((text, LABEL))]
        return rows


class Over(ModalScreen[Result]):
    """A page over the panes, gone without a trace when it is closed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "step(1)"),
        Binding("k,up", "step(-1)"),
        Binding("g,home", "step(-10000)"),
        Binding("G,end", "step(10000)"),
    ]

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page

    def compose(self) -> ComposeResult:
        yield self.page

    def action_step(self, rows: int) -> None:
        self.page.step(rows)

    def on_unmount(self) -> None:
        """Textual keeps the cache of a closed screen's lines: empty it, or each that is opened costs 40 kB."""
        forget_styles(self)


class HelpScreen(Over[None]):
    """Help.  Any of its keys, or escape, closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1", "dismiss"),
        Binding("pagedown,space", "step(15)"),
        Binding("pageup", "step(-15)"),
    ]


class SortPage(Page):
    """The columns of a table, one to choose; also those that the pane has no room for."""

    hint = "enter sorts · esc"

    def __init__(self, state: State, table: Table, key: str) -> None:
        super().__init__(state, "Sort by")
        self._columns = table.columns
        self.at = next((i for i, c in enumerate(table.columns) if c.key == key), 0)
        self.styles.height = len(table.columns) + 2

    @property
    def key(self) -> str:
        return self._columns[self.at].key

    def rows(self, width: int) -> list[Line]:
        rows: list[Line] = []
        for index, column in enumerate(self._columns):
            suffix = "+row" if index == self.at else ""
            mark = "  " if not suffix else "▸ " if self.state.unicode else "> "
            rows.append(line((mark, ACCENT + suffix), (fit(column.title, width - 2), PLAIN + suffix)))
        return rows

    def step(self, rows: int) -> None:
        self.at = min(max(self.at + rows, 0), len(self._columns) - 1)
        room = max(self.size.height - 2, 1)
        self.first = min(max(self.first, self.at - room + 1), self.at)
        self.redraw()


class SortScreen(Over[str | None]):
    """The choice of a column; gives its key, None for none."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)"),
        Binding("enter,s", "choose"),
    ]

    page: SortPage

    def action_choose(self) -> None:
        self.dismiss(self.page.key)

    def on_click(self) -> None:
        self.dismiss(None)

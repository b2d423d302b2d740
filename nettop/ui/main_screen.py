"""The screen of a live run: header, panes, filter, footer, and what belongs to none of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, partialmethod
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.message import Message
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input

from nettop.core.errors import NettopError
from nettop.core.frame import Frame
from nettop.core.units import clean
from nettop.probes.base import Probe
from nettop.record.recording import View
from nettop.render.canvas import GOOD, LABEL, WARN, Role
from nettop.ui.body import Body, first_table
from nettop.ui.commands import Commands
from nettop.ui.edges import Footer, Header
from nettop.ui.filter_bar import FilterBar
from nettop.ui.keys import ACTIONS, Action, bindings
from nettop.ui.lines import redraw_all
from nettop.ui.panes import PaneWidget
from nettop.ui.screens import HelpPage, HelpScreen, help_lines
from nettop.ui.state import INTERVALS, State, neighbour
from nettop.ui.table import TablePane
from nettop.ui.textual_private import Written

_NAMES_SECONDS = 0.5  # between looks at whether names have come


class NewFrame(Message):
    """There is something new to draw.  Frames that come faster than they can be drawn are drawn once."""

    bubble = False

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, NewFrame)


class MainScreen(Screen[None], inherit_bindings=False):
    """Header, panes, filter bar, footer.  Frames come in by ``take``, and are drawn at the next NewFrame."""

    ALLOW_SELECT = False
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("help", "pause", "earlier", "later", "longer", "shorter", "filter", "back", "units"),
        *bindings("names", "reset", "snapshot", "record"),
        *bindings("quit", action="app.quit"),
    ]

    def __init__(
        self,
        state: State,
        panes: Sequence[PaneWidget],
        probes: Sequence[Probe],
        actions: Sequence[Action],
        commands: Commands,
        written: Written,
    ) -> None:
        super().__init__(id="_default")
        self.state, self.probes, self.actions = state, probes, actions
        self.commands, self.written = commands, written
        self.body = Body(state, panes)
        self.filter_bar = FilterBar()
        self.header = Header(state, self._badges, lambda: commands.recording, clock=commands.replay is None)
        self.footer = Footer(state, probes, self._footer_actions)
        self._word = state.filter_word  # the one that holds; state.filter_word may be one being written
        self._open_row = int(commands.look.focus or 0)  # whose page to open as soon as there is a frame
        self._withheld = {a.id for a in ACTIONS if a.needs and a.needs not in commands.offers}
        self._names_timer: Timer
        self._names_known = 0

    def compose(self) -> ComposeResult:
        yield from (self.header, self.body, self.filter_bar, *self.above_footer(), self.footer)

    def above_footer(self) -> Sequence[Widget]:
        return ()

    def on_mount(self) -> None:
        self.set_focus(self.body.current, scroll_visible=False)
        self._names_timer = self.set_interval(
            _NAMES_SECONDS, self._look_for_names, pause=not self.state.names
        )

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return action not in self._withheld

    def watch_focused(self, widget: Widget | None) -> None:
        """Another pane has the focus.  While a filter is written, its field goes on taking letters."""
        if isinstance(widget, PaneWidget):
            self.body.picked(widget)
            if self.filter_bar.is_open:
                self.filter_bar.query_one(Input).focus()

    # --- frames

    def take(self, frame: Frame) -> None:
        self.state.add(frame)
        self.taken()

    def taken(self) -> None:
        identity, self._open_row = self._open_row, 0
        table = first_table(self.body.panes)
        if identity and table is not None and table.open_row(identity):
            self.set_focus(table, scroll_visible=False)
        self.post_message(NewFrame())

    def on_new_frame(self) -> None:
        """Draw what has changed.  While paused, that is only the age of what is shown."""
        if (wanted := self.commands.filter_wanted) is not None:
            self.state.filter_text = wanted
        if self.state.paused:
            self.header.redraw()
        else:
            self.redraw()

    def redraw(self) -> None:
        """Draw everything anew, pages over the panes too; only cells that changed go to the terminal."""
        for screen in self.app.screen_stack:
            redraw_all(screen)

    # --- the edges

    def _badges(self, frame: Frame) -> str:
        badges = (w.pane.badge(frame) for w in self.body.panes if w.pane.badge is not None)
        return " ".join(text for text in badges if text)

    def _footer_actions(self) -> Sequence[Action]:
        pane, zoomed, stopped = self.body.current, self.state.zoomed, self.stopped
        table = isinstance(pane, TablePane)
        rows = table or (pane is not None and pane.pane.rows is not None)
        page = zoomed and pane is not None and pane.inside
        fits = {
            "always": True,
            "table": table,
            "rows": rows and not page,
            "paused": stopped,
            "inside": zoomed,
        }
        return [a for a in self.actions if a.footer and fits[a.scope] and not (stopped and a.id == "pause")]

    def say(self, text: str, role: Role = LABEL) -> None:
        self.footer.say(Footer.Notice(text, role))

    def on_footer_notice(self, message: Footer.Notice) -> None:
        self.footer.say(message)

    def action_help(self) -> None:
        pane = self.body.current
        title = f"{pane.pane.number} {pane.heading()}" if pane else "nettop"
        probe = next((p for p in self.probes if pane is not None and p.name == pane.probe), None)
        text = pane.help() if pane else ""
        lines = partial(help_lines, self.actions, title, text, probe)
        self.app.push_screen(HelpScreen(HelpPage(self.state, lines, self.written)))

    # --- time

    @property
    def stopped(self) -> bool:
        """Whether what is shown stands still until the user lets it go on."""
        return self.state.paused

    def action_pause(self) -> None:
        if self.state.paused:
            self.state.resume()
        else:
            self.state.pause()
        self.redraw()

    action_resume = action_pause

    def action_earlier(self) -> None:
        self.state.pause()
        self.step(-1)

    def action_later(self) -> None:
        self.step(1)

    def step(self, frames: int) -> None:
        self.state.step(frames)
        self.redraw()

    def _set_interval(self, step: int) -> None:
        self.state.interval = neighbour(INTERVALS, self.state.interval, step)
        self.commands.set_interval(self.state.interval)
        self.header.redraw()

    action_longer, action_shorter = partialmethod(_set_interval, 1), partialmethod(_set_interval, -1)

    # --- view

    def action_units(self) -> None:
        self.state.bits = not self.state.bits
        self.redraw()

    def action_names(self) -> None:
        if self.state.names:
            self.state.names = None
            self._names_timer.pause()
        else:
            self.state.names = self.commands.names.of
            self._names_timer.resume()
        self.redraw()

    def _look_for_names(self) -> None:
        """While names are shown, draw those that come between two frames."""
        known, self._names_known = self._names_known, self.commands.names.changed
        if known != self._names_known:
            self.redraw()

    async def action_reset(self) -> None:
        await self.commands.reset()
        self.state.clear()
        self.say("history cleared, totals reset", GOOD)
        self.redraw()

    # --- filter

    @property
    def _filter_text(self) -> str:
        """The filter that holds, or is being written."""
        shown = self.state.shown
        return self.state.filter_word or self.state.filter_text or (shown.filter if shown else "")

    def action_filter(self) -> None:
        self.filter_bar.open(self._filter_text)

    def action_back(self) -> None:
        if self.filter_bar.is_open:
            self._close_filter()
        elif not self._filter_text:
            return
        self.run_worker(self._set_filter(""), group="filter")

    def _close_filter(self) -> None:
        self.filter_bar.close()
        self.set_focus(self.body.current, scroll_visible=False)

    def on_filter_bar_tried(self, message: FilterBar.Tried) -> None:
        self.state.filter_word = self._word if message.word is None else message.word
        self.redraw()

    def on_filter_bar_wanted(self, message: FilterBar.Wanted) -> None:
        """Apply it; with an error the bar stays open and says so."""
        self.run_worker(self._set_filter(message.text, close=True), group="filter")

    async def _set_filter(self, text: str, close: bool = False) -> None:
        try:
            result = await self.commands.set_filter(text)
        except NettopError as error:
            problem = error_text(error)
        else:
            problem = result.error
            if not problem:
                self._word = result.word
                self.state.filter_text = "" if result.word else result.shown or text
        if problem:
            self.filter_bar.complain(problem)
        elif close:
            self._close_filter()
        self.state.filter_word = self._word  # not what was tried while it was written
        self.redraw()

    # --- files

    def look(self) -> View:
        table = first_table(self.body.panes)
        return View(
            sort=table.column.key if table else "",
            reverse=table.reversed if table else False,
            filter=self._filter_text,
            focus=str(table.entered or "") if table else "",
            pane=self.state.focused,
            zoomed=self.state.zoomed,
        )

    async def action_snapshot(self) -> None:
        if self.state.shown is not None:
            self.commands.look = self.look()
            self.say(f"wrote {clean(await self.commands.snapshot(self.state.frames()))}", GOOD)

    async def action_record(self) -> None:
        on = not self.commands.recording
        where = await self.commands.record(on)
        self.say(f"recording to {clean(where)}" if on else f"recorded {clean(where)}", GOOD)
        self.header.redraw()

    def on_pane_widget_page_changed(self, message: PaneWidget.PageChanged) -> None:
        """Which flow's page is open: the rest of the program measures more of it."""
        if isinstance(message.pane, TablePane) and "focus" in self.commands.offers:
            try:
                self.commands.set_focus(message.pane.entered or 0)
            except NettopError as error:
                self.say(error_text(error), WARN)


def error_text(error: NettopError) -> str:
    """An error in one line."""
    return f"{error.message}; {error.hint}" if error.hint else error.message

"""The application: frames in, keys out."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from typing import ClassVar

from textual import events
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.geometry import NULL_OFFSET, NULL_SPACING, Region, Size
from textual.layout import ArrangeResult, Layout, WidgetPlacement
from textual.message import Message
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input, Static

from nettop import files
from nettop.charset import draws_unicode
from nettop.errors import ExitCode, NettopError
from nettop.model import Frame
from nettop.probes.base import Probe
from nettop.probes.draw import fit, wrap
from nettop.probes.view import DIM, GOOD, LABEL, TITLE, WARN, Line, Role, line
from nettop.ui import theme
from nettop.ui.bars import Footer, Header
from nettop.ui.control import Commands, Look, Options
from nettop.ui.keys import Action, rebound
from nettop.ui.lines import LineWidget
from nettop.ui.panes import PaneWidget
from nettop.ui.place import LEAST_HEIGHT, LEAST_WIDTH, can_share, place, too_small
from nettop.ui.replay import Past, TimeLine, next_mark, next_speed
from nettop.ui.screens import HelpPage, HelpScreen, SortPage, SortScreen
from nettop.ui.state import Place, State
from nettop.ui.table import TablePane
from nettop.ui.terminal import Terminal, written_by
from nettop.units import clean

log = logging.getLogger(__name__)

_SAY_SECONDS = 4.0
# Of an SVG's head: fonts with addresses, and who has made it.  A Fira Code that is installed is used all the same.
_FETCHED = re.compile(r"\s*(@font-face\s*\{[^}]*\}|<!--.*?-->)", re.DOTALL)
_NAMES_SECONDS = 0.5  # between looks at whether names have come


class NewFrame(Message):
    """There is something new to draw.  Frames that come faster than they can be drawn are drawn once."""

    bubble = False

    def can_replace(self, message: Message) -> bool:
        """Any number of them is one."""
        return isinstance(message, NewFrame)


class Bands(Layout):
    """The toolkit's view of nettop.ui.place."""

    name = "bands"

    def arrange(
        self, parent: Widget, children: list[Widget], size: Size, greedy: bool = True
    ) -> ArrangeResult:
        """Boxes for the panes; those without one get none of the screen."""
        assert isinstance(parent, Body)
        state = parent.state
        small = too_small(parent.app.size.width, parent.app.size.height)
        panes = [w.pane for w in parent.panes]
        boxes = (
            {} if small else place(panes, size.width, size.height, state.focused, state.chosen, state.zoomed)
        )
        placements: list[WidgetPlacement] = []
        for child in children:
            region = Region(0, 0, 0, 0)
            if isinstance(child, PaneWidget):
                box = boxes.get(child.pane.name)
                if box is not None:
                    region = Region(box.x, box.y, box.width, box.height)
                    child.compact = box.compact
            elif small:
                region = size.region
            placements.append(WidgetPlacement(region, NULL_OFFSET, NULL_SPACING, child))
        return placements


class Body(Widget):
    """All panes, in their places."""

    def __init__(self, state: State, panes: Sequence[PaneWidget]) -> None:
        super().__init__(*panes, TooSmall(state))
        self.state = state
        self.panes = list(panes)
        self._bands = Bands()

    @property
    def layout(self) -> Layout:
        """Bands."""
        return self._bands


class TooSmall(LineWidget):
    """What a terminal says that has no room for a pane."""

    def draw(self, width: int, height: int) -> list[Line]:
        """In the middle, as much as fits."""
        size = self.app.size
        rows = [
            *wrap("nettop needs a little more room", width, TITLE),
            *wrap(f"{size.width}x{size.height} here, {LEAST_WIDTH}x{LEAST_HEIGHT} at least", width, DIM),
        ]
        above = max((height - len(rows)) // 2, 0)
        return [()] * above + [
            line((fit("".join(s.text for s in r), width, "center"), r[0].role)) for r in rows if r
        ]


class FilterField(Input, inherit_bindings=False):
    """The toolkit's, without keys that the table can use meanwhile: up, down and pages."""

    BINDINGS = Input.BINDINGS


class FilterBar(Container):
    """The line in which a filter is written, and the complaint about it."""

    def compose(self) -> ComposeResult:
        """A prompt, the text, the complaint."""
        yield Static("filter /", id="prompt", markup=False)
        yield FilterField(placeholder="tcp port 443, or a word", compact=True, select_on_focus=False)
        yield Static("", id="problem", markup=False)


class Main(Screen[None], inherit_bindings=False):
    """Header, panes, filter bar, footer."""

    ALLOW_SELECT = False


def bindings(actions: Sequence[Action]) -> Iterable[Binding]:
    """The toolkit's form of the table of actions.  Pause and resume share a key and a binding."""
    for action in actions:
        for key in action.keys if action.id != "resume" else ():
            argument = f"'{action.id}', '{key}'" if action.id == "pane" else f"'{action.id}'"
            yield Binding(key, f"app.do({argument})", action.label, show=False)


class NettopApp(App[int], inherit_bindings=False):
    """The screen.  ``failure`` is what made the source of frames end, if anything did."""

    CSS_PATH = "app.tcss"
    TITLE = "nettop"
    ESCAPE_TO_MINIMIZE = False
    AUTO_FOCUS = None
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c", "do('quit')", show=False, priority=True)]

    def __init__(
        self,
        source: AsyncIterator[Frame],
        probes: Sequence[Probe],
        options: Options | None = None,
        commands: Commands | None = None,
    ) -> None:
        self.options = options or Options()
        self.commands = commands or Commands()
        self.actions = rebound(self.options.keys, self.commands.offers)
        no_color = "NO_COLOR" in os.environ  # the toolkit takes it out of the environment
        super().__init__(driver_class=Terminal, ansi_color=None)
        self.source = source
        self.failure: NettopError | None = None
        self._word = (
            self.options.word
        )  # the plain word that holds; state.filter_word may be one being written
        self._names_timer: Timer | None = None
        self._names_known = 0
        self._focus = self.options.focus  # the row to open when it comes
        self.replay = self.commands.replay
        wanted = self.options.panes
        self.probes = [p for p in probes if not wanted or p.name in wanted]
        places = [Place(pane, probe.name) for probe in self.probes for pane in probe.panes]
        places.sort(key=lambda p: p.pane.number)
        self.depth: theme.Depth = _depth(no_color, self.console.color_system)
        self.register_theme(theme.NETTOP)
        self.register_theme(theme.SIXTEEN)
        state = State(theme.Palette(theme.NETTOP.to_color_system().generate(), self.depth))
        state.interval = self.options.interval
        state.bits = self.options.bits
        state.span_ns = int(self.options.history * 1e9)
        state.unicode = draws_unicode(self.options.charset)
        state.filter_word = self._word
        state.zoomed = self.options.zoomed
        self.state = state
        self._past = Past(state, self.replay) if self.replay else None
        self.panes = [
            TablePane(state, p, self.options.sort) if p.pane.table else PaneWidget(state, p) for p in places
        ]
        first = next(
            (w for w in self.panes if isinstance(w, TablePane)), self.panes[0] if self.panes else None
        )
        state.focused = first.pane.name if first else ""
        if isinstance(first, TablePane):
            first.reversed = self.options.reverse
        state.chosen = next((w.pane.name for w in self.panes if can_share(w.pane)), "")
        for widget in self.panes:
            if widget.pane.name == self.options.pane:
                state.focused = widget.pane.name
                state.chosen = widget.pane.name if can_share(widget.pane) else state.chosen
        if self.options.names and "names" in self.commands.offers:
            state.names = self.commands.name_of

    # --- the screen

    def get_default_screen(self) -> Screen[None]:
        """A screen with our keys and none of the toolkit's own."""
        made: Screen[None] = type("Main", (Main,), {"BINDINGS": list(bindings(self.actions))})(id="_default")
        return made

    def compose(self) -> ComposeResult:
        """Header, panes, filter bar, footer."""
        badges = [w.pane.badge for w in self.panes if w.pane.badge is not None]

        def badge(frame: Frame) -> str:
            return " ".join(text for text in (b(frame) for b in badges) if text)

        yield Header(self.state, badge, lambda: self.commands.recording, clock=self.replay is None)
        yield Body(self.state, self.panes)
        yield FilterBar()
        if self.replay:
            yield TimeLine(self.state, self.replay)
        yield Footer(self.state, self.probes, self.footer_actions)

    def on_mount(self) -> None:
        """Follow the frames, and leave the terminal as it was however the end comes."""
        wanted = self.options.theme
        if self.depth in ("sixteen", "none"):
            self.theme = theme.SIXTEEN.name
        else:
            self.theme = wanted if wanted in self.available_themes else theme.NETTOP.name
        if wanted and wanted not in self.available_themes:
            self.say(f"no theme is called {clean(wanted)}", WARN)
        self.theme_changed_signal.subscribe(self, lambda _: self._restyle())
        # The shell wrote over the screen meanwhile: what did not change since must be painted too.
        self.app_resume_signal.subscribe(self, lambda _: self.repaint())
        self._restyle()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            with suppress(ValueError, RuntimeError):  # not in the main thread
                loop.add_signal_handler(number, self.exit, int(ExitCode.OK))
        self._watch_names()
        self.run_worker(self._follow(), name="frames", exclusive=True)

    def _restyle(self) -> None:
        """Another theme: other styles for the same roles."""
        depth: theme.Depth = self.depth
        if depth != "none" and self.current_theme.ansi:
            depth = "sixteen"
        self.state.palette = theme.Palette(self.theme_variables, depth, self.theme)
        self.redraw()

    async def _follow(self) -> None:
        """Take frames as they come; drawing is another matter."""
        try:
            async for frame in self.source:
                if self._past is None:
                    self.state.add(frame)
                elif missing := self._past.arrived(frame):
                    self.run_worker(self._past.load(missing, self.redraw), group="past", exclusive=True)
                self._open_focus()
                self.post_message(NewFrame())
        except NettopError as error:
            self.failure = error
            self.exit(int(error.code))
            return
        except Exception as error:
            log.exception("the source of frames")
            self.failure = NettopError(
                f"{type(error).__name__}: {error}", "--log FILE keeps the details; please report it"
            )
            self.exit(int(ExitCode.FAILURE))
            return
        self.state.ended = True
        self.post_message(NewFrame())

    def _open_focus(self) -> None:
        """Open the page that the options name, once there is a frame that has its row."""
        table = next((w for w in self.panes if isinstance(w, TablePane)), None)
        focus, self._focus = self._focus, 0
        if focus and table is not None and table.open(focus):
            self.state.focused = table.pane.name
            self._zoom(True)
            self._focus_flow()

    def on_new_frame(self) -> None:
        """Draw what has changed.  While paused, that is only the age of what is shown."""
        if (wanted := self.commands.filter_wanted) is not None:
            self.state.filter_text = wanted
        if self.state.paused:
            self.query_one(Header).redraw()
            return
        self.redraw()

    def redraw(self) -> None:
        """Draw everything anew; only cells that changed go to the terminal."""
        if not self.is_running:
            return
        for widget in self.screen_stack[0].query(LineWidget):
            widget.redraw()
        for screen in self.screen_stack[1:]:
            for widget in screen.query(LineWidget):
                widget.redraw()

    def repaint(self) -> None:
        """Every cell of the terminal, whether it changed or not."""
        self.screen.refresh(layout=True)

    def relayout(self) -> None:
        """Panes take other places."""
        body = self.screen_stack[0].query_one(Body)
        body._clear_arrangement_cache()
        body.refresh(layout=True)
        self.redraw()

    def on_resize(self, event: events.Resize) -> None:
        """Places follow from the size by themselves."""
        self.screen_stack[0].query_one(TooSmall).redraw()

    # --- what is in focus

    @property
    def pane(self) -> PaneWidget | None:
        """The pane that keys go to."""
        return next((w for w in self.panes if w.pane.name == self.state.focused), None)

    @property
    def table(self) -> TablePane | None:
        """The same, if it is a table."""
        return self.pane if isinstance(self.pane, TablePane) else None

    def focus_pane(self, widget: PaneWidget) -> None:
        """Keys go to this pane from now on."""
        state = self.state
        if state.focused == widget.pane.name:
            return
        if self.pane is not None:
            self.pane.rest()
        state.focused = widget.pane.name
        if can_share(widget.pane):
            state.chosen = widget.pane.name
        self.relayout()

    def footer_actions(self) -> Sequence[Action]:
        """What the foot of the screen shows at present."""
        paused, table = self.standing, self.table is not None
        rows = table or (self.pane is not None and self.pane.pane.rows is not None)
        inside = self.state.zoomed
        page = inside and self.pane is not None and self.pane.inside
        fits = {"always": True, "table": table, "rows": rows and not page, "paused": paused, "inside": inside}
        return [a for a in self.actions if a.footer and fits[a.scope] and not (paused and a.id == "pause")]

    @property
    def standing(self) -> bool:
        """Whether what is shown stands still until the user lets it go on."""
        if self.replay:
            return self.replay.paused or self.replay.at_end
        return self.state.paused

    def say(self, text: str, role: Role = LABEL) -> None:
        """A message at the foot of the screen, for a moment."""
        with suppress(Exception):
            footer = self.screen_stack[0].query_one(Footer)
            footer.message = message = line((text, role))
            footer.redraw()
            self.set_timer(_SAY_SECONDS, lambda: self._unsay(footer, message))

    @staticmethod
    def _unsay(footer: Footer, message: Line) -> None:
        if footer.message is message:
            footer.message = ()
            footer.redraw()

    # --- what keys do: one method an action of nettop.ui.keys

    async def action_do(self, name: str, argument: str = "") -> None:
        """Run an action of the table; what the other end refuses is said, not raised."""
        if name != "quit" and len(self.screen_stack) > 1:
            return
        method = getattr(self, f"do_{name}")
        try:
            result = method(argument) if argument else method()
            if asyncio.iscoroutine(result):
                await result
        except NettopError as error:
            self.say(f"{error.message}; {error.hint}" if error.hint else error.message, WARN)

    def do_quit(self) -> None:
        """Leave."""
        self.exit(int(ExitCode.OK))

    def do_help(self) -> None:
        """Keys and meaning."""
        pane = self.pane
        probe = next((p for p in self.probes if pane is not None and p.name == pane.probe), None)
        page = HelpPage(
            self.state,
            self.actions,
            f"{pane.pane.number} {pane.heading()}" if pane else "nettop",
            pane.help() if pane else "",
            probe,
            written_by(self._driver),
        )
        self.push_screen(HelpScreen(page))

    def do_pause(self) -> None:
        """Pause, or go on."""
        if self.replay:
            if self.replay.at_end:
                self.replay.seek(0)
            self.replay.paused = not self.standing
        elif self.state.paused:
            self.state.resume()
        else:
            self.state.pause()
        self.redraw()

    def do_earlier(self) -> None:
        """One frame back."""
        self._step(-1)

    def do_later(self) -> None:
        """One frame forward."""
        self._step(1)

    def _step(self, frames: int) -> None:
        if self.replay:
            self.replay.step(frames)
        else:
            if frames < 0:
                self.state.pause()
            self.state.step(frames)
        self.redraw()

    def do_slower(self) -> None:
        """The next lower speed."""
        self._set_speed(-1)

    def do_faster(self) -> None:
        """The next higher speed."""
        self._set_speed(1)

    def _set_speed(self, step: int) -> None:
        if self.replay:
            self.replay.speed = next_speed(self.replay.speed, step)
            self.redraw()

    def do_start(self) -> None:
        """The first frame."""
        self._seek(0)

    def do_end(self) -> None:
        """The last frame."""
        self._seek(1 << 62)

    def do_last_mark(self) -> None:
        """The mark before."""
        if self.replay:
            self._seek(next_mark(self.replay.recording, self.replay.position, -1))

    def do_next_mark(self) -> None:
        """The next mark."""
        if self.replay:
            self._seek(next_mark(self.replay.recording, self.replay.position, 1))

    def _seek(self, index: int) -> None:
        if self.replay:
            self.replay.seek(index)
            self.redraw()

    def on_time_line_sought(self, event: TimeLine.Sought) -> None:
        """The user pointed at the time line."""
        if self.replay:
            recording = self.replay.recording
            self._seek(recording.at(int(event.share * recording.length_ns)))

    def do_longer(self) -> None:
        """The next longer interval."""
        self._set_interval(self.state.next_interval(1))

    def do_shorter(self) -> None:
        """The next shorter interval."""
        self._set_interval(self.state.next_interval(-1))

    def _set_interval(self, seconds: float) -> None:
        self.commands.set_interval(seconds)
        self.state.interval = seconds
        self.query_one(Header).redraw()

    def do_pane(self, number: str) -> None:
        """Focus the pane of a number; zoom it if it has the focus."""
        wanted = next((w for w in self.panes if str(w.pane.number) == number), None)
        if wanted is None:
            return
        if self.state.focused == wanted.pane.name:
            self.do_zoom()
        else:
            self.focus_pane(wanted)

    def do_next_pane(self) -> None:
        """Focus the next pane."""
        self._step_pane(1)

    def do_previous_pane(self) -> None:
        """Focus the pane before."""
        self._step_pane(-1)

    def _step_pane(self, step: int) -> None:
        if self.pane is not None:
            self.focus_pane(self.panes[(self.panes.index(self.pane) + step) % len(self.panes)])

    def do_zoom(self) -> None:
        """The pane in focus alone, and back."""
        self._zoom(not self.state.zoomed)

    def _zoom(self, on: bool) -> None:
        if self.pane is not None and not on:
            if self.pane.leave():
                self._focus_flow()
            self.pane.rest()
        self.state.zoomed = on
        self.relayout()

    def do_enter(self) -> None:
        """The page of the row under the cursor."""
        if self.pane is not None and self.pane.enter():
            self._focus_flow()
            self._zoom(True)

    def do_back(self) -> None:
        """Leave whatever was entered last; clear the filter at the end."""
        if self.filter_bar.has_class("open"):
            self._close_filter()
            self.run_worker(self._filter(""), group="filter")
        elif self.pane is not None and self.pane.leave():
            self._focus_flow()
            self._zoom(False)
        elif self.state.zoomed:
            self._zoom(False)
        elif self.pane is not None and self.pane.moved:
            self.pane.rest()
            self.pane.redraw()
        elif (
            self.state.filter_word or self.state.filter_text or (self.state.shown and self.state.shown.filter)
        ):
            self.run_worker(self._filter(""), group="filter")

    def _focus_flow(self) -> None:
        """Tell the other end which flow's page is open."""
        if self.table is not None and "focus" in self.commands.offers:
            self.commands.set_focus(self.table.entered or 0)

    def do_down(self) -> None:
        """Cursor down."""
        self._move(0, 1)

    def do_up(self) -> None:
        """Cursor up."""
        self._move(0, -1)

    def do_left(self) -> None:
        """Cursor left: x counts back from the newest column."""
        self._move(1, 0)

    def do_right(self) -> None:
        """Cursor right."""
        self._move(-1, 0)

    def do_page_down(self) -> None:
        """A page down."""
        self._move(0, self.pane.page() if self.pane else 0)

    def do_page_up(self) -> None:
        """A page up."""
        self._move(0, -self.pane.page() if self.pane else 0)

    def do_top(self) -> None:
        """The first row."""
        if self.pane is not None:
            self.pane.move_to(bottom=False)

    def do_bottom(self) -> None:
        """The last row."""
        if self.pane is not None:
            self.pane.move_to(bottom=True)

    def _move(self, x: int, y: int) -> None:
        if self.pane is not None:
            self.pane.move(x, y)

    def do_sort(self) -> None:
        """Choose a column."""
        table = self.table
        if table is None:
            return

        def chosen(key: str | None) -> None:
            column = next((c for c in table.table.columns if c.key == key), None)
            if column is not None and column.key != table.column.key:
                table.sort_by(column)

        self.push_screen(SortScreen(SortPage(self.state, table.table, table.column.key)), chosen)

    def do_reverse(self) -> None:
        """The other way round."""
        if self.table is not None:
            self.table.sort_by(self.table.column)

    def do_sort_left(self) -> None:
        """By the column on the left."""
        if self.table is not None:
            self.table.sort_neighbour(-1)

    def do_sort_right(self) -> None:
        """By the column on the right."""
        if self.table is not None:
            self.table.sort_neighbour(1)

    def do_copy(self) -> None:
        """The row to the clipboard."""
        text = self.table.row_text() if self.table is not None else ""
        if text:
            self.copy_to_clipboard(text)
            self.say("copied the row", GOOD)

    def do_units(self) -> None:
        """Bits or bytes."""
        self.state.bits = not self.state.bits
        self.redraw()

    def do_names(self) -> None:
        """Names or addresses."""
        self.state.names = None if self.state.names else self.commands.name_of
        self._watch_names()
        self.redraw()

    def _watch_names(self) -> None:
        """While names are shown, draw those that come between two frames."""
        if self._names_timer is not None:
            self._names_timer.stop()
            self._names_timer = None
        if self.state.names:
            self._names_timer = self.set_interval(_NAMES_SECONDS, self._look_for_names)

    def _look_for_names(self) -> None:
        known, self._names_known = self._names_known, self.commands.names_changed
        if known != self._names_known:
            self.redraw()

    async def do_reset(self) -> None:
        """Start anew."""
        await self.commands.reset()
        self.state.clear()
        self.say("started anew", GOOD)
        self.redraw()

    async def do_snapshot(self) -> None:
        """Write what is shown."""
        if self.state.shown is not None:
            self.commands.look = self.look()
            self.say(f"wrote {clean(await self.commands.snapshot(self.state.frames()))}", GOOD)

    def look(self) -> Look:
        """How the screen is being looked at; the order of the first table."""
        table = next((w for w in self.panes if isinstance(w, TablePane)), None)
        text = self.state.filter_text or (self.state.shown.filter if self.state.shown else "")
        return Look(
            sort=table.column.key if table else "",
            reverse=table.reversed if table else False,
            filter=self.state.filter_word or text,
            focus=(table.entered or 0) if table else 0,
            pane=self.state.focused,
            zoomed=self.state.zoomed,
        )

    async def do_record(self) -> None:
        """Start or stop recording."""
        on = not self.commands.recording
        where = await self.commands.record(on)
        self.say(f"recording to {clean(where)}" if on else f"recorded {clean(where)}", GOOD)
        self.query_one(Header).redraw()

    def export_screenshot(self, *, title: str | None = None, simplify: bool = False) -> str:
        """The toolkit's SVG without what it would fetch: a font from a server, whenever someone looks at the file."""
        style, end, drawn = super().export_screenshot(title=title, simplify=simplify).partition("</style>")
        return _FETCHED.sub("", style) + end + drawn

    def do_screenshot(self) -> None:
        """An SVG beside where one stands; never over another file."""
        name = time.strftime("nettop-%Y%m%d-%H%M%S.svg")
        try:
            with open(files.create(name), "w", encoding="utf-8") as file:
                file.write(self.export_screenshot(title="nettop"))
        except NettopError as error:
            self.say(f"no screenshot: {error.message}", WARN)
        except OSError as error:
            self.say(f"can't write {name}: {error.strerror}", WARN)
        else:
            self.say(f"wrote {name}", GOOD)

    def do_palette(self) -> None:
        """Everything by name."""
        self.action_command_palette()

    def do_suspend(self) -> None:
        """Back to the shell."""
        self.action_suspend_process()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: every action of the table, and themes."""
        for action in self.actions:
            if action.id in ("pane", "palette", "resume"):
                continue
            yield SystemCommand(action.label.capitalize(), action.help, self._runner(action.id))
        for widget in self.panes:
            yield SystemCommand(
                f"Pane: {widget.pane.title}",
                f"focus {widget.pane.title}",
                lambda w=widget: self.focus_pane(w),
            )
        yield SystemCommand("Theme", "choose another theme", self.action_change_theme)

    def _runner(self, name: str):  # type: ignore[no-untyped-def]  # the toolkit takes any callable
        return lambda: self.call_later(self.action_do, name)

    # --- filter

    @property
    def filter_bar(self) -> FilterBar:
        """The bar, open or not."""
        return self.screen_stack[0].query_one(FilterBar)

    def do_filter(self) -> None:
        """Open the bar."""
        bar = self.filter_bar
        field = bar.query_one(Input)
        shown = self.state.shown
        text = self.state.filter_word or self.state.filter_text or (shown.filter if shown else "")
        field.value = clean(text, 4096)
        field.cursor_position = len(field.value)
        bar.add_class("open")
        field.focus()

    def _close_filter(self) -> None:
        bar = self.filter_bar
        bar.remove_class("open", "wrong")
        self.screen_stack[0].set_focus(None)

    def on_input_changed(self, event: Input.Changed) -> None:
        """A plain word is looked for while it is written."""
        if not self.filter_bar.has_class("open"):
            return
        self.filter_bar.remove_class("wrong")
        word = event.value.strip()
        self.state.filter_word = self._word if re.search(r"\s", word) else word
        self.redraw()

    async def on_input_submitted(self, event: Input.Submitted) -> None:
        """Apply it; with an error the bar stays open and says so."""
        if await self._filter(event.value.strip()):
            self._close_filter()

    async def _filter(self, text: str) -> bool:
        try:
            result = await self.commands.set_filter(text)
        except NettopError as error:
            result_error = f"{error.message}; {error.hint}" if error.hint else error.message
        else:
            result_error = result.error
            if not result_error:
                self._word = result.word
                self.state.filter_text = "" if result.word else result.shown or text
        if result_error:
            bar = self.filter_bar
            bar.query_one("#problem", Static).update(clean(result_error))
            bar.add_class("wrong")
        self.state.filter_word = self._word  # not what was tried on the way
        self.redraw()
        return not result_error

    # --- mouse

    def on_pane_widget_picked(self, event: PaneWidget.Picked) -> None:
        """A pane was clicked."""
        self.focus_pane(event.widget)
        if event.enter:
            self.do_enter()

    async def on_footer_pressed(self, event: Footer.Pressed) -> None:
        """A key at the foot was clicked."""
        await self.action_do({"resume": "pause"}.get(event.action, event.action))


def _depth(no_color: bool, system: str | None) -> theme.Depth:
    """How many colours there are to work with."""
    if no_color or system is None:
        return "none"
    return "full" if system == "truecolor" else "256" if system == "256" else "sixteen"


def run(
    source: AsyncIterator[Frame],
    probes: Sequence[Probe],
    options: Options | None = None,
    commands: Commands | None = None,
) -> int:
    """Show frames until the user leaves or they end in an error; the exit code.

    Raises NettopError where the source did, with the terminal as it was before.
    """
    app = NettopApp(source, probes, options, commands)
    result = app.run()
    if app.failure is not None:
        raise app.failure
    return int(result if result is not None else app.return_code or 0)


async def run_async(
    source: AsyncIterator[Frame],
    probes: Sequence[Probe],
    options: Options | None = None,
    commands: Commands | None = None,
) -> int:
    """As ``run``, inside a loop that runs already."""
    app = NettopApp(source, probes, options, commands)
    result = await app.run_async()
    if app.failure is not None:
        raise app.failure
    return int(result if result is not None else app.return_code or 0)

"""The application: takes frames as they come, and owns what is neither a screen's nor a pane's: themes, the palette."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import ClassVar

from textual.actions import ActionParseResult
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.driver import Driver
from textual.screen import Screen

from nettop.core.charset import draws_unicode
from nettop.core.errors import ExitCode, NettopError
from nettop.core.frame import Frame
from nettop.core.units import clean
from nettop.probes.base import Probe
from nettop.record import files
from nettop.render.canvas import GOOD, WARN
from nettop.settings import Settings
from nettop.ui import theme
from nettop.ui.body import make_panes
from nettop.ui.commands import Commands
from nettop.ui.edges import Footer
from nettop.ui.keys import bindings, keymap, rebound
from nettop.ui.main_screen import MainScreen, NewFrame, error_text
from nettop.ui.replay import ReplayScreen
from nettop.ui.state import State
from nettop.ui.textual_private import Terminal, Written

log = logging.getLogger(__name__)

# Of an SVG's head: fonts with addresses, and who has made it.  A Fira Code that is installed is used all the same.
_FETCHED = re.compile(r"\s*(@font-face\s*\{[^}]*\}|<!--.*?-->)", re.DOTALL)


class NettopApp(App[int], inherit_bindings=False):
    """The screen.  ``failure`` is what made the source of frames end, if anything did."""

    CSS_PATH = "app.tcss"
    TITLE = "nettop"
    ESCAPE_TO_MINIMIZE = False
    AUTO_FOCUS = None
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "quit", show=False, priority=True),
        *bindings("palette", "screenshot", "suspend"),
    ]

    def __init__(
        self,
        source: AsyncIterator[Frame],
        probes: Sequence[Probe],
        settings: Settings | None = None,
        commands: Commands | None = None,
        driver_class: type[Driver] = Terminal,
    ) -> None:
        self.settings = settings = settings or Settings()
        self.commands = commands or Commands()
        keys = {
            action: [name.strip() for name in names.split(",")] for action, names in settings.keys.items()
        }
        self.actions = rebound(keys, self.commands.offers)
        self.written = Written()
        self.source = source
        self.failure: NettopError | None = None
        self.probes = [p for p in probes if not settings.probes or p.name in settings.probes]
        no_color = "NO_COLOR" in os.environ  # Textual takes it out of the environment
        super().__init__(driver_class=driver_class, ansi_color=None)
        self.depth = theme.depth_of(no_color, self.console.color_system)
        self.register_theme(theme.NETTOP)
        self.register_theme(theme.SIXTEEN)
        self.state = State(
            theme.Palette(theme.NETTOP.to_color_system().generate(), self.depth),
            span_ns=int(settings.history * 1e9),
            interval=settings.delay,
            filter_word=settings.word,
            bits=settings.bits,
            names=self.commands.names.of if settings.names and "names" in self.commands.offers else None,
            unicode=draws_unicode(settings.charset),
            zoomed=self.commands.look.zoomed,
        )
        self.main: MainScreen

    def get_default_screen(self) -> Screen[None]:
        panes = make_panes(self.state, self.probes, self.settings.sort, self.commands.look)
        parts = (self.state, panes, self.probes, self.actions, self.commands, self.written)
        replay = self.commands.replay
        self.main = ReplayScreen(replay, *parts) if replay else MainScreen(*parts)
        return self.main

    def on_mount(self) -> None:
        self.set_keymap(keymap(self.actions))
        wanted = self.settings.theme
        if self.depth in ("sixteen", "none"):
            self.theme = theme.SIXTEEN.name
        else:
            self.theme = wanted if wanted in self.available_themes else theme.NETTOP.name
        if wanted and wanted not in self.available_themes:
            self.main.say(f"no theme is called {clean(wanted)}", WARN)
        self.theme_changed_signal.subscribe(self, lambda _: self._restyle())
        # The shell wrote over the screen meanwhile: what did not change since must be painted too.
        self.app_resume_signal.subscribe(self, lambda _: self.screen.refresh(layout=True))
        self._restyle()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            with suppress(ValueError, RuntimeError):  # not in the main thread
                loop.add_signal_handler(number, self.exit, int(ExitCode.OK))
        self.run_worker(self._follow(), name="frames", exclusive=True)

    def _restyle(self) -> None:
        depth = self.depth
        if depth != "none" and self.current_theme.ansi:
            depth = "sixteen"
        self.state.palette = theme.Palette(self.theme_variables, depth, self.theme)
        self.main.redraw()

    async def _follow(self) -> None:
        """Take frames as they come; when they are drawn is up to the screen."""
        try:
            async for frame in self.source:
                self.main.take(frame)
        except NettopError as error:
            self.failure = error
            self.exit(int(error.code))
        except Exception as error:
            log.exception("the source of frames")
            self.failure = NettopError(
                f"{type(error).__name__}: {error}", "--log FILE keeps the details; please report it"
            )
            self.exit(int(ExitCode.FAILURE))
        else:
            self.state.ended = True
            self.main.post_message(NewFrame())

    # --- actions

    async def run_action(
        self,
        action: str | ActionParseResult,
        default_namespace: DOMNode | None = None,
        namespaces: Mapping[str, DOMNode] | None = None,
    ) -> bool:
        """As Textual's, by key or otherwise; what the rest of the program refuses is said, not raised."""
        try:
            return await super().run_action(action, default_namespace, namespaces)
        except NettopError as error:
            self.main.say(error_text(error), WARN)
            return True

    async def action_perform(self, action: str) -> None:
        """Run an action as if its key had been pressed in the current pane: the first above it that has it."""
        if len(self.screen_stack) > 1:
            return
        for node in (self.main.body.current or self.main.body).ancestors_with_self:
            if await self.run_action(action, node):
                return

    async def on_footer_pressed(self, message: Footer.Pressed) -> None:
        await self.action_perform(message.action)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        for action in self.actions:
            if action.id not in ("pane", "palette", "resume"):
                run = partial(self.call_later, self.action_perform, action.id)
                yield SystemCommand(action.label.capitalize(), action.help, run)
        for pane in self.main.body.panes:
            title = pane.pane.title
            yield SystemCommand(f"Pane: {title}", f"focus {title}", partial(pane.focus, scroll_visible=False))
        yield SystemCommand("Theme", "choose another theme", self.action_change_theme)

    async def action_quit(self) -> None:
        self.exit(int(ExitCode.OK))

    action_palette = App.action_command_palette

    def action_suspend(self) -> None:
        self.action_suspend_process()

    def action_screenshot(self, filename: str | None = None, path: str | None = None) -> None:
        """An SVG in the current directory; never over another file."""
        name = filename or time.strftime("nettop-%Y%m%d-%H%M%S.svg")
        try:
            with open(files.create(name), "w", encoding="utf-8") as file:
                file.write(self.export_screenshot(title="nettop"))
        except NettopError as error:
            self.main.say(f"no screenshot: {error.message}", WARN)
        except OSError as error:
            self.main.say(f"can't write {name}: {error.strerror}", WARN)
        else:
            self.main.say(f"wrote {name}", GOOD)

    def export_screenshot(self, *, title: str | None = None, simplify: bool = False) -> str:
        """Textual's SVG without what it would fetch: a font from a server, whenever someone looks at the file."""
        style, end, drawn = super().export_screenshot(title=title, simplify=simplify).partition("</style>")
        return _FETCHED.sub("", style) + end + drawn


def run(source: AsyncIterator[Frame], probes: Sequence[Probe], settings: Settings, commands: Commands) -> int:
    """Show frames until the user leaves or they end in an error; the exit code.

    Raises NettopError where the source did, with the terminal as it was before.
    """
    app = NettopApp(source, probes, settings, commands)
    result = app.run()
    if app.failure is not None:
        raise app.failure
    return int(result if result is not None else app.return_code or 0)

"""The application under test: started on made-up frames, driven by keys, read as text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import frames as made_up
from textual.pilot import Pilot

from nettop.core.errors import NettopError
from nettop.core.frame import Frame
from nettop.probes.base import Probe
from nettop.settings import Settings
from nettop.ui.app import NettopApp
from nettop.ui.commands import Commands, Filtered
from nettop.ui.main_screen import MainScreen
from nettop.ui.table import TablePane


class Names:
    """Reverse DNS of one address."""

    changed = 0

    def of(self, address: bytes) -> str:
        return "web.example" if address.endswith(bytes([203, 0, 113, 7])) else ""


class Heard(Commands):
    """Serves everything, and remembers what was asked."""

    offers = frozenset({"interval", "focus", "filter", "names", "reset", "snapshot", "record"})

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._recording = ""
        self.names: Any = Names()

    @property
    def recording(self) -> str:
        return self._recording

    def set_interval(self, seconds: float) -> None:
        self.calls.append(("interval", seconds))

    def set_focus(self, flow: int) -> None:
        self.calls.append(("focus", flow))

    async def set_filter(self, text: str) -> Filtered:
        self.calls.append(("filter", text))
        if text == "prot tcp":
            return Filtered(error="syntax error in filter expression")
        return Filtered() if " " in text or not text else Filtered(word=text)

    async def reset(self) -> None:
        self.calls.append(("reset",))

    async def snapshot(self, frames: list[Frame]) -> str:
        self.calls.append(("snapshot", frames[-1].time_ns))
        return "nettop.json"

    async def record(self, on: bool) -> str:
        self.calls.append(("record", on))
        self._recording = "nettop.ndjson" if on else ""
        return "nettop.ndjson"


class Refusing(Heard):
    """Can't write."""

    async def snapshot(self, frames: list[Frame]) -> str:
        raise NettopError("can't write nettop.json", "is the disk full?")


class Feed:
    """A source of frames that a test gives one by one."""

    def __init__(self, frames: Sequence[Frame] = ()) -> None:
        self._queue: asyncio.Queue[Frame | Exception | None] = asyncio.Queue()
        for frame in frames:
            self.give(frame)

    def give(self, frame: Frame | Exception | None) -> None:
        self._queue.put_nowait(frame)

    async def frames(self) -> AsyncIterator[Frame]:
        while (frame := await self._queue.get()) is not None:
            if isinstance(frame, Exception):
                raise frame
            yield frame


class Driven:
    """A running application and what a test does with it."""

    def __init__(self, app: NettopApp, pilot: Pilot[int], feed: Feed, heard: Commands) -> None:
        self.app, self.pilot, self.feed, self.heard = app, pilot, feed, heard

    @property
    def main(self) -> MainScreen:
        return self.app.main

    @property
    def flows(self) -> TablePane:
        return next(pane for pane in self.main.body.panes if isinstance(pane, TablePane))

    def under_cursor(self) -> str:
        """The remote end of the flow that the cursor is on."""
        return self.line("▸ ").split("▸")[1].split()[2]

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def give(self, *frames: Frame | Exception | None) -> None:
        for frame in frames:
            self.feed.give(frame)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(3):
            await self.pilot.pause()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what comes by itself, 20 s at most."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, self.text()
            await self.pilot.pause(0.02)
        await self.settle()

    def rows(self) -> list[str]:
        """The screen as it is, line by line."""
        return [strip.text for strip in self.app.screen._compositor.render_strips()]

    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows()) + "\n"

    def line(self, part: str) -> str:
        """The first line that holds a text."""
        found = [row for row in self.rows() if part in row]
        assert found, f"no line has {part!r} in\n{self.text()}"
        return found[0]


@asynccontextmanager
async def running(
    width: int = 120,
    height: int = 40,
    frames: Sequence[Frame] | None = None,
    heard: Commands | None = None,
    options: Settings | None = None,
    probes: Sequence[Probe] = made_up.PROBES,
) -> AsyncIterator[Driven]:
    """The application on a terminal of this size, with what it had from its source drawn."""
    feed = Feed(made_up.frames(5) if frames is None else frames)
    heard = heard or Heard()
    app = NettopApp(feed.frames(), probes, options, heard)
    async with app.run_test(size=(width, height)) as pilot:
        driven = Driven(app, pilot, feed, heard)
        await driven.settle()
        yield driven

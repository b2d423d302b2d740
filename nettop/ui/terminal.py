"""The terminal as the toolkit's driver has it, and what that lacks: it notices a hang-up, and counts what it writes."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import IO, Any

from textual.drivers.headless_driver import HeadlessDriver
from textual.drivers.linux_driver import LinuxDriver

from nettop.model import Frame

_HANG_UP = select.POLLHUP | select.POLLERR | select.POLLNVAL
_WINDOW = 10.0  # seconds over which a rate is taken


class Written:
    """Bytes that went to the terminal, and how many a second."""

    def __init__(self) -> None:
        self.total = 0
        self._recent: deque[tuple[float, int]] = deque()

    def add(self, size: int, now: float) -> None:
        """So many more."""
        self.total += size
        self._recent.append((now, size))
        self._forget(now)

    def rate(self, now: float) -> float:
        """Bytes a second in the last ten seconds."""
        self._forget(now)
        return sum(size for _, size in self._recent) / _WINDOW

    def _forget(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > _WINDOW:
            self._recent.popleft()


class _Safe:
    """A file that swallows what a terminal that has gone does not take; the toolkit's writer would die of it, and
    whoever has more to write would wait for ever."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()


class Terminal(LinuxDriver):
    """The toolkit's driver.

    A terminal can go without a signal: SIGHUP is for the session that it controls, and under ``script``, ``expect`` or
    a container's runtime that may be another one.  The other side's end is still seen on the descriptor.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.written = Written()
        drawn = next(
            (f for f in (sys.__stderr__, sys.__stdout__) if f is not None and f.isatty()), sys.__stderr__
        )
        self._file: Any = _Safe(drawn) if drawn is not None else None
        self._watching = False

    def write(self, data: str) -> None:
        """To the terminal, counted."""
        self.written.add(len(data.encode("utf-8", "replace")), time.monotonic())
        super().write(data)

    def start_application_mode(self) -> None:
        """Also when coming back from the shell."""
        super().start_application_mode()  # type: ignore[no-untyped-call]
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._watch, name="nettop-terminal", daemon=True).start()

    def run_input_thread(self) -> None:
        """Read keys; at a hang-up there is nothing to read, which is no reason to try for ever."""
        with contextlib.suppress(OSError):
            super().run_input_thread()

    def _watch(self) -> None:
        """Wait, without ever being woken by a key, until the other side is gone."""
        poll = select.poll()
        poll.register(self.fileno, 0)
        while True:
            if any(event & _HANG_UP for _, event in poll.poll()):
                break
        self.exit_event.set()  # reading keys would not end, and not sleep either
        with contextlib.suppress(RuntimeError):  # the loop is closed: the screen ends already
            self._loop.call_soon_threadsafe(self._app.exit, 0)


class Scale(HeadlessDriver):
    """No terminal at all: weighs what one would get."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.written = Written()

    @property
    def is_headless(self) -> bool:
        """The toolkit writes nothing where it is."""
        return False

    def write(self, data: str) -> None:
        """Weigh it."""
        self.written.add(len(data.encode("utf-8", "replace")), time.monotonic())

    def flush(self) -> None:
        """Nothing waits."""


def written_by(driver: object) -> Written | None:
    """What a driver of ours has counted."""
    return driver.written if isinstance(driver, Terminal | Scale) else None


def terminal_size() -> tuple[int, int]:
    """Columns and rows of the terminal, or of a usual one where there is none."""
    for fd in (1, 2, 0):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(fd)
            if size.columns and size.lines:
                return size.columns, size.lines
    return 120, 40


async def bytes_a_frame(frames: Sequence[Frame], size: tuple[int, int]) -> float:
    """What the screen would write to a terminal for each of these frames but the first, which paints everything."""
    import asyncio

    from nettop.probes.base import all_probes
    from nettop.ui.app import NettopApp

    drawn, go_on = asyncio.Event(), asyncio.Event()

    async def source() -> AsyncIterator[Frame]:
        for frame in frames:
            yield frame
            drawn.set()
            await go_on.wait()
            go_on.clear()

    def total() -> int:
        written = written_by(app._driver)
        return written.total if written else 0

    app = NettopApp(source(), tuple(all_probes().values()))
    app.driver_class = Scale
    task = asyncio.create_task(app.run_async(size=size, mouse=False))
    first = 0
    try:
        for number in range(len(frames)):
            await asyncio.wait_for(drawn.wait(), 10)
            drawn.clear()
            # Until no more comes: on a busy machine painting takes longer than two of the toolkit's ticks.
            before = -1
            while before != total():
                before = total()
                await asyncio.sleep(0.05)
            if number == 0:
                first = before
            go_on.set()
        whole = total()
    finally:
        app.exit()
        await task
    return (whole - first) / max(len(frames) - 1, 1)

"""What nettop uses of Textual that is not its public API: all of it is here, and NEEDED names it for a test.

pyproject.toml has the range of versions with which it is known to work.  The drivers are public as ``driver_class``
alone; what they consist of is not.
"""

from __future__ import annotations

import contextlib
import select
import sys
import threading
import time
from collections import deque
from typing import IO, Any

from textual.drivers.headless_driver import HeadlessDriver
from textual.drivers.linux_driver import LinuxDriver
from textual.screen import Screen

#: Class, attribute, what for.  Of a driver, also what its __init__ makes.
NEEDED = (
    (Screen, "_styles_cache", "memory of closed pages is given back"),
    (LinuxDriver, "_app", "the screen ends when its terminal is gone"),
    (LinuxDriver, "_loop", "the same, from a thread"),
    (LinuxDriver, "_file", "a terminal that is gone does not end the writing thread"),
    (LinuxDriver, "fileno", "a hang-up is seen"),
    (LinuxDriver, "exit_event", "reading keys ends at a hang-up"),
    (LinuxDriver, "run_input_thread", "reading keys ends at a hang-up"),
    (LinuxDriver, "start_application_mode", "a hang-up is looked for, also after a suspend"),
    (LinuxDriver, "write", "bytes to the terminal are counted"),
    (HeadlessDriver, "write", "the same without a terminal"),
    (HeadlessDriver, "is_headless", "Textual draws, though there is no terminal"),
    (HeadlessDriver, "flush", "nothing to flush without a terminal"),
)

_WINDOW = 10.0  # seconds over which a rate is taken
_HANG_UP = select.POLLHUP | select.POLLERR | select.POLLNVAL


def forget_styles(screen: Screen[Any]) -> None:
    """Empty the cache of rendered lines, which Textual keeps for closed screens too."""
    screen._styles_cache.clear()


class Written:
    """Bytes that went to the terminal, and how many a second."""

    def __init__(self) -> None:
        self.total = 0
        self._recent: deque[tuple[float, int]] = deque()

    def add(self, size: int, now: float) -> None:
        self.total += size
        self._recent.append((now, size))
        self._forget(now)

    def rate(self, now: float) -> float:
        self._forget(now)
        return sum(size for _, size in self._recent) / _WINDOW

    def _forget(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > _WINDOW:
            self._recent.popleft()


def _count(app: Any, data: str) -> None:
    written: Written = app.written
    written.add(len(data.encode("utf-8", "replace")), time.monotonic())


class _Safe:
    """A file that swallows what a terminal that has gone does not take.

    Textual's writing thread would die of it, and what writes next would block for ever.
    """

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
    """Textual's driver; it notices a hang-up, and counts in the app's ``written``.

    A terminal can go without a signal: SIGHUP is for the session that it controls, and under ``script``, ``expect`` or
    a container's runtime that may be another one.  The other side's end is still seen on the descriptor.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        drawn = next(
            (f for f in (sys.__stderr__, sys.__stdout__) if f is not None and f.isatty()), sys.__stderr__
        )
        self._file: Any = _Safe(drawn) if drawn is not None else None
        self._watching = False

    def write(self, data: str) -> None:
        _count(self._app, data)
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


class NoTerminal(HeadlessDriver):
    """No terminal at all: counts what one would get."""

    @property
    def is_headless(self) -> bool:
        """Textual writes nothing where it is."""
        return False

    def write(self, data: str) -> None:
        _count(self._app, data)

    def flush(self) -> None:
        """Nothing to flush."""

"""nettop's screen in a pseudo-terminal: what it is sent, without escape sequences."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from lab import Lab
from lab.namespace import Endpoint
from lab.program import REPOSITORY, command

_POKE_S = 0.4
ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_][^\x1b]*\x1b\\|[@-Z\\-_])"
)


class Terminal:
    """A nettop that runs in a terminal of 120x40 while the block lasts, and is killed at its end if it must be."""

    def __init__(
        self,
        lab: Lab,
        end: Endpoint,
        *args: str,
        stdin: int | None = None,
        env: dict[str, str] | None = None,
        cwd: Path = REPOSITORY,
    ) -> None:
        self._lab = lab
        self._end = end
        self._args = args
        self._stdin = stdin
        self._env = env or {}
        self._cwd = cwd
        self.text = ""
        self.sent = b""  # all of it, escape sequences too
        self.process: subprocess.Popen[bytes]
        self._master = -1

    def __enter__(self) -> "Terminal":
        self._lab.check(self._end.ns, self._end.name)
        self._master, slave = pty.openpty()
        self.resize(120, 40)

        def become_leader() -> None:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            self._end.ns.argv(command(self._end.name, *self._args)),
            stdin=slave if self._stdin is None else self._stdin,
            stdout=slave,
            stderr=slave,
            preexec_fn=become_leader,
            # COLUMNS and LINES, which a test runner may have set, would be believed before the terminal itself.
            env={
                **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")},
                "TERM": "xterm-256color",
                "LC_ALL": "C.UTF-8",
                **self._env,
            },
            cwd=self._cwd,
        )
        os.close(slave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self.hang_up()

    @property
    def pid(self) -> int:
        return self.process.pid

    def running(self) -> bool:
        return self.process.poll() is None

    def resize(self, width: int, height: int) -> None:
        """The terminal's size; the kernel sends SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def hang_up(self) -> None:
        """Close the terminal, as a window that is closed or a connection that breaks."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def wait(self, *, timeout: float = 10.0) -> int:
        """The exit code; what it still writes is read meanwhile."""
        end = time.monotonic() + timeout
        while self.running() and time.monotonic() < end:
            self._read(0.05)
        code = self.process.wait(max(end - time.monotonic(), 0.1))
        while self._read(0):
            pass
        return code

    def read_until(
        self, words: str, *, poke: Callable[[], object] | None = None, timeout: float = 20.0
    ) -> str:
        """What was sent since the last call, up to these words; `poke` is called now and then meanwhile."""
        end, next_poke = time.monotonic() + timeout, time.monotonic() + _POKE_S
        while words not in self.text:
            if time.monotonic() > end or not self.running():
                raise AssertionError(f"{words!r} did not come: {self.text[-3000:]!r}")
            self._read(0.1)
            if poke and time.monotonic() > next_poke:
                poke()
                next_poke = time.monotonic() + _POKE_S
        before, _, self.text = self.text.partition(words)
        return before

    def skip(self, timeout: float) -> None:
        """Read what there is, and forget it."""
        self._read(timeout)
        self.text = ""

    def _read(self, timeout: float) -> bool:
        if self._master < 0:
            time.sleep(timeout)
            return False
        if not select.select([self._master], [], [], timeout)[0]:
            return False
        with suppress(OSError):  # EIO: it has ended
            sent = os.read(self._master, 65536)
            self.sent += sent
            self.text += ESCAPE.sub("", sent.decode(errors="replace"))
            return True
        time.sleep(timeout)
        return False

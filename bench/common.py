"""What the rows of the report share: tables, spreads, CPU time of a program with all its processes, a terminal."""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import signal
import statistics
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT), str(ROOT / "tests")]

from lab.bpf import family  # noqa: E402

from nettop.netdev.counters import cpu_ns, resident_bytes  # noqa: E402


@dataclass(frozen=True)
class Options:
    """How long to measure: ``quick`` for a look, otherwise for figures to be published."""

    quick: bool = False
    repeats: int = 0  # 0: as each row thinks right

    def times(self, usual: int, quick: int = 1) -> int:
        """How many interleaved repeats."""
        return self.repeats or (quick if self.quick else usual)

    def seconds(self, usual: float, quick: float) -> float:
        return quick if self.quick else usual


@dataclass
class Table:
    """One table of the report, with the command that makes it and what it takes to read it."""

    title: str
    command: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    words: str = ""
    apart: Sequence[int] = ()  # columns of the terminal's table that the page leaves out
    facts: dict[str, float] = field(default_factory=dict)  # what the report holds against its aims

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", f"    {self.command}", ""]
        if self.words:
            lines += [self.words.strip(), ""]
        shown = [i for i in range(len(self.columns)) if i not in self.apart]
        lines += ["| " + " | ".join(row[i] for i in shown) + " |" for row in [self.columns, *self.rows]]
        lines.insert(-len(self.rows), "|" + "---|" * len(shown))
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """The same for a terminal."""
        rows = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([self.title, *lines]) + "\n"


Measure = Callable[[Options], Iterable[Table]]


def run(about: str | None, measure: Measure) -> None:
    """The command line of one row by itself."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="shorter, for a look")
    parser.add_argument("--repeats", type=int, default=0, help="interleaved repeats")
    given = parser.parse_args()
    for table in measure(Options(given.quick, given.repeats)):
        print(table.text(), flush=True)


def spread(values: Sequence[float], form: str = ".0f") -> str:
    """Median, and in brackets least and most where there are several."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):{form}}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}}–{max(values):{form}})"


def say(what: str) -> None:
    """Progress, beside the figures."""
    print(f"bench: {time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def cpu_of(pid: int) -> int:
    """CPU time so far of a process and all its children that live, in ns."""
    return sum(cpu_ns(each) for each in family(pid))


def memory_of(pid: int) -> list[int]:
    """Resident bytes of a process and of each of its children."""
    return [resident_bytes(each) for each in family(pid)]


class Terminal:
    """A program on a pseudo-terminal; what it writes is counted, and the first megabyte kept."""

    def __init__(self, argv: Sequence[str], width: int = 120, height: int = 40) -> None:
        self.written = 0
        self.head = b""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
                for fd in (0, 1, 2):
                    os.dup2(theirs, fd)
                os.environ.update(
                    TERM="xterm-256color", COLORTERM="truecolor", LC_ALL="C.UTF-8", PYTHONPATH=str(ROOT)
                )
                os.environ.pop("NO_COLOR", None)
                os.execvp(argv[0], [*argv])
            finally:
                os._exit(127)
        os.close(theirs)
        self._ours = ours
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        with suppress(OSError):  # the program has ended
            while data := os.read(self._ours, 65536):
                self.written += len(data)
                if len(self.head) < 1 << 20:
                    self.head += data

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def ended(self, seconds: float) -> bool:
        """Wait for its end, at most this long."""
        until = time.monotonic() + seconds
        while self.pid and not os.waitpid(self.pid, os.WNOHANG)[0]:
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        self.pid = 0
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it by SIGTERM, and by SIGKILL after five seconds."""
        if not self.ended(0):
            os.kill(self.pid, signal.SIGTERM)
        if not self.ended(5):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._ours)


def nettop(*arguments: str) -> list[str]:
    """nettop from this checkout, as a command line."""
    return [sys.executable, "-m", "nettop", *arguments]

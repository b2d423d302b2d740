"""The program on a terminal of its own (a pty): hang-up, suspending, size, and what is written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import frames
import pytest

from nettop.core.errors import ExitCode
from nettop.ui.frame_bytes import bytes_a_frame
from nettop.ui.textual_private import Written

ROOT = Path(__file__).resolve().parents[2]
RECORDING = ROOT / "tests" / "unit" / "recordings" / "nettop-1.ndjson.gz"
SECONDS = 30.0  # a busy machine


class Screen:
    """nettop on a pty, and all that it wrote."""

    def __init__(self, leader: int, process: subprocess.Popen[bytes]) -> None:
        self.leader, self.process, self.output = leader, process, b""

    def read_until(self, wanted: bytes, since: int = 0) -> None:
        deadline = time.monotonic() + SECONDS
        while wanted not in self.output[since:]:
            assert time.monotonic() < deadline, self.output[-2000:]
            if select.select([self.leader], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.output += os.read(self.leader, 65536)

    def press(self, keys: bytes) -> None:
        os.write(self.leader, keys)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)


@contextmanager
def screen(session: bool, **environment: str) -> Iterator[Screen]:
    """The replay of a recording; ``session``: the pty is its controlling terminal, so a hang-up is a signal."""
    leader, follower = pty.openpty()
    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    unset = ("NO_COLOR", "COLORTERM", "COLUMNS", "LINES", "PYTHONUNBUFFERED")  # buffered, as it is for users
    env = {k: v for k, v in os.environ.items() if k not in unset}
    env |= {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)}
    own = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-m", "nettop", "--replay", str(RECORDING)]
    process = subprocess.Popen(
        [sys.executable, "-c", own, *command] if session else command,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=ROOT,
        env={name: value for name, value in (env | environment).items() if value},
        start_new_session=session,
    )
    os.close(follower)
    shown = Screen(leader, process)
    try:
        yield shown
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(OSError):
            os.close(leader)


@pytest.mark.parametrize("session", [False, True], ids=["without a signal", "with SIGHUP"])
def test_it_ends_when_its_terminal_is_gone(session):
    with screen(session) as shown:
        shown.read_until(b"10.77.1.2")
        os.close(shown.leader)
        assert shown.process.wait(SECONDS) == 0


def test_ctrl_z_stops_it_and_it_comes_back():
    with screen(False) as shown:
        shown.read_until(b"10.77.1.2")
        shown.press(b"\x1a")
        shown.read_until(b"\x1b[?1049l")
        pid, status = os.waitpid(shown.process.pid, os.WUNTRACED)
        assert pid == shown.process.pid
        assert os.WIFSTOPPED(status)
        there = len(shown.output)
        shown.process.send_signal(signal.SIGCONT)
        shown.read_until(b"\x1b[?1049h", there)
        shown.read_until(b"10.77.1.2", there)  # painted anew, though it has not changed
        there = len(shown.output)
        shown.press(b"q")  # which leaves the terminal as it was
        shown.read_until(b"\x1b[?1049l", there)
        shown.read_until(b"\x1b[?25h", there)
        assert shown.process.wait(SECONDS) == 0


def test_it_follows_the_size_of_the_terminal():
    with screen(False) as shown:
        shown.read_until(b"10.77.1.2")
        there = len(shown.output)
        shown.resize(132, 50)
        shown.read_until(b"\x1b[50;", there)  # a line that was not there before
        there = len(shown.output)
        shown.resize(30, 8)
        shown.read_until(b"30x8 here", there)


def colours(output: bytes) -> set[str]:
    """The kinds of colour that escape sequences ask for."""
    found = set()
    for codes in re.findall(rb"\x1b\[([0-9;]*)m", output):
        if kind := re.search(rb"\b[34]8;([25])\b", codes):
            found.add("full" if kind[1] == b"2" else "256")
        elif re.search(rb"\b(3[0-7]|9[0-7]|4[0-7])\b", codes):
            found.add("sixteen")
    return found


@pytest.mark.parametrize(
    ("environment", "kind", "ascii_only"),
    [
        ({"COLORTERM": "truecolor"}, "full", False),
        ({}, "256", False),
        ({"LC_ALL": "C"}, "256", True),
        ({"TERM": "xterm"}, "sixteen", False),
        ({"TERM": "linux"}, "sixteen", True),
        ({"NO_COLOR": "1", "COLORTERM": "truecolor"}, "", False),
    ],
)
def test_only_colours_and_letters_that_the_terminal_has_are_sent(environment, kind, ascii_only):
    with screen(False, **environment) as shown:
        shown.read_until(b"10.77.1.2")
        shown.read_until(b"help")
        found = colours(shown.output)
        assert found - {"256"} == {kind} if kind == "full" else found == {kind} - {""}
        assert shown.output.isascii() is ascii_only


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ("", "TERM does not say what terminal this is"),
        ("dumb", "a terminal of the kind dumb cannot be drawn on"),
        ("unknown", "a terminal of the kind unknown cannot be drawn on"),
    ],
)
def test_a_terminal_that_cannot_be_drawn_on_is_said(term, said):
    """On a serial line, in an editor's shell or in CI there are two lines, and no escape sequences."""
    with screen(False, TERM=term) as shown:
        assert shown.process.wait(SECONDS) == ExitCode.USAGE
        first, second = os.read(shown.leader, 65536).decode().splitlines()
    assert "\x1b" not in first + second
    assert said in first
    assert "nettop -b" in second


def test_help_says_what_is_written():
    with screen(False) as shown:
        shown.read_until(b"10.77.1.2")
        shown.press(b"?")
        shown.read_until(b"Session")
        shown.press(b"G")
        shown.read_until(b"written to this terminal")


def test_the_rate_is_that_of_the_last_ten_seconds():
    written = Written()
    written.add(1000, 100.0)
    written.add(500, 104.0)
    assert written.rate(105.0) == 150
    assert written.rate(112.0) == 50
    assert written.rate(130.0) == 0
    assert written.total == 1500


async def test_what_a_frame_writes_is_weighed_without_a_terminal():
    """And is less than painting the screen: only what changes is sent."""
    made = frames.frames(5)
    small, large = [await bytes_a_frame(made, size) for size in ((80, 24), (120, 40))]
    assert 200 < small < 80 * 24 * 10
    assert small < large < 120 * 40 * 10
    again = await bytes_a_frame([made[0]] * 4, (80, 24))
    assert again < small / 4

"""What is drawn with: by the locale that the user has, and by a program started in it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from nettop.core.charset import draws_unicode
from nettop.core.errors import ExitCode

ROOT = Path(__file__).parents[2]
ESCAPE = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_][^\x1b]*\x1b\\|[@-Z\\-_])"
)


@pytest.mark.parametrize(
    ("environment", "unicode"),
    [
        ({}, False),
        ({"LANG": "C"}, False),
        ({"LANG": "POSIX"}, False),
        ({"LC_ALL": "C", "LANG": "de_DE.UTF-8"}, False),
        ({"LC_ALL": "", "LC_CTYPE": "", "LANG": "de_DE.UTF-8"}, True),
        ({"LC_CTYPE": "C", "LANG": "de_DE.UTF-8"}, False),
        ({"LANG": "C.UTF-8"}, True),
        ({"LANG": "xx_YY.utf8@mod"}, True),  # not on this machine
        ({"LANG": "de_DE.ISO-8859-1"}, False),
        ({"LANG": "C.UTF-8", "TERM": "linux"}, False),
    ],
)
def test_by_the_locale(environment, unicode):
    assert draws_unicode("auto", environment) is unicode
    assert draws_unicode("ascii", environment) is False
    assert draws_unicode("unicode", environment) is True


def environment(**changed: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(ROOT), **changed}


@pytest.mark.parametrize(
    ("changed", "words", "ascii_only"),
    [
        ({"LC_ALL": "C"}, (), True),
        ({}, (), True),
        ({"LANG": "C.UTF-8"}, (), False),
        ({"LANG": "C.UTF-8"}, ("--ascii",), True),
        ({"LC_ALL": "C"}, ("--unicode",), False),
    ],
)
def test_text(changed, words, ascii_only):
    """In a process of its own: Python makes UTF-8 of the C locale before any of our code runs."""
    command = [sys.executable, "-m", "nettop", "--demo", "-b", "-n", "1", *words]
    done = subprocess.run(command, capture_output=True, env=environment(**changed), timeout=60, check=True)
    assert done.stdout.isascii() is ascii_only


def screen(seconds: float, *words: str, **changed: str) -> tuple[int | None, bytes]:
    """The demo in a terminal of its own: its exit code, if it ended by itself, and what it drew."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    command = [sys.executable, "-m", "nettop", "--demo", *words]
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env={k: v for k, v in environment(**changed).items() if v or k != "TERM"},
    )
    os.close(slave)
    drawn, end = b"", time.monotonic() + seconds
    while time.monotonic() < end and drawn.count(b"Flows") < 1:
        if select.select([master], [], [], 0.1)[0]:
            try:
                drawn += os.read(master, 1 << 16)
            except OSError:  # it has closed the terminal
                break
    try:
        code = process.wait(0.5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = None
    os.close(master)
    return code, drawn


@pytest.mark.parametrize(
    ("changed", "words", "ascii_only"),
    [
        ({"LC_ALL": "C", "TERM": "xterm-256color"}, (), True),
        ({"LANG": "C.UTF-8", "TERM": "linux"}, (), True),
        ({"LANG": "C.UTF-8", "TERM": "xterm-256color"}, (), False),
    ],
)
def test_the_screen(changed, words, ascii_only):
    code, drawn = screen(30, *words, **changed)
    text = ESCAPE.sub(b"", drawn)
    assert code is None
    assert b"Flows" in text
    assert text.isascii() is ascii_only


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ("", "TERM does not say what terminal this is"),
        ("dumb", "a terminal of the kind dumb cannot be drawn on"),
        ("unknown", "a terminal of the kind unknown cannot be drawn on"),
    ],
)
def test_a_terminal_that_cannot_be_drawn_on_is_said(term, said):
    """Whoever is on a serial line, in an editor's shell or in CI gets two lines, and no escape sequences."""
    code, drawn = screen(20, TERM=term, LANG="C.UTF-8")
    assert code == ExitCode.USAGE
    assert b"\x1b" not in drawn
    lines = drawn.decode().splitlines()
    assert len(lines) == 2
    assert said in lines[0]
    assert "nettop -b" in lines[1]

"""Unicode or ASCII: by the user's locale; tests/ui/test_terminal.py has it on a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nettop.core.charset import draws_unicode

ROOT = Path(__file__).parents[2]


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
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), **changed}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=True)
    assert done.stdout.isascii() is ascii_only

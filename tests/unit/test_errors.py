"""Errors are two lines, and exit codes are a contract."""

from __future__ import annotations

from nettop.core.errors import ExitCode, NettopError


def test_the_exit_codes_are_those_of_the_contract():
    assert {c.name: int(c) for c in ExitCode} == {
        "OK": 0,
        "FAILURE": 1,
        "USAGE": 2,
        "PRIVILEGE": 3,
        "UNSUPPORTED": 4,
        "NO_INTERFACE": 5,
        "HANGUP": 129,
        "INTERRUPTED": 130,
    }


def test_two_lines_what_is_wrong_and_what_to_do():
    assert NettopError("it broke", "mend it").lines() == "nettop: it broke\nhint: mend it"


def test_without_a_hint_there_is_one_line():
    assert NettopError("it broke").lines() == "nettop: it broke"


def test_a_failure_unless_it_says_otherwise():
    assert NettopError("x").code is ExitCode.FAILURE
    assert str(NettopError("x", "y", ExitCode.USAGE)) == "x"

"""Errors are two lines; without a hint one."""

import pytest

from nettop.core.errors import ExitCode, NettopError


@pytest.mark.parametrize(
    ("error", "lines", "code"),
    [
        (NettopError("it broke", "mend it"), "nettop: it broke\nhint: mend it", ExitCode.FAILURE),
        (NettopError("it broke", code=ExitCode.USAGE), "nettop: it broke", ExitCode.USAGE),
    ],
)
def test_what_is_wrong_and_what_to_do(error, lines, code):
    assert (error.lines(), error.code, str(error)) == (lines, code, "it broke")

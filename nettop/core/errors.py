"""The one exception that reaches the user, and the exit codes of the program."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell sees; part of the command line's contract."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    PRIVILEGE = 3
    UNSUPPORTED = 4
    NO_INTERFACE = 5
    HANGUP = 129
    INTERRUPTED = 130


class NettopError(Exception):
    """A failure that the user can act on: one line that says what is wrong, one that says what to do."""

    def __init__(self, message: str, hint: str = "", code: ExitCode = ExitCode.FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def lines(self) -> str:
        """The error as it is printed on standard error."""
        text = f"nettop: {self.message}"
        return f"{text}\nhint: {self.hint}" if self.hint else text

"""The screen's tests run as if on a good terminal, whatever the one they were started from."""

import pytest


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    """True colour, UTF-8."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setattr("nettop.core.charset._started_with", lambda: {"LANG": "C.UTF-8"})

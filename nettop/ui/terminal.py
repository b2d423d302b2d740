"""The terminal: its size, and what goes to it."""

from __future__ import annotations

import contextlib
import os
from collections import deque

_WINDOW = 10.0  # seconds over which a rate is taken


class Written:
    """Bytes that went to the terminal, and how many a second."""

    def __init__(self) -> None:
        self.total = 0
        self._recent: deque[tuple[float, int]] = deque()

    def add(self, size: int, now: float) -> None:
        """So many more."""
        self.total += size
        self._recent.append((now, size))
        self._forget(now)

    def rate(self, now: float) -> float:
        """Bytes a second in the last ten seconds."""
        self._forget(now)
        return sum(size for _, size in self._recent) / _WINDOW

    def _forget(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > _WINDOW:
            self._recent.popleft()


def terminal_size() -> tuple[int, int]:
    """Columns and rows of the terminal, or of a usual one where there is none."""
    for fd in (1, 2, 0):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(fd)
            if size.columns and size.lines:
                return size.columns, size.lines
    return 120, 40

"""How many requests the loader serves: a screen that somebody else has taken over must not keep it compiling all day.

Token buckets: each request takes a token from its bucket, and tokens come back at a fixed rate.  What an honest screen
needs is far below: statistics twice a second, probes resumed once in 4 s, an interface that is tried twice a second, a
filter as often as somebody types one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from nettop.bpf.protocol import Filter, Load, Request, RetryProbes
from nettop.core.errors import NettopError

_COMPILING = (
    20,
    15.0,
)  # requests at once, and seconds until another is served: a compiler takes seconds of CPU
_QUICK = (100, 0.1)


class Bucket:
    """``size`` tokens, and a new one every ``seconds``."""

    def __init__(self, size: int, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._size = size
        self._seconds = seconds
        self._now = now
        self._tokens = float(size)
        self._then = now()

    def take(self) -> float:
        """Take a token: 0; where there is none, seconds until there is."""
        now = self._now()
        self._tokens = min(self._tokens + (now - self._then) / self._seconds, self._size)
        self._then = now
        if self._tokens < 1:
            return (1 - self._tokens) * self._seconds
        self._tokens -= 1
        return 0.0


class Limits:
    """The buckets of one loader."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._compiling = Bucket(*_COMPILING, now)
        self._quick = Bucket(*_QUICK, now)

    def admit(self, request: Request) -> None:
        """NettopError where this is one request too many; it says when there is room for another."""
        bucket = self._compiling if isinstance(request, Load | Filter | RetryProbes) else self._quick
        if wait := bucket.take():
            raise NettopError(f"too many requests in a short time; the next is served in {wait:.1f} s")

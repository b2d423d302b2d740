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

# Requests at once, and seconds until another is served: a compiler takes seconds of CPU.
_COMPILING, _QUICK = (20, 15.0), (100, 0.1)


class Limits:
    """The buckets of one loader."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        # Tokens, and when.
        self._left = {bucket: (float(bucket[0]), now()) for bucket in (_COMPILING, _QUICK)}

    def admit(self, request: Request) -> None:
        """NettopError where this is one request too many; it says when there is room for another."""
        bucket = _COMPILING if isinstance(request, Load | Filter | RetryProbes) else _QUICK
        (size, seconds), (tokens, then) = bucket, self._left[bucket]
        now = self._now()
        tokens = min(tokens + (now - then) / seconds, size)
        self._left[bucket] = tokens - (tokens >= 1), now
        if tokens < 1:
            wait = (1 - tokens) * seconds
            raise NettopError(f"too many requests in a short time; the next is served in {wait:.1f} s")

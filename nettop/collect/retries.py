"""Probes that have failed, each with the reason and the time of its next try.

A probe that this kernel cannot run at all is ``unavailable``, and is not here.  Owned by the control thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_FIRST_S, _LONGEST_S = 10.0, 300.0


@dataclass
class _Failed:
    reason: str
    tries: int
    due: float  # by ``now``
    clock: str  # the same for people


class Retries:
    """When each failed probe is tried again: after 10 s, and after twice as long each time, up to 5 minutes."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._failed: dict[str, _Failed] = {}

    def failed(self, name: str, reason: str) -> None:
        """It has failed, once more perhaps."""
        tries = self._failed[name].tries + 1 if name in self._failed else 0
        pause = min(_FIRST_S * 2**tries, _LONGEST_S)
        clock = time.strftime("%H:%M:%S", time.localtime(time.time() + pause))
        self._failed[name] = _Failed(reason, tries, self._now() + pause, clock)

    def works(self, name: str) -> None:
        """It does now, or never will."""
        self._failed.pop(name, None)

    def due(self) -> tuple[str, ...]:
        """Probes whose time has come."""
        now = self._now()
        return tuple(name for name, failed in self._failed.items() if failed.due <= now)

    def details(self) -> Mapping[str, str]:
        """For each probe's pane: why it has failed, and when it is tried next."""
        return {name: f"{each.reason}; next try at {each.clock}" for name, each in self._failed.items()}

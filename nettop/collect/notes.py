"""What has happened lately, for the user: notes, and gaps that clocks show."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from nettop.core import units

_log = logging.getLogger(__name__)


class Notes:
    """What has happened lately, newest first: each sentence for a minute, and for three frames at least."""

    _SECONDS, _FRAMES, _MOST = 60.0, 3, 2

    def __init__(self, interval: Callable[[], float], now: Callable[[], float] = time.monotonic) -> None:
        """``interval`` gives the seconds between frames as they are now; ``now`` a monotonic clock in seconds."""
        self._interval = interval
        self._now = now
        self._said: list[tuple[float, str]] = []

    def add(self, text: str) -> None:
        """Show it; the oldest of too many is dropped."""
        _log.info(text)
        self._said = [*((t, s) for t, s in self._said if s != text), (self._now(), text)][-self._MOST :]

    def current(self) -> tuple[str, ...]:
        """What is to be shown now."""
        since = self._now() - max(self._SECONDS, self._FRAMES * self._interval())
        return tuple(text for said, text in reversed(self._said) if said >= since)


class Clocks:
    """Notices what a frame's times do not show: a gap, a suspended machine, a clock that was set.

    Rates need none of this: intervals are monotonic, as the kernel's own times in the maps are.
    """

    _STEP_NS = 500_000_000  # a clock that is slewed moves by 0.5 ms in a second
    _LATE_NS = 2_000_000_000  # beyond twice the interval: less is a busy machine's daily life
    _TORN_NS = 10_000_000
    _IDS = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, time.CLOCK_REALTIME)

    def __init__(self, read: Callable[[int], int] = time.clock_gettime_ns) -> None:
        """``read`` gives the ns of a clock by its number (time.CLOCK_*)."""
        self._read_clock = read
        self._before = self._read()
        self._asked_s = 0.0

    def look(self, asked_s: float) -> list[str]:
        """Sentences about the time since the last look, when a frame every ``asked_s`` seconds was wanted."""
        before, self._before = self._before, self._read()
        monotonic, boot, real = (now - then for now, then in zip(self._before, before, strict=True))
        when = time.strftime("%H:%M:%S", time.localtime(self._before[2] / 1e9))
        found: list[str] = []
        # A wait in progress may have begun under a longer interval.
        asked_s, self._asked_s = max(asked_s, self._asked_s), asked_s
        if monotonic > 2 * asked_s * 1e9 + self._LATE_NS:
            span = _span(monotonic)
            found.append(f"{span} without a frame until {when}: nettop was stopped, or the machine busy")
        if boot - monotonic > self._STEP_NS:
            found.append(f"the machine slept for {_span(boot - monotonic)} until {when}")
        if abs(real - boot) > self._STEP_NS:
            way = "forward" if real > boot else "back"
            found.append(f"the clock was set {_span(abs(real - boot))} {way}, to {when}")
        return found

    def _read(self) -> tuple[int, ...]:
        for _ in range(5):
            first = self._read_clock(time.CLOCK_MONOTONIC)
            found = tuple(map(self._read_clock, self._IDS))
            if found[0] - first < self._TORN_NS and self._read_clock(self._IDS[0]) - found[0] < self._TORN_NS:
                break  # else: something came between the readings
        return found


def _span(ns: int) -> str:
    return units.duration(ns) if ns < 100_000_000_000 else units.age(ns)

"""Async workers, one a probe: read, fold, and the frames that come of it.

Nothing here blocks the loop: readings run in an executor of the engine's own (the loop's default one is shared with
whoever else uses it).  A worker that fails takes its own probe down and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from nettop import units
from nettop.kernel.maps import Reader
from nettop.model import Frame, Health, HookStatus, ProbeStatus, Section
from nettop.probes.base import Fold, Probe, Reads

DRAIN_NS = 100_000_000
_RETRY_S = (1.0, 5.0, 30.0, 60.0)  # after a probe has failed, until it is tried again; then the last for ever
_SLACK_NS = 50_000_000
_log = logging.getLogger(__name__)


@dataclass
class Worker:
    """One probe's readers and fold.  ``status`` is what its pane says.

    A worker that has failed is tried again with a fold of its own (``renew``): what the old one remembers is half of an
    interval.  Its first reading is the base of the next, and no section comes of it.
    """

    probe: Probe
    renew: Callable[[], Fold]
    readers: Mapping[str, Reader]
    system: Mapping[str, Callable[[], Any]]
    status: ProbeStatus
    scan_ns: int = 0  # how far apart the readings of large tables are; 0: with every frame
    runs: Mapping[str, Callable[[bytes], None]] = field(default_factory=dict)  # by hook, see Folded
    last_ns: int = field(default_factory=time.monotonic_ns)
    fold: Fold = field(init=False)
    _failures: int = 0
    _retry: float = 0.0  # time.monotonic() of the next try
    _detail: str = ""  # of the status while it worked
    _scans: int = 0
    _scan_due: int = 0
    _events: dict[str, list[Any]] = field(default_factory=dict)
    _early: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    _due: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fold = self.renew()

    def drain(self) -> None:
        """Empty the ring buffers, and take the readings that are due more often than a frame."""
        now = time.monotonic_ns()
        for layout in self.probe.maps:
            reader = self.readers.get(layout.name)
            if reader is None:
                continue
            if layout.read == "ring":
                events = reader.read()
                if len(events):
                    self._events.setdefault(layout.name, []).append(events)
            elif layout.every_ns and now >= self._due.get(layout.name, 0):
                self._due[layout.name] = now + layout.every_ns
                self._early.setdefault(layout.name, []).append((now, reader.read().copy()))  # type: ignore[union-attr]

    def collect(self) -> Reads:
        """Everything since the last time.  Runs in the executor."""
        self._due.clear()
        self.drain()
        scanning = self._scanning()
        maps: dict[str, Any] = {}
        for layout in self.probe.maps:
            reader = self.readers.get(layout.name)
            if reader is None or (layout.scan and not scanning):
                continue
            if layout.read == "ring":
                parts = self._events.pop(layout.name, [])
                maps[layout.name] = np.concatenate(parts) if parts else np.zeros(0, layout.value)
            elif layout.every_ns:
                maps[layout.name] = self._early.pop(layout.name, [])
            else:
                maps[layout.name] = reader.read()
        system: dict[str, Any] = {}
        for name, reading in self.system.items():
            try:
                system[name] = reading()
            except OSError as error:
                _log.debug("%s: reading %s: %s", self.probe.name, name, error)
                system[name] = None
        now = time.monotonic_ns()
        interval, self.last_ns = now - self.last_ns, now
        return Reads(now, interval, maps, system)

    def _scanning(self) -> bool:
        """Whether the large tables are read this time: always for the base and the first frame, then when due."""
        now = time.monotonic_ns()
        # A frame comes a little early or late: what is due within the slack is due.
        if now < self._scan_due - min(self.scan_ns // 10, _SLACK_NS):
            return False
        self._scans += 1
        if self._scans > 1:
            late = now - self._scan_due
            self._scan_due = (self._scan_due if late < self.scan_ns else now) + self.scan_ns
        return True

    def step(self) -> Section | None:
        """One interval: read, fold, and run what the fold asks for.  Runs in the executor."""
        trying = self._failures > 0 and self.status.state == "failed"
        if self.status.state != "live" and not (trying and time.monotonic() >= self._retry):
            return None
        try:
            if trying:
                self._begin_again()
            folded = self.fold(self.collect())
            for hook, values in folded.run.items():
                for value in values:
                    self.runs[hook](value)
        except Exception as error:  # one probe's failure is its own: its pane says so, the others go on
            self.failed(error)
            return None
        if trying:
            _log.info("probe %s works again", self.probe.name)
            self.status = replace(self.status, state="live", detail=self._detail)
            return None
        if self._failures and time.monotonic() > self._retry + _RETRY_S[-1]:
            self._failures = 0  # it has worked for a minute
        return folded.section

    def failed(self, error: Exception) -> None:
        """Say so, and when it is tried again."""
        _log.error("probe %s failed", self.probe.name, exc_info=error)
        if self.status.state == "live":
            self._detail = self.status.detail
        wait = _RETRY_S[min(self._failures, len(_RETRY_S) - 1)]
        self._failures += 1
        self._retry = time.monotonic() + wait
        self.status = replace(self.status, state="failed", detail=f"{type(error).__name__}: {error}")

    def _begin_again(self) -> None:
        """Forget what was read before, as at the start."""
        self.fold = self.renew()
        self._events.clear()
        self._early.clear()
        self._due.clear()
        self._scans = self._scan_due = 0
        self.last_ns = time.monotonic_ns()


class Meter(Protocol):
    """Where the cost of the programs and of the processes comes from."""

    async def measure(self) -> None:
        """Take one sample of run statistics; at most once a second."""

    def hooks(self, probe: str, interval_ns: int) -> tuple[HookStatus, ...]:
        """The hooks of a probe with estimates for the interval."""

    def health(self, interval_ns: int) -> Health:
        """The program's own cost in the interval."""


class Pace:
    """When the next frame is due.  The interval can change at any time, and a wait in progress follows."""

    _GLANCE = 0.25  # s between looks at whether the interval has changed

    def __init__(self, interval: Callable[[], float], first: float | None = None) -> None:
        """``interval`` gives the seconds between frames as they are now; ``first`` is a shorter one to begin with."""
        self.interval = interval
        self._last = time.monotonic()
        self._first = first

    async def wait(self) -> None:
        """Until the next frame's time.  Frames that were missed are skipped, not made up for."""
        left = self._left()
        while left > 0:
            await asyncio.sleep(min(left, self._GLANCE))
            left = self._left()
        self._last = max(self._last + self._interval(), time.monotonic() - self._interval() / 2)
        self._first = None

    def _interval(self) -> float:
        return self.interval() if self._first is None else min(self._first, self.interval())

    def _left(self) -> float:
        return self._last + self._interval() - time.monotonic()


class Notes:
    """What has happened lately, newest first: each sentence for a minute, and for three frames at least."""

    _SECONDS, _FRAMES, _MOST = 60.0, 3, 2

    def __init__(self, interval: Callable[[], float], now: Callable[[], float] = time.monotonic) -> None:
        """``interval`` gives the seconds between frames as they are now; ``now`` a monotonic clock in seconds."""
        self._interval = interval
        self._now = now
        self._said: list[tuple[float, str]] = []

    def add(self, text: str) -> None:
        """Say it; the oldest of too many is left out."""
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


class Engine:
    """Workers and the frames that they make, one after another, for whoever iterates."""

    def __init__(
        self,
        workers: Sequence[Worker],
        pace: Pace,
        meter: Meter,
        describe: Callable[[], Frame],
        notes: Notes | None = None,
    ) -> None:
        """``describe`` gives a frame with everything but what the workers measure; ``notes`` is told of gaps."""
        self.workers = tuple(workers)
        self.pace = pace
        self._meter = meter
        self._describe = describe
        self._notes = notes
        self._executor: Executor = ThreadPoolExecutor(1, "nettop-read")
        self._busy = asyncio.Lock()

    async def frames(self) -> AsyncIterator[Frame]:
        """Frames for ever.  Closing the iterator stops the workers."""
        tasks = [asyncio.create_task(self._drain()), asyncio.create_task(self._measure())]
        start = time.monotonic_ns()
        await self._step()  # the first reading is the base of the first interval
        self._meter.health(0)  # and what starting has cost is not the interval's
        clocks = Clocks()
        try:
            while True:
                await self.pace.wait()
                sections = await self._step()
                now = time.monotonic_ns()
                for text in clocks.look(self.pace.interval()):
                    if self._notes:
                        self._notes.add(text)
                yield self._frame(sections, now - start)
                start = now
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._executor.shutdown(wait=True)

    async def _step(self) -> dict[str, Section]:
        loop = asyncio.get_running_loop()
        async with self._busy:
            # One after another: each change of thread costs as much as a small reading, and numpy holds the lock.
            results = await loop.run_in_executor(self._executor, lambda: [w.step() for w in self.workers])
        return {w.probe.name: s for w, s in zip(self.workers, results, strict=True) if s is not None}

    async def _drain(self) -> None:
        draining = [w for w in self.workers if any(m.read == "ring" or m.every_ns for m in w.probe.maps)]
        while draining:
            await asyncio.sleep(DRAIN_NS / 1e9)
            async with self._busy:
                _drain_all(draining)  # microseconds where nothing has come, so not worth a change of thread

    async def _measure(self) -> None:
        while True:
            await self._meter.measure()
            await asyncio.sleep(max(self.pace.interval(), 1.0) - 0.1)

    def _frame(self, sections: dict[str, Section], interval_ns: int) -> Frame:
        health = self._meter.health(interval_ns)
        for section in sections.values():
            health = replace(health, **{k: getattr(health, k) + v for k, v in section.health().items()})
        statuses = {
            w.probe.name: replace(w.status, hooks=self._meter.hooks(w.probe.name, interval_ns))
            for w in self.workers
        }
        base = self._describe()
        return replace(
            base,
            time_ns=time.time_ns(),
            interval_ns=interval_ns,
            probes={**base.probes, **statuses},
            health=health,
            sections=sections,
        )


def _drain_all(workers: Sequence[Worker]) -> None:
    for worker in workers:
        if worker.status.state == "live":
            try:
                worker.drain()
            except Exception as error:
                worker.failed(error)

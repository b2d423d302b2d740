"""Async workers, one a probe: read, fold, and the frames that come of it.

Nothing here blocks the loop: readings run in an executor of the engine's own (the loop's default one is shared with
other users).  A worker that fails takes its own probe down and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

from nettop.collect.meter import LiveMeter
from nettop.collect.notes import Clocks, Notes
from nettop.collect.worker import DRAIN_NS, Worker
from nettop.core.frame import Frame, Section

_log = logging.getLogger(__name__)


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


class Engine:
    """Workers and the frames that they make, one after another."""

    def __init__(
        self,
        workers: Sequence[Worker],
        pace: Pace,
        meter: LiveMeter,
        describe: Callable[[], Frame],
        notes: Notes | None = None,
    ) -> None:
        """``describe`` gives a frame with everything but what the workers measure; ``notes`` is told of gaps."""
        self.workers = tuple(workers)
        self._fresh: set[str] = set()  # probes that have no base yet
        self.pace = pace
        self._meter = meter
        self._describe = describe
        self._notes = notes
        self._executor: Executor = ThreadPoolExecutor(1, "nettop-read")
        self._busy = asyncio.Lock()

    def put(self, worker: Worker) -> None:
        """Take another worker in, in the place of the one that its probe has had, if any."""
        name = worker.probe.name
        self.workers = (*(w for w in self.workers if w.probe.name != name), worker)
        self._fresh.add(name)

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
            workers, interface = self.workers, self._describe().interface
            fresh, self._fresh = self._fresh, set()  # their first reading is the base of the next
            # One after another: each change of thread costs as much as a small reading, and numpy holds the lock.
            results = await loop.run_in_executor(self._executor, lambda: [w.step(interface) for w in workers])
        found = {w.probe.name: s for w, s in zip(workers, results, strict=True) if s is not None}
        return {name: section for name, section in found.items() if name not in fresh}

    async def _drain(self) -> None:
        while True:
            await asyncio.sleep(DRAIN_NS / 1e9)
            async with self._busy:
                # Microseconds where nothing has come, so not worth a change of thread.
                _drain_all(self.workers)

    async def _measure(self) -> None:
        while True:
            await self._meter.measure()
            await asyncio.sleep(max(self.pace.interval(), 1.0) - 0.1)

    def _frame(self, sections: dict[str, Section], interval_ns: int) -> Frame:
        missed: Counter[str] = Counter()
        for section in sections.values():
            missed.update(section.health())
        health = replace(self._meter.health(interval_ns), missed=dict(missed))
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
        if worker.status.state == "live" and any(m.read == "ring" or m.every_ns for m in worker.probe.maps):
            try:
                worker.drain()
            except Exception as error:
                worker.failed(error)

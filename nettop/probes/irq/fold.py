"""From counters that only grow to the section."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nettop.core.histogram import Growth, Histogram
from nettop.core.units import clean
from nettop.probes.base import Array, Folded, Reads, Setup
from nettop.probes.irq.section import BACKLOG, Cpu, Irq, Line, Poll, SoftIrq

# include/linux/interrupt.h, in this order since 4.x
VECTORS = ("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU")


def _rank(line: Line) -> tuple[bool, int, int]:
    return not line.own, -line.latency.count, line.irq


class IrqFold:
    """Differences of counters that only grow."""

    def __init__(self, setup: Setup) -> None:
        self._interface = setup.interface
        self._grown = Growth()
        self._softnet: dict[int, Any] = {}

    def __call__(self, reads: Reads) -> Folded:
        own: frozenset[int] | None = reads.system.get("interrupt_lines")
        section = Irq(
            # Ours first, then the busiest.
            tuple(sorted(self._lines(own, *reads.maps["lines"]), key=_rank)),
            self._soft(reads.maps["softirqs"]),
            self._polls(reads.maps["pollers"], self._waits(own, *reads.maps["waits"])),
            self._cpus(reads.system.get("softnet")),
            None if own is None else bool(own),
        )
        return Folded(section)

    def _lines(self, own: frozenset[int] | None, keys: Array, values: Array) -> Iterator[Line]:
        for irq, value in zip(keys.tolist(), values, strict=True):
            yield Line(
                irq,
                clean(value["name"].decode(errors="replace"), 32),
                self._grown.histogram(f"{irq} run", value["run"]),
                None if own is None else irq in own,
                int(self._grown(f"{irq} unhandled", value["unhandled"])),
            )

    def _soft(self, values: Array) -> tuple[SoftIrq, ...]:
        return tuple(
            SoftIrq(
                vector,
                self._grown.histogram(f"{vector} wait", values[number]["wait"]),
                self._grown.histogram(f"{vector} run", values[number]["run"]),
            )
            for number, vector in enumerate(VECTORS)
        )

    def _waits(self, own: frozenset[int] | None, keys: Array, values: Array) -> tuple[Histogram, int] | None:
        """From interrupt to poll on the device's own lines, and what was missed there; None: it has no lines."""
        waited, missed = Histogram.empty(), 0
        for irq, value in zip(keys.tolist(), values, strict=True):
            histogram = self._grown.histogram(f"{irq} poll", value["to_poll"])
            grown = int(self._grown(f"{irq} missed", value["missed"]))
            if own and irq in own:
                waited += histogram
                missed += grown
        return (waited, missed) if own else None

    def _polls(self, values: Array, waits: tuple[Histogram, int] | None) -> tuple[Poll, ...]:
        result = []
        for number, device in enumerate((self._interface, BACKLOG)):
            counts = [values[number][name].sum(dtype=np.uint64) for name in ("work", "polls", "exhausted")]
            work, polls, exhausted = self._grown(f"{device} counts", counts).tolist()
            run = self._grown.histogram(f"{device} poll", values[number]["run"])
            waited, missed = waits if waits and device != BACKLOG else (None, None)
            result.append(Poll(device, waited, run, work, polls, exhausted, missed))
        return tuple(result)

    def _cpus(self, now: Any) -> tuple[Cpu, ...] | None:
        if now is None:
            return None
        before, self._softnet = self._softnet, {c.cpu: c for c in now}
        result = []
        for counters in now:
            old = before.get(counters.cpu, counters)
            # 32-bit counters in the kernel: they come round.
            grown = (
                (getattr(counters, name) - getattr(old, name)) & 0xFFFFFFFF
                for name in ("processed", "dropped", "time_squeeze")
            )
            result.append(Cpu(counters.cpu, *grown))
        return tuple(result)

"""From counters that only grow to the section."""

from __future__ import annotations

from typing import Any

import numpy as np

from nettop.core.histogram import Histogram, difference
from nettop.core.units import clean
from nettop.probes.base import Array, Folded, Reads, Setup
from nettop.probes.irq.section import BACKLOG, Cpu, Irq, Line, Poll, SoftIrq

# include/linux/interrupt.h, in this order since 4.x
VECTORS = ("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU")


class IrqFold:
    """Differences of counters that only grow."""

    def __init__(self, setup: Setup) -> None:
        self._interface = setup.interface
        self._before: dict[str, Any] = {}
        self._live = setup.hooks

    def __call__(self, reads: Reads) -> Folded:
        own: frozenset[int] | None = reads.system.get("interrupt_lines")
        lines = self._lines(*reads.maps["lines"])
        hard = tuple(
            Line(irq, name, run, None if own is None else irq in own, unhandled)
            for irq, name, run, unhandled in lines
        )
        section = Irq(
            # Ours first, then the busiest.
            tuple(sorted(hard, key=lambda line: (not line.own, -line.latency.count, line.irq))),
            self._soft(reads.maps["softirqs"]),
            self._polls(reads.maps["pollers"], self._waits(own, *reads.maps["waits"])),
            self._cpus(reads.system.get("softnet")),
            None if own is None else bool(own),
        )
        return Folded(section)

    def _grown(self, name: str, now: Array) -> Array:
        before = self._before.get(name)
        self._before[name] = now.copy()
        return difference(now, before)

    def _histogram(self, name: str, values: Array) -> Histogram:
        """The growth of one struct hist, given per CPU (hist[cpus]) or as one."""
        slots, total = values["slots"], values["sum"]
        if slots.ndim > 1:
            slots, total = slots.sum(axis=0, dtype=np.uint64), total.sum(dtype=np.uint64)
        grown = self._grown(name, np.append(slots, total).astype(np.uint64))
        return Histogram(grown[:-1].copy(), int(grown[-1]))

    def _lines(self, keys: Array, values: Array) -> list[tuple[int, str, Histogram, int]]:
        result = []
        for irq, value in zip(keys.tolist(), values, strict=True):
            name = clean(value["name"].decode(errors="replace"), 32)
            unhandled = self._grown(f"{irq} unhandled", np.array([value["unhandled"]], np.uint64))
            result.append((int(irq), name, self._histogram(f"{irq} run", value["run"]), int(unhandled[0])))
        return result

    def _soft(self, values: Array) -> tuple[SoftIrq, ...]:
        return tuple(
            SoftIrq(
                vector,
                self._histogram(f"{vector} wait", values[number]["wait"]),
                self._histogram(f"{vector} run", values[number]["run"]),
            )
            for number, vector in enumerate(VECTORS)
        )

    def _waits(self, own: frozenset[int] | None, keys: Array, values: Array) -> tuple[Histogram, int] | None:
        """From interrupt to poll on the device's own lines, and what was missed there; None: it has no lines."""
        waited, missed = Histogram.empty(), 0
        for irq, value in zip(keys.tolist(), values, strict=True):
            histogram = self._histogram(f"{irq} poll", value["to_poll"])
            grown = self._grown(f"{irq} missed", np.array([value["missed"]], np.uint64))
            if own and irq in own:
                waited += histogram
                missed += int(grown[0])
        return (waited, missed) if own else None

    def _polls(self, values: Array, waits: tuple[Histogram, int] | None) -> tuple[Poll, ...]:
        result = []
        for number, device in enumerate((self._interface, BACKLOG)):
            counts = np.array(
                [values[number][name].sum(dtype=np.uint64) for name in ("work", "polls", "exhausted")],
                np.uint64,
            )
            work, polls, exhausted = self._grown(f"{device} counts", counts).tolist()
            run = self._histogram(f"{device} poll", values[number]["run"])
            waited, missed = waits if waits and device != BACKLOG else (None, None)
            result.append(Poll(device, waited, run, work, polls, exhausted, missed))
        return tuple(result)

    def _cpus(self, now: Any) -> tuple[Cpu, ...] | None:
        if now is None:
            return None
        before = self._before.get("softnet") or {}
        self._before["softnet"] = {c.cpu: c for c in now}
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

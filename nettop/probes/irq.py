"""The interrupt path: handlers, softirqs, and what the device's NAPI waits for and does in a poll.

Counted by bpf_src/irq.c; /proc/net/softnet_stat adds what each CPU dropped and left for later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from nettop.model import SLOTS, Histogram
from nettop.probes import irq_view as view
from nettop.probes.base import Array, Fold, Folded, Hook, Map, Probe, Reads, Setup, one
from nettop.stats import difference, histogram_from_json, histogram_json
from nettop.units import clean

HIST = np.dtype([("sum", "u8"), ("slots", "u8", (SLOTS,))])
SOFTIRQ = np.dtype([("wait", HIST), ("run", HIST)])
LINE = np.dtype([("run", HIST), ("unhandled", "u8"), ("name", "S32")])
WAIT = np.dtype([("to_poll", HIST), ("missed", "u8"), ("napi", "u4"), ("strikes", "u4")])
POLLER = np.dtype([("run", HIST), ("work", "u8"), ("polls", "u8"), ("exhausted", "u8")])
# include/linux/interrupt.h, in this order since 4.x
VECTORS = ("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU")
BACKLOG = "backlog"  # the CPU's own poll, for packets of devices without NAPI


@dataclass(frozen=True, slots=True)
class Line:
    """One interrupt line in the interval; ``own``: it belongs to the watched device, None where that is not known."""

    irq: int
    name: str
    latency: Histogram
    own: bool | None = None
    unhandled: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "irq": self.irq,
            "name": self.name,
            "latency": histogram_json(self.latency),
            "own": self.own,
            "unhandled": self.unhandled,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            int(data["irq"]),
            str(data.get("name", "")),
            histogram_from_json(data.get("latency")),
            data.get("own"),
            int(data.get("unhandled") or 0),
        )


@dataclass(frozen=True, slots=True)
class SoftIrq:
    """One softirq vector: from its first raise to its run, and the run."""

    vector: str
    wait: Histogram
    run: Histogram

    def to_json(self) -> dict[str, Any]:
        return {"vector": self.vector, "wait": histogram_json(self.wait), "run": histogram_json(self.run)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            str(data["vector"]), histogram_from_json(data.get("wait")), histogram_from_json(data.get("run"))
        )


@dataclass(frozen=True, slots=True)
class Poll:
    """The polls of one device; ``irq_to_poll`` is None where no interrupt of its own is known.

    ``irq_missed``: interrupts that scheduled a poll which was not seen.
    """

    device: str
    irq_to_poll: Histogram | None
    run: Histogram
    work: int = 0
    polls: int = 0
    budget_exhausted: int = 0
    irq_missed: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "irq_to_poll": None if self.irq_to_poll is None else histogram_json(self.irq_to_poll),
            "irq_missed": self.irq_missed,
            "run": histogram_json(self.run),
            "work": self.work,
            "polls": self.polls,
            "budget_exhausted": self.budget_exhausted,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        waited, missed = data.get("irq_to_poll"), data.get("irq_missed")
        return cls(
            str(data["device"]),
            None if waited is None else histogram_from_json(waited),
            histogram_from_json(data.get("run")),
            int(data.get("work") or 0),
            int(data.get("polls") or 0),
            int(data.get("budget_exhausted") or 0),
            None if missed is None else int(missed),
        )


@dataclass(frozen=True, slots=True)
class Cpu:
    """Softnet's counters of one CPU, in the interval."""

    cpu: int
    processed: int
    dropped: int
    time_squeeze: int

    def to_json(self) -> dict[str, Any]:
        return {
            "cpu": self.cpu,
            "processed": self.processed,
            "dropped": self.dropped,
            "time_squeeze": self.time_squeeze,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        names = ("cpu", "processed", "dropped", "time_squeeze")
        return cls(*(int(data.get(name) or 0) for name in names))


@dataclass(frozen=True, slots=True)
class Irq:
    """The section ``irq``.  ``hardware``: whether the device has interrupts at all; None where not known."""

    hard: tuple[Line, ...] = ()
    soft: tuple[SoftIrq, ...] = ()
    poll: tuple[Poll, ...] = ()
    cpus: tuple[Cpu, ...] | None = None
    hardware: bool | None = field(default=None)

    def to_json(self, top: int, sort: str) -> dict[str, Any]:
        return {
            "irq": {
                "hard": [line.to_json() for line in self.hard],
                "soft": [s.to_json() for s in self.soft],
                "poll": [p.to_json() for p in self.poll],
                "cpus": None if self.cpus is None else [c.to_json() for c in self.cpus],
                "hardware": self.hardware,
            }
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        ours = data.get("irq") or {}
        cpus = ours.get("cpus")
        return cls(
            tuple(Line.from_json(line) for line in ours.get("hard", ())),
            tuple(SoftIrq.from_json(s) for s in ours.get("soft", ())),
            tuple(Poll.from_json(p) for p in ours.get("poll", ())),
            None if cpus is None else tuple(Cpu.from_json(c) for c in cpus),
            ours.get("hardware"),
        )

    def trimmed(self, top: int) -> Self:
        return self

    def health(self) -> Mapping[str, int]:
        return {}


class IrqFold:
    """Differences of counters that only grow."""

    def __init__(self, setup: Setup) -> None:
        self._interface = setup.interface
        self._before: dict[str, Any] = {}
        self._live = setup.hooks

    def __call__(self, reads: Reads) -> Folded:
        own: frozenset[int] | None = reads.system.get("irq_lines")
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
            result.append(
                (
                    int(irq),
                    name,
                    self._histogram(f"{irq} run", value["run"]),
                    int(unhandled[0]),
                )
            )
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


def _fold(setup: Setup) -> Fold:
    return IrqFold(setup)


PROBE = Probe(
    name="irq",
    summary="interrupt handlers, softirq wait and run, interrupt to poll, poll work",
    hooks=(
        Hook(
            "irq_handler_entry",
            (
                one("tp_btf", "irq_handler_entry", "irq_handler_entry"),
                one("raw_tracepoint", "irq_handler_entry", "irq_handler_entry"),
            ),
        ),
        Hook(
            "irq_handler_exit",
            (
                one("tp_btf", "irq_handler_exit", "irq_handler_exit"),
                one("raw_tracepoint", "irq_handler_exit_raw", "irq_handler_exit"),
            ),
        ),
        Hook("softirq_raise", (one("raw_tracepoint", "irq_softirq_raise", "softirq_raise"),)),
        Hook("softirq_entry", (one("raw_tracepoint", "irq_softirq_entry", "softirq_entry"),), required=True),
        Hook("softirq_exit", (one("raw_tracepoint", "irq_softirq_exit", "softirq_exit"),), required=True),
        Hook(
            "napi_poll",
            (
                one("tp_btf", "irq_napi_poll", "napi_poll"),
                one("raw_tracepoint", "irq_napi_poll_raw", "napi_poll"),
            ),
        ),
    ),
    maps=(
        Map("softirqs", "percpu", SOFTIRQ),
        Map("pollers", "percpu", POLLER),
        Map("lines", "hash", LINE, key=np.dtype("u4"), entries="irq_lines"),
        Map("waits", "hash", WAIT, key=np.dtype("u4"), entries="irq_lines"),
    ),
    fold=_fold,
    load=Irq.from_json,
    panes=view.PANES,
    system=("softnet", "irq_lines"),
    state=("cpus",),
)

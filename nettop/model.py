"""What is measured, as values: integers in ns and bytes, nothing formatted, nothing that can change.

A Frame holds one interval of everything.  The screen, the outputs, a snapshot, a recording and a replay all speak
Frames.  Each probe contributes one Section, whose type lives in the probe's own module; this module holds what they
share.  Schema: docs/frame.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

SCHEMA = "nettop/1"

# Log-linear histogram: STEPS buckets to an octave, so a bucket is at most 1/STEPS = 6.25 % wide.  The same in
# bpf_src/include/hist.h: a test compiles that and compares.  The last bucket is open above.
STEPS = 16
SLOTS = 512

State = Literal["live", "failed", "unavailable", "off"]


@dataclass(frozen=True, slots=True)
class Focus:
    """The flow in focus: its id in the flow table, and its key as struct flow_key has it."""

    id: int
    key: bytes

    def __post_init__(self) -> None:
        if not 0 < self.id < 1 << 64:
            raise ValueError("not a flow")


@dataclass(frozen=True, slots=True)
class HookStatus:
    """One boundary in the kernel: by which mechanism it is watched, and what that cost in the interval.

    ``runs`` and ``run_ns`` are estimates for the whole interval, scaled up from the part of it in which the kernel's
    run statistics were on; None where none were taken.  ``recursion_misses`` are runs that the kernel left out since
    the frame before, counted one by one: what was to be seen there was not.
    """

    hook: str
    via: str
    runs: int | None = None
    run_ns: int | None = None
    recursion_misses: int | None = None


@dataclass(frozen=True, slots=True)
class ProbeStatus:
    """Whether a probe works; ``detail`` says why not, and what would help, for the pane to show."""

    state: State
    detail: str = ""
    hooks: tuple[HookStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Shed:
    """What was left out to stay within the budget: 1 in each is nothing.

    ``stages_one_in``: packets that the stages follow; ``seconds_one_in``: seconds in which stages and irq are attached
    at all; ``rtt_one_in``: RTT probes of a TCP flow; ``frames_one_in``: frames, which are so many times as far apart
    as asked for.
    """

    stages_one_in: int = 1
    rtt_one_in: int = 1
    frames_one_in: int = 1
    seconds_one_in: int = 1


@dataclass(frozen=True, slots=True)
class Health:
    """What the frame missed and what it cost, in the interval; None where it is not known.

    ``budget_ns`` is what ``kernel_ns`` and ``user_ns`` may cost together in the interval, None where there is none.
    """

    lost_events: int = 0
    evicted_flows: int = 0
    untracked_packets: int = 0
    kernel_ns: int | None = None
    user_ns: int = 0
    rss_bytes: int = 0
    budget_ns: int | None = None
    shed: Shed = Shed()


class Section(Protocol):
    """One probe's part of a Frame."""

    def to_json(self, top: int, sort: str) -> dict[str, Any]:
        """The section's top-level keys of the frame; at most ``top`` rows of a long table, by column ``sort``."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The same from a whole frame; missing fields are unknown, fields that are not known are ignored."""

    def trimmed(self, top: int) -> Self:
        """The section with at most ``top`` rows: what a history can afford to keep."""

    def health(self) -> Mapping[str, int]:
        """Its contribution to Health, by field name."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One interval of everything.  ``time_ns`` is its end, CLOCK_REALTIME; ``interval_ns`` by the monotonic clock."""

    time_ns: int
    interval_ns: int
    host: str
    interface: str
    filter: str = ""
    probes: Mapping[str, ProbeStatus] = field(default_factory=dict)
    health: Health = field(default_factory=Health)
    sections: Mapping[str, Section] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what the user should know now: "eth0 is gone, waiting for it"

    @property
    def seconds(self) -> float:
        """The interval in seconds; never 0."""
        return max(self.interval_ns, 1) / 1e9


@dataclass(frozen=True, slots=True)
class Histogram:
    """Log-linear histogram of delays: ``counts`` is uint64[SLOTS], ``sum_ns`` exact."""

    counts: NDArray[np.uint64]
    sum_ns: int

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    @classmethod
    def empty(cls) -> Self:
        return cls(np.zeros(SLOTS, np.uint64), 0)

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.counts + other.counts, self.sum_ns + other.sum_ns)

    @classmethod
    def total(cls, parts: Sequence[Histogram]) -> Histogram:
        """The sum of any number of histograms."""
        return Histogram(
            np.sum([p.counts for p in parts], axis=0, dtype=np.uint64)
            if parts
            else np.zeros(SLOTS, np.uint64),
            sum(p.sum_ns for p in parts),
        )


class PackedHistogram(Histogram):
    """A histogram that keeps only the buckets between its first and its last one in use: a tenth of the memory.

    What a history is made of: ten minutes of every delay would be a hundred megabytes otherwise.
    """

    __slots__ = ("_start", "_window")
    _start: int
    _window: NDArray[Any]

    def __init__(self, of: Histogram) -> None:
        used = np.flatnonzero(of.counts)
        start, end = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        window = of.counts[start:end]
        small = window.size == 0 or int(window.max()) < 1 << 32
        object.__setattr__(self, "sum_ns", of.sum_ns)
        object.__setattr__(self, "_start", start)
        object.__setattr__(self, "_window", window.astype(np.uint32 if small else np.uint64))

    @property
    def counts(self) -> NDArray[np.uint64]:
        """uint64[SLOTS], made anew each time."""
        whole = np.zeros(SLOTS, np.uint64)
        whole[self._start : self._start + len(self._window)] = self._window
        return whole

    @property
    def count(self) -> int:
        return int(self._window.sum(dtype=np.uint64))


def packed(value: Any) -> Any:
    """The same section with every histogram in it packed, however deep in tuples and dataclasses."""
    if isinstance(value, Histogram):
        return value if isinstance(value, PackedHistogram) else PackedHistogram(value)
    if type(value) is tuple:
        parts = tuple(packed(part) for part in value)
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
    if is_dataclass(value) and not isinstance(value, type):
        before = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        after = {name: packed(part) for name, part in before.items()}
        changed = {name: part for name, part in after.items() if part is not before[name]}
        return replace(value, **changed) if changed else value
    return value

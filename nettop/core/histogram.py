"""Histograms of delays: their buckets, percentiles, and JSON; rates.

The histogram is log-linear as HdrHistogram's: values below STEPS have a bucket each, above that every octave has
STEPS of equal width.  A percentile is interpolated inside its bucket, so its error is at most half a bucket: 3.2 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Log-linear histogram: STEPS buckets to an octave, so a bucket is at most 1/STEPS = 6.25 % wide.  The same in
# bpf_src/include/hist.h: a test compiles that and compares.  The last bucket is open above.
STEPS = 16
SLOTS = 512


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
        counts = [np.zeros(SLOTS, np.uint64), *(part.counts for part in parts)]
        return Histogram(np.sum(counts, axis=0, dtype=np.uint64), sum(part.sum_ns for part in parts))


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


_SHIFT = STEPS.bit_length() - 1


def bucket_of(value: int) -> int:
    """The bucket of a delay in ns; the last is open above.  The same arithmetic as bpf_src/include/hist.h."""
    if value < STEPS:
        return max(value, 0)
    exponent = value.bit_length() - 1
    slot = ((exponent - _SHIFT + 1) << _SHIFT) + ((value >> (exponent - _SHIFT)) & (STEPS - 1))
    return min(slot, SLOTS - 1)


@cache
def bucket_lowers() -> NDArray[np.int64]:
    """int64[SLOTS + 1]: the lowest value of each bucket in ns; the extra one ends the last."""
    index = np.arange(SLOTS + 1)
    octave = np.maximum((index >> _SHIFT) - 1, 0)
    step = np.where(index < STEPS, index, STEPS + (index & (STEPS - 1)))
    lowers: NDArray[np.int64] = np.left_shift(step, octave).astype(np.int64)
    return lowers


def percentile(histogram: Histogram, fraction: float) -> int | None:
    """The delay in ns below which ``fraction`` of the samples lie; None for an empty histogram."""
    total = histogram.count
    if total == 0:
        return None
    cumulative = np.cumsum(histogram.counts)
    wanted = fraction * total
    slot = min(int(np.searchsorted(cumulative, wanted)), SLOTS - 1)
    inside = int(histogram.counts[slot])
    before = int(cumulative[slot]) - inside
    lower, upper = bucket_lowers()[slot], bucket_lowers()[slot + 1]
    share = (wanted - before) / inside if inside else 0.0
    return int(lower + (upper - lower) * min(max(share, 0.0), 1.0))


def smallest(histogram: Histogram) -> int | None:
    """The lower edge of the lowest bucket in use, in ns: at most 6.25 % below the true minimum."""
    used = np.flatnonzero(histogram.counts)
    return int(bucket_lowers()[used[0]]) if used.size else None


def largest(histogram: Histogram) -> int | None:
    """The upper edge of the highest bucket in use, in ns."""
    used = np.flatnonzero(histogram.counts)
    return int(bucket_lowers()[used[-1] + 1]) if used.size else None


def mean(histogram: Histogram) -> float | None:
    """The exact mean in ns: from the sum, not from buckets."""
    count = histogram.count
    return histogram.sum_ns / count if count else None


def histogram_json(histogram: Histogram) -> dict[str, Any]:
    """HISTOGRAM of the frame: only buckets in use, by upper edge in ns."""
    used = np.flatnonzero(histogram.counts)
    uppers = bucket_lowers()[used + 1]
    return {
        "count": histogram.count,
        "sum_ns": histogram.sum_ns,
        "min_ns": smallest(histogram),
        "max_ns": largest(histogram),
        "p50_ns": percentile(histogram, 0.5),
        "p90_ns": percentile(histogram, 0.9),
        "p99_ns": percentile(histogram, 0.99),
        "buckets": [[int(u), int(c)] for u, c in zip(uppers, histogram.counts[used], strict=True)],
    }


def histogram_from_json(data: dict[str, Any] | None) -> Histogram:
    """The inverse of histogram_json; an upper edge that is no bucket of ours goes where its value belongs."""
    counts = np.zeros(SLOTS, np.uint64)
    for upper, count in (data or {}).get("buckets", []):
        slot = bucket_of(int(upper) - 1)
        total = int(counts[slot]) + int(count)
        if not 0 <= total < 1 << 53:
            raise ValueError("a histogram's count is out of range")
        counts[slot] = total
    return Histogram(counts, int((data or {}).get("sum_ns", 0)))


def difference(now: NDArray[np.uint64], before: NDArray[np.uint64] | None) -> NDArray[np.uint64]:
    """Growth of running counters since the last reading; a counter that went back started anew."""
    if before is None:
        return now.copy()
    return np.where(now >= before, now - before, now)


class Growth:
    """By what counters that only grow have grown since they were last given, by name."""

    def __init__(self) -> None:
        self._before: dict[str, NDArray[np.uint64]] = {}

    def __call__(self, name: str, now: ArrayLike) -> NDArray[np.uint64]:
        before, self._before[name] = self._before.get(name), np.array(now, np.uint64)
        return difference(self._before[name], before)

    def histogram(self, name: str, values: NDArray[Any]) -> Histogram:
        """The growth of one struct hist of bpf_src, given by CPU (hist[cpus]) or as one."""
        slots, total = (values[part].reshape(-1, *values.dtype[part].shape) for part in ("slots", "sum"))
        running = np.append(slots.sum(axis=0, dtype=np.uint64), total.sum(dtype=np.uint64))
        grown = self(name, running)
        return Histogram(grown[:-1].copy(), int(grown[-1]))


def decades(histograms: Iterable[Histogram | None], least: int, empty: tuple[int, int]) -> tuple[int, int]:
    """Powers of ten in ns that hold all samples, at least two apart, so that an axis seldom moves.

    From that of ``least`` on; ``empty`` where there are no samples.
    """
    total = Histogram.total([h for h in histograms if h is not None])
    low, high = smallest(total), largest(total)
    if low is None or high is None:
        return empty
    bottom = 10 ** (len(str(max(low, least))) - 1)
    return bottom, max(10 ** len(str(max(high - 1, 1))), 100 * bottom)

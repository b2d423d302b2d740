"""Pure functions on counts: rates, histogram buckets and percentiles.

The histogram is log-linear as HdrHistogram's: values below STEPS have a bucket each, above that every octave has
STEPS of equal width.  A percentile is interpolated inside its bucket, so its error is at most half a bucket: 3.2 %.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nettop.model import SLOTS, STEPS, Histogram

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


def rebin(histogram: Histogram, edges: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Counts between consecutive ``edges`` (ns, ascending): uint64[len(edges) - 1]; outliers go to the end bins.

    A bucket is put where its middle lies.
    """
    lowers = bucket_lowers()
    middles = (lowers[:-1] + lowers[1:]) // 2
    place = np.clip(np.searchsorted(edges, middles, side="right") - 1, 0, len(edges) - 2)
    result = np.zeros(len(edges) - 1, np.uint64)
    np.add.at(result, place, histogram.counts)
    return result

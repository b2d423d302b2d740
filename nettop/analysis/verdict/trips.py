"""What a flow's round trips say of the network, and what of them is the far end's own time.

A passive round trip ends with what the far end sends next.  A bare ACK is sent by its TCP stack, at once or after the
delayed-ACK timer; an ACK that comes with data waited for the application.  So a long round trip is the network's only
where there is evidence for that: docs/verdict.md, "Round trips".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, quantiles
from typing import Any

from nettop.analysis.verdict.flow import focused_of, outward, round_trips, rows_of
from nettop.core.frame import Frame
from nettop.probes.flows.constants import FLAG_FIN_RECEIVED, FLAG_FIN_SENT, FLAG_MIDWAY, METHODS, both_ways
from nettop.probes.flows.focus import Socket
from nettop.probes.flows.rows import FLAG_STAMPED_BY_REMOTE
from nettop.probes.flows.section import Sample

MS = 1_000_000
ENOUGH = 3  # samples: fewer are chance
GROUP = 10  # samples whose least is compared: jitter has a short one among them, a standing queue has none
HELD_NS = (30 * MS, 60 * MS)  # delayed ACKs: 40 ms in Linux, 50 in others
STEADY_NS = 6 * MS  # a timer's spread: its tick is 4 ms where HZ is 250
SMALL = 600  # bytes a packet: below, a receiver waits for more before it acknowledges
RISE_NS = 5 * MS  # below that there is nothing to tell apart
RETURN_SHARE = 0.25  # of a rise, on the way back alone
OTHERS = ("echo", "dns", "spin")  # methods without TCP: a kernel answers an echo, a server a query
DENSE = 4  # packets each way in a round trip, so that the spin bit turns when it could
# Ticks of TSval; coarser ones show nothing here.
NOMINAL_NS = (
    1_000,
    100_000,
    1_000_000,
    4_000_000,
    10_000_000,
)
RECENT_NS = 20_000 * MS  # in which two clocks stay together: they drift by 2 ms at most
PAUSE_NS = 10 * MS  # of a sender: FOCUS_PAUSE_NS of bpf_src/flows/focus.h
FLAGS_FIN = FLAG_FIN_RECEIVED | FLAG_FIN_SENT


@dataclass(frozen=True, slots=True)
class Trips:
    """The round trips of a window in ns.

    ``rtt_ns`` is the mean of those that are the network's, None where there are none; ``least_ns`` the least known.
    ``standing_ns``: by how much even the shortest of each group exceeds the least: a queue that never empties (the
    principle of CoDel, RFC 8289).  ``source`` says where they are from.

    ``answers_only``: every sample ended with data, so the far end's application is in it.  ``late_ns``: how much longer
    than the least such samples were, where the way back is not known to have become longer.  ``return_ns``: by how much
    the way back became longer, by the far end's own timestamps; None where that cannot be told.  ``held``: samples
    that were delayed ACKs.  ``trusted``: the least is the network's, and not an answer's.
    """

    rtt_ns: float | None = None
    least_ns: float | None = None
    standing_ns: float | None = None
    samples: int = 0
    source: str = ""
    answers_only: bool = False
    late_ns: float = 0.0
    return_ns: float | None = None
    held: int = 0
    trusted: bool = True

    def measured(self, values: Sequence[float]) -> Trips:
        """The same with the mean of these."""
        standing = _standing(values, self.least_ns)
        return replace(self, rtt_ns=fmean(values), standing_ns=standing, samples=len(values))


def trips_of(recent: Sequence[Frame], frames: Sequence[Frame], flow: int, sockets: Sequence[Socket]) -> Trips:
    """From the frames of the window; ``recent``: those of the last RECENT_NS, the window's among them."""
    rows = rows_of(frames, flow)
    row = rows[-1]
    least = _least(row, sockets)
    samples = [s for frame in frames for s in outward(frame, flow)]
    method = METHODS[int(row["rtt"]["method"])]
    if not samples or method in OTHERS:
        # Not in focus: one sample an interval, and nothing is known of what ended it.  Not TCP: the method says that.
        values = [float(v) for f in frames for v in round_trips(f, flow)]
        if not values:
            return _by_kernel(row, frames, flow, sockets)
        # An edge of the spin bit is not too late only where packets go both ways so often that it waits for none.
        dense = least is not None and _packet_rate(rows, frames) * least / 1e9 >= DENSE
        trusted = method not in OTHERS or method == "echo" or (method == "spin" and dense)
        return Trips(least_ns=least, source=method, answers_only=not trusted, trusted=trusted).measured(
            values
        )
    # The row may be older than its samples (--scan-interval).
    least = min(s.rtt_ns for s in samples) if least is None else least
    bare = [s for s in samples if s.payload == 0]
    carried = [s for s in samples if s.payload]
    unknown = any(s.payload is None for s in samples)
    back = _return_rise(samples, [s for f in recent for s in outward(f, flow)], least)
    unsent = any(s.unsent for s in sockets)
    held = set() if unsent else set(_held(bare, least, back, rows))
    trips = Trips(least_ns=least, source=method, return_ns=back, held=len(held))
    prompt = [float(s.rtt_ns) for s in bare if s not in held]
    if prompt and len(prompt) >= min(ENOUGH, len(carried) or 1):
        return trips.measured(prompt)
    opened = not int(row["flags"]) & FLAG_MIDWAY
    kernel = any(s.rtt_min_ns for s in sockets)
    trips = replace(trips, trusted=bool(bare or unknown or opened or kernel or not carried))
    values = [float(s.rtt_ns) for s in samples if s not in held]
    if not values:  # delayed ACKs alone: the least stands for the way
        return replace(trips, rtt_ns=least, standing_ns=0.0, samples=len(samples))
    rise = fmean(values) - least
    trips = replace(trips.measured(values), answers_only=bool(carried) and not unknown)
    if trips.answers_only and rise >= RISE_NS and not (back is not None and back >= RETURN_SHARE * rise):
        return replace(trips, rtt_ns=least, standing_ns=0.0, late_ns=rise)
    return trips


def _packet_rate(rows: Sequence[Any], frames: Sequence[Frame]) -> float:
    """Packets a second in the direction that has fewer."""
    counts = [both_ways(row, "packets") for row in rows]
    return min(map(sum, zip(*counts, strict=True))) / (sum(frame.interval_ns for frame in frames) / 1e9)


def _least(row: Any, sockets: Sequence[Socket]) -> float | None:
    """The least round trip, by nettop or by the kernel, whose own has the handshake of a connection that is older."""
    known = [float(s.rtt_min_ns) for s in sockets if s.rtt_min_ns]
    if row["rtt"]["samples_total"]:
        known.append(float(row["rtt"]["min"]))
    return min(known, default=None)


def _standing(values: Sequence[float], least: float | None) -> float | None:
    """By how much the least of each group of samples exceeds the least of all, in the mean."""
    if least is None or len(values) < ENOUGH:
        return None
    size = min(GROUP, len(values))
    lows = [min(values[i : i + size]) for i in range(0, len(values) - size + 1, size)]
    return max(fmean(lows) - least, 0.0)


def _by_kernel(row: Any, frames: Sequence[Frame], flow: int, sockets: Sequence[Socket]) -> Trips:
    """Where this host sends nothing that could be answered: what the kernel's own socket knows.

    Its estimate as a receiver times its ACK until the data that echoes it (tcp_rcv_rtt_measure_ts), so any pause of the
    sender is in it: it counts only while the sender makes none, and as far as it exceeds those that would not be seen.
    Without timestamps, and once there was a FIN, it is how long a window of data takes, which is no round trip.
    """
    least = min((float(s.rtt_min_ns) for s in sockets if s.rtt_min_ns), default=None)
    if least is None:
        return Trips()
    looks = [f for frame in frames if (f := focused_of(frame, flow)) is not None]
    seconds = sum(frame.interval_ns for frame in frames) / 1e9
    pauses = sum(f.unasked[0] for f in looks if f.unasked is not None)
    data = sum(f.data[0] for f in looks)
    estimates = [float(s.rcv_rtt_ns) for s in sockets if s.rcv_rtt_ns]
    plain = int(row["flags"]) & (FLAG_STAMPED_BY_REMOTE | FLAGS_FIN) == FLAG_STAMPED_BY_REMOTE
    if not plain or len(estimates) < ENOUGH or pauses > 2 + seconds or data < 20 * seconds:
        return Trips(None, least, None, 0, "kernel")
    least = min(least, *estimates)
    rise = min(estimates) - least
    standing = rise if rise >= 2 * PAUSE_NS else 0.0
    return Trips(fmean(estimates), least, standing, len(estimates), "kernel, as receiver")


def _held(
    bare: Sequence[Sample],
    least: float,
    back: float | None,
    rows: Sequence[Any],
) -> list[Sample]:
    """Samples that are delayed ACKs: of a receiver of small segments that has nothing to say (RFC 9293, 3.8.6.3).

    Bare ACKs, all about as much later than the least as the timer is long; and the way back, by the receiver's own
    clock, no longer than before.
    """
    late = [s for s in bare if HELD_NS[0] <= s.rtt_ns - least <= HELD_NS[1]]
    packets, size = (sum(int(row[f"tx_{name}"]) for row in rows) for name in ("packets", "bytes"))
    if not late or not packets or size / packets >= SMALL:
        return []
    if back is not None and back >= RETURN_SHARE * HELD_NS[0]:
        return []
    between = [s for s in bare if RISE_NS <= s.rtt_ns - least < HELD_NS[0]]
    if 4 * len(between) > len(late):
        return []  # a timer leaves a gap there, and a queue does not
    times = [s.rtt_ns for s in late]
    if len(times) >= 4 and not any(s.rtt_ns - least < RISE_NS for s in bare):
        low, _, high = quantiles(times, n=4)
        if high - low > STEADY_NS:
            return []
    return late


def _return_rise(samples: Sequence[Sample], known: Sequence[Sample], least: float) -> float | None:
    """By how much the way back is longer than when the round trip was near its least; None where that cannot be told.

    What arrives carries the far end's clock when it was sent (TSval, RFC 7323).  How far the clocks are apart is not
    known, and it stays the same: so its growth is the way's.  Medians: one stall is not the way.
    """
    stamped = sorted((s for s in known if s.tsval is not None), key=lambda s: s.time_ns)
    window = [s for s in samples if s.tsval is not None]
    if len(stamped) < 2 * ENOUGH or not window:
        return None
    first, last = stamped[0], stamped[-1]

    def ticks(s: Sample) -> int:
        return ((s.tsval or 0) - (first.tsval or 0)) & 0xFFFFFFFF

    tick = _tick(last.time_ns - first.time_ns, ticks(last))
    rise = median(s.rtt_ns for s in window) - least
    near = [s for s in stamped if s.rtt_ns - least <= rise / 4]
    if tick is None or rise < RISE_NS or len(near) < ENOUGH:
        return None

    def behind(each: Sequence[Sample]) -> float:
        return median((s.time_ns - first.time_ns) - ticks(s) * tick for s in each)

    return behind(window) - behind(near)


def _tick(passed_ns: int, ticks: int) -> float | None:
    """The length of a TSval's tick by what went by on both clocks; None where it is not certain, or too coarse."""
    if ticks < 50 or passed_ns <= 0:
        return None
    measured = passed_ns / ticks
    nearest = min(NOMINAL_NS, key=lambda tick: abs(tick / measured - 1))
    return float(nearest) if abs(nearest / measured - 1) < 0.15 else None

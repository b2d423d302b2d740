"""The flow in focus: what the kernel's own socket says of it, and how long each end takes to answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nettop.core.fields import Part, field
from nettop.probes.base import Array

_JIFFY_NS = (10_000_000, 4_000_000, 3_333_333, 1_000_000)  # CONFIG_HZ 100, 250, 300, 1000
_SETTLED = 8  # jiffies after which their length is certain


@dataclass(frozen=True, slots=True)
class Socket(Part):
    """The local TCP socket when a packet last came in, and what kept it since the reading before."""

    time_ns: int = field("when it was read, CLOCK_MONOTONIC", "ns", default=0)
    cwnd: int = field("congestion window", "segments", default=0)
    ssthresh: int | None = field("threshold of slow start; `null`: none yet", "segments", default=None)
    mss: int = field("a full segment", "bytes", default=0)
    send_window: int = field("what the remote end has announced to take", "bytes", default=0)
    receive_window: int = field("what this end has announced to take", "bytes", default=0)
    in_flight: int = field("sent and not acknowledged", "bytes", default=0)
    unsent: int = field("written and not sent", "bytes", default=0)
    unread: int = field("received in order and not read", "bytes", default=0)
    span_ns: int = field("since the reading before. Of that time", "ns", default=0)
    busy_ns: int = field(
        "some data was not acknowledged (tcp_info's busy time), and of that", "ns", default=0
    )
    window_ns: int = field("it waited for the remote end's window (rwnd_limited)", "ns", default=0)
    buffer_ns: int = field("it waited for a larger send buffer (sndbuf_limited)", "ns", default=0)
    srtt_ns: int | None = field(
        "the kernel's own round trip, smoothed (srtt); `null`: none yet", "ns", default=None
    )
    rtt_min_ns: int | None = field(
        "the kernel's least of five minutes (tcp_info's min_rtt)", "ns", default=None
    )
    rcv_rtt_ns: int | None = field(
        "the kernel's estimate for what it receives (tcp_info's rcv_rtt): from an ACK to data that echoes it, pauses "
        "of the sender in it; `null`: none yet",
        "ns",
        default=None,
    )
    retransmits: int | None = field(
        "that the kernel sent again since the reading before (total_retrans); `null`: not known",
        "segments",
        default=None,
    )
    dsack_dups: int | None = field(
        "of these, such as the remote end says it had already (DSACK); `null`: not known",
        "segments",
        default=None,
    )


@dataclass(frozen=True, slots=True)
class Focused(Part):
    """Of one interval.  Pairs are received, sent."""

    flow: int = field("its `id`")
    data: tuple[int, int] = field(
        "with data; a GSO or GRO packet is one", "packets", ways=True, default=(0, 0)
    )
    zero_windows: tuple[int, int] = field(
        "that announce a window of 0: `rx_` by the remote end", "segments", ways=True, default=(0, 0)
    )
    answers: tuple[int, int] = field(
        "how often an end sent data after the other end had: `rx_` the remote end",
        "answers",
        ways=True,
        default=(0, 0),
    )
    answer_ns: tuple[int, int] = field(
        "how long that took, at the interface, summed", "ns", ways=True, default=(0, 0)
    )
    socket: Socket | None = field(
        "of the local TCP socket, read when a packet comes in; `null` where there is none", default=None
    )
    unasked: tuple[int, int] | None = field(
        "how often an end sent more after a pause of 10 ms, with nothing from the other end between; `null`: not "
        "counted",
        "times",
        ways=True,
        default=None,
    )


def _numbers(reading: Array) -> dict[str, Any]:
    return {name: reading[name].tolist() for name in reading.dtype.names or ()}


class FocusedFold:
    """Differences between readings of the map ``focused``."""

    def __init__(self) -> None:
        self._before: dict[str, Any] = {"id": 0}
        self._first = (0, 0)  # time in ns and jiffies of this flow's first reading
        self._told = [0, 0, 0]  # of each account, in jiffies

    def __call__(self, reading: Array, flow: int) -> Focused | None:
        """From the value of the map ``focused``, with the flow that is in focus; None where that is none."""
        nothing = {**_numbers(np.zeros((), reading.dtype)), "id": flow}
        now = _numbers(reading)
        if now["id"] != flow:  # it has not moved yet, and this is what was known of another
            now = nothing
        before, self._before = self._before, now
        if not flow:
            return None
        if before["id"] != flow:
            before = nothing
        grown: dict[str, Any] = {
            name: tuple(map(int.__sub__, now[name], before[name]))
            for name in ("data", "zero_windows", "answers", "answer_ns", "unasked")
        }
        return Focused(flow, **grown, socket=self._socket(now, before) if now["time"] else None)

    def _socket(self, now: dict[str, Any], before: dict[str, Any]) -> Socket:
        accounts = _accounts(now)
        span, parts = 0, [0, 0, 0]
        if not before["time"]:
            self._first = now["time"], now["jiffies"]
            self._told = accounts
        elif jiffy := self._jiffy(now):
            span = now["time"] - before["time"]
            # What goes on is told as part of what it seems to be; where that was wrong, later parts make up for it.
            grown = [max(a - t, 0) for a, t in zip(accounts, self._told, strict=True)]
            self._told = [t + g for t, g in zip(self._told, grown, strict=True)]
            parts = [min(g * jiffy, span) for g in grown]

        def counted(name: str) -> int | None:
            """Since the reading before; None where this is the first."""
            return (now[name] - before[name]) & 0xFFFFFFFF if span else None

        same = ("cwnd", "mss", "send_window", "receive_window", "in_flight", "unsent", "unread")
        return Socket(
            time_ns=now["time"],
            ssthresh=now["ssthresh"] if now["ssthresh"] < 0x7FFFFFFF else None,
            span_ns=span,
            busy_ns=min(sum(parts), span),
            window_ns=parts[1],
            buffer_ns=parts[2],
            srtt_ns=now["srtt"] * 1000 or None,
            rtt_min_ns=now["rtt_min"] * 1000 or None if now["rtt_min"] < 0xFFFFFFFF else None,
            rcv_rtt_ns=now["rcv_rtt"] * 1000 or None,
            retransmits=counted("total_retrans"),
            dsack_dups=counted("dsack_dups"),
            **{name: now[name] for name in same},
        )

    def _jiffy(self, now: dict[str, Any]) -> int:
        """The length of a jiffy in ns, by what went by on both clocks; 0 where that is not certain yet."""
        passed = now["jiffies"] - self._first[1]
        if passed < _SETTLED:
            return 0
        measured = (now["time"] - self._first[0]) / passed
        return min(_JIFFY_NS, key=lambda length: abs(length / measured - 1))


def _accounts(now: dict[str, Any]) -> list[int]:
    """Jiffies that the socket was busy and nothing else, limited by the window, and by the buffer; what goes on too.

    The kernel adds what goes on when it ends.  Which of the three that is, it keeps in two bits that programs cannot
    read; the windows tell.
    """
    accounts: list[int] = list(now["chrono"])
    if now["in_flight"] or now["unsent"]:
        wanted = now["in_flight"] + min(now["unsent"], now["mss"])
        stalled = now["unsent"] and wanted > now["send_window"]
        accounts[1 if stalled else 0] += (now["jiffies"] - now["chrono_start"]) & 0xFFFFFFFF
    return accounts

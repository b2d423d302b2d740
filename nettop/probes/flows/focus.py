"""The flow in focus: what the kernel's own socket says of it, and how long each end takes to answer."""

from __future__ import annotations

from dataclasses import dataclass

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


class FocusedFold:
    """Differences between readings of the map ``focused``."""

    def __init__(self) -> None:
        self._before: Array | None = None
        self._first = (0, 0)  # time in ns and jiffies of this flow's first reading
        self._told = [0, 0, 0]  # of each account, in jiffies

    def __call__(self, reading: Array, flow: int) -> Focused | None:
        """From the value of the map ``focused``, with the flow that is in focus; None where that is none."""
        now = reading.copy()
        if int(now["id"]) != flow:  # it has not moved yet, and this is what was known of another
            now = np.zeros((), now.dtype)
            now["id"] = flow
        before, self._before = self._before, now
        if not flow:
            return None
        if before is not None and int(before["id"]) != int(now["id"]):
            before = None

        def grown(name: str) -> tuple[int, int]:
            values = [int(v) for v in now[name]]
            if before is not None:
                values = [v - int(b) for v, b in zip(values, before[name], strict=True)]
            return values[0], values[1]

        return Focused(
            int(now["id"]),
            grown("data"),
            grown("zero_windows"),
            grown("answers"),
            grown("answer_ns"),
            self._socket(now, before) if int(now["time"]) else None,
            grown("unasked"),
        )

    def _socket(self, now: Array, before: Array | None) -> Socket:
        accounts = _accounts(now)
        span, parts = 0, [0, 0, 0]
        if before is None or not int(before["time"]):
            self._first = int(now["time"]), int(now["jiffies"])
            self._told = accounts
        else:
            span = int(now["time"]) - int(before["time"])
            jiffy = self._jiffy(now)
            if jiffy:
                # What goes on is told as part of what it seems to be; where that was wrong, later parts make up for it.
                grown = [max(a - t, 0) for a, t in zip(accounts, self._told, strict=True)]
                self._told = [t + g for t, g in zip(self._told, grown, strict=True)]
                parts = [min(g * jiffy, span) for g in grown]
            else:
                span = 0
        ssthresh = int(now["ssthresh"])
        rtt_min = int(now["rtt_min"])

        def counted(name: str) -> int | None:
            """Since the reading before; None where this is the first."""
            return (int(now[name]) - int(before[name])) & 0xFFFFFFFF if before is not None and span else None

        return Socket(
            time_ns=int(now["time"]),
            ssthresh=ssthresh if ssthresh < 0x7FFFFFFF else None,
            span_ns=span,
            busy_ns=min(sum(parts), span),
            window_ns=parts[1],
            buffer_ns=parts[2],
            srtt_ns=int(now["srtt"]) * 1000 or None,
            rtt_min_ns=rtt_min * 1000 if 0 < rtt_min < 0xFFFFFFFF else None,
            rcv_rtt_ns=int(now["rcv_rtt"]) * 1000 or None,
            retransmits=counted("total_retrans"),
            dsack_dups=counted("dsack_dups"),
            **{
                name: int(now[name])
                for name in ("cwnd", "mss", "send_window", "receive_window", "in_flight", "unsent", "unread")
            },
        )

    def _jiffy(self, now: Array) -> int:
        """The length of a jiffy in ns, by what went by on both clocks; 0 where that is not certain yet."""
        passed = int(now["jiffies"]) - self._first[1]
        if passed < _SETTLED:
            return 0
        measured = (int(now["time"]) - self._first[0]) / passed
        return min(_JIFFY_NS, key=lambda length: abs(length / measured - 1))


def _accounts(now: Array) -> list[int]:
    """Jiffies that the socket was busy and nothing else, limited by the window, and by the buffer; what goes on too.

    The kernel adds what goes on when it ends.  Which of the three that is, it keeps in two bits that programs cannot
    read; the windows tell.
    """
    accounts = [int(v) for v in now["chrono"]]
    in_flight, unsent = int(now["in_flight"]), int(now["unsent"])
    if in_flight or unsent:
        stalled = unsent and in_flight + min(unsent, int(now["mss"])) > int(now["send_window"])
        accounts[1 if stalled else 0] += (int(now["jiffies"]) - int(now["chrono_start"])) & 0xFFFFFFFF
    return accounts

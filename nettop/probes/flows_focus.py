"""The flow in focus: what the kernel's own socket says of it, and how long each end takes to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from nettop.probes.base import Array

_JIFFY_NS = (10_000_000, 4_000_000, 3_333_333, 1_000_000)  # CONFIG_HZ 100, 250, 300, 1000
_SETTLED = 8  # jiffies after which their length is certain


@dataclass(frozen=True, slots=True)
class Socket:
    """The local TCP socket when a packet last came in, and what kept it since the reading before.

    Sizes are in bytes, ``cwnd`` in segments.  ``busy_ns`` of ``span_ns`` it had data that was not acknowledged;
    ``window_ns`` of these it waited for the remote end's window, ``buffer_ns`` for room in the send buffer
    (tcp_info's busy_time, rwnd_limited, sndbuf_limited; include/linux/tcp.h, enum tcp_chrono).  The kernel's own round
    trips: smoothed, the least of five minutes, and its estimate as a receiver.  ``retransmits``: segments sent again
    since the reading before, ``dsack_dups`` of which the remote end had already.  None: not known, or no sample yet.
    """

    time_ns: int
    cwnd: int
    ssthresh: int | None
    mss: int
    send_window: int
    receive_window: int
    in_flight: int
    unsent: int
    unread: int
    span_ns: int = 0
    busy_ns: int = 0
    window_ns: int = 0
    buffer_ns: int = 0
    srtt_ns: int | None = None
    rtt_min_ns: int | None = None
    rcv_rtt_ns: int | None = None
    retransmits: int | None = None
    dsack_dups: int | None = None


_OPTIONAL = ("ssthresh", "srtt_ns", "rtt_min_ns", "rcv_rtt_ns", "retransmits", "dsack_dups")


@dataclass(frozen=True, slots=True)
class Focused:
    """Of one interval.  Pairs are received, sent.

    ``answers``: how often an end sent data after the other end had; ``answer_ns``: how long that took, summed.
    ``unasked``: how often it went on after a pause, without a word from the other end; None: not counted.
    """

    flow: int
    data: tuple[int, int] = (0, 0)
    zero_windows: tuple[int, int] = (0, 0)
    answers: tuple[int, int] = (0, 0)
    answer_ns: tuple[int, int] = (0, 0)
    socket: Socket | None = None
    unasked: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """The key ``focus`` of the frame."""
        result: dict[str, Any] = {"flow": self.flow}
        for name in _PAIRS:
            stem, unit = (name[:-3], "_ns") if name.endswith("_ns") else (name, "")
            for way, value in zip(("rx", "tx"), getattr(self, name), strict=True):
                result[f"{way}_{stem}{unit}"] = value
        for way, value in zip(("rx", "tx"), self.unasked or (None, None), strict=True):
            result[f"{way}_unasked"] = value
        result["socket"] = None if self.socket is None else asdict(self.socket)
        return result

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Self | None:
        """The inverse; None where no flow was in focus."""
        if not data:
            return None
        pairs = {
            name: (int(data.get(f"rx_{name}") or 0), int(data.get(f"tx_{name}") or 0)) for name in _PAIRS
        }
        kept = data.get("socket")
        socket = None
        if kept:
            values: dict[str, Any] = {
                f.name: int(kept.get(f.name) or 0) for f in fields(Socket) if f.name not in _OPTIONAL
            }
            for name in _OPTIONAL:
                values[name] = None if kept.get(name) is None else int(kept[name])
            socket = Socket(**values)
        unasked = None
        if data.get("rx_unasked") is not None and data.get("tx_unasked") is not None:
            unasked = int(data["rx_unasked"]), int(data["tx_unasked"])
        return cls(flow=int(data["flow"]), socket=socket, unasked=unasked, **pairs)


_PAIRS = ("data", "zero_windows", "answers", "answer_ns")


class FocusedFold:
    """Differences between readings of the map ``focused``."""

    def __init__(self) -> None:
        self._before: Array | None = None
        self._first = (0, 0)  # time in ns and jiffies of this flow's first reading
        self._told = [0, 0, 0]  # of each account, in jiffies

    def __call__(self, reading: Array, flow: int) -> Focused | None:
        """From one value of dtype FOCUSED, with the flow that is in focus; None where that is none."""
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

"""Layouts and constants of bpf_src/flow.h, as numpy sees them; tests/unit/test_layout.py compares."""

from __future__ import annotations

from typing import Any

import numpy as np

from nettop.model import SLOTS

OUTWARD, INWARD = 0, 1
EVENT_OPEN, EVENT_CLOSE, EVENT_SAMPLE = 1, 2, 3
STATE_NONE, STATE_SYN, STATE_OPEN, STATE_CLOSING, STATE_CLOSED, STATE_RESET = range(6)
STATES = ("", "syn", "open", "closing", "closed", "reset")
METHODS = ("", "timestamp", "sequence", "handshake", "echo", "dns", "spin")
METHOD_SPIN = METHODS.index("spin")
SPIN_PACKETS = 64  # so many without a sign of spinning, and it does not spin
FLAG_OPENED_BY_REMOTE, FLAG_OPENED_BY_LOCAL, FLAG_MIDWAY = 4, 8, 16
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}

FLOW_KEY = np.dtype(
    [
        ("local", "u1", (16,)),
        ("remote", "u1", (16,)),
        ("local_port", "u2"),
        ("remote_port", "u2"),
        ("protocol", "u4"),
    ]
)
OUTSTANDING = np.dtype([("time", "u8"), ("value", "u4"), ("method", "u4")])
FLOW_DIR = np.dtype(
    [
        ("bytes", "u8"),
        ("packets", "u8"),
        ("retransmits", "u4"),
        ("out_of_order", "u4"),
        ("sequence", "u4"),
        ("stamp", "u4"),
        ("sent", OUTSTANDING, (2,)),
    ]
)
RTT = np.dtype(
    [
        ("last", "u8"),
        ("min", "u8"),
        ("smoothed", "u8"),
        ("variance", "u8"),
        ("time", "u8"),
        ("samples", "u4"),
        ("method", "u4"),
    ]
)
FLOW = np.dtype(
    [
        ("id", "u8"),
        ("first", "u8"),
        ("last", "u8"),
        ("state", "u1"),
        ("flags", "u1"),
        ("window", "u2", (2,)),
        ("tick", "u1", (2,)),
        ("dir", FLOW_DIR, (2,)),
        ("rtt", RTT, (2,)),
    ]
)
EVENT = np.dtype(
    [
        ("time", "u8"),
        ("id", "u8"),
        ("key", FLOW_KEY),
        ("bytes", "u8", (2,)),
        ("packets", "u8", (2,)),
        ("rtt", "u8"),
        ("kind", "u1"),
        ("state", "u1"),
        ("side", "u1"),
        ("method", "u1"),
        ("spare", "u4"),
    ]
)
COUNTERS = np.dtype(
    [
        (name, "u8")
        for name in (
            "created",
            "replaced",
            "opened",
            "closed",
            "untracked",
            "fragments",
            "lost_events",
            "samples",
            "subnet_overflow",
            "tick",
            "tick_ns",
        )
    ]
)
HIST = np.dtype([("sum", "u8"), ("slots", "u8", (SLOTS,))])
SUBNET_KEY = np.dtype([("prefix", "u1", (16,)), ("length", "u4"), ("version", "u4")])
SUBNET = np.dtype([("sum", "u8"), ("min", "u8"), ("slots", "u4", (SLOTS,))])
OWNER = np.dtype(
    [
        ("time", "u8"),
        ("pid", "u4"),
        ("uid", "u4"),
        ("srtt_us", "u4"),
        ("cwnd", "u4"),
        ("netns", "u4"),
        ("spare", "u4"),
        ("comm", "S16"),
    ]
)

FOCUSED = np.dtype(
    [
        ("id", "u8"),
        ("time", "u8"),
        ("jiffies", "u8"),
        ("socket", "u8"),
        ("spoke", "u8", (2,)),
        ("answer_ns", "u8", (2,)),
        ("answers", "u4", (2,)),
        ("data", "u4", (2,)),
        ("zero_windows", "u4", (2,)),
        ("cwnd", "u4"),
        ("ssthresh", "u4"),
        ("mss", "u4"),
        ("send_window", "u4"),
        ("receive_window", "u4"),
        ("in_flight", "u4"),
        ("unsent", "u4"),
        ("unread", "u4"),
        ("chrono_start", "u4"),
        ("chrono", "u4", (3,)),
        ("last", "u4"),
        ("spare", "u4"),
    ]
)

# A row of the frame's flow table.  Times are CLOCK_MONOTONIC ns; counts are of the interval, _total since the start.
ROW_RTT = np.dtype(
    [
        ("last", "u8"),
        ("min", "u8"),
        ("smoothed", "u8"),
        ("variance", "u8"),
        ("time", "u8"),
        ("samples", "u4"),
        ("samples_total", "u4"),
        ("method", "u4"),
    ]
)
ROW = np.dtype(
    [
        ("id", "u8"),
        ("protocol", "u1"),
        ("local", "u1", (16,)),
        ("remote", "u1", (16,)),
        ("local_port", "u2"),
        ("remote_port", "u2"),
        ("vlan", "u2"),
        ("vlan_inner", "u2"),
        ("state", "u1"),
        ("flags", "u1"),
        ("rx_bytes", "u8"),
        ("tx_bytes", "u8"),
        ("rx_packets", "u8"),
        ("tx_packets", "u8"),
        ("rx_bytes_total", "u8"),
        ("tx_bytes_total", "u8"),
        ("rx_packets_total", "u8"),
        ("tx_packets_total", "u8"),
        ("rx_retransmits", "u4"),
        ("tx_retransmits", "u4"),
        ("rx_out_of_order", "u4"),
        ("tx_out_of_order", "u4"),
        ("rx_window", "u2"),
        ("tx_window", "u2"),
        ("spin_packets", "u4"),
        ("spin_edges", "u4"),
        ("spin_singles", "u4"),
        ("first", "u8"),
        ("last", "u8"),
        ("rtt", ROW_RTT),
        ("internal_rtt", ROW_RTT),
        ("pid", "u4"),
        ("process", "S16"),
        ("srtt_us", "u4"),
        ("cwnd", "u4"),
    ]
)


def key_of(row: Any) -> bytes:
    """The key of a row's flow in the kernel: struct flow_key, 40 bytes."""
    key = np.zeros(1, FLOW_KEY)
    for name in ("local", "remote", "local_port", "remote_port"):
        key[name] = row[name]
    key["protocol"] = int(row["protocol"]) | int(row["vlan"]) << 8 | int(row["vlan_inner"]) << 20
    return key.tobytes()


def _by_chance(count: int, total: int) -> bool:
    """Whether ``count`` of ``total`` is what tossing a coin gives, within four standard deviations."""
    return (2 * count - total) ** 2 <= 16 * total


def spinning(row: Any) -> bool | None:
    """Whether a QUIC flow's spin bit spins (RFC 9000, 17.4); None where that is not known or it is no QUIC flow.

    A constant bit has no edges.  A random one has them in half of the packets, and half of its runs have one packet.
    """
    packets, edges, singles = int(row["spin_packets"]), int(row["spin_edges"]), int(row["spin_singles"])
    if row["protocol"] != PROTOCOLS["udp"]:
        return None
    if edges > 1 and not (_by_chance(edges, packets) and _by_chance(singles, edges)):
        return True
    return None if packets < SPIN_PACKETS else False

"""Layouts and constants of bpf_src/flows/flow.h, as numpy sees them; tests/unit/test_layout.py compares."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nettop.model import SLOTS

OUTWARD, INWARD = 0, 1
STATES = ("", "syn", "open", "closing", "closed", "reset", "unreplied")
STATE_NONE, STATE_SYN, STATE_OPEN, STATE_CLOSING, STATE_CLOSED, STATE_RESET, STATE_UNREPLIED = range(7)
METHODS = ("", "timestamp", "sequence", "handshake", "echo", "dns", "spin")
METHOD_SPIN = METHODS.index("spin")
SPIN_PACKETS = 64  # so many without a sign of spinning, and it does not spin
FLAG_FIN_RECEIVED, FLAG_FIN_SENT = 1, 2
FLAG_OPENED_BY_REMOTE, FLAG_OPENED_BY_LOCAL, FLAG_MIDWAY = 4, 8, 16
FLAG_TCP, FLAG_SYN, FLAG_REPLIED, FLAG_CLOSED, FLAG_RESET = 32, 64, 128, 256, 512
FLAG_STAMPED_BY_REMOTE = 1 << 15  # of a row alone: the remote end sends TCP timestamps
DIR_STAMPED = 8
# How long a flow stays in the table after its last packet, in s.
LINGER_CLOSED, LINGER_UNREPLIED, LINGER_OTHER, LINGER_CLOSING, LINGER_TCP = 5, 30, 120, 120, 3600
# What the packets of a flow are wrapped in: TUNNEL_* of bpf_src/include/parse.h.
TUNNELS = ("", "pppoe", "mpls", "ipip", "gre", "vxlan", "geneve")
TUNNEL_GRE = TUNNELS.index("gre")  # from here on they have a number
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}

FLOW_KEY = np.dtype(
    [
        ("local", "u1", (16,)),
        ("remote", "u1", (16,)),
        ("local_port", "u2"),
        ("remote_port", "u2"),
        ("protocol", "u4"),
        ("tunnel", "u4"),
        ("tunnel_id", "u4"),
    ]
)
DUE_FLOWS = 256  # that one run of flows_expire looks at
DUE = np.dtype(
    [("read_at", "u8"), ("count", "u8"), ("of", [("key", FLOW_KEY), ("id", "u8")], (DUE_FLOWS,))], align=True
)
RTT_PROBE = np.dtype([("time", "u8"), ("value", "u4"), ("method", "u4")])
FLOW_DIR = np.dtype(
    [
        ("bytes", "u8"),
        ("packets", "u8"),
        ("seq", "u4"),
        ("tsval", "u4"),
        ("ack", "u4"),
        ("window", "u2"),
        ("ip_id", "u2"),
        ("data_time", "u4"),
        ("ip_id_score", "u1"),
        ("probe_slot", "u1"),
        ("mss", "u2"),
        ("syn_bytes", "u4"),
        ("retransmits", "u4"),
        ("out_of_order", "u4"),
        ("duplicates", "u4"),
        ("tcp_probes", "u4"),
        ("uncertain", "u4"),
        ("dsacks", "u4"),
        ("known", "u1"),
        ("window_scale", "u1"),
        ("gaps", "u1"),
        ("epoch", "u1"),
        ("rtt_probes", RTT_PROBE, (2,)),
    ]
)
RTT = np.dtype(
    [
        ("last", "u8"),
        ("min", "u8"),
        ("min_bare", "u8"),
        ("srtt", "u8"),
        ("rttvar", "u8"),
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
        ("flags", "u8"),
        ("dir", FLOW_DIR, (2,)),
        ("rtt", RTT, (2,)),
    ]
)
EVENT = np.dtype(
    [
        ("time", "u8"),
        ("id", "u8"),
        ("rtt", "u8"),
        ("side", "u4"),
        ("method", "u4"),
        ("payload", "u4"),
        ("tsval", "u4"),
    ]
)
COUNTERS = np.dtype(
    [
        (name, "u8")
        for name in (
            "ids",
            "created",
            "replaced",
            "opened",
            "closed",
            "revived",
            "expired",
            "idle",
            "untracked",
            "fragments",
            "fragment_bytes",
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
        ("unasked", "u4", (2,)),
        ("srtt", "u4"),
        ("rtt_min", "u4"),
        ("rcv_rtt", "u4"),
        ("total_retrans", "u4"),
        ("dsack_dups", "u4"),
    ]
)

# A row of the frame's flow table.  Times are CLOCK_MONOTONIC ns; counts are of the interval, _total since the start.
ROW_RTT = np.dtype(
    [
        ("last", "u8"),
        ("min", "u8"),
        ("min_bare", "u8"),
        ("smoothed", "u8"),
        ("variance", "u8"),
        ("time", "u8"),
        ("samples", "u4"),
        ("samples_total", "u4"),
        ("method", "u4"),
    ]
)
# Of both directions, in the interval.
ROW_LOSS = np.dtype([("duplicate", "u4"), ("probe", "u4"), ("unneeded", "u4"), ("uncertain", "u4")])
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
        ("tunnel", "u1"),
        ("tunnel_id", "u4"),
        ("state", "u1"),
        ("flags", "u2"),
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
        ("rx_duplicates", "u4"),
        ("tx_duplicates", "u4"),
        ("rx_probes", "u4"),
        ("tx_probes", "u4"),
        ("rx_unneeded", "u4"),
        ("tx_unneeded", "u4"),
        ("rx_uncertain", "u4"),
        ("tx_uncertain", "u4"),
        ("loss", ROW_LOSS),
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


def _state(flags: int) -> int:
    if not flags & FLAG_TCP:
        return STATE_NONE
    if flags & FLAG_CLOSED:
        return STATE_RESET if flags & FLAG_RESET else STATE_CLOSED
    if not flags & FLAG_REPLIED:
        return STATE_SYN if flags & FLAG_SYN else STATE_UNREPLIED
    return STATE_CLOSING if flags & (FLAG_FIN_RECEIVED | FLAG_FIN_SENT) else STATE_OPEN


_STATE_BITS = 2 * FLAG_RESET - 1
_STATE_OF = np.array([_state(flags) for flags in range(_STATE_BITS + 1)], np.uint8)


def states(flags: NDArray[Any]) -> NDArray[np.uint8]:
    """u1[n]: the states that FLOW_* bits amount to."""
    return _STATE_OF[(flags & np.uint64(_STATE_BITS)).astype(np.intp)]


def key_of(row: Any) -> bytes:
    """The key of a row's flow in the kernel: struct flow_key, 48 bytes.

    In a tunnel zeros, which is no packet's: the stages know packets by their outer headers.
    """
    key = np.zeros(1, FLOW_KEY)
    if row["tunnel"]:
        return key.tobytes()
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

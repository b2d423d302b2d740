"""Constants of bpf_src/flows/flow.h, which tests/unit/test_layout.py compares, and what follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEG_EXTERNAL, LEG_INTERNAL = 0, 1  # of a path: beyond the interface, and from it to the local end
STATES = ("", "syn", "open", "closing", "closed", "reset", "unreplied")
STATE_NONE, STATE_SYN, STATE_OPEN, STATE_CLOSING, STATE_CLOSED, STATE_RESET, STATE_UNREPLIED = range(7)
METHODS = ("", "timestamp", "sequence", "handshake", "echo", "dns", "spin")
SPIN_PACKETS = 64  # so many without a sign of spinning, and it does not spin
FLAG_FIN_RECEIVED, FLAG_FIN_SENT = 1, 2
FLAG_OPENED_BY_REMOTE, FLAG_OPENED_BY_LOCAL, FLAG_MIDWAY = 4, 8, 16
FLAG_TCP, FLAG_SYN, FLAG_REPLIED, FLAG_CLOSED, FLAG_RESET = 32, 64, 128, 256, 512
DIR_STAMPED = 8
# How long a flow stays in the table after its last packet, in s.
LINGER_CLOSED, LINGER_UNREPLIED, LINGER_OTHER, LINGER_CLOSING, LINGER_TCP = 5, 30, 120, 120, 3600
# The same by state, as STATES has them; flow_linger of bpf_src/flows/table.h has the same.
_LINGER = (
    LINGER_OTHER,
    LINGER_UNREPLIED,
    LINGER_TCP,
    LINGER_CLOSING,
    LINGER_CLOSED,
    LINGER_CLOSED,
    LINGER_UNREPLIED,
)
LINGER_NS = 10**9 * np.array(_LINGER)
# What the packets of a flow are wrapped in: TUNNEL_* of bpf_src/include/parse.h.
TUNNELS = ("", "pppoe", "mpls", "ipip", "gre", "vxlan", "geneve")
TUNNEL_GRE = TUNNELS.index("gre")  # from here on they have a number
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}


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


def both_ways(row: Any, what: str) -> tuple[int, int]:
    """What a row has by direction: received, sent."""
    return int(row[f"rx_{what}"]), int(row[f"tx_{what}"])


def key_of(row: Any) -> dict[str, int | bytes]:
    """The key of a row's flow in the kernel, by the fields of struct flow_key.

    In a tunnel nothing, which is no packet's: the stages know packets by their outer headers.
    """
    if row["tunnel"]:
        return {}
    return {
        "local": row["local"].tobytes(),
        "remote": row["remote"].tobytes(),
        "local_port": int(row["local_port"]),
        "remote_port": int(row["remote_port"]),
        "protocol": int(row["protocol"]) | int(row["vlan"]) << 8 | int(row["vlan_inner"]) << 20,
    }

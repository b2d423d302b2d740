"""The boundaries between stages, in a packet's order, as bpf_src/stages counts them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["rx", "tx"]


@dataclass(frozen=True)
class Boundary:
    """A place on a packet's path and the stage that ends there.

    ``hooks``: any of them makes it live.  ``index`` is that of the C side's ``stages``; -1: where a path begins.
    """

    stage: str
    hooks: tuple[str, ...]
    index: int


# In the packet's order.  The first of each is where the path begins.
RX = (
    Boundary("driver", ("driver",), -1),
    Boundary("stack", ("netif_receive_skb",), 0),
    Boundary("ip", ("ip_rcv",), 1),
    Boundary("local", ("ip_local_deliver",), 2),
    Boundary("transport", ("tcp_rcv_established", "udp_queue_rcv_skb"), 4),
    Boundary("socket", ("sk_data_ready",), 5),
    Boundary("application", ("tcp_rcv_space_adjust", "sock_recv_length"), 6),
)
FORWARD = Boundary("forward", ("ip_forward",), 3)  # instead of all that follows ip
RX_WHOLE, TX_WHOLE, ENTRIES = 7, 13, 14
TX = (
    Boundary("write", ("tcp_sendmsg_locked", "udp_sendmsg"), -1),
    Boundary("application", ("ip_local_out",), 8),
    Boundary("ip", ("net_dev_queue",), 9),
    Boundary("qdisc", ("net_dev_start_xmit",), 10),
    Boundary("driver", ("net_dev_xmit",), 11),
)
DONE = Boundary("done", ("consume_skb",), 12)  # after the path's end: counted from net_dev_start_xmit
# What an event's stage may be besides those of the boundaries, and what is added where the packet ended there.
RX_BEGIN, TX_BEGIN, TRACE_DROP = 14, 15, 0x100

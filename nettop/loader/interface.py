"""What the programs must know of the watched interface: its index, its link header, how its counters count."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from pathlib import Path

from nettop import ethtool
from nettop.control import Config, Counting
from nettop.errors import ExitCode, NettopError
from nettop.loader import netlink
from nettop.protocol import Plan

_SIOCGIFFLAGS = 0x8913
_SIOCGIFHWADDR = 0x8927
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_ARPHRD_ETHER = 1
_ARPHRD_LOOPBACK = 772
# Drivers of virtual machines: they hand a large packet on whole, and count it as one.
_WHOLE_SENDERS = ("virtio_net", "xen_netfront", "vif", "hv_netvsc")


def _hardware(name: str) -> int:
    """The interface's ARPHRD_* (include/uapi/linux/if_arp.h)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFHWADDR, struct.pack("16s24x", name.encode()))
    return int(struct.unpack_from("H", answer, 16)[0])


def trouble(name: str) -> str:
    """Why no packet can pass: ``down``, ``without carrier``; empty where one can.  OSError where it is not there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16s24x", name.encode()))
    flags = int(struct.unpack_from("H", answer, 16)[0])
    if not flags & _IFF_UP:
        return "down"
    return "" if flags & _IFF_RUNNING else "without carrier"


def link_header(name: str) -> int:
    """Bytes of link header that an skb of this interface has at TC."""
    return 14 if _hardware(name) in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK) else 0


def counting(name: str) -> tuple[Counting, Counting]:
    """How the interface's counters count a packet, received and sent.

    A network card counts what is on the wire.  A virtual device (veth, lo, tun) moves a large packet as it is and
    counts one, unless the stack has to cut it up before the driver sees it, or merges what the driver has counted.
    Loopback counts after it has taken the link header off (drivers/net/loopback.c), and so does a veth with GRO
    for what its peer hands to NAPI, which depends on the peer (drivers/net/veth.c, veth_skb_is_eligible_for_gro).
    An XDP program makes a veth receive by NAPI, too.
    """
    if _hardware(name) == _ARPHRD_LOOPBACK:
        return Counting.BARE, Counting.BARE
    virtual = not Path("/sys/class/net", name, "device").exists()
    driver = ethtool.driver(name)
    received = Counting.SKB if virtual and not ethtool.feature(name, ethtool.GRO) else Counting.WIRE
    if driver == "veth" and (received is Counting.WIRE or netlink.has_xdp(socket.if_nametoindex(name))):
        received = Counting.WIRE | Counting.BARE | Counting.NAPI
    whole = virtual or driver in _WHOLE_SENDERS
    sent = Counting.SKB if whole and ethtool.feature(name, ethtool.TSO) else Counting.WIRE
    return received, sent


def describe(plan: Plan) -> Config:
    """The configuration for a plan's interface.  Raises NettopError (exit code 5) if it is not there."""
    try:
        index = socket.if_nametoindex(plan.interface)
        l2_len = link_header(plan.interface)
    except OSError:
        names = ", ".join(name for _, name in socket.if_nameindex())
        raise NettopError(
            f"no interface {plan.interface}", f"there are: {names}", ExitCode.NO_INTERFACE
        ) from None
    received, sent = counting(plan.interface)
    return Config(
        ifindex=index,
        netns=os.stat("/proc/self/ns/net").st_ino & 0xFFFFFFFF,
        l2_len=l2_len,
        count_in=received,
        count_out=sent,
        subnet4=plan.subnet4,
        subnet6=plan.subnet6,
    )

"""What the programs must know of the watched interface: its index, its link header, how its counters count."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

from nettop.bpf.config import Config, Counting, Flag
from nettop.bpf.protocol import Plan
from nettop.core.errors import ExitCode, NettopError
from nettop.netdev import device_kinds, ethtool, netlink, queue_kinds
from nettop.netdev.device_kinds import Kind

_ARPHRD_ETHER = 1
_ARPHRD_LOOPBACK = 772


def trouble(name: str) -> str:
    """Why no packet can pass: ``down``, ``without carrier``; empty where one can.  OSError where it is not there."""
    found = netlink.interface(name)
    if not found.up:
        return "down"
    return "" if found.running else "without carrier"


def link_header(name: str) -> int:
    """Bytes of link header that an skb of this interface has at TC."""
    return _header_bytes(netlink.interface(name))


def _header_bytes(found: netlink.Interface) -> int:
    return 14 if found.hardware in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK) else 0


# Whose packets the stack is handed as the lower device's, up to IP (RX_HANDLER_ANOTHER, vlan_do_receive).
_SEEN_BELOW = ("vlan", "bond", "team", "macvlan", "ipvlan")


def kind_of(found: netlink.Interface) -> Kind:
    """How this interface's counters count."""
    if found.kind == "bond":
        port = _port(found)
        return replace(device_kinds.KINDS["bond"], received=port.received, sent=port.sent)
    if found.kind in device_kinds.KINDS:
        return device_kinds.KINDS[found.kind]
    if found.hardware == _ARPHRD_LOOPBACK:
        return device_kinds.LOOPBACK
    if not found.device:
        return device_kinds.OTHER
    paravirtual = ethtool.driver(found.name) in device_kinds.PARAVIRTUAL_DRIVERS
    return device_kinds.PARAVIRTUAL if paravirtual else device_kinds.CARD


def _port(bond: netlink.Interface) -> Kind:
    """The kind of the port that a bond uses, or of the first."""
    ports = sorted(netlink.ports(bond.index), key=lambda port: port.index != bond.port)
    return kind_of(ports[0]) if ports and ports[0].kind != "bond" else device_kinds.OTHER


def counting(name: str) -> tuple[Counting, Counting, int]:
    """How the interface's counters count a packet, received and sent, and Cut.above.  OSError where it is not there."""
    found = netlink.interface(name)
    kind = kind_of(found)
    return kind.received, kind.sent, cut_above(found, kind)


def cut_above(found: netlink.Interface, kind: Kind) -> int:
    """What the interface's queue cuts up; it matters only where a large packet would be counted as one."""
    if not kind.sent & Counting.STACK or not queue_kinds.may_cut(found.qdisc):
        return queue_kinds.NOTHING
    return queue_kinds.cut(netlink.qdiscs(found)).above


def device_flags(found: netlink.Interface) -> int:
    """What the stages need to know of a kind of device, as bits of the config's flags.

    A veth or a loopback hands on what it sends, and a bridge or a tunnel may: where the skb ends says nothing of it.
    """
    below = Flag.NO_STACK if found.kind in _SEEN_BELOW else 0
    return below | (Flag.COMPLETES if found.kind == "tun" or (found.device and not found.kind) else 0)


def describe(plan: Plan) -> Config:
    """The configuration for a plan's interface.  Raises NettopError (exit code 5) if it is not there."""
    try:
        found = netlink.interface(plan.interface)
        kind = kind_of(found)
        above = cut_above(found, kind)
    except OSError:
        names = ", ".join(name for _, name in socket.if_nameindex())
        raise NettopError(
            f"no interface {plan.interface}", f"there are: {names}", ExitCode.NO_INTERFACE
        ) from None
    return Config(
        ifindex=found.index,
        netns=os.stat("/proc/self/ns/net").st_ino & 0xFFFFFFFF,
        l2_len=_header_bytes(found),
        count_in=kind.received,
        count_out=kind.sent,
        subnet4=plan.subnet4,
        subnet6=plan.subnet6,
        flags=device_flags(found),
        cut_above=above,
    )

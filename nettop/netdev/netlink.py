"""What netlink says of an interface, without a library: itself, its queue, its tc filters.

Reading needs no privilege; changing clsact and its filters, which only the loader does, takes CAP_NET_ADMIN.  A library
(pyroute2) would cost the loader as much memory again as it has.

What is asked is of one interface, whatever the number of others: a dump of all holds the kernel's rtnl lock for as long
as it takes.  And netlink speaks of the caller's network namespace, which /sys need not.

Source: include/uapi/linux/rtnetlink.h (struct tcmsg, ifinfomsg), pkt_cls.h (TCA_BPF_*), if_link.h, netlink.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

# Parents of clsact's two chains (include/uapi/linux/pkt_sched.h: TC_H_CLSACT with TC_H_MIN_INGRESS/EGRESS).
PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}

_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC = 36, 37, 38
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLM_F_REPLACE, _NLM_F_EXCL, _NLM_F_CREATE = 0x100, 0x200, 0x400
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_CLASSID, _TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS, _TCA_BPF_ID = 3, 6, 7, 8, 11
_TCA_BPF_FLAG_ACT_DIRECT = 1
_IFLA_IFNAME, _IFLA_MTU, _IFLA_QDISC, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_STATS64 = 3, 4, 6, 10, 18, 23
_IFLA_EXT_MASK, _IFLA_XDP, _IFLA_PARENT_DEV_NAME, _IFLA_PARENT_DEV_BUS_NAME = 29, 43, 56, 57
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_BOND_ACTIVE_SLAVE = 2
_IFLA_XDP_ATTACHED = 2
_RTEXT_FILTER_SKIP_STATS = 1 << 3
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_TC_H_ROOT, _TC_H_CLSACT = 0xFFFFFFFF, 0xFFFFFFF1
_CLSACT_HANDLE = 0xFFFF0000
_ETH_P_ALL = 3
_TCA_STATS2, _TCA_STAB, _TCA_STATS_QUEUE = 7, 8, 3
_STATS64 = struct.Struct("=12Q")  # struct rtnl_link_stats64, as far as rx_over_errors
_RX_MISSED_AT = 15 * 8
_QUEUE = struct.Struct("=5I")  # struct gnet_stats_queue: qlen, backlog, drops, requeues, overlimits
_XDP_ATTACHED_DRV, _XDP_ATTACHED_MULTI = 1, 4
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_TCMSG = struct.Struct("=BxxxiIII")  # family, interface, handle, parent, info
_ERROR = struct.Struct("=i")  # struct nlmsgerr: a negative errno, 0 where it is an acknowledgement
_IFINFOMSG = struct.Struct("=BxHiII")  # family, hardware, interface, flags, change
_NLA_TYPE = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_RECEIVE_BYTES = 1 << 16
_PATIENCE_S = 2.0
_CHANGE_S = 20.0  # until the kernel has changed something: others may hold its lock


@dataclass(frozen=True)
class Filter:
    """One filter, or (handle 0) what holds the filters of one priority.  ``name`` and ``program`` are cls_bpf's."""

    kind: str
    parent: int
    handle: int
    priority: int
    protocol: int  # network byte order, as the kernel gives it
    name: str = ""
    program: int = 0  # id


@dataclass(frozen=True)
class Counters:
    """struct rtnl_link_stats64, as /proc/net/dev shows it: what the ring had no room for is among the drops."""

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_errors: int
    tx_errors: int
    rx_drops: int
    tx_drops: int


@dataclass(frozen=True)
class Interface:
    """An interface.  ``kind`` is its driver's name of the type (``veth``), empty for lo and for hardware.

    ``bus`` and ``device`` are where its hardware is found below /sys/bus, empty where there is none.  ``port`` is what
    a bond in active-backup mode uses.
    """

    index: int
    name: str
    kind: str
    hardware: int  # ARPHRD_*
    mtu: int
    up: bool
    running: bool
    bus: str = ""
    device: str = ""
    qdisc: str = ""  # kind of its root queue
    xdp: bool = False  # in the driver
    port: int = 0
    counters: Counters | None = None


@dataclass(frozen=True)
class Queue:
    """The root queue (qdisc) of an interface; its numbers are of the whole tree."""

    kind: str
    drops: int = 0
    backlog_bytes: int = 0
    backlog_packets: int = 0
    overlimits: int = 0


@dataclass(frozen=True)
class Qdisc:
    """One queue of an interface's tree.  ``options`` are the kind's own; ``sized``: it has a size table."""

    kind: str
    handle: int
    parent: int
    options: bytes = b""
    sized: bool = False


def interface(which: str | int, counters: bool = False) -> Interface:
    """An interface by its name or index, with its counters if asked for.  OSError where it is not there."""
    index, name = (which, "") if isinstance(which, int) else (0, which)
    body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    if name:
        body += _attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0")
    if not counters:
        body += _attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
    for payload in _answers(_RTM_GETLINK, 0, body, _RTM_NEWLINK):
        return _interface(payload)
    raise OSError(errno.ENODEV, f"no interface {which}")


def ports(master: int) -> tuple[Interface, ...]:
    """What is enslaved to a bond or the like; the kernel looks for them."""
    body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _attribute(_IFLA_MASTER, struct.pack("=I", master))
    body += _attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
    return tuple(map(_interface, _answers(_RTM_GETLINK, _NLM_F_DUMP, body, _RTM_NEWLINK)))


def queue(interface: Interface) -> Queue:
    """The root queue of an interface.  May raise OSError.

    The kernel answers a request for one queue by telling every listener of tc's (qdisc_notify), so all are asked for,
    as far as this one: most often among the first.  What has none, as most virtual devices, is not asked at all.
    """
    if interface.qdisc in ("", "noop", "noqueue"):
        return Queue(interface.qdisc or "none")
    with contextlib.closing(_queues(interface)) as queues:
        for payload in queues:
            if _TCMSG.unpack_from(payload)[3] == _TC_H_ROOT:
                found = attributes(payload[_TCMSG.size :])
                stats = attributes(found.get(_TCA_STATS2, b"")).get(_TCA_STATS_QUEUE, b"")
                packets, length, drops, _, overlimits = _QUEUE.unpack_from(stats.ljust(_QUEUE.size, b"\0"))
                return Queue(_text(found, _TCA_KIND), drops, length, packets, overlimits)
    return Queue("none")


def qdiscs(interface: Interface) -> tuple[Qdisc, ...]:
    """All queues of an interface, as the kernel lists them.  May raise OSError."""
    return tuple(map(_qdisc, _queues(interface)))


def filters(ifindex: int, parent: int) -> tuple[Filter, ...]:
    """All filters below this parent; none where there is no such qdisc, or no such interface.  May raise OSError."""
    body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, parent, 0)
    return tuple(map(_filter, _answers(_RTM_GETTFILTER, _NLM_F_DUMP, body, _RTM_NEWTFILTER)))


def all_filters(ifindex: int) -> list[Filter]:
    """Those of both of clsact's chains.  May raise OSError."""
    return [found for parent in PARENTS.values() for found in filters(ifindex, parent)]


def has_clsact(ifindex: int) -> bool:
    """Whether this interface has the qdisc clsact.  OSError where it is not there."""
    return any(qdisc.kind == "clsact" for qdisc in qdiscs(interface(ifindex)))


def add_clsact(ifindex: int) -> None:
    """Give the interface the qdisc clsact.  OSError (EEXIST) where it has one."""
    _change(_RTM_NEWQDISC, _NLM_F_CREATE | _NLM_F_EXCL, _clsact(ifindex))


def delete_clsact(ifindex: int) -> None:
    """Take it away, with all its filters.  OSError where there is none."""
    _change(_RTM_DELQDISC, 0, _clsact(ifindex))


def put_filter(ifindex: int, place: Filter, program: int, replace: bool = False) -> None:
    """A direct-action bpf filter for all protocols: ``place`` says where and what it is called, ``program`` is a
    descriptor.  OSError where one has this handle already, unless it is to be replaced.
    """
    options = _attribute(_TCA_BPF_FD, struct.pack("=I", program))
    options += _attribute(_TCA_BPF_NAME, place.name.encode() + b"\0")
    options += _attribute(_TCA_BPF_FLAGS, struct.pack("=I", _TCA_BPF_FLAG_ACT_DIRECT))
    options += _attribute(_TCA_BPF_CLASSID, struct.pack("=I", 1))
    body = _filter_place(ifindex, place) + _attribute(_TCA_KIND, b"bpf\0") + _attribute(_TCA_OPTIONS, options)
    _change(_RTM_NEWTFILTER, _NLM_F_CREATE | (_NLM_F_REPLACE if replace else _NLM_F_EXCL), body)


def delete_filter(ifindex: int, place: Filter) -> None:
    """Take this bpf filter away.  OSError where it is not there."""
    _change(_RTM_DELTFILTER, 0, _filter_place(ifindex, place) + _attribute(_TCA_KIND, b"bpf\0"))


def _clsact(ifindex: int) -> bytes:
    body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, _CLSACT_HANDLE, _TC_H_CLSACT, 0)
    return body + _attribute(_TCA_KIND, b"clsact\0")


def _filter_place(ifindex: int, place: Filter) -> bytes:
    info = place.priority << 16 | socket.htons(_ETH_P_ALL)
    return _TCMSG.pack(socket.AF_UNSPEC, ifindex, place.handle, place.parent, info)


def _queues(interface: Interface) -> Generator[bytes, None, None]:
    """The messages of one interface's queues: the dump is of all, and left where the next one's begin."""
    body = _TCMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    found = False
    with contextlib.closing(_answers(_RTM_GETQDISC, _NLM_F_DUMP, body, _RTM_NEWQDISC)) as answers:
        for payload in answers:
            if _TCMSG.unpack_from(payload)[1] == interface.index:
                found = True
                yield payload
            elif found:
                return


def _qdisc(payload: bytes) -> Qdisc:
    _, _, handle, parent, _ = _TCMSG.unpack_from(payload)
    found = attributes(payload[_TCMSG.size :])
    return Qdisc(_text(found, _TCA_KIND), handle, parent, found.get(_TCA_OPTIONS, b""), _TCA_STAB in found)


def _interface(payload: bytes) -> Interface:
    _, hardware, index, flags, _ = _IFINFOMSG.unpack_from(payload)
    found = attributes(payload[_IFINFOMSG.size :])
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    kind = _text(info, _IFLA_INFO_KIND)
    data = attributes(info.get(_IFLA_INFO_DATA, b"")) if kind == "bond" else {}
    xdp = u32(attributes(found.get(_IFLA_XDP, b"")), _IFLA_XDP_ATTACHED)
    counters = None
    if stats := found.get(_IFLA_STATS64):
        numbers = list(_STATS64.unpack_from(stats)[:8])
        numbers[6] += struct.unpack_from("=Q", stats, _RX_MISSED_AT)[0]
        counters = Counters(*numbers)
    return Interface(
        index=index,
        name=_text(found, _IFLA_IFNAME, "surrogateescape"),
        kind=kind,
        hardware=hardware,
        mtu=u32(found, _IFLA_MTU),
        up=bool(flags & _IFF_UP),
        running=bool(flags & _IFF_RUNNING),
        bus=_text(found, _IFLA_PARENT_DEV_BUS_NAME),
        device=_text(found, _IFLA_PARENT_DEV_NAME),
        qdisc=_text(found, _IFLA_QDISC),
        xdp=xdp in (_XDP_ATTACHED_DRV, _XDP_ATTACHED_MULTI),
        port=u32(data, _IFLA_BOND_ACTIVE_SLAVE),
        counters=counters,
    )


def _filter(payload: bytes) -> Filter:
    _, _, handle, parent, info = _TCMSG.unpack_from(payload)
    found = attributes(payload[_TCMSG.size :])
    kind = _text(found, _TCA_KIND)
    options = attributes(found.get(_TCA_OPTIONS, b"")) if kind == "bpf" else {}
    name, program = _text(options, _TCA_BPF_NAME), u32(options, _TCA_BPF_ID)
    return Filter(kind, parent, handle, info >> 16, info & 0xFFFF, name, program)


def _answers(kind: int, flags: int, body: bytes, answer: int) -> Generator[bytes, None, None]:
    """The messages of one kind that a request is answered by, as they come; none where it is refused.

    A caller that needs no more closes it.
    """
    for got, payload in _messages(kind, flags, body, _PATIENCE_S):
        if got in (_NLMSG_DONE, _NLMSG_ERROR):
            return
        if got == answer:
            yield payload
            if not flags & _NLM_F_DUMP:
                return


def _change(kind: int, flags: int, body: bytes) -> None:
    """A request that is acknowledged, or refused: OSError with the kernel's reason."""
    for got, payload in _messages(kind, _NLM_F_ACK | flags, body, _CHANGE_S):
        if got == _NLMSG_ERROR:
            (code,) = _ERROR.unpack_from(payload)
            if code:
                raise OSError(-code, os.strerror(-code))
            return


def _messages(kind: int, flags: int, body: bytes, patience_s: float) -> Iterator[tuple[int, bytes]]:
    """Ask; type and payload of all that comes back, until the caller has heard enough."""
    head = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(patience_s)
        sock.send(head + body)
        while True:
            data = sock.recv(_RECEIVE_BYTES)
            while len(data) >= _HEADER.size:
                length, got, *_ = _HEADER.unpack_from(data)
                if length < _HEADER.size:
                    break
                yield got, data[_HEADER.size : length]
                data = data[(length + 3) & ~3 :]


def _attribute(kind: int, value: bytes) -> bytes:
    data = struct.pack("=HH", 4 + len(value), kind) + value
    return data.ljust((len(data) + 3) & ~3, b"\0")


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by their type."""
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & _NLA_TYPE] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def u32(found: Mapping[int, bytes], kind: int, otherwise: int = 0) -> int:
    """An attribute that is a number."""
    data = found.get(kind, b"")
    return int.from_bytes(data[:4], sys.byteorder) if data else otherwise


def _text(found: Mapping[int, bytes], kind: int, errors: str = "replace") -> str:
    return found.get(kind, b"").split(b"\0", 1)[0].decode(errors=errors)

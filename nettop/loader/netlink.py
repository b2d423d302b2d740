"""What netlink says of an interface, without a library: its tc filters, its XDP program.  It needs no privilege.

Source: include/uapi/linux/rtnetlink.h (struct tcmsg, ifinfomsg), pkt_cls.h (TCA_BPF_*), if_link.h, netlink.h.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

# Parents of clsact's two chains (include/uapi/linux/pkt_sched.h: TC_H_CLSACT with TC_H_MIN_INGRESS/EGRESS).
PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}

_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_RTM_NEWTFILTER, _RTM_GETTFILTER = 44, 46
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_NAME, _TCA_BPF_ID = 7, 11
_IFLA_XDP, _IFLA_XDP_ATTACHED = 43, 2
_XDP_ATTACHED_DRV, _XDP_ATTACHED_MULTI = 1, 4
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_TCMSG = struct.Struct("=BxxxiIII")  # family, interface, handle, parent, info
_IFINFOMSG = struct.Struct("=BxHiII")  # family, kind, interface, flags, change
_NLA_TYPE = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_RECEIVE_BYTES = 1 << 16
_PATIENCE_S = 2.0


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


def filters(ifindex: int, parent: int) -> tuple[Filter, ...]:
    """All filters below this parent; none where there is no such qdisc, or no such interface.  May raise OSError."""
    body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, parent, 0)
    return tuple(_filter(payload) for payload in _ask(_RTM_GETTFILTER, _NLM_F_DUMP, body, _RTM_NEWTFILTER))


def has_xdp(ifindex: int) -> bool:
    """Whether an XDP program runs in the interface's driver.  May raise OSError."""
    body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
    for payload in _ask(_RTM_GETLINK, 0, body, _RTM_NEWLINK):
        attributes = dict(_attributes(payload[_IFINFOMSG.size :]))
        attached = dict(_attributes(attributes.get(_IFLA_XDP, b""))).get(_IFLA_XDP_ATTACHED, b"\0")
        return attached[:1] in (bytes([_XDP_ATTACHED_DRV]), bytes([_XDP_ATTACHED_MULTI]))
    return False


def _ask(kind: int, flags: int, body: bytes, answer: int) -> list[bytes]:
    """The messages of one kind that a request is answered by; none where it is refused."""
    request = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 1, 0)
    found: list[bytes] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(_PATIENCE_S)
        sock.send(request + body)
        while True:
            for got, payload in _messages(sock.recv(_RECEIVE_BYTES)):
                if got in (_NLMSG_DONE, _NLMSG_ERROR):
                    return found
                if got == answer:
                    found.append(payload)
                    if not flags & _NLM_F_DUMP:
                        return found


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        if length < _HEADER.size:
            return
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _filter(payload: bytes) -> Filter:
    _, _, handle, parent, info = _TCMSG.unpack_from(payload)
    attributes = dict(_attributes(payload[_TCMSG.size :]))
    options = dict(_attributes(attributes.get(_TCA_OPTIONS, b"")))
    kind = _text(attributes.get(_TCA_KIND, b""))
    name, program = "", 0
    if kind == "bpf":
        name = _text(options.get(_TCA_BPF_NAME, b""))
        with contextlib.suppress(struct.error):
            program = struct.unpack("=I", options.get(_TCA_BPF_ID, b""))[0]
    return Filter(kind, parent, handle, info >> 16, info & 0xFFFF, name, program)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & _NLA_TYPE, data[4:length]
        data = data[(length + 3) & ~3 :]


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace")

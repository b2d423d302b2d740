"""Other BPF programs beside nettop's: TCX, clsact and XDP.  They drop nothing and change nothing."""

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute

from lab import bpf
from lab.namespace import Endpoint

# Kernel: include/uapi/linux/bpf.h, pkt_cls.h.
PROG_LOAD, LINK_CREATE, LINK_GET_FD_BY_ID, LINK_DETACH = 5, 28, 30, 34
SCHED_CLS, XDP = 3, 6
XDP_HOOK = 37
XDP_PASS = 2
TC_OK = 0  # passes the packet; later programs do not run
TC_NEXT = -1  # TC_ACT_UNSPEC: the next program decides
BEFORE, AFTER = 1 << 3, 1 << 4  # all others of the hook


def load(kind: int, code: bytes, licence: bytes = b"MIT") -> int:
    """The descriptor of a loaded program."""
    held = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(licence)
    # Type, number of instructions, these, licence, no log; the rest zero.
    addresses = map(ctypes.addressof, held)
    return bpf.call(PROG_LOAD, struct.pack("=IIQQ", kind, len(code) // 8, *addresses) + b"\0" * 48)


@contextmanager
def program(kind: int, verdict: int) -> Iterator[int]:
    """The descriptor of a program that does nothing but return this."""
    fd = load(kind, struct.pack("=BBhiBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0))
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def tcx(end: Endpoint, verdict: int = TC_OK, place: int = 0) -> Iterator[None]:
    """At both TCX hooks while the block lasts; `place` is BEFORE, AFTER, or 0 for the kernel's own order."""
    with program(SCHED_CLS, verdict) as fd, links(end, fd, [*bpf.TCX_HOOKS.values()], place):
        yield


@contextmanager
def xdp(end: Endpoint) -> Iterator[None]:
    """An XDP program that passes every packet on, while the block lasts."""
    with program(XDP, XDP_PASS) as fd, links(end, fd, [XDP_HOOK], 0):
        yield


@contextmanager
def links(end: Endpoint, fd: int, hooks: list[int], flags: int) -> Iterator[None]:
    """The program at these hooks of an interface, while the block lasts."""
    index = end.ns.call(lambda: socket.if_nametoindex(end.name))
    links = []
    try:
        for hook in hooks:
            # Program, interface, attach type, flags, then what orders the links of one hook.
            create = struct.pack("=IIII", fd, index, hook, flags) + b"\0" * 16
            links.append(end.ns.call(lambda create=create: bpf.call(LINK_CREATE, create)))  # type: ignore[misc]
        yield
    finally:
        for link in links:
            os.close(link)


def detach(link: int) -> None:
    """BPF_LINK_DETACH, by the link's id, as `bpftool link detach` does it: its descriptor stays, the hook is free."""
    fd = bpf.call(LINK_GET_FD_BY_ID, struct.pack("=III", link, 0, 0))
    try:
        bpf.call(LINK_DETACH, struct.pack("=I", fd))
    finally:
        os.close(fd)


def add_filters(end: Endpoint, priority: int, verdict: int = TC_OK) -> None:
    """Filters on both hooks of clsact, whose qdisc is made if it is missing."""

    def add() -> None:
        with IPRoute() as ip, program(SCHED_CLS, verdict) as fd:
            index = socket.if_nametoindex(end.name)
            if not any(q.get_attr("TCA_KIND") == "clsact" for q in ip.get_qdiscs(index)):
                ip.tc("add", "clsact", index)
            for parent in (0xFFFFFFF2, 0xFFFFFFF3):
                ip.tc(
                    *("add-filter", "bpf", index),
                    parent=parent,
                    fd=fd,
                    name="theirs",
                    prio=priority,
                    handle=1,
                    protocol=3,
                    direct_action=True,
                    classid=1,
                )

    end.ns.call(add)


def remove_filters(end: Endpoint, priority: int) -> None:
    """Those filters; the qdisc stays."""
    for hook in ("ingress", "egress"):
        end.ns.run("tc", "filter", "del", "dev", end.name, hook, "prio", str(priority))

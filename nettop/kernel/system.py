"""What is read from the system beside the maps: the interface's own counters, its queue, the process itself.

READINGS maps a name, as probes use it in ``Probe.system``, to a function of the interface's name that returns plain
values.  They raise OSError where there is nothing to read, which makes the reading None.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import psutil

from nettop import ethtool
from nettop.kernel import interrupts

_CPUCLOCK_SCHED = 2
_SIOCGIFFLAGS, _SIOCGIFMTU = 0x8913, 0x8921
_IFF_RUNNING = 0x40


@dataclass(frozen=True)
class InterfaceCounters:
    """The interface's own counters since it exists (/proc/net/dev), and its link.

    ``speed_bits_per_s`` is None where the driver does not know (virtual devices say 10 Gb/s and mean nothing by it).
    """

    rx_bytes: int
    rx_packets: int
    rx_drops: int
    rx_errors: int
    tx_bytes: int
    tx_packets: int
    tx_drops: int
    tx_errors: int
    speed_bits_per_s: int | None
    mtu: int
    up: bool


@dataclass(frozen=True)
class QdiscCounters:
    """All queues of the interface together."""

    kind: str
    drops: int
    backlog_bytes: int
    backlog_packets: int
    overlimits: int


def interface_counters(interface: str) -> InterfaceCounters:
    """From /proc/net/dev of our own network namespace, by psutil."""
    counters = psutil.net_io_counters(pernic=True, nowrap=False).get(interface)
    try:
        link = psutil.net_if_stats().get(interface)
    except UnicodeError:  # of all interfaces one has a name that is not UTF-8, which the kernel allows
        link = _link(interface)
    if counters is None or link is None:
        raise OSError(f"no interface {interface}")
    physical = os.path.exists(f"/sys/class/net/{interface}/device")
    return InterfaceCounters(
        counters.bytes_recv,
        counters.packets_recv,
        counters.dropin,
        counters.errin,
        counters.bytes_sent,
        counters.packets_sent,
        counters.dropout,
        counters.errout,
        link.speed * 1_000_000 if link.speed > 0 and physical else None,
        link.mtu,
        link.isup,
    )


def _link(interface: str) -> Any:
    """State and MTU of one interface (include/uapi/linux/sockios.h); its speed is not asked for."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16s24x", interface.encode())
        flags, mtu = (fcntl.ioctl(sock, number, request) for number in (_SIOCGIFFLAGS, _SIOCGIFMTU))
    up = bool(struct.unpack_from("H", flags, 16)[0] & _IFF_RUNNING)
    return SimpleNamespace(speed=0, mtu=struct.unpack_from("i", mtu, 16)[0], isup=up)


def peer_is_local(interface: str) -> bool:
    """Whether what is behind the interface runs on this host too: a veth leads to another namespace of it."""
    return ethtool.driver(interface) == "veth"


@cache
def _netlink() -> Any:
    from pyroute2 import IPRoute

    return IPRoute()


def qdisc_counters(interface: str) -> QdiscCounters:
    """Root queue's kind, and drops and backlog of the whole tree as its root counts them, by netlink."""
    index = socket.if_nametoindex(interface)
    for qdisc in _netlink().get_qdiscs(index=index):
        if qdisc["parent"] != 0xFFFFFFFF:  # TC_H_ROOT
            continue
        stats = qdisc.get_attr("TCA_STATS2")
        queue = stats.get_attr("TCA_STATS_QUEUE") if stats else None
        values = queue or {"drops": 0, "backlog": 0, "qlen": 0, "overlimits": 0}
        return QdiscCounters(
            str(qdisc.get_attr("TCA_KIND")),
            int(values["drops"]),
            int(values["backlog"]),
            int(values["qlen"]),
            int(values["overlimits"]),
        )
    return QdiscCounters("none", 0, 0, 0, 0)


READINGS: Mapping[str, Callable[[str], Any]] = {
    "interface": interface_counters,
    "qdisc": qdisc_counters,
    **interrupts.READINGS,
}


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where that cannot be known."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def cpu_ns(pid: int) -> int:
    """CPU time that a process has used, user and system; 0 where that cannot be known.

    By its clock and not from /proc/PID/stat, which counts in hundredths of a second: of an idle second's use the
    rounding would be as large as the figure.  The clock's number is made as in include/linux/posix-timers.h.
    """
    try:
        return time.clock_gettime_ns(~pid << 3 | _CPUCLOCK_SCHED)
    except OSError:
        return 0

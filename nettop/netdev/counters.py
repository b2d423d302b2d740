"""What is read from the system beside the maps: the interface's own counters, its queue, the process itself.

READINGS maps a name, as probes use it in ``Probe.system``, to a function of the interface's name that returns plain
values.  They raise OSError where there is nothing to read, which makes the reading None.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psutil

from nettop.netdev import device_kinds, ethtool, interrupts, netlink, queue_kinds

_CPUCLOCK_SCHED = 2


@dataclass(frozen=True)
class InterfaceCounters(netlink.Counters):
    """The interface's own counters since it exists, and its link.

    ``speed_bits_per_s`` is None where the driver does not know (virtual devices say 10 Gb/s and mean nothing by it).
    ``differs`` says why the programs cannot count what these counters count, where that is so.
    """

    speed_bits_per_s: int | None
    mtu: int
    up: bool
    kind: str
    differs: str


def interface_counters(interface: str) -> InterfaceCounters:
    """By one request for this interface, of our own network namespace."""
    found = netlink.interface(interface, counters=True)
    own = found.counters
    if own is None:
        raise OSError(f"{interface} has no counters")
    kind = device_kinds.KINDS.get(found.kind)
    said = [kind.differs] if kind and kind.differs else []
    if queue_kinds.may_cut(found.qdisc):
        whole = not found.device or ethtool.driver(found.name) in device_kinds.PARAVIRTUAL_DRIVERS
        said += [text for text in (queue_kinds.cut(netlink.qdiscs(found), whole).differs,) if text]
    return InterfaceCounters(
        **vars(own),
        speed_bits_per_s=ethtool.speed_bits_per_s(interface) if found.device else None,
        mtu=found.mtu,
        up=found.running,
        kind=found.kind,
        differs="; ".join(said),
    )


def peer_is_local(interface: str) -> bool:
    """Whether what is behind the interface runs on this host too: a veth leads to another namespace of it."""
    try:
        return netlink.interface(interface).kind == "veth"
    except OSError:
        return False


def qdisc_counters(interface: str) -> netlink.Queue:
    """Root queue's kind, and drops and backlog of the whole tree as its root counts them."""
    return netlink.queue(netlink.interface(interface))


READINGS: Mapping[str, Callable[[str], Any]] = {
    "interface": interface_counters,
    "qdisc": qdisc_counters,
    **interrupts.READINGS,
}


@lru_cache(maxsize=4)
def _process(pid: int) -> psutil.Process:
    return psutil.Process(pid)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where that cannot be known."""
    try:
        return int(_process(pid).memory_info().rss)
    except psutil.Error:
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

"""TC programs by clsact and cls_bpf, for kernels without TCX (before 6.6).

Nothing here goes away by itself, so every filter that we add is remembered and deleted, and a clsact qdisc only if we
made it and nobody else has put a filter there since.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from socket import htons
from typing import Any

# Parents of clsact's two chains (include/uapi/linux/pkt_sched.h: TC_H_CLSACT with TC_H_MIN_INGRESS/EGRESS).
_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_ETH_P_ALL = 3
_HANDLE = 0xC0DE  # the first free one from here is taken
_PRIORITY = 0xC0DE  # where we are alone: leaves the small numbers to people


@dataclass
class _Filter:
    ifindex: int
    parent: int
    priority: int
    handle: int
    name: str  # of the program


@dataclass
class Clsact:
    """Our filters, and the qdiscs that we made."""

    filters: list[_Filter] = field(default_factory=list)
    made: set[int] = field(default_factory=set)

    def attach(self, ifindex: int, direction: str, program: int, name: str) -> None:
        """Add a direct-action filter; beside whatever is there, and before it where that is possible."""
        parent = _PARENTS[direction]
        with _netlink() as ip:
            if not _has_clsact(ip, ifindex):
                ip.tc("add", "clsact", ifindex)
                self.made.add(ifindex)
            priority, handle = _first(list(ip.get_filters(index=ifindex, parent=parent)))
            ours = _Filter(ifindex, parent, priority, handle, name)
            _put(ip, "add-filter", ours, program)
            self.filters.append(ours)

    def replace(self, programs: Mapping[str, int]) -> None:
        """Other programs in the places of those of the same names.  Each packet is seen by the one or the other.

        The kernel puts the new filter into the old one's place in the list (cls_bpf_change: list_replace_rcu).
        """
        with _netlink() as ip:
            for ours in self.filters:
                if ours.name in programs:
                    _put(ip, "replace-filter", ours, programs[ours.name])

    def detach(self) -> None:
        """Take away what is ours; quiet where the interface is gone, and its filters with it."""
        if not self.filters and not self.made:
            return
        with _netlink() as ip:
            for ours in self.filters:
                with contextlib.suppress(Exception):
                    ip.tc("del-filter", "bpf", ours.ifindex, handle=ours.handle, parent=ours.parent,
                          prio=ours.priority, protocol=_ETH_P_ALL)  # fmt: skip
            for ifindex in self.made:
                with contextlib.suppress(Exception):
                    if not any(ip.get_filters(index=ifindex, parent=parent) for parent in _PARENTS.values()):
                        ip.tc("del", "clsact", ifindex)
        self.filters.clear()
        self.made.clear()


def _first(filters: Sequence[Any]) -> tuple[int, int]:
    """Priority and handle at which a filter is asked before all of these: one that lets a packet pass ends the row.

    Where the smallest priority is in use, a bpf filter can share it (cls_bpf_change puts the newest first).  Another
    kind of filter cannot be preceded there; then ours comes behind it and sees what that lets through to it.
    """
    taken = {f["info"] >> 16 for f in filters}
    lowest = min(taken, default=_PRIORITY + 1)
    if lowest > 1:
        return lowest - 1, _HANDLE
    there = [f for f in filters if f["info"] >> 16 == lowest]
    if all(f.get_attr("TCA_KIND") == "bpf" and f["info"] & 0xFFFF == htons(_ETH_P_ALL) for f in there):
        handles = {f["handle"] for f in there}
        return lowest, next(h for h in range(_HANDLE, _HANDLE + len(handles) + 1) if h not in handles)
    return next(p for p in range(_PRIORITY, 0xFFFF) if p not in taken), _HANDLE


def _put(ip: Any, command: str, ours: _Filter, program: int) -> None:
    ip.tc(
        command,
        "bpf",
        ours.ifindex,
        handle=ours.handle,
        parent=ours.parent,
        fd=program,
        name=ours.name,
        prio=ours.priority,
        protocol=_ETH_P_ALL,
        direct_action=True,
        classid=1,
    )


def _netlink() -> Any:
    from pyroute2 import IPRoute  # heavy, and not needed where there is TCX

    return IPRoute()


def _has_clsact(ip: Any, ifindex: int) -> bool:
    return any(q.get_attr("TCA_KIND") == "clsact" for q in ip.get_qdiscs(ifindex))

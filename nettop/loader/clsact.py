"""TC programs by clsact and cls_bpf, for kernels without TCX (before 6.6).

Nothing here goes away by itself, so every filter that we add is remembered and deleted, and a clsact qdisc only if we
made it and nobody else has put a filter there since.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

# Parents of clsact's two chains (include/uapi/linux/pkt_sched.h: TC_H_CLSACT with TC_H_MIN_INGRESS/EGRESS).
_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_ETH_P_ALL = 3
_PRIORITY = 0xC0DE  # after the small numbers that people use; the first free one from here is taken


@dataclass
class _Filter:
    ifindex: int
    parent: int
    priority: int


@dataclass
class Clsact:
    """Our filters, and the qdiscs that we made."""

    filters: list[_Filter] = field(default_factory=list)
    made: set[int] = field(default_factory=set)

    def attach(self, ifindex: int, direction: str, program: int, name: str) -> None:
        """Add a direct-action filter; beside whatever is there."""
        parent = _PARENTS[direction]
        with _netlink() as ip:
            if not _has_clsact(ip, ifindex):
                ip.tc("add", "clsact", ifindex)
                self.made.add(ifindex)
            taken = {f["info"] >> 16 for f in ip.get_filters(index=ifindex, parent=parent)}
            priority = next(p for p in range(_PRIORITY, 0xFFFF) if p not in taken)
            ip.tc(
                "add-filter",
                "bpf",
                ifindex,
                parent=parent,
                fd=program,
                name=name,
                prio=priority,
                protocol=_ETH_P_ALL,
                direct_action=True,
                classid=1,
            )
            self.filters.append(_Filter(ifindex, parent, priority))

    def detach(self) -> None:
        """Take away what is ours; quiet where the interface is gone, and its filters with it."""
        if not self.filters and not self.made:
            return
        with _netlink() as ip:
            for ours in self.filters:
                with contextlib.suppress(Exception):
                    ip.tc("del-filter", "bpf", ours.ifindex, parent=ours.parent, prio=ours.priority,
                          protocol=_ETH_P_ALL)  # fmt: skip
            for ifindex in self.made:
                with contextlib.suppress(Exception):
                    if not any(ip.get_filters(index=ifindex, parent=parent) for parent in _PARENTS.values()):
                        ip.tc("del", "clsact", ifindex)
        self.filters.clear()
        self.made.clear()


def _netlink() -> Any:
    from pyroute2 import IPRoute  # heavy, and not needed where there is TCX

    return IPRoute()


def _has_clsact(ip: Any, ifindex: int) -> bool:
    return any(q.get_attr("TCA_KIND") == "clsact" for q in ip.get_qdiscs(ifindex))

"""TC programs by clsact and cls_bpf, for kernels without TCX (before 6.6).

Nothing here goes away by itself, so every filter that we add is remembered and deleted, and a clsact qdisc only if we
made it and no other program has put a filter there since.

A loader that is killed can delete nothing.  So each filter's name says whose it is, ``nettop:TOKEN:PROGRAM``, and for
as long as the loader lives an abstract socket of the same network namespace is called ``nettop-TOKEN``.  The next
loader takes filters away whose socket is gone.  (Process ids would not do: the other may live in another container.)
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from socket import htons

from nettop.netdev import netlink

_ETH_P_ALL = 3
_HANDLE = 0xC0DE  # the first free one from here is taken
_PRIORITY = 0xC0DE  # where we are alone: leaves the small numbers to people
_MARK = "nettop"
_MADE = "+"  # behind the token: the qdisc is ours too


@dataclass
class Clsact:
    """Our filters, and the qdiscs that we made."""

    filters: list[tuple[int, netlink.Filter]] = field(default_factory=list)  # with the interface's index
    made: set[int] = field(default_factory=set)
    _token: str = ""
    _alive: socket.socket | None = None  # bound for as long as we live

    def attach(self, ifindex: int, direction: str, program: int, name: str) -> None:
        """Add a direct-action filter; beside whatever is there, and before it where that is possible."""
        parent = netlink.PARENTS[direction]
        if not netlink.has_clsact(ifindex):
            netlink.add_clsact(ifindex)
            self.made.add(ifindex)
        elif any(_owner(f) and _is_made(f) for f in netlink.all_filters(ifindex)):
            self.made.add(ifindex)  # by another of us: the last to leave takes it away
        priority, handle = _first(netlink.filters(ifindex, parent))
        label = f"{_MARK}:{self._own()}{_MADE if ifindex in self.made else ''}:{name}"
        ours = netlink.Filter("bpf", parent, handle, priority, htons(_ETH_P_ALL), label)
        netlink.put_filter(ifindex, ours, program)
        self.filters.append((ifindex, ours))

    def replace(self, programs: Mapping[str, int]) -> None:
        """Other programs in the places of those of the same names.  Each packet is seen by the one or the other.

        The kernel puts the new filter into the old one's place in the list (cls_bpf_change: list_replace_rcu).
        """
        for ifindex, ours in self.filters:
            if _program(ours) in programs:
                netlink.put_filter(ifindex, ours, programs[_program(ours)], replace=True)

    def release(self, ifindex: int) -> None:
        """Take our filters away, before they are attached again to this interface; a qdisc that we made stays ours."""
        self._delete(self.filters)
        self.made &= {ifindex}

    def remove(self, programs: Collection[str]) -> None:
        """Take the filters of these programs away."""
        self._delete([each for each in self.filters if _program(each[1]) in programs])

    def detach(self) -> None:
        """Take away what is ours; quiet where it has gone, or the interface has, and its filters with it."""
        self._delete(self.filters)
        for ifindex in self.made:
            _delete_empty(ifindex)
        self.made.clear()

    def _delete(self, unwanted: Sequence[tuple[int, netlink.Filter]]) -> None:
        for ifindex in {index for index, _ in unwanted}:
            labels = {ours.name for index, ours in unwanted if index == ifindex}
            there = netlink.all_filters(ifindex)
            found = [f for f in there if f.name in labels]
            _delete(ifindex, found)
            if there and not found:  # another qdisc of the same name, and somebody else's
                self.made.discard(ifindex)
        self.filters = [each for each in self.filters if each not in unwanted]

    def sweep(self, ifindex: int) -> int:
        """Take away what loaders that are no more have left on this interface; how many filters that were."""
        there = netlink.all_filters(ifindex)
        owners = {owner for f in there if (owner := _owner(f))}
        dead = {owner for owner in owners if owner != self._token and not _lives(owner)}
        left = [f for f in there if _owner(f) in dead]
        if not left:
            return 0
        _delete(ifindex, left)
        if any(map(_is_made, left)):
            _delete_empty(ifindex)
        remain = {(f.parent, f.name) for f in netlink.all_filters(ifindex)}
        return sum((f.parent, f.name) not in remain for f in left)

    def _own(self) -> str:
        if self._alive is None:
            self._token = os.urandom(8).hex()
            self._alive = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._alive.bind(_address(self._token))
        return self._token


def _address(token: str) -> str:
    return f"\0{_MARK}-{token}"


def _owner(found: netlink.Filter) -> str:
    """The token in a filter's name; empty where it is none of ours."""
    mark, *words = found.name.split(":")
    ours = found.kind == "bpf" and mark == _MARK and len(words) == 2
    return words[0].removesuffix(_MADE) if ours else ""


def _program(ours: netlink.Filter) -> str:
    return ours.name.rpartition(":")[2]


def _is_made(found: netlink.Filter) -> bool:
    return found.name.split(":")[1].endswith(_MADE)


def _lives(token: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(_address(token))
        except ConnectionRefusedError:
            return False
        except OSError:  # whatever it is, we do not know: leave it alone
            return True
    return True


def _delete(ifindex: int, filters: Sequence[netlink.Filter]) -> None:
    for one in filters:
        with contextlib.suppress(OSError):
            netlink.delete_filter(ifindex, one)


def _delete_empty(ifindex: int) -> None:
    with contextlib.suppress(OSError):
        if not netlink.all_filters(ifindex):
            netlink.delete_clsact(ifindex)


def _first(filters: Sequence[netlink.Filter]) -> tuple[int, int]:
    """Priority and handle at which a filter is asked before all of these: one that lets a packet pass ends the row.

    Where the smallest priority is in use, a bpf filter can share it (cls_bpf_change puts the newest first).  Another
    kind of filter cannot be preceded there; then ours comes behind it and sees what that lets through to it.
    """
    taken = {f.priority for f in filters}
    lowest = min(taken, default=_PRIORITY + 1)
    if lowest > 1:
        return lowest - 1, _HANDLE
    there = [f for f in filters if f.priority == lowest]
    if all(f.kind == "bpf" and f.protocol == htons(_ETH_P_ALL) for f in there):
        handles = {f.handle for f in there}
        return lowest, next(h for h in range(_HANDLE, _HANDLE + len(handles) + 1) if h not in handles)
    return next(p for p in range(_PRIORITY, 0xFFFF) if p not in taken), _HANDLE

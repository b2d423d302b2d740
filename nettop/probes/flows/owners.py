"""Whose a flow is: rows joined with the sockets that were seen at work."""

from __future__ import annotations

import numpy as np

from nettop.core.table import layout
from nettop.probes.base import Array
from nettop.probes.flows.constants import PROTOCOLS
from nettop.probes.flows.rows import PROCESS


def _key_hash(keys: Array) -> Array:
    """uint64 hash of 48-byte keys (V48 or struct flow_key): equal keys, equal hashes; others almost never."""
    words = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, 6)
    factors = np.array(
        [
            0x9E3779B97F4A7C15,
            0xC2B2AE3D27D4EB4F,
            0x165667B19E3779F9,
            0xD6E8FEB86659FD93,
            0xA0761D6478BD642F,
            0xE7037ED1A0B428DB,
        ],
        np.uint64,
    )
    mixed = (words ^ (words >> np.uint64(29))) * factors
    return np.asarray((mixed ^ (mixed >> np.uint64(32))).sum(axis=1, dtype=np.uint64) * factors[0])


# Who a flow was found to belong to.
OWNED = np.dtype([("id", "u8"), ("process", layout(PROCESS))])


def find(ascending: Array, wanted: Array) -> tuple[Array, Array]:
    """intp[n] and bool[n]: where each wanted value is among the ascending ones, and whether it is."""
    if not len(ascending):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), bool)
    place = np.searchsorted(ascending, wanted)
    place[place == len(ascending)] = 0
    return place, np.asarray(ascending[place] == wanted)


def join_owners(
    rows: Array, flow_keys: Array, owners: tuple[Array, Array], netns: int, local_peer: bool
) -> None:
    """Put pid, name and the kernel's RTT into the rows, from the sockets that were seen at work.

    The local end's socket first, in the interface's own network namespace; then the remote end's, which is on this
    host too where the interface leads to a container; then the local end's in another namespace, for traffic that is
    forwarded to one.  A UDP socket need not be connected, so its remote end, and its own address, may be zeros.
    """
    keys, values = owners
    if not len(keys) or not len(rows):
        return
    ours = keys["protocol"] >> 8 == netns & 0xFFFFFF
    keys = keys.copy()
    keys["protocol"] &= 0xFF
    here, elsewhere, anywhere = (_Owners(keys, np.flatnonzero(w)) for w in (ours, ~ours, ours | ~ours))
    left = np.ones(len(rows), bool)

    def look_up(among: _Owners, wanted: Array, which: Array | None = None) -> None:
        candidates = np.flatnonzero(left if which is None else left & which)
        if not len(candidates) or not len(among.index):
            return
        hit, found = among.find(wanted[candidates])
        target, source = candidates[hit], values[found[hit]]
        rows["process"]["pid"][target] = source["pid"]
        rows["process"]["name"][target] = source["comm"]
        rows["kernel_rtt"]["smoothed"][target] = source["srtt_us"].astype(np.uint64) * 1000
        rows["kernel_rtt"]["cwnd"][target] = source["cwnd"]
        left[target] = False

    exact = flow_keys.copy()
    exact["protocol"] &= 0xFF
    exact["tunnel"] = exact["tunnel_id"] = 0
    swapped = exact.copy()
    for end, other in (("local", "remote"), ("local_port", "remote_port")):
        swapped[end], swapped[other] = exact[other], exact[end]
    udp = exact["protocol"] == PROTOCOLS["udp"]
    unconnected = exact.copy()
    unconnected["remote"], unconnected["remote_port"] = 0, 0
    unbound = unconnected.copy()
    unbound["local"] = 0
    look_up(here, exact)
    look_up(here, unconnected, udp)
    # A socket that is bound to no address answers for every one of its own host, and for no other's.
    look_up(here, unbound, udp)
    look_up(anywhere, swapped)
    swapped["remote"], swapped["remote_port"] = 0, 0
    look_up(anywhere, swapped, udp)
    if local_peer:
        swapped["local"] = 0
        look_up(elsewhere, swapped, udp)
    look_up(elsewhere, exact)


class _Owners:
    """Some of the sockets that were seen, to be found by key."""

    def __init__(self, keys: Array, index: Array) -> None:
        hashes = _key_hash(keys[index])
        order = np.argsort(hashes)
        index, hashes = index[order], hashes[order]
        alone = np.ones(len(index), bool)  # where two namespaces have one, nothing says which
        twins = hashes[1:] == hashes[:-1]
        alone[1:] &= ~twins
        alone[:-1] &= ~twins
        self._keys = keys
        self.index, self._hashes = index[alone], hashes[alone]

    def find(self, wanted: Array) -> tuple[Array, Array]:
        """bool[n] and the owners' index[n], for those that are found."""
        place, hit = find(self._hashes, _key_hash(wanted))
        found = self.index[place]
        hits = np.flatnonzero(hit)
        hit[hits] = self._keys[found[hits]] == wanted[hits]
        return hit, found

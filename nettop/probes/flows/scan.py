"""Two readings of the kernel's flow table joined by flow id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from nettop.probes.base import Array
from nettop.probes.flows.constants import LEG_EXTERNAL

# Rows that a frame holds at most: beyond, the largest by each of the usual measures.
MAX_ROWS = 20_000
# What is late or there twice: its name in ``loss``, that of the columns by direction, and the kernel's.
LATE = {"duplicate": "duplicates", "probe": "probes", "unneeded": "unneeded", "uncertain": "uncertain"}
_KERNEL = ("duplicates", "tcp_probes", "dsacks", "uncertain")


def _late(directions: Array) -> Array:
    """u4[n, 4] in the order of LATE, from n times two struct flow_dir."""
    result = np.empty((len(directions), len(_KERNEL)), np.uint32)
    for index, counter in enumerate(_KERNEL):
        counts = directions[counter]
        np.add(counts[:, 0], counts[:, 1], out=result[:, index])
    return result


@dataclass(frozen=True)
class Scan:
    """What is remembered of one reading of the table: counts[n, 2] of n flows, as they came."""

    ids: Array  # u8[n], ascending
    index: Array  # intp[n]: where each of them is in the counts
    counts: Mapping[str, Array]  # bytes, packets, samples: [n, 2]; late: u4[n, 4]

    @classmethod
    def of(cls, values: Array) -> Self:
        """From values of the map ``flows``; copies."""
        ids = values["id"].copy()  # sorting is twice as fast in one piece
        index = np.argsort(ids)
        directions = values["dir"]
        counts = {name: directions[name].copy() for name in ("bytes", "packets")}
        counts |= {"samples": values["rtt"]["samples"].copy(), "late": _late(directions)}
        return cls(ids[index], index, counts)

    def places(self, later: Scan) -> Array:
        """intp[m]: where each flow of a later scan, as they came, is in this one's counts; -1: nowhere."""
        result = np.full(len(later.ids), -1, np.intp)
        if len(self.ids):
            # Sorted among sorted: ten times as fast as in any order, since the search stays in the cache.
            found = np.searchsorted(self.ids, later.ids)
            found[found == len(self.ids)] = 0
            result[later.index] = np.where(self.ids[found] == later.ids, self.index[found], -1)
        return result


def grown(before: Scan, now: Scan, places: Array, chosen: Array) -> dict[str, Array]:
    """How much the chosen flows have grown since the scan before; what was not there has grown from nothing."""
    place = places[chosen]
    known = np.flatnonzero(place >= 0)
    result = {name: counts[chosen] for name, counts in now.counts.items()}
    for name, counts in result.items():
        counts[known] -= before.counts[name][place[known]]
    return result


def choose(before: Scan, scan: Scan, places: Array, values: Array) -> Array:
    """Indexes of the rows that a frame holds: all, or the largest by each of the usual measures."""
    count = len(values)
    if count <= MAX_ROWS:
        return np.arange(count)
    share = MAX_ROWS // 5
    now, then = scan.counts["bytes"], before.counts["bytes"]
    total = now[:, 0] + now[:, 1]  # ten times as fast as a sum along so short an axis
    grown = total.copy()
    known = np.flatnonzero(places >= 0)
    grown[known] -= (then[:, 0] + then[:, 1])[places[known]]
    retransmits = values["dir"]["retransmits"]
    measures = (
        grown,
        total,
        values["rtt"]["last"][:, LEG_EXTERNAL],
        retransmits[:, 0] + retransmits[:, 1],
        values["first"],
    )
    parts = [np.argpartition(m, count - share)[count - share :] for m in measures]
    return np.unique(np.concatenate(parts))

"""Two readings of the kernel's flow table joined by flow id."""

from __future__ import annotations

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
class _Scan:
    """What is remembered of one reading of the table: counts[n, 2] of n flows, as they came."""

    ids: Array  # u8[n], ascending
    index: Array  # intp[n]: where each of them is in the counts
    bytes: Array
    packets: Array
    samples: Array
    late: Array  # u4[n]: of dtype ROW_LOSS, both directions

    @classmethod
    def of(cls, values: Array) -> Self:
        """From values of the map ``flows``; copies."""
        ids = values["id"].copy()  # sorting is twice as fast in one piece
        index = np.argsort(ids)
        counts = values["dir"]
        return cls(
            ids[index],
            index,
            counts["bytes"].copy(),
            counts["packets"].copy(),
            values["rtt"]["samples"].copy(),
            _late(counts),
        )

    def places(self, later: _Scan) -> Array:
        """intp[m]: where each flow of a later scan, as they came, is in this one's counts; -1: nowhere."""
        result = np.full(len(later.ids), -1, np.intp)
        if len(self.ids):
            # Sorted among sorted: ten times as fast as in any order, since the search stays in the cache.
            found = np.searchsorted(self.ids, later.ids)
            found[found == len(self.ids)] = 0
            result[later.index] = np.where(self.ids[found] == later.ids, self.index[found], -1)
        return result


@dataclass(frozen=True)
class _Counts:
    """How much some flows have grown since the scan before: [n, 2]."""

    bytes: Array
    packets: Array
    samples: Array
    late: Array

    @classmethod
    def between(cls, before: _Scan, now: _Scan, places: Array, chosen: Array) -> Self:
        """Of the chosen flows; what was not there before has grown from nothing."""
        place = places[chosen]
        known = np.flatnonzero(place >= 0)
        grown = []
        for name in ("bytes", "packets", "samples", "late"):
            counts = getattr(now, name)[chosen]
            counts[known] -= getattr(before, name)[place[known]]
            grown.append(counts)
        return cls(*grown)


def _chosen(before: _Scan, scan: _Scan, places: Array, values: Array) -> Array:
    """Indexes of the rows that a frame holds: all, or the largest by each of the usual measures."""
    count = len(values)
    if count <= MAX_ROWS:
        return np.arange(count)
    share = MAX_ROWS // 5
    total = scan.bytes[:, 0] + scan.bytes[:, 1]  # ten times as fast as a sum along so short an axis
    grown = total.copy()
    known = np.flatnonzero(places >= 0)
    grown[known] -= (before.bytes[:, 0] + before.bytes[:, 1])[places[known]]
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

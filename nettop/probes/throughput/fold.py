"""From per-CPU counters to the section."""

from __future__ import annotations

from typing import Any

import numpy as np

from nettop.core import units
from nettop.core.histogram import Growth
from nettop.probes.base import Array, Folded, Reads, Setup
from nettop.probes.throughput.section import BEYOND_IP, Direction, Qdisc, Share, Throughput

BIN_SHIFT = 20
BIN_NS = 1 << BIN_SHIFT


def _growth(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else max(now - before, 0)


class ThroughputFold:
    """Differences of per-CPU counters, and the busiest bin of the interval."""

    def __init__(self, setup: Setup) -> None:
        self._grown = Growth()
        self._interface: Any = None
        self._qdisc: Any = None
        self._bin = setup.start_ns >> BIN_SHIFT  # the last bin that has been looked at

    def __call__(self, reads: Reads) -> Folded:
        traffic = reads.maps["traffic"]
        grown = {
            name: self._grown(name, traffic[name].sum(axis=1, dtype=np.uint64))  # by direction
            for name in ("bytes", "packets", "segments", "fragments", "sizes", "protocols")
        }
        peaks = self._peaks(reads)
        interface, before = reads.system.get("interface"), self._interface
        qdisc, qdisc_before = reads.system.get("qdisc"), self._qdisc
        self._interface, self._qdisc = interface, qdisc

        def direction(index: int, name: str) -> Direction:
            def own(what: str, of: Any) -> int | None:
                return getattr(of, f"{name}_{what}") if of is not None else None

            counts: dict[str, int] = {
                what: int(grown[what][index]) for what in ("bytes", "packets", "segments", "fragments")
            }
            return Direction(
                **counts,
                peak_bits_per_s=int(peaks[index]) * 8 * 1_000_000_000 // BIN_NS,
                sizes=tuple(grown["sizes"][index].tolist()),
                bytes_total=own("bytes", interface),
                packets_total=own("packets", interface),
                drops=_growth(own("drops", interface), own("drops", before)),
                errors=_growth(own("errors", interface), own("errors", before)),
                drops_total=own("drops", interface),
                errors_total=own("errors", interface),
            )

        protocols = grown["protocols"]
        shares = [
            Share(BEYOND_IP.get(p) or units.protocol(p), *protocols[:, p].tolist())
            for p in np.flatnonzero(protocols.any(axis=0)).tolist()
        ]
        shares.sort(key=lambda share: -(share.rx_bytes + share.tx_bytes))
        section = Throughput(
            direction(0, "rx"),
            direction(1, "tx"),
            interface.speed_bits_per_s if interface else None,
            interface.mtu if interface else None,
            tuple(shares),
            Qdisc(
                qdisc.kind,
                _growth(qdisc.drops, qdisc_before.drops) if qdisc_before else None,
                qdisc.backlog_bytes,
                qdisc.backlog_packets,
            )
            if qdisc
            else Qdisc(),
            interface.kind if interface else "",
            (interface.differs or None) if interface else None,
        )
        return Folded(section)

    def _peaks(self, reads: Reads) -> Array:
        """Bytes of the busiest bin since the last frame, by direction, summed over CPUs bin by bin.

        Read several times an interval, since the ring of bins holds one second.
        """
        peaks = np.zeros(2, np.uint64)
        for now_ns, bursts in reads.maps["bursts"]:
            newest = (now_ns >> BIN_SHIFT) - 1  # the current bin is still being filled
            bins = bursts["bins"]  # [direction, cpu, bin]
            span = min(newest - self._bin, bins.shape[-1])
            # Wrapping arithmetic: the 32-bit numbers come round after 52 days.
            back = np.uint32(newest & 0xFFFFFFFF) - bins["number"]
            fresh = (back < max(span, 0)) & (bins["bytes"] > 0)
            for index in (0, 1):
                totals = np.bincount(back[index][fresh[index]], bins["bytes"][index][fresh[index]], 1)
                peaks[index] = max(peaks[index], np.uint64(totals.max()))
            self._bin = max(newest, self._bin)
        return peaks

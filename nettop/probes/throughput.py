"""Throughput of the interface: rates, bursts, packet sizes, protocols, drops.

The C side counts per CPU and direction (bpf_src/throughput.c); this folds two readings into one interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from nettop import units
from nettop.probes import throughput_view as view
from nettop.probes.base import (
    Array,
    Fold,
    Folded,
    Hook,
    Map,
    Probe,
    Reads,
    Setup,
    one,
)

PROTO_SLOTS, PROTO_ARP, PROTO_OTHER = 263, 256, 257
PROTO_LLDP, PROTO_LLC, PROTO_PPPOE, PROTO_MPLS, PROTO_BROKEN = 258, 259, 260, 261, 262
# Upper bounds in bytes of the size classes; the last is open (a jumbo frame of 9000 bytes and its header is 9018).
SIZES = (64, 128, 256, 512, 1024, 1518, 9018, 65550)
BIN_SHIFT, BINS = 20, 1024
BIN_NS = 1 << BIN_SHIFT
# What is in no flow, since it is no IP.
_BEYOND_IP = {
    PROTO_ARP: "arp",
    PROTO_OTHER: "other",
    PROTO_LLDP: "lldp",
    PROTO_LLC: "llc",
    PROTO_PPPOE: "pppoe",
    PROTO_MPLS: "mpls",
    PROTO_BROKEN: "broken-ip",
}

_NO_FLOW = frozenset(_BEYOND_IP.values())

TRAFFIC = np.dtype(
    [
        ("bytes", "u8"),
        ("packets", "u8"),
        ("segments", "u8"),
        ("fragments", "u8"),
        ("sizes", "u8", (len(SIZES),)),
        ("protocols", "u8", (PROTO_SLOTS,)),
    ]
)
BURSTS = np.dtype(
    [
        ("bins", [("number", "u4"), ("bytes", "u4")], (BINS,)),
        ("tick", "u8"),
        ("number", "u4"),
        ("bytes", "u4"),
    ]
)


@dataclass(frozen=True, slots=True)
class Direction:
    """One direction in the interval; ``_total`` since the interface exists, None where not known.

    ``bytes`` and ``packets`` as the interface's own counters count them, ``segments`` as the wire does.
    ``bins`` are the bytes of each 1.05 ms of the interval, oldest first.
    """

    bytes: int = 0
    packets: int = 0
    segments: int = 0
    fragments: int = 0
    peak_bits_per_s: int | None = None
    sizes: tuple[int, ...] = (0,) * len(SIZES)
    bytes_total: int | None = None
    packets_total: int | None = None
    drops: int | None = None
    errors: int | None = None
    drops_total: int | None = None
    errors_total: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "bytes": self.bytes,
            "packets": self.packets,
            "segments": self.segments,
            "fragments": self.fragments,
            "bytes_total": self.bytes_total,
            "packets_total": self.packets_total,
            "drops": self.drops,
            "errors": self.errors,
            "drops_total": self.drops_total,
            "errors_total": self.errors_total,
            "peak_bits_per_s": self.peak_bits_per_s,
            "sizes": [[upper, count] for upper, count in zip(SIZES, self.sizes, strict=True)],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        sizes = {int(upper): int(count) for upper, count in data.get("sizes", ())}
        optional = ("bytes_total", "packets_total", "drops", "errors", "drops_total", "errors_total")
        return cls(
            bytes=int(data.get("bytes", 0)),
            packets=int(data.get("packets", 0)),
            segments=int(data.get("segments", 0)),
            fragments=int(data.get("fragments", 0)),
            peak_bits_per_s=data.get("peak_bits_per_s"),
            sizes=tuple(sizes.get(upper, 0) for upper in SIZES),
            **{name: data.get(name) for name in optional},
        )


@dataclass(frozen=True, slots=True)
class Throughput:
    """The section ``throughput`` of the frame.  ``protocols``: name, bytes received, bytes sent; largest first.

    ``kind`` is the device's as rtnetlink says it, empty for hardware and lo; ``differs`` says why its own counters
    count otherwise than the programs, where that cannot be followed.
    """

    rx: Direction = field(default_factory=Direction)
    tx: Direction = field(default_factory=Direction)
    speed_bits_per_s: int | None = None
    mtu: int | None = None
    protocols: tuple[tuple[str, int, int], ...] = ()
    qdisc: str | None = None
    qdisc_drops: int | None = None
    backlog_bytes: int | None = None
    backlog_packets: int | None = None
    kind: str = ""
    differs: str | None = None

    @property
    def in_no_flow(self) -> tuple[tuple[str, int, int], ...]:
        """Those of the protocols that are no IP, so that no flow has their bytes."""
        return tuple(entry for entry in self.protocols if entry[0] in _NO_FLOW)

    def to_json(self, top: int, sort: str) -> dict[str, Any]:
        return {
            "throughput": {
                "rx": self.rx.to_json(),
                "tx": self.tx.to_json(),
                "speed_bits_per_s": self.speed_bits_per_s,
                "mtu": self.mtu,
                "kind": self.kind,
                "differs": self.differs,
                "protocols": [{"protocol": n, "rx_bytes": r, "tx_bytes": t} for n, r, t in self.protocols],
                "in_no_flow": {
                    "rx_bytes": sum(rx for _, rx, _ in self.in_no_flow),
                    "tx_bytes": sum(tx for _, _, tx in self.in_no_flow),
                    "protocols": [name for name, _, _ in self.in_no_flow],
                },
                "qdisc": {
                    "kind": self.qdisc,
                    "drops": self.qdisc_drops,
                    "backlog_bytes": self.backlog_bytes,
                    "backlog_packets": self.backlog_packets,
                },
            }
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        ours = data.get("throughput") or {}
        qdisc = ours.get("qdisc") or {}
        return cls(
            rx=Direction.from_json(ours.get("rx") or {}),
            tx=Direction.from_json(ours.get("tx") or {}),
            speed_bits_per_s=ours.get("speed_bits_per_s"),
            mtu=ours.get("mtu"),
            protocols=tuple(
                (str(p["protocol"]), int(p["rx_bytes"]), int(p["tx_bytes"]))
                for p in ours.get("protocols", ())
            ),
            qdisc=qdisc.get("kind"),
            qdisc_drops=qdisc.get("drops"),
            backlog_bytes=qdisc.get("backlog_bytes"),
            backlog_packets=qdisc.get("backlog_packets"),
            kind=str(ours.get("kind") or ""),
            differs=ours.get("differs"),
        )

    def trimmed(self, top: int) -> Self:
        return self

    def health(self) -> Mapping[str, int]:
        return {}


def _growth(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else max(now - before, 0)


class ThroughputFold:
    """Differences of per-CPU counters, and the busiest bin of the interval."""

    def __init__(self, setup: Setup) -> None:
        self._before: Array | None = None
        self._interface: Any = None
        self._qdisc: Any = None
        self._bin = setup.start_ns >> BIN_SHIFT  # the last bin that has been looked at

    def __call__(self, reads: Reads) -> Folded:
        traffic = reads.maps["traffic"]
        now = np.stack(
            [
                np.concatenate(
                    [
                        traffic[name].sum(axis=1, dtype=np.uint64).reshape(2, -1)
                        for name in ("bytes", "packets", "segments", "fragments", "sizes", "protocols")
                    ],
                    axis=1,
                )
            ]
        )[0]
        grown = now if self._before is None else now - self._before
        self._before = now
        peaks = self._peaks(reads)
        interface, before = reads.system.get("interface"), self._interface
        qdisc, qdisc_before = reads.system.get("qdisc"), self._qdisc
        self._interface, self._qdisc = interface, qdisc
        sizes, protocols = 4, 4 + len(SIZES)

        def direction(index: int, name: str) -> Direction:
            def own(what: str, of: Any) -> int | None:
                return getattr(of, f"{name}_{what}") if of is not None else None

            row = grown[index]
            return Direction(
                bytes=int(row[0]),
                packets=int(row[1]),
                segments=int(row[2]),
                fragments=int(row[3]),
                peak_bits_per_s=int(peaks[index]) * 8 * 1_000_000_000 // BIN_NS,
                sizes=tuple(int(n) for n in row[sizes:protocols]),
                bytes_total=own("bytes", interface),
                packets_total=own("packets", interface),
                drops=_growth(own("drops", interface), own("drops", before)),
                errors=_growth(own("errors", interface), own("errors", before)),
                drops_total=own("drops", interface),
                errors_total=own("errors", interface),
            )

        used = np.flatnonzero(grown[:, protocols:].any(axis=0))
        split = sorted(
            (
                (
                    _BEYOND_IP.get(int(p)) or units.protocol(int(p)),
                    int(grown[0, protocols + p]),
                    int(grown[1, protocols + p]),
                )
                for p in used
            ),
            key=lambda entry: -(entry[1] + entry[2]),
        )
        section = Throughput(
            direction(0, "rx"),
            direction(1, "tx"),
            interface.speed_bits_per_s if interface else None,
            interface.mtu if interface else None,
            tuple(split),
            qdisc.kind if qdisc else None,
            _growth(qdisc.drops, qdisc_before.drops) if qdisc and qdisc_before else None,
            qdisc.backlog_bytes if qdisc else None,
            qdisc.backlog_packets if qdisc else None,
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
            span = min(newest - self._bin, BINS)
            bins = bursts["bins"]  # [direction, cpu, bin]
            # Wrapping arithmetic: the 32-bit numbers come round after 52 days.
            back = np.uint32(newest & 0xFFFFFFFF) - bins["number"]
            fresh = (back < max(span, 0)) & (bins["bytes"] > 0)
            for index in (0, 1):
                totals = np.bincount(back[index][fresh[index]], bins["bytes"][index][fresh[index]], 1)
                peaks[index] = max(peaks[index], np.uint64(totals.max()))
            self._bin = max(newest, self._bin)
        return peaks


def _fold(setup: Setup) -> Fold:
    return ThroughputFold(setup)


PROBE = Probe(
    name="throughput",
    summary="bytes, packets, sizes, protocols, bursts and drops of the interface",
    hooks=(
        Hook(
            "tc_ingress",
            (one("tcx", "throughput_ingress", "ingress"), one("clsact", "throughput_ingress", "ingress")),
            required=True,
        ),
        Hook(
            "tc_egress",
            (one("tcx", "throughput_egress", "egress"), one("clsact", "throughput_egress", "egress")),
            required=True,
        ),
    ),
    maps=(
        Map("traffic", "percpu", TRAFFIC),
        Map("bursts", "percpu", BURSTS, every_ns=400_000_000),
    ),
    fold=_fold,
    load=Throughput.from_json,
    panes=view.PANES,
    system=("interface", "qdisc"),
)

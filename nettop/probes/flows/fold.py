"""From the kernel's flow table to the section."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any

import numpy as np

from nettop.core.histogram import SLOTS, Growth, Histogram, smallest
from nettop.probes.base import Array, Folded, Reads, Setup
from nettop.probes.flows.constants import (
    DIR_STAMPED,
    LEG_EXTERNAL,
    LEG_INTERNAL,
    LINGER_NS,
    METHODS,
    PROTOCOLS,
    states,
)
from nettop.probes.flows.focus import FocusedFold
from nettop.probes.flows.owners import OWNED, find, join_owners
from nettop.probes.flows.rows import FLAG_STAMPED_BY_REMOTE, ROW, fill
from nettop.probes.flows.scan import LATE, Scan, choose, grown
from nettop.probes.flows.section import OTHERS, Flows, Rtts, Sample, Subnet

EXPIRE = "expire"  # the hook that takes flows out of the table
_SWEEP_NS = 10**9  # at most so often
MAX_SAMPLES = 1000  # of the focused flow, in one frame
QUIC_PORT, DNS_PORT = 443, 53


class FlowsFold:
    """Joins this scan with the last by flow id, and flows with the processes behind their sockets.

    A frame without a reading of the table (--scan-interval) carries the last one's rows on.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._before: Scan | None = None
        self._owned = np.zeros(0, OWNED)  # by id, ascending
        self._scan_ns = 0
        self._table: dict[str, Any] = {"rows": np.zeros(0, ROW), "total": 0, "interval_ns": 0}
        self._counted = Growth()
        self._swept_ns = 0
        self._closed = 0  # told so far
        self._evicted = 0
        self._missing = 0  # at the last reading
        self._cpus = setup.cpus
        self._rtts = Growth()
        self._subnets: dict[bytes, tuple[int, Array]] = {}
        self._focused = FocusedFold()

    def __call__(self, reads: Reads) -> Folded:
        by_cpu = reads.maps["counters"][0]
        counters = {name: int(by_cpu[name].sum(dtype=np.uint64)) for name in by_cpu.dtype.names}
        new = {name: int(self._counted(name, count)) for name, count in counters.items()}
        run: dict[str, list[bytes]] = {}
        evicted = 0
        if "flows" in reads.maps:
            keys, values = reads.maps["flows"]
            out = counters["replaced"] + counters["expired"]
            evicted_now = counters["created"] - out - len(keys)
            # Each CPU may have one in hand that is taken out and put back by the same packet (table.h): so many count
            # when the next reading says the same.
            certain = max(evicted_now - self._cpus, min(evicted_now, self._missing))
            self._missing = evicted_now
            evicted, self._evicted = max(certain - self._evicted, 0), max(certain, self._evicted)
            interval = reads.now_ns - self._scan_ns if self._scan_ns else reads.interval_ns
            self._scan_ns = reads.now_ns
            self._table = {
                "rows": self._rows(keys, values, reads),
                "total": len(keys),
                "interval_ns": interval,
            }
            due = _due(values, reads.now_ns)
            if len(due) and EXPIRE in self._setup.hooks and reads.now_ns - self._swept_ns >= _SWEEP_NS:
                self._swept_ns = reads.now_ns
                run[EXPIRE] = _expiring(
                    keys[due], values["id"][due], reads.now_ns, self._setup.layouts["due"]
                )
        focus = int(reads.maps["config"][0]["focus"])
        closed_total = counters["closed"] - counters["revived"]
        closed, self._closed = max(closed_total - self._closed, 0), max(closed_total, self._closed)
        section = Flows(
            **self._table,
            now_ns=reads.now_ns,
            age_ns=reads.now_ns - self._scan_ns if self._scan_ns else 0,
            opened=new["opened"],
            closed=closed,
            expired=new["idle"],
            opened_total=counters["opened"],
            closed_total=closed_total,
            samples=_samples(reads.maps["events"], focus),
            focused=self._focused(reads.maps["focused"][0], focus),
            lost_events=new["lost_events"],
            evicted=evicted,
            untracked=new["untracked"],
            fragments=new["fragments"],
            fragment_bytes=new["fragment_bytes"],
            rtt=self._histograms(reads.maps["rtts"], *reads.maps["subnets"]),
        )
        return Folded(section, run)

    def _rows(self, keys: Array, values: Array, reads: Reads) -> Array:
        """The frame's rows: differences to the last scan, by flow id."""
        scan = Scan.of(values)
        before = self._before or Scan.of(values[:0])
        places = before.places(scan)
        chosen = choose(before, scan, places, values)
        growth = grown(before, scan, places, chosen)
        self._before = scan

        rows = np.zeros(len(chosen), ROW)
        everyone = len(chosen) == len(values)  # then without copying a quarter of a kilobyte for each
        v = values if everyone else values[chosen]
        fill(rows, v)
        stamped = v["dir"]["known"][:, 0] & DIR_STAMPED != 0
        rows["flags"] = v["flags"] & np.uint64(FLAG_STAMPED_BY_REMOTE - 1)
        rows["flags"][stamped] |= FLAG_STAMPED_BY_REMOTE
        rows["state"] = states(v["flags"])
        k = keys if everyone else keys[chosen]
        for name in ("local", "remote"):
            rows[name] = k[name].view(np.uint8)
        for name in ("local_port", "remote_port", "tunnel", "tunnel_id"):
            rows[name] = k[name]
        rows["protocol"] = k["protocol"] & 0xFF
        rows["vlan"] = k["protocol"] >> 8 & 0xFFF
        rows["vlan_inner"] = k["protocol"] >> 20
        for way, name in ((0, "rx"), (1, "tx")):
            for what in ("bytes", "packets"):
                rows[f"{name}_{what}"] = growth[what][:, way]
        for index, (what, of_row) in enumerate(LATE.items()):
            rows["loss"][what] = growth["late"][:, index]
            rows["loss"][f"{what}_total"] = rows[f"rx_{of_row}"] + rows[f"tx_{of_row}"]
        quic = _is_quic(rows)  # in any other flow these fields are what they are called
        rows["spin_packets"] = np.where(quic, v["dir"]["rtt_probes"]["value"][:, 1, 1], 0)
        rows["spin_edges"] = np.where(quic, v["dir"]["rtt_probes"]["method"][:, 1, 1], 0)
        rows["spin_singles"] = np.where(quic, v["dir"]["tsval"][:, 1], 0)
        for leg, name in ((LEG_EXTERNAL, "rtt"), (LEG_INTERNAL, "internal_rtt")):
            rows[name]["samples"] = growth["samples"][:, leg]
        # A flow keeps the process that it was found to belong to, also when its socket is not seen any more.
        place, owned = find(self._owned["id"], rows["id"])
        rows["process"][owned] = self._owned["process"][place[owned]]
        join_owners(rows, k, reads.maps["owners"], self._setup.netns, self._setup.peer_is_local)
        self._remember_owners(rows, scan)
        return rows

    def _remember_owners(self, rows: Array, scan: Scan) -> None:
        mine = rows[rows["process"]["pid"] != 0]
        owned = np.zeros(len(mine), OWNED)
        for name in OWNED.names or ():
            owned[name] = mine[name]
        if len(rows) < len(scan.ids):  # flows that are no rows this time, and still in the table
            _, present = find(scan.ids, self._owned["id"])
            owned = np.concatenate([owned, self._owned[present & ~np.isin(self._owned["id"], rows["id"])]])
        self._owned = owned[np.argsort(owned["id"])]

    def _histograms(self, now: Array, keys: Array, values: Array) -> Rtts:
        outward, inward, beyond = (self._rtts.histogram(str(n), now[n]) for n in range(3))
        subnets = self._subnet_histograms(keys, values)
        slots = now["slots"][2].sum(axis=0, dtype=np.uint64)
        if slots.any():
            # The smallest by its bucket: the table has no room for more.
            subnets = (*subnets, Subnet(OTHERS, beyond, smallest(Histogram(slots, 0))))
        return Rtts(outward, inward, subnets)

    def _subnet_histograms(self, keys: Array, values: Array) -> tuple[Subnet, ...]:
        result: list[Subnet] = []
        known: dict[bytes, tuple[int, Array]] = {}
        for key, value in zip(keys, values, strict=True):
            raw = key.tobytes()
            total, slots = int(value["sum"]), value["slots"].copy()
            total_before, before = self._subnets.get(raw, (0, np.zeros(SLOTS, np.uint32)))
            known[raw] = (total, slots)
            grown = Histogram((slots - before).astype(np.uint64), total - total_before)
            result.append(Subnet(_prefix(key), grown, int(value["min"]) or None))
        self._subnets = known
        result.sort(key=lambda s: (-s.rtt.count, s.prefix))
        return tuple(result)


def _is_quic(rows: Array) -> Array:
    """bool[n]: flows whose spin bit the program looks at; parse_l4_ports of bpf_src/flows/segment.h has the same."""
    ends = np.stack([rows["local_port"], rows["remote_port"]])
    quic = (ends == QUIC_PORT).any(axis=0) & ~(ends == DNS_PORT).any(axis=0)
    return np.asarray(quic & (rows["protocol"] == PROTOCOLS["udp"]))


def _due(values: Array, now_ns: int) -> Array:
    """intp[n]: flows whose time in the table is over: closed, never answered, or idle."""
    quiet = np.flatnonzero(values["last"] < max(now_ns - int(LINGER_NS.min()), 0))
    age = now_ns - values["last"][quiet].astype(np.int64)
    return np.asarray(quiet[age > LINGER_NS.take(states(values["flags"][quiet]))])


def _expiring(keys: Array, ids: Array, read_at: int, layout: np.dtype[Any]) -> list[bytes]:
    """What flows_expire is to look at, in values of the map ``due``.  It decides: one may have come back meanwhile."""
    result = []
    room = layout["of"].shape[0]  # flows that one run looks at
    for begin in range(0, len(keys), room):
        part = slice(begin, begin + room)
        count = len(ids[part])
        due = np.zeros((), layout)
        due["read_at"], due["count"] = read_at, count
        due["of"]["key"][:count], due["of"]["id"][:count] = keys[part], ids[part]
        result.append(due.tobytes())
    return result


def _samples(events: Array, flow: int) -> tuple[Sample, ...]:
    """The newest of this flow alone: what comes after a change of focus may be the earlier one's."""
    ours = events[events["id"] == np.uint64(flow)][-MAX_SAMPLES:]
    return tuple(
        Sample(
            int(e["time"]),
            int(e["rtt"]),
            bool(e["leg"] == LEG_INTERNAL),
            METHODS[int(e["method"])],
            int(e["payload"]),
            int(e["tsval"]) or None,
        )
        for e in ours
    )


def _prefix(key: Any) -> str:
    address = IPv6Address(key["prefix"].tobytes())
    shown = address.ipv4_mapped if int(key["version"]) == 4 else None
    return f"{shown or address}/{int(key['length'])}"

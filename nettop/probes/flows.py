"""Flows: one row a connection, its traffic, its RTT by passive methods, its process; RTT histograms by subnet.

The C side (bpf_src/flows/flows.c, layouts in flow.h) keeps one entry a flow; this joins two scans of the table by flow
id, without a Python loop over flows anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from typing import Any, Self

import numpy as np

from nettop import stats, units
from nettop.model import SLOTS, Histogram
from nettop.probes import flows_view as view
from nettop.probes.base import (
    Array,
    Attachment,
    Candidate,
    Folded,
    Hook,
    Map,
    Probe,
    Reads,
    Setup,
    one,
)
from nettop.probes.flows_focus import Focused, FocusedFold
from nettop.probes.flows_layout import (
    COUNTERS,
    DIR_STAMPED,
    DUE,
    DUE_FLOWS,
    EVENT,
    FLAG_OPENED_BY_LOCAL,
    FLAG_OPENED_BY_REMOTE,
    FLAG_STAMPED_BY_REMOTE,
    FLOW,
    FLOW_KEY,
    FOCUSED,
    HIST,
    INWARD,
    LINGER_CLOSED,
    LINGER_CLOSING,
    LINGER_OTHER,
    LINGER_TCP,
    LINGER_UNREPLIED,
    METHODS,
    OUTWARD,
    OWNER,
    PROTOCOLS,
    ROW,
    ROW_LOSS,
    SPIN_PACKETS,
    STATES,
    SUBNET,
    SUBNET_KEY,
    TUNNEL_GRE,
    TUNNELS,
    spinning,
    states,
)
from nettop.probes.rows import first
from nettop.probes.stages import CONFIG

EXPIRE = "expire"  # the hook that takes flows out of the table
_SWEEP_NS = 10**9  # at most so often
# Rows that a frame holds at most: beyond, the largest by each of the usual measures.
MAX_ROWS = 20_000
MAX_SAMPLES = 1000  # of the focused flow, in one frame
QUIC_PORT, DNS_PORT = 443, 53
OTHERS = "others"  # the row of all subnets beyond the table


@dataclass(frozen=True, slots=True)
class Subnet:
    """Outward RTT of one subnet: the interval's histogram, and the smallest since the start in ns.

    The last one, OTHERS, stands for all subnets that found no room in the kernel's table.
    """

    prefix: str
    rtt: Histogram
    min_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One RTT sample of the focused flow; time is CLOCK_MONOTONIC.

    ``payload``: bytes of data in what answered (0: a bare ACK); ``tsval``: its timestamp.  None: not known.
    """

    time_ns: int
    rtt_ns: int
    inward: bool
    method: str
    payload: int | None = None
    tsval: int | None = None


@dataclass(frozen=True)
class Flows:
    """The sections ``flows`` and ``rtt`` of the frame.  ``rows`` is a structured array of dtype ROW."""

    rows: Array = field(default_factory=lambda: np.zeros(0, ROW))
    total: int = 0  # flows in the table
    now_ns: int = 0  # CLOCK_MONOTONIC, to which the rows' times belong
    interval_ns: int = 0  # of the rows, which is longer than the frame's with --scan-interval; 0: the frame's
    age_ns: int = 0  # how old the rows are at the end of the frame
    opened: int = 0
    closed: int = 0
    expired: int = 0
    opened_total: int = 0
    closed_total: int = 0
    outward: Histogram = field(default_factory=Histogram.empty)
    inward: Histogram = field(default_factory=Histogram.empty)
    subnets: tuple[Subnet, ...] = ()
    samples: tuple[Sample, ...] = ()
    focused: Focused | None = None
    lost_events: int = 0
    evicted: int = 0
    untracked: int = 0
    fragments: int = 0  # without their first one
    fragment_bytes: int = 0

    def top(self, count: int, sort: str) -> Array:
        """The rows to show, in the screen's order; ties keep that of age."""
        return self.rows[first(view.TABLE, self.rows, sort, count)]

    def to_json(self, top: int, sort: str) -> dict[str, Any]:
        return {
            "flows_total": self.total,
            "flows_opened": self.opened,
            "flows_closed": self.closed,
            "flows_expired": self.expired,
            "flows_opened_total": self.opened_total,
            "flows_closed_total": self.closed_total,
            "fragments_without_first": self.fragments,
            "fragments_without_first_bytes": self.fragment_bytes,
            "flows_interval_ns": self.interval_ns,
            "flows_age_ns": self.age_ns,
            "monotonic_ns": self.now_ns,
            "flows": [_row_json(row) for row in self.top(top, sort)],
            "rtt": {
                "all": stats.histogram_json(self.outward),
                "internal": stats.histogram_json(self.inward),
                "subnets": [
                    {"prefix": s.prefix, "min_ns": s.min_ns, "rtt": stats.histogram_json(s.rtt)}
                    for s in self.subnets
                ],
            },
            "samples": [
                {
                    "time_ns": s.time_ns,
                    "rtt_ns": s.rtt_ns,
                    "internal": s.inward,
                    "method": s.method,
                    "payload": s.payload,
                    "tsval": s.tsval,
                }
                for s in self.samples
            ],
            "focus": None if self.focused is None else self.focused.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        listed = data.get("flows") or ()
        rows = np.zeros(len(listed), ROW)
        for index, flow in enumerate(listed):
            _row_from_json(rows[index : index + 1], flow, index)
        rtt, health = data.get("rtt") or {}, data.get("health") or {}
        return cls(
            rows=rows,
            total=int(data.get("flows_total") or len(rows)),
            now_ns=int(data.get("monotonic_ns") or rows["last"].max(initial=0)),
            interval_ns=int(data.get("flows_interval_ns") or data.get("interval_ns") or 0),
            age_ns=int(data.get("flows_age_ns") or 0),
            opened=int(data.get("flows_opened") or 0),
            closed=int(data.get("flows_closed") or 0),
            expired=int(data.get("flows_expired") or 0),
            opened_total=int(data.get("flows_opened_total") or 0),
            closed_total=int(data.get("flows_closed_total") or 0),
            outward=stats.histogram_from_json(rtt.get("all")),
            inward=stats.histogram_from_json(rtt.get("internal")),
            subnets=tuple(
                Subnet(str(s["prefix"]), stats.histogram_from_json(s.get("rtt")), s.get("min_ns"))
                for s in rtt.get("subnets", ())
            ),
            samples=tuple(
                Sample(
                    int(s["time_ns"]),
                    int(s["rtt_ns"]),
                    bool(s["internal"]),
                    str(s["method"]),
                    None if s.get("payload") is None else int(s["payload"]),
                    None if s.get("tsval") is None else int(s["tsval"]),
                )
                for s in data.get("samples", ())
            ),
            focused=Focused.from_json(data.get("focus")),
            lost_events=int(health.get("lost_events") or 0),
            evicted=int(health.get("evicted_flows") or 0),
            untracked=int(health.get("untracked_packets") or 0),
            fragments=int(data.get("fragments_without_first") or 0),
            fragment_bytes=int(data.get("fragments_without_first_bytes") or 0),
        )

    def trimmed(self, top: int) -> Self:
        rows = self.top(top, "rate")
        if self.focused is not None and self.focused.flow not in rows["id"]:
            rows = np.concatenate([rows, self.rows[self.rows["id"] == self.focused.flow]])
        return replace(self, rows=rows.copy())

    def health(self) -> Mapping[str, int]:
        return {
            "lost_events": self.lost_events,
            "evicted_flows": self.evicted,
            "untracked_packets": self.untracked,
        }


_OPENERS = ((FLAG_OPENED_BY_LOCAL, "local"), (FLAG_OPENED_BY_REMOTE, "remote"))


def _or_none(value: Any) -> int | None:
    return int(value) or None


def _rtt_json(rtt: Any) -> dict[str, Any] | None:
    if not rtt["samples_total"]:
        return None
    return {
        "last_ns": int(rtt["last"]),
        "min_ns": int(rtt["min"]),
        "min_bare_ns": _or_none(rtt["min_bare"]),
        "smoothed_ns": int(rtt["smoothed"]),
        "jitter_ns": int(rtt["variance"]),
        "samples": int(rtt["samples"]),
        "samples_total": int(rtt["samples_total"]),
        "method": METHODS[int(rtt["method"])],
        "last_sample_ns": int(rtt["time"]),
    }


# Of TCP alone: what is late or there twice, by direction and since the start.
_LATE = ("duplicates", "probes", "unneeded", "uncertain")


def _late_json(row: Any) -> dict[str, Any]:
    """The fields ``loss`` and, by direction, ``rx_duplicates_total`` and its like; null without TCP."""
    tcp = row["protocol"] == PROTOCOLS["tcp"]
    names = [f"{way}_{what}" for what in _LATE for way in ("rx", "tx")]
    result: dict[str, Any] = {f"{name}_total": int(row[name]) if tcp else None for name in names}
    loss: dict[str, int] = {}
    for name, what in zip(ROW_LOSS.names or (), _LATE, strict=True):
        loss[name] = int(row["loss"][name])
        loss[f"{name}_total"] = int(row[f"rx_{what}"]) + int(row[f"tx_{what}"])
    return {**result, "loss": loss if tcp else None}


def _row_json(row: Any) -> dict[str, Any]:
    pid = int(row["pid"])
    name = bytes(row["process"]).decode(errors="replace")
    return {
        "id": int(row["id"]),
        "protocol": units.protocol(int(row["protocol"])),
        "local": units.endpoint(row["local"].tobytes(), int(row["local_port"])),
        "remote": units.endpoint(row["remote"].tobytes(), int(row["remote_port"])),
        "vlan": _or_none(row["vlan"]),
        "vlan_inner": _or_none(row["vlan_inner"]),
        "tunnel": TUNNELS[int(row["tunnel"])] or None,
        "tunnel_id": int(row["tunnel_id"]) if row["tunnel"] >= TUNNEL_GRE else None,
        "process": {"pid": pid, "name": units.clean(name)} if pid else None,
        "rx_bytes": int(row["rx_bytes"]),
        "tx_bytes": int(row["tx_bytes"]),
        "rx_packets": int(row["rx_packets"]),
        "tx_packets": int(row["tx_packets"]),
        "rx_bytes_total": int(row["rx_bytes_total"]),
        "tx_bytes_total": int(row["tx_bytes_total"]),
        "rx_packets_total": int(row["rx_packets_total"]),
        "tx_packets_total": int(row["tx_packets_total"]),
        "first_ns": int(row["first"]),
        "last_ns": int(row["last"]),
        "state": STATES[int(row["state"])] or None,
        "opened_by": next((name for flag, name in _OPENERS if int(row["flags"]) & flag), None),
        "retransmits_total": int(row["rx_retransmits"]) + int(row["tx_retransmits"])
        if row["protocol"] == PROTOCOLS["tcp"]
        else None,
        "rx_retransmits_total": int(row["rx_retransmits"]) if row["protocol"] == PROTOCOLS["tcp"] else None,
        "tx_retransmits_total": int(row["tx_retransmits"]) if row["protocol"] == PROTOCOLS["tcp"] else None,
        "out_of_order_total": int(row["rx_out_of_order"]) + int(row["tx_out_of_order"]),
        "rx_out_of_order_total": int(row["rx_out_of_order"]),
        "tx_out_of_order_total": int(row["tx_out_of_order"]),
        **_late_json(row),
        "rtt": _rtt_json(row["rtt"]),
        "internal_rtt": _rtt_json(row["internal_rtt"]),
        "kernel_rtt": {"smoothed_ns": int(row["srtt_us"]) * 1000, "cwnd": int(row["cwnd"])}
        if row["srtt_us"]
        else None,
        "spinning": spinning(row),
    }


def _row_from_json(row: Array, flow: Mapping[str, Any], index: int) -> None:
    """Fill one row, given as an array of one.  What is missing or null stays 0."""

    def put(where: Array, names: Mapping[str, str], values: Mapping[str, Any]) -> None:
        for name, key in names.items():
            where[name] = int(values.get(key) or 0)

    same = [
        f"{way}_{what}{total}"
        for way in ("rx", "tx")
        for what in ("bytes", "packets")
        for total in ("", "_total")
    ]
    put(row, {name: name for name in ("id", "vlan", "vlan_inner", "tunnel_id", *same)}, flow)
    put(row, {"first": "first_ns", "last": "last_ns"}, flow)
    put(row, {"rx_retransmits": "rx_retransmits_total", "tx_retransmits": "tx_retransmits_total"}, flow)
    late = (
        flow if "tx_out_of_order_total" in flow else {"tx_out_of_order_total": flow.get("out_of_order_total")}
    )
    put(row, {f"{way}_out_of_order": f"{way}_out_of_order_total" for way in ("rx", "tx")}, late)
    put(row, {f"{way}_{what}": f"{way}_{what}_total" for what in _LATE for way in ("rx", "tx")}, flow)
    put(row["loss"], {name: name for name in ROW_LOSS.names or ()}, flow.get("loss") or {})
    row["id"] = row["id"] + (0 if row["id"][0] else index + 1)
    row["protocol"] = units.protocol_number(str(flow.get("protocol", "")))
    for end in ("local", "remote"):
        address, port = units.parse_endpoint(str(flow.get(end, "")))
        row[end] = np.frombuffer(address, np.uint8)
        row[f"{end}_port"] = port
    tunnel = flow.get("tunnel") or ""
    row["tunnel"] = TUNNELS.index(tunnel) if tunnel in TUNNELS else 0
    state = flow.get("state") or ""
    row["state"] = STATES.index(state) if state in STATES else 0
    row["flags"] = sum(flag for flag, name in _OPENERS if flow.get("opened_by") == name)
    process = flow.get("process") or {}
    row["pid"] = int(process.get("pid") or 0)
    row["process"] = units.clean(str(process.get("name") or "")).encode()[:16]
    for name in ("rtt", "internal_rtt"):
        rtt = flow.get(name)
        if rtt:
            names = {
                "last": "last_ns",
                "min": "min_ns",
                "min_bare": "min_bare_ns",
                "smoothed": "smoothed_ns",
                "variance": "jitter_ns",
            }
            names |= {"time": "last_sample_ns", "samples": "samples", "samples_total": "samples_total"}
            put(row[name], names, rtt)
            method = rtt.get("method")
            row[name]["method"] = METHODS.index(method) if method in METHODS else 0
    kernel = flow.get("kernel_rtt") or {}
    row["srtt_us"] = int(kernel.get("smoothed_ns") or 0) // 1000
    row["cwnd"] = int(kernel.get("cwnd") or 0)
    if flow.get("spinning") is not None:
        row["spin_packets"] = SPIN_PACKETS
        row["spin_edges"] = SPIN_PACKETS if flow["spinning"] else 0


def _key_hash(keys: Array) -> Array:
    """uint64 hash of 48-byte keys (V48 or FLOW_KEY): equal keys, equal hashes; others almost never."""
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


# What a row calls the fields of the kernel's struct rtt.
_ROW_RTT = {name: name for name in ("last", "min", "min_bare", "time", "method")} | {
    "srtt": "smoothed",
    "rttvar": "variance",
    "samples": "samples_total",
}
# What a row calls the kernel's counters of a direction.
_KERNEL = {"duplicates": "duplicates", "probes": "tcp_probes", "unneeded": "dsacks", "uncertain": "uncertain"}


def _late(directions: Array) -> Array:
    """u4[n, 4] in the order of ROW_LOSS, from n times two FLOW_DIR."""
    result = np.empty((len(directions), len(_LATE)), np.uint32)
    for index, what in enumerate(_LATE):
        counts = directions[_KERNEL[what]]
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
        """From values of dtype FLOW; copies."""
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


class FlowsFold:
    """Joins this scan with the last by flow id, and flows with the processes behind their sockets.

    A frame without a reading of the table (--scan-interval) carries the last one's rows on.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._before = _Scan.of(np.zeros(0, FLOW))
        self._owned = np.zeros(0, _OWNED)  # by id, ascending
        self._scan_ns = 0
        self._table: dict[str, Any] = {"rows": np.zeros(0, ROW), "total": 0, "interval_ns": 0}
        self._counters: dict[str, int] = {}
        self._swept_ns = 0
        self._closed = 0  # told so far
        self._evicted = 0
        self._missing = 0  # at the last reading
        self._cpus = setup.cpus
        self._rtts: Array | None = None
        self._subnets: dict[bytes, tuple[int, Array]] = {}
        self._focused = FocusedFold()

    def __call__(self, reads: Reads) -> Folded:
        counters = _summed(reads.maps["counters"][0])
        grown = {name: count - self._counters.get(name, 0) for name, count in counters.items()}
        self._counters = counters
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
                run[EXPIRE] = _expiring(keys[due], values["id"][due], reads.now_ns)
        focus = int(reads.maps["config"][0]["focus"])
        closed_total = counters["closed"] - counters["revived"]
        closed, self._closed = max(closed_total - self._closed, 0), max(closed_total, self._closed)
        section = Flows(
            **self._table,
            now_ns=reads.now_ns,
            age_ns=reads.now_ns - self._scan_ns if self._scan_ns else 0,
            opened=grown["opened"],
            closed=closed,
            expired=grown["idle"],
            opened_total=counters["opened"],
            closed_total=closed_total,
            samples=_samples(reads.maps["events"], focus),
            focused=self._focused(reads.maps["focused"][0], focus),
            lost_events=grown["lost_events"],
            evicted=evicted,
            untracked=grown["untracked"],
            fragments=grown["fragments"],
            fragment_bytes=grown["fragment_bytes"],
            **self._histograms(reads.maps["rtts"], *reads.maps["subnets"]),
        )
        return Folded(section, run)

    def _rows(self, keys: Array, values: Array, reads: Reads) -> Array:
        """The frame's rows: differences to the last scan, by flow id."""
        scan = _Scan.of(values)
        places = self._before.places(scan)
        chosen = _chosen(self._before, scan, places, values)
        grown = _Counts.between(self._before, scan, places, chosen)
        self._before = scan

        rows = np.zeros(len(chosen), ROW)
        everyone = len(chosen) == len(values)  # then without copying a quarter of a kilobyte for each
        v = values if everyone else values[chosen]
        for name in ("id", "first", "last"):
            rows[name] = v[name]
        stamped = v["dir"]["known"][:, 0] & DIR_STAMPED != 0
        rows["flags"] = v["flags"] & np.uint64(FLAG_STAMPED_BY_REMOTE - 1)
        rows["flags"][stamped] |= FLAG_STAMPED_BY_REMOTE
        rows["state"] = states(v["flags"])
        k = keys if everyone else keys[chosen]
        for name in ("local", "remote", "local_port", "remote_port", "tunnel", "tunnel_id"):
            rows[name] = k[name]
        rows["protocol"] = k["protocol"] & 0xFF
        rows["vlan"] = k["protocol"] >> 8 & 0xFFF
        rows["vlan_inner"] = k["protocol"] >> 20
        for way, name in ((0, "rx"), (1, "tx")):
            for what in ("bytes", "packets"):
                rows[f"{name}_{what}_total"] = v["dir"][what][:, way]
                rows[f"{name}_{what}"] = getattr(grown, what)[:, way]
            rows[f"{name}_retransmits"] = v["dir"]["retransmits"][:, way]
            rows[f"{name}_out_of_order"] = v["dir"]["out_of_order"][:, way]
            for what, counter in _KERNEL.items():
                rows[f"{name}_{what}"] = v["dir"][counter][:, way]
            rows[f"{name}_window"] = v["dir"]["window"][:, way]
        for index, what in enumerate(ROW_LOSS.names or ()):
            rows["loss"][what] = grown.late[:, index]
        quic = _is_quic(rows)  # in any other flow these fields are what they are called
        rows["spin_packets"] = np.where(quic, v["dir"]["rtt_probes"]["value"][:, 1, 1], 0)
        rows["spin_edges"] = np.where(quic, v["dir"]["rtt_probes"]["method"][:, 1, 1], 0)
        rows["spin_singles"] = np.where(quic, v["dir"]["tsval"][:, 1], 0)
        for side, name in ((OUTWARD, "rtt"), (INWARD, "internal_rtt")):
            for what, target in _ROW_RTT.items():
                rows[name][target] = v["rtt"][what][:, side]
            rows[name]["samples"] = grown.samples[:, side]
        self._recall_owners(rows)
        _join_owners(rows, k, reads.maps["owners"], self._setup.netns, self._setup.peer_is_local)
        self._remember_owners(rows, scan)
        return rows

    def _recall_owners(self, rows: Array) -> None:
        """A flow keeps the process that it was found to belong to, also when its socket is not seen any more."""
        place, known = _find(self._owned["id"], rows["id"])
        for name in ("pid", "process"):
            rows[name][known] = self._owned[name][place[known]]

    def _remember_owners(self, rows: Array, scan: _Scan) -> None:
        mine = rows[rows["pid"] != 0]
        owned = np.zeros(len(mine), _OWNED)
        for name in _OWNED.names or ():
            owned[name] = mine[name]
        if len(rows) < len(scan.ids):  # flows that are no rows this time, and still in the table
            _, present = _find(scan.ids, self._owned["id"])
            owned = np.concatenate([owned, self._owned[present & ~np.isin(self._owned["id"], rows["id"])]])
        self._owned = owned[np.argsort(owned["id"])]

    def _histograms(self, now: Array, keys: Array, values: Array) -> dict[str, Any]:
        """The fields ``outward``, ``inward`` and ``subnets`` of Flows."""
        counts = now["slots"].sum(axis=1, dtype=np.uint64)
        sums = now["sum"].sum(axis=1, dtype=np.uint64)
        whole = np.concatenate([sums[:, None], counts], axis=1)
        grown = whole if self._rtts is None else whole - self._rtts
        self._rtts = whole
        outward, inward, beyond = (Histogram(g[1:], int(g[0])) for g in grown)
        subnets = self._subnet_histograms(keys, values)
        if whole[2, 1:].any():
            # The smallest by its bucket: the table has no room for more.
            least = stats.smallest(Histogram(whole[2, 1:], 0))
            subnets = (*subnets, Subnet(OTHERS, beyond, least))
        return {"outward": outward, "inward": inward, "subnets": subnets}

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


# Who a flow was found to belong to.
_OWNED = np.dtype([("id", "u8"), ("pid", "u4"), ("process", "S16")])


def _find(ascending: Array, wanted: Array) -> tuple[Array, Array]:
    """intp[n] and bool[n]: where each wanted value is among the ascending ones, and whether it is."""
    if not len(ascending):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), bool)
    place = np.searchsorted(ascending, wanted)
    place[place == len(ascending)] = 0
    return place, np.asarray(ascending[place] == wanted)


def _is_quic(rows: Array) -> Array:
    """bool[n]: flows whose spin bit the program looks at; parse_l4_ports of bpf_src/flows/segment.h has the same."""
    ends = np.stack([rows["local_port"], rows["remote_port"]])
    quic = (ends == QUIC_PORT).any(axis=0) & ~(ends == DNS_PORT).any(axis=0)
    return np.asarray(quic & (rows["protocol"] == PROTOCOLS["udp"]))


def _summed(per_cpu: Array) -> dict[str, int]:
    """Counters over all CPUs."""
    return {name: int(per_cpu[name].sum(dtype=np.uint64)) for name in per_cpu.dtype.names or ()}


# By state, as STATES has them; flow_linger of bpf_src/flows/table.h has the same.
_LIMITS_NS = (
    np.array(
        [
            LINGER_OTHER,
            LINGER_UNREPLIED,
            LINGER_TCP,
            LINGER_CLOSING,
            LINGER_CLOSED,
            LINGER_CLOSED,
            LINGER_UNREPLIED,
        ]
    )
    * 10**9
)


def _due(values: Array, now_ns: int) -> Array:
    """intp[n]: flows whose time in the table is over: closed, never answered, or idle."""
    quiet = np.flatnonzero(values["last"] < max(now_ns - int(_LIMITS_NS.min()), 0))
    age = now_ns - values["last"][quiet].astype(np.int64)
    return np.asarray(quiet[age > _LIMITS_NS.take(states(values["flags"][quiet]))])


def _expiring(keys: Array, ids: Array, read_at: int) -> list[bytes]:
    """What flows_expire is to look at, in values of the map ``due``.  It decides: one may have come back meanwhile."""
    result = []
    for begin in range(0, len(keys), DUE_FLOWS):
        part = slice(begin, begin + DUE_FLOWS)
        count = len(ids[part])
        due = np.zeros((), DUE)
        due["read_at"], due["count"] = read_at, count
        due["of"]["key"][:count], due["of"]["id"][:count] = keys[part], ids[part]
        result.append(due.tobytes())
    return result


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
        values["rtt"]["last"][:, OUTWARD],
        retransmits[:, 0] + retransmits[:, 1],
        values["first"],
    )
    parts = [np.argpartition(m, count - share)[count - share :] for m in measures]
    return np.unique(np.concatenate(parts))


def _join_owners(
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
        rows["pid"][target] = source["pid"]
        rows["process"][target] = source["comm"]
        rows["srtt_us"][target] = source["srtt_us"]
        rows["cwnd"][target] = source["cwnd"]
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
        place, hit = _find(self._hashes, _key_hash(wanted))
        found = self.index[place]
        hits = np.flatnonzero(hit)
        hit[hits] = self._keys[found[hits]] == wanted[hits]
        return hit, found


def _samples(events: Array, flow: int) -> tuple[Sample, ...]:
    """The newest of this flow alone: what comes after a change of focus may be the earlier one's."""
    ours = events[events["id"] == np.uint64(flow)][-MAX_SAMPLES:]
    return tuple(
        Sample(
            int(e["time"]),
            int(e["rtt"]),
            bool(e["side"] == INWARD),
            METHODS[int(e["method"])],
            int(e["payload"]),
            int(e["tsval"]) or None,
        )
        for e in ours
    )


def _prefix(key: Any) -> str:
    address = IPv6Address(key["prefix"].tobytes())
    if int(key["version"]) == 4:
        return f"{address.ipv4_mapped or address}/{int(key['length'])}"
    return f"{address}/{int(key['length'])}"


def _tc(direction: str) -> Hook:
    program = f"flows_{direction}"
    return Hook(
        f"tc_{direction}", (one("tcx", program, direction), one("clsact", program, direction)), required=True
    )


def _owner(name: str, functions: tuple[str, ...]) -> Hook:
    """Reading from or writing to a socket, in the process that does it; by function where there is no tracepoint."""

    def by(via: Any, program: str) -> Candidate:
        return Candidate(via, tuple(Attachment(program, function) for function in functions))

    return Hook(
        name,
        (
            one("tp_btf", "flows_owner_typed", name),
            one("raw_tracepoint", "flows_owner", name),
            by("fentry", "flows_owner"),
            by("kprobe", "flows_owner_kprobe"),
        ),
    )


PROBE = Probe(
    name="flows",
    summary="every connection with its traffic, passive RTT, retransmits and process; RTT by subnet",
    hooks=(
        _tc("ingress"),
        _tc("egress"),
        _owner("sock_send_length", ("tcp_sendmsg", "udp_sendmsg", "udpv6_sendmsg")),
        _owner("sock_recv_length", ("tcp_recvmsg", "udp_recvmsg", "udpv6_recvmsg")),
        Hook(EXPIRE, (one("prog_run", "flows_expire", "due"),)),
    ),
    maps=(
        # Counters before flows: what is created between the two readings must not count as evicted.
        Map("counters", "percpu", COUNTERS),
        Map("flows", "hash", FLOW, FLOW_KEY, entries="max_flows", scan=True),
        Map("owners", "hash", OWNER, FLOW_KEY, scan=True),
        Map("rtts", "percpu", HIST),
        Map("subnets", "hash", SUBNET, SUBNET_KEY),
        Map("events", "ring", EVENT),
        Map("config", "array", CONFIG),
        Map("focused", "array", FOCUSED),
        Map("due", "none", DUE),
    ),
    fold=FlowsFold,
    load=Flows.from_json,
    panes=view.PANES,
)

"""Flows: one row a connection, its traffic, its RTT by passive methods, its process; RTT histograms by subnet.

The C side (bpf_src/flows.c, layouts in flow.h) keeps one entry a flow; this joins two scans of the table by flow id,
without a Python loop over flows anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from nettop.probes.flows_layout import (
    COUNTERS,
    EVENT,
    EVENT_SAMPLE,
    FLOW,
    FLOW_KEY,
    HIST,
    INWARD,
    METHODS,
    OUTWARD,
    OWNER,
    PROTOCOLS,
    ROW,
    RTT,
    SPIN_PACKETS,
    STATE_CLOSED,
    STATE_NONE,
    STATE_SYN,
    STATES,
    SUBNET,
    SUBNET_KEY,
    spinning,
)

# How long a flow stays in the table after its last packet, in s.
LINGER_CLOSED, LINGER_SYN, LINGER_OTHER, LINGER_TCP = 5, 30, 120, 3600
# Rows that a frame holds at most: beyond, the largest by each of the usual measures.
MAX_ROWS = 20_000
MAX_SAMPLES = 1000  # of the focused flow, in one frame
QUIC_PORT, DNS_PORT = 443, 53
OTHERS = "others"  # the row of all subnets beyond the table

SORTS: Mapping[str, Callable[[Array], Array]] = {
    "rate": lambda r: r["rx_bytes"] + r["tx_bytes"],
    "rx": lambda r: r["rx_bytes"],
    "tx": lambda r: r["tx_bytes"],
    "total": lambda r: r["rx_bytes_total"] + r["tx_bytes_total"],
    "packets": lambda r: r["rx_packets"] + r["tx_packets"],
    "rtt": lambda r: r["rtt"]["smoothed"],
    "min": lambda r: r["rtt"]["min"],
    "jitter": lambda r: r["rtt"]["variance"],
    "retransmits": lambda r: r["rx_retransmits"].astype(np.uint64) + r["tx_retransmits"],
    "age": lambda r: np.uint64(2**63) - r["first"],
}


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
    """One RTT sample of the focused flow; time is CLOCK_MONOTONIC."""

    time_ns: int
    rtt_ns: int
    inward: bool
    method: str


@dataclass(frozen=True)
class Flows:
    """The sections ``flows`` and ``rtt`` of the frame.  ``rows`` is a structured array of dtype ROW."""

    rows: Array = field(default_factory=lambda: np.zeros(0, ROW))
    total: int = 0  # flows in the table
    now_ns: int = 0  # CLOCK_MONOTONIC, to which the rows' times belong
    opened: int = 0
    closed: int = 0
    expired: int = 0
    opened_total: int = 0
    closed_total: int = 0
    outward: Histogram = field(default_factory=Histogram.empty)
    inward: Histogram = field(default_factory=Histogram.empty)
    subnets: tuple[Subnet, ...] = ()
    samples: tuple[Sample, ...] = ()
    lost_events: int = 0
    evicted: int = 0
    untracked: int = 0
    fragments: int = 0  # without their first one

    def top(self, count: int, sort: str) -> Array:
        """The rows to show, largest first; ties keep the order of age."""
        key = SORTS.get(sort, SORTS["rate"])(self.rows)
        rank = np.lexsort((self.rows["id"], np.max(key, initial=0) - key))
        return self.rows[rank[:count]]

    def to_json(self, top: int, sort: str) -> dict[str, Any]:
        return {
            "flows_total": self.total,
            "flows_opened": self.opened,
            "flows_closed": self.closed,
            "flows_expired": self.expired,
            "flows_opened_total": self.opened_total,
            "flows_closed_total": self.closed_total,
            "fragments_without_first": self.fragments,
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
                {"time_ns": s.time_ns, "rtt_ns": s.rtt_ns, "internal": s.inward, "method": s.method}
                for s in self.samples
            ],
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
                Sample(int(s["time_ns"]), int(s["rtt_ns"]), bool(s["internal"]), str(s["method"]))
                for s in data.get("samples", ())
            ),
            lost_events=int(health.get("lost_events") or 0),
            evicted=int(health.get("evicted_flows") or 0),
            untracked=int(health.get("untracked_packets") or 0),
            fragments=int(data.get("fragments_without_first") or 0),
        )

    def trimmed(self, top: int) -> Self:
        return replace(self, rows=self.top(top, "rate").copy())

    def health(self) -> Mapping[str, int]:
        return {
            "lost_events": self.lost_events,
            "evicted_flows": self.evicted,
            "untracked_packets": self.untracked,
        }


def _or_none(value: Any) -> int | None:
    return int(value) or None


def _rtt_json(rtt: Any) -> dict[str, Any] | None:
    if not rtt["samples_total"]:
        return None
    return {
        "last_ns": int(rtt["last"]),
        "min_ns": int(rtt["min"]),
        "smoothed_ns": int(rtt["smoothed"]),
        "jitter_ns": int(rtt["variance"]),
        "samples": int(rtt["samples"]),
        "samples_total": int(rtt["samples_total"]),
        "method": METHODS[int(rtt["method"])],
        "last_sample_ns": int(rtt["time"]),
    }


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
        "retransmits_total": int(row["rx_retransmits"]) + int(row["tx_retransmits"])
        if row["protocol"] == PROTOCOLS["tcp"]
        else None,
        "rx_retransmits_total": int(row["rx_retransmits"]) if row["protocol"] == PROTOCOLS["tcp"] else None,
        "tx_retransmits_total": int(row["tx_retransmits"]) if row["protocol"] == PROTOCOLS["tcp"] else None,
        "out_of_order_total": int(row["rx_out_of_order"]) + int(row["tx_out_of_order"]),
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
    put(row, {name: name for name in ("id", "vlan", "vlan_inner", *same)}, flow)
    put(row, {"first": "first_ns", "last": "last_ns"}, flow)
    put(row, {"rx_retransmits": "rx_retransmits_total", "tx_retransmits": "tx_retransmits_total"}, flow)
    put(row, {"tx_out_of_order": "out_of_order_total"}, flow)
    row["id"] = row["id"] + (0 if row["id"][0] else index + 1)
    row["protocol"] = units.protocol_number(str(flow.get("protocol", "")))
    for end in ("local", "remote"):
        address, port = units.parse_endpoint(str(flow.get(end, "")))
        row[end] = np.frombuffer(address, np.uint8)
        row[f"{end}_port"] = port
    state = flow.get("state") or ""
    row["state"] = STATES.index(state) if state in STATES else 0
    process = flow.get("process") or {}
    row["pid"] = int(process.get("pid") or 0)
    row["process"] = units.clean(str(process.get("name") or "")).encode()[:16]
    for name in ("rtt", "internal_rtt"):
        rtt = flow.get(name)
        if rtt:
            names = {"last": "last_ns", "min": "min_ns", "smoothed": "smoothed_ns", "variance": "jitter_ns"}
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
    """uint64 hash of 40-byte keys (V40 or FLOW_KEY): equal keys, equal hashes; others almost never."""
    words = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, 5)
    factors = np.array(
        [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F],
        np.uint64,
    )
    mixed = (words ^ (words >> np.uint64(29))) * factors
    return np.asarray((mixed ^ (mixed >> np.uint64(32))).sum(axis=1, dtype=np.uint64) * factors[0])


class FlowsFold:
    """Joins this scan with the last by flow id, and flows with the processes behind their sockets."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._ids = np.zeros(0, np.uint64)  # of the last scan, ascending
        self._last = np.zeros(0, _MEMORY)  # what must be remembered of each, in the same order
        self._counters: dict[str, int] = {}
        self._deleted = 0
        self._evicted = 0
        self._rtts: Array | None = None
        self._subnets: dict[bytes, tuple[int, Array]] = {}

    def __call__(self, reads: Reads) -> Folded:
        keys, values = reads.maps["flows"]
        counters = _summed(reads.maps["counters"][0])
        grown = {name: count - self._counters.get(name, 0) for name, count in counters.items()}
        self._counters = counters

        gone = _gone(keys, values, reads.now_ns)
        present = len(keys)
        evicted_now = counters["created"] - counters["replaced"] - self._deleted - present
        evicted, self._evicted = max(evicted_now - self._evicted, 0), max(evicted_now, self._evicted)
        self._deleted += int(gone.sum())

        rows = self._rows(keys, values, reads)
        expired = int((gone & (values["state"] < STATE_CLOSED)).sum())
        section = Flows(
            rows=rows,
            total=present,
            now_ns=reads.now_ns,
            opened=grown["opened"],
            closed=grown["closed"],
            expired=expired,
            opened_total=counters["opened"],
            closed_total=counters["closed"],
            samples=_samples(reads.maps["events"]),
            lost_events=grown["lost_events"],
            evicted=evicted,
            untracked=grown["untracked"],
            fragments=grown["fragments"],
            **self._histograms(reads.maps["rtts"], *reads.maps["subnets"]),
        )
        return Folded(section, {"flows": keys[gone].copy()} if gone.any() else {})

    def _rows(self, keys: Array, values: Array, reads: Reads) -> Array:
        """The frame's rows: differences to the last scan, by flow id."""
        ids = values["id"]
        place = np.searchsorted(self._ids, ids)
        place[place == len(self._ids)] = 0
        known = self._ids[place] == ids if len(self._ids) else np.zeros(len(ids), bool)
        before = np.zeros(len(ids), _MEMORY)
        before[known] = self._last[place[known]]

        memory = np.zeros(len(ids), _MEMORY)
        directions = values["dir"]
        for way, name in ((0, "rx"), (1, "tx")):
            memory[f"{name}_bytes"] = directions["bytes"][:, way]
            memory[f"{name}_packets"] = directions["packets"][:, way]
            memory[f"{name}_samples"] = values["rtt"]["samples"][:, way]
        memory["pid"], memory["process"] = before["pid"], before["process"]
        chosen = _chosen(memory, before, values)

        rows = np.zeros(len(chosen), ROW)
        v, m, b = values[chosen], memory[chosen], before[chosen]
        for name in ("id", "first", "last", "state", "flags"):
            rows[name] = v[name]
        k = keys[chosen]
        for name in ("local", "remote", "local_port", "remote_port"):
            rows[name] = k[name]
        rows["protocol"] = k["protocol"] & 0xFF
        rows["vlan"] = k["protocol"] >> 8 & 0xFFF
        rows["vlan_inner"] = k["protocol"] >> 20
        for way, name in ((0, "rx"), (1, "tx")):
            for what in ("bytes", "packets"):
                rows[f"{name}_{what}_total"] = m[f"{name}_{what}"]
                rows[f"{name}_{what}"] = m[f"{name}_{what}"] - b[f"{name}_{what}"]
            rows[f"{name}_retransmits"] = v["dir"]["retransmits"][:, way]
            rows[f"{name}_out_of_order"] = v["dir"]["out_of_order"][:, way]
            rows[f"{name}_window"] = v["window"][:, way]
        quic = _is_quic(rows)  # in any other flow these fields are what they are called
        rows["spin_packets"] = np.where(quic, v["dir"]["sent"]["value"][:, 1, 1], 0)
        rows["spin_edges"] = np.where(quic, v["dir"]["sent"]["method"][:, 1, 1], 0)
        rows["spin_singles"] = np.where(quic, v["dir"]["stamp"][:, 1], 0)
        for side, name, samples in ((OUTWARD, "rtt", "rx_samples"), (INWARD, "internal_rtt", "tx_samples")):
            for what in RTT.names or ():
                target = "samples_total" if what == "samples" else what
                rows[name][target] = v["rtt"][what][:, side]
            rows[name]["samples"] = m[samples] - b[samples]
        rows["pid"], rows["process"] = m["pid"], m["process"]
        _join_owners(rows, k, reads.maps["owners"], self._setup.netns, self._setup.peer_is_local)
        memory["pid"][chosen], memory["process"][chosen] = rows["pid"], rows["process"]

        order = np.argsort(ids)
        self._ids, self._last = ids[order], memory[order]
        return rows

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


# What is remembered of a flow from one scan to the next.
_MEMORY = np.dtype(
    [
        ("rx_bytes", "u8"),
        ("tx_bytes", "u8"),
        ("rx_packets", "u8"),
        ("tx_packets", "u8"),
        ("rx_samples", "u4"),
        ("tx_samples", "u4"),
        ("pid", "u4"),
        ("process", "S16"),
    ]
)


def _is_quic(rows: Array) -> Array:
    """bool[n]: flows whose spin bit the program looks at; the same test as read_other of bpf_src/flows.c."""
    ends = np.stack([rows["local_port"], rows["remote_port"]])
    quic = (ends == QUIC_PORT).any(axis=0) & ~(ends == DNS_PORT).any(axis=0)
    return np.asarray(quic & (rows["protocol"] == PROTOCOLS["udp"]))


def _summed(per_cpu: Array) -> dict[str, int]:
    """Counters over all CPUs."""
    return {name: int(per_cpu[name].sum(dtype=np.uint64)) for name in per_cpu.dtype.names or ()}


def _gone(keys: Array, values: Array, now_ns: int) -> Array:
    """bool[n]: flows whose time in the table is over: closed, never answered, or idle."""
    quiet = now_ns - values["last"].astype(np.int64)
    state = values["state"]
    limit = np.where(
        state >= STATE_CLOSED,
        LINGER_CLOSED,
        np.where(state == STATE_SYN, LINGER_SYN, np.where(state == STATE_NONE, LINGER_OTHER, LINGER_TCP)),
    )
    return np.asarray(quiet > limit * 1_000_000_000)


def _chosen(memory: Array, before: Array, values: Array) -> Array:
    """Indexes of the rows that a frame holds: all, or the largest by each of the usual measures."""
    count = len(memory)
    if count <= MAX_ROWS:
        return np.arange(count)
    share = MAX_ROWS // 5
    measures = (
        memory["rx_bytes"] - before["rx_bytes"] + memory["tx_bytes"] - before["tx_bytes"],
        memory["rx_bytes"] + memory["tx_bytes"],
        values["rtt"]["smoothed"][:, OUTWARD],
        values["dir"]["retransmits"].sum(axis=1, dtype=np.uint64),
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
        self._keys = keys
        self.index, self._hashes = index[order], hashes[order]

    def find(self, wanted: Array) -> tuple[Array, Array]:
        """bool[n] and the owners' index[n]; not found where two namespaces have one, since nothing says which."""
        hashes = _key_hash(wanted)
        first = np.searchsorted(self._hashes, hashes)
        beyond = np.searchsorted(self._hashes, hashes, side="right")
        found = self.index[np.minimum(first, len(self.index) - 1)]
        return (beyond - first == 1) & (self._keys[found] == wanted), found


def _samples(events: Array) -> tuple[Sample, ...]:
    ours = events[events["kind"] == EVENT_SAMPLE][-MAX_SAMPLES:]
    return tuple(
        Sample(int(e["time"]), int(e["rtt"]), bool(e["side"] == INWARD), METHODS[int(e["method"])])
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
    ),
    maps=(
        # Counters before flows: what is created between the two readings must not count as evicted.
        Map("counters", "percpu", COUNTERS),
        Map("flows", "hash", FLOW, FLOW_KEY, entries="max_flows"),
        Map("owners", "hash", OWNER, FLOW_KEY),
        Map("rtts", "percpu", HIST),
        Map("subnets", "hash", SUBNET, SUBNET_KEY),
        Map("events", "ring", EVENT),
    ),
    fold=FlowsFold,
    load=Flows.from_json,
    panes=view.PANES,
)

"""Stages: how long a packet takes from boundary to boundary inside the host, received and sent.

The C side (bpf_src/stages/stages.c) records each stage where it ends, per CPU; this takes differences and says what
each number is: between which two boundaries, watched by which mechanism, of how many packets that passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np

from nettop.control import CONFIG_BYTES, NOBODY, Flag, offset
from nettop.model import SLOTS, Histogram
from nettop.probes import stages_view as view
from nettop.probes.base import Array, Attachment, Candidate, Fold, Folded, Hook, Map, Probe, Reads, Setup, one
from nettop.stats import difference, histogram_from_json, histogram_json

# What of the map ``config`` is of interest here; the whole is nettop.control.Config.
CONFIG = np.dtype(
    {
        "names": ["sample_shift", "flags", "focus"],
        "formats": ["u1", "u4", "u8"],
        "offsets": [offset("sample_shift"), offset("flags"), offset("focus")],
        "itemsize": CONFIG_BYTES,
    }
)
STAGE = np.dtype(
    [
        ("sum", "u8"),
        ("slots", "u8", (SLOTS,)),
        ("missed", "u8"),
        ("dropped", "u8"),
        ("paced", "u8"),
    ]
)
TRACE = np.dtype(
    [
        ("time", "u8"),
        ("flow", "u8"),
        ("delay", "u8"),
        ("packet", "u4"),
        ("stage", "u2"),
        ("cpu", "u2"),
    ]
)
TRACING = np.dtype([("left_out", "u8"), ("lost", "u8"), ("number", "u8")])
MAX_TRACE = 20_000  # events in one frame
Direction = Literal["rx", "tx"]


@dataclass(frozen=True)
class Boundary:
    """A place on the way and the stage that ends there.

    ``hooks``: any of them makes it live.  ``index`` is that of the C side's ``stages``; -1: where a way begins.
    """

    stage: str
    hooks: tuple[str, ...]
    index: int


# In the packet's order.  The first of each is where the way begins.
RX = (
    Boundary("driver", ("driver",), -1),
    Boundary("stack", ("netif_receive_skb",), 0),
    Boundary("ip", ("ip_rcv",), 1),
    Boundary("local", ("ip_local_deliver",), 2),
    Boundary("transport", ("tcp_rcv_established", "udp_queue_rcv_skb"), 4),
    Boundary("socket", ("sk_data_ready",), 5),
    Boundary("application", ("tcp_rcv_space_adjust", "sock_recv_length"), 6),
)
FORWARD = Boundary("forward", ("ip_forward",), 3)  # instead of all that follows ip
RX_WHOLE, TX_WHOLE, ENTRIES = 7, 13, 14
PATH = np.dtype([("ns", "u8"), ("packets", "u8")])
PATHS = np.dtype([("of", PATH, (ENTRIES,))])
TX = (
    Boundary("write", ("tcp_sendmsg_locked", "udp_sendmsg"), -1),
    Boundary("application", ("ip_local_out",), 8),
    Boundary("ip", ("net_dev_queue",), 9),
    Boundary("qdisc", ("net_dev_start_xmit",), 10),
    Boundary("driver", ("net_dev_xmit",), 11),
)
DONE = Boundary("done", ("consume_skb",), 12)  # after the way's end: counted from net_dev_start_xmit
# What an event's stage may be besides those of the boundaries, and what is added where the packet ended there.
RX_BEGIN, TX_BEGIN, TRACE_DROP = 14, 15, 0x100


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage in the interval.

    ``begin`` and ``end`` name its boundaries, ``via`` the mechanism at its end.  ``missed``: packets at its end
    whose beginning was not seen; None where that cannot be known.  ``path_ns`` is the stage's sum over the
    ``path_packets`` that went the whole way: those sums add up to that of the whole.  ``merged``: boundaries that this
    kernel cannot show, whose time is in this stage.  ``paced_ns``, of the qdisc: the part of its time before which the
    packets were not to leave (fq, SO_TXTIME); None elsewhere.
    """

    stage: str
    begin: str
    end: str
    via: str
    latency: Histogram
    missed: int | None = None
    dropped: int | None = None
    path_ns: int = 0
    path_packets: int = 0
    merged: tuple[str, ...] = ()
    paced_ns: int | None = None

    @property
    def matched(self) -> int:
        return self.latency.count

    @property
    def coverage(self) -> float | None:
        """The share of packets at the stage's end that it could time."""
        if self.missed is None or not self.matched + self.missed:
            return None
        return self.matched / (self.matched + self.missed)

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "from": self.begin,
            "to": self.end,
            "via": self.via,
            "latency": histogram_json(self.latency),
            "matched": self.matched,
            "missed": self.missed,
            "dropped": self.dropped,
            "path_ns": self.path_ns,
            "path_packets": self.path_packets,
            "merged": list(self.merged),
            "paced_ns": self.paced_ns,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            stage=str(data["stage"]),
            begin=str(data.get("from", "")),
            end=str(data.get("to", "")),
            via=str(data.get("via", "")),
            latency=histogram_from_json(data.get("latency")),
            missed=data.get("missed"),
            dropped=data.get("dropped"),
            path_ns=int(data.get("path_ns") or 0),
            path_packets=int(data.get("path_packets") or 0),
            merged=tuple(str(m) for m in data.get("merged", ())),
            paced_ns=data.get("paced_ns"),
        )


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One boundary that one packet has passed.

    ``time_ns`` is CLOCK_MONOTONIC; ``packet`` a number that all of a packet's events share, for as long as 4 million
    packets a CPU; ``flow`` the id of the flow in focus, 0: another one.  ``stage`` is the stage that ends there, ``""``
    where the packet was first seen; ``delay_ns`` is None there, and where the packet was dropped in the stage.
    """

    time_ns: int
    flow: int
    packet: int
    direction: Direction
    stage: str
    delay_ns: int | None
    cpu: int
    dropped: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            time_ns=int(data["time_ns"]),
            flow=int(data["flow"]),
            packet=int(data["packet"]),
            direction="tx" if data["direction"] == "tx" else "rx",
            stage=str(data["stage"]),
            delay_ns=None if data["delay_ns"] is None else int(data["delay_ns"]),
            cpu=int(data["cpu"]),
            dropped=bool(data.get("dropped")),
        )


@dataclass(frozen=True, slots=True)
class Way:
    """Rows in the packet's order, and the whole way measured as one interval."""

    rx: tuple[Stage, ...] = ()
    tx: tuple[Stage, ...] = ()
    rx_whole: Histogram = field(default_factory=Histogram.empty)
    tx_whole: Histogram = field(default_factory=Histogram.empty)

    def rows(self) -> tuple[tuple[Direction, Stage], ...]:
        """All stages, received first."""
        return (*(("rx", s) for s in self.rx), *(("tx", s) for s in self.tx))

    def whole(self, direction: Direction) -> Histogram:
        return self.rx_whole if direction == "rx" else self.tx_whole

    def way_json(self) -> dict[str, Any]:
        return {
            "rx": [s.to_json() for s in self.rx],
            "tx": [s.to_json() for s in self.tx],
            "rx_whole": histogram_json(self.rx_whole),
            "tx_whole": histogram_json(self.tx_whole),
        }


def _way(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Way from its JSON."""
    return {
        "rx": tuple(Stage.from_json(s) for s in data.get("rx", ())),
        "tx": tuple(Stage.from_json(s) for s in data.get("tx", ())),
        "rx_whole": histogram_from_json(data.get("rx_whole")),
        "tx_whole": histogram_from_json(data.get("tx_whole")),
    }


@dataclass(frozen=True, slots=True)
class FocusedStages(Way):
    """The same of the packets of one flow alone, by its id in the flow table."""

    flow: int = 0


@dataclass(frozen=True, slots=True)
class Stages(Way):
    """The section ``stages``.

    ``focus``: the same of the flow in focus; None where there is none.  ``sample``: one packet in so many is followed,
    and all counts are of those.  ``trace``: packets one by one, None where that is not asked for; ``trace_lost`` events
    found no room, and ``trace_left_out`` packets were beyond the budget.
    """

    focus: FocusedStages | None = None
    sample: int = 1
    trace: tuple[TraceEvent, ...] | None = None
    trace_lost: int = 0
    trace_left_out: int = 0

    def to_json(self, top: int, sort: str) -> dict[str, Any]:
        focus = None if self.focus is None else {"flow": self.focus.flow, **self.focus.way_json()}
        ours = {**self.way_json(), "sampled_one_in": self.sample, "focus": focus}
        if self.trace is not None:
            ours["trace"] = [event.to_json() for event in self.trace]
            ours["trace_lost"], ours["trace_left_out"] = self.trace_lost, self.trace_left_out
        return {"stages": ours}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        ours = data.get("stages") or {}
        focus, trace = ours.get("focus"), ours.get("trace")
        return cls(
            **_way(ours),
            focus=FocusedStages(**_way(focus), flow=int(focus["flow"])) if focus else None,
            sample=int(ours.get("sampled_one_in") or 1),
            trace=None if trace is None else tuple(TraceEvent.from_json(event) for event in trace),
            trace_lost=int(ours.get("trace_lost") or 0),
            trace_left_out=int(ours.get("trace_left_out") or 0),
        )

    def trimmed(self, top: int) -> Self:
        return self

    def health(self) -> Mapping[str, int]:
        return {"lost_events": self.trace_lost}


def _skeleton(setup: Setup) -> tuple[tuple[Direction, Boundary, Stage], ...]:
    """The stages that this kernel can show: from one live boundary to the next."""

    def name(boundary: Boundary) -> str:
        return "/".join(h for h in boundary.hooks if h in setup.hooks)

    def stage(boundary: Boundary, begin: str, merged: tuple[str, ...] = ()) -> Stage:
        vias = dict.fromkeys(setup.hooks[h] for h in boundary.hooks if h in setup.hooks)
        end = name(boundary)
        return Stage(boundary.stage, begin, end, "/".join(vias), Histogram.empty(), merged=merged)

    result: list[tuple[Direction, Boundary, Stage]] = []
    ways: tuple[tuple[Direction, tuple[Boundary, ...]], ...] = (("rx", RX), ("tx", TX))
    for direction, way in ways:
        begin = ""
        absent: tuple[str, ...] = ()
        for boundary in way:
            live = name(boundary)
            if not live:
                absent = (*absent, boundary.stage)
                continue
            if begin and boundary.index >= 0:
                result.append((direction, boundary, stage(boundary, begin, absent)))
            begin, absent = live, ()
            if boundary.stage == "ip" and direction == "rx" and name(FORWARD):
                result.append((direction, FORWARD, stage(FORWARD, live)))
    if name(DONE) and name(TX[3]):
        result.append(("tx", DONE, stage(DONE, name(TX[3]))))
    # A forwarded packet's last stage stands after those of packets that stay.
    result.sort(key=lambda row: (row[0], row[1] is FORWARD))
    return tuple(result)


_STAGES: dict[int, tuple[Direction, str]] = {
    RX_BEGIN: ("rx", ""),
    TX_BEGIN: ("tx", ""),
    **{b.index: ("rx", b.stage) for b in (*RX, FORWARD) if b.index >= 0},
    **{b.index: ("tx", b.stage) for b in (*TX, DONE) if b.index >= 0},
}


def _event(event: tuple[int, ...]) -> TraceEvent:
    time_ns, flow, delay_ns, packet, stage, cpu = event
    dropped = bool(stage & TRACE_DROP)
    direction, name = _STAGES[stage & ~TRACE_DROP]
    return TraceEvent(
        time_ns, flow, packet, direction, name, None if dropped or not name else delay_ns, cpu, dropped
    )


class StagesFold:
    """Differences of per-CPU histograms and counters."""

    def __init__(self, setup: Setup) -> None:
        self._rows = _skeleton(setup)
        self._drops = "kfree_skb" in setup.hooks
        self._before: dict[str, Array] = {}
        self._flow = 0
        self._sample = 1
        self._below = False  # the interface's packets are seen from IP on
        self._traced: dict[str, Any] = {}

    def __call__(self, reads: Reads) -> Folded:
        config = reads.maps["config"][0]
        self._below = bool(int(config["flags"]) & Flag.NO_STACK)
        stages, paths = reads.maps["stages"], reads.maps["paths"]
        running = {name: stages[name].sum(axis=1, dtype=np.uint64) for name in STAGE.names or ()}
        # Of all packets in the first entry, of the focused flow's in the second: end to end, as the stages are.
        running |= {name: paths["of"][name].sum(axis=1, dtype=np.uint64).ravel() for name in PATH.names or ()}
        grown = {name: difference(now, self._before.get(name)) for name, now in running.items()}
        self._before = running
        flow = int(config["focus"])
        if flow != self._flow:
            # What has come since the last reading may be the one flow's or the other's: it is nobody's.
            for counts in grown.values():
                counts[ENTRIES:] = 0
            self._flow = flow
        if int(config["sample_shift"]) < NOBODY:
            self._sample = 1 << int(config["sample_shift"])
        focus = FocusedStages(**self._part(grown, ENTRIES), flow=flow) if flow else None
        section = Stages(
            **self._part(grown, 0),
            focus=focus,
            sample=self._sample,
            **self._trace(reads, int(config["flags"])),
        )
        return Folded(section)

    def _trace(self, reads: Reads, flags: int) -> dict[str, Any]:
        """The fields of the trace: the newest events where there are too many."""
        if not flags & Flag.TRACE:
            return {}
        events, tracing = reads.maps["trace"], reads.maps["tracing"][0]
        now = {name: tracing[name].sum(dtype=np.uint64) for name in ("lost", "left_out")}
        grown = {name: int(count - self._traced.get(name, np.uint64(0))) for name, count in now.items()}
        self._traced = now
        kept = np.sort(events, order="time")[-MAX_TRACE:]
        return {
            "trace": tuple(_event(event) for event in kept.tolist()),
            "trace_lost": grown["lost"] + len(events) - len(kept),
            "trace_left_out": grown["left_out"],
        }

    def _part(self, grown: Mapping[str, Array], first: int) -> dict[str, Any]:
        """The fields of a Way from the entries that begin at ``first``."""

        def histogram(index: int) -> Histogram:
            return Histogram(grown["slots"][first + index].copy(), int(grown["sum"][first + index]))

        rows: dict[Direction, list[Stage]] = {"rx": [], "tx": []}
        for direction, boundary, row in self._rows:
            index = boundary.index
            if self._below and boundary in RX[1:3]:
                continue  # seen at the lower device alone
            rows[direction].append(
                replace(
                    row,
                    latency=histogram(index),
                    missed=None if boundary is DONE else int(grown["missed"][first + index]),
                    dropped=int(grown["dropped"][first + index]) if self._drops else None,
                    path_ns=int(grown["ns"][first + index]),
                    path_packets=int(grown["packets"][first + index]),
                    paced_ns=int(grown["paced"][first + index]) if boundary.stage == "qdisc" else None,
                )
            )
        return {
            "rx": tuple(rows["rx"]),
            "tx": tuple(rows["tx"]),
            "rx_whole": histogram(RX_WHOLE),
            "tx_whole": histogram(TX_WHOLE),
        }


def _fold(setup: Setup) -> Fold:
    return StagesFold(setup)


def _all(via: Any, *attachments: str) -> Candidate:
    """A candidate of several attachments, each ``program@target``."""
    return Candidate(via, tuple(Attachment(*a.split("@")) for a in attachments))


def _both(program: str, *targets: str) -> tuple[Candidate, Candidate]:
    """A tracepoint with typed arguments, and without."""
    return (
        Candidate("tp_btf", tuple(Attachment(program, t) for t in targets)),
        Candidate("raw_tracepoint", tuple(Attachment(f"{program}_raw", t) for t in targets)),
    )


def _functions(program: str, *targets: str, fentry: str = "") -> tuple[Candidate, Candidate]:
    """Functions of the kernel, each perhaps known by several names."""
    return (
        Candidate("fentry", tuple(Attachment(fentry or program, t) for t in targets)),
        Candidate("kprobe", tuple(Attachment(f"{program}_kprobe", t) for t in targets)),
    )


def _netfilter(program: str, hook: str) -> Candidate:
    return Candidate(
        "netfilter", tuple(Attachment(program, f"{family} {hook} first") for family in ("ipv4", "ipv6"))
    )


# What a driver calls to hand a packet over.
_DRIVER = (
    "netif_rx",
    "napi_gro_receive_entry",
    "napi_gro_frags_entry",
    "netif_receive_skb_entry",
    "netif_receive_skb_list_entry",
)

HOOKS = (
    Hook(
        "driver",
        (
            *_both("stages_driver", *_DRIVER),
            _all(
                "fentry",
                "stages_driver_second@napi_gro_receive|gro_receive_skb",
                "stages_driver@__netif_rx|netif_rx",
                "stages_driver@netif_receive_skb",
            ),
            _all(
                "kprobe",
                "stages_driver_second_kprobe@napi_gro_receive|gro_receive_skb",
                "stages_driver_kprobe@__netif_rx|netif_rx",
                "stages_driver_kprobe@netif_receive_skb",
            ),
        ),
        flag=Flag.NO_DRIVER,
    ),
    Hook(
        "netif_receive_skb",
        (
            *_both("stages_stack", "netif_receive_skb"),
            # Compilers change its signature, so fentry does not know it.
            one(
                "kprobe",
                "stages_stack_kprobe",
                "__netif_receive_skb_core|__netif_receive_skb_core.constprop.0|__netif_receive_skb_core.isra.0",
            ),
        ),
    ),
    Hook(
        "ip_rcv",
        (
            _netfilter("stages_ip", "pre_routing"),
            *_functions(
                "stages_ip",
                "ip_rcv_core|ip_rcv_core.isra.0",
                "ip6_rcv_core|ip6_rcv_core.isra.0|ipv6_rcv",
                fentry="stages_ip_fentry",
            ),
        ),
    ),
    Hook(
        "ip_local_deliver",
        (
            _netfilter("stages_local", "local_in"),
            *_functions("stages_local", "ip_local_deliver", "ip6_input", fentry="stages_local_fentry"),
        ),
        flag=Flag.NO_LOCAL,
    ),
    Hook(
        "ip_forward",
        (
            _netfilter("stages_forward", "forward"),
            *_functions("stages_forward", "ip_forward", "ip6_forward", fentry="stages_forward_fentry"),
        ),
    ),
    Hook(
        "tcp_rcv_established",
        (*_both("stages_tcp", "tcp_probe"), *_functions("stages_tcp", "tcp_rcv_established")),
    ),
    Hook(
        "udp_queue_rcv_skb",
        _functions("stages_udp", "udp_queue_rcv_skb", "udpv6_queue_rcv_skb"),
    ),
    Hook(
        "sk_data_ready",
        (*_both("stages_ready", "sk_data_ready"), *_functions("stages_ready", "sock_def_readable")),
        flag=Flag.NO_READY,
    ),
    Hook(
        "tcp_rcv_space_adjust",
        (
            *_both("stages_read_stream", "tcp_rcv_space_adjust"),
            *_functions("stages_read_stream", "tcp_rcv_space_adjust"),
        ),
    ),
    Hook(
        "sock_recv_length",
        (
            *_both("stages_read_datagram", "sock_recv_length"),
            *_functions("stages_consume_udp", "skb_consume_udp"),
        ),
    ),
    Hook(
        "tcp_sendmsg_locked",
        (
            *_both("stages_write", "tcp_sendmsg_locked"),
            *_functions("stages_write", "tcp_sendmsg_locked"),
        ),
        flag=Flag.NO_WRITE,
    ),
    Hook("udp_sendmsg", _functions("stages_write_datagram", "udp_sendmsg", "udpv6_sendmsg")),
    Hook(
        "ip_local_out",
        (
            _netfilter("stages_out", "local_out"),
            *_functions("stages_out", "__ip_local_out", "__ip6_local_out", fentry="stages_out_fentry"),
        ),
    ),
    Hook(
        "net_dev_queue",
        (*_both("stages_queue", "net_dev_queue"), *_functions("stages_queue", "__dev_queue_xmit")),
    ),
    Hook(
        "net_dev_start_xmit",
        (*_both("stages_xmit", "net_dev_start_xmit"), *_functions("stages_xmit", "dev_hard_start_xmit")),
    ),
    Hook("net_dev_xmit", _both("stages_sent", "net_dev_xmit")),
    Hook("consume_skb", _both("stages_consumed", "consume_skb")),
    Hook("kfree_skb", _both("stages_dropped", "kfree_skb")),
)

PROBE = Probe(
    name="stages",
    summary="delay of every stage of the network stack, received and sent",
    hooks=HOOKS,
    maps=(
        Map("config", "array", CONFIG),
        Map("stages", "percpu", STAGE),
        Map("paths", "percpu", PATHS),
        Map("tracing", "percpu", TRACING),
        Map("trace", "ring", TRACE),
    ),
    fold=_fold,
    load=Stages.from_json,
    panes=view.PANES,
    state=("rx_slots", "tx_slots", "rx_socks", "tx_socks", "rx_currents", "gso_parents"),
)
__all__ = ["ENTRIES", "HOOKS", "PROBE", "STAGE", "Stage", "Stages", "StagesFold", "one"]

"""Stages: how long a packet takes from boundary to boundary inside the host, received and sent.

The C side (bpf_src/stages.c) records each stage where it ends, per CPU; this takes differences and says what each
number is: between which two boundaries, watched by which mechanism, of how many packets that passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np

from nettop.model import SLOTS, Histogram
from nettop.probes import stages_view as view
from nettop.probes.base import Array, Attachment, Candidate, Fold, Folded, Hook, Map, Probe, Reads, Setup, one
from nettop.stats import difference, histogram_from_json, histogram_json

STAGE = np.dtype(
    [
        ("sum", "u8"),
        ("slots", "u8", (SLOTS,)),
        ("missed", "u8"),
        ("dropped", "u8"),
    ]
)
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
PATHS = np.dtype([("ns", "u8", (ENTRIES,)), ("packets", "u8", (ENTRIES,))])
TX = (
    Boundary("write", ("tcp_sendmsg_locked", "udp_sendmsg"), -1),
    Boundary("application", ("ip_local_out",), 8),
    Boundary("ip", ("net_dev_queue",), 9),
    Boundary("qdisc", ("net_dev_start_xmit",), 10),
    Boundary("driver", ("net_dev_xmit",), 11),
)
DONE = Boundary("done", ("consume_skb",), 12)  # after the way's end: counted from net_dev_start_xmit


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage in the interval.

    ``begin`` and ``end`` name its boundaries, ``via`` the mechanism at its end.  ``missed``: packets at its end
    whose beginning was not seen; None where that cannot be known.  ``path_ns`` is the stage's sum over the
    ``path_packets`` that went the whole way: those sums add up to that of the whole.  ``merged``: boundaries that this
    kernel cannot show, whose time is in this stage.
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
        )


@dataclass(frozen=True, slots=True)
class Stages:
    """The section ``stages``: rows in the packet's order, and the whole way measured as one interval."""

    rx: tuple[Stage, ...] = ()
    tx: tuple[Stage, ...] = ()
    rx_whole: Histogram = field(default_factory=Histogram.empty)
    tx_whole: Histogram = field(default_factory=Histogram.empty)

    def rows(self) -> tuple[tuple[Direction, Stage], ...]:
        """All stages, received first."""
        return (*(("rx", s) for s in self.rx), *(("tx", s) for s in self.tx))

    def whole(self, direction: Direction) -> Histogram:
        return self.rx_whole if direction == "rx" else self.tx_whole

    def to_json(self, top: int, sort: str) -> dict[str, Any]:
        return {
            "stages": {
                "rx": [s.to_json() for s in self.rx],
                "tx": [s.to_json() for s in self.tx],
                "rx_whole": histogram_json(self.rx_whole),
                "tx_whole": histogram_json(self.tx_whole),
            }
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        ours = data.get("stages") or {}
        return cls(
            tuple(Stage.from_json(s) for s in ours.get("rx", ())),
            tuple(Stage.from_json(s) for s in ours.get("tx", ())),
            histogram_from_json(ours.get("rx_whole")),
            histogram_from_json(ours.get("tx_whole")),
        )

    def trimmed(self, top: int) -> Self:
        return self

    def health(self) -> Mapping[str, int]:
        return {"untracked_packets": sum(s.missed or 0 for _, s in self.rows())}


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


class StagesFold:
    """Differences of per-CPU histograms and counters."""

    def __init__(self, setup: Setup) -> None:
        self._rows = _skeleton(setup)
        self._drops = "kfree_skb" in setup.hooks
        self._before: dict[str, Array] = {}

    def __call__(self, reads: Reads) -> Folded:
        stages = reads.maps["stages"]
        grown: dict[str, Array] = {}
        running = {name: stages[name].sum(axis=1, dtype=np.uint64) for name in STAGE.names or ()}
        paths = reads.maps["paths"][0]
        running |= {name: paths[name].sum(axis=0, dtype=np.uint64) for name in PATHS.names or ()}
        for name, now in running.items():
            grown[name] = difference(now, self._before.get(name))
            self._before[name] = now

        def histogram(index: int) -> Histogram:
            return Histogram(grown["slots"][index].copy(), int(grown["sum"][index]))

        rows: dict[Direction, list[Stage]] = {"rx": [], "tx": []}
        for direction, boundary, row in self._rows:
            index = boundary.index
            rows[direction].append(
                replace(
                    row,
                    latency=histogram(index),
                    missed=None if boundary is DONE else int(grown["missed"][index]),
                    dropped=int(grown["dropped"][index]) if self._drops else None,
                    path_ns=int(grown["ns"][index]),
                    path_packets=int(grown["packets"][index]),
                )
            )
        section = Stages(tuple(rows["rx"]), tuple(rows["tx"]), histogram(RX_WHOLE), histogram(TX_WHOLE))
        return Folded(section)


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
    ),
    Hook(
        "netif_receive_skb",
        (
            *_both("stages_stack", "netif_receive_skb"),
            *_functions("stages_stack", "__netif_receive_skb_one_core"),
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
    maps=(Map("stages", "percpu", STAGE), Map("paths", "percpu", PATHS)),
    fold=_fold,
    load=Stages.from_json,
    panes=view.PANES,
)
__all__ = ["ENTRIES", "HOOKS", "PROBE", "STAGE", "Stage", "Stages", "StagesFold", "one"]

"""Differences of per-CPU histograms, named by the boundaries that are live here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nettop.bpf.config import SAMPLE_NONE, Flag
from nettop.core.histogram import Growth, Histogram
from nettop.probes.base import Array, Folded, Reads, Setup
from nettop.probes.stages.boundaries import (
    DONE,
    ENTRIES,
    FORWARD,
    RX,
    RX_BEGIN,
    RX_WHOLE,
    TRACE_DROP,
    TX,
    TX_BEGIN,
    TX_WHOLE,
    Boundary,
    Direction,
)
from nettop.probes.stages.section import FocusedStages, Stage, Stages, TraceEvent

TRACED = ("time", "flow", "delay", "packet", "stage", "cpu")  # of an event, as _event takes them
MAX_TRACE = 20_000  # events in one frame


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
        self._grown = Growth()
        self._flow = 0
        self._sample = 1
        self._below = False  # the interface's packets are seen from IP on

    def __call__(self, reads: Reads) -> Folded:
        config = reads.maps["config"][0]
        self._below = bool(int(config["flags"]) & Flag.NO_STACK)
        stages, paths = reads.maps["stages"], reads.maps["paths"]
        counters = {name: stages["delay"][name] for name in ("sum", "slots")}
        counters |= {name: stages[name] for name in ("missed", "dropped", "paced")}
        running = {name: values.sum(axis=1, dtype=np.uint64) for name, values in counters.items()}
        # Of all packets in the first entry, of the focused flow's in the second: end to end, as the stages are.
        running |= {
            name: paths["of"][name].sum(axis=1, dtype=np.uint64).ravel() for name in ("ns", "packets")
        }
        grown = {name: self._grown(name, now) for name, now in running.items()}
        flow = int(config["focus"])
        if flow != self._flow:
            # What has come since the last reading may be of either flow: it is counted for neither.
            for counts in grown.values():
                counts[ENTRIES:] = 0
            self._flow = flow
        if int(config["sample_shift"]) < SAMPLE_NONE:
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
        lost, left_out = (
            int(self._grown(name, tracing[name].sum(dtype=np.uint64))) for name in ("lost", "left_out")
        )
        kept = np.sort(events, order="time")[-MAX_TRACE:]
        return {
            "trace": tuple(_event(event) for event in kept[list(TRACED)].tolist()),
            "trace_lost": lost + len(events) - len(kept),
            "trace_left_out": left_out,
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

"""Frames as a busy host would give them: made up, but whole and repeatable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_address
from math import sin
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nettop import units
from nettop.model import Frame, Health, Histogram, HookStatus, ProbeStatus
from nettop.probes import draw, flows_view, throughput_view
from nettop.probes.base import Fold, Hook, Probe, Setup, one
from nettop.probes.flows import Flows, Subnet
from nettop.probes.flows_layout import ROW, ROW_RTT
from nettop.probes.throughput import Direction, Throughput
from nettop.probes.view import LABEL, PLAIN, VALUE, Canvas, History, Line, Pane, line
from nettop.stats import bucket_of, percentile

SECOND = 1_000_000_000
UPTIME = 9_000 * SECOND
START = 1_750_000_000 * SECOND


@dataclass(frozen=True)
class Delays:
    """A stand-in for any probe with histograms: names and their delays."""

    parts: Mapping[str, Histogram]

    def to_json(self, top: int, sort: str) -> dict[str, Any]:
        return {}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls({})

    def trimmed(self, top: int) -> Self:
        return self

    def health(self) -> Mapping[str, int]:
        return {}


def packed(text: str) -> bytes:
    """An address as 16 bytes."""
    address = ip_address(text)
    return (b"\0" * 10 + b"\xff\xff" + address.packed) if address.version == 4 else address.packed


def histogram(center_ns: float, spread: float, count: int, seed: int) -> Histogram:
    """A log-normal heap of delays."""
    rng = np.random.default_rng(seed)
    values = np.exp(rng.normal(np.log(center_ns), spread, count))
    counts = np.zeros(512, np.uint64)
    for value in values:
        counts[bucket_of(int(value))] += np.uint64(1)
    return Histogram(counts, int(values.sum()))


NAMED = (
    (6, "10.1.0.5", 443, "203.0.113.7", 51122, "nginx", 812, 101e6, 1.1e6, 21e6, 20e6, 1),
    (6, "10.1.0.5", 443, "198.51.100.4", 40110, "nginx", 812, 80e6, 0.9e6, 187e6, 24e6, 1),
    (17, "10.1.0.5", 41000, "2001:db8:7:1f::5", 443, "curl", 9917, 15e6, 0.14e6, 31e6, 30e6, 6),
    (6, "10.1.0.5", 5432, "10.1.0.77", 38214, "postgres", 1490, 4.2e6, 31e6, 0.41e6, 0.29e6, 1),
    (6, "10.1.0.5", 22, "192.0.2.61", 60022, "sshd", 4311, 1200, 5300, 48e6, 11e6, 2),
    (
        6,
        "2001:db8::10",
        55012,
        "2001:db8:40:aaaa:bbbb:cccc:dddd:eeee",
        6443,
        "kubelet",
        733,
        8800,
        9100,
        2e6,
        1.6e6,
        1,
    ),
    (17, "10.1.0.5", 35551, "10.1.0.2", 53, "systemd-resolve", 401, 220, 90, 0.9e6, 0.5e6, 5),
    (1, "10.1.0.5", 7, "192.0.2.1", 7, "ping", 20133, 98, 98, 9.8e6, 9.1e6, 4),
    (17, "10.1.0.5", 123, "192.0.2.99", 123, "", 0, 0, 0, 0, 0, 0),
)


def flow_rows(step: int, extra: int = 24) -> NDArray[np.void]:
    """The named flows and ``extra`` smaller ones, at a moment."""
    rng = np.random.default_rng(7)
    rows = np.zeros(len(NAMED) + extra, ROW)
    now = UPTIME + step * SECOND
    for i, (proto, local, lport, remote, rport, name, pid, rx, tx, rtt, least, method) in enumerate(NAMED):
        wave = 1 + 0.3 * sin(step / 5 + i)
        one = rows[i]
        one["id"] = (1 << 40) + i
        one["protocol"], one["local_port"], one["remote_port"] = proto, lport, rport
        one["local"], one["remote"] = np.frombuffer(packed(local), "u1"), np.frombuffer(packed(remote), "u1")
        one["rx_bytes"], one["tx_bytes"] = rx * wave, tx * wave
        one["rx_packets"], one["tx_packets"] = rx // 1400 + (rx > 0), tx // 80 + (tx > 0)
        one["rx_bytes_total"], one["tx_bytes_total"] = rx * (60 + step), tx * (60 + step)
        one["first"], one["last"] = now - (40 * (i + 1) ** 2 + step) * SECOND, now - 3_000_000
        one["state"] = 2 if proto == 6 else 0
        one["tx_retransmits"] = 12 * (i == 1)
        one["pid"], one["process"] = pid, name.encode()
        if method:
            time = now - (30 if i == 6 else 0) * SECOND - 20_000_000
            one["rtt"] = (rtt * wave, least, rtt * 0.97, rtt / 20, time, 14, 1000, method)
    base = len(NAMED)
    if extra:
        rest = rows[base:]
        rest["id"] = (1 << 41) + np.arange(extra)
        rest["protocol"] = 6
        rest["local"] = np.frombuffer(packed("10.1.0.5"), "u1")
        rest["remote"] = np.frombuffer(packed("172.16.0.0"), "u1")
        rest["remote"][:, 14] = np.arange(extra) // 250
        rest["remote"][:, 15] = np.arange(extra) % 250 + 1
        rest["local_port"] = 8080
        rest["remote_port"] = rng.integers(32768, 61000, extra)
        rest["rx_bytes"] = rng.integers(0, 40_000, extra) * ((np.arange(extra) + step) % 3 > 0)
        rest["tx_bytes"] = rest["rx_bytes"] // 7
        rest["rx_packets"] = rest["rx_bytes"] // 900 + (rest["rx_bytes"] > 0)
        rest["rx_bytes_total"] = rest["rx_bytes"] * (step + 20)
        rest["first"] = now - (rng.integers(1, 300, extra) + step) * SECOND
        rest["last"] = now - 5_000_000
        rest["state"] = 2
        rtt = np.zeros(extra, ROW_RTT)
        rtt["last"] = rng.integers(200_000, 9_000_000, extra)
        rtt["min"] = rtt["last"] * 0.8
        rtt["smoothed"] = rtt["last"]
        rtt["variance"] = rtt["last"] // 12
        rtt["time"] = now - 8_000_000
        rtt["samples"], rtt["samples_total"], rtt["method"] = 3, 50, 1
        rest["rtt"] = rtt
        rest["pid"], rest["process"] = 2044, b"java"
    return rows


def flows(step: int, extra: int = 24) -> Flows:
    """The section of the flows probe; round trips in two heaps, one of which swells for a while."""
    rows = flow_rows(step, extra)
    near, far = heaps(step)
    subnets = (
        Subnet("203.0.113.0/24", far, 19_400_000),
        Subnet("10.1.0.0/16", near, 210_000),
        Subnet("2001:db8:40::/48", near + near, 220_000),
    )
    return Flows(
        rows=rows, total=len(rows), now_ns=UPTIME + step * SECOND, outward=near + far, subnets=subnets
    )


@cache
def heaps(step: int) -> tuple[Histogram, Histogram]:
    """Delays from near and from far."""
    queue = 1 + 3 * max(sin(step / 14), 0)
    return histogram(0.4e6, 0.25, 60, step), histogram(21e6 * queue, 0.12, 150, step + 1000)


def throughput(step: int) -> Throughput:
    """Traffic that swells and ebbs, with a burst now and then."""
    swell = 0.55 + 0.35 * sin(step / 9) + 0.08 * sin(step / 2.3)
    rx, tx = int(400e6 * swell), int(52e6 * (0.4 + 0.5 * ((step % 37) > 30)) * (1 + 0.2 * sin(step)))
    sizes = (0.21, 0.04, 0.02, 0.03, 0.06, 0.64, 0.0, 0.0)
    count = rx // 1400

    def direction(size: int, packets: int, peak: int, drops: int) -> Direction:
        return Direction(
            size, packets, packets, 0, peak, tuple(int(packets * s) for s in sizes),
            size * 60, packets * 60, drops, 0, drops * 3, 0,
        )  # fmt: skip

    return Throughput(
        direction(rx, count, min(int(rx * 8 * 2.9), 9_870_000_000), 0),
        direction(tx, tx // 700, tx * 8 * 3, 3 if step % 37 > 30 else 0),
        10_000_000_000,
        1500,
        (
            ("tcp", int(rx * 0.97), int(tx * 0.98)),
            ("udp", int(rx * 0.025), int(tx * 0.02)),
            ("icmp", 9800, 9800),
        ),
        "fq_codel",
        0,
        12_110 if step % 37 > 30 else 0,
        9 if step % 37 > 30 else 0,
    )


def delays(step: int) -> Delays:
    """What a probe of stages would have."""
    near, far = heaps(step)
    return Delays({"near": near, "far": far})


# --- probes of the future, as anyone would write them --------------------------------------------------------------


def _stage_draw(history: History, canvas: Canvas) -> list[Line]:
    names = ("driver→stack", "stack→ip", "ip→local", "transport", "socket", "application")
    if canvas.selected:
        return [line((f"stage {canvas.selected}", PLAIN))]
    width = max(canvas.width - 34, 1)
    lines: list[Line] = [
        line((draw.fit("receive", 14), LABEL), (draw.fit("", width), LABEL), ("    p50     p99", LABEL))
    ]
    for index, name in enumerate(names):
        part = "far" if index == 5 else "near"
        each = [f.sections["stages"].parts[part] for f in history[-width:] if "stages" in f.sections]  # type: ignore[attr-defined]
        middles = np.array([percentile(h, 0.5) or 0 for h in each], float)
        heats = draw.levels(middles, 1e5, 1e8)
        now = each[-1]
        here = canvas.cursor is not None and canvas.cursor[1] == index
        lines.append(
            line((draw.fit(name, 14), VALUE if here else PLAIN))
            + draw.heat_strip(heats, canvas, width)
            + line(
                "  ",
                (draw.quantity(units.duration(percentile(now, 0.5)), 7, 2), VALUE),
                " ",
                (draw.quantity(units.duration(percentile(now, 0.99)), 7, 2), PLAIN),
            )
        )
    return lines[: canvas.height]


def _no_fold(setup: Setup) -> Fold:
    raise NotImplementedError


def _probe(name: str, panes: tuple[Pane, ...], hooks: int = 2) -> Probe:
    made = tuple(Hook(f"{name}_{i}", (one("tcx", name, "ingress"),)) for i in range(hooks))
    return Probe(name, f"the {name}", made, (), _no_fold, Flows.from_json, panes)


STAGES = Pane(
    "stages", "Stages", 4, "bottom", draw=_stage_draw, height=8, weight=12, help="Where time goes.",
    rows=lambda frame: ("driver→stack", "stack→ip", "ip→local", "transport", "socket", "application"),
)  # fmt: skip
IRQ = Pane("irq", "IRQ", 5, "bottom", draw=_stage_draw, height=8, weight=10, help="Interrupts.")

PROBES: tuple[Probe, ...] = (
    _probe("throughput", throughput_view.PANES),
    _probe("flows", flows_view.PANES, 6),
    _probe("stages", (STAGES,), 8),
    _probe("irq", (IRQ,), 5),
)


def frame(step: int, extra: int = 24, interval: float = 1.0, **changes: Any) -> Frame:
    """The frame of a moment: everything live but the interrupts."""
    probes = {
        p.name: ProbeStatus("live", hooks=tuple(HookStatus(h.name, "tcx", 1000, 98_000) for h in p.hooks))
        for p in PROBES
    }
    probes["irq"] = ProbeStatus(
        "unavailable",
        "eth0 has no hardware interrupt of its own (veth).\nIts softirqs would show with --probes irq on lo.",
    )
    made = Frame(
        START + int(step * interval * SECOND),
        int(interval * SECOND),
        "db-3",
        "eth0",
        probes=probes,
        health=Health(0, 0, 0, 4_100_000, 11_000_000, 58_000_000),
        sections={
            "throughput": throughput(step),
            "flows": flows(step, extra),
            "stages": delays(step),
        },
    )
    return replace(made, **changes)


def frames(count: int, **more: Any) -> list[Frame]:
    """A run of them."""
    return [frame(step, **more) for step in range(count)]


async def source(made: Sequence[Frame], then: asyncio.Event | None = None) -> AsyncIterator[Frame]:
    """Frames at once; stays open after the last, as a live source does, unless ``then`` is set."""
    for one_frame in made:
        yield one_frame
    await (then or asyncio.Event()).wait()

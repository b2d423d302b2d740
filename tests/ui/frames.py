"""Frames as a busy host would give them: made up, but whole and repeatable."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import erf, exp, log, sin, sqrt
from typing import Any

import numpy as np
from fakes import packed
from numpy.typing import NDArray

from nettop.bpf.hooks import Hook, one
from nettop.core.frame import Frame, Health, HookStatus, ProbeStatus
from nettop.core.histogram import Histogram, bucket_lowers, bucket_of
from nettop.probes.base import Fold, Probe, Setup
from nettop.probes.flows import table as flows_table
from nettop.probes.flows.focus import Focused, Socket
from nettop.probes.flows.rows import ROW, ROW_RTT
from nettop.probes.flows.section import Flows, Rtts, Sample, Subnet
from nettop.probes.irq import probe as irq_probe
from nettop.probes.irq.section import Cpu, Irq, Line, Poll, SoftIrq
from nettop.probes.stages import probe as stages_probe
from nettop.probes.stages.fold import _skeleton
from nettop.probes.stages.section import FocusedStages, Stage, Stages
from nettop.probes.throughput import pane as throughput_pane
from nettop.probes.throughput.section import Direction, Qdisc, Share, Throughput
from nettop.render.canvas import Pane

SECOND = 1_000_000_000
UPTIME = 9_000 * SECOND
START = 1_750_000_000 * SECOND


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
    (6, "2001:db8::10", 55012, "2001:db8:40:aaaa:bbbb:cccc:dddd:eeee", 6443, "kubelet", 733, 8800, 9100, 2e6, 1.6e6, 1),
    (17, "10.1.0.5", 35551, "10.1.0.2", 53, "systemd-resolve", 401, 220, 90, 0.9e6, 0.5e6, 5),
    (1, "10.1.0.5", 7, "192.0.2.1", 7, "ping", 20133, 98, 98, 9.8e6, 9.1e6, 4),
    (17, "10.1.0.5", 123, "192.0.2.99", 123, "", 0, 0, 0, 0, 0, 0),
)  # fmt: skip


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
        one["process"]["pid"], one["process"]["name"] = pid, name.encode()
        if method:
            time = now - (30 if i == 6 else 0) * SECOND - 20_000_000
            one["rtt"] = (rtt * wave, least, least, rtt * 0.97, rtt / 20, time, 14, 1000, method)
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
        rest["process"]["pid"], rest["process"]["name"] = 2044, b"java"
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
        rows=rows,
        total=len(rows),
        now_ns=UPTIME + step * SECOND,
        rtt=Rtts(outward=near + far, subnets=subnets),
        samples=samples(rows, step),
        focused=focused(step),
    )


FOCUS = (1 << 40) + 1  # the second of the named flows: its round trips are far above the least
FOCUSED_SINCE = 60


def samples(rows: NDArray[np.void], step: int) -> tuple[Sample, ...]:
    """Round trips of the flow in focus."""
    if step < FOCUSED_SINCE:
        return ()
    rng = np.random.default_rng(step)
    rtt, time = float(rows["rtt"]["last"][1]), UPTIME + step * SECOND
    return tuple(Sample(time, int(rtt * part), False, "timestamp") for part in rng.normal(1, 0.1, 14))


def focused(step: int) -> Focused | None:
    """What is known of the flow in focus alone."""
    if step < FOCUSED_SINCE:
        return None
    cwnd = 20 + 2 * (step % 17)
    socket = Socket(
        UPTIME + step * SECOND, cwnd, 40, 1448, 262_144, 65_536, cwnd * 1448, 30_000, 0,
        SECOND, SECOND, SECOND // 50,
    )  # fmt: skip
    return Focused(FOCUS, (57_000, 600), (0, 0), (31, 31), (31 * 8_000_000, 31 * 200_000), socket)


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
            Share("tcp", int(rx * 0.97), int(tx * 0.98)),
            Share("udp", int(rx * 0.025), int(tx * 0.02)),
            Share("icmp", 9800, 9800),
        ),
        Qdisc("fq_codel", 0, 12_110 if step % 37 > 30 else 0, 9 if step % 37 > 30 else 0),
    )


# --- stages and interrupts: the host of a web server on which a reader falls behind for a while ----------------------

HOOKS = {
    "driver": "tp_btf", "netif_receive_skb": "tp_btf", "ip_rcv": "netfilter", "ip_local_deliver": "netfilter",
    "ip_forward": "netfilter", "tcp_rcv_established": "tp_btf", "sk_data_ready": "tp_btf",
    "tcp_rcv_space_adjust": "tp_btf", "sock_recv_length": "tp_btf", "tcp_sendmsg_locked": "tp_btf",
    "ip_local_out": "netfilter", "net_dev_queue": "tp_btf", "net_dev_start_xmit": "tp_btf",
    "net_dev_xmit": "tp_btf", "consume_skb": "tp_btf", "kfree_skb": "tp_btf",
}  # fmt: skip
# Of each stage: its usual delay in ns, how wide that spreads (sigma of its logarithm), and packets a second.
DELAYS = {
    ("rx", "stack"): (310, 0.5, 52_000), ("rx", "ip"): (410, 0.4, 52_000), ("rx", "local"): (230, 0.4, 52_000),
    ("rx", "transport"): (520, 0.6, 51_900), ("rx", "socket"): (640, 0.5, 48_000),
    ("rx", "application"): (23_000, 0.9, 47_800), ("rx", "forward"): (0, 0, 0),
    ("tx", "application"): (2_900, 0.7, 21_000), ("tx", "ip"): (900, 0.4, 33_000),
    ("tx", "qdisc"): (410, 0.9, 33_000), ("tx", "driver"): (700, 0.4, 33_000), ("tx", "done"): (8_100, 0.8, 33_000),
}  # fmt: skip


@cache
def heap(center_ns: int, spread: float, count: int) -> Histogram:
    """The same as `histogram`, computed instead of drawn: no noise, and quick."""
    if not count:
        return Histogram.empty()
    edges = [
        0.0 if e <= 0 else (1 + erf(log(e / center_ns) / (spread * sqrt(2)))) / 2 for e in bucket_lowers()
    ]
    edges[-1] = 1.0
    counts = np.diff(np.floor(np.array(edges) * count)).astype(np.uint64)
    return Histogram(counts, int(count * center_ns * exp(spread**2 / 2)))


def late(step: int) -> int:
    """By how much the reader is behind: a sixth of the time fifty times as late as usual."""
    return 50 if step % 90 in range(40, 55) else 1


def stages_section(step: int) -> Stages:
    """Every stage that this kernel can show."""
    rows: dict[str, list[Stage]] = {"rx": [], "tx": []}
    for direction, _, row in _skeleton(Setup("eth0", 2, hooks=HOOKS)):
        center, spread, rate = DELAYS[direction, row.stage]
        if (direction, row.stage) == ("rx", "application"):
            center *= late(step)
        found = heap(center, spread, int(rate * (1 + 0.2 * sin(step / 9))))
        rows[direction].append(
            replace(
                row,
                latency=found,
                missed=None if row.stage == "done" else found.count // 400,
                dropped=3 if row.stage == "local" and step % 20 == 0 else 0,
                path_ns=found.sum_ns,
                path_packets=found.count,
            )
        )
    whole = heap(26_000 * late(step), 0.9, 47_000), heap(5_200, 0.6, 21_000)
    focus = None
    if step >= FOCUSED_SINCE:
        focus = FocusedStages(*(tuple(map(_slower, rows[way])) for way in ("rx", "tx")), flow=FOCUS)
    return Stages(tuple(rows["rx"]), tuple(rows["tx"]), *whole, focus=focus)


def _slower(row: Stage) -> Stage:
    """A stage of a flow that moves in larger pieces, which take longer; what is sent waits in the qdisc."""
    center = 21_000_000 if row.stage == "qdisc" else DELAYS["rx", "application"][0] * 40
    if row.stage not in ("qdisc", "application"):
        return replace(row, path_ns=row.path_ns * 3)
    found = heap(center, 0.4, 90)
    return replace(row, latency=found, path_ns=found.sum_ns, path_packets=found.count)


def irq_section(step: int) -> Irq:
    """A device with two queues; its softirqs wait while the reader is late."""
    busy = 5 if late(step) > 1 else 1
    return Irq(
        (
            Line(41, "eth0-rx-0", heap(1_900, 0.4, 9_100), own=True),
            Line(42, "eth0-tx-0", heap(1_400, 0.4, 4_040), own=True),
            Line(18, "nvme0q1", heap(3_900, 0.5, 212), own=False),
        ),
        (
            SoftIrq("NET_RX", heap(4_100 * busy, 0.8, 9_050), heap(21_000, 0.7, 9_050)),
            SoftIrq("NET_TX", heap(3_300, 0.6, 120), heap(5_200, 0.5, 120)),
            SoftIrq("TIMER", heap(2_100, 0.6, 1_004), heap(1_900, 0.5, 1_004)),
        ),
        (Poll("eth0", heap(5_900 * busy, 0.8, 9_000), heap(19_000, 0.7, 9_050), 52_000, 9_050, step % 7),),
        (Cpu(0, 31_000, 0, step % 3), Cpu(1, 21_000, 2 if step % 30 == 7 else 0, 0)),
        hardware=True,
    )


def _no_fold(setup: Setup) -> Fold:
    raise NotImplementedError


def _probe(name: str, panes: tuple[Pane, ...], hooks: int = 2) -> Probe:
    made = tuple(Hook(f"{name}_{i}", (one("tcx", name, "ingress"),)) for i in range(hooks))
    return Probe(name, f"the {name}", made, (), _no_fold, Flows, panes)


PROBES: tuple[Probe, ...] = (
    _probe("throughput", throughput_pane.PANES),
    _probe("flows", flows_table.PANES, 6),
    _probe("stages", stages_probe.PROBE.panes, 8),
    _probe("irq", irq_probe.PROBE.panes, 5),
)


def frame(step: int, extra: int = 24, interval: float = 1.0, **changes: Any) -> Frame:
    """The frame of a moment, everything live."""
    probes = {
        p.name: ProbeStatus("live", hooks=tuple(HookStatus(h.name, "tcx", 1000, 98_000) for h in p.hooks))
        for p in PROBES
    }
    made = Frame(
        START + int(step * interval * SECOND),
        int(interval * SECOND),
        "db-3",
        "eth0",
        probes=probes,
        health=Health(
            {"lost_events": 0, "evicted_flows": 0, "untracked_packets": 0}, 4_100_000, 11_000_000, 58_000_000
        ),
        sections={
            "throughput": throughput(step),
            "flows": flows(step, extra),
            "stages": stages_section(step),
            "irq": irq_section(step),
        },
    )
    return replace(made, **changes)


def frames(count: int, **more: Any) -> list[Frame]:
    """A run of them."""
    return [frame(step, **more) for step in range(count)]

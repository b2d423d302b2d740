"""Many flows, a table that is read more seldom than frames come, and a budget that is kept."""

import math
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lab import Direction, Endpoint, Lab, Link, Nettop, oracle, packets
from lab.program import Frame
from lab.traffic import answering, ask, asking, iperf3

from nettop.bpf.maps import ArrayReader, open_maps
from nettop.bpf.protocol import Plan
from nettop.core import histogram as hist
from nettop.loader import attach
from nettop.loader.compile import compile_probe
from nettop.loader.mechanisms import Target
from nettop.netdev import link as interface
from nettop.probes.base import Probe
from nettop.probes.flows import probe as flows
from nettop.probes.irq import probe as irq_probe

S = 1_000_000_000
FLOWS = 50_021


# --scan-interval


@pytest.mark.timing
def test_between_scans_rows_are_carried_and_rates_stay_right(lab: Lab, veth: Link) -> None:
    rate = 40_000_000
    with Nettop(lab, veth.a, "-d", "0.25", "--scan-interval", "2", "-p", "throughput,flows") as nettop:
        nettop.wait_frames(1, timeout=60)
        sent = iperf3(client=veth.a, server=veth.b, seconds=7, bits_per_s=rate)
        nettop.more_frames(10)
    frames = nettop.frames
    data = max((row for frame in frames for row in frame["flows"]), key=lambda row: row["tx_bytes_total"])[
        "id"
    ]
    rows = [next((r for r in frame["flows"] if r["id"] == data), None) for frame in frames]
    fresh = [(f, r) for f, r in zip(frames, rows, strict=True) if f["flows_age_ns"] == 0]
    carried = [f for f in frames if f["flows_age_ns"]]

    # Eight frames to a scan; a machine that stops for a moment may miss some.
    assert 2 * len(fresh) < len(carried)
    for frame in carried:
        assert 0 < frame["flows_age_ns"] < 3 * S
    # A frame that carries rows has those of the scan before it, to the byte.
    last: dict[str, object] = {}
    for frame, row in zip(frames, rows, strict=True):
        if frame["flows_age_ns"]:
            assert (row or {}) == last
        last = row or {}
    # What the scans counted adds up to the total: nothing twice, nothing left out.
    counted = [row for _, row in fresh if row]
    assert sum(row["tx_bytes"] for row in counted) == counted[-1]["tx_bytes_total"]
    assert counted[-1]["tx_bytes_total"] > sent.sent_bytes
    # In the middle of the transfer the rate is the sender's, whichever frame one looks at.
    middle = [(f, r) for f, r in fresh if r and r["tx_bytes"]][1:-1]
    assert middle
    for frame, row in middle:
        assert frame["flows_interval_ns"] == pytest.approx(2 * S, rel=0.35)
        bits_per_s = row["tx_bytes"] * 8 * S / frame["flows_interval_ns"]
        assert bits_per_s == pytest.approx(rate, rel=0.15)  # headers are 5 %
    # The counters of the interface went on with each frame.
    during = [f["throughput"]["tx"]["bytes"] for f in carried]
    assert sum(b > 0 for b in during) > 10


# Many flows


def test_tens_of_thousands_of_flows_are_counted_to_the_packet(lab: Lab, veth: Link) -> None:
    options = ("-d", "1", "--max-flows", "131072", "--top", "100000", "-p", "throughput,flows")
    with Nettop(lab, veth.a, *options) as nettop:
        nettop.wait_frames(1, timeout=60)
        before = oracle.sysfs(veth.a)["rx_packets"]
        packets.flooded(packets.datagram_flood(veth, FLOWS, 50_000, 3))
        received, ended = oracle.sysfs(veth.a)["rx_packets"] - before, time.time_ns()
        # On a busy machine two frames may come at once, and packets wait for their softirq: one that began after them.
        while (last := nettop.more_frames(1, timeout=60)[-1])["time_ns"] - last["interval_ns"] < ended:
            pass
    # Neighbour discovery of a new link adds a few packets, and a few flows.
    assert FLOWS <= last["flows_total"] <= FLOWS + 20
    assert last["health"]["evicted_flows"] == 0
    assert sum(f["throughput"]["rx"]["packets"] for f in nettop.frames) == pytest.approx(received, abs=50)
    # A frame holds the largest; those have what their share of the packets is.
    rows = [r for r in last["flows"] if r["remote"].startswith("198.")]
    assert len(rows) > 4000
    share = received / FLOWS
    assert {r["rx_packets_total"] for r in rows} <= {int(share), math.ceil(share), math.ceil(share) + 1}


# --budget


@pytest.mark.alone
@pytest.mark.timing
def test_a_load_beyond_the_budget_is_shed_and_taken_up_again(lab: Lab, veth: Link) -> None:
    # Of what is idle four times as much fits into it, which is the most that a step is taken to be worth.
    with ExitStack() as stack:
        nettop = stack.enter_context(Nettop(lab, veth.a, "-d", "0.5", "--budget", "16"))
        server = stack.enter_context(answering(veth.b))
        nettop.wait_frames(1, timeout=60)
        client = asking(veth.a, server, flows=64, seconds=60)
        shed = _until(nettop, lambda frame: frame["health"]["shed"]["stages_one_in"] > 1)
        # It is said in the frame, with the cost that made it so.
        health = shed["health"]
        assert health["budget_ns"] == pytest.approx(0.16 * shed["interval_ns"], rel=0.001)
        peak = max(
            (f["health"]["kernel_ns"] or 0) + f["health"]["user_ns"] - f["health"]["budget_ns"]
            for f in nettop.frames
        )
        assert peak > 0
        # And the programs were told: the stages follow fewer packets than there are.
        _until(nettop, _sampled)
        client.stop()
        over = _until(nettop, lambda frame: set(frame["health"]["shed"].values()) == {1}, timeout=60)
    assert over["health"]["budget_ns"]


def _sampled(frame: Frame) -> bool:
    """The stages follow fewer packets than there are."""
    followed = max(stage["matched"] or 0 for stage in frame["stages"]["rx"])
    return bool(0 < followed < 0.9 * frame["throughput"]["rx"]["packets"])


def _until(nettop: Nettop, test: Callable[[Frame], bool], timeout: float = 30.0) -> Frame:
    """The first frame from now on of which this is true."""
    for _ in range(round(timeout / 0.5)):
        frame = nettop.more_frames(1)[-1]
        if test(frame):
            return frame
    raise AssertionError(f"in {timeout} s no frame was so; the last: {nettop.frames[-1]['health']}")


@pytest.mark.timing
def test_fewer_rtt_probes_find_the_same_delays(lab: Lab, cache: Path) -> None:
    """Two copies of the program on the same packets, one with an eighth of the probes: a wire of two delays."""
    slow_share = 0.3
    link = lab.wire(Direction(4.0, reorder=slow_share, reorder_extra_ms=8.0), Direction(4.0))
    copies: list[attach.Attached] = []

    def inside() -> None:
        plan = Plan(link.a.name, ("flows",), (("flows.flows", 65_536),))
        config = interface.describe(plan)
        for shift in (0, 3):
            copy = attach.Attached("flows", compile_probe("flows", cache))
            copies.append(copy)
            attach.make_maps(copy, plan)
            attach.attach(copy, Target(link.a.name, config.ifindex))
            attach.write_config(copy, replace(config, rtt_shift=shift))

    try:
        link.a.ns.call(inside)
        with answering(link.b) as server:
            ask(link.a, server, flows=48, seconds=3)
        histograms = [_outward(copy) for copy in copies]
    finally:
        for copy in copies:
            copy.close()
    every, eighth = (int(h.sum()) for h in histograms)
    print(f"samples {every} and {eighth}")
    assert every > 3000
    assert every / 12 < eighth < every / 4  # a tick is a multiple of a question's time only by chance
    # 8 ms or 16 ms, and what a busy machine adds to either: on the same packets, so the same share of slow ones.
    edge = hist.bucket_of(12_000_000)
    slow, slow_of_eighth = (float(h[edge:].sum() / h.sum()) for h in histograms)
    print(f"slow {slow:.3f} and {slow_of_eighth:.3f}")
    assert slow == pytest.approx(slow_share, abs=0.2)
    assert slow_of_eighth == pytest.approx(slow, abs=5 * math.sqrt(0.25 / eighth) + 0.01)


def _read(copy: attach.Attached, probe: Probe, name: str) -> np.ndarray:
    answer = attach.report(copy)
    reader = open_maps(probe.maps, answer.probe.maps, answer.fds)[0][name]
    assert isinstance(reader, ArrayReader)
    return reader.read()


def _outward(copy: attach.Attached) -> np.ndarray:
    return np.asarray(_read(copy, flows.PROBE, "rtts")["slots"].sum(axis=1)[0])


def _longest(frames: list[Frame]) -> float:
    """Upper edge of the last bucket with anything in it, of all stages and waits, in ns."""
    ways = [s["latency"] for f in frames for way in ("rx", "tx") for s in f["stages"][way]]
    waits = [s[what] for f in frames for s in f["irq"]["soft"] for what in ("wait", "run")]
    return max((bucket[0] for latency in (*ways, *waits) for bucket in latency["buckets"]), default=0.0)


def test_a_softirq_that_was_raised_before_a_rest_has_not_waited_all_of_it(cache: Path) -> None:
    """Of each vector one stays raised when the hooks are taken away; the first to run afterwards has not waited."""
    rest, rounds = 0.2, 10
    copy = attach.Attached("irq", compile_probe("irq", cache))
    plan = Plan("lo", ("irq",))
    try:
        attach.make_maps(copy, plan)
        attach.attach(copy, Target("lo", 1))
        attach.write_config(copy, interface.describe(plan))
        for _ in range(rounds):
            for fd in copy.links.pop("softirq_entry"):
                os.close(fd)
            time.sleep(0.05)  # some of each are raised
            attach.handed_over(copy)
            time.sleep(rest)
            attach.resume(copy, Target("lo", 1))
            time.sleep(0.05)
        waits = _read(copy, irq_probe.PROBE, "softirqs")["wait"]["slots"].sum(axis=(0, 1))
    finally:
        copy.close()
    print(f"{waits.sum()} waits")
    assert waits.sum() > 100
    assert waits[hist.bucket_of(round(rest * S)) :].sum() == 0


@pytest.mark.timing
def test_stages_that_rest_come_back_without_a_memory(lab: Lab, veth: Link) -> None:
    """Attached for one second in eight: what was under way when they were detached makes no delay of seconds.

    Data of some connections always waits for its reader, for half a second at most.
    """
    stop = threading.Event()
    with ExitStack() as stack:
        nettop = stack.enter_context(Nettop(lab, veth.a, "-d", "0.5", "--budget", "0.1"))
        server = stack.enter_context(answering(veth.b))
        nettop.wait_frames(1, timeout=60)
        client = asking(veth.a, server, flows=32, interval_s=0.02, seconds=90)
        stack.callback(client.stop)
        stack.callback(stop.set)
        for _ in range(4):
            _keep_waiting(veth.b, veth.a, stop)
        _until(nettop, lambda frame: frame["health"]["shed"]["seconds_one_in"] == 8)
        _until(nettop, lambda frame: _followed(frame) == 0)
        seen = len(nettop.frames)
        _until(nettop, lambda frame: _followed(frame) > 0)
        _until(nettop, lambda frame: _followed(frame) == 0)
        _until(nettop, lambda frame: _followed(frame) > 0)
        resting = nettop.frames[seen:]
        # What is not shed goes on: every frame counts the packets.
        assert all(frame["throughput"]["rx"]["packets"] > 0 for frame in resting)
        attached = [_followed(frame) > 0 for frame in resting]
        assert 0.05 < sum(attached) / len(attached) < 0.5
        assert all(s["matched"] > 0 for f in resting[-1:] for s in f["stages"]["rx"][:5])
        assert _longest(resting) < 2 * S
        assert {h["hook"] for h in resting[-1]["probes"]["stages"]["hooks"]} == {
            h["hook"] for h in nettop.frames[0]["probes"]["stages"]["hooks"]
        }


def _followed(frame: Frame) -> int:
    return int(frame["stages"]["rx"][0]["matched"])


def _keep_waiting(sender: Endpoint, receiver: Endpoint, stop: threading.Event) -> None:
    """A connection by which data always waits: 1 000 small writes a second, and all of it read twice a second."""
    listener = receiver.ns.call(lambda: socket.create_server((receiver.v4, 0)))
    address = listener.getsockname()
    out = sender.ns.call(lambda: socket.create_connection(address))
    out.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found, _ = listener.accept()
    listener.close()

    def write() -> None:
        with out, suppress(OSError):
            while not stop.wait(0.001):
                out.send(b"x" * 100)

    def read() -> None:
        with found, suppress(OSError):
            while not stop.wait(0.5):
                found.recv(1 << 20)

    for work in (write, read):
        threading.Thread(target=work, daemon=True).start()

"""The interrupt path against /proc/softirqs, /proc/interrupts, and a softirq that is held up by a known time."""

import os
import time
from pathlib import Path

import pytest
from lab import Lab, Link, Nettop, oracle
from lab.traffic import iperf3, ping
from stagelab import MS, burning, softirqs

pytestmark = pytest.mark.alone
NET_RX, TIMER = 3, 1


def test_runs_are_those_of_proc_softirqs(lab: Lab, veth: Link) -> None:
    def runs() -> int:
        return sum(oracle.softirqs()["NET_RX"])

    with Nettop(lab, veth.a, "-p", "irq", "-d", "0.5") as nettop, oracle.Watch(runs) as watch:
        nettop.wait_frames(3)
        first = len(nettop.frames)
        iperf3(veth.a, veth.b, seconds=3, udp=True, length=1200, bits_per_s="100M")
        nettop.more_frames(3)
        frames = nettop.frames[first - 1 : -1]
    least, most = watch.growth(frames[0], frames[-1])
    wait, run = softirqs(frames[1:], "NET_RX")
    assert least > 10_000
    assert 0.99 * least <= run.count <= 1.01 * most
    assert wait.count == pytest.approx(run.count, rel=0.01)


def test_a_softirq_that_is_held_up_has_waited(lab: Lab, veth: Link) -> None:
    held = 2 * MS
    with Nettop(lab, veth.a, "-p", "irq", "-d", "0.5") as nettop:
        nettop.wait_frames(2)
        quiet = len(nettop.frames)
        assert ping(veth.a, veth.b, 40).received == 40
        nettop.more_frames(2)
        burnt = len(nettop.frames)
        with burning("softirq_raise", NET_RX, held):
            assert ping(veth.a, veth.b, 40).received == 40
        nettop.more_frames(2)
        frames = nettop.frames
    before, _ = softirqs(frames[quiet:burnt], "NET_RX")
    after, run = softirqs(frames[burnt:], "NET_RX")
    assert before.percentile_ns(0.5) < 1 * MS
    # Forty questions; their answers come while the softirq runs, and wait for nothing.
    late = sum(count for upper, count in after.buckets.items() if upper >= 0.95 * held)
    assert late >= 38
    # The forty longest waits: the middle of them is the time that each was held up.
    longest = [upper for upper, count in after.buckets.items() for _ in range(count)]
    assert sorted(longest)[-20] == pytest.approx(held, rel=0.05, abs=1 * MS)
    assert run.percentile_ns(0.5) < 1 * MS


def test_handlers_are_those_of_proc_interrupts(lab: Lab, veth: Link, tmp_path: Path) -> None:
    """The disk's line: its interrupts are made by writing past the page cache."""

    def counts() -> dict[int, int]:
        return {int(irq): sum(line.counts) for irq, line in oracle.interrupts().items() if irq.isdigit()}

    def write() -> None:
        file = os.open(tmp_path / "data", os.O_CREAT | os.O_WRONLY | os.O_DSYNC)
        try:
            for _ in range(503):
                os.write(file, b"x" * 4096)
        finally:
            os.close(file)

    before = counts()
    write()
    grown = {irq: count - before.get(irq, 0) for irq, count in counts().items()}
    busiest = max(grown, key=lambda irq: grown[irq])
    if grown[busiest] < 100:
        pytest.fail(f"no device of this machine interrupts when a file is written: {grown}")

    with (
        Nettop(lab, veth.a, "-p", "irq", "-d", "0.5") as nettop,
        oracle.Watch(lambda: counts()[busiest]) as watch,
    ):
        nettop.wait_frames(3)
        first = len(nettop.frames)
        write()
        nettop.more_frames(3)
        frames = nettop.frames[first - 1 : -1]
    lines = [line for f in frames[1:] for line in f["irq"]["hard"] if line["irq"] == busiest]
    counted = sum(line["latency"]["count"] + line["unhandled"] for line in lines)
    least, most = watch.growth(frames[0], frames[-1])
    assert least >= 100
    assert 0.99 * least - 5 <= counted <= 1.01 * most + 5
    names = {line["name"] for line in lines}
    assert len(names) == 1
    assert names.pop() in oracle.interrupts()[str(busiest)].name
    assert all(line["own"] is False for frame in frames for line in frame["irq"]["hard"])


def test_a_device_without_interrupts_says_so_and_its_packets_come_by_the_backlog(
    lab: Lab, veth: Link
) -> None:
    with Nettop(lab, veth.a, "-p", "irq", "-d", "0.5") as nettop:
        first = len(nettop.wait_frames(1))
        before = oracle.softnet()
        ping(veth.a, veth.b, 50)
        after = oracle.softnet()
        nettop.more_frames(2)
        frames = nettop.frames[first:]
    processed = sum(c.processed for c in after) - sum(c.processed for c in before)
    polls = {p["device"]: p for p in frames[0]["irq"]["poll"]}
    assert frames[-1]["irq"]["hardware"] is False
    assert polls[veth.a.name]["irq_to_poll"] is None
    work = sum(p["work"] for f in frames for p in f["irq"]["poll"] if p["device"] == "backlog")
    counted = sum(c["processed"] for f in frames for c in f["irq"]["cpus"])
    # Softnet counts what the machine's own NIC receives as well.
    assert 100 <= work <= counted
    assert counted >= processed


def test_polls_of_the_device_itself(lab: Lab, veth: Link) -> None:
    """With GRO a veth has a NAPI instance of its own: the device polls, and no more than its budget a time."""
    veth.a.ns.run("ethtool", "-K", veth.a.name, "gro", "on")
    veth.b.ns.run("ethtool", "-K", veth.b.name, "tso", "off")
    with Nettop(lab, veth.a, "-p", "irq", "-d", "0.5") as nettop:
        first = len(nettop.wait_frames(1))
        iperf3(veth.a, veth.b, seconds=1.5, reverse=True)
        nettop.more_frames(2)
        frames = nettop.frames[first:]
    polls = [p for f in frames for p in f["irq"]["poll"] if p["device"] == veth.a.name]
    work, count = sum(p["work"] for p in polls), sum(p["polls"] for p in polls)
    assert count > 100
    assert 0 < work <= 64 * count
    assert sum(p["run"]["count"] for p in polls) == pytest.approx(count, rel=0.02)


def test_waits_are_never_longer_than_the_run(lab: Lab, veth: Link) -> None:
    """A softirq that is raised again while it runs, or a lost raise, makes no wait of hours."""
    started = time.monotonic_ns()
    with Nettop(lab, veth.a, "-p", "irq", "-d", "0.5") as nettop:
        nettop.wait_frames(1)
        iperf3(veth.a, veth.b, seconds=1.5)
        nettop.more_frames(1)
        frames = nettop.frames
    lasted = time.monotonic_ns() - started
    for entry in (e for f in frames for e in f["irq"]["soft"]):
        for histogram in (entry["wait"], entry["run"]):
            assert (histogram["max_ns"] or 0) < lasted

"""The interrupt path against /proc/softirqs, /proc/interrupts, and a softirq that is held up by a known time."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import Lab, Link, Nettop, oracle
from lab.program import Frame
from lab.traffic import iperf3, ping
from stagelab import MS, burning, softirqs

pytestmark = pytest.mark.pair
NET_RX = 3


@dataclass(frozen=True)
class Station:
    """A link, and the nettop that watches interrupts beside it since `started` (CLOCK_MONOTONIC)."""

    link: Link
    nettop: Nettop
    started: int

    def frames(self, work: Callable[[], object]) -> list[Frame]:
        """Those of this work, the first of which began before it."""
        self.nettop.more_frames(1)
        first = len(self.nettop.frames)
        work()
        self.nettop.more_frames(2)
        return self.nettop.frames[first:]

    def beside(
        self, counter: Callable[[], int], work: Callable[[], object]
    ) -> tuple[list[Frame], tuple[int, int]]:
        """The frames of this work, and the least and the most that the counter grew by over them."""
        with oracle.Watch(counter) as watch:
            self.nettop.more_frames(2)
            first = len(self.nettop.frames)
            work()
            self.nettop.more_frames(3)
            before, *frames = self.nettop.frames[first - 1 : -1]
        return frames, watch.growth(before, frames[-1])


@pytest.fixture(scope="module")
def station() -> Iterator[Station]:
    started = time.monotonic_ns()
    with Lab() as lab:
        link = lab.veth()
        with Nettop(lab, link.a, "-p", "irq", "-d", "0.25") as nettop:
            nettop.wait_frames(1)
            yield Station(link, nettop, started)


def test_runs_are_those_of_proc_softirqs(station: Station) -> None:
    frames, (least, most) = station.beside(
        lambda: sum(oracle.softirqs()["NET_RX"]),
        lambda: iperf3(station.link.a, station.link.b, seconds=2, udp=True, length=1200, bits_per_s="100M"),
    )
    wait, run = softirqs(frames, "NET_RX")
    assert least > 10_000
    assert 0.99 * least <= run.count <= 1.01 * most
    assert wait.count == pytest.approx(run.count, rel=0.01)


@pytest.mark.alone
def test_a_softirq_that_is_held_up_has_waited(station: Station) -> None:
    held = 2 * MS

    def pings() -> None:
        assert ping(station.link.a, station.link.b, 40).received == 40

    before, _ = softirqs(station.frames(pings), "NET_RX")
    with burning("softirq_raise", NET_RX, held):
        frames = station.frames(pings)
    after, run = softirqs(frames, "NET_RX")
    assert before.percentile_ns(0.5) < 1 * MS
    # Forty questions; their answers come while the softirq runs, and wait for nothing.
    late = sum(count for upper, count in after.buckets.items() if upper >= 0.95 * held)
    assert late >= 38
    # The forty longest waits: the middle of them is the time that each was held up.
    longest = [upper for upper, count in after.buckets.items() for _ in range(count)]
    assert sorted(longest)[-20] == pytest.approx(held, rel=0.05, abs=1 * MS)
    assert run.percentile_ns(0.5) < 1 * MS


def test_handlers_are_those_of_proc_interrupts(station: Station, tmp_path: Path) -> None:
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
    grown = oracle.difference(counts(), before)
    busiest = max(grown, key=lambda irq: grown[irq])
    if grown[busiest] < 100:
        pytest.fail(f"no device of this machine interrupts when a file is written: {grown}")

    frames, (least, most) = station.beside(lambda: counts()[busiest], write)
    lines = [line for f in frames for line in f["irq"]["hard"] if line["irq"] == busiest]
    counted = sum(line["latency"]["count"] + line["unhandled"] for line in lines)
    assert least >= 100
    assert 0.99 * least - 5 <= counted <= 1.01 * most + 5
    names = {line["name"] for line in lines}
    assert len(names) == 1
    assert names.pop() in oracle.interrupts()[str(busiest)].name
    assert all(line["own"] is False for frame in frames for line in frame["irq"]["hard"])


def test_a_device_without_interrupts_says_so_and_its_packets_come_by_the_backlog(station: Station) -> None:
    def processed() -> int:
        return sum(cpu.processed for cpu in oracle.softnet())

    seen = []

    def pings() -> None:
        seen.append(processed())
        ping(station.link.a, station.link.b, 50)
        seen.append(processed())

    frames = station.frames(pings)
    polls = {p["device"]: p for p in frames[0]["irq"]["poll"]}
    assert frames[-1]["irq"]["hardware"] is False
    assert polls[station.link.a.name]["irq_to_poll"] is None
    work = sum(p["work"] for f in frames for p in f["irq"]["poll"] if p["device"] == "backlog")
    counted = sum(c["processed"] for f in frames for c in f["irq"]["cpus"])
    # Softnet counts what the machine's own NIC receives as well.
    assert 100 <= work <= counted
    assert counted >= seen[1] - seen[0]


def test_polls_of_the_device_itself(station: Station) -> None:
    """With GRO a veth has a NAPI instance of its own: the device polls, and no more than its budget a time."""
    near, far = station.link.a, station.link.b
    near.ns.run("ethtool", "-K", near.name, "gro", "on")
    far.ns.run("ethtool", "-K", far.name, "tso", "off")
    frames = station.frames(lambda: iperf3(near, far, seconds=1, reverse=True))
    polls = [p for f in frames for p in f["irq"]["poll"] if p["device"] == near.name]
    work, count = sum(p["work"] for p in polls), sum(p["polls"] for p in polls)
    assert count > 100
    assert 0 < work <= 64 * count
    assert sum(p["run"]["count"] for p in polls) == pytest.approx(count, rel=0.02)


def test_waits_are_never_longer_than_the_run(station: Station) -> None:
    """A softirq that is raised again while it runs, or a lost raise, makes no wait of hours."""
    station.frames(lambda: iperf3(station.link.a, station.link.b, seconds=1))
    lasted = time.monotonic_ns() - station.started
    for entry in (e for f in station.nettop.frames for e in f["irq"]["soft"]):
        for histogram in (entry["wait"], entry["run"]):
            assert (histogram["max_ns"] or 0) < lasted

"""A real NIC's interrupts: virtio NICs with lines of their own, and two e1000 on one line (run.sh's NIC=cards)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, Nettop, oracle, shell
from lab.namespace import Endpoint
from lab.program import Frame
from lab.traffic import iperf3, ping
from stagelab import stages

PINGS = 53
NICS = Path("/sys/class/net")
MAC = "52:54:00:4e:54:"


@contextmanager
def cards(lab: Lab, *numbers: str) -> Iterator[list[Endpoint]]:
    """NICs by the end of their MAC addresses, each up in a namespace of its own."""
    there = {path.read_text().strip(): path.parent.name for path in NICS.glob("*/address")}
    if not {MAC + number for number in numbers} <= set(there):
        pytest.fail(f"no NICs {numbers}: run.sh with NIC=cards")
    ends = []
    for place, number in enumerate(numbers, 1):
        ns, name = lab.namespace("n"), there[MAC + number]
        shell.run(["ip", "link", "set", name, "netns", str(ns.name)])
        ns.run("ip", "addr", "add", f"10.88.0.{place}/24", "dev", name)
        ns.run("ip", "link", "set", name, "up")
        ends.append(Endpoint(ns, name, "", f"10.88.0.{place}", ""))
    assert shell.eventually(lambda: ping(ends[0], ends[1], 1).received == 1, timeout=60)
    try:
        yield ends
    finally:
        for end in ends:
            # Before the namespace goes: the next test wants them, and a namespace dies when it likes.
            end.ns.run("ip", "link", "set", end.name, "netns", "1")


@pytest.fixture
def cable(lab: Lab) -> Iterator[tuple[Endpoint, Endpoint]]:
    """Two virtio NICs, MSI-X."""
    with cards(lab, "00", "01") as (near, far):
        yield near, far


@pytest.fixture
def shared(lab: Lab) -> Iterator[tuple[Endpoint, Endpoint, Endpoint]]:
    """An e1000 at a cable, the other end of that, and an e1000 without one, on the first one's interrupt line."""
    with cards(lab, "10", "11", "20") as (near, far, idle):
        yield near, far, idle


def lines_of(device: str) -> dict[int, int]:
    """Interrupts so far by number, of the virtio device behind an interface: `virtio2-input.0` and its like."""
    return {
        int(number): sum(line.counts)
        for number, line in oracle.interrupts().items()
        if number.isdigit() and line.name.split()[-1].startswith(f"{device}-")
    }


def device_of(end: Endpoint) -> str:
    """The device behind an interface: `virtio2`, `0000:00:12.0`."""
    path = end.ns.run("readlink", "-f", f"/sys/class/net/{end.name}/device").stdout.strip()
    return path.rpartition("/")[2]


def watched(nettop: Nettop, first: int) -> list[Frame]:
    nettop.more_frames(3)
    return nettop.frames[first:]


def hard(frames: list[Frame], irq: int) -> list[dict[str, Any]]:
    """Every row of one interrupt line."""
    return [line for frame in frames for line in frame["irq"]["hard"] if line["irq"] == irq]


@pytest.mark.parametrize("via", ["tp_btf", "raw_tracepoint"])
def test_interrupts_are_those_of_proc_interrupts(
    lab: Lab, cable: tuple[Endpoint, Endpoint], via: str
) -> None:
    near, far = cable
    device = device_of(near)
    with Nettop(lab, near, "-p", "irq", "-d", "0.5", env={"NETTOP_VIA": via}) as nettop:
        first = len(nettop.wait_frames(1))
        before = lines_of(device)
        assert ping(near, far, PINGS, interval_s=0.02).received == PINGS
        after = lines_of(device)
        frames = watched(nettop, first)
    assert {h["via"] for h in frames[-1]["probes"]["irq"]["hooks"]} == {via, "raw_tracepoint"}
    assert len(after) >= 2
    grown = {number: count - before[number] for number, count in after.items()}
    counted = {irq: sum(r["latency"]["count"] + r["unhandled"] for r in hard(frames, irq)) for irq in grown}
    print(f"/proc/interrupts {grown}, nettop {counted}")
    assert sum(grown.values()) >= PINGS
    for irq, count in grown.items():
        # A late one (an ARP answer, a transmit completion) may fall between two readings.
        assert abs(counted[irq] - count) <= 3
        said = {(row["own"], row["name"].partition("-")[0]) for row in hard(frames, irq)}
        assert said == {(True, device)} or not count
    # From interrupt to poll.
    polls = [p for frame in frames for p in frame["irq"]["poll"] if p["device"] == near.name]
    waits = [p["irq_to_poll"] for p in polls]
    assert all(wait is not None for wait in waits)
    assert sum(wait["count"] for wait in waits) >= PINGS - 3
    assert all(0 < wait["min_ns"] <= wait["p50_ns"] for wait in waits if wait["count"])
    assert sum(p["work"] for p in polls) >= PINGS
    assert sum(p["polls"] for p in polls) >= sum(wait["count"] for wait in waits)


def test_a_shared_line_has_the_handlers_that_had_work(
    lab: Lab, shared: tuple[Endpoint, Endpoint, Endpoint]
) -> None:
    """Each interrupt asks both devices' handlers: the one that says "not mine" (IRQ_NONE) is counted apart."""
    near, far, idle = shared
    lines = oracle.interrupts()
    both = {near.name, idle.name}
    ours = [int(n) for n, line in lines.items() if both <= set(line.name.replace(",", " ").split())]
    assert len(ours) == 1, {n: line.name for n, line in lines.items()}
    (irq,) = ours
    with Nettop(lab, near, "-p", "irq", "-d", "0.5") as nettop:
        first = len(nettop.wait_frames(1))
        before = sum(oracle.interrupts()[str(irq)].counts)
        assert ping(near, far, PINGS, interval_s=0.02).received == PINGS
        after = sum(oracle.interrupts()[str(irq)].counts)
        frames = watched(nettop, first)
    rows = hard(frames, irq)
    handled, unhandled = sum(r["latency"]["count"] for r in rows), sum(r["unhandled"] for r in rows)
    grown = after - before
    print(f"/proc/interrupts {grown}, nettop {handled} handled, {unhandled} not")
    assert grown >= PINGS
    assert {row["own"] for row in rows} == {True}
    assert {row["name"] for row in rows} <= both
    # Two handlers an interrupt, one of them for nothing.
    assert abs(handled - grown) <= 6
    assert abs(unhandled - grown) <= 6
    polls = [p for frame in frames for p in frame["irq"]["poll"] if p["device"] == near.name]
    assert sum(p["work"] for p in polls) >= PINGS
    waits = [p["irq_to_poll"] for p in polls]
    assert sum(wait["count"] for wait in waits) >= PINGS - 3
    assert all(0 < wait["min_ns"] <= wait["p50_ns"] for wait in waits if wait["count"])


@pytest.mark.parametrize("via", ["", "kprobe"])
def test_stages_where_packets_are_merged(lab: Lab, cable: tuple[Endpoint, Endpoint], via: str) -> None:
    """GRO merges what the driver hands over one by one: every boundary is live, and says how much it could time."""
    near, far = cable
    with Nettop(lab, near, "-p", "stages", "-d", "0.5", env={"NETTOP_VIA": via}) as nettop:
        first = len(nettop.wait_frames(1))
        iperf3(near, far, payload_bytes=5_000_011, reverse=True)
        frames = watched(nettop, first)
    totals = stages(frames)
    for key, total in totals.items():
        print(key, total.count, total.missed, total.begin, total.end, total.via)
    for stage in ("stack", "ip", "local", "transport", "socket"):
        total = totals["rx", stage]
        assert total.count >= 50, stage
        assert total.coverage >= 0.9, stage
    assert totals["rx", "application"].count > 0
    # What virtio is done with it frees, or at the next transmission.
    sent = totals["tx", "driver"].count
    assert sent >= 50
    assert 0.95 * sent - 5 <= totals["tx", "done"].count <= sent

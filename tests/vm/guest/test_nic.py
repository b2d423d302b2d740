"""A real NIC's interrupts: two virtio NICs of this guest, joined by a cable (run.sh's NIC=hub)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, Nettop, shell, witness
from lab.namespace import Endpoint
from lab.program import Frame
from lab.traffic import iperf3, ping
from stagelab import stages


@pytest.fixture
def cable(lab: Lab) -> Iterator[tuple[Endpoint, Endpoint]]:
    if not Path("/sys/class/net/eth1").exists():
        pytest.fail("no NICs: run.sh with NIC=hub")
    ends = []
    for number in (0, 1):
        ns, name = lab.namespace("n"), f"eth{number}"
        shell.run(["ip", "link", "set", name, "netns", str(ns.name)])
        ns.run("ip", "addr", "add", f"10.88.0.{number + 1}/24", "dev", name)
        ns.run("ip", "link", "set", name, "up")
        ends.append(Endpoint(ns, name, "", f"10.88.0.{number + 1}", ""))
    ping(ends[0], ends[1], 3)
    yield ends[0], ends[1]
    for end in ends:
        # Before the namespace goes: the next test wants them, and a namespace dies when it likes.
        end.ns.run("ip", "link", "set", end.name, "netns", "1")


def lines_of(device: str) -> dict[int, int]:
    """Interrupts so far by number, of the virtio device behind an interface: `virtio2-input.0` and its like."""
    return {
        int(number): sum(line.counts)
        for number, line in witness.interrupts().items()
        if number.isdigit() and line.name.split()[-1].startswith(f"{device}-")
    }


def watched(nettop: Nettop, first: int) -> list[Frame]:
    nettop.more_frames(3)
    return nettop.frames[first:]


def test_interrupts_are_those_of_proc_interrupts(lab: Lab, cable: tuple[Endpoint, Endpoint]) -> None:
    near, far = cable
    device = (
        near.ns.run("readlink", "-f", f"/sys/class/net/{near.name}/device").stdout.strip().rpartition("/")[2]
    )
    with Nettop(lab, near, "-p", "irq", "-d", "0.5") as nettop:
        first = len(nettop.wait_frames(1))
        before = lines_of(device)
        assert ping(near, far, 53, interval_s=0.02).received == 53
        after = lines_of(device)
        frames = watched(nettop, first)
    assert len(after) >= 2
    grown = {number: count - before[number] for number, count in after.items()}
    counted = dict.fromkeys(grown, 0)
    for line in (line for frame in frames for line in frame["irq"]["hard"]):
        if line["irq"] in counted:
            counted[line["irq"]] += line["latency"]["count"] + line["unhandled"]
            assert line["own"] is True
            assert line["name"].startswith(f"{device}-")
    print(f"/proc/interrupts {grown}, nettop {counted}")
    assert sum(grown.values()) >= 53
    for number, count in grown.items():
        # A late one (an ARP answer, a transmit completion) may fall between two readings.
        assert abs(counted[number] - count) <= 3


def test_from_interrupt_to_poll(lab: Lab, cable: tuple[Endpoint, Endpoint]) -> None:
    near, far = cable
    with Nettop(lab, near, "-p", "irq", "-d", "0.5") as nettop:
        first = len(nettop.wait_frames(1))
        assert ping(near, far, 53, interval_s=0.02).received == 53
        frames = watched(nettop, first)
    polls = [p for frame in frames for p in frame["irq"]["poll"] if p["device"] == near.name]
    waits = [p["irq_to_poll"] for p in polls]
    assert all(wait is not None for wait in waits)
    assert sum(wait["count"] for wait in waits) >= 50
    assert all(0 < wait["min_ns"] <= wait["p50_ns"] for wait in waits if wait["count"])
    assert sum(p["work"] for p in polls) >= 53
    assert sum(p["polls"] for p in polls) >= sum(wait["count"] for wait in waits)


def test_stages_where_packets_are_merged(lab: Lab, cable: tuple[Endpoint, Endpoint]) -> None:
    """GRO merges what the driver hands over one by one: every boundary is live, and says how much it could time."""
    near, far = cable
    with Nettop(lab, near, "-p", "stages", "-d", "0.5") as nettop:
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

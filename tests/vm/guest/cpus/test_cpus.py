"""Many CPUs: both directions of a flow on different ones (run.sh with CPUS=8 NIC=queues), and very many possible ones.

How many connections: $NETTOP_VM_CONNECTIONS.  What reading costs is left in $NETTOP_VM_OUT for docs/kernels.md.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import ladder
import pytest
from lab import Lab, Link, Nettop, bpf, oracle
from lab.namespace import Endpoint
from lab.traffic import iperf3, ping
from many_connections import account, claim, silence
from observe import Watch
from test_nic import cable, device_of  # noqa: F401

CONNECTIONS = int(os.environ.get("NETTOP_VM_CONNECTIONS", "2003"))
ONLINE = os.cpu_count() or 1
SENDING, RECEIVING = range(ONLINE // 2), range(ONLINE // 2, ONLINE)
PAIRS = list(zip(SENDING, RECEIVING, strict=False))
FLOWS = ("-d", "2", "-p", "flows", "--max-flows", "65536", "--top", "20000")
many = pytest.mark.skipif(ONLINE < 4, reason="CPUS=8 is what this is about")


def mask(cpus: Sequence[int]) -> str:
    return f"{sum(1 << cpu for cpu in cpus):x}"


def possible() -> int:
    """As /sys/devices/system/cpu/possible says it: 0-7."""
    return int(Path("/sys/devices/system/cpu/possible").read_text().rpartition("-")[2]) + 1


def spread(end: Endpoint) -> None:
    """What comes in at this end is handled on the receiving CPUs, by receive packet steering."""
    for queue in end.ns.run("sh", "-c", f"ls -d /sys/class/net/{end.name}/queues/rx-*").stdout.split():
        end.ns.run("sh", "-c", f"echo {mask(RECEIVING)} > {queue}/rps_cpus")


def received_on(before: list[int], after: list[int]) -> list[int]:
    """NET_RX softirqs of each CPU meanwhile."""
    return [b - a for a, b in zip(before, after, strict=True)]


def watched(lab: Lab, near: Endpoint, far: Endpoint, way: str) -> None:
    """Opened once, closed once, and all packets in a flow; those that came in did so on the receiving CPUs."""
    with Nettop(lab, near, *FLOWS) as nettop:
        nettop.wait_frames(1, timeout=ladder.TIME_LIMIT_S)
        before = oracle.softirqs()["NET_RX"]
        found = account(nettop, near, far, CONNECTIONS, PAIRS)
        received = received_on(before, oracle.softirqs()["NET_RX"])
    print(f"NET_RX {received}, {CONNECTIONS / found.seconds:.0f} connections a second")
    # Four packets of each connection at the least come in, and not on the CPUs that send them.
    assert sum(received[cpu] for cpu in RECEIVING) > CONNECTIONS
    claim(found, CONNECTIONS)
    said = {"count": CONNECTIONS, "opened": found.opened, "closed": found.closed}
    ladder.tell(way, {"online": ONLINE, "connections": {way: said}})


@many
def test_both_directions_on_two_cpus_by_rps(lab: Lab) -> None:
    link = lab.veth()
    silence(link.a, link.b)
    spread(link.a)
    watched(lab, link.a, link.b, "RPS")


@many
def test_both_directions_on_two_cpus_by_interrupts(
    lab: Lab,
    cable: tuple[Endpoint, Endpoint],  # noqa: F811
) -> None:
    """Two multi-queue NICs, whose interrupts go to the receiving CPUs alone."""
    near, far = cable
    device = device_of(near)
    lines = [n for n, line in oracle.interrupts().items() if f" {device}-input." in f" {line.name}"]
    assert len(lines) == ONLINE, lines
    for place, number in enumerate(lines):
        Path("/proc/irq", number, "smp_affinity").write_text(f"{1 << RECEIVING[place % len(RECEIVING)]:x}")
    silence(near, far)
    before = oracle.interrupts()
    watched(lab, near, far, "interrupts")
    after = oracle.interrupts()
    grown = [sum(after[n].counts[cpu] - before[n].counts[cpu] for n in lines) for cpu in range(ONLINE)]
    print(f"interrupts of {device}: {grown}")
    # A line moves when its next interrupt comes: that one is still the old CPU's.
    assert sum(grown[cpu] for cpu in SENDING) <= len(lines)
    assert (
        sum(grown[cpu] for cpu in RECEIVING) > CONNECTIONS // 10
    )  # one for many packets, where NAPI polls on


@many
def test_all_queues_at_once(lab: Lab, cable: tuple[Endpoint, Endpoint]) -> None:  # noqa: F811
    """Parallel streams over all queues: bytes, packets and every probe."""
    near, far = cable
    with Nettop(lab, near, "-d", "1") as nettop:
        nettop.wait_frames(1, timeout=ladder.TIME_LIMIT_S)
        with Watch(nettop, near).observing() as seen:
            result = iperf3(near, far, payload_bytes=2_000_003 * ONLINE, parallel=ONLINE)
        last = nettop.frames[-1]
    assert {probe["state"] for probe in last["probes"].values()} == {"live"}
    seen.agrees(tolerance=0)
    rows = {row["local"] for row in seen.rows(protocol="tcp")}
    assert len(rows) == ONLINE + 1
    assert len(result.flows) == ONLINE


def cpu_seconds(pid: int) -> float:
    """Of a process and all its children, user and kernel."""
    ticks = 0
    for process in bpf.family(pid):
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes, of the same."""
    pages = sum(int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in bpf.family(pid))
    return pages * os.sysconf("SC_PAGESIZE")


def test_reading_is_right_and_what_it_costs(lab: Lab, veth: Link) -> None:
    """Every per-CPU map holds a value for each possible CPU, whether it is there or not."""
    frames = 10
    with Nettop(lab, veth.a, "-d", "2") as nettop:
        nettop.wait_frames(3, timeout=ladder.TIME_LIMIT_S)  # compiled first
        began, spent = time.monotonic(), cpu_seconds(nettop.pid)
        nettop.more_frames(frames)
        spent = (cpu_seconds(nettop.pid) - spent) / frames
        took = (time.monotonic() - began) / frames
        with Watch(nettop, veth.a).observing() as seen:
            assert ping(veth.a, veth.b, 53, interval_s=0.02).received == 53
        memory = resident(nettop.pid)
        last = nettop.frames[-1]
    assert {probe["state"] for probe in last["probes"].values()} == {"live"}
    assert took < 4
    seen.agrees(tolerance=0)
    cost = {"online": ONLINE, "possible": possible(), "ms": spent * 1000, "megabytes": memory / 1e6}
    print(cost)
    ladder.tell("reading", {"reading": cost})

"""What a machine of one's own allows: a CPU goes, the clock jumps, memory ends, the loader is killed under clsact."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import Lab, Link, Nettop, bpf, faults, oracle, shell
from lab.namespace import Endpoint
from lab.program import interpreter
from lab.traffic import answering, ask, ping
from observe import Watch, counts_pings
from processes import loader_of
from stagelab import stages

CPU = Path("/sys/devices/system/cpu/cpu1/online")
HOUR = 3600


@contextmanager
def offline() -> Iterator[None]:
    """The second CPU is away while the block lasts."""
    CPU.write_text("0")
    try:
        yield
    finally:
        CPU.write_text("1")


def test_a_cpu_goes_and_comes_back(lab: Lab, veth: Link) -> None:
    """Every probe counts on, by the CPU that is left and by both again; what the other had counted is kept."""
    with Nettop(lab, veth.a, "-d", "0.5") as nettop, answering(veth.b) as server:
        nettop.wait_frames(1)
        watch = Watch(nettop, veth.a)
        with watch.observing() as both:
            ask(veth.a, server, count=101)
        with offline(), watch.observing() as one:
            ask(veth.a, server, count=101)
        with watch.observing() as again:
            ask(veth.a, server, count=101)
        outcome = nettop.stop()
    assert (outcome.code, outcome.stderr) == (130, "")
    for seen, cpus in ((both, {0, 1}), (one, {0}), (again, {0, 1})):
        seen.agrees(tolerance=0)
        assert 101 <= stages(seen.frames)["rx", "socket"].count <= 116
        assert {cpu["cpu"] for cpu in seen.frames[-1]["irq"]["cpus"]} == cpus
        assert {probe["state"] for probe in seen.frames[-1]["probes"].values()} == {"live"}
    assert max(frame["health"]["lost_events"] for frame in outcome.frames) == 0


@contextmanager
def stepped(seconds: int) -> Iterator[None]:
    """The wall clock is so far off while the block lasts."""
    began, wall = time.monotonic(), time.time()
    time.clock_settime(time.CLOCK_REALTIME, wall + seconds)
    try:
        yield
    finally:
        time.clock_settime(time.CLOCK_REALTIME, wall + time.monotonic() - began)


def test_the_wall_clock_jumps(lab: Lab, veth: Link) -> None:
    """Forwards and back: frames carry the new time, and nothing that is measured knows of it."""
    began = time.monotonic_ns()
    with Nettop(lab, veth.a, "-d", "0.5", "-p", "throughput,flows,stages") as nettop:
        nettop.wait_frames(1)
        watch = Watch(nettop, veth.a)
        seen = []
        for step in (HOUR, -HOUR):
            with stepped(step):
                with watch.observing() as here:
                    assert ping(veth.a, veth.b, 31, interval_s=0.02).received == 31
                seen.append((step, here, time.time_ns()))
        with watch.observing() as here:
            assert ping(veth.a, veth.b, 31, interval_s=0.02).received == 31
        seen.append((0, here, time.time_ns()))
        outcome = nettop.stop()
    lasted = time.monotonic_ns() - began
    assert (outcome.code, outcome.stderr) == (130, "")
    for step, here, wall in seen:
        here.agrees(tolerance=0)
        assert abs(here.frames[-1]["time_ns"] - wall) < 60 * 10**9, step
        for frame in here.frames:
            assert 0 < frame["interval_ns"] < lasted
            assert 0 <= frame["monotonic_ns"] - began < lasted
            for row in frame["flows"]:
                assert 0 <= row["first_ns"] <= row["last_ns"] <= frame["monotonic_ns"]
                assert row["rtt"] is None or 0 < row["rtt"]["min_ns"] < lasted
        assert all(
            (total.percentile_ns(1.0) if total.count else 0) < lasted
            for total in stages(here.frames).values()
        )


def test_maps_that_find_no_room(veth: Link) -> None:
    """Maps are charged to the memory cgroup: its probe says so, and the other goes on."""
    args = "-b --format ndjson --budget 0 -n 2 -d 0.5 -p throughput,flows --max-flows 1000000".split()
    with faults.little_memory(250) as limited:
        argv = veth.a.ns.argv([interpreter(), "-m", "nettop", veth.a.name, *args])
        done = shell.run([*limited, *argv], timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    frame = json.loads(done.stdout.splitlines()[-1])
    assert frame["probes"]["throughput"]["state"] == "live"
    assert frame["probes"]["flows"]["state"] == "failed"
    detail = frame["probes"]["flows"]["detail"]
    assert "cannot make the map flows (1000000 entries)" in detail
    assert "Cannot allocate memory" in detail


def programs(end: Endpoint) -> list[str]:
    """The names of the BPF filters on clsact's hooks; tc has a line without options before each."""
    return [f["options"]["bpf_name"] for f in oracle.filters(end) if "options" in f]


def test_what_a_killed_loader_left_goes_with_the_next_start(lab: Lab, veth: Link) -> None:
    """Nothing takes clsact's filters away when the loader is killed: the next nettop knows them for its own kind's."""
    before = oracle.attached(veth.a)
    env = {"NETTOP_VIA": "clsact"}
    with Nettop(lab, veth.a, "-d", "0.5", "-p", "throughput,flows", env=env) as nettop:
        nettop.wait_frames(1)
        during = bpf.held(nettop.pid)
        os.kill(loader_of(nettop.pid), signal.SIGKILL)
        assert nettop.process.wait(timeout=60) == 1
        assert "the loader has ended by signal 9; its filters are still on" in nettop.stop().stderr
    assert len(programs(veth.a)) == 4
    assert bpf.living(during).programs
    with Nettop(lab, veth.a, "-d", "0.5", "-p", "throughput", env=env) as nettop:
        (first, *_) = nettop.wait_frames(1)
        assert first["notes"] == [f"took 4 filters away that a killed nettop had left on {veth.a.name}"]
        assert len(programs(veth.a)) == 2
        counts_pings(nettop, veth.a, veth.b)
        nettop.stop()
    assert oracle.attached(veth.a) == before
    assert not bpf.remaining(during, timeout=30)

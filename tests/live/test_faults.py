"""Failure modes: what the user sees, what stays attached (nothing), and what becomes of the recording.

Most of them happen, one after another, to one interface beside one nettop that records: first where TCX attaches the
programs, then where clsact does, as on kernels before 6.6.  docs/faults.md lists them all, with those tested elsewhere.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import Lab, LabError, Link, Nettop, bpf, faults, foreign_programs, oracle, run_nettop
from lab.namespace import Namespace
from lab.program import REPOSITORY, Frame, command
from lab.shell import eventually, run
from lab.traffic import iperf3, ping
from observe import DELAY, PROBES, SETTLED, Watch, counts_pings, watching
from processes import gone, loader_of, nothing_left
from terminal import Terminal

ARGS = ("-d", DELAY, "-p", PROBES)


@dataclass
class Station:
    """A link, and a nettop that watches its end `a` and records."""

    lab: Lab
    link: Link
    nettop: Nettop
    via: str
    path: Path
    before: oracle.Attached

    def agrees(self) -> None:
        counts_pings(self.nettop, self.link.a, self.link.b)

    def flood(self, count: int = 4000) -> None:
        """Enough packets, both ways, to be judged by."""
        ping(self.link.a, self.link.b, count, interval_s=0, args=("-q", "-f"))

    def quiet(self) -> None:
        """Wait for a frame whose notes say nothing of a state: only what has happened."""
        assert eventually(lambda: not states(self.nettop.frames[-1])), self.nettop.frames[-1]["notes"]


def states(frame: Frame) -> list[str]:
    """Notes of what is, not of what has happened."""
    words = (" is down", "without carrier", "is gone", "not seen", "cannot be watched")
    return [note for note in frame.get("notes", ()) if any(w in note for w in words) and " again" not in note]


def quiet(ns: Namespace) -> None:
    """Without IPv6, which sends packets of its own whenever an interface comes up."""
    ns.sysctl("ipv6.conf.all.disable_ipv6", 1)
    ns.sysctl("ipv6.conf.default.disable_ipv6", 1)


# Independent of the mechanism of attachment, so tested with one.
ONCE = pytest.mark.parametrize("station", ["tcx"], indirect=True)


@pytest.fixture(scope="module", params=["tcx", "clsact"])
def station(request: pytest.FixtureRequest) -> Iterator[Station]:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        path = stack.enter_context(faults.folder()) / "recording.ndjson.gz"
        link = lab.veth()
        for end in (link.a, link.b):
            quiet(end.ns)
        before = oracle.attached(link.a)
        args = (*ARGS, "--record", str(path))
        nettop = Nettop(lab, link.a, *args, env={"NETTOP_VIA": request.param})
        stack.enter_context(nettop)
        nettop.wait_frames(2, timeout=60)
        yield Station(lab, link, nettop, request.param, path, before)


# The interface changes


@ONCE
def test_down_and_up_again(station: Station) -> None:
    end = station.link.a
    faults.set_link(end, "down")
    assert f"{end.name} is down" in station.nettop.noted("is down")["notes"]
    faults.configure(end, station.link.b)
    station.quiet()
    faults.set_link(station.link.b, "down")
    assert f"{end.name} is without carrier" in station.nettop.noted("carrier")["notes"]
    faults.configure(station.link.b, end)
    station.quiet()
    station.agrees()


@ONCE
def test_another_mtu(station: Station) -> None:
    for mtu in (1280, 1500):
        faults.set_link(station.link.a, "mtu", str(mtu))
        assert eventually(lambda mtu=mtu: station.nettop.frames[-1]["throughput"]["mtu"] == mtu)
    faults.configure(station.link.a, station.link.b)


@ONCE
def test_another_name_is_followed(station: Station) -> None:
    with faults.renamed(station.link.a, f"{station.link.a.name}x") as other:
        frame = station.nettop.noted(f"{station.link.a.name} is called {other.name} since ")
        assert frame["interface"] == other.name
        seen = counts_pings(station.nettop, other, station.link.b)
        assert seen.frames[-1]["throughput"]["rx"]["bytes_total"] == oracle.sysfs(other)["rx_bytes"]
    assert station.nettop.noted(f"{other.name} is called")["interface"] == station.link.a.name


def test_in_another_namespace_it_is_not_watched(station: Station) -> None:
    """Nothing of ours stays on an interface that has gone elsewhere, and what passes there is not counted."""
    elsewhere = station.lab.namespace("m")
    quiet(elsewhere)
    with faults.moved(station.link, elsewhere) as there:
        frame = station.nettop.noted("is gone")
        assert f"{station.link.a.name} is gone; waiting for it to come back" in frame["notes"]
        left = oracle.attached(there)
        assert not left.programs
        assert not left.filters
        before = oracle.sysfs(there)
        first = len(station.nettop.frames)
        ping(there, station.link.b, 29)
        assert oracle.difference(oracle.sysfs(there), before)["rx_packets"] >= 29
        station.nettop.more_frames(SETTLED)
        for missed in station.nettop.frames[first:]:
            assert missed["throughput"]["rx"]["packets"] == missed["throughput"]["tx"]["packets"] == 0
    station.nettop.noted(f"{station.link.a.name} came back at ")
    station.quiet()
    station.agrees()


# Others on the same interface


@ONCE
def test_xdp_beside_us(station: Station) -> None:
    """An XDP program makes a veth receive through NAPI with GRO, and count otherwise from then on."""
    with foreign_programs.xdp(station.link.a):
        beside = oracle.attached(station.link.a).programs
        assert any(kind == "xdp" for kind, _ in beside)
        station.nettop.more_frames(3)
        with Watch(station.nettop, station.link.a).observing() as seen:
            ping(station.link.a, station.link.b, 29)
            iperf3(station.link.a, station.link.b, reverse=True, payload_bytes=20_000_003)
        seen.agrees()
        assert oracle.attached(station.link.a).programs == beside
    station.nettop.more_frames(3)
    station.agrees()


def test_others_that_pass_packets_on_come_and_go(station: Station) -> None:
    """TCX before and after ours, clsact filters before and after ours: all of them see all, and so do we."""
    end = station.link.a
    ours = oracle.attached(end)
    with (
        foreign_programs.tcx(end, foreign_programs.TC_NEXT, foreign_programs.BEFORE),
        foreign_programs.tcx(end, foreign_programs.TC_NEXT, foreign_programs.AFTER),
    ):
        foreign_programs.add_filters(end, 7, foreign_programs.TC_NEXT)
        foreign_programs.add_filters(end, 60000, foreign_programs.TC_NEXT)
        beside = oracle.attached(end)
        assert ours.programs < beside.programs
        assert ours.filters < beside.filters
        station.agrees()
        assert oracle.attached(end) == beside
        for priority in (7, 60000):
            foreign_programs.remove_filters(end, priority)
    if station.via == "tcx":
        end.ns.run("tc", "qdisc", "del", "dev", end.name, "clsact")
    assert oracle.attached(end) == ours
    station.agrees()


def test_one_that_comes_before_us_and_keeps_the_packets(station: Station) -> None:
    """It ends the chain, so nettop sees nothing: a note says so, and nettop does not move."""
    end = station.link.a
    with ExitStack() as stack:
        if station.via == "tcx":
            stack.enter_context(foreign_programs.tcx(end, foreign_programs.TC_OK, foreign_programs.BEFORE))
        else:
            foreign_programs.add_filters(end, 1, foreign_programs.TC_OK)
            stack.callback(foreign_programs.remove_filters, end, 1)
        beside = oracle.attached(end)
        flooding = threading.Thread(target=station.flood, args=(60_000,))
        flooding.start()
        try:
            frame = station.nettop.noted("a TC program before nettop")
        finally:
            flooding.join()
        (note,) = (n for n in frame["notes"] if "a TC program before nettop" in n)
        assert "% of the bytes " in note
        assert oracle.attached(end) == beside
    station.quiet()
    station.agrees()


def test_taken_off_by_somebody_and_attached_again(station: Station) -> None:
    end, nettop = station.link.a, station.nettop
    if station.via == "clsact":
        end.ns.run("tc", "qdisc", "del", "dev", end.name, "clsact")
    else:
        for link in bpf.held(nettop.pid).links:
            with suppress(LabError):  # raw tracepoints cannot be detached so
                foreign_programs.detach(link)
    nettop.noted(f"somebody took nettop's programs off {end.name}; attached again at ")
    station.agrees()
    assert len(oracle.attached(end).programs if station.via == "tcx" else oracle.attached(end).filters) >= 4


# Time


@ONCE
def test_a_stopped_process_counts_on_and_says_so(station: Station) -> None:
    """SIGSTOP, as by a debugger, a frozen cgroup or Ctrl-Z: one long frame, and told so, with all packets in it."""
    nettop = station.nettop
    with Watch(nettop, station.link.a).observing() as seen:
        nettop.process.send(signal.SIGSTOP)
        time.sleep(2.9)
        ping(station.link.a, station.link.b, 53)
        nettop.process.send(signal.SIGCONT)
    seen.agrees(tolerance=0)
    longest = max(seen.frames, key=lambda f: f["interval_ns"])
    assert longest["interval_ns"] >= 2.9e9
    assert longest["throughput"]["rx"]["packets"] >= 53
    note = next(n for n in longest["notes"] if "without a frame" in n)  # newest first
    seconds, _, rest = note.partition(" s without a frame until ")
    assert float(seconds) == pytest.approx(longest["interval_ns"] / 1e9, abs=0.3)
    assert rest.endswith(": nettop was stopped, or the machine busy")
    # No burst of frames makes up for those that were missed.
    assert len(seen.frames) <= 6


# The end of all that


def test_the_recording_of_all_that_is_whole_and_nothing_is_left(station: Station) -> None:
    """Ended as by a service manager."""
    nettop = station.nettop
    loader = loader_of(nettop.pid)
    with nothing_left(nettop):
        outcome = nettop.stop(signal.SIGTERM)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert gone(loader)
    played = faults.recorded(station.path)
    assert [f["time_ns"] for f in played] == [f["time_ns"] for f in outcome.frames]
    assert played == outcome.frames
    after = oracle.attached(station.link.a)
    assert without_root(after) == without_root(station.before)
    assert not [line for line in after.qdiscs - station.before.qdiscs if "clsact" in line]
    assert not [path for path in Path("/sys/fs/bpf").rglob("*") if "nettop" in path.name]


def without_root(attached: oracle.Attached) -> oracle.Attached:
    """The kernel does not name the queue of an interface again that has moved between namespaces."""
    return oracle.Attached(frozenset(), attached.filters, attached.programs)


# Namespaces


def namespaces() -> set[int]:
    """Inodes of the network namespaces that some process is in."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/ns/net"):
        with suppress(OSError):
            found.add(entry.stat().st_ino)
    return found


def test_a_namespace_that_is_deleted(lab: Lab, veth: Link) -> None:
    """Its own: it runs on, as every process in it does. The peer's: the interface has gone."""
    inode = Path(f"/run/netns/{veth.a.ns.name}").stat().st_ino
    with Nettop(lab, veth.a, *ARGS) as nettop:
        nettop.wait_frames(1, timeout=60)
        run(["ip", "netns", "del", str(veth.a.ns.name)])
        ping_back = veth.b.ns.run("ping", "-n", "-c", "7", "-i", "0.01", veth.a.v4)
        assert "7 received" in ping_back.stdout
        frames = nettop.more_frames(SETTLED)
        assert not frames[-1].get("notes")
        assert nettop.frames[-1]["flows_total"] >= 1
        run(["ip", "netns", "del", str(veth.b.ns.name)])
        nettop.noted(f"{veth.a.name} is gone")
        assert inode in namespaces()
        with nothing_left(nettop):
            outcome = nettop.stop(signal.SIGTERM)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert inode not in namespaces()


# Two of us, and a loader that is killed


def test_what_a_killed_loader_leaves_is_taken_away_by_the_next(lab: Lab, veth: Link) -> None:
    """Three by clsact on one interface. The first one's loader is killed; the second goes on all the while."""
    before = oracle.attached(veth.a)
    clsact = {"NETTOP_VIA": "clsact"}
    with Nettop(lab, veth.a, *ARGS, env=clsact) as first, Nettop(lab, veth.a, *ARGS, env=clsact) as second:
        for nettop in (first, second):
            nettop.wait_frames(1, timeout=60)
        os.kill(loader_of(first.pid), signal.SIGKILL)
        assert first.process.wait(timeout=60) == 1
        message, hint = first.process.stderr.splitlines()
        assert message == (
            f"nettop: the loader has ended by signal 9; its filters are still on {veth.a.name}"
        )
        assert hint.startswith("hint: start nettop on it again: that takes them away")
        assert len(ours(veth)) == 8
        counts_pings(second, veth.a, veth.b)
        with watching(lab, veth.a, env=clsact) as watch:
            third = watch.nettop
            assert third.frames[0]["notes"] == [
                f"took 4 filters away that a killed nettop had left on {veth.a.name}"
            ]
            assert len(ours(veth)) == 8
            for nettop in (second, third):
                counts_pings(nettop, veth.a, veth.b)
        assert len(ours(veth)) == 4
        with nothing_left(second):
            second.stop()
    assert oracle.attached(veth.a) == before


def ours(link: Link) -> list[str]:
    """The names of nettop's filters on the interface."""
    names = [entry.get("options", {}).get("bpf_name", "") for entry in oracle.filters(link.a)]
    return [name for name in names if name.startswith("nettop:")]


# No memory, no room


def frames_of(text: str) -> list[Frame]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_full_disk_ends_the_recording_and_nothing_else(lab: Lab, veth: Link) -> None:
    with faults.small_disk(8) as disk:
        path = disk / "recording.ndjson"
        args = ("-b", "--format", "ndjson", "-n", "12", "-d", "0.1", "-p", PROBES, "--record", str(path))
        outcome = run_nettop(lab, veth.a, *args)
        played = faults.recorded(path)
    assert len(outcome.frames) == 12
    assert 0 < len(played) < 12
    assert played == outcome.frames[: len(played)]
    assert outcome.code == 1
    message, hint = outcome.stderr.splitlines()
    assert message == f"nettop: {path}: No space left on device; writing has stopped"
    assert hint.startswith("hint: what was written before is whole")


# Terminals and pipes


@pytest.mark.parametrize("redirection", ["</dev/null", "<&- 2>&-", ">&-"])
def test_without_one_of_the_standard_streams(lab: Lab, veth: Link, redirection: str) -> None:
    lab.check(veth.a.ns, veth.a.name)
    words = command(veth.a.name, "-b", "--format", "ndjson", "-n", "1", "-d", "0.1", "-p", PROBES)
    argv = ["sh", "-c", f'exec "$@" {redirection}', "sh", *words]
    before = oracle.attached(veth.a)
    result = run(veth.a.ns.argv(argv), check=False, cwd=REPOSITORY)
    if redirection == ">&-":
        assert result.returncode == 1
        assert result.stderr.startswith("nettop: standard output: Bad file descriptor\nhint: ")
    else:
        assert (result.returncode, result.stderr) == (0, "")
        assert len(frames_of(result.stdout)) == 1
    assert oracle.attached(veth.a) == before


def test_a_reader_that_goes_leaves_nothing_attached(lab: Lab, veth: Link) -> None:
    lab.check(veth.a.ns, veth.a.name)
    before = oracle.attached(veth.a)
    with (
        faults.folder() as folder,
        subprocess.Popen(
            veth.a.ns.argv(
                command(veth.a.name, "-b", "--format", "ndjson", *ARGS, "--record", str(folder / "x.gz"))
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
        ) as process,
    ):
        assert process.stdout
        assert process.stderr
        assert json.loads(process.stdout.readline())["schema"] == "nettop/1"
        held, pids = bpf.held(process.pid), bpf.family(process.pid)
        assert held.programs
        process.stdout.close()
        assert process.wait(10) == 0
        assert process.stderr.read() == b""
        assert eventually(lambda: all(map(gone, pids)))
        assert not bpf.remaining(held)
        assert len(faults.recorded(folder / "x.gz")) >= 1
    assert oracle.attached(veth.a) == before


def test_the_screen_in_a_bad_terminal(lab: Lab, veth: Link) -> None:
    """1x1 and back, an interface that is renamed and goes, a stop; in the end the terminal closes while it records."""
    before = oracle.attached(veth.a)
    with faults.folder() as folder, Terminal(lab, veth.a, *ARGS, "--record", str(folder / "x.gz")) as screen:
        screen.read_until("10.77.", poke=lambda: ping(veth.a, veth.b, 3))
        held, pids = bpf.held(screen.pid), bpf.family(screen.pid)
        screen.resize(1, 1)
        time.sleep(0.6)
        assert screen.running()
        screen.resize(220, 50)  # room for what is said, whole
        with faults.renamed(veth.a, "renamed0"):
            screen.read_until(f"{veth.a.name} is called")  # the rest may have no room
        time.sleep(
            1.5
        )  # that it has its name again is painted over what differs: no text that can be waited for
        screen.signal(signal.SIGSTOP)
        time.sleep(2.8)
        screen.signal(signal.SIGCONT)
        screen.read_until(" s without a frame until ")
        lab.delete_interface(veth.a)
        screen.read_until(f"{veth.a.name} is gone")
        screen.hang_up()
        assert screen.wait() == 0
        assert eventually(lambda: all(map(gone, pids)))
        assert not bpf.remaining(held)
        assert len(faults.recorded(folder / "x.gz")) >= 5
    lab.recreate(veth)
    assert oracle.attached(veth.a) == before


def test_the_screen_without_a_keyboard(lab: Lab, veth: Link) -> None:
    """stdin at its end from the start: nobody could work it, so it says so and does not begin."""
    before = oracle.attached(veth.a)
    with Terminal(lab, veth.a, *ARGS, stdin=subprocess.DEVNULL) as screen:
        assert screen.wait() == 2
        assert "nettop: standard input is no terminal" in screen.text
        assert "hint: " in screen.text
        assert "-b" in screen.text
    assert oracle.attached(veth.a) == before

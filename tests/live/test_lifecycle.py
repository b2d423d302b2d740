"""Privileges, exit codes, and what is left behind: nothing, however it ends."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
from lab import Lab, Link, Nettop, bpf, foreign_programs, oracle, run_nettop
from lab.program import REPOSITORY, command, interpreter
from lab.shell import eventually, run
from lab.traffic import ping
from observe import DELAY, PROBES, SETTLED, Watch, counts_pings
from processes import NOBODY, SETS, SUDO, gone, loader_of, nothing_left, status
from terminal import Terminal

ARGS = ("-d", DELAY, "-p", PROBES)
MEBIBYTE = 1 << 20


# However it ends


ENDINGS = [
    ("tcx", signal.SIGTERM, 0),
    ("tcx", signal.SIGINT, 130),
    ("tcx", signal.SIGHUP, 129),
    ("tcx", signal.SIGKILL, -signal.SIGKILL),
    ("tcx", signal.SIGSEGV, -signal.SIGSEGV),
    ("clsact", signal.SIGTERM, 0),
    ("clsact", signal.SIGKILL, -signal.SIGKILL),
]


def test_signals_leave_nothing_behind(lab: Lab) -> None:
    """All of them at once, each on an interface of its own."""
    links = [lab.veth() for _ in ENDINGS]
    before = [oracle.attached(link.a) for link in links]
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(Nettop(lab, link.a, *ARGS, env={"NETTOP_VIA": via}))
            for link, (via, _, _) in zip(links, ENDINGS, strict=True)
        ]
        for nettop in running:
            nettop.wait_frames(1, timeout=60)
        for link, (via, _, _) in zip(links, ENDINGS, strict=True):
            during = oracle.attached(link.a)
            if via == "tcx":
                assert {hook for hook, _ in during.programs} == {"tcx_ingress", "tcx_egress"}
            else:
                assert len(during.filters) >= 4
                assert any("clsact" in line for line in during.qdiscs)
                assert not during.programs
        with contextlib.ExitStack() as checks:
            for nettop in running:
                checks.enter_context(nothing_left(nettop))
            for nettop, (_, number, _) in zip(running, ENDINGS, strict=True):
                nettop.process.send(number)
            for nettop, ending in zip(running, ENDINGS, strict=True):
                nettop.process.wait()
                outcome = nettop.stop()
                assert (outcome.code, outcome.stderr) == (ending[2], ""), ending
    for link, attached, ending in zip(links, before, ENDINGS, strict=True):
        assert oracle.attached(link.a) == attached, ending


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_without_its_loader_it_ends_and_says_so(lab: Lab, veth: Link, number: int) -> None:
    """At once, and not when the next frame is due."""
    before = oracle.attached(veth.a)
    with Nettop(lab, veth.a, "-d", "60", "-p", PROBES) as nettop:
        assert eventually(lambda: len(oracle.attached(veth.a).programs) == 4, timeout=60)
        with nothing_left(nettop):
            os.kill(loader_of(nettop.pid), number)
            code = nettop.process.wait(timeout=10)
        outcome = nettop.stop()
    assert code == 1
    assert f"nettop: the loader has ended by signal {int(number)}\nhint: " in outcome.stderr
    assert oracle.attached(veth.a) == before


def test_a_worker_that_crashes_takes_nothing_else_down(lab: Lab, veth: Link) -> None:
    """The flows' fold raises at its third frame: its probe says so, the other goes on, and nothing remains."""
    script = (
        "import os, sys\n"
        "os.environ['OPENBLAS_NUM_THREADS'] = '1'\n"
        "from nettop.probes.flows import fold as flows\n"
        "fold, calls = flows.FlowsFold.__call__, []\n"
        "def crash(self, reads):\n"
        "    calls.append(1)\n"
        "    return fold(self, reads) if len(calls) < 4 else 1 // 0\n"
        "flows.FlowsFold.__call__ = crash\n"
        "from nettop import cli\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    before = oracle.attached(veth.a)

    def wrap(argv: list[str]) -> list[str]:
        at = argv.index("-m")
        return [*argv[:at], "-c", script, *argv[at + 2 :]]

    with Nettop(lab, veth.a, *ARGS, wrap=wrap) as crashing:
        crashing.wait_frames(5)
        sysfs = oracle.sysfs(veth.a)
        first = len(crashing.frames)
        ping(veth.a, veth.b, 101)
        sysfs = oracle.difference(oracle.sysfs(veth.a), sysfs)
        crashing.more_frames(SETTLED)
        with nothing_left(crashing):
            outcome = crashing.stop()
    last = outcome.frames[-1]
    assert last["probes"]["flows"]["state"] == "failed"
    assert "ZeroDivisionError" in last["probes"]["flows"]["detail"]
    assert "flows" not in last
    assert last["probes"]["throughput"]["state"] == "live"
    assert sum(f["throughput"]["tx"]["packets"] for f in outcome.frames[first:]) == sysfs["tx_packets"] >= 101
    assert outcome.code == 130
    assert oracle.attached(veth.a) == before


# The interface goes and comes back


@pytest.mark.parametrize("via", ["tcx", "clsact"])
def test_an_interface_that_goes_is_waited_for(lab: Lab, veth: Link, via: str) -> None:
    name = veth.a.name
    with Nettop(lab, veth.a, *ARGS, env={"NETTOP_VIA": via}) as nettop:
        nettop.wait_frames(1)
        ping(veth.a, veth.b, 11)
        nettop.more_frames(SETTLED)
        held = bpf.held(nettop.pid)
        index = veth.a.ns.call(lambda: socket.if_nametoindex(name))

        lab.delete_interface(veth.a)
        absent = nettop.noted("is gone")
        assert absent["notes"] == [f"{name} is gone; waiting for it to come back"]
        assert absent["throughput"]["rx"]["bytes_total"] is None
        assert nettop.process.running()
        quiet = nettop.more_frames(2)
        assert all(frame["notes"] == absent["notes"] for frame in quiet)

        lab.recreate(veth)
        assert veth.a.ns.call(lambda: socket.if_nametoindex(name)) != index
        back = nettop.noted("came back")
        assert name in back["notes"][0]
        watch = Watch(nettop, veth.a)
        with watch.observing() as seen:
            ping(veth.a, veth.b, 101, args=("-e", "99"))
        seen.agrees(tolerance=0)
        assert seen.flow(local=f"{veth.a.v4}:99")["tx_packets_total"] == 101
        hooks = seen.frames[-1]["probes"]["throughput"]["hooks"]
        assert {hook["via"] for hook in hooks} == {via}
        # The maps are kept; what was attached to the old device is not.
        now = bpf.held(nettop.pid)
        assert held.maps <= now.maps
        if via == "tcx":
            assert len(now.links) == len(held.links)
        with nothing_left(nettop):
            outcome = nettop.stop()
        assert not bpf.remaining(held)
    assert (outcome.code, outcome.stderr) == (130, "")
    left = oracle.attached(veth.a)
    assert not left.programs
    assert not left.filters
    assert not any("clsact" in line for line in left.qdiscs)


def test_an_interface_that_comes_back_at_once_is_noticed(lab: Lab, veth: Link) -> None:
    """It was away between two looks: only its index tells."""
    with Nettop(lab, veth.a, *ARGS) as nettop:
        nettop.wait_frames(1)
        lab.delete_interface(veth.a)
        lab.recreate(veth)
        nettop.noted("came back")
        counts_pings(nettop, veth.a, veth.b)


# Beside others


@pytest.mark.parametrize("priority", [1, 49152])
def test_clsact_of_somebody_else_stays_as_it_is(lab: Lab, veth: Link, priority: int) -> None:
    """Their qdisc and filters, which let every packet pass: the same after us, and we count beside them."""
    foreign_programs.add_filters(veth.a, priority)
    before = oracle.attached(veth.a)
    assert len(before.filters) >= 2
    with Nettop(lab, veth.a, *ARGS, env={"NETTOP_VIA": "clsact"}) as nettop:
        nettop.wait_frames(1)
        during = oracle.attached(veth.a)
        assert before.filters <= during.filters
        assert len(during.filters) > len(before.filters)
        counts_pings(nettop, veth.a, veth.b)
        with nothing_left(nettop):
            nettop.stop(signal.SIGKILL)
    assert eventually(lambda: oracle.attached(veth.a) == before), oracle.attached(veth.a)


def test_a_filter_that_we_cannot_precede_stays_too(lab: Lab, veth: Link) -> None:
    """u32 at the very first priority: what it lets pass we do not see, but nothing of it is touched."""
    veth.a.ns.run("tc", "qdisc", "add", "dev", veth.a.name, "clsact")
    veth.a.ns.run(
        *("tc", "filter", "add", "dev", veth.a.name, "ingress", "prio", "1", "protocol", "all"),
        *("u32", "match", "u32", "0", "0", "classid", "1:1"),
    )
    before = oracle.attached(veth.a)
    with Nettop(lab, veth.a, *ARGS, env={"NETTOP_VIA": "clsact"}) as nettop:
        nettop.wait_frames(1)
        assert before.filters < oracle.attached(veth.a).filters
        with nothing_left(nettop):
            nettop.stop(signal.SIGTERM)
    assert eventually(lambda: oracle.attached(veth.a) == before), oracle.attached(veth.a)


def test_tcx_programs_of_somebody_else_do_not_hide_packets(lab: Lab, veth: Link) -> None:
    """TCX ends at the first program that lets a packet pass: ours must come before."""
    with foreign_programs.tcx(veth.a):
        before = oracle.attached(veth.a)
        assert len(before.programs) == 2
        with Nettop(lab, veth.a, *ARGS) as nettop:
            nettop.wait_frames(1)
            seen = counts_pings(nettop, veth.a, veth.b, 101)
            assert seen.total("tx", "packets") == seen.total("rx", "packets") == 101
        assert oracle.attached(veth.a) == before


def test_two_of_us_on_one_interface(lab: Lab, veth: Link) -> None:
    """One by TCX, one by clsact: both count everything, and the one that ends first leaves the other alone."""
    with (
        Nettop(lab, veth.a, *ARGS) as first,
        Nettop(lab, veth.a, *ARGS, env={"NETTOP_VIA": "clsact"}) as second,
    ):
        for nettop in (first, second):
            nettop.wait_frames(1)
        with Watch(first, veth.a).observing() as one, Watch(second, veth.a).observing() as two:
            ping(veth.a, veth.b, 101)
        one.agrees(tolerance=0)
        two.agrees(tolerance=0)
        first.stop()
        with Watch(second, veth.a).observing() as two:
            ping(veth.a, veth.b, 101)
        two.agrees(tolerance=0)


# Privileges and memory


def test_the_screen_has_no_privileges_and_the_loader_no_business(lab: Lab, veth: Link) -> None:
    with Nettop(lab, veth.a, *ARGS, env=SUDO) as nettop:
        nettop.wait_frames(4)
        screen, loader = status(nettop.pid), status(loader_of(nettop.pid))
        threads = [status(int(task.name)) for task in Path(f"/proc/{nettop.pid}/task").iterdir()]
        maps = Path(f"/proc/{loader_of(nettop.pid)}/maps").read_text()
        resident = nettop.frames[-1]["health"]["rss_bytes"]
    groups = set(os.getgrouplist(NOBODY.pw_name, NOBODY.pw_gid))
    for found in (screen, *threads):
        assert found["Uid"].split() == [str(NOBODY.pw_uid)] * 4
        assert found["Gid"].split() == [str(NOBODY.pw_gid)] * 4
        assert set(map(int, found["Groups"].split())) == groups
        for name in SETS:
            assert int(found[name], 16) == 0, name
        assert found["NoNewPrivs"] == "1"
    assert loader["Uid"].split() == ["0"] * 4
    assert int(loader["CapEff"], 16) != 0
    assert loader["NoNewPrivs"] == "1"
    # What parses and computes is not in the privileged process: no numpy, no clang, no screen.
    for library in ("numpy", "libbcc", "libclang", "libLLVM"):
        assert library not in maps, library
    sizes = {
        name: int(found["VmRSS"].removesuffix(" kB")) * 1024
        for name, found in (("screen", screen), ("loader", loader))
    }
    alone = single_process()
    print(
        ", ".join(
            f"{name} {size / MEBIBYTE:.0f} MiB" for name, size in {**sizes, "in one process": alone}.items()
        )
    )
    assert resident == pytest.approx(sum(sizes.values()), rel=0.2)
    assert sizes["loader"] < 60 * MEBIBYTE
    assert sizes["screen"] < 120 * MEBIBYTE
    # Compiled in one process, as tools with BCC do it, clang's memory would stay.
    assert sum(sizes.values()) < alone


def single_process() -> int:
    """Resident bytes of a process that has what ours have, and BCC and its compiler as well."""
    script = (
        "import os\n"
        "from pathlib import Path\n"
        "from nettop import cli, batch\n"
        "from nettop.collect import live\n"
        "from nettop.core import paths\n"
        "from nettop.probes.base import all_probes\n"
        "from nettop.loader import compile, headers\n"
        "all_probes()\n"
        "tree = headers.header_tree(Path('/var/cache/nettop'))\n"
        "os.environ['BCC_KERNEL_SOURCE'] = str(tree)\n"
        "for name in ('throughput', 'flows'):\n"
        "    flags = ['-I' + str(paths.bpf_include()), '-Wno-macro-redefined']\n"
        "    compile._compile(paths.bpf_source(name), flags, '')\n"
        "print(Path('/proc/self/status').read_text())\n"
    )
    output = run([interpreter(), "-c", script], cwd=REPOSITORY, timeout=60).stdout
    found = re.search(r"^VmRSS:\s+(\d+) kB", output, re.M)
    assert found
    return int(found[1]) * 1024


def test_where_root_calls_the_screen_is_nobody(lab: Lab, veth: Link) -> None:
    """Root without sudo: nothing that parses or draws is root, and what opens root's files can do nothing else."""
    with Nettop(lab, veth.a, *ARGS, env=dict.fromkeys(SUDO, "")) as nettop:
        nettop.wait_frames(3)
        threads = [status(int(task.name)) for task in Path(f"/proc/{nettop.pid}/task").iterdir()]
        others = [status(pid) for pid in bpf.family(nettop.pid)[1:]]
        files = [found for found in others if found["Name"] == "nettop-files"]
    assert len(threads) > 1
    for found in threads:
        assert found["Uid"].split() == [str(NOBODY.pw_uid)] * 4
        assert found["Gid"].split() == [str(NOBODY.pw_gid)] * 4
        assert set(map(int, found["Groups"].split())) <= {NOBODY.pw_gid}
    for found in (*threads, *files):
        for name in SETS:
            assert int(found[name], 16) == 0, name
        assert found["NoNewPrivs"] == "1"
    assert [(found["Uid"].split(), found["Threads"]) for found in files] == [(["0"] * 4, "1")]
    assert eventually(lambda: all(gone(int(found["Pid"])) for found in others))


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A directory that root alone can enter."""
    path = tmp_path / "closed"
    path.mkdir(mode=0o700)
    return path


def test_the_screen_s_files_are_root_s_where_root_calls(lab: Lab, veth: Link, closed: Path) -> None:
    """In a directory that is closed to the screen itself: settings, a recording by name, and what keys write."""
    (closed / "nettop.toml").write_text('[keys]\nquit = "x"\n')
    words = ("-d", "0.2", "-p", PROBES, "-c", "./nettop.toml", "--record", "own.ndjson.gz", "--log", "log")
    env = {**dict.fromkeys(SUDO, ""), "PYTHONPATH": str(REPOSITORY)}
    with Terminal(lab, veth.a, *words, env=env, cwd=closed) as screen:
        screen.read_until("10.77.", poke=lambda: ping(veth.a, veth.b, 3))
        for _ in range(2):  # within a second: the second gets a number
            screen.type(b"w")
            screen.read_until("wrote nettop-")
        screen.type(b"\x13")
        screen.read_until(".svg")
        screen.type(b"R")  # ends the recording, and begins one with a name of nettop's own
        screen.read_until("recorded")
        screen.type(b"R")
        screen.read_until("recording to nettop-")
        time.sleep(0.5)
        screen.type(b"x")
        assert screen.wait() == 0
    made = {path.name: path.stat() for path in closed.iterdir() if path.name != "nettop.toml"}
    kinds = sorted(name.partition(".")[2] for name in made if name.startswith("nettop-"))
    assert kinds == ["ndjson.gz", "snapshot.json.gz", "snapshot.json.gz", "svg"], made
    assert {"own.ndjson.gz", "log"} < set(made)
    assert {(found.st_uid, found.st_mode & 0o777) for found in made.values()} == {(0, 0o600)}
    for name in (name for name in made if name.endswith(".gz")):
        assert run(command("--replay", name, "-b", "-n", "1"), cwd=closed, env=env).stdout, name


def test_root_s_files_are_opened_anew(lab: Lab, veth: Link, closed: Path) -> None:
    """SIGHUP, as from logrotate, where the screen could not even see whether there is such a file."""
    words = ("-p", PROBES, "-d", "0.1", "-b", "--format", "ndjson", "-o", str(closed / "out"))
    with Nettop(lab, veth.a, *words, env=dict.fromkeys(SUDO, ""), defaults=()) as nettop:
        assert eventually(lambda: (closed / "out").exists() and (closed / "out").stat().st_size)
        (closed / "out").rename(closed / "old")
        nettop.process.send(signal.SIGHUP)
        assert eventually(lambda: (closed / "out").exists() and (closed / "out").stat().st_size)
        (closed / "out").rename(closed / "older")
        (closed / "out").symlink_to("/etc/motd")  # somebody else's doing
        nettop.process.send(signal.SIGHUP)
        assert eventually(lambda: "going on in the file that was open" in nettop.process.stderr)
        outcome = nettop.stop(signal.SIGTERM)
    assert outcome.code == 0
    for name in ("old", "older"):
        assert all(json.loads(line)["interface"] == veth.a.name for line in (closed / name).open()), name


def test_what_opens_root_s_files_goes_with_the_screen(lab: Lab, veth: Link) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        with Nettop(lab, veth.a, *ARGS, env=dict.fromkeys(SUDO, "")) as nettop:
            nettop.wait_frames(1)
            (pid,) = (pid for pid in bpf.family(nettop.pid) if status(pid)["Name"] == "nettop-files")
            nettop.process.send(number)
            assert eventually(lambda pid=pid: gone(pid)), number


# Exit codes


def assert_two_lines(code: int, expected: int, stdout: str, stderr: str, *words: str) -> None:
    """This exit code, nothing on stdout, and on stderr what is wrong and what to do."""
    assert (code, stdout) == (expected, ""), stderr
    lines = stderr.splitlines()
    assert len(lines) == 2, stderr
    assert lines[0].startswith("nettop: ")
    assert lines[1].startswith("hint: ")
    for word in words:
        assert word in stderr, stderr


def test_without_root_it_is_3(veth: Link) -> None:
    uid, gid = str(NOBODY.pw_uid), str(NOBODY.pw_gid)
    argv = [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={gid}",
        "--clear-groups",
        *command(veth.a.name, "-b", "-n", "1"),
    ]
    result = run(veth.a.ns.argv(argv), check=False, cwd=REPOSITORY)
    assert_two_lines(result.returncode, 3, result.stdout, result.stderr, "root", f"sudo nettop {veth.a.name}")


@pytest.mark.parametrize("batch", [("-b",), ("-b", "--format", "ndjson"), ("--check",)])
def test_an_interface_that_is_not_there_is_5(lab: Lab, veth: Link, batch: tuple[str, ...]) -> None:
    outcome = run_nettop(lab, veth.a.ns, *batch, interface="nosuch0")
    assert_two_lines(outcome.code, 5, outcome.stdout, outcome.stderr, "nosuch0", veth.a.name, "lo")


def test_no_terminal_and_no_batch_is_2(lab: Lab, veth: Link) -> None:
    outcome = run_nettop(lab, veth.a, "-p", PROBES)
    assert_two_lines(outcome.code, 2, outcome.stdout, outcome.stderr, "terminal", "-b")


@pytest.mark.parametrize(
    ("package", "words"),
    [
        (None, ("BCC", "python3-bpfcc")),
        ("unrelated", ("not the BPF Compiler Collection", "pip uninstall bcc")),
    ],
    ids=["missing", "the one of PyPI"],
)
def test_without_the_real_bcc_it_is_4(
    veth: Link, tmp_path: Path, package: str | None, words: tuple[str, ...]
) -> None:
    """A virtual environment that has everything but the distribution's bcc, and sources that nobody has compiled."""
    copy = tmp_path / "nettop"
    for name in ("nettop", "bpf_src"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    header = copy / "bpf_src" / "include" / "nettop.h"
    header.write_text(header.read_text() + f"/* {tmp_path} */\n")
    venv = tmp_path / "venv"
    run([interpreter(), "-m", "venv", "--without-pip", str(venv)], timeout=60)
    (site,) = venv.glob("lib/python*/site-packages")
    packages = run([interpreter(), "-c", "import numpy; print(numpy.__path__[0])"]).stdout.strip()
    (site / "foreign_programs.pth").write_text(str(Path(packages).parent) + "\n")
    if package:
        (site / "bcc").mkdir()
        (site / "bcc" / "__init__.py").write_text("class Lattice: pass\n")
    argv = [str(venv / "bin" / "python"), "-m", "nettop", veth.a.name, "-b", "-n", "1", "-p", PROBES]
    before = oracle.attached(veth.a)
    result = run(veth.a.ns.argv(argv), check=False, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)})
    assert_two_lines(result.returncode, 4, result.stdout, result.stderr, *words)
    assert oracle.attached(veth.a) == before


# The screen itself, in a pseudo-terminal


@pytest.mark.parametrize("ending", ["q", "ctrl+c", "hangup"])
def test_the_screen_ends_and_leaves_nothing(lab: Lab, veth: Link, ending: str) -> None:
    before = oracle.attached(veth.a)
    with Terminal(lab, veth.a, *ARGS) as screen:
        screen.read_until("10.77.", poke=lambda: ping(veth.a, veth.b, 3))
        held = bpf.held(screen.pid)
        assert held.programs
        assert held.links
        pids = bpf.family(screen.pid)
        assert oracle.attached(veth.a) != before
        if ending == "hangup":
            screen.hang_up()
        else:
            screen.type(b"q" if ending == "q" else b"\x03")
        code = screen.wait()
    if ending != "hangup":
        assert code == 0
        # The terminal is as it was: the alternate screen is left again.
        assert screen.sent.rindex(b"\x1b[?1049l") > screen.sent.index(b"\x1b[?1049h")
    assert eventually(lambda: all(map(gone, pids)))
    assert not bpf.remaining(held)
    assert oracle.attached(veth.a) == before

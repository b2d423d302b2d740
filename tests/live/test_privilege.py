"""Who holds which capability, by /proc/PID/status; what happens without one; and a loader whose screen is hostile."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from driven import Driven
from lab import Lab, Link, Nettop, bpf, oracle
from lab.program import REPOSITORY, command, interpreter
from lab.shell import Process, run
from lab.traffic import ping
from processes import NOBODY, SETS, status

from nettop.privilege import BPF, DAC_READ_SEARCH, NET_ADMIN, PERFMON, SYS_ADMIN, mask

LOADING = mask(NET_ADMIN, BPF, PERFMON)
CASES = int(os.environ.get("NETTOP_FUZZ_LOADERS", 40))


def capabilities(pid: int) -> dict[str, int]:
    """All five sets, without CAP_DAC_READ_SEARCH: that is kept where the project lies in a closed home directory."""
    found = status(pid)
    return {name: int(found[name], 16) & ~mask(DAC_READ_SEARCH) for name in SETS}


def only(held: int, passed_on: int = 0) -> dict[str, int]:
    """What `capabilities` is where these and no others are held."""
    return {"CapInh": passed_on, "CapPrm": held, "CapEff": held, "CapBnd": 0, "CapAmb": passed_on}


def parts(pid: int) -> dict[str, int]:
    """The processes of a nettop by the part that they play."""
    found = {"screen": pid}
    for child in bpf.family(pid)[1:]:
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        if b"nettop.loader.compile" in words:
            found["compiler"] = child
        elif b"nettop.loader" in words:
            found["loader" if int(status(child)["PPid"]) == pid else "switch"] = child
    return found


@contextmanager
def watched_compilers(pid: int) -> Iterator[list[tuple[dict[str, int], dict[str, str]]]]:
    """The capabilities and status of every compiler that this nettop starts meanwhile."""
    found: list[tuple[dict[str, int], dict[str, str]]] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for child in bpf.family(pid)[1:]:
                try:
                    if b"nettop.loader.compile" in Path(f"/proc/{child}/cmdline").read_bytes():
                        found.append((capabilities(child), status(child)))
                except (OSError, KeyError):
                    continue  # gone since
            time.sleep(0.01)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def test_each_process_has_what_it_needs_and_no_more(lab: Lab, veth: Link) -> None:
    with Nettop(lab, veth.a, "-d", "0.3") as nettop:
        nettop.wait_frames(1, timeout=60)
        pids = parts(nettop.pid)
        held = {name: capabilities(pid) for name, pid in pids.items()}
        states = {name: status(pid) for name, pid in pids.items()}
        cores = {name: Path(f"/proc/{pid}/limits").read_text() for name, pid in pids.items()}
        switch = status(pids["switch"])
    assert held == {
        "screen": only(0),
        # BCC makes a program's maps while it compiles: the compiler inherits CAP_BPF.
        "loader": only(LOADING, mask(BPF)),
        # What the programs cost takes CAP_SYS_ADMIN to ask, and nothing else does.
        "switch": only(mask(SYS_ADMIN)),
    }
    assert all(state["NoNewPrivs"] == "1" for state in states.values())
    for name in ("loader", "switch"):
        assert re.search(r"^Max core file size\s+0\s+0\s", cores[name], re.M), name
    assert int(switch["Threads"]) == 1


def test_what_is_asked_later_needs_no_more(lab: Lab, veth: Link) -> None:
    """Costs, which need the switch; another filter, which needs a compiler; the interface gone and back."""
    with Driven(veth.a, "icmp", delay=0.3, probes="throughput,flows") as nettop:
        nettop.wait(lambda: any(frame["health"]["kernel_ns"] for frame in nettop.frames))
        loader = parts(nettop.process.pid)["loader"]
        with watched_compilers(nettop.process.pid) as compilers:
            # Never compiled before, so that a compiler is started.
            nettop.set_filter(
                f"icmp and not port {os.getpid() % 60000 + 1} and less {time.time_ns() % 50000 + 10000}"
            )
        lab.delete_interface(veth.a)
        nettop.wait_note("is gone")
        lab.recreate(veth)
        nettop.wait_note("came back")
        ping(veth.a, veth.b, 11)
        nettop.wait(lambda: bool(nettop.frames[-1]["throughput"]["tx"]["packets_total"]))
        assert capabilities(loader) == only(LOADING, mask(BPF))
    assert compilers
    for held, state in compilers:
        # before and after its exec, and once it has compiled
        assert held["CapPrm"] in (LOADING, mask(BPF), 0)
        assert held["CapAmb"] | held["CapInh"] in (mask(BPF), 0)
        assert held["CapBnd"] == 0
        assert state["NoNewPrivs"] == "1"
    assert any(held == only(mask(BPF), mask(BPF)) for held, _ in compilers)


# --- a few capabilities instead of root ---------------------------------------------------------------------


def setpriv(names: set[str]) -> list[str]:
    """What lets a command run as a user with these capabilities and no others."""
    words = ",".join(f"+{name}" for name in sorted(names)) or "-all"
    argv = ["setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups"]
    return [*argv, "--inh-caps", words, "--ambient-caps", words]


def as_user(veth: Link, names: set[str], *args: str) -> list[str]:
    """nettop as such a user, in the namespace of the link's end a."""
    return veth.a.ns.argv([*setpriv(names), *command(veth.a.name, *args)])


ALL = {"net_admin", "bpf", "perfmon"}


@pytest.mark.parametrize("absent", sorted(ALL))
def test_a_capability_that_is_missing_is_named(lab: Lab, veth: Link, absent: str) -> None:
    before = oracle.attached(veth.a)
    result = run(as_user(veth, ALL - {absent}, "-b", "-n", "1"), check=False, cwd=REPOSITORY)
    lines = result.stderr.splitlines()
    assert (result.returncode, result.stdout, len(lines)) == (3, "", 2), result.stderr
    assert lines[0] == f"nettop: loading programs into the kernel needs CAP_{absent.upper()} as well"
    assert lines[1].startswith(f"hint: sudo nettop {veth.a.name}, or add CAP_{absent.upper()} ")
    assert oracle.attached(veth.a) == before


def test_three_capabilities_are_as_good_as_root(lab: Lab, veth: Link) -> None:
    """All probes are live and count; only the programs' own cost is not known, and that is said."""
    others = set(Path("/tmp").glob("nettop-cache-*"))  # of runs that were killed, or are beside us

    def wrap(argv: list[str]) -> list[str]:
        at = argv.index(interpreter())
        return [*argv[:at], *setpriv(ALL), *argv[at:]]

    with Nettop(lab, veth.a, "-d", "0.3", wrap=wrap) as nettop:
        with watched_compilers(nettop.pid) as compilers:
            nettop.wait_frames(1, timeout=60)
        pids = parts(nettop.pid)
        held = {name: capabilities(pid) for name, pid in pids.items()}
        sets = [status(pid) for pid in pids.values()]
        environment = Path(f"/proc/{pids['loader']}/environ").stat().st_uid
        ping(veth.a, veth.b, 53)
        nettop.more_frames(2)
        made = bpf.held(nettop.pid)
        outcome = nettop.stop()
    assert outcome.code == 130
    frame = outcome.frames[-1]
    assert frame["throughput"]["tx"]["packets_total"] >= 53
    assert {name: probe["state"] for name, probe in frame["probes"].items()} == dict.fromkeys(
        ("throughput", "flows", "stages", "irq"), "live"
    )
    assert frame["health"]["kernel_ns"] is None
    assert (
        outcome.stderr == "nettop: no run statistics: what the programs cost is only told to CAP_SYS_ADMIN\n"
    )
    assert set(pids) == {"screen", "loader"}  # there is nothing that a switch could do
    for name, allowed in (("screen", 0), ("loader", LOADING)):
        # The bounding set cannot be cut without CAP_SETPCAP; no_new_privs makes it worthless.
        assert {**held[name], "CapBnd": 0} == only(allowed, allowed & mask(BPF)), name
    assert all(found["NoNewPrivs"] == "1" for found in sets)
    assert all(found["Uid"].split() == [str(NOBODY.pw_uid)] * 4 for found in sets)
    assert environment == 0  # not dumpable: the user's other processes may not trace it
    assert compilers  # its cache is its own, and new
    assert any({**held, "CapBnd": 0} == only(mask(BPF), mask(BPF)) for held, _ in compilers)
    assert not bpf.remaining(made)
    assert set(Path("/tmp").glob("nettop-cache-*")) <= others


def test_a_service_s_cache_is_used(lab: Lab, veth: Link, walkable: Path) -> None:
    """CACHE_DIRECTORY, as systemd gives it, where nobody else can write to it; another one is left alone."""
    lab.check(veth.a.ns, veth.a.name)
    found = {}
    for name, mode in (("nettop-service", 0o700), ("open", 0o777)):
        cache = walkable / name
        cache.mkdir()
        cache.chmod(mode)
        os.chown(cache, NOBODY.pw_uid, NOBODY.pw_gid)
        argv = as_user(veth, ALL, "--check", "-p", "throughput")
        result = run(argv, env={**os.environ, "CACHE_DIRECTORY": str(cache)}, cwd=REPOSITORY, timeout=60)
        assert "tc_ingress" in result.stdout
        found[name] = len(list(cache.glob("throughput-*.json")))
    assert found == {"nettop-service": 1, "open": 0}


# --- a project that is closed to others ---------------------------------------------------------------------

OWNER = 61_007  # a uid that no user has


@pytest.mark.parametrize(
    ("owner", "behind", "becomes"),
    [
        pytest.param(OWNER, OWNER, OWNER, id="home-sudo"),
        pytest.param(OWNER, 0, OWNER, id="home-su"),
        pytest.param(OWNER, NOBODY.pw_uid, OWNER, id="home-somebody-else"),
        pytest.param(0, NOBODY.pw_uid, NOBODY.pw_uid, id="root-sudo-i"),
        pytest.param(0, 0, NOBODY.pw_uid, id="root"),
    ],
)
def test_from_a_closed_directory_it_runs_as_one_who_can_read_it(
    lab: Lab, veth: Link, walkable: Path, owner: int, behind: int, becomes: int
) -> None:
    """A home directory or /root, by sudo or without: what is imported after privileges are gone must be found."""
    closed = walkable / "home"
    for name in ("nettop", "bpf_src"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, closed / "nettop" / name, ignore=ignored)
    for path in (closed, *closed.rglob("*")):
        os.chown(path, owner, owner)
    closed.chmod(0o700)
    env = {name: value for name, value in os.environ.items() if not name.startswith("SUDO_")}
    env |= {"PYTHONPATH": str(closed / "nettop"), "HOME": str(closed)}
    if behind:
        env |= {"SUDO_UID": str(behind), "SUDO_GID": str(behind)}
    lab.check(veth.a.ns, veth.a.name)
    for words in (("--demo",), (veth.a.name, "-d", "0.3", "-p", "throughput")):
        argv = [interpreter(), "-m", "nettop", *words, "-b", "--format", "ndjson"]
        process = Process(veth.a.ns.argv(argv), env=env, cwd=Path("/"))
        try:
            process.wait_lines(1, timeout=30)
            found = status(process.pid)
        finally:
            process.stop(2)
        assert found["Uid"].split() == [str(becomes)] * 4, process.stderr
        assert found["Gid"].split() == [str(becomes)] * 4
        # What root alone can read takes a capability to read; nobody's uid has no other way.
        held = 0 if owner else mask(DAC_READ_SEARCH)
        assert int(found["CapEff"], 16) == int(found["CapPrm"], 16) == held


# --- a hostile screen ---------------------------------------------------------------------------------------


def test_a_loader_survives_any_screen(lab: Lab, veth: Link) -> None:
    """Random, mutated, cut, oversized and misplaced messages, with descriptors and without, floods, and silence.

    Each of the loaders ends by itself, with a line on what was wrong at most; and nothing of it is left.
    """
    lab.check(veth.a.ns, "lo")
    script = Path(__file__).with_name("loader_fuzz.py")
    output = run(
        veth.a.ns.argv([interpreter(), str(script), str(CASES), "1"]),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        timeout=100,
    )
    *cases, last = (json.loads(line) for line in output.stdout.splitlines())
    assert len(cases) == CASES
    for case in cases:
        assert case["code"] in (0, 1), case
        assert "Traceback" not in case["stderr"], case
        said = [line for line in case["stderr"].splitlines() if line.startswith("loader: ")]
        assert len(said) == (case["code"] == 1), case
        assert case["seconds"] < 15, case
    assert {case["code"] for case in cases} == {0, 1}
    assert sum("a plan" in case["said"] for case in cases) > CASES // 5
    assert last["descriptors"] < 10  # what the loaders were sent is not held by anybody
    assert veth.a.ns.call(lambda: [bpf.query(1, hook) for hook in bpf.TCX_HOOKS.values()]) == [[], []]


def refused(argv: list[str], **options: object) -> str:
    """What nettop says on standard error; the exit code must be 3."""
    done = subprocess.run(
        [*argv, interpreter(), "-m", "nettop", "lo", "-b", "-n", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 2
    return str(done.stderr)


def test_in_a_user_namespace_its_root_is_told_that_it_may_not() -> None:
    """As in a rootless container: every capability is there, and none of them counts."""
    assert "user namespace" in refused(["unshare", "--user", "--map-root-user", "--net"])


def test_behind_a_seccomp_filter_it_is_said() -> None:
    """As in a container with the usual profile: bpf(2) is refused with EPERM."""
    numbers = {"x86_64": 321, "aarch64": 280}

    def forbid() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        code = b"".join(
            (
                struct.pack("HBBI", 0x20, 0, 0, 0),  # the system call's number
                struct.pack("HBBI", 0x15, 0, 1, numbers[os.uname().machine]),
                struct.pack("HBBI", 0x06, 0, 0, 0x00050001),  # SECCOMP_RET_ERRNO, EPERM
                struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
            )
        )
        held = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(held))
        assert libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER

    assert "seccomp" in refused([], preexec_fn=forbid)


def test_a_read_only_var_is_no_hindrance(lab: Lab, veth: Link) -> None:
    """An immutable root: what is compiled lies in memory, and everything works."""
    var = "mount -t tmpfs none /var/cache && mkdir -m 700 /var/cache/nettop && mount -o remount,ro /var/cache"
    script = f"mount -t tmpfs none /run && {var} && exec"
    words = [interpreter(), "-m", "nettop", veth.a.name, "-b", "-n", "1", "-p", "throughput"]
    done = run(
        veth.a.ns.argv(["unshare", "--mount", "sh", "-c", f'{script} "$@"', "sh", *words]),
        timeout=90,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout

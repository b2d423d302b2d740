"""Names and address blocks of one run: concurrent runs never collide, and a dead one can be swept.

A namespace or interface of the lab is called `nt<pid>-<counter><role>`: the pid says who has to clean it up.
Pids are reused, so each run also leaves its start time in `/run/nettop-lab/run-<pid>`.
"""

import atexit
import itertools
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from lab.errors import LabError

STATE = Path("/run/nettop-lab")
NAME = re.compile(r"nt(?P<pid>\d+)-\d+[a-z]*")
BLOCKS = range(1, 255)

_counter = itertools.count(1)


def register_run() -> None:
    """Leave this process's start time behind, for the sweeper of a later run."""
    STATE.mkdir(mode=0o755, exist_ok=True)
    record = STATE / f"run-{os.getpid()}"
    if not record.exists() or record.read_text() != _start_time(os.getpid()):
        record.write_text(_start_time(os.getpid()))
        atexit.register(record.unlink, missing_ok=True)


def fresh(role: str) -> str:
    """A name that nothing on this machine has. At most 15 characters, the limit of an interface name."""
    name = f"nt{os.getpid()}-{next(_counter)}{role}"
    if len(name) > 15 or not NAME.fullmatch(name):
        raise LabError(f"{name!r} is no interface name: the role must be one or two small letters")
    return name


def claim_block() -> int:
    """Claim one number x, machine-wide, for 10.77.x.0/24 and fd77:0:0:x::/64.

    Give it back with `release_block`.
    """
    for number in BLOCKS:
        try:
            fd = os.open(STATE / f"net-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            continue
        with os.fdopen(fd, "w") as file:
            file.write(str(os.getpid()))
        return number
    raise LabError(f"all {len(BLOCKS)} address blocks of 10.77.0.0/16 are taken: see {STATE}")


def release_block(number: int) -> None:
    (STATE / f"net-{number}").unlink(missing_ok=True)


def sweep() -> list[str]:
    """Remove what dead runs left behind: their processes, namespaces, interfaces and claims.

    Returns what it removed. Only names of our own pattern, whose owning process is dead, are touched.
    """
    removed: list[str] = []
    for name in _namespaces():
        if _is_stale(name):
            _kill_inside(name)
            _quiet("ip", "netns", "del", name)
            removed.append(name)
    for name in _root_interfaces():
        if _is_stale(name):
            _quiet("ip", "link", "del", name)
            removed.append(name)
    if STATE.is_dir():
        for claim in STATE.iterdir():
            removed += _sweep_claim(claim)
    return removed


def is_alive(pid: int) -> bool:
    """Whether the run of this pid is still there: the same process, not a later one with the same number."""
    try:
        started = _start_time(pid)
    except OSError:
        return False
    record = STATE / f"run-{pid}"
    try:
        return record.read_text() == started
    except FileNotFoundError:
        return True  # Between its first name and its record, or not one of ours: leave it alone.


def _is_stale(name: str) -> bool:
    match = NAME.fullmatch(name)
    return match is not None and not is_alive(int(match["pid"]))


def _sweep_claim(claim: Path) -> Iterator[str]:
    kind, _, number = claim.name.partition("-")
    try:
        pid = int(number) if kind == "run" else int(claim.read_text())
    except (OSError, ValueError):
        return  # Another run is writing it, or has just taken it away.
    if kind in ("run", "net") and not is_alive(pid):
        claim.unlink(missing_ok=True)
        yield claim.name


def _start_time(pid: int) -> str:
    """Clock ticks after boot at which this process started: field 22 of proc_pid_stat(5)."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[19]


def _namespaces() -> list[str]:
    directory = Path("/run/netns")
    return sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []


def _root_interfaces() -> list[str]:
    output = subprocess.run(["ip", "-j", "link"], capture_output=True, timeout=10, check=True).stdout
    return [str(link["ifname"]) for link in json.loads(output)]


def _kill_inside(namespace: str) -> None:
    """Kill the processes of a stale namespace: its run is dead, so they are orphans of ours."""
    for _ in range(20):
        result = subprocess.run(
            ["ip", "netns", "pids", namespace], capture_output=True, text=True, timeout=10
        )
        pids = [int(word) for word in result.stdout.split()]
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def _quiet(*argv: str) -> None:
    """Run a removal that a parallel sweep may have done before us."""
    subprocess.run(argv, capture_output=True, timeout=10, check=False)

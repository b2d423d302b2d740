"""The processes of a nettop, by /proc and by what of BPF they hold."""

import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import Nettop, bpf
from lab.shell import eventually

NOBODY = pwd.getpwnam("nobody")
SUDO = {
    "SUDO_UID": str(NOBODY.pw_uid),
    "SUDO_GID": str(NOBODY.pw_gid),
    "SUDO_USER": NOBODY.pw_name,
    "SUDO_COMMAND": "/usr/bin/nettop",
}
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def loader_of(pid: int) -> int:
    """The pid of the privileged process of this nettop."""
    family = [p for p in bpf.family(pid) if b"loader" in Path(f"/proc/{p}/cmdline").read_bytes()]
    # Its own child, which switches statistics, is a fork and has the same command line.
    (loader,) = (p for p in family if int(status(p)["PPid"]) not in family)
    return loader


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def gone(pid: int) -> bool:
    """Whether this process runs no more (its parent may not have noticed yet)."""
    try:
        return status(pid)["State"].startswith(("Z", "X"))
    except OSError:
        return True


@contextmanager
def nothing_left(nettop: Nettop) -> Iterator[None]:
    """Assert that all that the running nettop holds goes while the block lasts, or soon after."""
    held = bpf.held(nettop.pid)
    assert held.programs
    assert held.maps
    pids = bpf.family(nettop.pid)
    assert len(pids) >= 2
    yield
    assert eventually(lambda: all(map(gone, pids))), [pid for pid in pids if not gone(pid)]
    assert not bpf.remaining(held)

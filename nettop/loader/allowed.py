"""Whether this process may use bpf(2) at all: capabilities alone do not say it.

In a user namespace (rootless containers, `unshare -U`) a process has them all, and the kernel asks for those of the
first namespace; seccomp and security modules refuse by rules of their own.  So it is tried, and a refusal put into
words.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nettop.bpf import syscall
from nettop.core.errors import ExitCode, NettopError

_NOTHING = bytes((0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0))  # r0 = 0; exit
_EVERYBODY = (0, 0, 4294967295)  # the first user namespace's map: user_namespaces(7)
_DEMO = "--replay FILE and --demo need no privilege"


def check() -> None:
    """Load a program that does nothing.  NettopError (3) with what stands in the way, (4) where there is no bpf(2)."""
    try:
        os.close(syscall.prog_load(syscall.ProgType.SCHED_CLS, _NOTHING, "trial"))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise explained(error.errno or 0, Path("/proc/self"), Path("/sys/kernel/security")) from error
        # Whatever else it is, the probes' own programs will say it with more of its circumstances.


def explained(number: int, process: Path, security: Path) -> NettopError:
    """The refusal with this error number as the user gets it; ``process`` and ``security`` are directories."""
    if _filtered(process):
        return NettopError(
            "no privilege: a seccomp filter refuses the system call bpf",
            f"docker run --security-opt seccomp=unconfined, or a profile that allows it; {_DEMO}",
            ExitCode.PRIVILEGE,
        )
    if number == errno.ENOSYS:
        return NettopError(
            "this kernel was built without BPF (CONFIG_BPF_SYSCALL)", _DEMO, ExitCode.UNSUPPORTED
        )
    if _numbers(process / "uid_map") not in ((), _EVERYBODY):
        return NettopError(
            "no privilege: this is a user namespace (a rootless container?), whose root may not use BPF",
            f"start it as root outside of that, or in a container of the real root; {_DEMO}",
            ExitCode.PRIVILEGE,
        )
    modules = _text(security / "lsm").strip()
    return NettopError(
        f"no privilege: the kernel refuses BPF to root ({os.strerror(number)})"
        + (f"; security modules here: {modules}" if modules else ""),
        f"look for the refusal in the kernel's log or the audit log; {_DEMO}",
        ExitCode.PRIVILEGE,
    )


def _filtered(process: Path) -> bool:
    lines = dict(line.partition(":\t")[::2] for line in _text(process / "status").splitlines())
    return lines.get("Seccomp", "0").strip() == "2"


def _numbers(path: Path) -> tuple[int, ...]:
    return tuple(int(word) for word in _text(path).split() if word.isdigit())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

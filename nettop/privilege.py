"""Giving privileges up, for good: the process that draws, parses files and talks to the terminal has none."""

from __future__ import annotations

import ctypes
import os
import pwd
import struct
from collections.abc import Mapping
from pathlib import Path

from nettop.errors import NettopError

_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
# SECBIT_NOROOT and SECBIT_NO_SETUID_FIXUP, each with its lock (include/uapi/linux/securebits.h): uid 0 is a user
# like any other from then on.
_SECUREBITS = 0b1111
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63


def user_behind_sudo(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """uid and gid of whoever called sudo; None where there is nobody, or it was root."""
    try:
        uid, gid = int(environment["SUDO_UID"]), int(environment["SUDO_GID"])
    except (KeyError, ValueError):
        return None
    return (uid, gid) if uid > 0 else None


def drop(environment: Mapping[str, str]) -> None:
    """Become the user behind sudo, without one capability and without a way to get any.

    Where there is no such user the uid stays, and the capabilities go all the same.  Must be called before the first
    thread is started: capabilities belong to threads, and it is refused where there are others.  Raises NettopError
    if anything is left.
    """
    others = len(os.listdir("/proc/self/task")) - 1
    if others:
        raise NettopError(f"cannot give privileges up: {others} more threads would keep them")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_SECUREBITS, _SECUREBITS, 0, 0, 0)
    for capability in range(_LAST_CAPABILITY + 1):
        libc.prctl(
            _PR_CAPBSET_DROP, capability, 0, 0, 0
        )  # beyond the kernel's last: EINVAL, and nothing to drop
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    user = user_behind_sudo(environment)
    if user is not None:
        uid, gid = user
        try:
            os.initgroups(pwd.getpwuid(uid).pw_name, gid)
        except (KeyError, OSError):
            os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    left = [name for name in ("CapInh", "CapPrm", "CapEff", "CapAmb") if int(status[name], 16)]
    if left or status["NoNewPrivs"].strip() != "1":
        raise NettopError(
            f"cannot give privileges up: {', '.join(left) or 'NoNewPrivs'} left", "run it with sudo"
        )


def home(environment: Mapping[str, str]) -> str:
    """The home directory of the user that this process now is: sudo may have left root's in HOME."""
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return environment.get("HOME", "/")


def effective() -> int:
    """This process's effective capabilities as a bit mask."""
    with open("/proc/self/status", encoding="utf-8") as status:
        return next((int(line.split()[1], 16) for line in status if line.startswith("CapEff:")), 0)


def may_load(capabilities: int) -> bool:
    """Whether these capabilities load programs and attach them to an interface (include/uapi/linux/capability.h)."""
    net_admin, sys_admin, perfmon, bpf = (capabilities >> bit & 1 for bit in (12, 21, 38, 39))
    return bool(net_admin and (sys_admin or (perfmon and bpf)))

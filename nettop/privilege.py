"""Dropping privileges for good: the process that draws, parses files and talks to the terminal has none."""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from nettop.core.errors import NettopError

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
# SECBIT_NOROOT and SECBIT_NO_SETUID_FIXUP, each with its lock (include/uapi/linux/securebits.h): uid 0 is a user
# like any other from then on.
_SECUREBITS = 0b1111
_NO_AMBIENT_RAISE = 0b11 << 6  # SECBIT_NO_CAP_AMBIENT_RAISE and its lock
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63
_READABLE, _STUCK, _CLOSED = 0, 1, 2  # what becoming a user leads to

# include/uapi/linux/capability.h, the ones that matter here
DAC_READ_SEARCH, NET_ADMIN, SYS_ADMIN, PERFMON, BPF = 2, 12, 21, 38, 39
_NAMES = {NET_ADMIN: "CAP_NET_ADMIN", SYS_ADMIN: "CAP_SYS_ADMIN", PERFMON: "CAP_PERFMON", BPF: "CAP_BPF"}


def invoking_user(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """uid and gid of the invoking user (SUDO_UID); None where there is none, or it is root."""
    try:
        uid, gid = int(environment["SUDO_UID"]), int(environment["SUDO_GID"])
    except (KeyError, ValueError):
        return None
    return (uid, gid) if uid > 0 else None


def mask(*capabilities: int) -> int:
    """Numbers of capabilities as a bit mask."""
    return sum(1 << number for number in set(capabilities))


def drop(environment: Mapping[str, str]) -> None:
    """Become the invoking user (SUDO_UID), or nobody, with no capability and no way to get any.

    Where the project is closed to that user, see `_target_user`.  A process that is not root keeps its user.  Must be
    called before the first thread is started: capabilities belong to threads.  NettopError where there are other
    threads, and where any capability is left.
    """
    _alone()
    user, reading = _target_user(environment) if os.geteuid() == 0 else (None, 0)
    _limit()
    if user is not None:
        _become(user)
    _set(reading, 0)
    _check(reading, 0)


def _target_user(environment: Mapping[str, str]) -> tuple[tuple[int, int] | None, int]:
    """uid and gid to become, and a capability that is kept: the invoking user, or nobody; never root.

    What is imported later must be found.  So where the project lies in a directory that is closed to the user
    (somebody's home, for one who came by `su`) it is the directory's owner; and where that is root (/root)
    CAP_DAC_READ_SEARCH is kept, which lets the process read, as root could, and write nothing.  None where there is
    nobody to become: a user namespace that knows root alone, or no CAP_SETUID.
    """
    here = os.stat(__file__)
    wanted = invoking_user(environment) or _nobody()
    for user in (wanted, (here.st_uid, here.st_gid)):
        if user[0] == 0:
            continue
        pid = os.fork()
        if pid == 0:
            found = _STUCK
            try:
                _become(user)
                _set(0, 0)
                found = _CLOSED
                os.close(os.open(__file__, os.O_RDONLY | os.O_CLOEXEC))
                found = _READABLE
            finally:
                os._exit(found)
        found = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if found != _CLOSED:
            return (user if found == _READABLE else None), 0
    return wanted, mask(DAC_READ_SEARCH)


def _nobody() -> tuple[int, int]:
    """uid and gid of a user of nettop's own, if the system has one, else of nobody."""
    for name in ("nettop", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        if found.pw_uid > 0:
            return found.pw_uid, found.pw_gid
    return 65534, 65534  # include/linux/highuid.h, DEFAULT_OVERFLOWUID


def _become(user: tuple[int, int]) -> None:
    uid, gid = user
    try:
        os.initgroups(pwd.getpwuid(uid).pw_name, gid)
    except (KeyError, OSError):
        os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def confine(keep: int, inherited: int = 0) -> None:
    """Keep the capabilities of the mask ``keep`` and give all others up, for good; the uid stays.

    Programs that are started from here on get those of ``inherited`` (out of ``keep``), and no others, not even as
    uid 0.  Must be called before the first thread is started.  Raises NettopError if anything else is left.
    """
    _alone()
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _set(permitted(), inherited)
    for number in range(_LAST_CAPABILITY + 1):
        if inherited >> number & 1:
            _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0)
    _limit(_NO_AMBIENT_RAISE, clear=False)
    _set(keep, inherited)
    _check(keep, inherited)


def seclude() -> None:
    """For a process that serves the screen: no trace or core of it, and no signal from the terminal ends it.

    The screen decides when to stop; it closes their socket then.
    """
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)


def _alone() -> None:
    others = len(os.listdir("/proc/self/task")) - 1
    if others:
        raise NettopError(f"cannot give privileges up: {others} more threads would keep them")


def _limit(securebits: int = 0, clear: bool = True) -> None:
    """No capability from being uid 0, from a file or from the bounding set.

    Without CAP_SETPCAP, when started by a user with a few capabilities, the kernel refuses all but the last two, which
    are enough: no_new_privs takes the other ways away.
    """
    _libc.prctl(_PR_SET_SECUREBITS, _SECUREBITS | securebits, 0, 0, 0)
    for capability in range(_LAST_CAPABILITY + 1):  # beyond the kernel's last: EINVAL, and nothing to drop
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    if clear:
        _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def readable_without_override(paths: Iterable[Path]) -> bool:
    """Whether these files can be read by what their modes say, and not only because root may read everything."""
    held = permitted()
    _set(held, 0, effective=0)
    try:
        for path in paths:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    finally:
        _set(held, 0)
    return True


def _set(keep: int, inheritable: int, effective: int = -1) -> None:
    """This thread's permitted capabilities, which of them are effective, and what may be inherited (capset(2), v3)."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    kept = permitted() & keep  # one more that is asked for, and the kernel refuses it all
    words = [
        m >> shift & 0xFFFFFFFF for shift in (0, 32) for m in (kept & effective, kept, kept & inheritable)
    ]
    _libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(struct.pack("=6I", *words)))


def _check(keep: int, inherited: int) -> None:
    found = _status()
    allowed = {"CapInh": inherited, "CapPrm": keep, "CapEff": keep, "CapAmb": inherited}
    left = [name for name, bits in allowed.items() if int(found[name], 16) & ~bits]
    if left or found["NoNewPrivs"].strip() != "1":
        raise NettopError(
            f"cannot give privileges up: {', '.join(left) or 'NoNewPrivs'} left", "run it with sudo"
        )


def _status() -> dict[str, str]:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def home(environment: Mapping[str, str]) -> Path:
    """The home directory of the user that this process now is: sudo may have left root's in HOME."""
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path(environment.get("HOME", "/"))


def effective() -> int:
    """This process's effective capabilities as a bit mask."""
    return int(_status().get("CapEff", "0"), 16)


def permitted() -> int:
    """This process's permitted capabilities as a bit mask."""
    return int(_status().get("CapPrm", "0"), 16)


def missing(capabilities: int) -> tuple[str, ...]:
    """The names of the capabilities that these lack for loading programs and attaching them to an interface.

    CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON (bpf_capable() in include/linux/capability.h).
    """
    wanted = (NET_ADMIN,) if capabilities >> SYS_ADMIN & 1 else (NET_ADMIN, BPF, PERFMON)
    return tuple(_NAMES[number] for number in wanted if not capabilities >> number & 1)


def loading(capabilities: int) -> int:
    """Of these capabilities the ones that loading and attaching needs."""
    own = mask(NET_ADMIN, BPF, PERFMON)
    return capabilities & (own if not own & ~capabilities else own | mask(SYS_ADMIN))

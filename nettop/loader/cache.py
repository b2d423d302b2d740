"""Where compiled programs are kept: a directory that no other user can write."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from nettop.core.errors import NettopError

_CACHE = Path("/var/cache/nettop")
_MEMORY = Path("/run/nettop/cache")  # where /var is read-only: kept until the machine is started again
_TEMPORARY = ("/tmp", "/dev/shm", "/run")  # for one of a run's own
_LEAST_ROOM = 1 << 20  # bytes: headers and a few programs


def cache_directory() -> tuple[Path, bool]:
    """A directory that only we can write, and whether it is a fresh one, to be taken away at the end.

    What lies in it is loaded into the kernel.  So never one in the home of a user whose other programs do not have
    our capabilities.
    """
    given = os.environ.get("CACHE_DIRECTORY", "")  # systemd's; see start_loader
    first = Path(given).resolve() if given.startswith("/") else _CACHE
    for path in (first, _MEMORY):
        if _usable(path):
            return path, False
    for folder in _TEMPORARY:
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix="nettop-cache-", dir=folder)), True
    raise NettopError(
        f"no place for compiled programs: neither {first} nor {', '.join(_TEMPORARY)} can be written",
        f"make room, or mount a tmpfs at {first}",
    )


def _usable(path: Path) -> bool:
    """Whether it is ours alone, or can be made so, and takes files: /var may be read-only, or full."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            return False
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(_LEAST_ROOM))
    except OSError:
        return False
    return True

"""Probes of a user's own: where they lie, what their files must be like, and which hooks their programs are for.

Each is a folder NAME in OWN_PROBES with NAME.c and probe.py.  What is in it is compiled and loaded by root, so nobody
else may be able to write any of it.  Both processes ask here, each for itself: the loader does not take the word of the
process without privileges.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import get_args

from nettop.bpf.hooks import Candidate, Hook, Via, one
from nettop.bpf.protocol import NAME
from nettop.core import paths, units
from nettop.core.errors import NettopError

# Programs of these types observe and change nothing; in order of preference.
READ_ONLY: tuple[Via, ...] = ("tp_btf", "raw_tracepoint", "fentry", "kprobe")
_PROGRAM = re.compile(rf"(?P<hook>\w+?)__(?P<via>{'|'.join(get_args(Via))})(?:__(?P<target>\w+))?\Z")
_FUNCTION = re.compile(r"^int (\w+)\(", re.MULTILINE)
Lstat = Callable[[Path], os.stat_result]


def names() -> tuple[str, ...]:
    """The folders that there are, good or bad, by name.  Hidden ones, and files beside them, are none.

    Raises NettopError where that cannot be said.
    """
    try:
        with os.scandir(paths.OWN_PROBES) as found:
            return tuple(sorted(e.name for e in found if not e.name.startswith(".") and e.is_dir()))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise _closed(paths.OWN_PROBES, error) from None


def is_own(name: str) -> bool:
    """Whether the probe of this name is a user's own: built-in ones come first."""
    try:
        return paths.bpf_source(name).is_relative_to(paths.OWN_PROBES)
    except OSError:
        return os.path.isdir(paths.OWN_PROBES / name)


def check(name: str, lstat: Lstat = os.lstat) -> None:
    """Raises NettopError unless the folder has what it must have, and root alone could write any of it.

    An access control list that lets others write shows in the bits of the group (acl(5)).
    """
    folder = paths.OWN_PROBES / name
    if not NAME.match(name):
        raise NettopError(
            f"{_said(folder)} has no name for a probe", "name it with small letters, figures and _"
        )
    try:
        for path in (*reversed(folder.parents), folder, *_inside(folder)):
            _check(path, lstat)
    except OSError as error:
        raise _closed(folder, error) from None
    for path in (folder / f"{name}.c", folder / "probe.py"):
        if not path.is_file():
            raise NettopError(f"{path} is missing", "nettop --new-probe NAME writes all that a probe needs")
        if not os.access(path, os.R_OK):
            raise _closed(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _closed(path: Path, error: OSError) -> NettopError:
    hint = f"sudo chmod -R go+rX {shlex.quote(_said(path))}: the screen reads it, and is not root"
    return NettopError(f"{_said(path)}: {error.strerror}", hint)


def _inside(folder: Path) -> Iterator[Path]:
    """Everything in a folder, however deep.  Links are not followed."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            path = Path(entry.path)
            yield path  # checked before its contents are listed
            if entry.is_dir(follow_symlinks=False):
                yield from _inside(path)


def _check(path: Path, lstat: Lstat) -> None:
    found, quoted = lstat(path), shlex.quote(_said(path))
    if stat.S_ISLNK(found.st_mode):
        raise NettopError(f"{_said(path)} is a symbolic link", "put there what it points to")
    if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        raise NettopError(f"{_said(path)} is neither a file nor a directory", f"sudo rm {quoted}")
    if found.st_uid != 0:
        raise NettopError(
            f"{_said(path)} belongs to {_user(found.st_uid)}, not to root", f"sudo chown root: {quoted}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise NettopError(
            f"others than root can write {_said(path)} ({mode:04o})", f"sudo chmod go-w {quoted}"
        )


def _said(path: Path) -> str:
    return units.clean(os.fspath(path))


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def hooks_of(programs: Iterable[str]) -> tuple[Hook, ...]:
    """The hooks of a C file, by its functions' names: HOOK__MECHANISM, or HOOK__MECHANISM__TARGET.

    Several for one hook are tried in the order of READ_ONLY until one succeeds.  Other names are functions of no hook.
    Raises NettopError for a mechanism by which traffic could be changed.
    """
    found: dict[str, list[Candidate]] = {}
    for program in programs:
        match = _PROGRAM.match(program)
        if match is None:
            continue
        via: Via = match["via"]  # type: ignore[assignment]
        if via not in READ_ONLY:
            raise NettopError(
                f"{program}: a program of {via} could change traffic, and a user's own probe must not",
                f"watch it by {', '.join(READ_ONLY)}",
            )
        target = match["target"] or match["hook"]
        found.setdefault(match["hook"], []).append(one(via, program, target))
    return tuple(
        Hook(hook, tuple(sorted(candidates, key=lambda c: READ_ONLY.index(c.via))))
        for hook, candidates in found.items()
    )


def written_hooks(name: str) -> tuple[Hook, ...]:
    """The same from the text of a probe's C file, for who has not compiled it."""
    text = paths.bpf_source(name).read_text(encoding="utf-8", errors="replace")
    return hooks_of(_FUNCTION.findall(text))

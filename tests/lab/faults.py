"""Faults: interfaces that change, small disks, little memory; and a check that a recording is whole."""

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab import shell
from lab.core import Link
from lab.errors import LabError
from lab.namespace import Endpoint, Namespace


def set_link(end: Endpoint, *words: str) -> None:
    """`ip link set IFACE WORDS...` inside."""
    end.ns.run("ip", "link", "set", end.name, *words)


@contextmanager
def renamed(end: Endpoint, name: str) -> Iterator[Endpoint]:
    """The same interface by another name, while the block lasts."""
    set_link(end, "name", name)
    other = replace(end, name=name)
    try:
        yield other
    finally:
        set_link(other, "name", end.name)


@contextmanager
def moved(link: Link, target: Namespace) -> Iterator[Endpoint]:
    """End `a` in another namespace, with its IPv4 address and up, while the block lasts; then back."""
    there = replace(link.a, ns=target)
    set_link(link.a, "netns", str(target.name))
    try:
        configure(there, link.b)
        yield there
    finally:
        set_link(there, "netns", str(link.a.ns.name))
        configure(link.a, link.b)


def configure(end: Endpoint, peer: Endpoint) -> None:
    """What an interface loses when it moves or goes down: its IPv4 address, being up, and the permanent neighbour."""
    lines = (
        f"addr replace {end.v4}/24 dev {end.name}",
        f"link set {end.name} up",
        f"neigh replace {peer.v4} lladdr {peer.mac} dev {end.name} nud permanent",
    )
    shell.run(["ip", "-n", str(end.ns.name), "-batch", "-"], stdin="\n".join(lines) + "\n")


@contextmanager
def small_disk(kilobytes: int) -> Iterator[Path]:
    """A file system of this size."""
    path = Path(tempfile.mkdtemp(prefix="nettop-disk-"))
    shell.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=0777", "nettop-test", str(path)])
    try:
        yield path
    finally:
        shell.run(["umount", "-l", str(path)], check=False)
        path.rmdir()


@contextmanager
def little_memory(mebibytes: int) -> Iterator[Sequence[str]]:
    """A memory cgroup with this limit; the prefix of a command that runs in it.

    It comes before `ip netns exec`, which mounts a /sys without cgroups.
    """
    version1, version2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    first = version1.is_dir()
    group = (version1 if first else version2) / f"nettop-test-{os.getpid()}"
    if not first:
        version2.joinpath("cgroup.subtree_control").write_text("+memory")
    group.mkdir()
    try:
        limit = "memory.limit_in_bytes" if first else "memory.max"
        (group / limit).write_text(str(mebibytes << 20))
        yield ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        if not shell.eventually(lambda: _removed(group)):
            raise LabError(f"{group} is still in use")


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def recorded(path: Path) -> list[dict[str, Any]]:
    """The frames of a recording; `LabError` unless it is whole: every line a document, gzip ended properly."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        unpack = zlib.decompressobj(16 + zlib.MAX_WBITS)
        data = unpack.decompress(data)
        if not unpack.eof or unpack.unused_data:
            raise LabError(f"{path} is not a whole gzip file")
    if not data.endswith(b"\n"):
        raise LabError(f"{path} ends within a line")
    header, *frames = (json.loads(line) for line in data.splitlines())
    if header.get("kind") != "recording":
        raise LabError(f"{path} has no header")
    return frames


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary directory, on a path that every user can walk."""
    path = Path(tempfile.mkdtemp(prefix="nettop-test-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)

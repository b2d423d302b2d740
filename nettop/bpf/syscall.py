"""bpf(2), as far as this program uses it.

The system call itself rather than a library: libbpf's option structures differ from release to release, and the
oldest one that we meet (1.1, Debian 12) knows neither TCX nor netfilter links, while the ABI of the call never
changes.  Both processes use it: the loader to create, load and attach, the screen on the descriptors it was given.

Source: include/uapi/linux/bpf.h (union bpf_attr).  Every function raises OSError with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

_NUMBERS = {"x86_64": 321, "i386": 357, "i686": 357, "armv7l": 386, "ppc64le": 361, "ppc64": 361}
_GENERIC_NUMBER = 280  # asm-generic/unistd.h: arm64, riscv, loongarch
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_NUMBER = _NUMBERS.get(platform.machine(), _GENERIC_NUMBER)
_ATTR_SIZE = 144
MMAPABLE = 1 << 10  # BPF_F_MMAPABLE, a map's flag
LICENSE = b"Dual MIT/GPL"


class Cmd(IntEnum):
    """enum bpf_cmd."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    PROG_LOAD = 5
    PROG_TEST_RUN = 10
    OBJ_GET_INFO_BY_FD = 15
    RAW_TRACEPOINT_OPEN = 17
    MAP_LOOKUP_BATCH = 24
    LINK_CREATE = 28
    LINK_UPDATE = 29
    ENABLE_STATS = 32


class MapType(IntEnum):
    """enum bpf_map_type, the ones in use."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    RINGBUF = 27

    @property
    def per_cpu(self) -> bool:
        return self in (MapType.PERCPU_HASH, MapType.PERCPU_ARRAY)


class ProgType(IntEnum):
    """enum bpf_prog_type, the ones in use."""

    KPROBE = 2
    SCHED_CLS = 3
    TRACEPOINT = 5
    RAW_TRACEPOINT = 17
    TRACING = 26
    NETFILTER = 32


class AttachType(IntEnum):
    """enum bpf_attach_type, the ones in use."""

    NONE = 0
    TRACE_RAW_TP = 23
    TRACE_FENTRY = 24
    NETFILTER = 45
    TCX_INGRESS = 46
    TCX_EGRESS = 47


Buffer = ctypes.Array[ctypes.c_char]


def _attr(form: str, *values: Any) -> Buffer:
    """union bpf_attr: the rest is zeros, which the kernel takes of any length."""
    return ctypes.create_string_buffer(struct.pack("<" + form, *values), _ATTR_SIZE)


def _call(cmd: Cmd, attr: Buffer) -> int:
    result = int(_libc.syscall(_NUMBER, int(cmd), attr, _ATTR_SIZE))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf {cmd.name.lower()}: {os.strerror(number)}")
    return result


def _held(data: bytes) -> Buffer:
    return ctypes.create_string_buffer(data, len(data))


def _address(data: Buffer | None) -> int:
    return ctypes.addressof(data) if data is not None else 0


@cache
def possible_cpus() -> int:
    """CPUs that a per-CPU value has room for (kernel: num_possible_cpus)."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return max(int(n) for part in text.strip().split(",") for n in part.split("-")) + 1


def _name(name: str) -> bytes:
    return name.encode()[:15]


def map_create(kind: int, key_size: int, value_size: int, max_entries: int, flags: int, name: str) -> int:
    """A new map's descriptor; sizes in bytes, for a ring buffer max_entries is its size in bytes."""
    sizes = (kind, key_size, value_size, max_entries, flags)
    return _call(Cmd.MAP_CREATE, _attr("5I8x16s", *sizes, _name(name)))  # no inner map, no NUMA node


def map_lookup(fd: int, key: bytes, value: int) -> bool:
    """Read one value to the address ``value``; False where there is no such key."""
    held = _held(key)
    try:
        _call(Cmd.MAP_LOOKUP_ELEM, _attr("I4xQQ", fd, _address(held), value))
    except FileNotFoundError:
        return False
    return True


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Write one value."""
    held = _held(key), _held(value)
    _call(Cmd.MAP_UPDATE_ELEM, _attr("I4xQQ", fd, *map(_address, held)))


def map_delete(fd: int, key: bytes) -> bool:
    """Delete one entry; False where there was none."""
    held = _held(key)
    try:
        _call(Cmd.MAP_DELETE_ELEM, _attr("I4xQ", fd, _address(held)))
    except FileNotFoundError:
        return False
    return True


def map_lookup_batch(
    fd: int, cursor_in: int, cursor_out: int, keys: int, values: int, count: int
) -> tuple[int, bool]:
    """Read up to so many entries of a hash map to raw addresses; ``cursor_in`` is 0 at its beginning.

    Returns the number of entries read and whether the end of the map was reached (the kernel says ENOENT).
    ENOSPC means that one bucket holds more entries than the buffer.
    """
    attr = _attr("QQQQII", cursor_in, cursor_out, keys, values, count, fd)
    end = False
    try:
        _call(Cmd.MAP_LOOKUP_BATCH, attr)
    except FileNotFoundError:
        end = True
    return struct.unpack_from("<I", attr, 32)[0], end


def prog_load(
    kind: ProgType,
    instructions: bytes,
    name: str,
    attach_type: int = 0,
    attach_btf_id: int = 0,
    log: Buffer | None = None,
) -> int:
    """Load a program; its descriptor.  With a log buffer the verifier's words are left in it, also on refusal."""
    code, licence = _held(instructions), ctypes.create_string_buffer(LICENSE)
    program = (kind, len(instructions) // 8, _address(code), _address(licence))
    verifier = (0, 0, 0) if log is None else (1, len(log), _address(log))
    attr = _attr("IIQQIIQ8x16s4xI36xI", *program, *verifier, _name(name), attach_type, attach_btf_id)
    return _call(Cmd.PROG_LOAD, attr)


def raw_tracepoint_open(prog: int, name: str = "") -> int:
    """Attach to a raw tracepoint, or (no name) a tracing program to its function; the link's descriptor."""
    held = ctypes.create_string_buffer(name.encode())
    return _call(Cmd.RAW_TRACEPOINT_OPEN, _attr("QI", _address(held) if name else 0, prog))


def link_create(prog: int, target: int, attach_type: AttachType, extra: bytes = b"", flags: int = 0) -> int:
    """BPF_LINK_CREATE; the link's descriptor is the attachment."""
    return _call(Cmd.LINK_CREATE, _attr(f"IIII{len(extra)}s", prog, target, attach_type, flags, extra))


def link_update(link: int, prog: int) -> None:
    """Replace the program of a link, atomically."""
    _call(Cmd.LINK_UPDATE, _attr("II", link, prog))


def _info(fd: int, size: int) -> bytes:
    info = ctypes.create_string_buffer(size)
    _call(Cmd.OBJ_GET_INFO_BY_FD, _attr("IIQ", fd, size, _address(info)))
    return info.raw


def link_interface(link: int) -> int:
    """Index of the interface that a TCX link is at; 0 where that has gone, or somebody has detached the link.

    struct bpf_link_info: type, id and program, then what belongs to the type; for TCX the index is the first of it.
    """
    return int(struct.unpack_from("<I", _info(link, 64), 16)[0])


def enable_stats() -> int:
    """Switch run statistics on for as long as the descriptor is open (BPF_STATS_RUN_TIME)."""
    return _call(Cmd.ENABLE_STATS, _attr("I", 0))


@dataclass(frozen=True)
class ProgramInfo:
    """The part of struct bpf_prog_info that is shown."""

    id: int
    name: str
    runs: int
    run_ns: int
    recursion_misses: int  # not run, as another run of the same program on that CPU had not ended


def program_info(fd: int) -> ProgramInfo:
    """Identity and run statistics of a program."""
    info = _info(fd, 232)
    ident, name = struct.unpack_from("<4xI56x16s", info)
    run_ns, runs, missed = struct.unpack_from("<QQQ", info, 192)
    return ProgramInfo(ident, name.split(b"\0", 1)[0].decode(errors="replace"), runs, run_ns, missed)


def test_run(prog: int, packet: bytes, repeat: int = 1, context: bytes = b"") -> tuple[int, bytes, int]:
    """BPF_PROG_TEST_RUN: the program's return value, the packet afterwards, and ns per run."""
    sent, back = _held(packet), ctypes.create_string_buffer(len(packet) + 256)
    given = _held(context) if context else None
    sizes, data = (len(packet), len(back)), (_address(sent), _address(back))
    attr = _attr("I4xIIQQI4xI4xQ", prog, *sizes, *data, repeat, len(context), _address(given))
    _call(Cmd.PROG_TEST_RUN, attr)
    result, size, duration = struct.unpack_from("<4xI4xI20xI", attr)
    return result, back.raw[:size], duration

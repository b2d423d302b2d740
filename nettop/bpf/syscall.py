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


def _call(cmd: Cmd, attr: bytes | bytearray) -> int:
    buffer = (ctypes.c_char * _ATTR_SIZE).from_buffer_copy(bytes(attr).ljust(_ATTR_SIZE, b"\0"))
    return _call_buffer(cmd, buffer, len(attr))


def _call_buffer(cmd: Cmd, buffer: ctypes.Array[ctypes.c_char], size: int) -> int:
    result = int(_libc.syscall(_NUMBER, int(cmd), buffer, size))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf {cmd.name.lower()}: {os.strerror(number)}")
    return result


def _address(data: ctypes.Array[ctypes.c_char] | None) -> int:
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
    attr = struct.pack(
        "<IIIIIII16s", kind, key_size, value_size, max_entries, flags, 0, 0, _name(name)
    )  # inner_map_fd and numa_node stay 0
    return _call(Cmd.MAP_CREATE, attr)


def map_lookup(fd: int, key: bytes, value: int) -> bool:
    """Read one value to the address ``value``; False where there is no such key."""
    held = ctypes.create_string_buffer(key, len(key))
    try:
        _call(Cmd.MAP_LOOKUP_ELEM, struct.pack("<IxxxxQQQ", fd, _address(held), value, 0))
    except FileNotFoundError:
        return False
    return True


def map_update(fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """Write one value."""
    held = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    _call(Cmd.MAP_UPDATE_ELEM, struct.pack("<IxxxxQQQ", fd, _address(held[0]), _address(held[1]), flags))


def map_delete(fd: int, key: bytes) -> bool:
    """Delete one entry; False where there was none."""
    held = ctypes.create_string_buffer(key, len(key))
    try:
        _call(Cmd.MAP_DELETE_ELEM, struct.pack("<IxxxxQ", fd, _address(held)))
    except FileNotFoundError:
        return False
    return True


def map_batch(
    cmd: Cmd, fd: int, cursor_in: int, cursor_out: int, keys: int, values: int, count: int
) -> tuple[int, bool]:
    """One batch operation on raw addresses (0 for none).

    Returns the number of entries done and whether the end of the map was reached (the kernel says ENOENT).
    ENOSPC means that one bucket holds more entries than the buffer.
    """
    attr = struct.pack("<QQQQIIQQ", cursor_in, cursor_out, keys, values, count, fd, 0, 0)
    buffer = (ctypes.c_char * _ATTR_SIZE).from_buffer_copy(attr.ljust(_ATTR_SIZE, b"\0"))
    end = False
    try:
        _call_buffer(cmd, buffer, len(attr))
    except FileNotFoundError:
        end = True
    return struct.unpack_from("<I", buffer.raw, 32)[0], end


def prog_load(
    kind: ProgType,
    instructions: bytes,
    name: str,
    attach_type: int = 0,
    attach_btf_id: int = 0,
    log: ctypes.Array[ctypes.c_char] | None = None,
) -> int:
    """Load a program; its descriptor.  With a log buffer the verifier's words are left in it, also on refusal."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(LICENSE)
    attr = struct.pack(
        "<IIQQIIQII16sIIIIQIIQII",
        kind,
        len(instructions) // 8,
        _address(code),
        _address(licence),
        1 if log is not None else 0,
        len(log) if log is not None else 0,
        _address(log),
        0,  # kern_version: not looked at since 5.0
        0,
        _name(name),
        0,
        attach_type,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        attach_btf_id,
    )
    return _call(Cmd.PROG_LOAD, attr)


def raw_tracepoint_open(prog: int, name: str = "") -> int:
    """Attach to a raw tracepoint, or (no name) a tracing program to its function; the link's descriptor."""
    held = ctypes.create_string_buffer(name.encode())
    return _call(Cmd.RAW_TRACEPOINT_OPEN, struct.pack("<QI", _address(held) if name else 0, prog))


def link_create(prog: int, target: int, attach_type: AttachType, extra: bytes = b"", flags: int = 0) -> int:
    """BPF_LINK_CREATE; the link's descriptor is the attachment."""
    return _call(Cmd.LINK_CREATE, struct.pack("<IIII", prog, target, attach_type, flags) + extra)


def link_update(link: int, prog: int) -> None:
    """Replace the program of a link, atomically."""
    _call(Cmd.LINK_UPDATE, struct.pack("<IIII", link, prog, 0, 0))


def link_interface(link: int) -> int:
    """Index of the interface that a TCX link is at; 0 where that has gone, or somebody has detached the link.

    struct bpf_link_info: type, id and program, then what belongs to the type; for TCX the index is the first of it.
    """
    info = ctypes.create_string_buffer(64)
    _call(Cmd.OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", link, len(info), _address(info)))
    return int(struct.unpack_from("<I", info.raw, 16)[0])


def enable_stats() -> int:
    """Switch run statistics on for as long as the descriptor is open (BPF_STATS_RUN_TIME)."""
    return _call(Cmd.ENABLE_STATS, struct.pack("<I", 0))


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
    info = ctypes.create_string_buffer(232)
    _call(Cmd.OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", fd, len(info), _address(info)))
    ident = struct.unpack_from("<I", info.raw, 4)[0]
    name = info.raw[64:80].split(b"\0", 1)[0].decode(errors="replace")
    run_ns, runs, missed = struct.unpack_from("<QQQ", info.raw, 192)
    return ProgramInfo(ident, name, runs, run_ns, missed)


def test_run(prog: int, packet: bytes, repeat: int = 1, context: bytes = b"") -> tuple[int, bytes, int]:
    """BPF_PROG_TEST_RUN: the program's return value, the packet afterwards, and ns per run."""
    data_in = ctypes.create_string_buffer(packet, len(packet))
    data_out = ctypes.create_string_buffer(len(packet) + 256)
    ctx_in = ctypes.create_string_buffer(context, len(context)) if context else None
    attr = struct.pack(
        "<IIIIQQIIIIQQIII",
        prog,
        0,
        len(packet),
        len(data_out),
        _address(data_in),
        _address(data_out),
        repeat,
        0,
        len(context),
        0,
        _address(ctx_in),
        0,
        0,
        0,
        0,
    )
    buffer = (ctypes.c_char * _ATTR_SIZE).from_buffer_copy(attr.ljust(_ATTR_SIZE, b"\0"))
    _call_buffer(Cmd.PROG_TEST_RUN, buffer, len(attr))
    _, result, _, size_out = struct.unpack_from("<IIII", buffer.raw)
    duration = struct.unpack_from("<I", buffer.raw, 36)[0]
    return result, data_out.raw[:size_out], duration

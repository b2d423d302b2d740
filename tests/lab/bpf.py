"""What BPF objects exist and who holds them, from bpf(2) and /proc: nothing of nettop's, no library.

Ids are never reused within a boot, so `held(pid)` while a program runs and `remaining(...)` after it has gone
tell exactly what of it remains, whatever else uses BPF at the same time.
"""

import ctypes
import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.shell import eventually

# Kernel: include/uapi/linux/bpf.h.
PROG_GET_NEXT_ID = 11
MAP_GET_NEXT_ID = 12
PROG_QUERY = 16
LINK_GET_NEXT_ID = 31
MAP_CREATE = 0
TCX_HOOKS = {"tcx_ingress": 46, "tcx_egress": 47}

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True)
class BpfIds:
    """Ids of programs, maps and links."""

    programs: frozenset[int] = frozenset()
    maps: frozenset[int] = frozenset()
    links: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.programs or self.maps or self.links)

    def __sub__(self, other: "BpfIds") -> "BpfIds":
        return BpfIds(self.programs - other.programs, self.maps - other.maps, self.links - other.links)

    def __and__(self, other: "BpfIds") -> "BpfIds":
        return BpfIds(self.programs & other.programs, self.maps & other.maps, self.links & other.links)

    def __or__(self, other: "BpfIds") -> "BpfIds":
        return BpfIds(self.programs | other.programs, self.maps | other.maps, self.links | other.links)


def living(of: BpfIds | None = None) -> BpfIds:
    """All BPF objects of the machine, or those of `of` that still exist."""
    everything = BpfIds(_ids(PROG_GET_NEXT_ID), _ids(MAP_GET_NEXT_ID), _ids(LINK_GET_NEXT_ID))
    return everything if of is None else everything & of


def remaining(of: BpfIds, *, timeout: float = 5.0) -> BpfIds:
    """What of these objects still exists after at most `timeout` seconds. Empty as soon as all have gone.

    The kernel frees maps and programs only after a grace period, so `living` right after an exit says too
    much.
    """
    eventually(lambda: not living(of), timeout=timeout, interval=0.05)
    return living(of)


def held(pid: int) -> BpfIds:
    """The BPF objects that this process and its descendants hold by descriptor."""
    found: dict[str, set[int]] = {"prog_id": set(), "map_id": set(), "link_id": set()}
    for process in family(pid):
        try:
            entries = list(Path(f"/proc/{process}/fdinfo").iterdir())
        except OSError:
            continue
        for entry in entries:
            try:
                lines = entry.read_text().splitlines()
            except OSError:
                continue  # Closed since it was listed.
            for line in lines:
                key, _, value = line.partition(":")
                if key in found:
                    found[key].add(int(value))
    return BpfIds(frozenset(found["prog_id"]), frozenset(found["map_id"]), frozenset(found["link_id"]))


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    processes = [pid]
    for parent in processes:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                processes += [int(word) for word in task.read_text().split()]
            except OSError:
                continue
    return processes


def available() -> str:
    """Why BPF cannot be used here, or an empty string: tries to make a map of one entry."""
    try:
        # BPF_MAP_TYPE_ARRAY, 4-byte key, 4-byte value, one entry.
        os.close(call(MAP_CREATE, struct.pack("=IIII", 2, 4, 4, 1)))
    except LabError as error:
        return str(error)
    return ""


def query(index: int, hook: int) -> list[int]:
    """Ids of the TCX programs on an interface of this thread's namespace.

    Empty on kernels that have no TCX.
    """
    ids = (ctypes.c_uint32 * 64)()
    # target_ifindex, attach_type, query_flags, attach_flags, prog_ids, count, then fields that stay zero.
    attribute = bytearray(struct.pack("=IIIIQI36x", index, hook, 0, 0, ctypes.addressof(ids), len(ids)))
    try:
        call(PROG_QUERY, attribute)
    except LabError:
        return []
    return list(ids[: struct.unpack_from("=I", attribute, 24)[0]])


def _ids(command: int) -> frozenset[int]:
    found: set[int] = set()
    attribute = bytearray(struct.pack("=III", 0, 0, 0))
    while True:
        try:
            call(command, attribute)
        except LabError:
            return frozenset(found)
        number = struct.unpack_from("=I", attribute, 4)[0]
        found.add(number)
        struct.pack_into("=II", attribute, 0, number, 0)


def call(command: int, attribute: bytes | bytearray) -> int:
    """bpf(2). A bytearray is written back. Raises `LabError`."""
    buffer = (ctypes.c_ubyte * len(attribute)).from_buffer_copy(attribute)
    result: int = _libc.syscall(
        _SYSCALL.get(platform.machine(), 280), command, ctypes.byref(buffer), ctypes.c_uint(len(attribute))
    )
    if result < 0:
        raise LabError(f"bpf({command}): {os.strerror(ctypes.get_errno())}")
    if isinstance(attribute, bytearray):
        attribute[:] = bytes(buffer)
    return result

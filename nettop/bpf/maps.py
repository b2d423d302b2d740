"""Maps and ring buffers read into numpy, by descriptor and without privilege.

The layout is the compiler's own; a map that lacks what the probe's module declares is refused.  The arrays that a
reader returns are its own buffers, valid until its next reading: a fold copies what it keeps.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nettop.bpf import syscall
from nettop.bpf.layout import Layout, Map, layout_of
from nettop.bpf.protocol import MapInfo

Array = NDArray[Any]
_BUSY, _DISCARD = np.uint32(1 << 31), np.uint32(1 << 30)
_HEADER = 8  # of a ring-buffer record (kernel/bpf/ringbuf.c, struct bpf_ringbuf_hdr)
_SLACK = 1024  # entries beyond a map's size in the batch buffer: the map changes while it is read


def _address(array: Array) -> int:
    return int(array.ctypes.data)


class ArrayReader:
    """A small array or per-CPU array, element by element: value[entries] or value[entries, cpus]."""

    def __init__(self, fd: int, info: MapInfo, layout: Layout) -> None:
        self._per_cpu = syscall.MapType(info.kind).per_cpu
        if self._per_cpu and info.value_size % 8:
            raise ValueError(f"{info.name}: a per-CPU value must be a multiple of 8 bytes")
        self._fd = fd
        shape = (info.max_entries, syscall.possible_cpus()) if self._per_cpu else (info.max_entries,)
        self._values = np.zeros(shape, layout.value)
        base, step = _address(self._values), self._values[:1].nbytes
        self._places = [(i.to_bytes(4, sys.byteorder), base + i * step) for i in range(info.max_entries)]

    def read(self) -> Array:
        for key, address in self._places:
            syscall.map_lookup(self._fd, key, address)
        return self._values


class HashReader:
    """A hash map, whole, in as few system calls as the kernel allows: (key[n], value[n])."""

    def __init__(self, fd: int, info: MapInfo, layout: Layout) -> None:
        self._fd = fd
        self._keys = np.empty(info.max_entries + _SLACK, layout.key)
        self._values = np.empty(info.max_entries + _SLACK, layout.value)
        self._cursor = np.zeros(64, np.uint8)

    def read(self) -> tuple[Array, Array]:
        done, end, first = 0, False, True
        while not end and done < len(self._keys):
            try:
                got, end = syscall.map_lookup_batch(
                    self._fd,
                    0 if first else _address(self._cursor),
                    _address(self._cursor),
                    _address(self._keys) + done * self._keys.itemsize,
                    _address(self._values) + done * self._values.itemsize,
                    len(self._keys) - done,
                )
            except OSError:
                if first:
                    raise
                break  # ENOSPC: grew under us beyond the slack; what is read is consistent
            done += got
            first = False
        return self._keys[:done], self._values[:done]


class RingReader:
    """A ring buffer's memory as an array: all records since the last drain, in one step.

    Records of one ring have one size.  They are submitted without a wake-up, so nothing is ever waited for.
    """

    def __init__(self, fd: int, info: MapInfo, layout: Layout) -> None:
        size, page = info.max_entries, mmap.PAGESIZE
        self._layout = layout.value
        self._stride = (_HEADER + layout.value.itemsize + 7) // 8 * 8
        self._record = np.dtype(
            {
                "names": ["length", "event"],
                "formats": [np.uint32, layout.value],
                "offsets": [0, _HEADER],
                "itemsize": self._stride,
            }
        )
        self._mask = size - 1
        self._consumer_map = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The data pages are mapped twice in a row, so that a record that wraps is still in one piece.
        self._data_map = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = np.frombuffer(self._consumer_map, np.uint64, 1)
        self._producer = np.frombuffer(self._data_map, np.uint64, 1)
        self._data_offset = page

    def read(self) -> Array:
        start = int(self._consumer[0])
        count = (int(self._producer[0]) - start) // self._stride
        if count <= 0:
            return np.zeros(0, self._layout)
        records = np.frombuffer(self._data_map, self._record, count, self._data_offset + (start & self._mask))
        lengths = records["length"].copy()
        # Reserved and not yet submitted: the rest waits for the next drain.
        busy = np.flatnonzero(lengths & _BUSY)
        if busy.size:
            records, lengths = records[: busy[0]], lengths[: busy[0]]
        sizes = lengths & ~_DISCARD
        if not bool((sizes == self._layout.itemsize).all()):
            raise ValueError(
                "a ring-buffer record of another size: program and module do not belong together"
            )
        kept: Array = records["event"][(lengths & _DISCARD) == 0].copy()
        self._consumer[0] = start + len(records) * self._stride
        return kept


Reader = ArrayReader | HashReader | RingReader


_READERS: Mapping[str, type[Reader]] = {"hash": HashReader, "ring": RingReader}


def open_maps(
    declared: Sequence[Map], made: Sequence[MapInfo], fds: Sequence[int]
) -> tuple[dict[str, Reader], dict[str, Layout]]:
    """By name: readers for a probe's maps, and how each is laid out.

    Raises ValueError where the program lacks a map or a field that its module has declared.
    """
    readers: dict[str, Reader] = {}
    layouts: dict[str, Layout] = {}
    infos = {info.name: info for info in made}
    for each in declared:
        info = infos.get(each.name)
        if info is None:
            raise ValueError(f"there is no map {each.name}: program and module do not belong together")
        layouts[each.name] = layout_of(info, each)
        if each.read != "none":
            reader = _READERS.get(each.read, ArrayReader)
            readers[each.name] = reader(fds[info.fd], info, layouts[each.name])
    return readers, layouts

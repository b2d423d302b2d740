"""The flow programs and their maps, attached nowhere."""

import os
from pathlib import Path

import numpy as np

from nettop.bpf import syscall
from nettop.bpf.layout import dtype_of
from nettop.loader.compile import compile_probe


class FlowMaps:
    """The maps, where the table of flows has so many entries, and is of this kind if one is given."""

    def __init__(self, cache: Path, entries: int, kind: syscall.MapType | None = None) -> None:
        self.made = compile_probe("flows", cache)
        self.layouts = {m.name: dtype_of(m.value_layout) for m in self.made.maps}
        self.fds: dict[str, int] = {}
        self._programs: list[int] = []
        for m in self.made.maps:
            of = (m.kind, m.max_entries, m.flags)
            if m.name == "flows":
                of = (m.kind, entries, m.flags) if kind is None else (kind, entries, 0)
            self.fds[m.name] = syscall.map_create(of[0], m.key_size, m.value_size, *of[1:], m.name)

    def load(self, kind: syscall.ProgType, name: str) -> int:
        """A program with these maps."""
        code = self.made.linked(name, list(self.fds.values()))
        self._programs.append(syscall.prog_load(kind, code, name))
        return self._programs[-1]

    def close(self) -> None:
        for fd in (*self._programs, *self.fds.values()):
            os.close(fd)

    def flow(self, key: bytes) -> np.ndarray | None:
        """What the table has of a flow; None where it is not there."""
        value = np.zeros(1, self.layouts["flows"])
        return value[0] if syscall.map_lookup(self.fds["flows"], key, int(value.ctypes.data)) else None

    def count(self, name: str) -> int:
        """A counter, over all CPUs."""
        values = np.zeros(syscall.possible_cpus(), self.layouts["counters"])
        syscall.map_lookup(self.fds["counters"], bytes(4), int(values.ctypes.data))
        return int(values[name].sum())

"""The map ``config``: what the programs are told.  Mirrors struct config of bpf_src/include/nettop.h.

The loader writes it before anything is attached; the screen rewrites it when the focus or the sampling changes.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass, replace
from enum import IntFlag
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nettop.model import Focus

KEY_BYTES = 48  # of struct flow_key
# By field, in order: so that whoever reads a part of the map finds its place (`offset`).
_FORMATS = {
    "ifindex": "I",
    "netns": "I",
    "l2_len": "H",
    "count_in": "B",
    "count_out": "B",
    "subnet4": "B",
    "subnet6": "B",
    "sample_shift": "B",
    "rtt_shift": "B",
    "epoch": "I",
    "cut_above": "I",
    "focus": "Q",
    "focus_key": f"{KEY_BYTES}s",
    "generation": "I",
    "trace_rate": "I",
    "flags": "I",
}
_LAYOUT = struct.Struct(f"<{''.join(_FORMATS.values())}4x")
CONFIG_BYTES = _LAYOUT.size


def offset(field: str) -> int:
    """Where a field of struct config begins, in bytes; nothing between two of them is padding."""
    return struct.calcsize("<" + "".join(list(_FORMATS.values())[: list(_FORMATS).index(field)]))


class Flag(IntFlag):
    """What the programs of the stages are to know: hooks that this kernel does not give, and what the user asks for."""

    NO_DRIVER = 1
    NO_LOCAL = 2
    NO_READY = 4
    NO_WRITE = 8
    FILTERED = 16
    TRACE = 32
    TRACE_ALL = 64
    NO_STACK = 128  # the interface's packets are seen from IP on
    COMPLETES = 256  # its driver frees what it has sent
    OF_DEVICE = NO_STACK | COMPLETES


NOBODY = 31  # sample_shift while the stages rest: no packet is followed
GENERATIONS = 4  # of filters: programs of two are attached at a time, while one takes the other's place


class Counting(IntFlag):
    """How an interface's own counters count a packet (COUNT_* in C, which says what each means)."""

    SKB = 0
    WIRE = 1
    BARE = 2
    NAPI = 4
    STACK = 8
    TAG = 16
    MERGED = 32
    CELLS = 64
    SENT = 128


@dataclass(frozen=True, slots=True)
class Config:
    """One value of the map ``config``, field by field."""

    ifindex: int = 0
    netns: int = 0
    l2_len: int = 14
    count_in: int = Counting.WIRE
    count_out: int = Counting.WIRE
    subnet4: int = 24
    subnet6: int = 48
    sample_shift: int = 0
    rtt_shift: int = 0
    epoch: int = 0
    cut_above: int = 0
    focus: int = 0
    focus_key: bytes = bytes(KEY_BYTES)
    generation: int = 0
    trace_rate: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        """The bytes of struct config."""
        return _LAYOUT.pack(*astuple(self))

    @classmethod
    def unpack(cls, data: bytes) -> Config:
        """The inverse of pack."""
        return cls(*_LAYOUT.unpack_from(data))

    def filtered(self, generation: int, on: bool) -> Config:
        """The same for the programs of another filter (``on``: there is one)."""
        flags = (self.flags & ~Flag.FILTERED) | (Flag.FILTERED if on else 0)
        return replace(self, generation=generation, flags=int(flags))

    def tracing(self, rate: int, everything: bool) -> Config:
        """The same with so many packets a second shown one by one: the focused flow's, or all."""
        flags = self.flags | Flag.TRACE | (Flag.TRACE_ALL if everything else 0)
        return replace(self, trace_rate=max(rate, 1), flags=int(flags))

    def focused(self, focus: Focus | None) -> Config:
        """The same with another flow in focus, or none."""
        if focus is None:
            return replace(self, focus=0, focus_key=bytes(KEY_BYTES))
        if len(focus.key) != KEY_BYTES:
            raise ValueError("not a flow")
        return replace(self, focus=focus.id, focus_key=focus.key)

"""The map ``config``: what the programs are told.  Mirrors struct config of bpf_src/nettop.h.

The loader writes it before anything is attached; the screen rewrites it when the focus or the sampling changes.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass, replace
from enum import IntFlag

_LAYOUT = struct.Struct("<IIHBBBBBBQQ")


class Counting(IntFlag):
    """How an interface's own counters count a packet (COUNT_* in C, which says what each means)."""

    SKB = 0
    WIRE = 1
    BARE = 2
    NAPI = 4


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
    flags: int = 0
    focus: int = 0
    focus_hash: int = 0

    def pack(self) -> bytes:
        """The bytes of struct config."""
        return _LAYOUT.pack(*astuple(self))

    @classmethod
    def unpack(cls, data: bytes) -> Config:
        """The inverse of pack."""
        return cls(*_LAYOUT.unpack_from(data))

    def focused(self, flow: int, flow_hash: int) -> Config:
        """The same with another flow in focus (0: none)."""
        return replace(self, focus=flow, focus_hash=flow_hash)

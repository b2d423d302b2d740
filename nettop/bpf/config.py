"""The map ``config``: what the programs are told, by the names of struct config (bpf_src/include/nettop.h).

The loader writes it before anything is attached; the screen rewrites it when the focus or the sampling changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import IntFlag
from typing import TYPE_CHECKING

from nettop.bpf import c_layout

if TYPE_CHECKING:
    from nettop.core.frame import Focus


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


CONFIG = "config"  # the map's name in every program
SAMPLE_NONE = 31  # sample_shift while no packet is followed
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
    focus_key: Mapping[str, int | bytes] = field(default_factory=dict)  # struct flow_key
    generation: int = 0
    trace_rate: int = 0
    flags: int = 0

    def pack(self, description: str) -> bytes:
        """The bytes of struct config, as the compiler describes it.  Raises ValueError where a field is not there."""
        return c_layout.pack(
            c_layout.parse(description), {f.name: getattr(self, f.name) for f in fields(self)}
        )

    def to_json(self) -> str:
        """What one process tells the other."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The inverse of to_json."""
        return cls(**json.loads(text))

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
            return replace(self, focus=0, focus_key={})
        return replace(self, focus=focus.id, focus_key=focus.key)

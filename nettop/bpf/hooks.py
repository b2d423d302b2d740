"""Hooks as data: boundaries in the kernel, and the mechanisms that watch each, in order of preference.

The loader reads these too, so nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Via = Literal["tp_btf", "raw_tracepoint", "netfilter", "fentry", "kprobe", "tcx", "clsact", "prog_run"]


@dataclass(frozen=True)
class Attachment:
    """One program at one place.

    ``target`` depends on the mechanism.
    tcx, clsact: ``ingress`` or ``egress`` of the watched interface; raw_tracepoint, tp_btf (the same with typed
    arguments): its name; fentry, kprobe: the function, or several names by which kernels know it, with ``|`` between
    them; netfilter: ``ipv4 pre_routing first`` (family, hook, and whether before or after everybody else there:
    ``first``, ``last``); prog_run: the probe's map that user space writes before it runs the program.
    """

    program: str
    target: str


@dataclass(frozen=True)
class Candidate:
    """One way to watch a boundary: all of its attachments succeed, or the next candidate is tried."""

    via: Via
    attachments: tuple[Attachment, ...]


@dataclass(frozen=True)
class Hook:
    """A boundary and its candidates in order of preference.  Without a required hook its probe is of no use.

    ``flag``: bits of the config's flags, set where the hook cannot be had, for programs that must know.
    """

    name: str
    candidates: tuple[Candidate, ...]
    required: bool = False
    flag: int = 0


def one(via: Via, program: str, target: str) -> Candidate:
    """The usual candidate: one program at one place."""
    return Candidate(via, (Attachment(program, target),))

"""What a probe is: a C file, the hooks it wants, the maps it fills, a pure fold to its section, and how it is shown.

To add one: bpf_src/NAME.c and nettop/probes/NAME.py with a module-level ``PROBE``.  Nothing else knows its name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from nettop.model import Section
from nettop.probes.hooks import Attachment, Candidate, Hook, Via, one
from nettop.probes.view import Pane

Array = NDArray[Any]
__all__ = [
    "Array",
    "Attachment",
    "Candidate",
    "Fold",
    "Folded",
    "Hook",
    "Map",
    "Probe",
    "Reads",
    "Setup",
    "Via",
    "all_probes",
    "one",
]


@dataclass(frozen=True)
class Map:
    """A map that is read, and the layout of its values (and, for hashes, keys) as numpy sees them.

    ``read`` says how: ``percpu`` gives value[entries, cpus]; ``array`` value[entries]; ``hash`` the pair
    (key[n], value[n]); ``ring`` the events since the last reading, value[n]; ``none`` is never read as a whole.
    ``every_ns`` asks for a reading more often than once a frame: the readings then come as a list of (time in ns,
    value), oldest first (rings are drained ten times a second in any case and come joined).
    ``scan`` marks what is large: with --scan-interval it is read only so often, and is missing from the readings of
    the frames between.
    ``entries`` names the field of the plan that sizes it (``max_flows``); as declared in C where it is empty.
    """

    name: str
    read: Literal["percpu", "array", "hash", "ring", "none"]
    value: np.dtype[Any]
    key: np.dtype[Any] | None = None
    entries: str = ""
    every_ns: int = 0
    scan: bool = False


@dataclass(frozen=True)
class Setup:
    """What a fold may know of the run: fixed when it starts."""

    interface: str
    cpus: int
    max_flows: int = 65536
    subnets: tuple[int, int] = (24, 48)
    hooks: Mapping[str, str] = field(
        default_factory=dict
    )  # hook -> mechanism in use; missing hooks are left out
    start_ns: int = 0  # CLOCK_MONOTONIC
    peer_is_local: bool = False  # the interface's other end is on this host too: veth
    netns: int = 0  # inode of the interface's network namespace


@dataclass(frozen=True)
class Reads:
    """One interval's raw readings.  Times are CLOCK_MONOTONIC, as bpf_ktime_get_ns() gives them."""

    now_ns: int
    interval_ns: int
    maps: Mapping[str, Any]
    system: Mapping[str, Any]


@dataclass(frozen=True)
class Folded:
    """A fold's result: the section, and programs to run by hook (prog_run), once with each value in their map."""

    section: Section
    run: Mapping[str, Sequence[bytes]] = field(default_factory=dict)


class Fold(Protocol):
    """From raw reads to the section.  Deterministic, without effects; what it must remember it keeps in itself."""

    def __call__(self, reads: Reads) -> Folded: ...


@dataclass(frozen=True)
class Probe:
    """Everything about one probe that is not C."""

    name: str
    summary: str
    hooks: tuple[Hook, ...]
    maps: tuple[Map, ...]
    fold: Callable[[Setup], Fold]
    load: Callable[[Mapping[str, Any]], Section]
    panes: tuple[Pane, ...]
    system: tuple[str, ...] = ()  # readings by name, see nettop.kernel.system
    state: tuple[str, ...] = ()  # maps with what is under way, which is forgotten when it is attached again

    @property
    def source(self) -> str:
        return f"{self.name}.c"


@cache
def all_probes() -> Mapping[str, Probe]:
    """Every probe there is, by name, in the order of their first pane's number."""
    package = importlib.import_module("nettop.probes")
    found: list[Probe] = []
    for info in pkgutil.iter_modules(package.__path__):
        probe = getattr(importlib.import_module(f"nettop.probes.{info.name}"), "PROBE", None)
        if isinstance(probe, Probe):
            found.append(probe)
    found.sort(key=lambda p: min((pane.number for pane in p.panes), default=99))
    return {p.name: p for p in found}

"""What a probe is: a C file, the hooks it wants, the maps it fills, a pure fold to its section, and how it is shown.

To add one: bpf_src/NAME.c and the folder nettop/probes/NAME with a module ``probe`` that has ``PROBE``.  Nothing else
knows its name.  Users' own probes: see own.py, and simple.py for the usual kind of one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nettop.bpf.hooks import Hook, Via, one
from nettop.bpf.layout import Map
from nettop.core.fields import Described, elsewhere
from nettop.core.frame import FRAMES, SECONDS, Section
from nettop.core.paths import PACKAGE
from nettop.render.canvas import Pane

Array = NDArray[Any]
# One second in so many: once few packets are followed, being called costs more than what is done.
SECONDS_STEPS = (4, 8)
FRAMES_STEPS = (2, 4)  # frames so many times as far apart


@dataclass(frozen=True)
class Setup:
    """What a fold may know of the run: fixed when it starts.  ``hooks``: mechanism by attached hook."""

    interface: str
    cpus: int
    max_flows: int = 65536
    subnets: tuple[int, int] = (24, 48)
    hooks: Mapping[str, str] = field(default_factory=dict)
    start_ns: int = 0  # CLOCK_MONOTONIC
    peer_is_local: bool = False  # the interface's other end is on this host too: veth
    netns: int = 0  # inode of the interface's network namespace
    layouts: Mapping[str, np.dtype[Any]] = field(default_factory=dict)  # of its maps' values


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


def tc_hook(probe: str, direction: str) -> Hook:
    """Where the interface's packets pass traffic control, ``direction`` ingress or egress."""
    mechanisms: tuple[Via, ...] = ("tcx", "clsact")
    candidates = tuple(one(via, f"{probe}_{direction}", direction) for via in mechanisms)
    return Hook(f"tc_{direction}", candidates, required=True)


@dataclass(frozen=True)
class Shedding:
    """What a probe can do less of to cost less: one in so many.  ``steps`` are for collect/budget.py.

    ``name`` and ``text``: of the frame's ``health.shed``; ``label``: on the screen.  ``knob`` is the field of struct
    config that is given log2 of it ("": none), and ``suspended`` while the probe is detached for the budget's sake, if
    not None.
    ``weight``: what all of it costs, roughly, in the kernel: 1 is the stages' following of every packet.  ``last``:
    after the duty cycle in the order of what is shed.
    """

    name: str
    text: str
    label: str
    steps: tuple[int, ...]
    knob: str = ""
    suspended: int | None = None
    weight: float = 1.0
    last: bool = False


@dataclass(frozen=True)
class Probe:
    """Everything about one probe that is not C.

    ``system``: readings by name, see nettop.netdev.counters.  ``state``: maps with what is under way, forgotten when it
    is attached again.  ``sheds``: what it can do less of; ``duty_cycled``: it may be attached in some of the
    seconds only, when the budget asks for that.  ``focuses``: a row of its table can be taken into focus; ``traces``:
    it can show packets one by one.  ``problem``: why it cannot be used, and what to do.
    """

    name: str
    summary: str
    hooks: tuple[Hook, ...]
    maps: tuple[Map, ...]
    fold: Callable[[Setup], Fold]
    section: type[Section]
    panes: tuple[Pane, ...]
    system: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    sheds: tuple[Shedding, ...] = ()
    duty_cycled: bool = False
    focuses: bool = False
    traces: bool = False
    problem: str = ""


@cache
def built_in() -> Mapping[str, Probe]:
    """The probes that come with nettop, by name, in the order of their first pane's number."""
    found: list[Probe] = []
    for info in pkgutil.iter_modules([str(PACKAGE / "probes")]):
        if not info.ispkg:
            continue
        probe = getattr(importlib.import_module(f"nettop.probes.{info.name}.probe"), "PROBE", None)
        if isinstance(probe, Probe):
            found.append(probe)
    found.sort(key=lambda p: min((pane.number for pane in p.panes), default=99))
    return {p.name: p for p in found}


@cache
def all_probes() -> Mapping[str, Probe]:
    """Every probe there is, by name: the built-in ones, then users' own."""
    from nettop.probes.own import own_probes  # which has probes to make

    return {**built_in(), **own_probes()}


def sheddings(probes: Iterable[Probe]) -> tuple[Shedding, ...]:
    """All that is shed of these probes, in the budget's order: with the share of seconds in which they are attached.

    What probes can do less of, then those seconds, then what is dear to miss and saves little, then frames.
    """
    probes = tuple(probes)
    cycled = " and ".join(p.name for p in probes if p.duty_cycled)
    seconds = Shedding(
        SECONDS,
        f"seconds in which {cycled} are attached at all",
        f"{cycled} 1 s in {{}}",
        SECONDS_STEPS,
    )
    text = "frames, which are so many times as far apart as asked for"
    frames = Shedding(FRAMES, text, "frames 1:{}", FRAMES_STEPS)
    declared = [s for p in probes for s in p.sheds]
    early, late = ([s for s in declared if s.last is last] for last in (False, True))
    return (*early, *([seconds] if cycled else ()), *late, frames)


def shed_words(shed: Mapping[str, int]) -> tuple[str, ...]:
    """What ``health.shed`` leaves out, each in a few words: ``stages 1:16``."""
    order = sheddings(all_probes().values())
    return tuple(s.label.format(shed[s.name]) for s in order if shed.get(s.name, 1) > 1)


def missed(probes: Iterable[Probe]) -> Iterator[Described]:
    """What the sections of these probes have in the frame's ``health``."""
    for probe in probes:
        kind: Any = probe.section
        yield from elsewhere(kind, "health")

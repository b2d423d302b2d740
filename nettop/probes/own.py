"""Users' own probes, found, checked and imported: one that is broken says so, and takes nothing else down.

Only a process without privileges gets here.  What the loader allows their programs is nettop/loader/own.py.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from typing import Any

from nettop.bpf import own
from nettop.bpf.protocol import NAME
from nettop.core import paths, units
from nettop.core.errors import NettopError
from nettop.core.fields import described, part_schema
from nettop.core.frame import Frame, Section
from nettop.probes.base import Fold, Folded, Probe, Reads, Setup, built_in
from nettop.render.canvas import Pane

_OTHER_KEYS = ("schema", "verdict")  # of the frame, beside its fields and the sections
_HINT = "docs/probes/own.md says what a probe consists of"


@cache
def own_probes() -> Mapping[str, Probe]:
    """Those with a name that a probe can have; what cannot be used has ``problem`` set, and no hooks."""
    found: dict[str, Probe] = {}
    for name, result in _found():
        if isinstance(result, Probe):
            found[name] = result
        elif NAME.match(name) and name not in built_in():
            found[name] = _broken(name, result)
    numbers = count(
        1 + max((pane.number for probe in built_in().values() for pane in probe.panes), default=0)
    )
    return {
        name: replace(probe, panes=tuple(replace(pane, number=next(numbers)) for pane in probe.panes))
        for name, probe in found.items()
    }


@cache
def problems() -> Mapping[str, str]:
    """What is wrong with each folder that cannot be used, and what to do: a line each."""
    return {name: _line(result) for name, result in _found() if isinstance(result, NettopError)}


def unusable() -> tuple[str, ...]:
    """The same as sentences."""
    return tuple(f"probe {name} cannot be used: {text}" for name, text in problems().items())


def _line(error: NettopError) -> str:
    return f"{error.message} ({error.hint})"


@cache
def _found() -> tuple[tuple[str, Probe | NettopError], ...]:
    try:
        return tuple((units.clean(name, 64), _load(name)) for name in own.names())
    except NettopError as error:
        return ((paths.OWN_PROBES.name, error),)


def _load(name: str) -> Probe | NettopError:
    try:
        if name in taken():
            return NettopError(
                f"the name {name} is taken", f"call the folder {paths.OWN_PROBES / name} otherwise"
            )
        own.check(name)
        return _checked(name, _imported(name))
    except NettopError as error:
        return error
    except Exception as error:  # whatever a declaration may lead to
        return _error(name, f"{type(error).__name__}: {error}")


def _error(name: str, what: str, hint: str = _HINT) -> NettopError:
    return NettopError(f"{paths.OWN_PROBES / name}/probe.py: {units.clean(' '.join(what.split()))}", hint)


def taken() -> frozenset[str]:
    """Names of modules here, and of keys of the frame."""
    modules = {info.name for info in pkgutil.iter_modules([str(paths.PACKAGE / "probes")])}
    keys = {f.name for f in described(Frame)}
    for probe in built_in().values():
        kind: Any = probe.section
        keys |= {kind.PLACE} if kind.PLACE else {f.name for f in described(kind)}
    return frozenset(modules | keys).union(_OTHER_KEYS)


def _imported(name: str) -> object:
    try:
        return getattr(importlib.import_module(f"nettop.probes.{name}.probe"), "PROBE", None)
    except (Exception, SystemExit) as error:
        raise _error(
            name, f"{type(error).__name__}: {error}", "mend it: python3 -W error shows more"
        ) from None


def _checked(name: str, probe: object) -> Probe:
    """The probe with the hooks of its C file.  Raises NettopError for what a user's own one cannot be."""
    if not isinstance(probe, Probe):
        raise _error(name, "there is no PROBE of type Probe in it")
    if probe.name != name:
        raise _error(name, f"PROBE is called {probe.name}", f"call it {name}, as its folder")
    section: Any = probe.section
    if not (isinstance(section, type) and issubclass(section, Section)) or name != section.PLACE:
        raise _error(name, "its section has another place in the frame", f'PLACE must be "{name}"')
    part_schema(section)  # every field has a place in a frame, or this says which has none
    if not probe.panes or any(not p.name.startswith(name) for p in probe.panes):
        raise _error(name, "it has no pane of its name", f"a pane's name begins with {name}")
    if probe.sheds or probe.focuses or probe.traces:
        raise _error(name, "sheds, focuses and traces are for built-in probes", "duty_cycled may be set")
    return replace(probe, hooks=own.written_hooks(name), fold=_careful(probe.fold))


def _careful(make: Callable[[Setup], Fold]) -> Callable[[Setup], Fold]:
    """What fails where a fold is made fails where it is used: there it is the probe's own failure."""

    def made(setup: Setup) -> Fold:
        try:
            return make(setup)
        except Exception as error:
            failure = error

        def fold(reads: Reads) -> Folded:
            raise failure

        return fold

    return made


# --- what stands for a broken one ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Nothing(Section):
    """No part of any frame."""


def _broken(name: str, error: NettopError) -> Probe:
    pane = Pane(name, title=name, number=0, band="bottom", height=4)
    text = _line(error)
    return Probe(
        name,
        f"cannot be used: {text}",
        (),
        (),
        lambda _: lambda reads: Folded(_Nothing()),
        _Nothing,
        (pane,),
        problem=text,
    )

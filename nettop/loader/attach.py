"""From a compiled object to running programs: make its maps, load, climb down each hook's ladder until one holds."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from nettop import bpf
from nettop.control import Config
from nettop.errors import NettopError
from nettop.loader.compile import Object
from nettop.loader.hooks import MECHANISMS, Place, possible
from nettop.probes.hooks import Candidate, Hook
from nettop.protocol import HookInfo, Loaded, MapInfo, Plan, ProbeInfo

_LOG_BYTES = 1 << 20
_SIDE_BY_SIDE = 4  # programs that are loaded at once, at most


@dataclass
class Attached:
    """One probe in the kernel.  The maps are kept for a later attachment; links belong to the screen."""

    name: str
    object: Object
    maps: list[int] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)  # as made
    programs: dict[tuple[str, str], int] = field(
        default_factory=dict
    )  # (function, mechanism and target) -> fd
    links: dict[str, list[int]] = field(
        default_factory=dict
    )  # hook -> descriptors, until they are handed over
    via: dict[str, Candidate] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    defines: tuple[str, ...] = ()  # that it was compiled with

    def close(self) -> None:
        """Close every descriptor that is still ours."""
        for fd in (*self.maps, *self.programs.values(), *(fd for fds in self.links.values() for fd in fds)):
            with contextlib.suppress(OSError):
                if fd >= 0:
                    os.close(fd)
        self.maps.clear()
        self.programs.clear()
        self.links.clear()


def make_maps(probe: Attached, plan: Plan) -> None:
    """Create the probe's maps, sized by the plan where its module says so."""
    for spec in probe.object.maps:
        wanted = probe.object.entries.get(spec.name)
        entries = int(getattr(plan, wanted)) if wanted else spec.max_entries
        try:
            fd = bpf.map_create(spec.kind, spec.key_size, spec.value_size, entries, spec.flags, spec.name)
        except OSError as error:
            raise NettopError(
                f"cannot make the map {spec.name} ({entries} entries): {error.strerror}",
                "--max-flows makes the flow table smaller",
            ) from error
        probe.maps.append(fd)
        probe.entries.append(entries)


def write_config(probe: Attached, config: Config) -> None:
    """Tell the programs what to watch.  Without an interface they do nothing."""
    for spec, fd in zip(probe.object.maps, probe.maps, strict=True):
        if spec.name == "config":
            bpf.map_update(fd, bytes(4), config.pack())


def _key(candidate: Candidate, index: int) -> tuple[str, str]:
    """Of the program of one attachment.  One of these types can be attached anywhere: load it once for all places."""
    attachment, kind = candidate.attachments[index], MECHANISMS[candidate.via].program
    anywhere = kind in (bpf.ProgType.SCHED_CLS, bpf.ProgType.RAW_TRACEPOINT, bpf.ProgType.NETFILTER)
    return attachment.program, "" if anywhere else f"{candidate.via} {attachment.target}"


def _program(
    probe: Attached, candidate: Candidate, index: int
) -> Callable[[ctypes.Array[ctypes.c_char] | None], int]:
    """What loads it, all but the call into the kernel done."""
    attachment = candidate.attachments[index]
    mechanism = MECHANISMS[candidate.via]
    return partial(
        bpf.prog_load,
        mechanism.program,
        probe.object.linked(attachment.program, probe.maps),
        attachment.program,
        mechanism.attach_type(attachment),
        mechanism.btf_id(attachment),
    )


def _load(probe: Attached, candidate: Candidate, index: int) -> int:
    """The program of one attachment, loaded for its mechanism; the verifier's words go to the log if it refuses."""
    key = _key(candidate, index)
    if key in probe.programs:
        return probe.programs[key]
    load = _program(probe, candidate, index)
    try:
        fd = load(None)
    except OSError as error:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        with contextlib.suppress(OSError):
            os.close(load(log))
        words = log.value.decode(errors="replace").strip()
        print(f"{key[0]} refused: {error}\n{words}", file=sys.stderr, flush=True)
        lines = [w for w in words.splitlines() if not w.startswith("processed ")]
        raise OSError(
            error.errno, f"{error.strerror}: {lines[-1]}" if lines else str(error.strerror)
        ) from error
    probe.programs[key] = fd
    return fd


def load_first_choices(probes: Iterable[Attached], plan: Plan) -> None:
    """Load the programs that attaching will ask for first, one on each CPU: the verifier takes most of a start.

    Nothing is said of one that is refused: attaching loads it again, and keeps the reason.
    """
    wanted: dict[tuple[str, tuple[str, str]], tuple[Attached, Callable[..., int]]] = {}
    for probe in probes:
        for hook in probe.object.hooks:
            for candidate in _candidates(probe, hook, plan)[:1]:
                for index in range(len(candidate.attachments)):
                    with contextlib.suppress(OSError):  # a function or tracepoint that is not there
                        load = _program(probe, candidate, index)
                        wanted.setdefault((probe.name, _key(candidate, index)), (probe, load))
    # The longest last, from where they are taken first.
    left = sorted(wanted, key=lambda name: len(wanted[name][0].object.programs[name[1][0]]))

    def work() -> None:
        while True:
            try:
                name = left.pop()
            except IndexError:
                return
            probe, load = wanted[name]
            with contextlib.suppress(OSError):
                probe.programs[name[1]] = load(None)

    others = [threading.Thread(target=work) for _ in os.sched_getaffinity(0)][1:_SIDE_BY_SIDE]
    for thread in others:
        thread.start()
    work()
    for thread in others:
        thread.join()


def _try(probe: Attached, hook: Hook, candidate: Candidate, place: Place) -> None:
    """Attach all of a candidate, or nothing of it."""
    links: list[int] = []
    try:
        for index, attachment in enumerate(candidate.attachments):
            program = _load(probe, candidate, index)
            links.append(MECHANISMS[candidate.via].attach(program, attachment, place))
    except BaseException:
        for fd in links:
            if fd >= 0:
                os.close(fd)
        raise
    probe.links[hook.name] = links
    probe.via[hook.name] = candidate


def _candidates(probe: Attached, hook: Hook, plan: Plan) -> list[Candidate]:
    """Those that were compiled: what is asked for first, the others in their order."""
    compiled = probe.object.programs
    found = [c for c in hook.candidates if all(a.program in compiled for a in c.attachments)]
    return sorted(found, key=lambda c: c.via != plan.via)


def attach(
    probe: Attached, place: Place, plan: Plan, bound_only: bool = False, missing_only: bool = False
) -> None:
    """Attach every hook by the best candidate that holds; what no candidate can do is remembered with the reason.

    ``bound_only``: just those that are bound to the interface, when that has come back; ``missing_only``: just those
    that could not be attached before.
    """
    for hook in probe.object.hooks:
        if missing_only and hook.name not in probe.missing:
            continue
        candidates = _candidates(probe, hook, plan)
        if bound_only:
            candidates = [c for c in candidates if MECHANISMS[c.via].bound]
            if not candidates:
                continue
        reasons: list[str] = []
        probe.missing.pop(hook.name, None)
        if hook.name in plan.without:
            probe.missing[hook.name] = "not wanted"
            continue
        for candidate in candidates:
            try:
                _try(probe, hook, candidate, place)
                break
            except Exception as error:  # whatever it is, the next way may work, and the reason is kept
                reason = getattr(error, "strerror", None) or str(error)
                reasons.append(f"{candidate.via}: {reason}")
        else:
            probe.missing[hook.name] = "; ".join(reasons) or "this kernel has none of the ways to watch it"


def again(probe: Attached, place: Place) -> None:
    """Attach what is not bound to the interface where it was before, and forget what was under way then.

    That first: the first program that runs would take it up.  And the last hook first, so that what a program leaves
    for another one has that one there.
    """
    forget(probe)
    for hook in reversed(probe.object.hooks):
        candidate = probe.via.get(hook.name)
        if candidate is None or MECHANISMS[candidate.via].bound:
            continue
        try:
            _try(probe, hook, candidate, place)
        except OSError as error:
            print(f"{probe.name}: {hook.name} cannot be attached again: {error}", file=sys.stderr, flush=True)


def forget(probe: Attached) -> None:
    """Empty the maps in which programs leave each other notes of what is under way."""
    for spec, fd in zip(probe.object.maps, probe.maps, strict=True):
        if spec.name not in probe.object.state:
            continue
        if spec.flags & bpf.MMAPABLE:  # megabytes, and no call for each entry
            with mmap.mmap(fd, spec.value_size * spec.max_entries) as memory:
                held = ctypes.c_char.from_buffer(memory)
                ctypes.memset(ctypes.addressof(held), 0, len(memory))
                del held  # or the memory cannot be given back
        else:
            cpus = bpf.possible_cpus() if bpf.MapType(spec.kind).per_cpu else 1
            blank = bytes(-(-spec.value_size // 8) * 8 * cpus)
            for index in range(spec.max_entries):
                bpf.map_update(fd, index.to_bytes(4, sys.byteorder), blank)


def lacks_programs(probe: Attached, plan: Plan) -> bool:
    """Whether a hook is missing for which there are programs in the C file that were not compiled."""
    return any(
        a.program not in probe.object.programs
        for hook in probe.object.hooks
        if hook.name in probe.missing and hook.name not in plan.without
        for candidate in hook.candidates
        if possible(candidate.via)
        for a in candidate.attachments
    )


def flags(probe: Attached) -> int:
    """What the programs must know of hooks that could not be had: bits of the config's flags."""
    return sum(hook.flag for hook in probe.object.hooks if hook.name in probe.missing)


def report(probe: Attached, bound_only: bool = False) -> Loaded:
    """What the screen is told and given.  The links are its own from here on: ``handed_over`` closes our copies."""
    fds: list[int] = []

    def number(fd: int) -> int:
        if fd < 0:
            return -1
        if fd not in fds:
            fds.append(fd)
        return fds.index(fd)

    maps: list[MapInfo] = []
    if not bound_only:
        for spec, fd, entries in zip(probe.object.maps, probe.maps, probe.entries, strict=True):
            maps.append(MapInfo(spec.name, spec.kind, spec.key_size, spec.value_size, entries, number(fd)))
    hooks: list[HookInfo] = []
    for hook, links in probe.links.items():
        candidate = probe.via[hook]
        programs = [_load(probe, candidate, index) for index in range(len(candidate.attachments))]
        hooks.append(
            HookInfo(
                hook, candidate.via, tuple(number(p) for p in programs), tuple(number(fd) for fd in links)
            )
        )
    state, detail = "live", ""
    lost = [h.name for h in probe.object.hooks if h.required and h.name in probe.missing]
    if lost or not probe.via:
        state = "unavailable"
        detail = "; ".join(f"{name}: {probe.missing[name]}" for name in lost or probe.missing)
    info = ProbeInfo(
        probe.name, state, detail, "", tuple(maps), tuple(hooks), tuple(sorted(probe.missing.items()))
    )
    return Loaded(info, tuple(fds))


@dataclass
class Exchange:
    """New programs for a running probe, loaded against its own maps, until ``exchange`` puts them in.

    Where a link can be given another program, they are only loaded.  Elsewhere they are attached beside those that run,
    and do nothing until the config names their generation.
    """

    probe: Attached
    object: Object
    programs: dict[tuple[str, str], int] = field(default_factory=dict)
    links: dict[str, list[int]] = field(default_factory=dict)  # by hook

    def close(self) -> None:
        """Close the programs and their links; those that run stay."""
        for fd in (*self.programs.values(), *(fd for fds in self.links.values() for fd in fds)):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.programs.clear()
        self.links.clear()


def prepare(probe: Attached, new: Object, place: Place) -> Exchange:
    """Load what of another compilation of the same probe differs.  Nothing that runs is touched.

    Raises NettopError where the kernel refuses a program.
    """
    again = "start nettop again"
    if new.maps != probe.object.maps:
        raise NettopError(f"{probe.name} has changed on disk since it was started", again)
    # The same maps, other instructions: what _load needs, and the running programs out of its reach.
    shadow = Attached(probe.name, new, probe.maps, probe.entries)
    made = Exchange(probe, new, shadow.programs, shadow.links)
    try:
        for hook in probe.object.hooks:
            candidate = probe.via.get(hook.name)
            if candidate is None:
                continue
            names = {a.program for a in candidate.attachments}
            if all(new.programs.get(name) == probe.object.programs.get(name) for name in names):
                continue
            if MECHANISMS[candidate.via].swaps:
                for index in range(len(candidate.attachments)):
                    _load(shadow, candidate, index)
            else:
                _try(shadow, hook, candidate, place)
    except OSError as error:
        made.close()
        raise NettopError(f"the kernel refuses the filter for {probe.name}: {error.strerror}", "") from error
    except BaseException:
        made.close()
        raise
    return made


def exchange(made: Exchange, place: Place) -> Loaded:
    """Put the programs in; the answer has them by hook.

    Where there are links, it is for the screen, which holds them, to give them their new programs, or to take the new
    links for the old ones.  clsact's filters are exchanged here.
    """
    probe = made.probe
    ours = {a.program for c in probe.via.values() if c.via == "clsact" for a in c.attachments}
    try:
        place.clsact.replace({name: fd for (name, _), fd in made.programs.items() if name in ours})
    except Exception as error:  # pyroute2's own, and whatever its parsing may raise
        made.close()
        raise NettopError(f"{probe.name}: tc did not exchange the programs: {error}") from error
    for key, fd in made.programs.items():
        os.close(probe.programs[key])
        probe.programs[key] = fd
    probe.object = made.object
    probe.links = made.links  # until they are handed over
    fds: list[int] = []

    def number(fd: int) -> int:
        if fd not in fds:
            fds.append(fd)
        return fds.index(fd)

    changed = {name for name, _ in made.programs}
    hooks: list[HookInfo] = []
    for hook, candidate in probe.via.items():
        if any(a.program in changed for a in candidate.attachments):
            programs = [_load(probe, candidate, index) for index in range(len(candidate.attachments))]
            links = tuple(number(fd) for fd in made.links.get(hook, ()))
            hooks.append(HookInfo(hook, candidate.via, tuple(number(fd) for fd in programs), links))
    return Loaded(ProbeInfo(probe.name, "live", hooks=tuple(hooks)), tuple(fds))


def handed_over(probe: Attached) -> None:
    """Close our copies of the links: what keeps the programs attached is the screen's descriptors alone."""
    for links in probe.links.values():
        for fd in links:
            if fd >= 0:
                os.close(fd)
    probe.links.clear()

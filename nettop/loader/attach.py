"""From a compiled object to running programs: maps, programs, and for each hook the first mechanism that works."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from nettop.bpf import syscall
from nettop.bpf.config import Config
from nettop.bpf.hooks import Candidate, Hook
from nettop.bpf.protocol import HookInfo, Loaded, MapInfo, Plan, ProbeInfo
from nettop.core.errors import NettopError
from nettop.loader.compile import Object
from nettop.loader.mechanisms import MECHANISMS, Target, possible

_LOG_BYTES = 1 << 20
_SIDE_BY_SIDE = 4  # programs that are loaded at once, at most
# What may work a moment later, whatever this kernel is: memory, descriptors, a place that is taken, an interface.
_TRANSIENT = frozenset(
    (
        *(errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE),
        *(errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT),
        *(errno.ENODEV, errno.ENXIO),
    )
)


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
    missing: dict[str, str] = field(default_factory=dict)  # hook -> each mechanism's error
    transient: set[str] = field(default_factory=set)  # of the missing ones, those that may work later
    defines: tuple[str, ...] = ()  # that it was compiled with

    def close(self) -> None:
        """Close every descriptor that is still ours.  The links that the screen has stay."""
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
        sized = spec.name in probe.object.entries
        entries = (
            dict(plan.entries).get(f"{probe.name}.{spec.name}", spec.max_entries)
            if sized
            else spec.max_entries
        )
        try:
            fd = syscall.map_create(spec.kind, spec.key_size, spec.value_size, entries, spec.flags, spec.name)
        except OSError as error:
            raise NettopError(
                f"cannot make the map {spec.name} ({entries} entries): {error.strerror}",
                "--max-flows makes the largest smaller",
            ) from error
        probe.maps.append(fd)
        probe.entries.append(entries)


def write_config(probe: Attached, config: Config) -> None:
    """Tell the programs what to watch.  Without an interface they do nothing."""
    for spec, fd in zip(probe.object.maps, probe.maps, strict=True):
        if spec.name == "config":
            try:
                value = config.pack(spec.value_layout)
            except ValueError as error:
                raise NettopError(
                    str(error), "install nettop again: a part of it is of another version"
                ) from error
            syscall.map_update(fd, bytes(4), value)


def _key(candidate: Candidate, index: int) -> tuple[str, str]:
    """Of the program of one attachment.  One of these types can be attached anywhere: load it once for all places."""
    attachment, kind = candidate.attachments[index], MECHANISMS[candidate.via].program
    anywhere = kind in (
        syscall.ProgType.SCHED_CLS,
        syscall.ProgType.RAW_TRACEPOINT,
        syscall.ProgType.NETFILTER,
    )
    return attachment.program, "" if anywhere else f"{candidate.via} {attachment.target}"


def _program(
    probe: Attached, candidate: Candidate, index: int
) -> Callable[[ctypes.Array[ctypes.c_char] | None], int]:
    """What loads it, all but the call into the kernel done."""
    attachment = candidate.attachments[index]
    mechanism = MECHANISMS[candidate.via]
    return partial(
        syscall.prog_load,
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


def load_first_choices(probes: Iterable[Attached]) -> None:
    """Load the programs that attaching will ask for first, one on each CPU: the verifier takes most of a start.

    Nothing is said of one that is refused: attaching loads it again, and keeps the reason.
    """
    wanted: dict[tuple[str, tuple[str, str]], tuple[Attached, Callable[..., int]]] = {}
    for probe in probes:
        for hook in probe.object.hooks:
            for candidate in _candidates(probe, hook)[:1]:
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


def _try(probe: Attached, hook: Hook, candidate: Candidate, target: Target) -> None:
    """Attach all of a candidate, or nothing of it."""
    links: list[int] = []
    try:
        for index, attachment in enumerate(candidate.attachments):
            program = _load(probe, candidate, index)
            links.append(MECHANISMS[candidate.via].attach(program, attachment, target))
    except BaseException:
        for fd in links:
            if fd >= 0:
                os.close(fd)
        if candidate.via == "clsact":
            target.clsact.remove({a.program for a in candidate.attachments})
        raise
    probe.links[hook.name] = links
    probe.via[hook.name] = candidate


def _candidates(probe: Attached, hook: Hook) -> list[Candidate]:
    """Those whose programs were compiled, best first."""
    compiled = probe.object.programs
    return [c for c in hook.candidates if all(a.program in compiled for a in c.attachments)]


def attach(probe: Attached, target: Target, bound_only: bool = False, missing_only: bool = False) -> None:
    """Try each hook's mechanisms in order of preference until one works; where none does, each error is kept.

    ``bound_only``: just those that are bound to the interface, when that has come back; ``missing_only``: just those
    that could not be attached before.
    """
    for hook in probe.object.hooks:
        if missing_only and hook.name not in probe.missing:
            continue
        candidates = _candidates(probe, hook)
        if bound_only:
            candidates = [c for c in candidates if MECHANISMS[c.via].bound]
            if not candidates:
                continue
        reasons: list[str] = []
        probe.missing.pop(hook.name, None)
        probe.transient.discard(hook.name)
        for candidate in candidates:
            try:
                _try(probe, hook, candidate, target)
                break
            except Exception as error:  # whatever it is, the next mechanism may work
                reasons.append(f"{candidate.via}: {getattr(error, 'strerror', None) or error}")
                if getattr(error, "errno", 0) in _TRANSIENT:
                    probe.transient.add(hook.name)
        else:
            probe.missing[hook.name] = "; ".join(reasons) or "this kernel has none of the ways to watch it"


def check(probe: Attached) -> None:
    """NettopError where the probe cannot work without a hook that it has not got, but may later."""
    lost = _lost(probe)
    if probe.transient.intersection(lost):
        raise NettopError("; ".join(f"{name}: {probe.missing[name]}" for name in lost))


def _lost(probe: Attached) -> list[str]:
    """The missing hooks that the probe cannot do without: the required ones, or all where there is no other."""
    required = [h.name for h in probe.object.hooks if h.required and h.name in probe.missing]
    return required or ([] if probe.via else list(probe.missing))


def resume(probe: Attached, target: Target) -> None:
    """Attach what is not bound to the interface where it was before, with cleared state (Probe.state).

    Cleared first: the first program that runs would use it.  And the last hook first, so that what a program leaves
    for another one has that one there.
    """
    clear_state(probe)
    for hook in reversed(probe.object.hooks):
        candidate = probe.via.get(hook.name)
        if candidate is None or MECHANISMS[candidate.via].bound:
            continue
        try:
            _try(probe, hook, candidate, target)
        except OSError as error:
            print(f"{probe.name}: {hook.name} cannot be attached again: {error}", file=sys.stderr, flush=True)


def clear_state(probe: Attached) -> None:
    """Empty the maps with what is under way: packets, softirqs, polls."""
    for spec, fd in zip(probe.object.maps, probe.maps, strict=True):
        if spec.name not in probe.object.state:
            continue
        if spec.flags & syscall.MMAPABLE:  # megabytes, and no call for each entry
            with mmap.mmap(fd, spec.value_size * spec.max_entries) as memory:
                held = ctypes.c_char.from_buffer(memory)
                ctypes.memset(ctypes.addressof(held), 0, len(memory))
                del held  # or the memory cannot be given back
        else:
            cpus = syscall.possible_cpus() if syscall.MapType(spec.kind).per_cpu else 1
            blank = bytes(-(-spec.value_size // 8) * 8 * cpus)
            for index in range(spec.max_entries):
                syscall.map_update(fd, index.to_bytes(4, "little"), blank)


def lacks_programs(probe: Attached) -> bool:
    """Whether a hook is missing for which there are programs in the C file that were not compiled."""
    return any(
        a.program not in probe.object.programs
        for hook in probe.object.hooks
        if hook.name in probe.missing
        for candidate in hook.candidates
        if possible(candidate.via)
        for a in candidate.attachments
    )


def flags(probe: Attached) -> int:
    """What the programs must know of missing hooks: bits of the config's flags."""
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
            sizes, layouts = (spec.key_size, spec.value_size), (spec.key_layout, spec.value_layout)
            maps.append(MapInfo(spec.name, spec.kind, *sizes, entries, number(fd), *layouts))
    hooks: list[HookInfo] = []
    for hook, links in probe.links.items():
        candidate = probe.via[hook]
        programs = [_load(probe, candidate, index) for index in range(len(candidate.attachments))]
        hooks.append(
            HookInfo(
                hook, candidate.via, tuple(number(p) for p in programs), tuple(number(fd) for fd in links)
            )
        )
    lost = _lost(probe)
    state = "unavailable" if lost or not probe.via else "live"
    detail = "; ".join(f"{name}: {probe.missing[name]}" for name in lost)
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


def prepare(probe: Attached, new: Object, target: Target) -> Exchange:
    """Load what of another compilation of the same probe differs.  Nothing that runs is touched.

    Raises NettopError where the kernel refuses a program.
    """
    if new.maps != probe.object.maps:
        raise NettopError(f"{probe.name} has changed on disk since it was started", "start nettop again")
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
                _try(shadow, hook, candidate, target)
    except OSError as error:
        made.close()
        raise NettopError(f"the kernel refuses the filter for {probe.name}: {error.strerror}", "") from error
    except BaseException:
        made.close()
        raise
    return made


def exchange(made: Exchange, target: Target) -> Loaded:
    """Put the programs in; the answer has them by hook.

    Where there are links, it is for the screen, which holds them, to give them their new programs, or to take the new
    links for the old ones.  clsact's filters are exchanged here.
    """
    probe = made.probe
    ours = {a.program for c in probe.via.values() if c.via == "clsact" for a in c.attachments}
    try:
        target.clsact.replace({name: fd for (name, _), fd in made.programs.items() if name in ours})
    except OSError as error:
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
    """Close our copies of the links: only the screen's descriptors keep the programs attached."""
    for links in probe.links.values():
        for fd in links:
            if fd >= 0:
                os.close(fd)
    probe.links.clear()

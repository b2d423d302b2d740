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
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import or_

from nettop.bpf import syscall
from nettop.bpf.config import CONFIG, Config
from nettop.bpf.hooks import Attachment, Candidate, Hook, Via
from nettop.bpf.protocol import HookInfo, Loaded, MapInfo, Plan, ProbeInfo
from nettop.core.errors import NettopError
from nettop.loader.compile import Object
from nettop.loader.mechanisms import MECHANISMS, Target, possible

_LOG_BYTES = 1 << 20
_SIDE_BY_SIDE = 4  # programs that are loaded at once, at most
# What may work a moment later, whatever this kernel is: memory, descriptors, a place that is taken, an interface.
_TRANSIENT = frozenset(
    getattr(errno, name)
    for name in "ENOMEM ENOSPC EMFILE ENFILE EAGAIN EINTR EBUSY ETIMEDOUT ENODEV ENXIO".split()
)
_ANYWHERE = (syscall.ProgType.SCHED_CLS, syscall.ProgType.RAW_TRACEPOINT, syscall.ProgType.NETFILTER)


@dataclass
class Attached:
    """One probe in the kernel.  The maps are kept for a later attachment; links belong to the screen."""

    name: str
    object: Object
    maps: list[int] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)  # as made
    programs: dict[tuple[str, str], int] = field(default_factory=dict)  # by _key()
    links: dict[str, list[int]] = field(default_factory=dict)  # by hook, until they are handed over
    via: dict[str, Candidate] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # hook -> each mechanism's error
    transient: set[str] = field(default_factory=set)  # of the missing ones, those that may work later
    defines: tuple[str, ...] = ()  # that it was compiled with

    def close(self) -> None:
        """Close every descriptor that is still ours.  The links that the screen has stay."""
        self.close_programs()
        _close(self.maps)
        self.maps.clear()

    def close_programs(self) -> None:
        """The same, but the maps stay."""
        _close((*self.programs.values(), *(fd for fds in self.links.values() for fd in fds)))
        self.programs.clear()
        self.links.clear()


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            if fd >= 0:
                os.close(fd)


def make_maps(probe: Attached, plan: Plan) -> None:
    """Create the probe's maps, sized by the plan where its module says so."""
    for spec in probe.object.maps:
        entries = spec.max_entries
        if spec.name in probe.object.entries:
            entries = dict(plan.entries).get(f"{probe.name}.{spec.name}", entries)
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
        if spec.name == CONFIG:
            try:
                value = config.pack(spec.value_layout)
            except ValueError as error:
                raise NettopError(
                    str(error), "install nettop again: a part of it is of another version"
                ) from error
            syscall.map_update(fd, bytes(4), value)


def _key(via: Via, attachment: Attachment) -> tuple[str, str]:
    """Of the program of one attachment.  One of these types can be attached anywhere: load it once for all places."""
    anywhere = MECHANISMS[via].program in _ANYWHERE
    return attachment.program, "" if anywhere else f"{via} {attachment.target}"


def _program(probe: Attached, via: Via, attachment: Attachment) -> Callable[[syscall.Buffer | None], int]:
    """What loads it, all but the call into the kernel done."""
    mechanism = MECHANISMS[via]
    return partial(
        syscall.prog_load,
        mechanism.program,
        probe.object.linked(attachment.program, probe.maps),
        attachment.program,
        mechanism.attach_type,
        mechanism.btf_id(attachment),
    )


def load(probe: Attached, via: Via, attachment: Attachment) -> int:
    """The program of one attachment, loaded for its mechanism; the verifier's words go to the log if it refuses."""
    key = _key(via, attachment)
    if key in probe.programs:
        return probe.programs[key]
    into_kernel = _program(probe, via, attachment)
    try:
        fd = into_kernel(None)
    except OSError as error:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        with contextlib.suppress(OSError):
            os.close(into_kernel(log))
        words = log.value.decode(errors="replace").strip()
        print(f"{key[0]} refused: {error}\n{words}", file=sys.stderr, flush=True)
        lines = [w for w in words.splitlines() if not w.startswith("processed ")]
        reason = f"{error.strerror}: {lines[-1]}" if lines else str(error.strerror)
        raise OSError(error.errno, reason) from error
    probe.programs[key] = fd
    return fd


def load_first_choices(probes: Iterable[Attached]) -> None:
    """Load the programs that attaching will ask for first, one on each CPU: the verifier takes most of a start.

    Nothing is said of one that is refused: attaching loads it again, and keeps the reason.
    """
    wanted: dict[tuple[str, tuple[str, str]], tuple[Attached, Callable[..., int]]] = {}
    for probe in probes:
        for hook in probe.object.hooks:
            first = next((c for c in hook.candidates if _compiled(probe, c)), None)
            if first:
                for attachment in first.attachments:
                    with contextlib.suppress(OSError):  # a function or tracepoint that is not there
                        into_kernel = _program(probe, first.via, attachment)
                        key = _key(first.via, attachment)
                        wanted.setdefault((probe.name, key), (probe, into_kernel))
    # The longest last, from where they are taken first.
    left = [(key, *wanted[name, key]) for name, key in wanted]
    left.sort(key=lambda each: len(each[1].object.programs[each[0][0]]))

    def work() -> None:
        with contextlib.suppress(IndexError):  # none is left
            while True:
                key, probe, into_kernel = left.pop()
                with contextlib.suppress(OSError):
                    probe.programs[key] = into_kernel(None)

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
        for attachment in candidate.attachments:
            program = load(probe, candidate.via, attachment)
            links.append(MECHANISMS[candidate.via].attach(program, attachment, target))
    except BaseException:
        _close(links)
        if candidate.via == "clsact":
            target.clsact.remove({a.program for a in candidate.attachments})
        raise
    probe.links[hook.name] = links
    probe.via[hook.name] = candidate


def _compiled(probe: Attached, candidate: Candidate) -> bool:
    return all(a.program in probe.object.programs for a in candidate.attachments)


def attach(probe: Attached, target: Target, bound_only: bool = False, missing_only: bool = False) -> None:
    """Try each hook's mechanisms in order of preference until one works; where none does, each error is kept.

    ``bound_only``: just those that are bound to the interface, when that has come back; ``missing_only``: just those
    that could not be attached before.
    """
    for hook in probe.object.hooks:
        if missing_only and hook.name not in probe.missing:
            continue
        candidates = [c for c in hook.candidates if _compiled(probe, c)]
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
    missing = (hook for hook in probe.object.hooks if hook.name in probe.missing)
    candidates = (c for hook in missing for c in hook.candidates if possible(c.via))
    return not all(_compiled(probe, candidate) for candidate in candidates)


def flagged(config: Config, *probes: Attached) -> Config:
    """The same, with what the programs must know of hooks that these probes lack: bits of its flags."""
    missing = (hook.flag for probe in probes for hook in probe.object.hooks if hook.name in probe.missing)
    return replace(config, flags=reduce(or_, missing, config.flags))


def report(probe: Attached, bound_only: bool = False) -> Loaded:
    """What the screen is told and given.  The links are its own from here on: ``handed_over`` closes our copies."""
    fds: list[int] = []
    maps: list[MapInfo] = []
    if not bound_only:
        for spec, fd, entries in zip(probe.object.maps, probe.maps, probe.entries, strict=True):
            if spec.name not in probe.object.read:
                continue  # the programs' own, with what of kernel addresses tells packets and sockets apart
            sizes, layouts = (spec.key_size, spec.value_size), (spec.key_layout, spec.value_layout)
            maps.append(MapInfo(spec.name, spec.kind, *sizes, entries, _number(fd, fds), *layouts))
    lost = _lost(probe)
    state = "unavailable" if lost or not probe.via else "live"
    detail = "; ".join(f"{name}: {probe.missing[name]}" for name in lost)
    hooks, missing = _hooks(probe, probe.links, fds), tuple(sorted(probe.missing.items()))
    return Loaded(ProbeInfo(probe.name, state, detail, "", tuple(maps), hooks, missing), tuple(fds))


def _hooks(probe: Attached, names: Iterable[str], fds: list[int]) -> tuple[HookInfo, ...]:
    """Hooks as the screen is told of them; their descriptors go into ``fds``."""
    infos: list[HookInfo] = []
    for name in names:
        candidate = probe.via[name]
        programs = [load(probe, candidate.via, attachment) for attachment in candidate.attachments]
        numbers = ([_number(fd, fds) for fd in part] for part in (programs, probe.links.get(name, ())))
        infos.append(HookInfo(name, candidate.via, *map(tuple, numbers)))
    return tuple(infos)


def _number(fd: int, fds: list[int]) -> int:
    """Where a descriptor is in an answer, from now on; -1 for none."""
    if fd < 0:
        return -1
    if fd not in fds:
        fds.append(fd)
    return fds.index(fd)


def prepare(probe: Attached, new: Object, target: Target) -> Attached:
    """Load what of another compilation of the same probe differs, against the same maps.  Nothing that runs is touched.

    Where a link can be given another program, they are only loaded.  Elsewhere they are attached beside those that run,
    and do nothing until the config names their generation.  Raises NettopError where the kernel refuses a program.
    """
    if new.maps != probe.object.maps:
        raise NettopError(f"{probe.name} has changed on disk since it was started", "start nettop again")
    fresh = Attached(probe.name, new, probe.maps, probe.entries)
    with contextlib.ExitStack() as undo:
        undo.callback(fresh.close_programs)
        try:
            for hook in probe.object.hooks:
                candidate = probe.via.get(hook.name)
                if candidate is None or all(
                    new.programs.get(a.program) == probe.object.programs.get(a.program)
                    for a in candidate.attachments
                ):
                    continue
                if MECHANISMS[candidate.via].swaps:
                    for attachment in candidate.attachments:
                        load(fresh, candidate.via, attachment)
                else:
                    _try(fresh, hook, candidate, target)
        except OSError as error:
            message = f"the kernel refuses the filter for {probe.name}: {error.strerror}"
            raise NettopError(message) from error
        undo.pop_all()
    return fresh


def exchange(probe: Attached, fresh: Attached, target: Target) -> Loaded:
    """Put the programs in that ``prepare`` has loaded; the answer has them by hook.

    Where there are links, it is for the screen, which holds them, to give them their new programs, or to take the new
    links for the old ones.  clsact's filters are exchanged here.
    """
    ours = {a.program for c in probe.via.values() if c.via == "clsact" for a in c.attachments}
    try:
        target.clsact.replace({name: fd for (name, _), fd in fresh.programs.items() if name in ours})
    except OSError as error:
        fresh.close_programs()
        raise NettopError(f"{probe.name}: tc did not exchange the programs: {error}") from error
    for key, fd in fresh.programs.items():
        os.close(probe.programs[key])
        probe.programs[key] = fd
    probe.object, probe.links = fresh.object, fresh.links
    changed = {name for name, _ in fresh.programs}
    names = [hook for hook, c in probe.via.items() if any(a.program in changed for a in c.attachments)]
    fds: list[int] = []
    hooks = _hooks(probe, names, fds)
    return Loaded(ProbeInfo(probe.name, "live", hooks=hooks), tuple(fds))


def handed_over(probe: Attached) -> None:
    """Close our copies of the links: only the screen's descriptors keep the programs attached."""
    _close(fd for links in probe.links.values() for fd in links)
    probe.links.clear()

"""What is attached, and what the programs are told: the descriptors of programs and links, and the config maps.

One control thread owns ``Attachments``; every method is called there, and most block.  What others get of it is
immutable, as ``hooks`` is.  A link is closed here.  A program's descriptor is the meter's to
close (meter.py), once it has seen ``hooks`` without it: until then it may be taking its run statistics.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from nettop.bpf import syscall
from nettop.bpf.config import CONFIG, Config, Flag
from nettop.bpf.protocol import (
    AttachInterface,
    Filter,
    HookInfo,
    Load,
    Loaded,
    Plan,
    ResumeProbes,
    RetryProbes,
)
from nettop.collect.loader_client import LoaderHandle
from nettop.core.errors import NettopError
from nettop.netdev import netlink

_BOUND = ("tcx", "clsact")  # mechanisms that are bound to the interface
_OF_DEVICE = ("ifindex", "netns", "l2_len", "count_in", "count_out", "cut_above", "epoch")  # of struct config


@dataclass(frozen=True)
class Attachment:
    """A hook as it is attached, with its descriptors here."""

    probe: str
    hook: str
    via: str
    programs: tuple[int, ...]
    links: tuple[int, ...] = ()  # none: suspended, detached, or attached by what has no links (clsact)

    @property
    def bound(self) -> bool:
        """Whether it is attached to the interface, and goes with that."""
        return self.via in _BOUND


class Attachments:
    """The programs of all probes, through the loader and by their links.  Errors are NettopError."""

    def __init__(self, handle: LoaderHandle) -> None:
        self._handle = handle
        self._config_maps: dict[str, tuple[int, str]] = {}  # by probe: descriptor, and how it is laid out
        self._hooks: dict[tuple[str, str], Attachment] = {}  # by probe and hook
        self.config = Config()  # as it was written last
        self.changed = 0.0  # time.monotonic() since when everything counts as it does now

    @property
    def hooks(self) -> tuple[Attachment, ...]:
        """What is attached now."""
        return tuple(self._hooks.values())

    def load(self, plan: Plan) -> tuple[list[Loaded], str]:
        """Have everything compiled, loaded and attached; the probes, and what the user is told of it."""
        loaded, done = self._handle.request(Load(plan))
        self.config = Config.from_json(done.config)
        for answer in loaded:
            self._take(answer)
        return loaded, done.note

    def retry(self, probes: Collection[str]) -> list[Loaded]:
        """Have probes loaded anew that have failed, closing whatever there is of them."""
        self._drop(probes)
        loaded, done = self._handle.request(RetryProbes(tuple(probes)))
        for answer in loaded:
            self._take(answer)
        made = Config.from_json(done.config)
        self.config = replace(self.config, flags=int(self.config.flags | made.flags))
        self._write()  # the loader knows nothing of the flow in focus, and of what is shed
        return loaded

    def discard(self, answer: Loaded) -> None:
        """Close everything of a probe that came and is of no use."""
        self._drop((answer.probe.name,))
        _close({answer.fds[made.fd] for made in answer.probe.maps})

    def configure(self, config: Config) -> None:
        """Tell the programs something new."""
        if config != self.config:
            self.config = config
            self._write()

    def exchange_filter(self, words: tuple[int, ...]) -> None:
        """Have the programs exchanged for such as count what this filter accepts.  On an error the old ones stay."""
        loaded, done = self._handle.request(Filter(words))
        for answer in loaded:
            for hook in answer.probe.hooks:
                if not hook.links:
                    self._exchange(answer.probe.name, hook, tuple(answer.fds[n] for n in hook.programs))
        # What cannot be given other programs has been attached twice: this decides which of the two counts.
        self.configure(replace(self.config.filtered(done.generation, bool(words)), epoch=done.epoch))
        for answer in loaded:
            self._put(answer, [hook for hook in answer.probe.hooks if hook.links])

    def _exchange(self, probe: str, info: HookInfo, programs: tuple[int, ...]) -> None:
        """Give the links of one hook their new programs: each packet meets the one or the other."""
        hook = self._hooks[probe, info.hook]
        # no links: clsact, which the loader has done
        for link, fd in zip(hook.links, programs, strict=False):
            try:
                syscall.link_update(link, fd)
            except OSError as error:
                # ENOLINK: its interface has gone; what is attached next has the new filter
                if error.errno != errno.ENOLINK:
                    message = f"the filter of {info.hook} cannot be changed: {error.strerror}"
                    raise NettopError(message) from error
        self._hooks[probe, info.hook] = replace(hook, programs=programs)

    def intact(self) -> bool:
        """Whether everything that was attached to the interface is there still."""
        bound = [hook for hook in self.hooks if hook.bound]
        index = self.config.ifindex
        try:
            if any(syscall.link_interface(fd) != index for hook in bound for fd in hook.links):
                return False
            by_filter = [fd for hook in bound if hook.via == "clsact" for fd in hook.programs]
            if not by_filter:
                return True
            there = {f.program for f in netlink.all_filters(index)}
            return {syscall.program_info(fd).id for fd in by_filter} <= there
        except OSError:  # not known is not lost
            return True

    def detach_interface(self) -> None:
        """The programs do nothing from here on, and what was attached to the interface is detached."""
        self.configure(replace(self.config, ifindex=0))
        self._close_links(hook for hook in self.hooks if hook.bound)

    def attach_interface(self, name: str) -> None:
        """Attach to the interface that has this name now.  NettopError where not all of it can be attached."""
        wanted = {key for key, hook in self._hooks.items() if hook.bound}
        loaded, done = self._handle.request(AttachInterface(name))
        for answer in loaded:
            self._put(answer, answer.probe.hooks)
        if wanted - {(answer.probe.name, hook.hook) for answer in loaded for hook in answer.probe.hooks}:
            raise NettopError(
                "; ".join(f"{hook}: {why}" for answer in loaded for hook, why in answer.probe.missing)
            )
        made = Config.from_json(done.config)
        # All else (the flow in focus, say) the loader does not know.
        of_device = {name: getattr(made, name) for name in _OF_DEVICE}
        flags = (self.config.flags & ~Flag.OF_DEVICE) | (made.flags & Flag.OF_DEVICE)
        self.configure(replace(self.config, flags=flags, **of_device))

    def suspend(self, probes: Collection[str]) -> None:
        """Detach what these probes have attached; their maps stay as they are."""
        self._close_links(hook for hook in self.hooks if hook.probe in probes)

    def resume(self, probes: Collection[str]) -> None:
        """Attach again what was suspended."""
        loaded, _ = self._handle.request(ResumeProbes(tuple(probes)))
        for answer in loaded:
            links = {hook.hook: tuple(answer.fds[n] for n in hook.links) for hook in answer.probe.hooks}
            for (probe, name), hook in self._hooks.items():
                if probe == answer.probe.name:
                    self._hooks[probe, name] = replace(hook, links=links.get(name, ()))
            # The others are descriptors of programs that are known.
            _close(set(answer.fds) - {fd for fds in links.values() for fd in fds})

    def _take(self, answer: Loaded) -> None:
        """A probe's hooks and its config map."""
        for made in answer.probe.maps:
            if made.name == CONFIG:
                self._config_maps[answer.probe.name] = answer.fds[made.fd], made.value_layout
        self._put(answer, answer.probe.hooks)

    def _drop(self, probes: Collection[str]) -> None:
        for key in [key for key in self._hooks if key[0] in probes]:
            _close(self._hooks.pop(key).links)
        for name in probes:
            self._config_maps.pop(name, None)

    def _put(self, answer: Loaded, hooks: Iterable[HookInfo]) -> None:
        """Hooks of a probe in the places of those of the same names."""
        for info in hooks:
            key = answer.probe.name, info.hook
            programs = tuple(answer.fds[n] for n in info.programs)
            links = tuple(answer.fds[n] for n in info.links if n >= 0)
            old = self._hooks.pop(key, None)
            self._hooks[key] = Attachment(*key, info.via, programs, links)
            _close(old.links if old else ())

    def _close_links(self, hooks: Iterable[Attachment]) -> None:
        for hook in hooks:
            _close(hook.links)
            self._hooks[hook.probe, hook.hook] = replace(hook, links=())

    def _write(self) -> None:
        self.changed = time.monotonic()
        for fd, layout in self._config_maps.values():
            syscall.map_update(fd, bytes(4), self.config.pack(layout))


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)

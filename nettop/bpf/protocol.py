"""What the loader and the screen say to each other: a few fixed messages over a SOCK_SEQPACKET pair.

A message is one datagram of JSON with at most MAX_FDS descriptors.  Whatever does not have exactly the expected form
is refused: the screen is not trusted by the loader, which keeps the privileges.
"""

from __future__ import annotations

import array
import json
import os
import re
import socket
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nettop.bpf.filter import FilterError, from_words

MAX_BYTES = 1 << 18
MOST_ENTRIES = 1 << 20  # of a map
MAX_FDS = 200
_INTERFACE = re.compile(r"^[^\s/\x00-\x1f\x7f\ud800-\udfff]{1,15}\Z")  # the kernel allows more
NAME = re.compile(r"^[a-z][a-z0-9_]{0,31}\Z")  # of probes and hooks


class ProtocolError(Exception):
    """The other end said something that is not in the protocol."""


@dataclass(frozen=True)
class Plan:
    """What to load: the whole of what the screen may decide."""

    interface: str
    probes: tuple[str, ...]
    entries: tuple[tuple[str, int], ...] = ()  # of maps that can be sized, by ``probe.map``
    subnet4: int = 24
    subnet6: int = 48
    filter: tuple[int, ...] = ()  # as Filter has it
    trace: bool = False  # with what shows packets one by one

    def __post_init__(self) -> None:
        _check_interface(self.interface)
        _check_probes(self.probes)
        if len(self.entries) > 64 or not all(1 <= count <= MOST_ENTRIES for _, count in self.entries):
            raise ProtocolError("entries out of range")
        if not (0 <= self.subnet4 <= 32 and 0 <= self.subnet6 <= 128):
            raise ProtocolError("subnet prefix out of range")
        _check_filter(self.filter)


@dataclass(frozen=True)
class MapInfo:
    """A map as it was made; its descriptor is ``fds[fd]`` of the message."""

    name: str
    kind: int
    key_size: int
    value_size: int
    max_entries: int
    fd: int
    key_layout: str = ""  # as BCC describes the types, see nettop.bpf.c_layout
    value_layout: str = ""


@dataclass(frozen=True)
class HookInfo:
    """A hook as it was attached: program and link descriptors by number (-1: none, as with clsact)."""

    hook: str
    via: str
    programs: tuple[int, ...] = ()
    links: tuple[int, ...] = ()


@dataclass(frozen=True)
class ProbeInfo:
    """One probe's outcome.  ``detail`` is one line for the pane, the rest is in the log.

    ``state`` as in the frame: ``failed`` is worth another try (RetryProbes), ``unavailable`` is not on this kernel.
    """

    name: str
    state: str
    detail: str = ""
    hint: str = ""
    maps: tuple[MapInfo, ...] = ()
    hooks: tuple[HookInfo, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()  # hook, why no mechanism works


@dataclass(frozen=True)
class Load:
    """Screen to loader: compile, load and attach.  Answered by one Loaded a probe and a Done."""

    plan: Plan


@dataclass(frozen=True)
class AttachInterface:
    """Screen to loader: attach again to this interface, which is back (perhaps as another device) or lost what was
    attached.  Answered like Load; maps are kept.
    """

    interface: str = ""  # empty: the plan's

    def __post_init__(self) -> None:
        if self.interface:
            _check_interface(self.interface)


@dataclass(frozen=True)
class Filter:
    """Screen to loader: count these packets and no others from now on; empty: all.

    Classic BPF, four numbers an instruction (code, jt, jf, k), as nettop.bpf.filter.Program.words.  Answered by one
    Loaded for each probe whose programs are others now, and a Done.  A hook that comes with links is attached
    twice then: the new programs do nothing until the config names their generation, and the old ones from then on.
    """

    instructions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_filter(self.instructions)


def _check_interface(name: str) -> None:
    if not _INTERFACE.match(name) or name in (".", ".."):
        raise ProtocolError(f"not an interface name: {name!r}")


def _check_probes(names: tuple[str, ...]) -> None:
    if not all(NAME.match(name) for name in names) or len(names) > 32:
        raise ProtocolError("not a list of probes")


def _check_filter(words: tuple[int, ...]) -> None:
    try:
        from_words(words)
    except (ValueError, FilterError) as error:
        raise ProtocolError(f"not a filter: {error}") from None


@dataclass(frozen=True)
class _Named:
    probes: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_probes(self.probes)


class ResumeProbes(_Named):
    """Screen to loader: attach these probes again, which the screen has suspended by closing their links.

    Answered by one Loaded a probe, with links and without maps, and a Done.  What their programs knew of packets that
    were under way is cleared; what they have counted is kept.
    """


class RetryProbes(_Named):
    """Screen to loader: compile, load and attach these probes of the plan anew, which have failed.

    Answered like Load.  Whatever was left of them is closed first.
    """


@dataclass(frozen=True)
class Stats:
    """Screen to loader: run statistics on or off.  Answered by Done."""

    on: bool


@dataclass(frozen=True)
class Loaded:
    """Loader to screen: one probe, with its descriptors."""

    probe: ProbeInfo
    fds: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Done:
    """Loader to screen: finished; ``error`` is empty where all went well."""

    error: str = ""
    hint: str = ""
    code: int = 0
    config: str = ""  # Config.to_json, after Load, AttachInterface and RetryProbes
    note: str = ""  # what the user should know
    generation: int = 0  # of the programs, after Filter: the config that names it sets them going
    epoch: int = 0  # of the config, likewise: generations come again


Request = Load | AttachInterface | Filter | ResumeProbes | RetryProbes | Stats
Message = Request | Loaded | Done
_KINDS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in get_args(Message)}


def send(sock: socket.socket, message: Message) -> None:
    """Send one message; the descriptors of a Loaded go with it (and stay open here)."""
    fds = message.fds if isinstance(message, Loaded) else ()
    body = asdict(message)
    body.pop("fds", None)
    data = json.dumps([type(message).__name__, body]).encode()
    if len(data) > MAX_BYTES or len(fds) > MAX_FDS:
        raise ProtocolError("message too large")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary)


def receive(sock: socket.socket) -> Message:
    """The next message.  EOFError when the other end is gone; ProtocolError closes whatever came with it."""
    space = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(MAX_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    try:
        if not data:
            raise EOFError("the other process is gone")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError("message cut short")
        message = _decode(data, tuple(fds))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return message


def _decode(data: bytes, fds: tuple[int, ...]) -> Message:
    try:
        name, body = json.loads(data)
        message: Message = typed(_KINDS[name], body)
    except ProtocolError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolError(f"not a message: {error}") from None
    if isinstance(message, Loaded):
        if message.fds:
            raise ProtocolError("descriptors in the text")
        _check_descriptors(message.probe, len(fds))
        return replace(message, fds=fds)
    if fds:
        raise ProtocolError("descriptors where there should be none")
    return message


_hints = cache(get_type_hints)


def typed(kind: Any, value: Any) -> Any:
    """What JSON gave as a value of this type: a dataclass, tuple, mapping, literal, scalar, or bytes as base64.

    Raises TypeError or ValueError for whatever is not exactly that.
    """
    origin, kinds = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        if type(value) is not dict or value.keys() - hints.keys():
            raise TypeError(f"not the fields of {kind.__name__}")
        return kind(**{name: typed(hints[name], each) for name, each in value.items()})
    if origin is Mapping and type(value) is dict:
        return {name: typed(kinds[1], each) for name, each in value.items()}
    if origin is tuple and type(value) is list:
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        return tuple(typed(each, part) for each, part in zip(kinds, value, strict=True))
    if kind is bytes and type(value) is str:
        return b64decode(value)
    fits = value in kinds if origin is Literal else type(value) is kind
    if not fits:
        raise TypeError(f"{str(value)[:80]!r} is no {kind}")
    return value


def _check_descriptors(probe: ProbeInfo, fds: int) -> None:
    attached = [n for hook in probe.hooks for n in (*hook.programs, *hook.links) if n != -1]
    if any(not 0 <= n < fds for n in (*attached, *(made.fd for made in probe.maps))):
        raise ProtocolError("a descriptor that did not come")

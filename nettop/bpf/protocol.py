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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

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
        _check_names(self.probes, "probes")
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
    """Screen to loader: attach again to this interface, which is back (perhaps as another device) or has lost what was
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


def _check_names(names: tuple[str, ...], what: str) -> None:
    if not all(NAME.match(name) for name in names) or len(names) > 32:
        raise ProtocolError(f"not a list of {what}")


def _check_filter(words: tuple[int, ...]) -> None:
    try:
        from_words(words)
    except (ValueError, FilterError) as error:
        raise ProtocolError(f"not a filter: {error}") from None


@dataclass(frozen=True)
class ResumeProbes:
    """Screen to loader: attach these probes again, which the screen has suspended by closing their links.

    Answered by one Loaded a probe, with links and without maps, and a Done.  What their programs knew of packets that
    were under way is cleared; what they have counted is kept.
    """

    probes: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_names(self.probes, "probes")


@dataclass(frozen=True)
class RetryProbes:
    """Screen to loader: compile, load and attach these probes of the plan anew, which have failed.

    Answered like Load.  Whatever was left of them is closed first.
    """

    probes: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_names(self.probes, "probes")


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
_KINDS: Mapping[str, type[Any]] = {
    k.__name__: k for k in (Load, AttachInterface, Filter, ResumeProbes, RetryProbes, Stats, Loaded, Done)
}


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
        kind = _KINDS[name]
        if kind is Load:
            return Load(_strict(Plan, body["plan"]))
        if kind is Loaded:
            return Loaded(_probe(body["probe"], len(fds)), fds)
        if fds:
            raise ProtocolError("descriptors where there should be none")
        message: Message = _strict(kind, body)
    except ProtocolError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"not a message: {error}") from None
    return message


_PAIRS = {"tuple[tuple[str, int], ...]": int, "tuple[tuple[str, str], ...]": str}


def _strict(kind: type[Any], body: Mapping[str, Any]) -> Any:
    """A flat dataclass from JSON, every value of the declared type, no field unknown."""
    declared = {f.name: str(f.type) for f in fields(kind)}
    if not isinstance(body, dict) or set(body) - set(declared):
        raise ProtocolError(f"unknown fields for {kind.__name__}")
    values: dict[str, Any] = {}
    for name, value in body.items():
        expected = declared[name]
        if expected == "bool":
            good = isinstance(value, bool)
        elif expected == "int":
            good = isinstance(value, int) and not isinstance(value, bool)
        elif expected == "str":
            good = isinstance(value, str)
        elif expected == "tuple[str, ...]":
            good = isinstance(value, list) and all(isinstance(v, str) for v in value)
            value = tuple(value) if good else value
        elif expected == "tuple[int, ...]":
            good = isinstance(value, list) and all(type(v) is int for v in value)
            value = tuple(value) if good else value
        elif expected in _PAIRS:
            kinds = [str, _PAIRS[expected]]
            good = isinstance(value, list) and all(
                isinstance(v, list) and [type(each) for each in v] == kinds for v in value
            )
            value = tuple((v[0], v[1]) for v in value) if good else value
        else:
            good = False
        if not good:
            raise ProtocolError(f"{kind.__name__}.{name} is not {expected}")
        values[name] = value
    return kind(**values)


def _probe(body: Mapping[str, Any], fds: int) -> ProbeInfo:
    flat = {k: v for k, v in body.items() if k not in ("maps", "hooks")}
    info: ProbeInfo = _strict(ProbeInfo, flat)
    maps = tuple(_strict(MapInfo, m) for m in body.get("maps", ()))
    hooks = tuple(_strict(HookInfo, h) for h in body.get("hooks", ()))
    used = [m.fd for m in maps] + [n for h in hooks for n in (*h.programs, *h.links) if n != -1]
    if any(not 0 <= n < fds for n in used):
        raise ProtocolError("a descriptor that did not come")
    return ProbeInfo(info.name, info.state, info.detail, info.hint, maps, hooks, info.missing)

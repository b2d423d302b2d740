"""For tests of stages and of the interrupt path: sums over frames, and a softirq that is delayed."""

import ctypes
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lab import Lab, Link, Nettop, bpf, foreign_programs
from lab.errors import LabError
from lab.namespace import Endpoint, Namespace
from lab.program import Frame

MS = 1_000_000
RECEIVE = ("stack", "ip", "local", "transport", "socket", "application")
SEND = ("application", "ip", "qdisc", "driver")
BOTH = (*(("rx", stage) for stage in RECEIVE), *(("tx", stage) for stage in SEND))


@dataclass
class Total:
    """One stage, or one histogram, over several frames."""

    count: int = 0
    sum_ns: int = 0
    missed: int = 0
    dropped: int = 0
    path_ns: int = 0
    path_packets: int = 0
    begin: str = ""
    end: str = ""
    via: str = ""
    buckets: dict[int, int] = field(default_factory=dict)

    def add(self, histogram: dict[str, Any] | None) -> None:
        if histogram is None:
            return
        self.count += histogram["count"]
        self.sum_ns += histogram["sum_ns"]
        for upper, count in histogram["buckets"]:
            self.buckets[upper] = self.buckets.get(upper, 0) + count

    @property
    def mean_ns(self) -> float:
        return self.sum_ns / self.count if self.count else math.nan

    @property
    def coverage(self) -> float:
        return self.count / (self.count + self.missed) if self.count + self.missed else math.nan

    def percentile_ns(self, share: float) -> int:
        """The upper edge of the bucket that holds it."""
        seen = 0
        for upper, count in sorted(self.buckets.items()):
            seen += count
            if seen >= share * self.count:
                return upper
        raise LabError("no samples")


def stages(frames: Iterable[Frame], flow: int = 0) -> dict[tuple[str, str], Total]:
    """Every stage by (direction, stage); the whole way as (direction, "whole").  `flow`: of that one, in focus."""
    totals: dict[tuple[str, str], Total] = {}
    for frame in frames:
        section = frame["stages"]
        if flow:
            section = section["focus"]
            if section is None or section["flow"] != flow:
                continue
        for direction in ("rx", "tx"):
            for stage in section[direction]:
                total = totals.setdefault((direction, stage["stage"]), Total())
                total.add(stage["latency"])
                total.missed += stage["missed"] or 0
                total.dropped += stage["dropped"] or 0
                total.path_ns += stage["path_ns"]
                total.path_packets += stage["path_packets"]
                total.begin, total.end, total.via = stage["from"], stage["to"], stage["via"]
            totals.setdefault((direction, "whole"), Total()).add(section[f"{direction}_whole"])
    return totals


@dataclass(frozen=True)
class Watch:
    """A nettop that is beside one piece of traffic after another."""

    nettop: Nettop

    @contextmanager
    def observing(self, skip: int = 2) -> Iterator[list[Frame]]:
        """The frames of the block's traffic, and a second of silence after it; in `skip` is what was before."""
        frames: list[Frame] = []
        before = len(self.nettop.wait_frames(len(self.nettop.frames) + skip))
        yield frames
        self.nettop.more_frames(5)
        frames += self.nettop.frames[before:]


@contextmanager
def running(lab: Lab, at: Endpoint, via: str = "", without: str = "") -> Iterator[Watch]:
    """nettop's stages at this endpoint, from its first frame on."""
    env = {"NETTOP_VIA": via, "NETTOP_WITHOUT": without}
    with Nettop(lab, at, "-p", "stages", "-d", "0.25", env=env) as nettop:
        nettop.wait_frames(1)
        yield Watch(nettop)


@dataclass(frozen=True)
class Station:
    """A link, and the nettop that follows the stages at its end `a`."""

    lab: Lab
    link: Link
    watch: Watch


@contextmanager
def watching(lab: Lab, at: Endpoint, via: str = "", without: str = "") -> Iterator[list[Frame]]:
    """A nettop of one's own beside one piece of traffic."""
    with running(lab, at, via, without) as watch, watch.observing(skip=0) as frames:
        yield frames


def above(link: Link, *words: str) -> Endpoint:
    """The address of `link.a` moves to a device that is made of these words, above its own."""
    run = link.a.ns.run
    neighbour = run("cat", f"/sys/class/net/{link.a.name}/address").stdout.strip()
    run("ip", "addr", "flush", "dev", link.a.name)
    run("ip", "link", "add", "up0", *words)
    if words == ("type", "bridge"):
        run("ip", "link", "set", link.a.name, "master", "up0")
        run("ip", "link", "set", "up0", "address", neighbour)
    run("ip", "link", "set", "up0", "up")
    run("ip", "addr", "add", f"{link.a.v4}/24", "dev", "up0")
    upper = run("cat", "/sys/class/net/up0/address").stdout.strip()
    link.b.ns.run("ip", "neigh", "replace", link.a.v4, "lladdr", upper, "dev", link.b.name)
    peer = link.b.ns.run("cat", f"/sys/class/net/{link.b.name}/address").stdout.strip()
    run("ip", "neigh", "replace", link.b.v4, "lladdr", peer, "dev", "up0")
    return Endpoint(link.a.ns, "up0", upper, link.a.v4, link.a.v6)


def masquerade(ns: Namespace, device: str, *how: str) -> None:
    """What this namespace sends by the device has that one's address."""
    ns.run("nft", "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }")
    ns.run("nft", f"add rule ip nat post oifname {device} masquerade {' '.join(how)}")


def through_ifb(at: Endpoint) -> None:
    """What this interface receives goes by way of an ifb."""
    run = at.ns.run
    run("ip", "link", "add", "ifb0", "type", "ifb")
    run("ip", "link", "set", "ifb0", "up")
    run("tc", "qdisc", "add", "dev", at.name, "handle", "ffff:", "ingress")
    run(
        "tc", "filter", "add", "dev", at.name, "parent", "ffff:", "protocol", "ip", "u32", "match", "u32", "0", "0",
        "action", "mirred", "egress", "redirect", "dev", "ifb0",
    )  # fmt: skip


def softirqs(frames: Iterable[Frame], vector: str) -> tuple[Total, Total]:
    """Wait and run of one vector."""
    wait, run = Total(), Total()
    for frame in frames:
        for entry in frame["irq"]["soft"]:
            if entry["vector"] == vector:
                wait.add(entry["wait"])
                run.add(entry["run"])
    return wait, run


# --- a program that takes time where it is attached ------------------------------------------------------------------

_RAW_TRACEPOINT_OPEN, _RAW_TRACEPOINT = 17, 17
_XDP_FLAGS_SKB_MODE = 2
_KTIME = 5


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, to | source << 4, offset, value)


def _burn(before: bytes, after: bytes, burn_ns: int, skip: Callable[[int], bytes] = lambda _: b"") -> bytes:
    """A program that takes so long; ``skip`` jumps over so many instructions where it need not."""
    rounds, calls = 4000, 64  # the verifier walks through every round, and looks at few branches
    return b"".join(
        (
            before,
            skip(7 + calls),
            _instruction(0x85, value=_KTIME),
            _instruction(0xBF, 6, 0),  # r6 = now
            _instruction(0xB7, 7, value=rounds),
            *[_instruction(0x85, value=_KTIME)] * calls,
            _instruction(0x1F, 0, 6),  # r0 -= r6
            _instruction(0x25, 0, 0, 2, burn_ns),  # if r0 > burn_ns goto end
            _instruction(0x07, 7, value=-1),
            _instruction(0x55, 7, 0, -4 - calls, 0),  # if r7 != 0 again
            after,
        )
    )


def _answer(value: int) -> bytes:
    return _instruction(0xB7, 0, value=value) + _instruction(0x95)


@contextmanager
def burning(tracepoint: str, argument: int, burn_ns: int) -> Iterator[None]:
    """While the block lasts, the raw tracepoint takes ``burn_ns`` where its first argument is ``argument``.

    It runs after the programs that were attached before it: what follows the tracepoint is delayed.
    """
    program = _burn(
        _instruction(0x79, 1, 1, 0),  # r1 = ctx->args[0]
        _answer(0),
        burn_ns,
        lambda to: _instruction(0x55, 1, 0, to, argument),  # if r1 != argument
    )
    loaded = foreign_programs.load(_RAW_TRACEPOINT, program, b"GPL")
    name = ctypes.create_string_buffer(tracepoint.encode())
    try:
        link = bpf.call(_RAW_TRACEPOINT_OPEN, struct.pack("<QI", ctypes.addressof(name), loaded))
        try:
            yield
        finally:
            os.close(link)
    finally:
        os.close(loaded)


@contextmanager
def slow_to_receive(end: Endpoint, burn_ns: int) -> Iterator[None]:
    """While the block lasts, each packet that this interface receives takes its CPU's softirq ``burn_ns`` (XDP)."""
    code = _burn(b"", _answer(foreign_programs.XDP_PASS), burn_ns)
    loaded = foreign_programs.load(foreign_programs.XDP, code, b"GPL")
    try:
        with foreign_programs.links(end, loaded, [foreign_programs.XDP_HOOK], _XDP_FLAGS_SKB_MODE):
            yield
    finally:
        os.close(loaded)

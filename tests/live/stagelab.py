"""What the tests of stages and of the interrupt path share: frames added up, and a softirq that is held up."""

import ctypes
import json
import math
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from lab import Lab, Link, Nettop
from lab.errors import LabError
from lab.namespace import Endpoint
from lab.program import REPOSITORY, Frame, interpreter
from lab.shell import Process, eventually

MS = 1_000_000


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
    def path_mean_ns(self) -> float:
        return self.path_ns / self.path_packets if self.path_packets else math.nan

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


@contextmanager
def watching(
    lab: Lab, at: Endpoint, via: str = "", without: str = "", words: tuple[str, ...] = ()
) -> Iterator[list[Frame]]:
    """The frames of the block's traffic, and a second of silence after it."""
    frames: list[Frame] = []
    with Nettop(
        lab, at, "-p", "stages", "-d", "0.25", *words, env={"NETTOP_VIA": via, "NETTOP_WITHOUT": without}
    ) as nettop:
        before = len(nettop.wait_frames(1))
        yield frames
        nettop.more_frames(5)
        frames += nettop.frames[before:]


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


class Driven:
    """nettop's live source beside the traffic, without the screen: `stages_driver.py`."""

    def __init__(
        self, at: Endpoint, *words: str, delay: float = 0.25, probes: str = "stages", trace: str = ""
    ) -> None:
        self.frames: list[Frame] = []
        argv = [interpreter(), str(Path(__file__).with_name("stages_driver.py")), at.name, str(delay), probes]
        env = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "TRACE": trace,
            "OPENBLAS_NUM_THREADS": "1",  # numpy's threads would keep privileges
        }
        self.process = Process(
            at.ns.argv([*argv, *words]), on_line=lambda line: self.frames.append(json.loads(line)), env=env
        )

    def __enter__(self) -> Self:
        self.more_frames(2)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop(signal.SIGINT)

    def wait(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        good = eventually(lambda: condition() or not self.process.running(), timeout=timeout, interval=0.02)
        if not good or not self.process.running():
            raise LabError(f"{self.process.stderr[-3000:]} after {len(self.frames)} frames")

    def more_frames(self, count: int) -> list[Frame]:
        before = len(self.frames)
        self.wait(lambda: len(self.frames) >= before + count)
        return self.frames[before:]

    def tell(self, request: str) -> None:
        self.process.write_line(request)

    def focus(self, port: int) -> int:
        """Take the flow with this port into focus; its id, once a frame has it."""
        before = len(self.frames)
        self.tell(f"focus {port}")
        seen: list[int] = []

        def there() -> bool:
            for frame in self.frames[before:]:
                focus = frame["stages"]["focus"]
                ports = {f["id"]: (f["local"], f["remote"]) for f in frame["flows"]}
                if focus and any(end.endswith(f":{port}") for end in ports.get(focus["flow"], ())):
                    seen.append(focus["flow"])
            return bool(seen)

        self.wait(there)
        return seen[0]


def softirqs(frames: Iterable[Frame], vector: str) -> tuple[Total, Total]:
    """Wait and run of one vector."""
    wait, run = Total(), Total()
    for frame in frames:
        for entry in frame["irq"]["soft"]:
            if entry["vector"] == vector:
                wait.add(entry["wait"])
                run.add(entry["run"])
    return wait, run


# --- a program that burns time where it is attached ------------------------------------------------------------------

_PROG_LOAD, _RAW_TRACEPOINT_OPEN, _LINK_CREATE = 5, 17, 28
_XDP, _AT_XDP, _XDP_PASS, _XDP_FLAGS_SKB_MODE = 6, 37, 2, 2
_KTIME = 5
_SYSCALL = {"x86_64": 321, "aarch64": 280}
_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attribute: bytes) -> int:
    buffer = ctypes.create_string_buffer(attribute, 128)
    result = int(_libc.syscall(_SYSCALL[os.uname().machine], command, buffer, len(attribute)))
    if result < 0:
        raise LabError(f"bpf({command}): {os.strerror(ctypes.get_errno())}")
    return result


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


def _loaded(kind: int, program: bytes) -> int:
    code = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"GPL")
    addresses = ctypes.addressof(code), ctypes.addressof(licence)
    return _bpf(_PROG_LOAD, struct.pack("<IIQQIIQ", kind, len(program) // 8, *addresses, 0, 0, 0))


def _answer(value: int) -> bytes:
    return _instruction(0xB7, 0, value=value) + _instruction(0x95)


@contextmanager
def burning(tracepoint: str, argument: int, burn_ns: int) -> Iterator[None]:
    """While the block lasts, the raw tracepoint takes ``burn_ns`` where its first argument is ``argument``.

    Attached after others, it runs after them: what they timed at this point is over, and what comes later waits.
    """
    program = _burn(
        _instruction(0x79, 1, 1, 0),  # r1 = ctx->args[0]
        _answer(0),
        burn_ns,
        lambda to: _instruction(0x55, 1, 0, to, argument),  # if r1 != argument
    )
    loaded = _loaded(17, program)
    name = ctypes.create_string_buffer(tracepoint.encode())
    try:
        link = _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI", ctypes.addressof(name), loaded))
        try:
            yield
        finally:
            os.close(link)
    finally:
        os.close(loaded)


@contextmanager
def slow_to_receive(end: Endpoint, burn_ns: int) -> Iterator[None]:
    """While the block lasts, each packet that this interface receives takes its CPU's softirq ``burn_ns`` (XDP)."""

    def attach() -> int:
        index = socket.if_nametoindex(end.name)
        loaded = _loaded(_XDP, _burn(b"", _answer(_XDP_PASS), burn_ns))
        try:
            return _bpf(_LINK_CREATE, struct.pack("<IIII", loaded, index, _AT_XDP, _XDP_FLAGS_SKB_MODE))
        finally:
            os.close(loaded)

    link = end.ns.call(attach)
    try:
        yield
    finally:
        os.close(link)

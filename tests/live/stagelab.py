"""What the tests of stages and of the interrupt path share: frames added up, and a softirq that is held up."""

import ctypes
import math
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lab.errors import LabError
from lab.program import Frame

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


def stages(frames: Iterable[Frame]) -> dict[tuple[str, str], Total]:
    """Every stage by (direction, stage); the whole way as (direction, "whole")."""
    totals: dict[tuple[str, str], Total] = {}
    for frame in frames:
        section = frame["stages"]
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

_PROG_LOAD, _RAW_TRACEPOINT_OPEN = 5, 17
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


@contextmanager
def burning(tracepoint: str, argument: int, burn_ns: int) -> Iterator[None]:
    """While the block lasts, the raw tracepoint takes ``burn_ns`` where its first argument is ``argument``.

    Attached after others, it runs after them: what they timed at this point is over, and what comes later waits.
    """
    rounds, calls = 4000, 64  # the verifier walks through every round, and looks at few branches
    program = b"".join(
        (
            _instruction(0x79, 1, 1, 0),  # r1 = ctx->args[0]
            _instruction(0x55, 1, 0, 7 + calls, argument),  # if r1 != argument goto exit
            _instruction(0x85, value=_KTIME),
            _instruction(0xBF, 6, 0),  # r6 = now
            _instruction(0xB7, 7, value=rounds),
            *[_instruction(0x85, value=_KTIME)] * calls,
            _instruction(0x1F, 0, 6),  # r0 -= r6
            _instruction(0x25, 0, 0, 2, burn_ns),  # if r0 > burn_ns goto exit
            _instruction(0x07, 7, value=-1),
            _instruction(0x55, 7, 0, -4 - calls, 0),  # if r7 != 0 again
            _instruction(0xB7, 0),  # exit: r0 = 0
            _instruction(0x95),
        )
    )
    code = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"GPL")
    attribute = struct.pack(
        "<IIQQIIQ", 17, len(program) // 8, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0
    )
    loaded = _bpf(_PROG_LOAD, attribute)
    name = ctypes.create_string_buffer(tracepoint.encode())
    try:
        link = _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI", ctypes.addressof(name), loaded))
        try:
            yield
        finally:
            os.close(link)
    finally:
        os.close(loaded)

"""What the tests of stages and of the interrupt path share: frames added up, and a softirq that is held up."""

import ctypes
import json
import math
import os
import signal
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

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

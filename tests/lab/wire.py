"""A wire of known delay between two TAPs: starts `wire.c` and asks it what it really did.

This kernel has no netem, and netem would not say what delay it gave. The forwarder does: compare with `Held`,
not with the delay that was asked for.
"""

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab import build
from lab.errors import LabError
from lab.namespace import Endpoint
from lab.shell import Process

PPM = 1_000_000


@dataclass(frozen=True)
class Direction:
    """What one direction of a wire does to frames.

    `loss`, `duplicate` and `reorder` are parts of 1, drawn from a fixed seed; a reordered frame is held
    `reorder_extra_ms` longer than the others, so that they overtake it. `rate_bits_per_s` serialises frames
    (0: no limit), `queue` is the most that wait, in packets, before the tail is dropped.
    """

    delay_ms: float = 0.0
    rate_bits_per_s: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_extra_ms: float = 2.0
    queue: int = 16384

    def spec(self) -> str:
        return (
            f"delay={round(self.delay_ms * 1e6)},rate={self.rate_bits_per_s},loss={round(self.loss * PPM)},"
            f"duplicate={round(self.duplicate * PPM)},reorder={round(self.reorder * PPM)},"
            f"extra={round(self.reorder_extra_ms * 1e6)},queue={self.queue}"
        )


@dataclass(frozen=True)
class Distribution:
    """Of times in ns. `min` and `max` are exact, the median is within 0.1 %."""

    count: int
    min: int
    median: int
    max: int


@dataclass(frozen=True)
class Held:
    """What one direction did since the start or the last `reset`, in packets and ns.

    `hold_ns`: from reading a frame off one TAP to writing it to the other, without the frames that were reordered
    on purpose. Not in it: the time from the kernel's queueing of a frame to the forwarder's read (some 10 us).
    """

    lost: int
    duplicated: int
    reordered: int
    queue_drops: int
    oversize: int
    hold_ns: Distribution


@dataclass(frozen=True)
class Wire:
    """The forwarder's side of a link. One forwarder may serve several wires; `index` is this one's number."""

    process: Process
    index: int

    def report(self) -> tuple[Held, Held]:
        """What happened to frames from `a` to `b`, and from `b` to `a`."""
        answer = json.loads(self.process.ask("report"))["directions"]
        return _held(answer[2 * self.index]), _held(answer[2 * self.index + 1])

    def reset(self) -> None:
        """Start the counts and distributions afresh, those of every wire of this forwarder."""
        self.process.ask("reset")

    def set(self, a_to_b: Direction, b_to_a: Direction | None = None) -> None:
        """Change what the wire does from the next frame on. Frames that wait keep their deadlines."""
        for way, direction in enumerate((a_to_b, b_to_a or a_to_b)):
            self.process.ask(f"set {self.index} {way} {direction.spec()}")

    def round_trip_ns(self) -> tuple[int, int]:
        """Minimum and median delay of a round trip on the wire: the sums over both directions."""
        there, back = self.report()
        if not there.hold_ns.count or not back.hold_ns.count:
            raise LabError("no frame has crossed the wire both ways")
        return there.hold_ns.min + back.hold_ns.min, there.hold_ns.median + back.hold_ns.median

    def stop(self) -> None:
        """End the forwarder. Its TAPs go with it, those of its other wires too."""
        self.process.stop(signal.SIGTERM)


def start_forwarder(
    pairs: Sequence[tuple[Endpoint, Endpoint]],
    directions: Sequence[tuple[Direction, Direction]],
    seed: int = 1,
) -> Process:
    """One forwarder for these wires; it makes the TAPs. Raises `LabError` if it cannot."""
    argv = [build.program("wire"), "-x", str(seed)]
    for (a, b), (forward, backward) in zip(pairs, directions, strict=True):
        if a.ns.name is None or b.ns.name is None:
            raise LabError("a wire joins two namespaces of the lab")
        argv += ["--link", a.ns.name, a.name, b.ns.name, b.name, forward.spec(), backward.spec()]
    process = Process(argv)
    try:
        process.wait_lines(1)
    except LabError:
        process.stop()
        raise
    return process


def _held(answer: dict[str, Any]) -> Held:
    return Held(**{**answer, "hold_ns": Distribution(**answer["hold_ns"])})

"""nettop's frames of some traffic, and the interface's own counters of the same packets.

The traffic lies between the first frame and the last, with silence on either side, so both count the same packets,
however slow the machine is.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lab import Lab, Link, Nettop, oracle
from lab.namespace import Endpoint
from lab.program import Frame
from lab.traffic import ping

Row = dict[str, Any]

DELAY = "0.25"
PROBES = "throughput,flows"
# Frames (0.25 s) until a packet is counted: the second one after it at the latest.
SETTLED = 2
FIRST_FRAME_S = 60.0


@dataclass
class Observed:
    """Filled when its block ends: `frames` from its start on, and `counters`, the growth of /sys/class/net."""

    nettop: Nettop
    frames: list[Frame] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)

    def total(self, direction: str, what: str = "bytes") -> int:
        """The sum over all frames of `throughput.rx.bytes` and its like."""
        return sum(frame["throughput"][direction][what] for frame in self.frames)

    def sum(self, key: str) -> int:
        """The sum of a number at the top of each frame."""
        return sum(frame[key] for frame in self.frames)

    def health(self, key: str) -> int:
        return sum(frame["health"][key] for frame in self.frames)

    def protocols(self) -> dict[str, tuple[int, int]]:
        """Bytes received and sent by protocol, over all frames."""
        found: dict[str, tuple[int, int]] = {}
        for frame in self.frames:
            for entry in frame["throughput"]["protocols"]:
                rx, tx = found.get(entry["protocol"], (0, 0))
                found[entry["protocol"]] = rx + entry["rx_bytes"], tx + entry["tx_bytes"]
        return found

    def sizes(self, direction: str) -> dict[int, int]:
        """Packets by size class (its upper bound in bytes), over all frames; empty classes are left out."""
        found: dict[int, int] = {}
        for frame in self.frames:
            for upper, count in frame["throughput"][direction]["sizes"]:
                found[upper] = found.get(upper, 0) + count
        return {upper: count for upper, count in found.items() if count}

    def rows(self, **values: object) -> list[Row]:
        """Every row, of any frame, that has these values: `rows(protocol="udp", local="10.0.0.1:53")`."""
        return [
            row
            for frame in self.frames
            for row in frame["flows"]
            if all(row[key] == value for key, value in values.items())
        ]

    def flow(self, **values: object) -> Row:
        """The one flow that has these values, as the last frame shows it."""
        found = {row["id"]: row for row in self.rows(**values)}
        if len(found) != 1:
            seen = {
                (r["protocol"], r["local"], r["remote"], r["vlan"]) for f in self.frames for r in f["flows"]
            }
            raise AssertionError(f"{len(found)} flows have {values}; there are {sorted(seen, key=str)}")
        return next(iter(found.values()))

    def agrees(self, tolerance: float = 0.005) -> None:
        """Assert that the interface's totals are those of /sys/class/net: bytes and packets, both ways.

        What the driver drops (tx_dropped: the peer of a veth has no room) nettop has counted. No packet is larger
        than 64 kB.
        """
        dropped = {"rx": 0, "tx": self.counters["tx_dropped"]}
        for direction, lost in dropped.items():
            for what, largest in (("packets", 1), ("bytes", 65550)):
                counted, kernel = self.total(direction, what), self.counters[f"{direction}_{what}"]
                print(
                    f"{direction} {what}: nettop {counted}, /sys/class/net {kernel}, {lost} packets refused"
                )
                least, most = kernel * (1 - tolerance), (kernel + lost * largest) * (1 + tolerance)
                assert least <= counted <= most, (direction, what, counted, kernel, lost)


class Watch:
    """A nettop that runs, and is beside one piece of traffic after another."""

    def __init__(self, nettop: Nettop, end: Endpoint) -> None:
        self.nettop = nettop
        self.end = end

    @contextmanager
    def observing(self) -> Iterator[Observed]:
        """From the next frame to two frames after the block."""
        observed = Observed(self.nettop)
        # The frame that comes first may have been read already: whatever came before is in the second at the latest.
        self.nettop.more_frames(2)
        skipped = len(self.nettop.frames)
        before = oracle.sysfs(self.end)
        yield observed
        time.sleep(0.05)
        after = oracle.sysfs(self.end)
        self.nettop.more_frames(SETTLED)
        observed.frames = self.nettop.frames[skipped:]
        observed.counters = oracle.difference(after, before)


@dataclass(frozen=True)
class Station:
    """A link, and the nettop that watches its end `a`."""

    lab: Lab
    link: Link
    watch: Watch


@contextmanager
def watching(
    lab: Lab, end: Endpoint, *args: str, env: dict[str, str] | None = None, probes: str = PROBES
) -> Iterator[Watch]:
    """nettop at this endpoint while the block lasts."""
    with Nettop(lab, end, "-d", DELAY, "-p", probes, *args, env=env) as nettop:
        # The very first time the programs are compiled.
        nettop.wait_frames(1, timeout=FIRST_FRAME_S)
        yield Watch(nettop, end)
        outcome = nettop.stop()
    # 130: stopped by SIGINT. Nothing was said, so nothing went wrong.
    assert (outcome.code, outcome.stderr) == (130, "")


def counts_pings(nettop: Nettop, end: Endpoint, peer: Endpoint, count: int = 29) -> Observed:
    """Assert that every packet of some pings is counted, and not twice."""
    with Watch(nettop, end).observing() as seen:
        ping(end, peer, count)
    seen.agrees(tolerance=0)
    assert seen.total("rx", "packets") >= count
    return seen


@contextmanager
def observing(lab: Lab, end: Endpoint, *args: str, env: dict[str, str] | None = None) -> Iterator[Observed]:
    """A nettop of one's own beside one piece of traffic."""
    with watching(lab, end, *args, env=env) as watch, watch.observing() as observed:
        yield observed


def endpoint(address: str, port: int) -> str:
    """As the frame writes it: IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

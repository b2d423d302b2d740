"""Very many short connections whose two ends close at the same moment, on different CPUs.

Each must be opened once and closed once, with an id of its own, and every byte be in some flow.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from lab import Nettop, build, oracle
from lab.namespace import Endpoint
from lab.program import Frame
from lab.shell import eventually
from lab.traffic import fresh_port

PORT_EACH = 5_000  # connections: of one port's a minute's are in TIME_WAIT
ROWS = 15_000  # of a frame there are 20 000 at the most


def silence(near: Endpoint, far: Endpoint) -> None:
    """No packet but those of the test: no IPv6, and each end knows the other's address."""
    for end, other in ((near, far), (far, near)):
        end.ns.sysctl("ipv6.conf.all.disable_ipv6", 1)
        mac = other.ns.run("cat", f"/sys/class/net/{other.name}/address").stdout.strip()
        end.ns.run("ip", "neigh", "replace", other.v4, "lladdr", mac, "dev", end.name, "nud", "permanent")


def close_both(
    near: Endpoint,
    far: Endpoint,
    count: int,
    cpus: Sequence[tuple[int, int]] = ((0, 1),),
    skew_ns: int = 2000,
) -> float:
    """`count` connections from near to far, the ends of each on two CPUs; seconds.

    Each pair of CPUs makes its share of them, one after another, and all pairs at once.
    """
    shares = [count // len(cpus) + (number < count % len(cpus)) for number in range(len(cpus))]
    began = time.monotonic()
    running = []
    for share, pair in zip(shares, cpus, strict=True):
        ports = share // PORT_EACH + 1
        argv = [f"/run/netns/{far.ns.name}", far.v4, fresh_port(ports), ports, share, *pair, skew_ns]
        running.append(near.ns.spawn(build.program("closeboth"), *map(str, argv)))
    for process, share in zip(running, shares, strict=True):
        try:
            assert process.wait(timeout=1200) == 0, process.stderr
            assert json.loads(process.stdout)["connections"] == share
        finally:
            process.stop()
    return time.monotonic() - began


@dataclass
class Seen:
    """What the frames of one nettop say of all TCP flows, row by row: the last that was said of each."""

    ids: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)  # packets and bytes, rx and tx
    states: dict[int, str] = field(default_factory=dict)
    ends: dict[tuple[str, str, int], int] = field(default_factory=dict)  # endpoints and start: its id
    twice: set[int] = field(default_factory=set)  # ids that two connections had

    def add(self, frame: Frame) -> None:
        for row in frame["flows"]:
            number = row["id"]
            key = row["local"], row["remote"], row["first_ns"]
            if self.ends.setdefault(key, number) != number:
                self.twice.add(number)
            self.ids[number] = tuple(
                row[f"{way}_{what}_total"] for what in ("packets", "bytes") for way in ("rx", "tx")
            )
            self.states[number] = row["state"]

    def sums(self) -> dict[str, int]:
        names = ("rx_packets", "tx_packets", "rx_bytes", "tx_bytes")
        return {name: sum(row[i] for row in self.ids.values()) for i, name in enumerate(names)}


@dataclass(frozen=True)
class Account:
    """Of COUNT connections: what was opened and closed, what the flows add up to, and what the interface counted."""

    seconds: float
    opened: int
    closed: int
    flows: int
    unfinished: dict[str, int]  # flows by a state that is none of the end
    twice: int
    largest_id: int
    sums: dict[str, int]
    counters: dict[str, int]
    evicted: int
    untracked: int


def account(
    nettop: Nettop,
    near: Endpoint,
    far: Endpoint,
    count: int,
    cpus: Sequence[tuple[int, int]] = ((0, 1),),
    at_once: int = ROWS,
) -> Account:
    """Let `count` connections pass a nettop that runs, and read its frames.

    After each `at_once` of them the closed ones may leave the table, since a frame has so many rows and no more.
    """
    nettop.more_frames(2)
    first = len(nettop.frames)
    began = nettop.frames[-1]
    before = oracle.sysfs(near)
    seconds = 0.0
    for share in (min(at_once, count - done) for done in range(0, count, at_once)):
        seconds += close_both(near, far, share, cpus)
        nettop.more_frames(3)
        if share < count:
            assert eventually(lambda: nettop.frames[-1]["flows_total"] < at_once // 100, timeout=120)
    after = oracle.sysfs(near)
    nettop.more_frames(2)
    frames = nettop.frames[first:]
    seen = Seen()
    for frame in frames:
        seen.add(frame)
    last = frames[-1]
    unfinished = [state for state in seen.states.values() if state not in ("closed", "reset")]
    return Account(
        seconds=seconds,
        opened=last["flows_opened_total"] - began["flows_opened_total"],
        closed=last["flows_closed_total"] - began["flows_closed_total"],
        flows=len(seen.ids),
        unfinished={state: unfinished.count(state) for state in unfinished},
        twice=len(seen.twice),
        largest_id=max(seen.ids),
        sums=seen.sums(),
        counters={name: after[name] - before[name] for name in seen.sums()},
        evicted=sum(frame["health"]["evicted_flows"] for frame in frames),
        untracked=sum(frame["health"]["untracked_packets"] for frame in frames),
    )


def claim(found: Account, count: int) -> None:
    """Opened = closed = COUNT, each once, none left; and the flows' sums are the interface's."""
    print(found)
    assert (found.evicted, found.untracked) == (0, 0)
    assert (found.opened, found.closed, found.flows) == (count, count, count)
    assert (found.unfinished, found.twice) == ({}, 0)
    assert found.largest_id < 1 << 53  # what JSON's readers can hold
    assert found.sums == found.counters

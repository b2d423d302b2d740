"""nettop's RTTs beside what is known of the same packets: the wire's own delay, `ss`, times of crafted frames."""

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any, Self

from lab import Lab, Link, Nettop, packets
from lab.namespace import Endpoint, Namespace
from lab.program import Frame

Row = dict[str, Any]

MS = 1_000_000

# Linux delays an ACK by 40 ms (TCP_DELACK_MIN), which a clock of 100 Hz and a busy machine make more.
DELAYED_ACK_NS = 60 * MS


def close_to(measured: int | None, expected: int, *, part: float, extra_ms: float) -> bool:
    """Whether a time lies within a part of what is expected, and so many ms more."""
    return measured is not None and abs(measured - expected) <= part * expected + extra_ms * MS


def is_min(measured: int | None, expected: int) -> bool:
    """The tolerance of a minimum: 2 % and 0.2 ms."""
    return close_to(measured, expected, part=0.02, extra_ms=0.2)


def is_median(measured: int | None, expected: int) -> bool:
    """The tolerance of a median: 5 % and 0.5 ms."""
    return close_to(measured, expected, part=0.05, extra_ms=0.5)


def rows(frames: list[Frame], **values: object) -> list[Row]:
    """Every row, of any frame, that has these values; `remote_port=80` looks at the end of `remote`, `port` at both."""
    ends = {"remote_port": ("remote",), "local_port": ("local",), "port": ("local", "remote")}
    ports = [(ends[key], f":{values.pop(key)}") for key in ends if key in values]
    return [
        row
        for frame in frames
        for row in frame["flows"]
        if all(row[key] == value for key, value in values.items())
        and all(any(row[end].endswith(port) for end in which) for which, port in ports)
    ]


def flow(frames: list[Frame], **values: object) -> Row:
    """The flow that has these values as the last frame shows it: of several the one with the most bytes."""
    found = {row["id"]: row for row in rows(frames, **values)}
    assert found, f"no flow has {values}; there are {[(r['local'], r['remote']) for r in rows(frames)][-20:]}"
    return max(found.values(), key=lambda row: int(row["tx_bytes_total"] + row["rx_bytes_total"]))


def last_values(frames: list[Frame], flow_id: int, side: str = "rtt") -> list[int]:
    """What `last_ns` of a flow was in each frame that brought new samples of it."""
    found = [row[side] for row in rows(frames, id=flow_id)]
    return [rtt["last_ns"] for rtt in found if rtt and rtt["samples"]]


def median(values: list[int]) -> int | None:
    return sorted(values)[len(values) // 2] if values else None


def histogram_sum(histograms: list[dict[str, Any]]) -> dict[int, int]:
    """Counts by upper edge in ns."""
    total: dict[int, int] = {}
    for histogram in histograms:
        for upper, count in histogram["buckets"]:
            total[upper] = total.get(upper, 0) + count
    return total


def middle_bucket(buckets: dict[int, int]) -> int:
    """Upper edge in ns of the bucket that holds the median."""
    half, seen = sum(buckets.values()) / 2, 0
    for upper in sorted(buckets):
        seen += buckets[upper]
        if seen >= half:
            return upper
    raise AssertionError("an empty histogram")


def hasten(*namespaces: Namespace) -> None:
    """Let the programs that run in these namespaces go first.

    How long a busy machine keeps a server from running is part of what it takes to answer, and no error of the
    measurement; but it is not the wire's delay either.
    """
    for namespace in namespaces:
        for pid in namespace.run("ip", "netns", "pids", str(namespace.name)).stdout.split():
            with suppress(ProcessLookupError):
                os.sched_setscheduler(int(pid), os.SCHED_FIFO, os.sched_param(5))


@contextmanager
def together(*jobs: Callable[[], object]) -> Iterator[None]:
    """Run these at once, each in a thread of its own, beside the block; the first failure is raised at its end."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        running = [pool.submit(job) for job in jobs]
        yield
    for job in running:
        job.result()


class Script:
    """Crafted packets between an address behind `a`, where nettop watches, and one behind `b`, with times.

    Nobody has these addresses, so nobody answers. Each script has a far address of its own: the histogram of
    that address is the histogram of the script's samples (`--subnets 32,128`).
    """

    protocol = 6
    tunnel: packets.Tunnel | None = None

    def __init__(self, link: Link, number: int, *, ipv6: bool = False) -> None:
        self.link, self.ipv6 = link, ipv6
        self.near_address = packets.stranger(link.a, ipv6=ipv6)
        separator = ":" if ipv6 else "."
        self.far_address = f"{link.b.address(ipv6).rpartition(separator)[0]}{separator}{110 + number}"
        self.steps: list[packets.Step] = []

    def add(self, near: bool, wait_ms: float, payload: Callable[[str, str], bytes]) -> None:
        """The next packet: what `payload` makes of source and target, after so long a wait."""
        at, to = (self.link.a, self.link.b) if near else (self.link.b, self.link.a)
        ends = (self.near_address, self.far_address) if near else (self.far_address, self.near_address)
        packet = packets.ip(*ends, self.protocol, payload(*ends))
        if self.tunnel is not None:
            outside = self.tunnel if near else replace(self.tunnel, ends=self.tunnel.ends[::-1])
            packet = outside.around(packet)
        self.steps.append(packets.Step(at, packets.ethernet(at, to, packet), wait_ms / 1000))


class Talk(Script):
    """A TCP conversation. Sequence numbers are relative to `isn` and `far_isn`, timestamps to the two clocks."""

    isn = 1000
    far_isn = 5000
    clock = 100_000
    far_clock = 700_000
    stamps = True

    def with_(self, **values: Any) -> Self:
        """The same with another `isn`, `clock`, `stamps`."""
        for name, value in values.items():
            setattr(self, name, value)
        return self

    def near(self, wait_ms: float = 0.0, **what: Any) -> Self:
        """A segment from the near address."""
        return self._segment(True, wait_ms, **what)

    def far(self, wait_ms: float = 0.0, **what: Any) -> Self:
        """A segment from the far address."""
        return self._segment(False, wait_ms, **what)

    def open(self) -> Self:
        """SYN, after 5 ms SYN-ACK, ACK: steps 0 to 2."""
        self.near(seq=0, flags=packets.SYN, stamp=0)
        self.far(5, seq=0, ack=1, flags=packets.SYN | packets.ACK, stamp=0, echo=0)
        return self.near(seq=1, ack=1, stamp=5, echo=0)

    def _segment(
        self,
        near: bool,
        wait_ms: float,
        *,
        seq: int,
        ack: int | None = None,
        flags: int = packets.ACK,
        stamp: int | None = None,
        echo: int | None = None,
        length: int = 0,
        options: bytes = b"",
        window: int = 65535,
    ) -> Self:
        isns, clocks = (self.isn, self.far_isn), (self.clock, self.far_clock)
        (ours, theirs), (clock, far_clock) = (isns, clocks) if near else (isns[::-1], clocks[::-1])
        stamps = None
        if self.stamps and stamp is not None:
            stamps = (clock + stamp, 0 if echo is None else far_clock + echo)

        def segment(source: str, target: str) -> bytes:
            made = packets.tcp(
                *(source, target, *((40_000, 8000) if near else (8000, 40_000))),
                seq=ours + seq,
                ack=0 if ack is None else theirs + ack,
                flags=flags,
                window=window,
                timestamps=None if options else stamps,
                payload=b"" if options else b"x" * length,
            )
            if not options:
                return made
            # Another layout of the options: theirs is with a stamp in it, ours has the words for it.
            assert stamps
            laid = options.replace(b"TTTTTTTT", struct.pack("!II", *(value % 2**32 for value in stamps)))
            words = (20 + len(laid)) // 4
            return made[:12] + bytes([words << 4]) + made[13:20] + laid + b"x" * length

        self.add(near, wait_ms, segment)
        return self


class Pings(Script):
    """ICMP echo."""

    def __init__(self, link: Link, number: int, *, ipv6: bool = False) -> None:
        super().__init__(link, number, ipv6=ipv6)
        self.protocol = 58 if ipv6 else 1

    def ask(self, sequence: int, wait_ms: float = 0.0, *, near: bool = True) -> Self:
        """A request."""
        return self._echo(near, wait_ms, sequence, False)

    def answer(self, sequence: int, wait_ms: float = 20.0, *, near: bool = False) -> Self:
        """A reply."""
        return self._echo(near, wait_ms, sequence, True)

    def _echo(self, near: bool, wait_ms: float, sequence: int, reply: bool) -> Self:
        self.add(near, wait_ms, lambda s, t: packets.icmp_echo(s, t, 77, sequence, b"x" * 40, reply=reply))
        return self


class Lookups(Script):
    """DNS over UDP."""

    protocol = 17

    def ask(self, identity: int, wait_ms: float = 0.0, *, near: bool = True) -> Self:
        """A query."""
        return self._message(near, wait_ms, identity, 0x0100, (30_053, 53))

    def answer(self, identity: int, wait_ms: float = 20.0, *, near: bool = False) -> Self:
        """A response."""
        return self._message(near, wait_ms, identity, 0x8180, (53, 30_053))

    def _message(self, near: bool, wait_ms: float, identity: int, flags: int, ports: tuple[int, int]) -> Self:
        message = (
            struct.pack("!HHHHHH", identity, flags, 1, 0, 0, 0) + b"\3lab\4test\0" + struct.pack("!HH", 1, 1)
        )
        self.add(near, wait_ms, lambda source, target: packets.udp(source, target, *ports, message))
        return self


class Quic(Script):
    """QUIC's short headers (RFC 9000, 17.3.1) from the near address to port 443, with these spin bits."""

    protocol = 17

    def send(self, bits: Sequence[int], every_ms: float) -> Self:
        """One packet for each bit."""
        for bit in bits:
            first = bytes([0x40 | bit << 5])
            self.add(True, every_ms, lambda s, t, f=first: packets.udp(s, t, 30_443, 443, f + b"x" * 40))  # type: ignore[misc]
        return self


def play_all(lab: Lab, scripts: Sequence[Script], *, apart_ms: float = 1.3) -> list[list[int]]:
    """Play all scripts at once, each a little after the one before; returns the times of each one's packets."""
    due: list[tuple[float, int, packets.Step]] = []
    for number, script in enumerate(scripts):
        now = number * apart_ms / 1000
        for step in script.steps:
            now += step.wait_s
            due.append((now, number, step))
    due.sort(key=lambda entry: entry[0])
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5))
    try:
        waits = [later[0] - earlier[0] for earlier, later in pairwise(due)]
        sent = packets.play(lab, [replace(e[2], wait_s=w) for e, w in zip(due, [0.0, *waits], strict=True)])
    finally:
        os.sched_setscheduler(0, *before)
    times: list[list[int]] = [[] for _ in scripts]
    for (_, number, _), time_ns in zip(due, sent, strict=True):
        times[number].append(time_ns)
    return times


@contextmanager
def watching(lab: Lab, at: Endpoint, *args: str, delay: str = "0.1") -> Iterator[Nettop]:
    """nettop's flows, ten frames a second, from the first frame on."""
    with Nettop(lab, at, "-d", delay, "-p", "flows", *args) as nettop:
        nettop.wait_frames(1, timeout=60)  # the very first time the programs are compiled
        yield nettop


@contextmanager
def watching_both(lab: Lab, link: Link) -> Iterator[tuple[Nettop, Nettop]]:
    """Both ends, four frames a second."""
    with watching(lab, link.a, delay="0.25") as near, watching(lab, link.b, delay="0.25") as far:
        yield near, far

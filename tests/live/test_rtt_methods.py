"""The rules by which a packet measures a round trip or does not, each with packets made for it.

All conversations are played at once; the times at which their packets were sent are what nettop must find.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from lab import Lab
from lab.packets import ACK, FIN, PSH, SYN
from rtts import MS, Lookups, Pings, Quic, Row, Script, Talk, histogram_sum, play_all, watching

# Between two samples of one direction are at least 16.8 ms by a clock that ticks each 1-10 ms: bpf_src/flows/rtt.h.
APART = 30


@dataclass(frozen=True)
class Case:
    """A script, and the packets (by number) from which and to which time must be taken; all others measure nothing."""

    name: str
    kind: type[Script]
    write: Callable[..., Script]
    outward: tuple[tuple[int, int], ...] = ()
    inward: tuple[tuple[int, int], ...] = ()
    method: str = ""
    ipv6: bool = False


OPENED = {"outward": ((0, 1),), "inward": ((1, 2),)}


def tcp(
    name: str,
    write: Callable[[Talk], Talk],
    *outward: tuple[int, int],
    inward: tuple[tuple[int, int], ...] = (),
    opened: bool = True,
    method: str = "",
    ipv6: bool = False,
    **values: object,
) -> Case:
    """A conversation that is opened first (steps 0 to 2, which measure the handshake both ways)."""

    def script(talk: Talk) -> Talk:
        return write(talk.with_(**values).open() if opened else talk.with_(**values))

    begin_out, begin_in = (((0, 1),), ((1, 2),)) if opened else ((), ())
    return Case(name, Talk, script, (*begin_out, *outward), (*begin_in, *inward), method, ipv6)


# A connection that was there before: what is seen first may have been sent before, too.
MIDWAY = [
    tcp(
        "the first segment that is seen",
        lambda t: (
            t.near(seq=1, ack=1, length=100)
            .far(7, seq=1, ack=101)
            .near(APART, seq=101, ack=1, length=100)
            .far(20, seq=1, ack=201)
        ),
        (2, 3),
        opened=False,
        stamps=False,
    ),
    tcp(
        "the first TSval that is seen",
        lambda t: (
            t.near(seq=1, ack=1, length=100, stamp=5, echo=0)
            .far(7, seq=1, ack=101, stamp=40, echo=5)
            .near(APART, seq=101, ack=1, length=100, stamp=45, echo=40)
            .far(20, seq=1, ack=201, stamp=70, echo=45)
        ),
        (2, 3),
        opened=False,
    ),
]

# Options that other stacks lay out otherwise: a timestamp behind a SACK block, and one that is not aligned.
SACK_FIRST = b"\x01\x01\x05\x0a\x00\x00\x10\x00\x00\x00\x20\x00" + b"\x01\x01\x08\x0aTTTTTTTT"
STAMP_FIRST = b"\x08\x0aTTTTTTTT\x00\x00"

TIMESTAMPS = [
    tcp(
        "the first echo of a TSval, not a later one",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0)
            .far(20, seq=1, ack=101, stamp=60, echo=30)
            .far(30, seq=1, ack=101, stamp=90, echo=30, length=10)
        ),
        (3, 4),
        method="timestamp",
    ),
    tcp(
        "IPv6",
        lambda t: t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0).far(
            20, seq=1, ack=101, stamp=60, echo=30
        ),
        (3, 4),
        method="timestamp",
        ipv6=True,
    ),
    tcp(
        "the first packet of a TSval, not a later one",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0)
            .near(12, seq=101, ack=1, length=100, stamp=30, echo=0)
            .far(20, seq=1, ack=201, stamp=60, echo=30)
        ),
        (3, 5),
    ),
    tcp(
        "no TSval that a pure ACK has carried before",
        lambda t: (
            t.near(APART, seq=1, ack=1, stamp=30, echo=0)
            .near(12, seq=1, ack=1, length=100, stamp=30, echo=0)
            .far(20, seq=1, ack=101, stamp=60, echo=30)
        ),
    ),
    tcp(
        "no pure ACK: what echoes it may be sent at any time",
        lambda t: t.near(APART, seq=1, ack=1, stamp=30, echo=0).far(
            20, seq=1, ack=1, length=9, stamp=60, echo=30
        ),
    ),
    tcp(
        "no TSecr without the ACK flag",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0)
            .far(10, seq=1, flags=PSH, length=9, stamp=60, echo=30)
            .far(10, seq=10, ack=101, stamp=70, echo=30)
        ),
        (3, 5),
    ),
    tcp(
        "TSval wraps",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0)
            .far(20, seq=1, ack=101, stamp=60, echo=30)
            .near(APART, seq=101, ack=1, length=100, stamp=75, echo=60)
            .far(20, seq=1, ack=201, stamp=110, echo=75)
        ),
        (3, 4),
        (5, 6),
        clock=2**32 - 40,
    ),
    tcp(
        "an echo from before the wrap is older than one from after it",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0)
            .near(APART, seq=101, ack=1, length=100, stamp=75, echo=0)
            .far(20, seq=1, ack=150, stamp=60, echo=75)
            .far(10, seq=1, ack=150, stamp=70, echo=30)
        ),
        (4, 5),
        clock=2**32 - 40,
    ),
    tcp(
        "a TSval of zero is none",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100, stamp=40, echo=0)
            .far(20, seq=1, ack=101, stamp=60, echo=40)
            .near(APART, seq=101, ack=1, length=100, stamp=75, echo=60)
            .far(20, seq=1, ack=201, stamp=110, echo=75)
        ),
        (5, 6),
        clock=2**32 - 40,
    ),
    tcp(
        "both directions, each its own",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0)
            .far(20, seq=1, ack=101, length=50, stamp=60, echo=30)
            .near(35, seq=101, ack=51, length=100, stamp=85, echo=60)
            .far(20, seq=51, ack=201, stamp=110, echo=85)
        ),
        (3, 4),
        (5, 6),
        inward=((4, 5),),
    ),
    tcp(
        "two may be outstanding",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0)
            .near(APART, seq=101, ack=1, length=100, stamp=60, echo=0)
            .far(10, seq=1, ack=101, stamp=60, echo=30)
            .far(30, seq=1, ack=201, stamp=90, echo=60)
        ),
        (3, 5),
        (4, 6),
    ),
    tcp(
        "nothing is outstanding when all is acknowledged, whatever is echoed later",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0)
            .near(APART, seq=101, ack=1, length=100, stamp=60, echo=0)
            .far(20, seq=1, ack=201, stamp=80, echo=30)
            .far(300, seq=1, ack=201, length=10, stamp=380, echo=60)
        ),
        (3, 5),
    ),
    tcp(
        "a retransmission, whichever of the two is answered",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0)
            .near(APART, seq=1, ack=1, length=100, stamp=60, echo=0)
            .far(20, seq=1, ack=101, stamp=60, echo=30)
            .far(20, seq=1, ack=101, stamp=80, echo=60)
            .near(APART, seq=101, ack=1, length=100, stamp=130, echo=80)
            .far(20, seq=1, ack=201, stamp=150, echo=130)
        ),
        (7, 8),
    ),
    tcp(
        "a duplicate on the way out, and one on the way back",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0)
            .far(20, seq=1, ack=101, stamp=60, echo=30)
            .far(10, seq=1, ack=101, stamp=60, echo=30)
            .near(APART, seq=101, ack=1, length=100, stamp=90, echo=60)
            .near(5, seq=101, ack=1, length=100, stamp=90, echo=60)
            .far(20, seq=1, ack=201, stamp=130, echo=90)
        ),
        (3, 4),
    ),
    tcp(
        "a hole: what waits behind it is answered late",
        lambda t: (
            t.near(APART, seq=101, ack=1, length=100, stamp=30, echo=0)
            .far(20, seq=1, ack=1, stamp=60, echo=5)
            .near(APART, seq=1, ack=1, length=100, stamp=90, echo=60)
            .far(20, seq=1, ack=201, stamp=110, echo=30)
        ),
    ),
    tcp(
        "out of order before us",
        lambda t: (
            t.near(APART, seq=101, ack=1, length=100, stamp=31, echo=0)
            .near(4, seq=1, ack=1, length=100, stamp=30, echo=0)
            .far(20, seq=1, ack=201, stamp=60, echo=31)
        ),
    ),
    tcp(
        "a timestamp behind a SACK block",
        lambda t: t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0).far(
            20, seq=1, ack=101, stamp=60, echo=30, options=SACK_FIRST
        ),
        (3, 4),
    ),
    tcp(
        "a timestamp that is not aligned",
        lambda t: t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0, options=STAMP_FIRST).far(
            20, seq=1, ack=101, stamp=60, echo=30, options=STAMP_FIRST
        ),
        (3, 4),
        method="timestamp",
    ),
]

SEQUENCES = [
    tcp(
        "timestamps that something takes out of one direction",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0)
            .far(20, seq=1, ack=101)
            .near(APART, seq=101, ack=1, length=100, stamp=80, echo=0)
            .far(20, seq=1, ack=201, length=10)
        ),
        (5, 6),
        method="sequence",
    ),
    tcp(
        "timestamps that something takes out of the answers from a moment on",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100, stamp=30, echo=0)
            .far(20, seq=1, ack=101, stamp=50, echo=30)
            .near(APART, seq=101, ack=1, length=100, stamp=80, echo=50)
            .far(20, seq=1, ack=201)
            .near(APART, seq=201, ack=1, length=100, stamp=130, echo=50)
            .far(20, seq=1, ack=301)
        ),
        (3, 4),
        (7, 8),
        method="sequence",
    ),
    tcp(
        "an ACK of more than was seen",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100)
            .far(20, seq=1, ack=501)
            .near(APART, seq=501, ack=1, length=100)
            .far(20, seq=1, ack=601)
        ),
        (5, 6),
        stamps=False,
    ),
    tcp(
        "a segment and the ACK that covers it",
        lambda t: t.near(APART, seq=1, ack=1, length=100).far(20, seq=1, ack=101),
        (3, 4),
        method="sequence",
        stamps=False,
    ),
    tcp(
        "a partial ACK covers nothing yet",
        lambda t: t.near(APART, seq=1, ack=1, length=1000).far(10, seq=1, ack=501).far(10, seq=1, ack=1001),
        (3, 5),
        stamps=False,
    ),
    tcp(
        "of several that an ACK covers the last one has caused it",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100)
            .near(APART, seq=101, ack=1, length=100)
            .far(20, seq=1, ack=201)
        ),
        (4, 5),
        stamps=False,
    ),
    tcp(
        "an ACK that covers the first of two leaves the second",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100)
            .near(APART, seq=101, ack=1, length=100)
            .far(10, seq=1, ack=101)
            .far(25, seq=1, ack=201)
        ),
        (3, 5),
        (4, 6),
        stamps=False,
    ),
    tcp(
        "Karn's rule",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100)
            .near(APART, seq=1, ack=1, length=100)
            .far(20, seq=1, ack=101)
            .near(APART, seq=101, ack=1, length=100)
            .far(20, seq=1, ack=201)
        ),
        (6, 7),
        stamps=False,
    ),
    tcp(
        "sequence numbers wrap inside a segment",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=200)
            .far(20, seq=1, ack=201)
            .near(APART, seq=201, ack=1, length=100)
            .far(20, seq=1, ack=301)
        ),
        (3, 4),
        (5, 6),
        stamps=False,
        isn=2**32 - 100,
    ),
    tcp(
        "a retransmission that begins before the wrap",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=200)
            .near(APART, seq=1, ack=1, length=200)
            .far(20, seq=1, ack=201)
        ),
        stamps=False,
        isn=2**32 - 100,
    ),
    tcp(
        "a retransmission that ends where numbers begin again",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100)
            .near(APART, seq=1, ack=1, length=100)
            .far(20, seq=1, ack=101)
        ),
        stamps=False,
        isn=2**32 - 101,
    ),
    tcp(
        "a hole: the ACK of what is behind it waits for the hole",
        lambda t: (
            t.near(APART, seq=101, ack=1, length=100)
            .far(20, seq=1, ack=1)
            .near(APART, seq=1, ack=1, length=100)
            .far(20, seq=1, ack=201)
        ),
        stamps=False,
    ),
    tcp(
        "a FIN",
        lambda t: t.near(APART, seq=1, ack=1, flags=FIN | ACK).far(20, seq=1, ack=2),
        (3, 4),
        stamps=False,
    ),
    tcp(
        "a keep-alive and its answer measure nothing",
        lambda t: (
            t.near(APART, seq=1, ack=1, length=100)
            .far(20, seq=1, ack=101)
            .near(APART, seq=100, ack=1)
            .far(20, seq=1, ack=101)
            .near(APART, seq=100, ack=1, length=1)
            .far(20, seq=1, ack=101)
        ),
        (3, 4),
        stamps=False,
    ),
]

HANDSHAKES = [
    tcp("SYN, SYN-ACK, ACK", lambda t: t, method="handshake"),
    tcp("SYN, SYN-ACK, ACK over IPv6", lambda t: t, method="handshake", ipv6=True),
    tcp("SYN, SYN-ACK, ACK across the wrap", lambda t: t, isn=2**32 - 1),
    tcp(
        "opened from outside",
        lambda t: (
            t.far(seq=0, flags=SYN, stamp=0)
            .near(5, seq=0, ack=1, flags=SYN | ACK, stamp=0, echo=0)
            .far(20, seq=1, ack=1, stamp=25, echo=0)
        ),
        (1, 2),
        inward=((0, 1),),
        opened=False,
        method="handshake",
    ),
    tcp(
        "a SYN sent again",
        lambda t: (
            t.near(seq=0, flags=SYN, stamp=0)
            .near(APART, seq=0, flags=SYN, stamp=30)
            .far(20, seq=0, ack=1, flags=SYN | ACK, stamp=0, echo=0)
            .near(4, seq=1, ack=1, stamp=60, echo=0)
        ),
        inward=((2, 3),),
        opened=False,
    ),
    tcp(
        "a SYN sent again where numbers begin again",
        lambda t: (
            t.near(seq=0, flags=SYN)
            .near(APART, seq=0, flags=SYN)
            .far(20, seq=0, ack=1, flags=SYN | ACK)
            .near(4, seq=1, ack=1)
        ),
        inward=((2, 3),),
        opened=False,
        isn=2**32 - 1,
        stamps=False,
    ),
    tcp(
        "a SYN-ACK sent again",
        lambda t: (
            t.far(seq=0, flags=SYN, stamp=0)
            .near(5, seq=0, ack=1, flags=SYN | ACK, stamp=0, echo=0)
            .near(APART, seq=0, ack=1, flags=SYN | ACK, stamp=30, echo=0)
            .far(20, seq=1, ack=1, stamp=60, echo=0)
        ),
        inward=((0, 1),),
        opened=False,
    ),
    tcp(
        "the ACK is lost, and data comes when there is some",
        lambda t: (
            t.far(seq=0, flags=SYN, stamp=0)
            .near(5, seq=0, ack=1, flags=SYN | ACK, stamp=0, echo=0)
            .far(300, seq=1, ack=1, length=100, stamp=305, echo=0)
        ),
        inward=((0, 1),),
        opened=False,
    ),
]

ECHOES = [
    Case("echo", Pings, lambda p: p.ask(1).answer(1), ((0, 1),), method="echo"),
    Case("echo over IPv6", Pings, lambda p: p.ask(1).answer(1), ((0, 1),), method="echo", ipv6=True),
    Case(
        "echo from outside",
        Pings,
        lambda p: p.ask(1, near=False).answer(1, near=True),
        inward=((0, 1),),
        method="echo",
    ),
    Case("an echo answered twice", Pings, lambda p: p.ask(1).answer(1).answer(1), ((0, 1),)),
    Case("an echo asked twice", Pings, lambda p: p.ask(1).ask(1, 30).answer(1).answer(1, 5), ((0, 2),)),
    Case("an answer to nothing", Pings, lambda p: p.ask(1).answer(0).answer(1, 5), ((0, 2),)),
    Case(
        "two lost echoes do not stand in the way",
        Pings,
        lambda p: p.ask(1).ask(2, 30).ask(3, 30).answer(3).ask(4, 10).answer(4),
        ((4, 5),),
    ),
    Case(
        "echo sequence numbers wrap",
        Pings,
        lambda p: p.ask(65535).answer(65535).ask(0, 10).answer(0),
        ((0, 1), (2, 3)),
    ),
    Case("a lookup", Lookups, lambda d: d.ask(7).answer(7), ((0, 1),), method="dns"),
    Case("a lookup over IPv6", Lookups, lambda d: d.ask(7).answer(7), ((0, 1),), method="dns", ipv6=True),
    Case(
        "a lookup from outside",
        Lookups,
        lambda d: d.ask(7, near=False).answer(7, near=True),
        inward=((0, 1),),
        method="dns",
    ),
    Case("a lookup asked twice", Lookups, lambda d: d.ask(7).ask(7, 30).answer(7).answer(7, 5), ((0, 2),)),
    Case(
        "two lookups, each asked three times",
        Lookups,
        lambda d: d.ask(7).ask(8, 1).ask(7, 999).ask(8, 1).ask(7, 1200).ask(8, 1).answer(7, 300).answer(8, 5),
        ((0, 6), (1, 7)),
    ),
    Case(
        "two lookups at once", Lookups, lambda d: d.ask(7).ask(8, 5).answer(8).answer(7, 5), ((1, 2), (0, 3))
    ),
    Case(
        "two lost lookups do not stand in the way for long",
        Lookups,
        lambda d: d.ask(7).ask(8, 5).ask(9, 2100).answer(9),
        ((2, 3),),
    ),
]


def spins(name: str, per_round: int, every_ms: float, rounds: int) -> Case:
    """A bit that turns once in so many packets."""
    bits = [number // per_round % 2 for number in range(per_round * rounds)]
    turns = [number for number in range(1, len(bits)) if bits[number] != bits[number - 1]]
    return Case(name, Quic, lambda q: q.send(bits, every_ms), tuple(pairwise(turns)), method="spin")


SPINS = [
    spins("a spinning bit", 4, 7, 40),
    spins("a spinning bit, two packets a round", 2, 13, 40),
    spins("a spinning bit, one packet a round", 1, 25, 40),
    spins("a spinning bit, thirty packets a round", 30, 1, 12),
]
CONSTANT = Case("a constant bit", Quic, lambda q: q.send([1] * 64, 4))
CHANCE = Case("a random bit", Quic, lambda q: q.send(random.Random(4711).choices((0, 1), k=300), 4))


def overtaken(quic: Quic) -> Quic:
    """Rounds of eight packets and 24 ms; in one of four the last packet comes after the next round's first."""
    for number in range(40):
        bit = number % 2
        if number % 4 == 0:
            quic.send([bit] * 7, 3).send([1 - bit], 2.7).send([bit], 0.3)
        else:
            quic.send([bit] * 8, 3)
    return quic


OVERTAKEN = Case("an edge that is overtaken", Quic, overtaken)

CASES = [*TIMESTAMPS, *SEQUENCES, *MIDWAY, *HANDSHAKES, *ECHOES, *SPINS, CONSTANT, CHANCE, OVERTAKEN]


@dataclass(frozen=True)
class Played:
    """What came of one script: its packets' times, its flow in the last frame, and its samples by bucket."""

    times: list[int]
    row: Row
    outward: dict[int, int]


@pytest.fixture(scope="module")
def played() -> Iterator[dict[str, Played]]:
    with Lab() as lab:
        link = lab.veth()
        scripts = []
        for number, case in enumerate(CASES):
            script = case.write(case.kind(link, number, ipv6=case.ipv6))
            scripts.append(script)
        with watching(lab, link.a, "--subnets", "32,128") as nettop:
            times = play_all(lab, scripts)
            nettop.more_frames(3)
        found = {}
        for case, script, sent in zip(CASES, scripts, times, strict=True):
            address = f"[{script.far_address}]:" if case.ipv6 else f"{script.far_address}:"
            (row,) = (r for r in nettop.frames[-1]["flows"] if r["remote"].startswith(address))
            subnet = f"{script.far_address}/{128 if case.ipv6 else 32}"
            histograms = [
                s["rtt"] for frame in nettop.frames for s in frame["rtt"]["subnets"] if s["prefix"] == subnet
            ]
            found[case.name] = Played(sent, row, histogram_sum(histograms))
        yield found


def expected(times: list[int], pairs: tuple[tuple[int, int], ...]) -> list[int]:
    return [times[end] - times[begin] for begin, end in pairs]


def agrees(rtt: Row | None, samples: Sequence[float]) -> bool:
    """Whether count, minimum, last, smoothed value and variation are those of the samples in order, within 0.5 ms."""
    if not samples or not rtt:
        return not samples and not rtt
    smoothed, variation = samples[0], samples[0] / 2
    for sample in samples[1:]:  # RFC 6298, 2.3
        variation = 3 / 4 * variation + abs(smoothed - sample) / 4
        smoothed = 7 / 8 * smoothed + sample / 8
    return (
        rtt["samples_total"] == len(samples)
        and abs(rtt["min_ns"] - min(samples)) < MS / 2
        and abs(rtt["last_ns"] - samples[-1]) < MS / 2
        and abs(rtt["smoothed_ns"] - smoothed) < MS / 2
        and abs(rtt["jitter_ns"] - variation) < MS / 2
    )


@pytest.mark.parametrize(
    "case", [*TIMESTAMPS, *SEQUENCES, *MIDWAY, *HANDSHAKES, *ECHOES], ids=lambda case: case.name
)
def test_what_measures_and_what_does_not(played: dict[str, Played], case: Case) -> None:
    found = played[case.name]
    outward, inward = expected(found.times, case.outward), expected(found.times, case.inward)

    assert agrees(found.row["rtt"], outward), (found.row["rtt"], outward)
    assert agrees(found.row["internal_rtt"], inward), (found.row["internal_rtt"], inward)
    if case.method:
        assert (found.row["rtt"] or found.row["internal_rtt"])["method"] == case.method
    # Every sample, by its bucket.
    buckets = sorted(upper for upper, count in found.outward.items() for _ in range(count))
    assert len(buckets) == len(outward)
    for upper, sample in zip(buckets, sorted(outward), strict=True):
        assert upper / 1.0625 - MS / 2 <= sample <= upper + MS / 2


@pytest.mark.parametrize("case", SPINS, ids=lambda case: case.name)
def test_a_spinning_bit_is_found_and_timed(played: dict[str, Played], case: Case) -> None:
    found = played[case.name]
    rounds = expected(found.times, case.outward)

    assert found.row["spinning"] is True
    assert found.row["rtt"]["method"] == "spin"
    assert abs(found.row["rtt"]["last_ns"] - rounds[-1]) < MS / 2
    # The first rounds are not enough to tell it from chance.
    assert len(rounds) / 2 <= found.row["rtt"]["samples_total"] <= len(rounds)
    assert min(rounds) - MS / 2 <= found.row["rtt"]["min_ns"] <= max(rounds)
    assert max(found.outward) <= max(rounds) * 1.0625 + MS / 2


@pytest.mark.parametrize("case", [CONSTANT, CHANCE], ids=lambda case: case.name)
def test_a_bit_that_does_not_spin_measures_nothing(played: dict[str, Played], case: Case) -> None:
    found = played[case.name]
    assert found.row["spinning"] is False
    assert found.row["rtt"] is None
    assert found.outward == {}


def test_packets_that_overtake_the_turn_of_the_bit_make_no_short_rounds(played: dict[str, Played]) -> None:
    found = played[OVERTAKEN.name]
    # Without the rule the packet that is late would end a round of 0.3 ms, and begin one of as much.
    assert found.row["spinning"] is True
    assert found.row["rtt"]["samples_total"] >= 20
    # A round is seven to nine packets long. Its time by their own clock, not by the plan: the sender may be held up.
    shortest, longest = (
        choose(later - earlier for earlier, later in zip(found.times, found.times[n:], strict=False))
        for choose, n in ((min, 7), (max, 9))
    )
    assert found.row["rtt"]["min_ns"] > min(17 * MS, 0.9 * shortest)
    assert max(found.outward) < max(33 * MS, longest * 1.0625 + MS / 2)


@pytest.mark.parametrize("case", TIMESTAMPS[:1], ids=lambda case: case.name)
def test_what_a_bare_ack_answered_is_known_apart(played: dict[str, Played], case: Case) -> None:
    found = played[case.name]
    bare = expected(found.times, ((0, 1), (3, 4)))
    assert abs(found.row["rtt"]["min_bare_ns"] - min(bare)) < MS / 2
    # The SYN-ACK's is the only one inward, and the kernel answered that, too.
    assert found.row["internal_rtt"]["min_bare_ns"] == found.row["internal_rtt"]["min_ns"]


def test_an_answer_with_data_is_no_bare_ack(played: dict[str, Played]) -> None:
    found = played["both directions, each its own"]
    (handshake, *later) = expected(found.times, ((0, 1), (3, 4), (5, 6)))
    assert found.row["rtt"]["samples_total"] == 3
    assert abs(found.row["rtt"]["min_bare_ns"] - min(handshake, later[1])) < MS / 2
    assert played["a lookup"].row["rtt"]["min_bare_ns"] is None


# A start in the middle


@pytest.mark.parametrize("tick_ms", [1, 4, 10, 100])
def test_no_start_in_the_middle_makes_a_round_trip_too_short(tick_ms: int) -> None:
    """Fifty flows that talk without a pause; each is seen from another moment of a tick of its TSval on."""
    every_ms, delay_ms = 1.3, 4.0
    count = int((2.3 * tick_ms + 60) / every_ms)
    with Lab() as lab:
        link = lab.veth()
        scripts = []
        for number in range(50):
            script = Talk(link, number)
            begun = tick_ms * number / 50
            events = [(begun + n * every_ms, True, n) for n in range(count)]
            events += [(at + delay_ms, False, n) for at, _, n in events]
            # What was sent before the start is not there, and its answers are.
            events += [(begun + delay_ms - n * every_ms, False, -n) for n in range(1, 3)]
            last = begun
            for at, near, n in sorted(events):
                wait, last = at - last, at
                stamp = 1000 + int((begun + n * every_ms) / tick_ms)
                if near:
                    script.near(wait, seq=1000 + 100 * n, ack=1, length=100, stamp=stamp, echo=5)
                else:
                    script.far(wait, seq=1, ack=1100 + 100 * n, stamp=7 + int(at / tick_ms), echo=stamp)
            scripts.append((script, [(near, n) for _, near, n in sorted(events)]))
        with watching(lab, link.a, "--top", "100") as nettop:
            times = play_all(lab, [script for script, _ in scripts])
            nettop.more_frames(3)
    measured = 0
    for (script, events), sent in zip(scripts, times, strict=True):
        there = {n: time_ns for (near, n), time_ns in zip(events, sent, strict=True) if near}
        least = min(
            time_ns - there[n] for (near, n), time_ns in zip(events, sent, strict=True) if not near and n >= 0
        )
        (row,) = (r for r in nettop.frames[-1]["flows"] if r["remote"].startswith(f"{script.far_address}:"))
        if row["rtt"]:
            measured += 1
            # Nothing comes sooner than the wire allows; 0.1 ms for the way from the sender's clock into the kernel.
            assert row["rtt"]["min_ns"] >= least - MS / 10, (row["rtt"], least)
    assert measured >= 45

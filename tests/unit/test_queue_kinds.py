"""What the queues of an interface cut up, by what rtnetlink says of them."""

import struct
from types import SimpleNamespace

import pytest

from nettop.netdev import queue_kinds
from nettop.netdev.netlink import Qdisc
from nettop.netdev.queue_kinds import ALL, NOTHING, Cut, cut

ROOT = 0xFFFFFFFF
PIECES = "the device counts the pieces"


def attribute(kind: int, value: bytes) -> bytes:
    return (struct.pack("=HH", 4 + len(value), kind) + value).ljust((len(value) + 7) & ~3, b"\0")


def queue(kind: str, parent: int = ROOT, handle: int = 0x10000, options: bytes = b"") -> Qdisc:
    return Qdisc(kind, handle, parent, options)


def netem(duplicate: int = 0, corrupt: int = 0) -> bytes:
    return struct.pack("=6I", 0, 1000, 0, 0, duplicate, 0) + attribute(4, struct.pack("=2I", corrupt, 0))


def tbf(rate: int, ticks: int, peak: int = 0, mtu: int = 0) -> bytes:
    specs = (struct.pack("=BBHhHI", 0, 1, 0, -1, 0, value) for value in (rate, peak))
    return attribute(1, b"".join(specs) + struct.pack("=3I", 3_000_000, ticks, mtu))


CAKE = attribute(17, b"\1\0\0\0")  # it cuts


def test_no_queue_cuts_nothing():
    assert cut(()) == cut([queue("noqueue", handle=0)]) == Cut(NOTHING)


def test_cake_cuts_all_unless_it_is_told_not_to():
    assert cut([queue("cake", options=CAKE)]).above == ALL
    assert cut([queue("cake", options=attribute(17, bytes(4)))]).above == NOTHING


def test_tbf_cuts_what_is_larger_than_its_burst():
    # burst 9000 at 500 Mbit/s is 144000 ns, 2250 ticks of 64
    assert 9000 <= cut([queue("tbf", options=tbf(62_500_000, 2250))]).above <= 9004
    # and with a peak rate, than that rate's: 1600 bytes at 1 Gbit/s, 12800 ns
    assert 1600 <= cut([queue("tbf", options=tbf(62_500_000, 2250, 125_000_000, 200))]).above <= 1608


def test_tbf_above_another_cuts_what_either_does():
    tree = [queue("tbf", options=tbf(62_500_000, 25_000)), queue("cake", 0x10001, 0x80010000, CAKE)]
    assert cut(tree).above == ALL


def test_what_only_some_packets_go_through_is_said():
    tree = [queue("htb"), queue("cake", 0x10001, 0x80010000, CAKE)]
    assert cut(tree).above == NOTHING
    assert cut(tree).differs.startswith("cake below htb")
    assert PIECES in cut(tree).differs
    assert cut(tree, whole=False) == Cut(NOTHING)  # a card's counters are of the pieces anyway


def test_where_every_queue_of_a_device_has_the_same_below_it_all_go_through_that():
    leaves = [queue("cake", number, 0x80000000 + (number << 16), CAKE) for number in (1, 2)]
    assert cut([queue("mq", handle=0), *leaves]) == Cut(ALL)
    assert cut([queue("mq", handle=0), leaves[0], queue("fq_codel", 2, 0)]).above == NOTHING
    assert cut([queue("mq", handle=0), *(queue("fq_codel", n, 0) for n in range(1, 257))]) == Cut(NOTHING)


def test_what_netem_does_at_random_is_said():
    assert cut([queue("netem", options=netem())]) == Cut(NOTHING)
    assert "corrupts" in cut([queue("netem", options=netem(corrupt=5))]).differs
    assert cut([queue("netem", options=netem(corrupt=5))], whole=False).differs == ""
    twice = [queue("prio"), queue("netem", 0x10002, 0x20000, netem(duplicate=5))]
    assert "twice" in cut(twice).differs
    assert "twice" in cut(twice, whole=False).differs


@pytest.mark.parametrize(("release", "above"), [("6.1.0-50-amd64", ALL), ("6.12.107+deb13-amd64", NOTHING)])
def test_taprio_cuts_all_before_linux_6_3(monkeypatch, release, above):
    monkeypatch.setattr(queue_kinds.os, "uname", lambda: SimpleNamespace(release=release))
    found = cut([queue("taprio")])
    assert found.above == above
    assert bool(found.differs) == (above == NOTHING)


def test_a_tree_that_is_a_circle_ends():
    circle = [queue("prio"), queue("prio", 0x20001, 0x20000), queue("prio", 0x10001, 0x20000)]
    assert cut(circle) == Cut(NOTHING)


def test_a_leaf_is_not_asked_for():
    assert not queue_kinds.may_cut("fq_codel")
    assert not queue_kinds.may_cut("")
    assert queue_kinds.may_cut("htb")

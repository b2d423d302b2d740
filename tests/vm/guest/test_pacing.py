"""What fq holds until its time has come is pacing, not a queue.  Not every kernel has fq; a guest's can load it."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from lab import Lab, Link, oracle
from lab.program import Frame
from lab.traffic import Transfer, transfer
from stagelab import MS, stages, watching

RATE = 200_000  # bytes a second
SIZE = 400_000
SO_MAX_PACING_RATE = 47


@contextmanager
def root_qdisc(link: Link, *words: str) -> Iterator[None]:
    """At the sender, which sends no packet that is larger than a frame."""
    link.a.ns.run("ethtool", "-K", link.a.name, "tso", "off", "gso", "off")
    link.a.ns.run("tc", "qdisc", "add", "dev", link.a.name, "root", *words)
    yield
    link.a.ns.run("tc", "qdisc", "del", "dev", link.a.name, "root")


def sent(pair: Transfer) -> float:
    """How many seconds it takes until all has come."""
    begun, count = time.monotonic(), 0
    pair.sender.sendall(b"x" * SIZE)
    while count < SIZE:
        data = pair.receiver.recv(SIZE)
        assert data
        count += len(data)
    return time.monotonic() - begun


def paced_ns(frames: list[Frame]) -> int:
    return sum(s["paced_ns"] for f in frames for s in f["stages"]["tx"] if s["stage"] == "qdisc")


def test_what_fq_holds_until_its_time_is_pacing(lab: Lab, veth: Link) -> None:
    """fq's own counters and the receiver's clock say that it paced; nearly all of the queue's time is called so."""
    with root_qdisc(veth, "fq"), watching(lab, veth.a) as frames, transfer(veth.a, veth.b) as pair:
        pair.sender.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, RATE)
        seconds = sent(pair)
        (fq,) = (q for q in oracle.qdiscs(veth.a) if q["kind"] == "fq")
    queue = stages(frames)["tx", "qdisc"]
    print(
        f"{seconds:.3f} s, {fq}, {queue.count} packets, {queue.sum_ns} ns, of these paced {paced_ns(frames)}"
    )
    assert seconds == pytest.approx(SIZE / RATE, rel=0.2)  # TCP lets the first ten segments go unpaced
    assert fq["throttled"] > 10  # a large packet at a time
    assert queue.sum_ns > 10 * 10 * MS
    assert 0.8 * queue.sum_ns < paced_ns(frames) <= queue.sum_ns

"""From a NIC's interrupt to its poll, while another device's packets hold the softirq (run.sh's NIC=cards).

The witnesses are /proc/interrupts, the interrupts of which wait for a poll, and how long the softirq was held.  (Not
ping: the emulated CPUs take turns, so that one which is busy holds the other up.)
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import Lab, Nettop
from lab.namespace import Endpoint
from lab.program import Frame
from lab.traffic import Pings, ping
from stagelab import MS, Total, slow_to_receive
from test_nic import cards, device_of, lines_of

pytestmark = pytest.mark.timing  # how long is what it asks, and emulated CPUs are others' to hold up

PINGS = 97
BUSY, OTHER = 0, 1


@contextmanager
def keeping_busy(source: Endpoint, target: Endpoint, hold_ns: int) -> Iterator[None]:
    """A CPU's softirq is held for this long by each packet of a veth's, which come about as long apart."""
    sock = source.ns.socket(socket.SOCK_DGRAM)
    stop = threading.Event()

    def send() -> None:
        os.sched_setaffinity(0, {BUSY})
        while not stop.wait(hold_ns / 1e9 * 0.9):
            sock.sendto(b"hold", (target.v4, 9))

    with slow_to_receive(target, hold_ns):
        sender = threading.Thread(target=send)
        sender.start()
        try:
            yield
        finally:
            stop.set()
            sender.join()
            sock.close()


@contextmanager
def bound(end: Endpoint, cpu: int) -> Iterator[None]:
    """The device's interrupts come to this CPU."""
    paths = [Path(f"/proc/irq/{irq}/smp_affinity_list") for irq in lines_of(device_of(end))]
    before = [path.read_text() for path in paths]
    for path in paths:
        path.write_text(str(cpu))
    try:
        yield
    finally:
        for path, text in zip(paths, before, strict=True):
            path.write_text(text)


def waits(frames: list[Frame], end: Endpoint) -> tuple[Total, int]:
    total, missed = Total(), 0
    for poll in (p for f in frames for p in f["irq"]["poll"] if p["device"] == end.name):
        total.add(poll["irq_to_poll"])
        missed += poll["irq_missed"]
    return total, missed


def pinged(source: Endpoint, target: Endpoint) -> tuple[Pings, int]:
    """From the CPU that is not busy; and how often the target's device interrupted meanwhile."""
    before, lines = os.sched_getaffinity(0), lines_of(device_of(target))
    os.sched_setaffinity(0, {OTHER})
    try:
        pings = ping(source, target, PINGS, interval_s=0.031)
    finally:
        os.sched_setaffinity(0, before)
    return pings, sum(lines_of(device_of(target)).values()) - sum(lines.values())


@pytest.mark.parametrize("hold_ms", [4, 9])
def test_what_waits_behind_another_device(lab: Lab, hold_ms: int) -> None:
    """4 ms: within one run of net_rx_action.  9 ms: longer than a run may take, so the poll is in a later one."""
    veth = lab.veth()
    with (
        cards(lab, "00", "01") as (near, far),
        bound(near, BUSY),
        bound(far, OTHER),
        Nettop(lab, near, "-p", "irq", "-d", "0.5") as nettop,
    ):
        nettop.wait_frames(1)
        quiet, interrupts = pinged(far, near)
        nettop.more_frames(2)
        first = len(nettop.frames)
        with keeping_busy(veth.a, veth.b, hold_ms * MS):
            time.sleep(0.2)
            busy, more = pinged(far, near)
        nettop.more_frames(3)
        calm, frames = nettop.frames[:first], nettop.frames[first:]
    (before, unseen), (found, missed) = waits(calm, near), waits(frames, near)
    held = sum(count for upper, count in found.buckets.items() if upper > hold_ms * MS / 4)
    print(
        f"quiet: {interrupts} interrupts, {before.count} waits, {unseen} missed, median {before.percentile_ns(0.5)} ns"
    )
    print(
        f"busy: {more} interrupts, {found.count} waits, {missed} missed; {held} longer than a quarter of {hold_ms} ms"
    )
    print(sorted(found.buckets.items()))
    for pings, lines, count in (quiet, interrupts, before.count + unseen), (busy, more, found.count + missed):
        assert pings.received >= PINGS - 3
        # A line that interrupts again before its poll has ended waits once: an answer's completion often does.  What
        # the kernel sends by itself (ARP, router solicitations) is among the waits, and not in the answers.
        assert 0.9 * pings.received <= count <= lines + 4
    assert missed <= 0.03 * found.count
    # Held for half of the time: of the questions that come meanwhile some wait for nearly all of it.
    assert held >= PINGS / 10
    assert found.percentile_ns(1.0) > 0.9 * hold_ms * MS
    assert before.percentile_ns(0.5) < 0.25 * hold_ms * MS

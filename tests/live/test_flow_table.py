"""A flow that finds no room in the table: it is counted, and no other flow is affected.

The programs run by BPF_PROG_TEST_RUN, and their table is a plain hash of a few entries, which is full
where an LRU would evict an old one.
"""

import mmap
import os
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from flow_table import FlowMaps
from lab import packets
from lab.packets import ACK, SYN

from nettop.bpf import syscall
from nettop.bpf.config import Config, Counting

ROOM = 5
NEAR, FAR = "10.1.0.1", "10.1.0.2"
MAC = bytes(range(2, 14)) + b"\x08\x00"


class FullTable(FlowMaps):
    """The programs of both directions with a table that has ROOM entries."""

    def __init__(self, cache: Path) -> None:
        super().__init__(cache, ROOM, syscall.MapType.HASH)
        config = Config(ifindex=1, count_in=Counting.SKB, count_out=Counting.SKB)
        layout = next(m.value_layout for m in self.made.maps if m.name == "config")
        syscall.map_update(self.fds["config"], bytes(4), config.pack(layout))
        self.egress, self.ingress = (
            self.load(syscall.ProgType.SCHED_CLS, f"flows_{way}") for way in ("egress", "ingress")
        )

    def sent(self, port: int, flags: int = SYN, times: int = 1) -> None:
        """A segment from this port; its flow is half-open for as long as nobody answers."""
        frame = MAC + packets.ip(NEAR, FAR, 6, packets.tcp(NEAR, FAR, port, 80, seq=port, flags=flags))
        syscall.test_run(self.egress, frame, times)

    def received(self, port: int, flags: int = SYN | ACK) -> None:
        frame = MAC + packets.ip(
            FAR, NEAR, 6, packets.tcp(FAR, NEAR, 80, port, seq=7, ack=port + 1, flags=flags)
        )
        syscall.test_run(self.ingress, frame)

    def ids(self, *ports: int) -> list[int]:
        """Of those of these flows that are in the table."""
        return [int(flow["id"]) for flow in map(self.flow, map(key, ports)) if flow is not None]

    def forget(self, port: int) -> None:
        assert syscall.map_delete(self.fds["flows"], key(port))


def key(port: int) -> bytes:
    """As struct flow_key has it: v4-mapped addresses, ports in the host's order."""
    ends = b"".join(bytes(10) + b"\xff\xff" + bytes(map(int, end.split("."))) for end in (NEAR, FAR))
    return ends + struct.pack("=HHIII", port, 80, 6, 0, 0)


@contextmanager
def on_one_cpu() -> Iterator[None]:
    """Ids are given out by each CPU for itself."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture
def table(cache: Path) -> Iterator[FullTable]:
    made = FullTable(cache)
    with on_one_cpu():
        yield made
    made.close()


def test_a_flow_that_found_no_room_leaves_its_id_to_nobody(table: FullTable) -> None:
    living, refused = range(1001, 1001 + ROOM), range(2001, 2102)
    for port in living:
        table.sent(port)
        table.received(port)
    before = table.ids(*living)
    assert len(set(before)) == ROOM
    for port in refused:
        table.sent(port)
    assert table.ids(*refused) == []
    # Each is counted as what it is: a packet that belongs to no flow, and no connection that was opened.
    assert (table.count("untracked"), table.count("created"), table.count("opened")) == (
        len(refused),
        ROOM,
        ROOM,
    )
    for number, port in enumerate(living):
        table.forget(port)
        table.sent(3001 + number)
        (new,) = table.ids(3001 + number)
        assert new not in before
        assert new > max(before)
        assert table.ids(*living[number + 1 :]) == before[number + 1 : ROOM]  # the others are what they were
        before.append(new)
    assert len(set(before)) == 2 * ROOM
    assert (table.count("created"), table.count("replaced")) == (2 * ROOM, 0)


def test_a_half_open_flow_that_lost_its_place_leaves_its_id_to_nobody(table: FullTable) -> None:
    """It is put in anew with each SYN; another CPU that waits for a place to become free takes it meanwhile."""
    living, half_open, later, foreign, wanted = range(1001, 1001 + ROOM - 2), 2001, 3001, 4001, 7
    others = set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0)
    hunting = mmap.mmap(-1, 1)  # shared with another process: two threads of one would wait for each other
    taker = os.fork()
    if not taker:
        os.sched_setaffinity(0, others)
        while True:
            if hunting[0]:
                with suppress(OSError):  # full
                    syscall.map_update(
                        table.fds["flows"], key(foreign), bytes(table.layouts["flows"].itemsize)
                    )
                    hunting[0] = 0
            else:
                time.sleep(0.001)
    for port in living:
        table.sent(port)
        table.received(port)
    given = table.ids(*living)
    try:
        end = time.monotonic() + 120
        for lost in range(wanted):
            table.sent(half_open)
            table.sent(later)
            table.received(later)
            given += table.ids(half_open, later)
            hunting[0] = 1
            while table.count("replaced") == lost:  # taken out, and not back
                assert time.monotonic() < end, lost
                table.sent(half_open)
            while hunting[0]:
                time.sleep(0.001)
            assert table.ids(half_open) == []
            table.forget(foreign)
            table.sent(half_open + 1)  # the next one of this CPU
            given += table.ids(half_open + 1)
            assert len(given) == len(set(given)) == len(living) + 3 * (lost + 1)
            assert table.ids(later) == given[-2:-1]
            table.forget(half_open + 1)
            table.forget(later)
    finally:
        os.kill(taker, signal.SIGKILL)
        os.waitpid(taker, 0)
    assert table.ids(*living) == given[: len(living)]

"""What waits in sockets, against the clocks of who writes and who reads, and against their own counts.

Sockets that are closed with data unread, gaps, queues longer than nettop's, half-closed connections, and the many calls
by which data is read.  Counts of them, and of MPTCP, are in test_stages_counts.py.
"""

import fcntl
import os
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import accumulate

import pytest
import reassembly
from lab import Direction, Lab, Link
from lab.namespace import Endpoint
from lab.traffic import transfer
from stagelab import MS, Station, Total, stages, watching
from tally import segments

SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32

pytestmark = pytest.mark.timing  # delays by the wall clock, on a machine that others use


def beside_others(test: Callable[..., None]) -> Callable[..., None]:
    """Counts alone: nobody else's load changes these, and a failure is one."""
    return pytest.mark.timing(False)(test)


def stamped(index: int, size: int) -> bytes:
    return struct.pack("QQ", index, time.monotonic_ns()).ljust(size, b"x")


def stamp(data: bytes) -> int:
    return int(struct.unpack_from("QQ", data)[1])


def pace(start_ns: int, index: int, interval_ns: int) -> None:
    """Wait for the time of the packet `index`, awake: a sleep is too coarse."""
    while time.monotonic_ns() < start_ns + index * interval_ns:
        pass


@contextmanager
def dropping(at: Endpoint, *lengths: int) -> Iterator[list[Callable[[], None]]]:
    """Lose TCP segments that come to `at` in IP packets of these lengths, each until it is told to let them through."""

    def nft(*words: str) -> None:
        at.ns.run("nft", " ".join(words))

    nft("add table inet gap")
    for length in lengths:
        nft(f"add chain inet gap l{length} {{ type filter hook prerouting priority 0; }}")
        nft(f"add rule inet gap l{length} meta length {length} drop")
    try:
        yield [partial(nft, f"flush chain inet gap l{length}") for length in lengths]
    finally:
        nft("delete table inet gap")


# --- one socket after the other at the same address ------------------------------------------------------------------


def test_a_datagram_that_was_never_read_is_not_the_next_sockets(staged: Station) -> None:
    """Two answers to each question, one of which is read: the other dies with its socket."""
    questions, pause = 29, 0.1
    server = staged.link.b.ns.socket(socket.SOCK_DGRAM)
    server.bind((staged.link.b.v4, 0))

    def answer() -> None:
        for _ in range(questions):
            _, who = server.recvfrom(100)
            server.sendto(b"one", who)
            server.sendto(b"two", who)

    thread = threading.Thread(target=answer, daemon=True)
    with server, staged.watch.observing() as frames:
        thread.start()
        for _ in range(questions):
            with staged.link.a.ns.socket(socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                client.sendto(b"?", server.getsockname())
                assert client.recv(100) == b"one"
                time.sleep(pause)
        thread.join(5)
    application = stages(frames)["rx", "application"]
    assert (application.count, application.missed) == (questions, 0)
    assert application.percentile_ns(1.0) < pause * 1e9 / 2


@beside_others
def test_what_a_closed_connection_left_unread_is_not_the_next_ones(staged: Station) -> None:
    """Closed with data unread over veth; then connections over the loopback get sockets at the same addresses."""
    for _ in range(2):  # warm the slab: the kernel hands the same addresses out again
        left_unread(staged.link, 5)
    with staged.watch.observing() as frames:
        left_unread(staged.link, 31)
        time.sleep(0.3)
        local = Endpoint(staged.link.a.ns, "lo", "", "127.0.0.1", "::1")
        for _ in range(31):
            with transfer(local, local) as pair:
                pair.sender.sendall(b"x" * 400)
                assert pair.receiver.recv(1000)
    application = stages(frames)["rx", "application"]
    assert (application.count, application.missed) == (0, 0)


def left_unread(link: Link, count: int) -> None:
    for _ in range(count):
        with transfer(link.b, link.a) as pair:
            pair.sender.sendall(b"x" * 700)
            time.sleep(0.005)


def test_a_gap_that_a_closed_connection_left_is_not_the_next_ones(staged: Station) -> None:
    """A segment is lost, others wait behind it, and the connection is closed."""
    with staged.watch.observing() as frames, dropping(staged.link.a, 52 + 777):
        for _ in range(13):
            with transfer(staged.link.b, staged.link.a) as pair:
                for size in (100, 777, 101, 102, 103):
                    pair.sender.sendall(b"x" * size)
                    time.sleep(0.002)
                pair.sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            time.sleep(0.1)
            for _ in range(3):
                with transfer(staged.link.b, staged.link.a) as pair:
                    pair.sender.sendall(b"x" * 50)
                    assert pair.receiver.recv(100)
    stage = stages(frames)["rx", "socket"]
    assert (stage.count, stage.missed) == (13 + 39, 0)
    assert stage.percentile_ns(1.0) < 20 * MS


@pytest.mark.parametrize("left", ["unsent", "unacknowledged"])
def test_what_a_closed_connection_had_still_to_send_is_not_the_next_ones(staged: Station, left: str) -> None:
    """Closed by a RST with writes in the socket; the next ones get its address at once, and their own writes' times."""
    rounds, others, pause = 13, 5, 0.3
    write_left_behind(staged.link, left, 5, 0)  # warm the slab: the kernel hands the same addresses out again
    with staged.watch.observing() as frames:
        for _ in range(rounds):
            write_left_behind(staged.link, left, 1, pause)
            for _ in range(others):
                with transfer(staged.link.a, staged.link.b) as pair:
                    pair.sender.sendall(b"x" * 50)
                    assert pair.receiver.recv(100)
    totals = stages(frames)
    application = totals["tx", "application"]
    sent = application.count - rounds * others
    assert sent == rounds if left == "unacknowledged" else rounds <= sent <= 10 * rounds
    assert application.missed == 0
    # Of the closed connections' own, what goes out at all waits for a delayed ACK at the most.
    assert application.percentile_ns(1.0) < pause * 1e9 / 2


def write_left_behind(link: Link, left: str, count: int, pause: float) -> None:
    """Connections that end with what was written in them: the peer's window is closed, or its ACKs are lost."""
    size = 777
    with dropping(link.b, 52 + size):
        for _ in range(count):
            with transfer(link.a, link.b, receive_buffer=4096 if left == "unsent" else None) as pair:
                if left == "unacknowledged":
                    pair.sender.sendall(b"x" * size)
                else:
                    pair.sender.setblocking(False)
                    with suppress(BlockingIOError):
                        while True:
                            pair.sender.send(b"x" * 1000)
                time.sleep(pause)
                if left == "unsent":
                    assert unsent(pair.sender) > 0
                pair.sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                pair.sender.close()


def unsent(sender: socket.socket) -> int:
    """Bytes that were written and not sent (SIOCOUTQNSD)."""
    return int(struct.unpack("i", fcntl.ioctl(sender, 0x894B, bytes(4)))[0])


# --- behind gaps -----------------------------------------------------------------------------------------------------


def test_each_run_is_released_when_its_own_gap_closes(lab: Lab) -> None:
    """Two lost segments; the first gap closes long before the second.  All is sent before the first ACK is back."""
    delay = 30.0
    link = lab.wire(Direction(delay_ms=delay))
    link.a.ns.run("ip", "route", "replace", f"{link.b.v4}/32", "dev", link.a.name, "initcwnd", "40")
    sent: list[int] = []
    first_run, second_run = (777, 101, 102, 103, 104, 105), (888, 201, 202, 203, 204, 205, 206, 207)
    with watching(lab, link.b) as frames, transfer(link.a, link.b) as pair:
        pair.sender.sendall(b"x" * 100)
        read_exactly(pair.receiver, 100)
        with dropping(link.b, 52 + 777, 52 + 888) as (first, second):
            for size in (*first_run, *second_run):
                pair.sender.sendall(b"x" * size)
                sent.append(time.monotonic_ns() + round(delay * 1e6))
                time.sleep(0.002)
            time.sleep(2 * delay / 1000)
            # In a thread: nft takes longer to end than the segment that it lets through takes to come.
            with read_at(pair.receiver, sum(first_run)) as read:
                first()
            released = read[0]
            time.sleep(0.4)
            with read_at(pair.receiver, sum(second_run)) as read:
                second()
            closed = read[0]
    waits = [released - at for at in sent[1:6]] + [closed - at for at in sent[7:]]
    stage = stages(frames)["rx", "socket"]
    # The first segment, the two that close the gaps, and those behind them.
    assert (stage.count, stage.missed) == (3 + len(waits), 0)
    assert stage.mean_ns == pytest.approx(sum(waits) / stage.count, rel=0.05, abs=0.2 * MS)
    # The upper edge of a bucket that is 6.25 % wide.
    assert stage.percentile_ns(1.0) == pytest.approx(max(waits), rel=0.1)
    assert stage.percentile_ns((3 + 5) / stage.count) == pytest.approx(max(waits[:5]), rel=0.1)


@contextmanager
def read_at(receiver: socket.socket, count: int) -> Iterator[list[int]]:
    """When so many bytes had been read, by a thread that begins before the block and is over after it."""
    found: list[int] = []

    def read() -> None:
        read_exactly(receiver, count)
        found.append(time.monotonic_ns())

    thread = threading.Thread(target=read)
    thread.start()
    yield found
    thread.join(10)
    assert found


def read_exactly(receiver: socket.socket, count: int) -> None:
    while count:
        data = receiver.recv(min(count, 65536))
        assert data
        count -= len(data)


@pytest.mark.parametrize("congestion", ["cubic", "bbr"])
def test_segments_wait_as_long_as_reassembly_says(congestion: str) -> None:
    """The short form of reassembly.py: mean and 99th percentile within 5 % + 0.2 ms, and every segment, once.

    The reader's clock is read after its call has returned, so on a busy machine it is late by a wake-up at times: of a
    few hundred segments (cubic) the eight longest waits are those, and are not compared.
    """
    result = reassembly.measure(reassembly.Case(congestion, loss=0.03), seconds=4)
    shown, truth = result.shown["application"], result.truth["application"]
    assert reassembly.right(result, "socket"), result
    assert reassembly.agree(shown.mean, truth.mean), result
    assert shown.packets + result.missed["application"] == truth.packets
    if congestion == "bbr":
        assert truth.packets > 2000
        assert reassembly.agree(shown.p99, truth.p99), result
    assert result.truth["socket"].mean > 1 * MS


# --- more than the queue's entries -----------------------------------------------------------------------------------


def test_a_datagram_reader_that_slept_before_a_long_queue(staged: Station) -> None:
    count, interval = 4001, 250_000
    receiver, sender = (
        staged.link.a.ns.socket(socket.SOCK_DGRAM),
        staged.link.b.ns.socket(socket.SOCK_DGRAM),
    )
    waits: list[int] = []
    with receiver, sender, staged.watch.observing() as frames:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 25)
        receiver.bind((staged.link.a.v4, 0))
        receiver.settimeout(5)
        sender.connect(receiver.getsockname())
        start = time.monotonic_ns()
        for index in range(count):
            pace(start, index, interval)
            sender.send(stamped(index, 100))
        time.sleep(0.1)
        for _ in range(count):
            data = receiver.recv(200)
            waits.append(time.monotonic_ns() - stamp(data))
    application = stages(frames)["rx", "application"]
    assert application.count + application.missed == count
    same_as(application, waits)


def test_a_stream_reader_that_slept_before_a_long_queue(lab: Lab, veth: Link) -> None:
    count, interval, size = 3001, 300_000, 400
    veth.a.ns.run("ethtool", "-K", veth.a.name, "gro", "off")
    veth.a.ns.sysctl("ipv4.tcp_rmem", "4096 8000000 16000000")
    # Else the first writes share segments while they wait for ACKs, and segments are what the stage counts.
    route = f"{veth.a.v4}/32", "dev", veth.b.name, "initcwnd", "4000"
    veth.b.ns.run("ip", "route", "replace", *route)
    waits: list[int] = []
    with watching(lab, veth.a) as frames, transfer(veth.b, veth.a, receive_buffer=8_000_000) as pair:
        start = time.monotonic_ns()
        for index in range(count):
            pace(start, index, interval)
            pair.sender.sendall(stamped(index, size))
        time.sleep(0.1)
        for _ in range(count):
            data = pair.receiver.recv(size, socket.MSG_WAITALL)
            waits.append(time.monotonic_ns() - stamp(data))
    application = stages(frames)["rx", "application"]
    assert application.count + application.missed == stages(frames)["rx", "socket"].count
    assert application.count >= 0.99 * count  # hardly a segment carries two writes
    same_as(application, waits)


def same_as(total: Total, waits: list[int]) -> None:
    """The stage's mean and p99 are those of the waits, and it has nearly all packets."""
    assert total.coverage >= 0.95
    assert total.mean_ns == pytest.approx(statistics.mean(waits), rel=0.05, abs=0.5 * MS)
    p99 = statistics.quantiles(waits, n=100)[-1]
    # A bucket is 6.25 % wide, and its upper edge is what is shown.
    assert total.percentile_ns(0.99) == pytest.approx(p99, rel=0.0625 + 0.05, abs=0.5 * MS)


def test_many_writes_that_wait_to_be_sent(lab: Lab, veth: Link) -> None:
    """The peer reads nothing until a thousand writes are waiting."""
    count, interval, size = 1501, 1_000_000, 1000
    veth.a.ns.sysctl("ipv4.tcp_wmem", "4096 8000000 16000000")
    veth.b.ns.sysctl("ipv4.tcp_rmem", "4096 8192 8192")
    written: list[int] = []
    with watching(lab, veth.a) as frames, transfer(veth.a, veth.b, receive_buffer=8192) as pair:
        pair.sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 24)
        with segments(veth.a, pair.local[1]) as sent:
            start = time.monotonic_ns()
            for index in range(count):
                pace(start, index, interval)
                written.append(time.monotonic_ns())
                pair.sender.sendall(b"x" * size)
            read_exactly(pair.receiver, count * size)
    # Without what was sent again.
    ends = accumulate((last for *_, last in sent), max, initial=0)
    new = [(at, first) for (at, first, last), end in zip(sent, ends, strict=False) if last > end]
    waits = [at - written[first // size] for at, first in new]
    application = stages(frames)["tx", "application"]
    assert application.count + application.missed == pytest.approx(len(waits), abs=3)
    same_as(application, waits)


# --- not ESTABLISHED, and not TCP alone ------------------------------------------------------------------------------


@beside_others
def test_half_closed_over_the_loopback(lab: Lab) -> None:
    ns = lab.namespace()
    at = Endpoint(ns, "lo", "", "127.0.0.1", "::1")
    count = 211
    with watching(lab, at) as frames, transfer(at, at) as pair:
        pair.receiver.shutdown(socket.SHUT_WR)
        for _ in range(count):
            pair.sender.sendall(b"x" * 300)
            time.sleep(0.001)
            assert len(pair.receiver.recv(1000)) == 300
    totals = stages(frames)
    for name in ("socket", "application"):
        assert (totals["rx", name].count, totals["rx", name].missed) == (count, 0), name


def test_data_that_comes_with_the_fin(staged: Station) -> None:
    connections = 37
    with staged.watch.observing() as frames:
        for _ in range(connections):
            with transfer(staged.link.b, staged.link.a) as pair:
                pair.sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
                pair.sender.send(b"x" * 300)
                pair.sender.close()
                time.sleep(0.01)
                assert pair.receiver.recv(1000)
                assert pair.receiver.recv(1000) == b""
    totals = stages(frames)
    for name in ("socket", "application"):
        assert (totals["rx", name].count, totals["rx", name].missed) == (connections, 0), name
    assert 10 * MS < totals["rx", "application"].mean_ns < 15 * MS


def by_splice(receiver: socket.socket) -> None:
    inward, outward = os.pipe()
    try:
        assert os.splice(receiver.fileno(), outward, 1000) == 300
    finally:
        os.close(inward)
        os.close(outward)


def by_peeking(receiver: socket.socket) -> None:
    assert len(receiver.recv(1000, socket.MSG_PEEK)) == 300
    time.sleep(0.005)
    assert len(receiver.recv(1000)) == 300


def by_discarding(receiver: socket.socket) -> None:
    receiver.recv_into(bytearray(300), 300, socket.MSG_TRUNC)


def by_bytes(receiver: socket.socket) -> None:
    for _ in range(300):
        assert len(receiver.recv(1)) == 1


@beside_others
@pytest.mark.parametrize("read", [by_splice, by_peeking, by_discarding, by_bytes])
def test_every_call_that_reads(staged: Station, read: Callable[[socket.socket], None]) -> None:
    count = 53
    with staged.watch.observing() as frames, transfer(staged.link.b, staged.link.a) as pair:
        for _ in range(count):
            pair.sender.sendall(b"x" * 300)
            time.sleep(0.005)
            read(pair.receiver)
    application = stages(frames)["rx", "application"]
    assert (application.count, application.missed) == (count, 0)
    assert application.mean_ns > (10 if read is by_peeking else 5) * MS

"""Stages against delays that the tests themselves make, and against traffic that is counted elsewhere."""

import math
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise, product
from random import Random
from typing import Any

import pytest
from devices import open_tap
from driven import Driven
from lab import Direction, Lab, Link, Router
from lab.bpf import held, remaining
from lab.namespace import Endpoint
from lab.program import Frame
from lab.traffic import Transfer, answering, ask, asking, iperf3, ping, transfer
from stagelab import BOTH, MS, RECEIVE, SEND, Station, Total, stages, watching

SO_TXTIME, UDP_SEGMENT = 61, 103
PORT = 5301
FILTER = f"tcp port {PORT}"  # one for several tests, which is compiled once

pytestmark = pytest.mark.pair
# But not those that count a few packets and time nothing: load changes nothing for these.
beside_others = pytest.mark.pair(False)


def small(totals: dict[tuple[str, str], Total], *but: tuple[str, str]) -> None:
    """No stage but these takes a millisecond in the mean."""
    for key, total in totals.items():
        if key not in but and key[1] not in ("whole", "done") and total.count:
            assert total.mean_ns < 1 * MS, f"{key}: {total.mean_ns / 1e6} ms"


def all_seen(
    totals: dict[tuple[str, str], Total], keys: Iterable[tuple[str, str]], *, least: int, share: float = 0.95
) -> None:
    """Each of these stages has so many packets at the least, and that share of all that reached its end."""
    for key in keys:
        assert totals[key].count >= least, f"{key}: {totals[key].count}"
        assert totals[key].coverage >= share, f"{key}: {totals[key].coverage}"


def add_up(totals: dict[tuple[str, str], Total]) -> None:
    """The stages' times are the whole way's, of the same packets: as many went through each stage as through it."""
    for direction, names in (("rx", RECEIVE), ("tx", SEND)):
        whole = totals[direction, "whole"]
        assert whole.count > 200  # enough for a mean; how many depends on how large GRO makes them
        parts = sum(totals[direction, name].path_ns for name in names)
        assert parts / whole.count == pytest.approx(whole.mean_ns, rel=0.05)
        for name in names[1:]:
            assert totals[direction, name].path_packets == pytest.approx(whole.count, rel=0.05)


def few(totals: dict[tuple[str, str], Total], keys: Iterable[tuple[str, str]], most: int = 99) -> None:
    """Hardly a packet comes there: what opens and closes connections, and says when to begin."""
    for key in keys:
        assert totals[key].count + totals[key].missed <= most, f"{key}: {totals[key]}"


@beside_others
@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("kind", ["bulk", "tcp", "udp"])
def test_every_boundary_sees_every_packet(staged: Station, kind: str, ipv6: bool) -> None:
    with staged.watch.observing() as frames:
        if kind == "bulk":
            iperf3(
                staged.link.a,
                staged.link.b,
                seconds=2,
                bits_per_s="50M",
                length=1200,
                reverse=True,
                ipv6=ipv6,
            )
        else:
            with answering(staged.link.b) as server:
                ask(staged.link.a, server, kind=kind, flows=4, seconds=2, ipv6=ipv6)  # type: ignore[arg-type]
    totals = stages(frames)
    nobody = []
    if kind == "bulk":
        nobody = [("tx", "application")]  # it comes in, and nobody writes the ACKs that go out
    elif kind == "udp":
        # These boundaries of UDP are functions, which a kernel need not let us watch.
        functions = {"udp_queue_rcv_skb": ("rx", "transport"), "udp_sendmsg": ("tx", "application")}
        hooks = {hook["hook"] for hook in frames[-1]["probes"]["stages"]["hooks"]}
        nobody = [key for function, key in functions.items() if function not in hooks]
    all_seen(totals, [key for key in BOTH if key not in nobody], least=1001)
    few(totals, nobody)
    if kind != "udp":
        add_up(totals)


@beside_others
@pytest.mark.parametrize("via", ["tp_btf", "raw_tracepoint"])
def test_each_way_of_watching_counts_the_same(lab: Lab, veth: Link, via: str) -> None:
    transactions = 3001
    with watching(lab, veth.a, via) as frames, answering(veth.b) as server:
        assert ask(veth.a, server, count=transactions).transactions == transactions
    hooks = {hook["via"] for hook in frames[-1]["probes"]["stages"]["hooks"]}
    assert hooks == {via, "netfilter"}
    totals = stages(frames)
    for key in BOTH:
        # One segment a question and one an answer; the hand-shake and a few ACKs besides.
        assert transactions <= totals[key].count <= transactions + 10, key
        assert totals[key].missed <= 1, key


# Hook -> the stage that is not there then, and the one that takes its time.
WITHOUT = {
    "sk_data_ready": ("rx", "socket", "application"),
    "netif_receive_skb": ("rx", "stack", "ip"),
    "ip_local_deliver": ("rx", "local", "transport"),
    "net_dev_queue": ("tx", "ip", "qdisc"),
    "driver": ("rx", "stack", ""),  # the way begins later
    "tcp_sendmsg_locked": ("tx", "application", ""),
}


@beside_others
@pytest.mark.parametrize("hook", WITHOUT)
def test_a_hook_that_is_not_to_be_had(lab: Lab, veth: Link, hook: str) -> None:
    """Its stage is gone, and a neighbour has its time and says so; the rest is as ever."""
    direction, gone, heir = WITHOUT[hook]
    transactions = 2001
    with watching(lab, veth.a, without=hook) as frames, answering(veth.b) as server:
        assert ask(veth.a, server, count=transactions).transactions == transactions
        assert ask(veth.a, server, kind="udp", count=100).transactions == 100
    totals = stages(frames)
    rows = set(BOTH)
    assert {key for key in totals if key[1] not in ("whole", "done", "forward")} == rows - {(direction, gone)}
    merged = {
        (d, s["stage"]): s["merged"] for d in ("rx", "tx") for s in frames[-1]["stages"][d] if s["merged"]
    }
    # UDP's boundaries of its own are functions, which this kernel need not let us watch.
    assert merged == ({(direction, heir): [gone]} if heir else {})
    for key in rows - {(direction, gone)}:
        assert transactions <= totals[key].count <= transactions + 120, key
        assert totals[key].coverage >= 0.99, key
    for way, names in (("rx", RECEIVE), ("tx", SEND)):
        whole = totals[way, "whole"]
        assert whole.count >= transactions
        parts = sum(totals[way, name].path_ns for name in names if (way, name) in totals)
        assert parts == pytest.approx(whole.sum_ns, rel=0.05)


def read_late(pair: Transfer, count: int) -> float:
    """So many segments, each read 20 ms after it came; the mean wait in ns by the reader's clock."""
    poller = select.poll()
    poller.register(pair.receiver, select.POLLIN)
    waited = 0
    for _ in range(count):
        pair.sender.sendall(b"x" * 700)
        sent = time.monotonic_ns()
        poller.poll(1000)
        time.sleep(0.02)
        assert pair.receiver.recv(65536)
        waited += time.monotonic_ns() - sent
    return waited / count


def test_what_waits_for_its_reader_is_timed_from_the_boundary_that_there_is(lab: Lab, veth: Link) -> None:
    with watching(lab, veth.a, without="sk_data_ready") as frames, transfer(veth.b, veth.a) as pair:
        mean = read_late(pair, 20)
    application = stages(frames)["rx", "application"]
    assert application.count == 20
    assert application.mean_ns == pytest.approx(mean, rel=0.05, abs=1 * MS)


def test_a_reader_that_sleeps_is_the_application_stage_alone(staged: Station) -> None:
    with staged.watch.observing() as frames, transfer(staged.link.b, staged.link.a) as pair:
        mean = read_late(pair, 50)
    totals = stages(frames)
    application = totals["rx", "application"]
    assert application.count == 50
    # On a busy machine the reader sleeps a little longer than it wants to.
    assert mean >= 20 * MS
    assert application.mean_ns == pytest.approx(mean, rel=0.05, abs=1 * MS)
    assert totals["rx", "whole"].mean_ns == pytest.approx(mean, rel=0.05, abs=1 * MS)
    small(totals, ("rx", "application"))


def test_a_reader_that_waits_for_data_is_no_delay(staged: Station) -> None:
    with staged.watch.observing() as frames, transfer(staged.link.b, staged.link.a) as pair:
        got: list[int] = []

        def read() -> None:
            while chunk := pair.receiver.recv(65536):
                got.append(len(chunk))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        for _ in range(40):
            time.sleep(0.03)
            pair.sender.sendall(b"x" * 700)
        pair.sender.shutdown(1)
        reader.join(5)
    totals = stages(frames)
    assert sum(got) == 40 * 700
    assert totals["rx", "application"].count == 40
    small(totals)


def test_a_datagram_waits_for_its_own_reader(staged: Station) -> None:
    """Datagrams are read late, in bursts and one by one: each has waited as long as it was queued."""
    with staged.watch.observing() as frames:
        receiver = staged.link.a.ns.socket(socket.SOCK_DGRAM)
        sender = staged.link.b.ns.socket(socket.SOCK_DGRAM)
        with receiver, sender:
            receiver.bind((staged.link.a.v4, 0))
            receiver.settimeout(2)
            sender.connect(receiver.getsockname())
            waited = 0
            for _ in range(10):
                for _ in range(20):
                    sender.send(b"x" * 100)
                sent = time.monotonic_ns()
                time.sleep(0.03)
                for _ in range(20):
                    receiver.recv(2000)
                    waited += time.monotonic_ns() - sent
    totals = stages(frames)
    application = totals["rx", "application"]
    assert application.count == 200
    assert application.mean_ns == pytest.approx(waited / 200, rel=0.05, abs=1 * MS)
    small(totals, ("rx", "application"))


def test_what_waits_behind_a_gap_is_not_the_readers_fault(lab: Lab) -> None:
    """Segments that overtake others wait in TCP for the gap to close, with a reader that is always there."""
    link = lab.wire(Direction(delay_ms=2.0, reorder=0.05, reorder_extra_ms=8.0), Direction(delay_ms=2.0))
    with watching(lab, link.b) as frames:
        iperf3(link.a, link.b, seconds=2, bits_per_s="20M", length=1200)
    totals = stages(frames)
    socket_stage, application = totals["rx", "socket"], totals["rx", "application"]
    assert socket_stage.percentile_ns(0.95) > 2 * MS
    assert socket_stage.percentile_ns(0.5) < 1 * MS
    # Now and then the reader itself has to wait for a CPU.
    assert application.percentile_ns(0.95) < 2 * MS


@contextmanager
def token_bucket(end: Endpoint, frame: int, ms: int, burst: int, limit: int) -> Iterator[None]:
    """A queue in which a frame of so many bytes takes so many ms of tokens."""
    rate = f"{frame * 8 * 1000 // ms}bit"
    words = ("tbf", "rate", rate, "burst", str(burst), "limit", str(limit))
    end.ns.run("tc", "qdisc", "add", "dev", end.name, "root", *words)
    try:
        yield
    finally:
        end.ns.run("tc", "qdisc", "del", "dev", end.name, "root")


@contextmanager
def switched(end: Endpoint, *features: str) -> Iterator[None]:
    """These offloads, and after the block what a veth is made with."""
    end.ns.run("ethtool", "-K", end.name, *features)
    try:
        yield
    finally:
        end.ns.run("ethtool", "-K", end.name, "gro", "off", "tso", "on", "tx-udp-segmentation", "on")


@contextmanager
def timed_sender(end: Endpoint) -> Iterator[socket.socket]:
    """A UDP socket whose datagrams may say before which time of CLOCK_MONOTONIC they are not to leave."""
    with end.ns.socket(socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, SO_TXTIME, struct.pack("iI", time.CLOCK_MONOTONIC, 0))
        yield sender


def test_a_token_bucket_is_the_qdisc_stage_alone(staged: Station) -> None:
    # A frame asks for the next one only when it has arrived.
    with (
        token_bucket(staged.link.a, 1514, 10, 1600, 90_000),
        staged.watch.observing() as frames,
        answering(staged.link.b, request=1472, response=64) as server,
    ):
        ask(staged.link.a, server, kind="udp", count=60)
    totals = stages(frames)
    qdisc = totals["tx", "qdisc"]
    assert qdisc.count >= 57  # 95 % of them, the coverage that is promised
    assert qdisc.percentile_ns(0.5) == pytest.approx(10 * MS, rel=0.07, abs=1 * MS)
    assert totals["tx", "whole"].percentile_ns(0.5) == pytest.approx(10 * MS, rel=0.07, abs=1 * MS)
    small(totals, ("tx", "qdisc"))


# What a timer takes out of a queue may interrupt a program that is being traced, and then no tracepoint is told of it:
# of thirty such packets one or two, seldom. So counts of them are right to a tenth, and what is said of each is exact.
# ms from the sending of a packet to the time before which it is not to leave -> of its wait so much is pacing.
PACED = {"without a time": (None, 0), "ahead": (8, 8), "past": (-8, 0), "beyond fq's horizon": (20_000, 0)}


@pytest.mark.parametrize("when", PACED)
def test_of_a_wait_what_is_before_the_packets_own_time_is_pacing(staged: Station, when: str) -> None:
    """By SO_TXTIME, which this queue does not know: each packet waits longer than that, and only so much is pacing."""
    count, frame_ms = 31, 10
    ahead, pacing = PACED[when]
    with (
        token_bucket(staged.link.a, 1514, frame_ms, 1600, 90_000),
        staged.watch.observing() as frames,
        timed_sender(staged.link.a) as sender,
    ):
        for _ in range(count):
            at = [] if ahead is None else [struct.pack("Q", time.monotonic_ns() + ahead * MS)]
            control = [(socket.SOL_SOCKET, SO_TXTIME, data) for data in at]
            sender.sendmsg([b"x" * 1472], control, 0, (staged.link.b.v4, 9))
        time.sleep(count * frame_ms / 1000)
    paced = sum(s["paced_ns"] for f in frames for s in f["stages"]["tx"] if s["stage"] == "qdisc")
    queue = stages(frames)["tx", "qdisc"]
    assert 0.9 * count <= queue.count <= count + 3
    assert queue.mean_ns > 100 * MS
    # The first two wait for hardly anything; what lies between the sender's clock and the queue is no pacing.
    assert (queue.count - 5) * pacing * MS * 0.9 <= paced <= count * pacing * MS


def test_segments_that_the_stack_makes_have_the_pacing_of_the_whole(staged: Station) -> None:
    """The time is the large packet's; it is cut at the driver, and each segment has waited as long."""
    count, segments, ahead, gap_ms = 11, 7, 8, 50
    size = 1000
    frame = segments * size + 42
    with (
        switched(staged.link.a, "tx-udp-segmentation", "off"),
        token_bucket(staged.link.a, frame, gap_ms, segments * (size + 42), 900_000),
        staged.watch.observing() as frames,
        timed_sender(staged.link.a) as sender,
    ):
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        for _ in range(count):
            at = struct.pack("Q", time.monotonic_ns() + ahead * MS)
            sender.sendmsg(
                [b"x" * segments * size], [(socket.SOL_SOCKET, SO_TXTIME, at)], 0, (staged.link.b.v4, 9)
            )
        time.sleep(count * gap_ms / 1000)
    paced = sum(s["paced_ns"] for f in frames for s in f["stages"]["tx"] if s["stage"] == "qdisc")
    queue = stages(frames)["tx", "qdisc"]
    assert 0.8 * count * segments <= queue.count <= count * segments + 3
    # The first one goes at once.
    assert (queue.count - 3 - segments) * ahead * MS * 0.9 <= paced <= count * segments * ahead * MS


def converse(client: Endpoint, server: Endpoint, closes_first: str, ipv6: bool) -> None:
    """A connection, a question, an answer, and its end in one of the orders that there are."""
    at = server.v6 if ipv6 else server.v4
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    with server.ns.call(lambda: socket.create_server((at, 0), family=family)) as listener:
        address = listener.getsockname()[:2]
        with client.ns.call(lambda: socket.create_connection(address)) as near, listener.accept()[0] as far:
            near.sendall(b"question")
            if closes_first == "half":
                near.shutdown(socket.SHUT_WR)
                while far.recv(100):
                    pass
            else:
                far.recv(100)
            far.sendall(b"answer")
            near.recv(100)
            first, second = (near, far) if closes_first == "client" else (far, near)
            first.close()
            while second.recv(100):
                pass
            second.close()


@beside_others
def test_nothing_is_dropped_of_connections_that_end_well(lab: Lab, veth: Link) -> None:
    """What TCP frees as if it dropped it: FINs that nobody reads, ACKs of a connection that has ended."""
    with watching(lab, veth.a) as client, watching(lab, veth.b) as server:
        for closes_first, ipv6 in product(("client", "server", "half"), (False, True)):
            for _ in range(31):
                converse(veth.a, veth.b, closes_first, ipv6)
    for frames in (client, server):
        totals = stages(frames)
        assert totals["rx", "local"].count > 6 * 31 * 3
        assert {key: total.dropped for key, total in totals.items() if total.dropped} == {}


OTHERS = """
import fcntl, os, socket, struct, subprocess, sys
os.nice(19)  # others are at work here
cpu = int(sys.argv[1])
os.sched_setaffinity(0, {cpu})
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"tun%d" % cpu, 0x1001))  # TUNSETIFF: IFF_TUN, IFF_NO_PI
for words in ("addr add 10.99.%d.1/24 dev tun%d" % (cpu, cpu), "link set tun%d up" % cpu):
    subprocess.run(["ip", *words.split()], check=True)
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))  # clones of what is sent; ETH_P_ALL
sniffer.bind(("tun%d" % cpu, 3))
sniffer.setblocking(False)
while True:
    for size in (10, 3000) * 10:  # sent, and freed when it is read; one that is cut up is freed before
        sender.sendto(bytes(size), ("10.99.%d.2" % cpu, 9))
        for _ in range(1 + size // 1500):
            os.read(tun, 2000)
    try:
        while sniffer.recv(2000):
            pass
    except BlockingIOError:
        pass
    pairs = [socket.socketpair() for _ in range(40)]
    for near, _ in pairs:
        near.sendall(b"1")
        near.sendall(b"2")
    for near, far in pairs:
        far.recv(1)  # freed by consume_skb; the other by kfree_skb, as SOCKET_CLOSE
        far.close()
        near.close()
"""


@contextmanager
def busy_elsewhere(lab: Lab) -> Iterator[None]:
    """A packet's skb may end without a trace, and is another's then: of UNIX sockets or a tun, on the same CPU."""
    ns = lab.namespace()
    processes = [
        lab.spawn(ns, sys.executable, "-c", OTHERS, str(cpu)) for cpu in sorted(os.sched_getaffinity(0))
    ]
    yield
    assert all(process.running() for process in processes)
    for process in processes:
        process.stop(signal.SIGKILL)


@beside_others
def test_what_becomes_of_others_is_not_said_of_packets_of_this_interface(lab: Lab, veth: Link) -> None:
    with watching(lab, veth.a) as client, watching(lab, veth.b) as server, busy_elsewhere(lab):
        for closes_first in ("client", "server", "half") * 100:
            converse(veth.a, veth.b, closes_first, False)
    for frames in (client, server):
        totals = stages(frames)
        assert totals["rx", "local"].count > 300 * 3
        assert {key: total.dropped for key, total in totals.items() if total.dropped} == {}
        # A veth has no completion: what it sends is received, and ends wherever that may be.
        assert totals["tx", "driver"].count > 300 * 3
        assert totals["tx", "done"].count == 0


@beside_others
def test_a_driver_is_done_with_a_packet_when_that_is_out(lab: Lab) -> None:
    """Read off a tap 30 ms after it was sent, while skbs that have ended go round."""
    end, fd = open_tap(lab)
    end.ns.run("ip", "neigh", "replace", "10.88.1.9", "lladdr", "02:00:00:00:00:09", "dev", end.name)
    sender = end.ns.socket(socket.SOCK_DGRAM)
    held_ns = []
    with os.fdopen(fd, "rb", 0) as reader, watching(lab, end) as frames, sender, busy_elsewhere(lab):
        for _ in range(50):
            sent = time.monotonic_ns()
            sender.sendto(b"x", ("10.88.1.9", 9))
            time.sleep(0.03)
            assert reader.read(2000)
            held_ns.append(time.monotonic_ns() - sent)
    done = stages(frames)["tx", "done"]
    assert (done.count, done.dropped) == (50, 0)
    # Between the two clock readings are also the way to the driver and the reader's own wake-up.
    assert sum(held_ns) - 100 * MS <= done.sum_ns <= sum(held_ns)


@pytest.mark.alone
def test_coverage_at_50_000_packets_a_second(staged: Station) -> None:
    for _ in range(4):
        with staged.watch.observing() as frames:
            result = iperf3(
                staged.link.a, staged.link.b, seconds=1, udp=True, length=64, bits_per_s="30M", reverse=True
            )
        assert result.packets
        if result.packets / result.seconds > 48_000:
            break  # else the machine was busy with something else
    assert result.packets / result.seconds > 48_000
    totals = stages(frames)
    for stage in ("stack", "ip", "local", "socket", "application"):
        assert totals["rx", stage].coverage >= 0.95, stage
        assert totals["rx", stage].count >= 0.95 * (result.packets - (result.lost_packets or 0)), stage


@pytest.mark.alone
@pytest.mark.parametrize("offload", [False, True], ids=["gro", "tso"])
@pytest.mark.parametrize("reverse", [False, True], ids=["send", "receive"])
def test_coverage_at_full_speed(staged: Station, reverse: bool, offload: bool) -> None:
    """With TSO large packets go through whole; without it the stack cuts them at the driver, and GRO mends them."""
    features = ("gro", "on", "tso", "on" if offload else "off")
    with (
        switched(staged.link.a, *features),
        switched(staged.link.b, *features),
        staged.watch.observing() as frames,
    ):
        result = iperf3(staged.link.a, staged.link.b, seconds=1, reverse=reverse)
    assert result.bits_per_s > 1e9
    # Data goes one way, and the other ACKs alone, which nobody writes or reads.
    nobody = [("tx", "application")] if reverse else [("rx", "socket"), ("rx", "application")]
    totals = stages(frames)
    all_seen(totals, [key for key in BOTH if key not in nobody], least=1001, share=0.8)
    few(totals, nobody)


@beside_others
def test_steering_to_another_cpu_is_time_of_the_stack_stage(staged: Station) -> None:
    """RPS moves packets to another CPU between driver and stack; they are found again."""
    end = staged.link.a
    path = f"/sys/class/net/{end.name}/queues/rx-0/rps_cpus"
    end.ns.run("sh", "-c", f"echo 3 > {path}")
    with staged.watch.observing() as frames, answering(staged.link.b) as server:
        ask(end, server, flows=16, seconds=2)
    end.ns.run("sh", "-c", f"echo 0 > {path}")
    totals = stages(frames)
    for stage in RECEIVE:
        assert totals["rx", stage].count > 1000
        assert totals["rx", stage].coverage >= 0.95, stage


@beside_others
def test_forwarded_packets_have_their_own_last_stage(lab: Lab, router: Router) -> None:
    with watching(lab, router.client_side) as inner, watching(lab, router.server_side) as outer:
        answers = ping(router.client, router.server, 100)
        assert ping(router.client, router.server, 100, ipv6=True).received == 100
    assert answers.received == 100
    inside, outside = stages(inner), stages(outer)
    for totals in (inside, outside):
        assert totals["rx", "forward"].count >= 200
        assert totals["rx", "forward"].coverage >= 0.95
        assert totals["rx", "local"].count < 20
        # On its way out a forwarded packet comes from nowhere in this host, and is followed all the same.
        assert totals["tx", "ip"].count >= 200
        assert totals["tx", "ip"].coverage >= 0.95


@beside_others
def test_loopback_is_both_ways_at_once(lab: Lab) -> None:
    at = Endpoint(lab.namespace(), "lo", "", "127.0.0.1", "::1")
    with watching(lab, at) as frames, answering(at) as server:
        ask(at, server, flows=4, seconds=1.5)
    totals = stages(frames)
    for key in BOTH:
        assert totals[key].count > 1000, key
        assert totals[key].coverage >= 0.95, key


@beside_others
def test_only_the_watched_interface_counts(staged: Station) -> None:
    """Another pair in other namespaces, whose interface has the same index, is none of ours."""
    other = staged.lab.veth()
    index = [
        end.ns.run("cat", f"/sys/class/net/{end.name}/ifindex").stdout for end in (staged.link.a, other.a)
    ]
    with staged.watch.observing() as frames, answering(other.b) as server:
        ask(other.a, server, flows=4, seconds=1)
        ping(staged.link.a, staged.link.b, 5)
    totals = stages(frames)
    # Five answers, and the other side's neighbour or multicast chatter.
    assert 5 <= totals["rx", "stack"].count < 50, index
    assert totals["rx", "application"].count < 50
    assert totals["tx", "driver"].count < 50


@beside_others
def test_a_packet_tap_does_not_hide_packets(staged: Station) -> None:
    """A sniffer holds references to skbs, and the stack goes on with the same ones."""
    tap = staged.lab.spawn(staged.link.a.ns, "tcpdump", "-i", staged.link.a.name, "-w", "/dev/null", "-U")
    time.sleep(1)
    with staged.watch.observing() as frames, answering(staged.link.b) as server:
        ask(staged.link.a, server, flows=4, seconds=1)
    tap.stop()
    totals = stages(frames)
    for key in BOTH:
        assert totals[key].coverage >= 0.95, key


def packets_of(frames: list[Frame], flow: int, direction: str) -> int:
    """What the flow table counted."""
    return sum(f[f"{direction}_packets"] for frame in frames for f in frame["flows"] if f["id"] == flow)


def test_the_flow_in_focus_has_stages_of_its_own(lab: Lab, veth: Link) -> None:
    """Two connections, one reader of which sleeps: each in focus in its turn."""
    with Driven(veth.a, probes="flows,stages") as nettop:
        for ipv6 in (False, True):
            with transfer(veth.b, veth.a, ipv6=ipv6) as slow, transfer(veth.b, veth.a, ipv6=ipv6) as prompt:
                for pair in (slow, prompt):
                    in_focus(nettop, slow, prompt, pair)
        nettop.tell("focus")
        nettop.wait(lambda: nettop.frames[-1]["stages"]["focus"] is None)


def in_focus(nettop: Driven, slow: Transfer, prompt: Transfer, pair: Transfer) -> None:
    """One of two connections is in focus: its counts and delays are its own, and both have theirs together."""
    flow = nettop.focus(pair.local[1])
    nettop.more_frames(1)
    waited = {slow: 0, prompt: 0}
    with nettop.observing() as frames:
        for _ in range(20):
            for each in (slow, prompt):
                each.sender.sendall(b"x" * 700)
            sent = time.monotonic_ns()
            for each, pause in ((prompt, 0.0), (slow, 0.02)):
                time.sleep(pause)
                assert each.receiver.recv(65536)
                waited[each] += time.monotonic_ns() - sent
    mine, both = stages(frames, flow), stages(frames)
    assert mine["rx", "application"].count == 20
    assert both["rx", "application"].count == 40
    assert mine["rx", "application"].mean_ns == pytest.approx(waited[pair] / 20, rel=0.05, abs=1 * MS)
    assert mine["rx", "application"].mean_ns >= (20 * MS if pair is slow else 0)
    for direction, names in (("rx", RECEIVE[:4]), ("tx", SEND[1:])):
        for name in names:
            assert mine[direction, name].count == packets_of(frames, flow, direction), name
            assert mine[direction, name].missed == 0
    # The sums over whole ways add up for the one flow as well.
    parts = sum(mine["rx", name].path_ns for name in RECEIVE)
    assert parts == pytest.approx(mine["rx", "whole"].sum_ns, rel=0.05)
    assert mine["rx", "whole"].count == 20


@beside_others
def test_two_flows_of_one_datagram_socket_are_told_apart(lab: Lab, veth: Link) -> None:
    with (
        veth.a.ns.socket(socket.SOCK_DGRAM) as receiver,
        veth.b.ns.socket(socket.SOCK_DGRAM) as one,
        veth.b.ns.socket(socket.SOCK_DGRAM) as other,
        Driven(veth.a, probes="flows,stages") as nettop,
    ):
        receiver.bind((veth.a.v4, 0))
        receiver.settimeout(2)
        for sender in (one, other):
            sender.connect(receiver.getsockname())
            sender.send(b"first")
            receiver.recv(10)
        flow = nettop.focus(one.getsockname()[1])
        nettop.more_frames(1)
        with nettop.observing() as frames:
            for _ in range(15):
                for sender, size in ((one, 300), (other, 100), (other, 100)):
                    sender.send(b"x" * size)
                time.sleep(0.01)
                for _ in range(3):
                    data, _ = receiver.recvfrom(400)
                for _ in range(len(data) // 100):
                    receiver.sendto(b"answer", one.getsockname())
    mine, both = stages(frames, flow), stages(frames)
    for name in ("stack", "ip", "local", "socket", "application"):
        assert (mine["rx", name].count, both["rx", name].count) == (15, 45), name
    assert mine["rx", "application"].mean_ns >= 10 * MS
    for name in SEND[1:]:
        assert mine["tx", name].count == packets_of(frames, flow, "tx") == 15, name


@beside_others
def test_a_filter_leaves_everything_else_out(lab: Lab, veth: Link) -> None:
    wanted, others = 1501, 2003
    with (
        answering(veth.b, port=PORT) as server,
        answering(veth.b) as other,
        Driven(veth.a, FILTER) as nettop,
    ):
        for ipv6 in (False, True):
            with nettop.observing() as frames:
                assert ask(veth.a, other, count=others, ipv6=ipv6).transactions == others
                assert ask(veth.a, server, count=wanted, ipv6=ipv6).transactions == wanted
                assert ask(veth.a, other, kind="udp", count=100, ipv6=ipv6).transactions == 100
            totals = stages(frames)
            for key in BOTH:
                assert wanted <= totals[key].count <= wanted + 10, key
                assert totals[key].missed == 0, key
            parts = sum(totals["rx", stage].path_ns for stage in RECEIVE)
            assert parts == pytest.approx(totals["rx", "whole"].sum_ns, rel=0.05)
            assert totals["rx", "whole"].count >= wanted


@beside_others
def test_forwarded_packets_are_filtered_as_well(lab: Lab, router: Router) -> None:
    with Driven(router.client_side, "icmp6") as nettop, nettop.observing() as frames:
        assert ping(router.client, router.server, 50).received == 50
        assert ping(router.client, router.server, 40, ipv6=True).received == 40
    totals = stages(frames)
    for key in (("rx", "forward"), ("tx", "ip"), ("tx", "driver")):
        assert 40 <= totals[key].count < 50, key


@pytest.mark.alone
def test_a_filter_is_changed_under_traffic(lab: Lab, veth: Link) -> None:
    """Programs of two filters are there at once, and each packet is counted by one of them or by none."""
    with (
        answering(veth.b, port=PORT) as server,
        answering(veth.b) as other,
        Driven(veth.a, probes="stages,throughput") as nettop,
    ):
        asked = [asking(veth.a, s, flows=4, interval_s=0.002, seconds=60) for s in (server, other)]
        nettop.more_frames(4)
        objects = held(nettop.process.pid)
        first = len(nettop.frames)
        for text in (FILTER, f"not port {PORT} and tcp[13] != 0", ""):
            nettop.set_filter(text)
            nettop.more_frames(1)
            settled = nettop.more_frames(4)
            totals = stages(settled)
            for direction, stage in (("rx", "ip"), ("tx", "qdisc")):
                crossed = sum(f["throughput"][direction]["packets"] for f in settled)
                assert totals[direction, stage].count == pytest.approx(crossed, rel=0.05, abs=50), (
                    text,
                    stage,
                )
            share = 2 if not text else 1
            per_second = totals["rx", "ip"].count / sum(f["interval_ns"] for f in settled) * 1e9
            assert per_second > 1000 * share, text
            all_seen(totals, BOTH, least=1001, share=0.98)
        all_seen(stages(nettop.frames[first:]), BOTH, least=4001)
        new = held(nettop.process.pid)
        assert len(new.links) == len(objects.links)
        assert new.maps == objects.maps
        # Gone but for what the next sample of run times closes.
        nettop.wait(lambda: len(held(nettop.process.pid).programs) == len(objects.programs))
        assert not remaining(objects - new).links
        for process in asked:
            process.stop()
    assert not remaining(new | objects)


def least_distance(ours: int, theirs: int) -> float:
    """What the largest difference of two samples' distributions stays below but for one time in a million (KS)."""
    return math.sqrt(math.log(2e6) / 2 * (ours + theirs) / (ours * theirs))


def distance(ours: Total, theirs: Total) -> float:
    edges = sorted({*ours.buckets, *theirs.buckets})
    shares = (
        (sum(n for upper, n in total.buckets.items() if upper <= edge) / total.count for edge in edges)
        for total in (ours, theirs)
    )
    return max(abs(a - b) for a, b in zip(*shares, strict=True))


@pytest.mark.alone
def test_a_sample_is_like_the_whole(lab: Lab, veth: Link) -> None:
    """Two at once on the same packets, one of which follows one in sixteen: the same picture."""
    random = Random(7)
    with (
        Driven(veth.a) as whole,
        Driven(veth.a) as part,
        transfer(veth.b, veth.a) as pair,
        answering(veth.b) as server,
    ):
        part.tell("sample 4")
        part.wait(lambda: part.frames[-1]["stages"]["sampled_one_in"] == 16)
        firsts = [len(each.more_frames(1)) and len(each.frames) for each in (whole, part)]
        asked = asking(veth.a, server, flows=4, interval_s=0.001, seconds=5)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            for _ in range(random.randrange(1, 12)):
                pair.sender.sendall(b"x" * random.randrange(1, 1000))
                if random.random() < 0.5:
                    time.sleep(random.random() * 0.001)
            time.sleep(random.random() * 0.008)
            assert pair.receiver.recv(1 << 20)
        asked.stop()
        for each in (whole, part):
            each.more_frames(3)
        all_, some = (stages(each.frames[first:]) for each, first in zip((whole, part), firsts, strict=True))
    assert {f["stages"]["sampled_one_in"] for f in part.frames[firsts[1] :]} == {16}
    for key in BOTH:
        count = all_[key].count
        assert count > 10_000 or key == ("tx", "application"), key
        # A coin for each packet: within five standard deviations.
        assert abs(some[key].count - count / 16) < 5 * math.sqrt(count * 15) / 16, key
        assert some[key].coverage >= 0.95
    # Long enough that what the two cost each other is nothing.
    ours, theirs = some["rx", "application"], all_["rx", "application"]
    assert theirs.percentile_ns(0.9) > 1 * MS
    assert distance(ours, theirs) < least_distance(ours.count, theirs.count)
    for direction, names in (("rx", RECEIVE), ("tx", SEND)):
        parts = sum(some[direction, name].path_ns for name in names)
        assert parts == pytest.approx(some[direction, "whole"].sum_ns, rel=0.05)


def ways(frames: list[Frame]) -> dict[int, list[dict[str, Any]]]:
    """The trace by packet, each packet's events by time."""
    found: dict[int, list[dict[str, Any]]] = {}
    for event in sorted(
        (e for f in frames for e in f["stages"].get("trace", ())), key=lambda e: e["time_ns"]
    ):
        found.setdefault(event["packet"], []).append(event)
    return found


def test_the_way_of_each_packet_of_the_flow_in_focus(lab: Lab, veth: Link) -> None:
    with (
        Driven(veth.a, probes="flows,stages", trace="focus") as nettop,
        transfer(veth.b, veth.a) as pair,
        transfer(veth.b, veth.a) as other,
    ):
        flow = nettop.focus(pair.local[1])
        nettop.more_frames(1)
        with nettop.observing() as frames:
            for _ in range(10):
                for each in (pair, other):
                    each.sender.sendall(b"x" * 100)
                time.sleep(0.01)
                for each in (pair, other):
                    assert each.receiver.recv(1000)
    assert sum(f["stages"]["trace_lost"] + f["stages"]["trace_left_out"] for f in frames) == 0
    found = list(ways(frames).values())
    assert {e["flow"] for way in found for e in way} == {flow}
    data = [way for way in found if way[0]["direction"] == "rx"]
    acks = [way for way in found if way[0]["direction"] == "tx"]
    assert [[e["stage"] for e in way] for way in data] == [["", *RECEIVE]] * 10
    for way in data:
        assert way[-1]["delay_ns"] >= 8 * MS
        assert way[0]["delay_ns"] is None
        # Each event's time is its stage's end, a little later for the program's own time.
        for earlier, later in pairwise(way):
            assert later["time_ns"] - earlier["time_ns"] == pytest.approx(later["delay_ns"], abs=0.5 * MS)
    assert len(acks) == packets_of(frames, flow, "tx")
    for way in acks:
        assert [e["stage"] for e in way][:4] == ["", "ip", "qdisc", "driver"]


@pytest.mark.alone
def test_a_trace_of_everything_keeps_to_its_budget(lab: Lab, veth: Link) -> None:
    transactions, per_second = 40_009, 2000
    with answering(veth.b, port=PORT) as server, Driven(veth.a, FILTER, trace="all") as nettop:
        before, began = len(nettop.frames), time.monotonic_ns()
        assert ask(veth.a, server, flows=4, count=transactions).transactions == transactions
        nettop.more_frames(3)
        # The budget's seconds have 2^30 ns; the first and the last of them are parts.
        budget = per_second * ((time.monotonic_ns() - began >> 30) + 2)
        frames = nettop.frames[before:]
    packets = stages(frames)["rx", "ip"].count + stages(frames)["tx", "ip"].count
    assert packets >= 2 * transactions
    assert packets > 1.5 * budget, "the traffic is no test of the budget"
    found = ways(frames)
    left_out = sum(f["stages"]["trace_left_out"] for f in frames)
    assert left_out > 0
    # The ring loses events, and whole packets with them: they come faster than it is read.
    assert 500 < len(found) <= packets - left_out <= budget
    assert sum(map(len, found.values())) < 10 * budget
    # Nearly all of those that are there are there from their first boundary to their last.
    whole = [
        way for way in found.values() if way[-1]["stage"] in ("application", "done", "driver", "transport")
    ]
    assert len(whole) > 0.9 * len(found)


@beside_others
def test_a_dropped_packet_ends_its_trace(lab: Lab, veth: Link) -> None:
    with (
        Driven(veth.a, "udp", "port", "9", trace="all") as nettop,
        nettop.observing() as frames,
        veth.b.ns.socket(socket.SOCK_DGRAM) as sender,
    ):
        for _ in range(7):
            sender.sendto(b"x", (veth.a.v4, 9))
    found = ways(frames)
    assert len(found) == 7
    for way in found.values():
        assert (way[-1]["stage"], way[-1]["dropped"], way[-1]["delay_ns"]) == ("transport", True, None)


@beside_others
def test_refused_datagrams_are_counted_where_they_end(staged: Station) -> None:
    """Datagrams to a port where nobody listens end after local delivery, and are not called missed."""
    with staged.watch.observing() as frames, staged.link.b.ns.socket(socket.SOCK_DGRAM) as sender:
        for _ in range(101):
            sender.sendto(b"x", (staged.link.a.v4, 9))
    totals = stages(frames)
    assert totals["rx", "local"].count >= 101
    assert totals["rx", "transport"].dropped >= 101
    assert sum(total.missed for key, total in totals.items()) <= 2

"""Stages against delays that the tests themselves make, and against traffic that is counted elsewhere."""

import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from lab import Direction, Lab, Link, Nettop, Router
from lab.namespace import Endpoint
from lab.program import Frame
from lab.traffic import answering, ask, iperf3, ping, transfer
from stagelab import MS, Total, stages

RECEIVE = ("stack", "ip", "local", "transport", "socket", "application")
SEND = ("application", "ip", "qdisc", "driver")


@contextmanager
def watching(lab: Lab, at: Endpoint, via: str = "") -> Iterator[list[Frame]]:
    """The frames of the block's traffic, and a second of silence after it."""
    frames: list[Frame] = []
    with Nettop(lab, at, "-p", "stages", "-d", "0.5", env={"NETTOP_VIA": via}) as nettop:
        before = len(nettop.wait_frames(1))
        yield frames
        nettop.more_frames(3)
        frames += nettop.frames[before:]


def small(totals: dict[tuple[str, str], Total], *but: tuple[str, str]) -> None:
    """No stage but these takes a millisecond in the mean."""
    for key, total in totals.items():
        if key not in but and key[1] not in ("whole", "done") and total.count:
            assert total.mean_ns < 1 * MS, f"{key}: {total.mean_ns / 1e6} ms"


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("kind", ["bulk", "tcp", "udp"])
def test_every_boundary_sees_every_packet(lab: Lab, veth: Link, kind: str, ipv6: bool) -> None:
    with watching(lab, veth.a) as frames:
        if kind == "bulk":
            iperf3(veth.a, veth.b, seconds=2, bits_per_s="50M", length=1200, reverse=True, ipv6=ipv6)
        else:
            with answering(veth.b) as server:
                ask(veth.a, server, kind=kind, flows=4, seconds=2, ipv6=ipv6)  # type: ignore[arg-type]
    totals = stages(frames)
    # UDP has no boundary of its own between IP and the socket here, nor before IP on its way out.
    without = {"transport", "application"} if kind == "udp" else set()
    for stage in RECEIVE:
        total = totals["rx", stage]
        assert stage in without or total.count > 1000, f"rx {stage}: {total.count}"
        assert total.count < 100 or total.coverage >= 0.95, f"rx {stage}: {total.coverage}"
    assert totals["rx", "application"].count > 1000
    for stage in SEND:
        total = totals["tx", stage]
        assert stage in without or kind == "bulk" or total.count > 1000, f"tx {stage}: {total.count}"
        assert total.count < 100 or total.coverage >= 0.95, f"tx {stage}: {total.coverage}"


@pytest.mark.parametrize("via", ["tp_btf", "raw_tracepoint"])
def test_each_way_of_watching_counts_the_same(lab: Lab, veth: Link, via: str) -> None:
    transactions = 3001
    with watching(lab, veth.a, via) as frames, answering(veth.b) as server:
        assert ask(veth.a, server, count=transactions).transactions == transactions
    hooks = {hook["via"] for hook in frames[-1]["probes"]["stages"]["hooks"]}
    assert hooks == {via, "netfilter"}
    totals = stages(frames)
    for key in (*(("rx", stage) for stage in RECEIVE), *(("tx", stage) for stage in SEND)):
        # One segment a question and one an answer; the hand-shake and a few ACKs besides.
        assert transactions <= totals[key].count <= transactions + 10, key
        assert totals[key].missed <= 1, key


def test_a_reader_that_sleeps_is_the_application_stage_alone(lab: Lab, veth: Link) -> None:
    with watching(lab, veth.a) as frames, transfer(veth.b, veth.a) as pair:
        poller = select.poll()
        poller.register(pair.receiver, select.POLLIN)
        waited = 0
        for _ in range(50):
            pair.sender.sendall(b"x" * 700)
            sent = time.monotonic_ns()
            poller.poll(1000)
            time.sleep(0.02)
            assert pair.receiver.recv(65536)
            waited += time.monotonic_ns() - sent
    totals = stages(frames)
    application = totals["rx", "application"]
    assert application.count == 50
    # On a busy machine the reader sleeps a little longer than it wants to.
    mean = waited / 50
    assert mean >= 20 * MS
    assert application.mean_ns == pytest.approx(mean, rel=0.05, abs=1 * MS)
    assert totals["rx", "whole"].mean_ns == pytest.approx(mean, rel=0.05, abs=1 * MS)
    small(totals, ("rx", "application"))


def test_a_reader_that_waits_for_data_is_no_delay(lab: Lab, veth: Link) -> None:
    with watching(lab, veth.a) as frames, transfer(veth.b, veth.a) as pair:
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


def test_a_datagram_waits_for_its_own_reader(lab: Lab, veth: Link) -> None:
    """Datagrams are read late, in bursts and one by one: each has waited as long as it was queued."""
    import socket

    with watching(lab, veth.a) as frames:
        receiver = veth.a.ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sender = veth.b.ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with receiver, sender:
            receiver.bind((veth.a.v4, 0))
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


def test_a_token_bucket_is_the_qdisc_stage_alone(lab: Lab, veth: Link) -> None:
    # A frame of 1514 bytes takes 10 ms of tokens, and asks for the next one only when it has arrived.
    rate = 1514 * 8 * 100
    veth.a.ns.run(
        "tc",
        "qdisc",
        "add",
        "dev",
        veth.a.name,
        "root",
        "tbf",
        "rate",
        f"{rate}bit",
        "burst",
        "1600",
        "limit",
        "90000",
    )
    with watching(lab, veth.a) as frames, answering(veth.b, request=1472, response=64) as server:
        ask(veth.a, server, kind="udp", count=60)
    totals = stages(frames)
    qdisc = totals["tx", "qdisc"]
    assert qdisc.count >= 57  # 95 % of them, the coverage that is promised
    assert qdisc.percentile_ns(0.5) == pytest.approx(10 * MS, rel=0.07, abs=1 * MS)
    assert totals["tx", "whole"].percentile_ns(0.5) == pytest.approx(10 * MS, rel=0.07, abs=1 * MS)
    small(totals, ("tx", "qdisc"))


@pytest.mark.parametrize("traffic", ["bulk", "request-response"])
def test_the_stages_add_up_to_the_whole(lab: Lab, veth: Link, traffic: str) -> None:
    with watching(lab, veth.a) as frames:
        if traffic == "bulk":
            iperf3(veth.a, veth.b, seconds=2, bits_per_s="200M", reverse=True)
        else:
            with answering(veth.b) as server:
                ask(veth.a, server, flows=16, seconds=2)
    totals = stages(frames)
    for direction, names in (("rx", RECEIVE), ("tx", SEND)):
        whole = totals[direction, "whole"]
        assert whole.count > 200  # enough for a mean; how many depends on how large GRO makes them
        parts = sum(totals[direction, name].path_ns for name in names)
        assert parts / whole.count == pytest.approx(whole.mean_ns, rel=0.05)
        # The same packets: as many went through each stage as through the whole.
        for name in names[1:]:
            assert totals[direction, name].path_packets == pytest.approx(whole.count, rel=0.05)


def test_coverage_at_50_000_packets_a_second(lab: Lab, veth: Link) -> None:
    for _ in range(4):
        with watching(lab, veth.a) as frames:
            result = iperf3(veth.a, veth.b, seconds=2, udp=True, length=64, bits_per_s="30M", reverse=True)
        assert result.packets
        if result.packets / result.seconds > 48_000:
            break  # else the machine was busy with something else
    assert result.packets / result.seconds > 48_000
    totals = stages(frames)
    for stage in ("stack", "ip", "local", "socket", "application"):
        assert totals["rx", stage].coverage >= 0.95, stage
        assert totals["rx", stage].count >= 0.95 * (result.packets - (result.lost_packets or 0)), stage


@pytest.mark.parametrize("offload", [False, True], ids=["gro", "tso"])
@pytest.mark.parametrize("reverse", [False, True], ids=["send", "receive"])
def test_coverage_at_full_speed(lab: Lab, veth: Link, reverse: bool, offload: bool) -> None:
    """With TSO large packets go through whole; without it the stack cuts them at the driver, and GRO mends them."""
    for end in (veth.a, veth.b):
        end.ns.run("ethtool", "-K", end.name, "gro", "on", "tso", "on" if offload else "off")
    with watching(lab, veth.a) as frames:
        result = iperf3(veth.a, veth.b, seconds=2, reverse=reverse)
    assert result.bits_per_s > 1e9
    for (direction, stage), total in stages(frames).items():
        if stage not in ("whole", "done", "forward"):
            assert total.count < 100 or total.coverage >= 0.8, f"{direction} {stage}: {total.coverage}"
    assert stages(frames)["rx", "stack"].count > 1000


def test_steering_to_another_cpu_is_time_of_the_stack_stage(lab: Lab, veth: Link) -> None:
    """RPS moves packets to another CPU between driver and stack; they are found again."""
    path = f"/sys/class/net/{veth.a.name}/queues/rx-0/rps_cpus"
    veth.a.ns.run("sh", "-c", f"echo 3 > {path}")
    with watching(lab, veth.a) as frames, answering(veth.b) as server:
        ask(veth.a, server, flows=16, seconds=2)
    totals = stages(frames)
    for stage in RECEIVE:
        assert totals["rx", stage].count > 1000
        assert totals["rx", stage].coverage >= 0.95, stage


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


def test_loopback_is_both_ways_at_once(lab: Lab) -> None:
    ns = lab.namespace()
    with Nettop(lab, ns, "-p", "stages", "-d", "0.5", interface="lo") as nettop:
        before = len(nettop.wait_frames(1))
        at = Endpoint(ns, "lo", "", "127.0.0.1", "::1")
        with answering(at) as server:
            ask(at, server, flows=4, seconds=1.5)
        nettop.more_frames(3)
        totals = stages(nettop.frames[before:])
    for key in (*(("rx", s) for s in RECEIVE), *(("tx", s) for s in SEND)):
        assert totals[key].count > 1000, key
        assert totals[key].coverage >= 0.95, key


def test_only_the_watched_interface_counts(lab: Lab, veth: Link) -> None:
    """Another pair in other namespaces, whose interface has the same index, is none of ours."""
    other = lab.veth()
    index = [end.ns.run("cat", f"/sys/class/net/{end.name}/ifindex").stdout for end in (veth.a, other.a)]
    with watching(lab, veth.a) as frames, answering(other.b) as server:
        ask(other.a, server, flows=4, seconds=1)
        ping(veth.a, veth.b, 5)
    totals = stages(frames)
    # Five answers, and the other side's neighbour or multicast chatter.
    assert 5 <= totals["rx", "stack"].count < 50, index
    assert totals["rx", "application"].count < 50
    assert totals["tx", "driver"].count < 50


def test_a_packet_tap_does_not_hide_packets(lab: Lab, veth: Link) -> None:
    """A sniffer holds references to skbs, and the stack goes on with the same ones."""
    tap = lab.spawn(veth.a.ns, "tcpdump", "-i", veth.a.name, "-w", "/dev/null", "-U")
    time.sleep(1)
    with watching(lab, veth.a) as frames, answering(veth.b) as server:
        ask(veth.a, server, flows=4, seconds=1)
    tap.stop()
    totals = stages(frames)
    for stage in RECEIVE:
        assert totals["rx", stage].coverage >= 0.95, stage
    for stage in SEND:
        assert totals["tx", stage].coverage >= 0.95, stage


def test_refused_datagrams_are_counted_where_they_end(lab: Lab, veth: Link) -> None:
    """Datagrams to a port where nobody listens end after local delivery, and are not called missed."""
    import socket

    with watching(lab, veth.a) as frames:
        sender = veth.b.ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with sender:
            for _ in range(101):
                sender.sendto(b"x", (veth.a.v4, 9))
    totals = stages(frames)
    assert totals["rx", "local"].count >= 101
    assert totals["rx", "transport"].dropped >= 101
    assert sum(total.missed for key, total in totals.items()) <= 2

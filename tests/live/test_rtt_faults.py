"""RTT beside loss, reordering and duplicates: no sample is off by more than its method's error (flows.md)."""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from lab import Direction, Lab, oracle, packets
from lab.program import Frame
from lab.traffic import Transfer, answering, answers, asking, iperf3, ping, transfer
from lab.wire import Held
from rtts import (
    DELAYED_ACK_NS,
    MS,
    flow,
    hasten,
    histogram_sum,
    is_min,
    last_values,
    median,
    together,
    watching,
)

# An answer that is lost before it comes to us is sent again after an RTO, 200 ms at least; while that is being
# learned from samples of this kind it is more.
ANSWER_AGAIN_NS = 500 * MS
IDLE_SECONDS = 60.0


# A flow that rests for a minute. It does so beside the other tests.


@dataclass(frozen=True)
class Rest:
    """What an idle minute did: frames of nettop, and the wire's smallest and largest round trip."""

    frames: list[Frame]
    wire: tuple[int, int]
    ports: list[int]


def talk(connection: Transfer, times: int, *, back: bool = False) -> None:
    """Single bytes there and back; `back`: the receiver begins."""
    ends = (connection.receiver, connection.sender) if back else (connection.sender, connection.receiver)
    for _ in range(times):
        ends[0].sendall(b"?")
        ends[1].recv(1)
        ends[1].sendall(b"!")
        ends[0].recv(1)
        time.sleep(0.03)


def rest() -> Rest:
    with Lab() as lab, contextlib.ExitStack() as stack:
        link = lab.wire(Direction(delay_ms=5))
        assert link.wire
        nettop = stack.enter_context(watching(lab, link.a, delay="1"))
        kinds = []
        for stamps in (1, 0):
            link.a.ns.sysctl("ipv4.tcp_timestamps", stamps)
            kinds += [stack.enter_context(transfer(link.a, link.b)) for _ in range(3)]
        for connection in kinds:
            talk(connection, 10)
            # The last words are segments that are acknowledged, some of them together, but not answered.
            for _ in range(8):
                connection.sender.sendall(b".")
                time.sleep(0.025)
        time.sleep(IDLE_SECONDS)
        for number, connection in enumerate(kinds):
            connection.receiver.recv(8)
            talk(connection, 10, back=number % 3 == 1)
        there, back = link.wire.report()
        nettop.more_frames(2)
        wire = (there.hold_ns.min + back.hold_ns.min, there.hold_ns.max + back.hold_ns.max)
        return Rest(nettop.frames, wire, [connection.remote[1] for connection in kinds])


@pytest.fixture(scope="module")
def resting() -> Iterator[Future[Rest]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(rest)


@pytest.fixture(autouse=True, scope="module")
def _begin_to_rest(request: pytest.FixtureRequest) -> None:
    """A minute is long: it begins with the first test of this module and is looked at by the last."""
    if any("resting" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("resting")


# Delays that are not the network's


def test_delayed_acks_add_their_delay_and_no_more(lab: Lab) -> None:
    link = lab.wire(Direction(delay_ms=5))
    assert link.wire
    with watching(lab, link.a) as nettop:
        with transfer(link.a, link.b) as connection:
            connection.one_byte_each(0.3, 10)
            port = connection.remote[1]
            (socket,) = oracle.sockets(link.a.ns, "dport", "=", f":{port}")
        nettop.more_frames(2)
    there, back = link.wire.report()
    row = flow(nettop.frames, remote_port=port)
    values = last_values(nettop.frames, row["id"])

    # The handshake's is the only one that was not delayed, and the wire may have been late with that very one.
    least = socket.minrtt_ns
    assert least
    assert is_min(row["rtt"]["min_ns"], least)
    assert there.hold_ns.min + back.hold_ns.min <= least <= there.hold_ns.max + back.hold_ns.max + 5 * MS
    assert len(values) >= 9
    # They were delayed indeed, or this would prove nothing.
    assert median(values) > there.hold_ns.median + back.hold_ns.median + 30 * MS
    assert max(values) <= there.hold_ns.max + back.hold_ns.max + DELAYED_ACK_NS


# A network that loses, reorders, duplicates


@dataclass(frozen=True)
class Beside:
    """Both ends' samples beside the wire: the smallest and the largest round trip that it gave (ns)."""

    wire: tuple[Held, Held]
    near: list[Frame]
    far: list[Frame]
    least: int
    most: int
    retransmitted: int

    def samples(self) -> dict[int, int]:
        """Outward samples of both ends, by upper edge of their bucket."""
        return histogram_sum([frame["rtt"]["all"] for frame in (*self.near, *self.far)])


def beside(lab: Lab, direction: Direction, seconds: float = 4.0) -> Beside:
    """Every kind of traffic over a wire with a fault, none of it enough to make a queue."""
    link = lab.wire(direction)
    assert link.wire
    client, server = link.a, link.b
    with contextlib.ExitStack() as stack:
        near, far = (stack.enter_context(watching(lab, end)) for end in (client, server))
        servers = [stack.enter_context(answering(server)) for _ in range(4)]
        before = [oracle.netstat(end.ns)["TcpRetransSegs"] for end in (client, server)]
        client.ns.sysctl("ipv4.tcp_timestamps", 0)
        running = [asking(client, servers[0], flows=8, seconds=seconds)]
        time.sleep(0.5)
        client.ns.sysctl("ipv4.tcp_timestamps", 1)
        running += [
            asking(client, servers[1], flows=8, seconds=seconds),
            asking(client, servers[2], flows=8, seconds=seconds, interval_s=0.05, ipv6=True),
            asking(client, servers[3], kind="churn", flows=4, seconds=seconds),
        ]
        with together(
            lambda: ping(client, server, int(seconds * 50), interval_s=0.02),
            lambda: iperf3(client, server, seconds=seconds, bits_per_s="10M"),
        ):
            time.sleep(0.3)
            hasten(client.ns, server.ns)
        for process in running:
            answers(process)
        near.more_frames(3)
        far.more_frames(3)
        after = [oracle.netstat(end.ns)["TcpRetransSegs"] for end in (client, server)]
    there, back = link.wire.report()
    return Beside(
        (there, back),
        near.frames,
        far.frames,
        there.hold_ns.min + back.hold_ns.min,
        there.hold_ns.max + back.hold_ns.max,
        sum(after) - sum(before),
    )


def within(buckets: dict[int, int], least: int, most: int) -> float:
    """The part of the samples whose bucket may hold values between these."""
    inside = sum(n for upper, n in buckets.items() if upper >= least and upper / 1.0625 <= most)
    return inside / sum(buckets.values())


def test_loss_makes_no_sample_short_and_few_long(lab: Lab) -> None:
    found = beside(lab, Direction(delay_ms=10, loss=0.02))
    samples = found.samples()

    assert found.retransmitted > 50
    assert sum(samples.values()) > 3000
    assert within(samples, found.least, found.most + DELAYED_ACK_NS + ANSWER_AGAIN_NS) == 1
    # What is lost on the way to us is sent again and is answered late: rare, since both sides' timers run.
    assert within(samples, found.least, found.most + DELAYED_ACK_NS) > 0.99


def test_reordering_makes_no_sample_wrong(lab: Lab) -> None:
    extra_ms = 5
    found = beside(lab, Direction(delay_ms=10, reorder=0.05, reorder_extra_ms=extra_ms))
    samples = found.samples()

    assert sum(samples.values()) > 3000
    # The wire's largest delay is without what it holds back on purpose: that may be either way.
    assert within(samples, found.least, found.most + 2 * extra_ms * MS + DELAYED_ACK_NS) == 1
    assert sum(held.reordered for held in found.wire) > 300


def test_duplicates_make_no_sample_wrong(lab: Lab) -> None:
    found = beside(lab, Direction(delay_ms=10, duplicate=0.1))
    samples = found.samples()

    assert sum(samples.values()) > 3000
    assert within(samples, found.least, found.most + DELAYED_ACK_NS) == 1
    assert sum(held.duplicated for held in found.wire) > 600


# A flood


@pytest.mark.parametrize("answered", [False, True], ids=["into the void", "answered"])
def test_a_syn_flood_costs_bounded_memory_and_no_established_flow(lab: Lab, answered: bool) -> None:
    flooded = lab.veth()
    if answered:  # each with a RST: nothing listens on that port
        flooded.a.ns.run("ip", "route", "add", packets.FLOOD_SOURCES, "via", flooded.b.v4)
    limit = 16384
    with contextlib.ExitStack() as stack:
        servers = {pace: stack.enter_context(answering(flooded.b)) for pace in (0.1, 1.0)}
        nettop = stack.enter_context(
            watching(lab, flooded.a, "--max-flows", str(limit), "-s", "rtt", "--top", "60", delay="0.25")
        )
        running = [
            asking(flooded.a, server, flows=16, interval_s=pace, seconds=9)
            for pace, server in servers.items()
        ]
        quiet = [stack.enter_context(transfer(flooded.a, flooded.b)) for _ in range(8)]
        for connection in quiet:
            connection.sender.sendall(b"?")
            connection.receiver.recv(1)
        time.sleep(2.2)
        before = {row["id"]: row for row in nettop.more_frames(2)[-1]["flows"] if row["rtt"]}
        memory = nettop.frames[-1]["health"]["rss_bytes"]
        first = len(nettop.frames)
        sent = oracle.sysfs(flooded.a)
        flood = packets.syn_flood(lab, flooded.b, flooded.a, 80, 200_000, per_second=60_000)
        sent = oracle.difference(oracle.sysfs(flooded.a), sent)
        during = nettop.more_frames(3)
        for connection in quiet:
            connection.sender.sendall(b"?")
            connection.receiver.recv(1)
        for process in running:
            answers(process)
        nettop.more_frames(3)
    frames = nettop.frames[first:]
    after = {row["id"]: row for row in frames[-1]["flows"] if row["rtt"]}

    assert flood.sent == 200_000
    assert (sent["tx_packets"] > 150_000) is answered
    assert len(before) >= 40
    assert max(frame["flows_total"] for frame in frames) <= limit
    assert sum(frame["health"]["evicted_flows"] for frame in frames) >= 200_000 - limit
    assert sum(frame["flows_opened"] for frame in frames) >= 200_000
    assert max(frame["health"]["rss_bytes"] for frame in during) < memory + (64 << 20)
    # Every connection is in its entry still, its smallest RTT is no larger, and its samples went on.
    assert not before.keys() - after.keys()
    for number, row in before.items():
        assert after[number]["rtt"]["min_ns"] <= row["rtt"]["min_ns"]
        assert after[number]["rtt"]["samples_total"] > row["rtt"]["samples_total"]


# The idle minute again


@pytest.mark.slow
@pytest.mark.time_limit(150)
def test_a_flow_that_resumes_after_a_minute_has_no_false_sample(resting: Future[Rest]) -> None:
    found = resting.result()
    for port in found.ports:
        row = flow(found.frames, remote_port=port)
        assert is_min(row["rtt"]["min_ns"], found.wire[0])
        assert row["rtt"]["samples_total"] > 10
    samples = histogram_sum([frame["rtt"]["all"] for frame in found.frames])
    assert within(samples, found.wire[0], found.wire[1] + DELAYED_ACK_NS) == 1

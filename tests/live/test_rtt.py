"""Passive RTT on wires of known delay: every method, against the forwarder's own account and against `ss`."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from driven import Driven
from lab import Direction, Lab, dns, oracle
from lab.program import Frame
from lab.traffic import answering, answers, asking, iperf3, ping
from rtts import (
    DELAYED_ACK_NS,
    MS,
    Pings,
    Row,
    close_to,
    flow,
    hasten,
    histogram_sum,
    is_median,
    is_min,
    last_values,
    median,
    middle_bucket,
    play_all,
    together,
    watching,
)

pytestmark = pytest.mark.pair
SECONDS = 4.0


@dataclass(frozen=True)
class Seen:
    """One kind of traffic as nettop saw its flow; `ss_min` is what the kernel says of its socket (None: no TCP)."""

    row: Row
    method: str
    middle: int | None
    ss_min: int | None

    def compare(self, wire: tuple[int, int]) -> Iterator[str]:
        """What is wrong with it, in words."""
        rtt = self.row["rtt"]
        if not rtt or rtt["samples_total"] < 20:
            yield f"hardly any samples: {rtt}"
            return
        if rtt["method"] != self.method:
            yield f"by {rtt['method']}, not {self.method}"
        if not is_min(rtt["min_ns"], wire[0]):
            yield f"min {rtt['min_ns']}, wire {wire[0]}"
        if not is_median(self.middle, wire[1]):
            yield f"median {self.middle}, wire {wire[1]}"
        if self.ss_min is not None and not is_min(rtt["min_ns"], self.ss_min):
            yield f"min {rtt['min_ns']}, ss {self.ss_min}"

    def __str__(self) -> str:
        rtt = self.row["rtt"] or {"min_ns": 0, "samples_total": 0}
        ss = "" if self.ss_min is None else f" (ss {self.ss_min / MS:.3f})"
        return (
            f"min {rtt['min_ns'] / MS:.3f}{ss}, median {(self.middle or 0) / MS:.3f} ms,"
            f" {rtt['samples_total']} samples by {self.method}"
        )


@pytest.mark.parametrize("delay_ms", [1, 5, 20, 50])
def test_every_method_finds_the_delay_of_the_wire(lab: Lab, delay_ms: int) -> None:
    link = lab.wire(Direction(delay_ms=delay_ms))
    assert link.wire
    client, server = link.a, link.b
    ping_interval = 0.02
    pings = int(SECONDS / ping_interval)
    with contextlib.ExitStack() as stack:
        nettop = stack.enter_context(watching(lab, client))
        names = ("no timestamps", "request-response", "paced", "ipv6")
        servers = {name: stack.enter_context(answering(server)) for name in names}
        stack.enter_context(dns.dnsmasq(server))
        client.ns.sysctl("ipv4.tcp_timestamps", 0)
        running = [asking(client, servers["no timestamps"], seconds=SECONDS + 1)]
        time.sleep(0.01 * delay_ms + 0.2)
        client.ns.sysctl("ipv4.tcp_timestamps", 1)
        link.wire.reset()
        running += [
            asking(client, servers["request-response"], seconds=SECONDS),
            asking(client, servers["ipv6"], seconds=SECONDS, ipv6=True),
            asking(client, servers["paced"], seconds=SECONDS, interval_s=0.03),
        ]
        bulk = []
        with together(
            lambda: bulk.append(iperf3(client, server, seconds=SECONDS, bits_per_s="20M")),
            lambda: ping(client, server, pings, interval_s=ping_interval),
            lambda: ping(client, server, pings, interval_s=ping_interval, ipv6=True),
            lambda: dns.resolve(client, server, int(SECONDS / (0.02 + delay_ms / 500)), interval_s=0.02),
        ):
            time.sleep(0.3)
            hasten(client.ns, server.ns)
            time.sleep(SECONDS - 0.6)
            sockets = oracle.sockets(client.ns)
        wire = link.wire.round_trip_ns()
        clients = [answers(process) for process in running]
        nettop.more_frames(3)
    frames = nettop.frames

    def seen(method: str, **values: object) -> Seen:
        row = flow(frames, **values)
        ends = (row["local"], row["remote"])
        socket = next((s for s in sockets if (s.local, s.remote) == ends), None)
        return Seen(row, method, median(last_values(frames, row["id"])), socket.minrtt_ns if socket else None)

    kinds = {name: seen("timestamp", remote_port=servers[name].port) for name in names[1:]}
    kinds["no timestamps"] = seen("sequence", remote_port=servers["no timestamps"].port)
    kinds["bulk"] = seen("timestamp", remote_port=bulk[0].port)
    kinds["ping"] = seen("echo", protocol="icmp")
    kinds["ping, IPv6"] = seen("echo", protocol="icmpv6")
    kinds["dns"] = seen("dns", protocol="udp", remote_port=53)
    print(f"wire, {delay_ms} ms each way: min {wire[0] / MS:.3f}, median {wire[1] / MS:.3f} ms")
    for name, kind in kinds.items():
        print(f"  {name}: {kind}")
    wrong = [f"{name}: {words}" for name, kind in kinds.items() for words in kind.compare(wire)]
    assert not wrong
    # The kernel's own smoothed RTT, read when the process last used the socket: no median, one late answer shows.
    own = {name: kinds[name].row["kernel_rtt"]["smoothed_ns"] for name in names}
    assert all(close_to(smoothed, wire[1], part=0.1, extra_ms=1) for smoothed in own.values()), own
    # The witnesses themselves: five sockets of TCP were there to be asked, and their clients agree.
    assert sum(kind.ss_min is not None for kind in kinds.values()) == 5
    assert all(is_median(asked.median_ns, wire[1]) for asked in clients), clients

    upper = middle_bucket(histogram_sum([frame["rtt"]["all"] for frame in frames]))
    assert upper / 1.0625 * 0.95 - MS / 2 <= wire[1] <= upper * 1.05 + MS / 2


def test_bulk_through_a_bottleneck_has_the_delay_of_its_queue(lab: Lab) -> None:
    # 100 packets of 1514 bytes take 40 ms at 30 Mbit/s.
    link = lab.wire(Direction(delay_ms=5, rate_bits_per_s=30_000_000, queue=100), Direction(delay_ms=5))
    assert link.wire
    with watching(lab, link.a) as nettop:
        result = iperf3(link.a, link.b, seconds=SECONDS)
        there, back = link.wire.report()
        nettop.more_frames(2)
    row = flow(nettop.frames, remote_port=result.port)
    buckets = histogram_sum([frame["rtt"]["all"] for frame in nettop.frames])

    assert there.hold_ns.median > 15 * MS
    assert is_min(row["rtt"]["min_ns"], there.hold_ns.min + back.hold_ns.min)
    # Over time and not over packets, of which there are more when the queue is full: so only about the same.
    assert middle_bucket(buckets) == pytest.approx(there.hold_ns.median + back.hold_ns.median, rel=0.2)
    assert max(buckets) / 1.0625 <= there.hold_ns.max + back.hold_ns.max + DELAYED_ACK_NS


def test_a_router_tells_the_two_sides_apart(lab: Lab) -> None:
    router = lab.wired_router(Direction(delay_ms=5), Direction(delay_ms=20))
    assert router.inner.wire
    assert router.outer.wire
    client, server = router.client, router.server
    with contextlib.ExitStack() as stack:
        to_server = stack.enter_context(watching(lab, router.server_side))
        to_client = stack.enter_context(watching(lab, router.client_side))
        names = ("request-response", "no timestamps", "ipv6")
        servers = {name: stack.enter_context(answering(server)) for name in names}
        stack.enter_context(dns.dnsmasq(server))
        client.ns.sysctl("ipv4.tcp_timestamps", 0)
        running = [asking(client, servers["no timestamps"], seconds=SECONDS)]
        time.sleep(0.4)
        client.ns.sysctl("ipv4.tcp_timestamps", 1)
        running += [
            asking(client, servers["request-response"], seconds=SECONDS - 0.4),
            asking(client, servers["ipv6"], seconds=SECONDS - 0.4, ipv6=True),
        ]
        with together(
            lambda: ping(client, server, 100, interval_s=0.03),
            lambda: ping(client, server, 100, interval_s=0.03, ipv6=True),
            lambda: dns.resolve(client, server, 40, interval_s=0.02),
        ):
            time.sleep(0.3)
            hasten(client.ns, server.ns)
        for process in running:
            answers(process)
        to_server.more_frames(3)
        to_client.more_frames(3)
    inner, outer = router.inner.wire.round_trip_ns(), router.outer.wire.round_trip_ns()

    wrong = []
    for side, frames, outward, inward, port in (
        ("towards the server", to_server.frames, outer, inner, "remote_port"),
        ("towards the client", to_client.frames, inner, outer, "local_port"),
    ):
        kinds = {name: flow(frames, **{port: servers[name].port}) for name in names}
        both = dict.fromkeys(names, ("rtt", "internal_rtt"))
        kinds |= {"ping": flow(frames, protocol="icmp"), "ping, IPv6": flow(frames, protocol="icmpv6")}
        kinds["dns"] = flow(frames, protocol="udp", **{port: 53})
        # The client asks and the server answers, never the other way round.
        both |= dict.fromkeys(
            ("ping", "ping, IPv6", "dns"), ("rtt",) if port == "remote_port" else ("internal_rtt",)
        )
        for name, row in kinds.items():
            for where, wire in (("rtt", outward), ("internal_rtt", inward)):
                if where not in both[name]:
                    if row[where] is not None:
                        wrong.append(f"{side}, {name}: {where} out of nothing: {row[where]}")
                    continue
                minimum, middle = row[where]["min_ns"], median(last_values(frames, row["id"], where))
                print(
                    f"{side}, {name}: {where} min {minimum / MS:.3f}, median {(middle or 0) / MS:.3f}, wire {wire}"
                )
                if not is_min(minimum, wire[0]) or not is_median(middle, wire[1]):
                    wrong.append(f"{side}, {name}: {where} min {minimum}, median {middle}, wire {wire}")
    assert not wrong


# Histograms by subnet


def played_pings(lab: Lab, addresses: list[str], *args: str) -> tuple[list[Frame], list[int]]:
    """One echo of about 5 ms to each of these addresses; nettop's frames, and what each echo took (ns)."""
    link = lab.veth()
    scripts = []
    for number, address in enumerate(addresses):
        script = Pings(link, 0, ipv6=":" in address)
        script.far_address = address
        scripts.append(script.ask(number).answer(number, 5))
    with watching(lab, link.a, *args) as nettop:
        times = play_all(lab, scripts, apart_ms=0.5)
        nettop.more_frames(3)
    return nettop.frames, [end - begin for begin, end in times]


def subnets(frames: list[Frame]) -> dict[str, int]:
    """Samples by prefix, over all frames."""
    found: dict[str, int] = {}
    for frame in frames:
        for entry in frame["rtt"]["subnets"]:
            found[entry["prefix"]] = found.get(entry["prefix"], 0) + entry["rtt"]["count"]
    return found


PUBLIC = ["8.8.8.8", "8.8.8.9", "8.8.9.9", "203.0.113.7"]
PRIVATE = {
    "10.0.0.0/8": ["10.1.2.3", "10.200.2.3"],
    "172.16.0.0/12": ["172.16.1.1", "172.31.255.1"],
    "192.168.0.0/16": ["192.168.77.1"],
    "169.254.0.0/16": ["169.254.1.1"],
    "fe80::/10": ["fe80::1", "febf::1"],
    "fc00::/7": ["fc00::1", "fd12:3456::1"],
}
# Next door to private ones, and public.
NEIGHBOURS = ["11.0.0.1", "172.15.255.1", "172.32.0.1", "192.169.0.1", "169.253.0.1"]
PUBLIC6 = ["2001:db8::1", "2001:db8:0:1::1", "2001:db8:1::1", "fbff::1", "fec0::1"]


def test_short_prefixes_keep_private_addresses_apart(lab: Lab) -> None:
    private = [address for addresses in PRIVATE.values() for address in addresses]
    everyone = [*PUBLIC, *NEIGHBOURS, *PUBLIC6, *private]
    frames, _ = played_pings(lab, everyone, "--subnets", "0,0")
    expected = {prefix: len(addresses) for prefix, addresses in PRIVATE.items()}

    assert subnets(frames) == {"0.0.0.0/0": len(PUBLIC) + len(NEIGHBOURS), "::/0": len(PUBLIC6), **expected}
    assert sum(frame["rtt"]["all"]["count"] for frame in frames) == len(everyone)


def test_subnets_have_the_prefixes_that_were_asked_for(lab: Lab) -> None:
    frames, _ = played_pings(
        lab, [*PUBLIC, *PUBLIC6, "10.1.2.3", "10.1.2.4", "10.1.3.4"], "--subnets", "24,48"
    )

    assert subnets(frames) == {
        "8.8.8.0/24": 2,
        "8.8.9.0/24": 1,
        "203.0.113.0/24": 1,
        "10.1.2.0/24": 2,
        "10.1.3.0/24": 1,
        "2001:db8::/48": 2,
        "2001:db8:1::/48": 1,
        "fbff::/48": 1,
        "fec0::/48": 1,
    }


def test_subnets_beyond_the_table_are_counted_together(lab: Lab) -> None:
    addresses = [f"198.18.{number // 250}.{number % 250 + 1}" for number in range(611)]
    frames, took = played_pings(lab, addresses, "--subnets", "32,128")
    found = subnets(frames)
    last = {entry["prefix"]: entry["min_ns"] for entry in frames[-1]["rtt"]["subnets"]}

    assert len(found) == 512 + 1
    assert found["others"] == 611 - 512
    assert all(count == 1 for prefix, count in found.items() if prefix != "others")
    assert sum(found.values()) == sum(frame["rtt"]["all"]["count"] for frame in frames) == 611
    for number, address in enumerate(addresses):
        if f"{address}/32" in last:
            assert abs(last[f"{address}/32"] - took[number]) < MS / 2
    assert min(took) / 1.0625 - MS / 2 < last["others"] < max(took)


# The flow in focus


def test_a_flow_in_focus_shows_its_samples_as_they_come(lab: Lab) -> None:
    link = lab.wire(Direction(delay_ms=5))
    assert link.wire
    with (
        answering(link.b) as server,
        answering(link.b) as other,
        Driven(link.a, delay=0.2, probes="flows") as nettop,
    ):
        running = [asking(link.a, s, seconds=60) for s in (server, other)]
        hasten(link.a.ns, link.b.ns)
        nettop.tell(f"focus {server.port}")
        nettop.wait(lambda: bool(nettop.frames[-1]["samples"]))
        first = next(n for n, frame in enumerate(nettop.frames) if frame["samples"])
        nettop.more_frames(15)
        minimum, middle = link.wire.round_trip_ns()
        for process in running:
            process.stop()
        frames = nettop.frames[first:]
    samples = [sample for frame in frames for sample in frame["samples"]]
    outward = [rtt for _, rtt, inward, _ in samples if not inward]
    before, after = (
        flow([frame], remote_port=server.port)["rtt"]["samples_total"] for frame in (frames[0], frames[-1])
    )

    assert frames[-1]["health"]["lost_events"] == 0
    # Sixty a second and side at most. The first frame that has any counted some of them before it.
    assert 100 < len(outward) < 200
    assert after - before <= len(outward) <= after - before + 20
    assert {method for *_, method in samples} == {"timestamp"}
    assert is_min(min(outward), minimum)
    assert is_median(median(outward), middle)
    times = [time_ns for time_ns, *_ in samples]
    assert times == sorted(times)

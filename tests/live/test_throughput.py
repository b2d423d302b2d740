"""The interface's totals against /sys/class/net, iperf3 and the TCP stack's own counters."""

import contextlib
import functools
import itertools
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import devices
import pytest
from lab import Lab, Link, oracle, packets, run_nettop, shell
from lab.namespace import Endpoint, Namespace
from lab.program import REPOSITORY, interpreter
from lab.traffic import Iperf, iperf3, ping
from observe import Observed, Station, endpoint, observing, watching

BIN_NS = 1 << 20  # bpf_src/throughput.c: the grain of the peak
PINGS = 1013
# Ethernet, IPv4 or IPv6, TCP with time stamps; Ethernet, IP, UDP.
TCP_HEADERS = {False: 66, True: 86}
UDP_HEADERS = {False: 42, True: 62}


@dataclass(frozen=True)
class Case:
    """One run of iperf3 beside nettop, at the client's end."""

    name: str
    payload_bytes: int
    bits_per_s: int | str = 0
    udp: bool = False
    length: int | None = None
    ipv6: bool = False
    reverse: bool = False
    offload: bool = True
    via: str = "tcx"


CASES = [
    Case("tcp-300M", 20_000_003, bits_per_s="300M"),
    Case("tcp-unlimited", 2_000_000_003),
    Case("tcp-unlimited-clsact", 1_000_000_007, via="clsact"),
    Case("tcp-no-offload", 300_000_007, offload=False),
    Case("tcp-ipv6", 500_000_003, ipv6=True),
    Case("tcp-reverse", 500_000_003, reverse=True),
    Case("tcp-ipv6-reverse-no-offload", 300_000_007, ipv6=True, reverse=True, offload=False),
    Case("udp-1200", 5_000_000, udp=True, length=1200, bits_per_s="100M"),
    Case(
        "udp-1200-ipv6-reverse", 5_000_000, udp=True, length=1200, bits_per_s="100M", ipv6=True, reverse=True
    ),
    Case("udp-fragments", 5_000_000, udp=True, length=4000, bits_per_s="100M"),
    Case("udp-fragments-ipv6", 5_000_000, udp=True, length=4000, bits_per_s="100M", ipv6=True),
]


@pytest.fixture(scope="module")
def stations() -> Iterator[Callable[[bool, str], Station]]:
    """One station for each way of counting and attaching, when it is first asked for, until the module ends."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())

        @functools.cache
        def station(offload: bool = True, via: str = "tcx") -> Station:
            link = lab.veth()
            if not offload:
                for end in (link.a, link.b):
                    end.ns.run("ethtool", "-K", end.name, "tso", "off", "gso", "off")
            watch = stack.enter_context(watching(lab, link.a, env={"NETTOP_VIA": via}))
            return Station(lab, link, watch)

        yield station


@pytest.fixture
def station(stations: Callable[[bool, str], Station]) -> Station:
    """The usual one: offloads as they are, TCX."""
    return stations(True, "tcx")


# Datagrams find no room at their receiver where others have the CPU.
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[pytest.mark.alone] if c.udp else []) for c in CASES]
)
def test_bytes_and_packets_beside_iperf3(stations: Callable[[bool, str], Station], case: Case) -> None:
    station = stations(case.offload, case.via)
    veth = station.link
    sender, receiver = (veth.b, veth.a) if case.reverse else (veth.a, veth.b)
    way = "rx" if case.reverse else "tx"
    before = oracle.netstat(sender.ns), oracle.netstat(receiver.ns)
    with station.watch.observing() as seen:
        result = iperf3(
            veth.a,
            veth.b,
            payload_bytes=case.payload_bytes,
            bits_per_s=case.bits_per_s,
            udp=case.udp,
            length=case.length,
            ipv6=case.ipv6,
            reverse=case.reverse,
        )
    after = oracle.netstat(sender.ns), oracle.netstat(receiver.ns)
    sent = oracle.difference(after[0], before[0])

    seen.agrees()
    assert {hook["via"] for hook in seen.frames[-1]["probes"]["throughput"]["hooks"]} == {case.via}
    assert seen.health("lost_events") == seen.health("evicted_flows") == 0
    flow = data_flow(seen, result)
    flow_bytes, flow_packets = flow[f"{way}_bytes_total"], flow[f"{way}_packets_total"]
    print(
        f"flow: {flow_bytes} bytes, {flow_packets} packets; iperf3 {result.received_bytes}..{result.sent_bytes}"
    )

    if case.udp:
        datagrams = result.packets or 0
        # A busy machine drops some before they come to us (its veth's backlog), or behind us (the reader's buffer).
        lost = result.lost_packets or 0 if case.reverse else 0
        parts = -(-(case.length or 0) // 1448)
        headers = (UDP_HEADERS[case.ipv6] + 8 * case.ipv6 * (parts > 1)) * parts * (datagrams + 10)
        least = result.sent_bytes - lost * (case.length or 0)
        assert least <= flow_bytes <= result.sent_bytes + headers + 10 * (case.length or 0)
        # iperf3 opens and ends with a few datagrams that it does not count.
        assert (datagrams - lost) * parts <= flow_packets <= (datagrams + 10) * parts
        assert seen.sum("fragments_without_first") == 0
        fragments = seen.total(way, "fragments")
        # One datagram alone is in one piece: the client's first, by which the server knows it (4 bytes).
        assert fragments == (flow_packets - 1 if parts > 1 else 0)
    else:
        # Each segment of a GSO packet counts: TcpOutSegs has the new ones, TcpRetransSegs those sent again.
        segments = seen.total(way, "segments")
        wire, again = sent["TcpOutSegs"] + sent["TcpRetransSegs"], sent["TcpRetransSegs"]
        print(f"segments: nettop {segments}, TcpOutSegs and TcpRetransSegs {wire}, of these again {again}")
        if case.reverse:
            # A busy machine drops between the sender and us (its veth's backlog), so some of these do not arrive.
            assert result.received_bytes / 1448 <= segments <= wire
        else:
            assert segments == pytest.approx(wire, abs=3)
            # The kernel's count is of iperf3's other connection to this port, too.
            both = {row["id"]: row for row in seen.rows(remote=flow["remote"])}.values()
            uncertain = sum(row["tx_uncertain_total"] for row in both)
            assert sum(row["tx_retransmits_total"] for row in both) == again, (
                f"and {uncertain} that nothing tells"
            )
        assert result.received_bytes <= flow_bytes
        # At most the headers of each segment, and what was sent again.
        assert flow_bytes <= result.sent_bytes + TCP_HEADERS[case.ipv6] * wire + again * 1514
        if case.offload:
            # GSO: the packets that the interface counts are far fewer than those of the wire.
            assert segments > 1.5 * seen.total(way, "packets")
        else:
            assert segments == seen.total(way, "packets")


def data_flow(seen: Observed, result: Iperf) -> dict[str, object]:
    """The flow of iperf3's data, by its own account of the ports."""
    (flow,) = result.flows
    return seen.flow(
        protocol="udp" if result.raw["start"]["test_start"]["protocol"] == "UDP" else "tcp",
        local=endpoint(flow.local, flow.local_port),
        remote=endpoint(flow.remote, flow.remote_port),
    )


@pytest.mark.parametrize("ipv6", [False, True], ids=["v4", "v6"])
def test_a_thousand_and_thirteen_pings(station: Station, ipv6: bool) -> None:
    veth = station.link
    with station.watch.observing() as seen:
        pings = ping(veth.a, veth.b, PINGS, interval_s=0.001, ipv6=ipv6, args=("-e", "4711"))
    assert pings.received == PINGS
    seen.agrees()
    flow = seen.flow(
        protocol="icmpv6" if ipv6 else "icmp",
        local=endpoint(veth.a.address(ipv6), 4711),
        remote=endpoint(veth.b.address(ipv6), 4711),
    )
    # Ethernet, IP, ICMP, 56 bytes.
    size = 14 + (40 if ipv6 else 20) + 8 + 56
    assert (flow["tx_packets_total"], flow["rx_packets_total"]) == (PINGS, PINGS)
    assert (flow["tx_bytes_total"], flow["rx_bytes_total"]) == (size * PINGS, size * PINGS)
    assert seen.sizes("tx") == {128: PINGS}


def test_eight_frames_are_eight_frames(lab: Lab, veth: Link) -> None:
    """`-n 8` to its own end, its totals those of the interface's counters from the first frame to the last."""
    outcome = run_nettop(lab, veth.a, "-b", "--format", "ndjson", "-n", "8", "-d", "0.25")
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr == ""
    assert len(outcome.frames) == 8
    assert outcome.stdout.count("\n") == 8
    for frame in outcome.frames:
        # A frame may come late on a busy machine, and the next one is then the sooner; never two at once.
        assert 0.1e9 < frame["interval_ns"] < 2e9
        assert frame["schema"] == "nettop/1"
        assert frame["interface"] == veth.a.name


def test_the_frames_totals_are_the_interfaces_own(station: Station) -> None:
    veth = station.link
    with station.watch.observing() as seen:
        iperf3(veth.a, veth.b, payload_bytes=3_000_017)
    counters = oracle.sysfs(veth.a)
    last = seen.frames[-1]["throughput"]
    for direction in ("rx", "tx"):
        for key, name in (
            ("bytes", "bytes"),
            ("packets", "packets"),
            ("drops", "dropped"),
            ("errors", "errors"),
        ):
            assert last[direction][f"{key}_total"] == counters[f"{direction}_{name}"]
    assert last["mtu"] == 1500
    # A veth says 10 Gb/s and means nothing by it.
    assert last["speed_bits_per_s"] is None


# Sizes, protocols, bursts: crafted frames, so every figure is known to the byte


def test_sizes_protocols_and_peak_of_known_frames(station: Station) -> None:
    lab, veth = station.lab, station.link
    local, remote = packets.stranger(veth.a), packets.stranger(veth.b)

    def frame(size: int, protocol: int = 17) -> bytes:
        payload = bytes(size - 14 - 20 - (8 if protocol == 17 else 0))
        if protocol == 17:
            payload = packets.udp(remote, local, 9, 9, payload)
        return packets.ethernet(veth.b, veth.a, packets.ip(remote, local, protocol, payload))

    counts = {60: 7, 64: 3, 65: 5, 128: 11, 129: 13, 256: 2, 512: 17, 513: 19, 1024: 23, 1025: 29, 1514: 31}
    arp = bytes.fromhex(veth.a.mac.replace(":", "") + veth.b.mac.replace(":", "") + "0806") + bytes(46)
    with station.watch.observing() as seen:
        for size, count in counts.items():
            packets.send(lab, veth.b, [frame(size)] * count)
        packets.send(lab, veth.b, [frame(200, protocol=47)] * 37)
        packets.send(lab, veth.b, [arp] * 41)
        # LLDP, 802.1AB.
        packets.send(lab, veth.b, [arp[:12] + b"\x88\xcc" + arp[14:]] * 43)

    seen.agrees(tolerance=0)
    expected = {64: 7 + 3 + 41 + 43, 128: 5 + 11, 256: 13 + 2 + 37, 512: 17, 1024: 19 + 23, 1518: 29 + 31}
    assert seen.sizes("rx") == expected
    udp_bytes = sum(size * count for size, count in counts.items())
    assert seen.protocols() == {
        "udp": (udp_bytes, 0),
        "gre": (200 * 37, 0),
        "arp": (60 * 41, 0),
        "lldp": (60 * 43, 0),
    }
    # What is no IP belongs to no flow, and that is said; it is no loss.
    beyond = [f["throughput"]["in_no_flow"] for f in seen.frames]
    assert sum(b["rx_bytes"] for b in beyond) == 60 * (41 + 43)
    assert {name for b in beyond for name in b["protocols"]} == {"arp", "lldp"}
    assert seen.health("untracked_packets") == 0


def test_a_burst_shows_in_the_peak_and_not_in_the_mean(station: Station) -> None:
    lab, veth = station.lab, station.link
    ends = packets.stranger(veth.b), packets.stranger(veth.a)
    frame = packets.datagram(veth.b, veth.a, (9, 9), bytes(1400), ends=ends)
    with station.watch.observing() as seen:
        packets.send(lab, veth.b, [frame])
    peaks = [f["throughput"]["rx"]["peak_bits_per_s"] for f in seen.frames]
    # One frame in one bin of 1.05 ms, exactly; and silence in every other frame.
    assert sorted(peaks)[-1] == len(frame) * 8 * 10**9 // BIN_NS
    assert sorted(peaks)[-2] == 0
    (busy,) = (f for f in seen.frames if f["throughput"]["rx"]["bytes"])
    mean = busy["throughput"]["rx"]["bytes"] * 8e9 / busy["interval_ns"]
    assert max(peaks) > 50 * mean


def test_the_peak_lies_between_the_mean_and_all_bytes_in_one_bin(station: Station) -> None:
    veth = station.link
    with station.watch.observing() as seen:
        iperf3(veth.a, veth.b, payload_bytes=25_000_000, bits_per_s="200M")
    busy = [f for f in seen.frames if f["throughput"]["tx"]["bytes"] > 1_000_000]
    assert busy
    for frame in busy:
        tx = frame["throughput"]["tx"]
        mean = tx["bytes"] * 8e9 / frame["interval_ns"]
        assert 0.95 * mean <= tx["peak_bits_per_s"] <= tx["bytes"] * 8 * 1.05e9 / BIN_NS


# What the interface refuses


def test_queue_drops_and_backlog_as_tc_counts_them(lab: Lab, veth: Link) -> None:
    veth.a.ns.run(
        *("tc", "qdisc", "add", "dev", veth.a.name, "root"),
        *("tbf", "rate", "1mbit", "burst", "3000", "limit", "6000"),
    )
    ends = packets.stranger(veth.a), packets.stranger(veth.b)
    frame = packets.datagram(veth.a, veth.b, (9, 9), bytes(1000), ends=ends)
    sender = veth.a.ns.socket(socket.SOCK_RAW, socket.AF_PACKET)
    with sender, observing(lab, veth.a) as seen:
        sender.bind((veth.a.name, 0))
        # Four datagrams wait for 8 ms each, the rest of the burst finds the queue full (ENOBUFS at the sender).
        for _ in range(1009):
            with contextlib.suppress(OSError):
                sender.send(frame)
    (queue,) = oracle.qdiscs(veth.a)
    assert queue["drops"] > 100
    assert sum(f["throughput"]["qdisc"]["drops"] for f in seen.frames) == queue["drops"]
    assert {f["throughput"]["qdisc"]["kind"] for f in seen.frames} == {"tbf"}


# Traffic that passes by TC


def test_what_passes_by_tc_is_said(lab: Lab, veth: Link) -> None:
    """PACKET_QDISC_BYPASS goes to the driver at once: the interface has it, TC has not, and no program is blamed."""
    frame = packets.datagram(veth.a, veth.b, (9, 9), bytes(1400))
    before = oracle.attached(veth.a)
    with watching(lab, veth.a) as watch, watch.observing() as seen:
        beside = oracle.attached(veth.a)
        for _ in range(5):
            packets.flooded(packets.flood(veth.a, [frame], count=503))
            watch.nettop.more_frames(1)
        assert oracle.attached(veth.a) == beside
    assert oracle.attached(veth.a) == before
    assert seen.counters["tx_packets"] == 5 * 503
    assert seen.total("tx", "packets") == 0
    notes = {note for f in seen.frames for note in f.get("notes", ())}
    assert notes == {
        "100 % of the bytes sent are not seen: AF_XDP or PACKET_QDISC_BYPASS, which pass by TC, or a TC program "
        "before nettop"
    }


# What a frame costs


# In a process of its own: one round of what a frame asks of an interface, after a round that fills caches.
ASK = """
import socket, sys

sys.path.insert(0, sys.argv[1])
received = []

class Counted(socket.socket):
    def recv(self, *args):
        data = super().recv(*args)
        received.append(len(data))
        return data

socket.socket = Counted
from nettop.netdev.counters import READINGS
from nettop.netdev.link import counting, trouble
asks = [READINGS["interface"], READINGS["qdisc"], counting, trouble]
for ask in asks:
    ask(sys.argv[2])
received.clear()
calls = []
sys.setprofile(lambda frame, event, arg: calls.append(event) if event in ("call", "c_call") else None)
for ask in asks:
    ask(sys.argv[2])
sys.setprofile(None)
print(len(calls), sum(received))
"""


def _work(ns: Namespace, name: str, others: int) -> tuple[int, int]:
    """Python and C calls of one round beside so many other interfaces, and the bytes that its sockets received."""
    made = "".join(f"link add o{others}n{n} type ifb\nlink set o{others}n{n} up\n" for n in range(others))
    shell.run(["ip", "-n", str(ns.name), "-batch", "-"], stdin=made)
    calls, received = ns.run(interpreter(), "-c", ASK, str(REPOSITORY), name).stdout.split()
    return int(calls), int(received)


def test_a_frame_costs_the_same_beside_six_hundred_interfaces(lab: Lab, veth: Link) -> None:
    """Of the watched interface alone: a virtual one, and one with a queue that netlink lists first."""
    veth.a.ns.run("tc", "qdisc", "add", "dev", veth.a.name, "root", "pfifo")
    three, forty, many = (_work(veth.a.ns, veth.a.name, others) for others in (3, 40, 600))
    assert min(three) > 100
    assert three[0] == forty[0] == many[0]
    # One datagram of the list of queues is read, which those of forty interfaces fill.
    assert forty[1] == many[1]


# Whose device it is


def test_the_device_is_of_the_network_namespace_that_is_watched(lab: Lab) -> None:
    """`nsenter --net` leaves /sys of the host mounted, whose device of the same name is another one."""
    names = [path.parent.name for path in Path("/sys/class/net").glob("*/device")]
    name = names[0] if names else "eth0"
    near, far = lab.namespace("n"), lab.namespace("f")
    near.run("ip", "link", "add", name, "type", "veth", "peer", "name", "peer", "netns", str(far.name))
    for ns, device in ((near, name), (far, "peer")):
        ns.run("ip", "link", "set", device, "up")
    probes = ("-p", "throughput,irq", "-b", "--format", "ndjson", "-n", "2", "-d", "0.3")
    done = shell.run(
        ["nsenter", f"--net=/run/netns/{near.name}", interpreter(), "-m", "nettop", name, *probes],
        cwd=REPOSITORY,
        timeout=60,
    )
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["irq"]["hardware"] is False
    assert (last["throughput"]["kind"], last["throughput"]["speed_bits_per_s"]) == ("veth", None)


# Other kinds of interface

# A minute of what tests/live/devices.py measures whole.
SHORT = {name: devices.SETTINGS[name] for name in ("tso off", "udp segmentation off", "rx-gro-list")}


@pytest.mark.parametrize("kind", devices.HERE)
def test_every_kind_of_device_counts_as_it_does_itself(kind: str) -> None:
    """To the byte and the packet, both ways, with offloads switched while nettop runs."""
    rows = list(devices.rows(devices.HERE[kind], SHORT))
    print(*rows, sep="\n")
    assert [str(row) for row in rows if not row.equal] == []


def test_what_a_queue_cuts_up_counts_as_the_device_counts_it() -> None:
    """By a tbf: what is larger than its burst.  Where only some packets go through it, the pane says so."""
    queues = {
        name: devices.QUEUES[name] for name in ("none", "tbf, burst of 9000", "tbf below htb", "none again")
    }
    rows = list(devices.queue_rows(devices.veth, queues))
    print(*rows, sep="\n")
    below = [row for row in rows if "below" in row.device]
    assert [str(row) for row in rows if row not in below and not row.equal] == []
    assert len(below) == 2
    assert {row.differs.partition(" cuts up")[0] for row in below} == {"tbf below htb"}


@pytest.mark.parametrize("kind", ["veth", "bridge"])
def test_offloads_that_are_switched_in_the_middle_count_at_once(lab: Lab, kind: str) -> None:
    """TSO and UDP's segmentation go off and on all the time, while sixty megabytes cross."""
    with devices.watched(lab, devices.HERE[kind], "throughput") as (device, watch):
        devices.exchange(device)
        over = threading.Event()
        switched = 0

        def switch() -> None:
            nonlocal switched
            while not over.is_set():
                state = ("off", "on")[switched % 2]
                device.switch({"tso": state, "tx-udp-segmentation": state})
                switched += 1

        switching = threading.Thread(target=switch)
        with watch.observing() as seen:
            switching.start()
            for _ in range(3):
                devices.exchange(device, 10_000_019)
            over.set()
            switching.join()
    row = devices.compare(seen, kind, f"switched {switched} times")
    print(row)
    assert switched >= 4
    if kind == "veth":
        # What its peer counts is asked once a tick, and a switch comes between TC and the driver: some packets' worth
        # for each of the switches (docs/probes/throughput.md, Limits).  What it receives is exact.
        for what in ("packets", "bytes"):
            assert row.counted[f"rx {what}"] == row.own[f"rx {what}"]
            assert row.counted[f"tx {what}"] == pytest.approx(row.own[f"tx {what}"], rel=0.1)
        return
    assert row.equal, row


def test_a_tag_in_the_frame_counts_as_the_device_counts_it(station: Station) -> None:
    """The kernel lifts it out before it is seen; the veth has counted its four bytes with the frame."""
    lab, veth = station.lab, station.link
    ends = packets.stranger(veth.b), packets.stranger(veth.a)
    plain = packets.datagram(veth.b, veth.a, (9, 9), bytes(500), ends=ends)
    with station.watch.observing() as seen:
        for tags in (b"", b"\x81\0\0\x2a", b"\x88\xa8\0\x07\x81\0\0\x2a"):
            packets.send(lab, veth.b, [plain[:12] + tags + plain[12:]] * 101)
            packets.send(lab, veth.a, [plain[6:12] + plain[:6] + tags + plain[12:]] * 53)
    seen.agrees(tolerance=0)
    assert seen.total("rx") == 101 * (3 * len(plain) + 4 + 8)
    assert seen.total("tx") == 53 * (3 * len(plain) + 4 + 8)


def test_a_tun_device_has_no_link_header(lab: Lab) -> None:
    ns = lab.namespace("t")
    end = Endpoint(ns, "tun0", "", "10.99.0.1", "")
    with os.fdopen(devices.open_tun(ns, end.name, devices.IFF_TUN | devices.IFF_NO_PI), "r+b", 0) as far:
        ns.run("ip", "addr", "add", end.v4, "peer", "10.99.0.2", "dev", end.name)
        ns.run("ip", "link", "set", end.name, "up")
        sender = ns.socket(socket.SOCK_DGRAM)
        with sender, observing(lab, end) as seen:
            sender.bind(("10.99.0.1", 7001))
            reply = packets.ip(
                "10.99.0.2", "10.99.0.1", 17, packets.udp("10.99.0.2", "10.99.0.1", 7002, 7001, bytes(300))
            )
            for _ in range(503):
                sender.sendto(bytes(1000), ("10.99.0.2", 7002))
                # A tun device counts a packet as sent when somebody reads it.
                assert len(far.read(2048)) == 1028
                far.write(reply)
    seen.agrees(tolerance=0)
    flow = seen.flow(protocol="udp", local="10.99.0.1:7001", remote="10.99.0.2:7002")
    assert (flow["tx_packets_total"], flow["tx_bytes_total"]) == (503, 503 * 1028)
    assert (flow["rx_packets_total"], flow["rx_bytes_total"]) == (503, 503 * 328)


def test_a_veth_that_merges_what_it_received(lab: Lab, veth: Link) -> None:
    """With GRO on, a veth's driver counts before merging, without link headers; but only where its peer cuts up."""
    with watching(lab, veth.a) as watch:
        for gro, large in itertools.product(("off", "on"), repeat=2):
            veth.b.ns.run("ethtool", "-K", veth.b.name, "tso", large, "gso", large)
            veth.a.ns.run("ethtool", "-K", veth.a.name, "gro", gro)
            watch.nettop.more_frames(3)  # it looks twice a second
            with watch.observing() as seen:
                result = iperf3(veth.a, veth.b, payload_bytes=200_000_007, reverse=True)
            seen.agrees()
            assert data_flow(seen, result)["rx_bytes_total"] >= result.received_bytes  # type: ignore[operator]

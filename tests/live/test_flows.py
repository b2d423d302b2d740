"""Flows: what belongs to which connection, how many there were, and what was sent again."""

import threading
from collections.abc import Sequence

import pytest
from lab import Lab, Link, packets
from lab.traffic import answering, ask, churn, fresh_port
from observe import Station, endpoint, observing

CONNECTIONS = 10_007


# Tags and fragments: crafted frames, so every figure is known to the byte


@pytest.mark.parametrize("ipv6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize(
    ("tags", "vlan", "inner"),
    [((packets.Tag(77, priority=5),), 77, None), (packets.QINQ, 100, 200)],
    ids=["vlan", "qinq"],
)
def test_tagged_streams_are_flows_of_their_vlan(
    station: Station, tags: Sequence[packets.Tag], vlan: int, inner: int | None, ipv6: bool
) -> None:
    lab, veth = station.lab, station.link
    port = fresh_port()
    local, remote = packets.stranger(veth.a, ipv6=ipv6), packets.stranger(veth.b, ipv6=ipv6)

    def frame(way: str, tagged: Sequence[packets.Tag]) -> bytes:
        source, target, ports = (
            (local, remote, (port, 7002)) if way == "tx" else (remote, local, (7002, port))
        )
        ends = (veth.a, veth.b) if way == "tx" else (veth.b, veth.a)
        return packets.datagram(*ends, ports, bytes(700), ends=(source, target), tags=tagged)

    with station.watch.observing() as seen:
        # Received: the kernel has lifted the outer tag into the skb. Sent by a raw socket: it is in the frame.
        packets.send(lab, veth.b, [frame("rx", tags)] * 211)
        packets.send(lab, veth.a, [frame("tx", tags)] * 109)
        # The same ends without a tag are another flow.
        packets.send(lab, veth.b, [frame("rx", ())] * 13)

    seen.agrees(tolerance=0)
    ends = {"protocol": "udp", "local": endpoint(local, port), "remote": endpoint(remote, 7002)}
    flow = seen.flow(**ends, vlan=vlan, vlan_inner=inner)
    size = len(frame("rx", tags))
    assert (flow["rx_packets_total"], flow["rx_bytes_total"]) == (211, 211 * size)
    assert (flow["tx_packets_total"], flow["tx_bytes_total"]) == (109, 109 * size)
    plain = seen.flow(**ends, vlan=None)
    assert (plain["rx_packets_total"], plain["tx_packets_total"]) == (13, 0)


@pytest.mark.parametrize("ipv6", [False, True], ids=["v4", "v6"])
def test_fragments_belong_to_the_flow_of_their_first(station: Station, ipv6: bool) -> None:
    lab, veth = station.lab, station.link
    port = fresh_port()
    local, remote = packets.stranger(veth.a, ipv6=ipv6), packets.stranger(veth.b, ipv6=ipv6)

    def fragments(identity: int) -> list[bytes]:
        datagram = packets.udp(remote, local, 7002, port, bytes(3000))
        parts = packets.fragments(remote, local, 17, datagram, size=1200, identity=identity)
        return [packets.ethernet(veth.b, veth.a, part) for part in parts]

    with station.watch.observing() as seen:
        for identity in range(1, 102):
            packets.send(lab, veth.b, fragments(identity))
        # These come without their first one, so nobody can say whose they are.
        orphans = [part for identity in range(9001, 9008) for part in fragments(identity)[1:]]
        packets.send(lab, veth.b, orphans)

    seen.agrees(tolerance=0)
    flow = seen.flow(protocol="udp", local=endpoint(local, port), remote=endpoint(remote, 7002))
    sizes = [len(part) for part in fragments(1)]
    assert len(sizes) == 3
    assert (flow["rx_packets_total"], flow["rx_bytes_total"]) == (303, 101 * sum(sizes))
    assert seen.total("rx", "fragments") == 303 + 14
    assert seen.sum("fragments_without_first") == 14
    assert seen.sum("fragments_without_first_bytes") == sum(map(len, orphans))
    assert not seen.rows(local=endpoint(local, 0))


def test_fragments_of_a_protocol_without_ports_need_no_first(station: Station) -> None:
    lab, veth = station.lab, station.link
    local, remote = packets.stranger(veth.a), packets.stranger(veth.b)
    parts = packets.fragments(remote, local, 47, bytes(3000), size=1200, identity=77)  # GRE
    frames = [packets.ethernet(veth.b, veth.a, part) for part in parts]
    with station.watch.observing() as seen:
        packets.send(lab, veth.b, frames[1:])
    flow = seen.flow(remote=endpoint(remote, 0))
    assert flow["rx_packets_total"] == 2
    assert seen.sum("fragments_without_first") == 0


def test_ipv6_extension_headers_do_not_hide_the_ports(station: Station) -> None:
    lab, veth = station.lab, station.link
    port = fresh_port()
    local, remote = packets.stranger(veth.a, ipv6=True), packets.stranger(veth.b, ipv6=True)
    datagram = packets.udp(remote, local, 7002, port, bytes(100))
    # Hop-by-hop and destination options: next header, length beyond the first 8 bytes, PadN of the rest.
    options = bytes([60, 0, 1, 4]) + bytes(4) + bytes([17, 1, 1, 12]) + bytes(12)
    frame = packets.ethernet(veth.b, veth.a, packets.ip(remote, local, 0, options + datagram))
    with station.watch.observing() as seen:
        packets.send(lab, veth.b, [frame] * 17)
    flow = seen.flow(local=endpoint(local, port), remote=endpoint(remote, 7002))
    assert flow["protocol"] == "udp"
    assert (flow["rx_packets_total"], flow["rx_bytes_total"]) == (17, 17 * len(frame))
    assert seen.protocols() == {"udp": (17 * len(frame), 0)}


# Opening and closing


def test_every_connection_is_seen_to_open_and_to_close(lab: Lab, veth: Link) -> None:
    """At the client's end and at the server's."""
    with (
        observing(lab, veth.a) as near,
        observing(lab, veth.b) as far,
        answering(veth.b) as server,
    ):
        result = churn(veth.a, server, CONNECTIONS)
    assert result.errors == 0
    for seen in (near, far):
        assert seen.sum("flows_opened") == seen.sum("flows_closed") == CONNECTIONS
        last = seen.frames[-1]
        assert last["flows_opened_total"] == last["flows_closed_total"] == CONNECTIONS
        assert seen.health("lost_events") == seen.health("evicted_flows") == 0
        seen.agrees()


def test_a_full_table_evicts_says_so_and_counts_on(lab: Lab, veth: Link) -> None:
    with observing(lab, veth.a, "--max-flows", "4096") as seen, answering(veth.b) as server:
        churn(veth.a, server, CONNECTIONS)
    evicted = seen.health("evicted_flows")
    print(f"evicted {evicted}, in the table {seen.frames[-1]['flows_total']}")
    assert all(frame["flows_total"] <= 4096 for frame in seen.frames)
    # Each was put into the table. What is not there any more was evicted, or taken out five seconds after its end.
    assert evicted > 0
    assert evicted + seen.frames[-1]["flows_total"] <= seen.sum("flows_opened")
    assert seen.sum("flows_opened") >= CONNECTIONS
    assert seen.health("lost_events") == 0
    seen.agrees()


def test_flows_that_work_survive_a_table_that_is_full(lab: Lab, veth: Link) -> None:
    """The least recently used go: seventeen connections that talk stay, while thousands pass by."""
    with (
        observing(lab, veth.a, "--max-flows", "4096") as seen,
        answering(veth.b, ports=2) as server,
        answering(veth.b, request=100, response=100) as other,
    ):
        busy = threading.Thread(target=ask, args=(veth.a, other), kwargs=BUSY)
        busy.start()
        churn(veth.a, server, CONNECTIONS)
        busy.join()
    assert seen.health("evicted_flows") > 0
    rows = {row["id"]: row for row in seen.rows() if row["remote"] == endpoint(veth.b.v4, other.port)}
    # Each is one entry from its SYN on: one that had been evicted would have come back as another.
    assert len(rows) == 17
    assert all(row["tx_bytes_total"] >= 17_000 for row in rows.values())


BUSY = {"flows": 17, "count": 17 * 200, "interval_s": 0.01}


def test_the_same_ports_again_are_another_connection(station: Station) -> None:
    """Crafted, since no kernel reuses ports so soon: SYN, SYN-ACK, FINs, and the same again; then one reset."""
    lab, veth = station.lab, station.link
    local, remote = packets.stranger(veth.a), packets.stranger(veth.b)
    ack, fin, syn, rst = packets.ACK, packets.FIN, packets.SYN, packets.RST

    def step(way: str, flags: int, seq: int, acked: int = 0) -> packets.Step:
        source, target, ports = (local, remote, (1111, 80)) if way == "tx" else (remote, local, (80, 1111))
        ends = (veth.a, veth.b) if way == "tx" else (veth.b, veth.a)
        segment = packets.tcp(source, target, *ports, seq=seq, ack=acked, flags=flags)
        return packets.Step(ends[0], packets.ethernet(*ends, packets.ip(source, target, 6, segment)))

    def connection(isn: int, end: Sequence[packets.Step]) -> list[packets.Step]:
        return [
            step("tx", syn, isn),
            step("rx", syn | ack, isn + 5000, isn + 1),
            step("tx", ack, isn + 1, isn + 5001),
            *end,
        ]

    with station.watch.observing() as seen:
        for isn in (1000, 2**32 - 1, 77_000):
            fins = [
                step("tx", fin | ack, isn + 1, isn + 5001),
                step("rx", fin | ack, isn + 5001, isn + 2),
                step("tx", ack, isn + 2, isn + 5002),
            ]
            packets.play(lab, connection(isn, fins))
        # Reset; and then one that replaces another that never ended.
        packets.play(lab, connection(500_000, [step("rx", rst | ack, 505_001, 500_001)]))
        packets.play(lab, connection(900_000, []))
        packets.play(lab, connection(950_000, []))

    assert seen.sum("flows_opened") == 6
    # The fifth was closed by its successor, the last is open.
    assert seen.sum("flows_closed") == 5
    (row,) = (r for r in seen.frames[-1]["flows"] if r["remote"] == endpoint(remote, 80))
    assert row["state"] == "open"
    assert (row["tx_packets_total"], row["rx_packets_total"]) == (2, 1)
    assert row["retransmits_total"] == 0
    assert {r["state"] for r in seen.rows(remote=endpoint(remote, 80))} <= {
        "open",
        "closed",
        "closing",
        "syn",
        "reset",
    }


def test_a_udp_flow_has_no_retransmits_and_no_state(station: Station) -> None:
    veth = station.link
    with station.watch.observing() as seen, answering(veth.b) as server:
        result = ask(veth.a, server, kind="udp", flows=3, count=1009)
    assert result.lost == 0
    rows = {row["id"]: row for row in seen.rows(protocol="udp", remote=endpoint(veth.b.v4, server.port))}
    assert len(rows) == 3
    assert {(row["state"], row["retransmits_total"]) for row in rows.values()} == {(None, None)}
    assert sum(row["tx_packets_total"] for row in rows.values()) == 1009
    assert sum(row["rx_packets_total"] for row in rows.values()) == 1009
    assert sum(row["rx_bytes_total"] for row in rows.values()) == 1009 * (14 + 20 + 8 + 64)


def test_interval_counts_add_up_to_the_totals(station: Station) -> None:
    veth = station.link
    with station.watch.observing() as seen, answering(veth.b, request=300, response=900) as server:
        ask(veth.a, server, flows=7, count=3001)
    rows = seen.rows(remote=endpoint(veth.b.v4, server.port))
    by_id: dict[int, list[dict[str, int]]] = {}
    for row in rows:
        by_id.setdefault(row["id"], []).append(row)
    assert len(by_id) == 7
    for history in by_id.values():
        for what in ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets"):
            assert sum(row[what] for row in history) == history[-1][f"{what}_total"]

"""Stages where packets change device or address on their way: bridges, macvlan, NAT, redirects."""

import socket
import time
from contextlib import suppress
from dataclasses import replace

import pytest
from driven import Driven
from lab import Lab, Link, Router
from lab.oracle import difference, sysfs
from lab.packets import datagram, ethernet, ip, send, tcp
from lab.traffic import answering, ask
from stagelab import RECEIVE, SEND, Station, above, masquerade, stages, through_ifb, watching


@pytest.mark.parametrize("kind", ["bridge", "macvlan"])
def test_a_device_above_the_watched_one(lab: Lab, veth: Link, kind: str) -> None:
    """What is received is followed up to the application."""
    words = (
        ("type", "bridge") if kind == "bridge" else ("link", veth.a.name, "type", "macvlan", "mode", "bridge")
    )
    at = above(veth, *words)
    count = 503
    with watching(lab, veth.a) as frames, answering(veth.b) as server:
        time.sleep(0.5)
        assert ask(at, server, count=count).transactions == count
    totals = stages(frames)
    for name in RECEIVE:
        assert count <= totals["rx", name].count <= count + 10, name
        assert totals["rx", name].missed == 0, name


def test_a_macvlan_is_seen_from_ip_on(lab: Lab, veth: Link) -> None:
    """The boundaries before name the lower device: no rows, and nothing that is called missed."""
    at = above(veth, "link", veth.a.name, "type", "macvlan", "mode", "bridge")
    count = 503
    with watching(lab, at) as frames, answering(veth.b) as server:
        assert ask(at, server, count=count).transactions == count
    totals = stages(frames)
    assert ("rx", "stack") not in totals
    assert ("rx", "ip") not in totals
    for key in (*(("rx", name) for name in RECEIVE[2:]), *(("tx", name) for name in SEND)):
        assert count <= totals[key].count <= count + 10, key
        assert totals[key].missed == 0, key
    parts = sum(totals["rx", name].path_ns for name in RECEIVE[2:])
    assert parts == pytest.approx(totals["rx", "whole"].sum_ns, rel=0.05)


@pytest.mark.parametrize("how", ["masquerade", "dnat"])
def test_the_flow_in_focus_behind_nat(lab: Lab, router: Router, how: str) -> None:
    """Its key is that of the wire: behind masquerade and an OUTPUT DNAT, from the router itself."""
    count, port = 251, 5301  # as in test_stages.py, where the filter is compiled, too
    if how == "masquerade":
        masquerade(router.ns, router.server_side.name, "fully-random")
    server = router.server.ns.call(lambda: socket.create_server((router.server.v4, port)))
    if how == "dnat":
        nft = router.ns.run
        nft("nft", "add table ip nat; add chain ip nat out { type nat hook output priority -100; }")
        nft("nft", f"add rule ip nat out ip daddr 192.0.2.7 tcp dport 99 dnat to {router.server.v4}:{port}")
        router.ns.run("ip", "route", "add", "192.0.2.0/24", "via", router.server.v4)
        client = router.ns.call(lambda: socket.create_connection(("192.0.2.7", 99)))
    else:
        client = router.client.ns.call(lambda: socket.create_connection((router.server.v4, port)))
    accepted, _ = server.accept()
    with (
        server,
        client,
        accepted,
        Driven(router.server_side, "tcp", "port", str(port), probes="flows,stages") as nettop,
    ):
        client.sendall(b"x")
        assert accepted.recv(1)
        flow = nettop.focus(port)
        nettop.more_frames(1)
        with nettop.observing() as frames:
            for _ in range(count):
                client.sendall(b"x" * 50)
                assert accepted.recv(100)
                accepted.sendall(b"y")
                assert client.recv(10)
    mine, all_ = stages(frames, flow), stages(frames)
    for totals in (mine, all_):
        for name in SEND[1:]:
            assert (totals["tx", name].missed, totals["tx", name].count) == (
                0,
                pytest.approx(count, abs=3),
            ), name


@pytest.mark.parametrize("of", ["wire", "inside"])
def test_a_filter_behind_masquerade_is_of_the_addresses_on_the_wire(
    lab: Lab, router: Router, of: str
) -> None:
    """As with tcpdump on that interface: the source is the router, and who is behind it matches nothing."""
    count = 251
    masquerade(router.ns, router.server_side.name)
    source = router.server_side.v4 if of == "wire" else router.client.v4
    with (
        answering(router.server) as server,
        Driven(router.server_side, "tcp", "and", "host", source) as nettop,
        nettop.observing() as frames,
    ):
        assert ask(router.client, server, count=count).transactions == count
    totals = stages(frames)
    for key in (("rx", "stack"), ("rx", "forward"), ("tx", "ip"), ("tx", "qdisc"), ("tx", "driver")):
        assert totals[key].missed == 0, key
        if of == "wire":
            assert count <= totals[key].count <= count + 10, key
        else:
            assert totals[key].count == 0, key


def test_a_redirect_through_an_ifb_counts_a_packet_once(lab: Lab, veth: Link) -> None:
    through_ifb(veth.a)
    count = 503
    with watching(lab, veth.a) as frames, answering(veth.b) as server:
        before = sysfs(veth.a)
        assert ask(veth.a, server, count=count).transactions == count
        received = difference(sysfs(veth.a), before)["rx_packets"]
    totals = stages(frames)
    assert totals["rx", "stack"].count + totals["rx", "stack"].missed == pytest.approx(received, abs=4)
    for name in RECEIVE[1:]:
        assert count <= totals["rx", name].count <= count + 10, name


def test_packets_that_are_routed_anew_leave_nothing_behind(lab: Lab, veth: Link) -> None:
    """An OUTPUT DNAT sends them over the loopback; no packet after them waits as long as they were gone."""
    nft = veth.a.ns.run
    nft("nft", "add table ip nat; add chain ip nat out { type nat hook output priority -100; }")
    nft("nft", f"add rule ip nat out ip daddr {veth.b.v4} udp dport 99 dnat to 127.0.0.1:98")
    veth.a.ns.sysctl("ipv4.conf.all.route_localnet", 1)
    with (
        watching(lab, veth.a) as frames,
        veth.a.ns.socket(socket.SOCK_DGRAM) as sender,
        answering(veth.b) as server,
    ):
        for _ in range(5):
            for _ in range(101):
                sender.sendto(b"x", (veth.b.v4, 99))
            time.sleep(0.2)
            ask(veth.a, server, count=101)
    totals = stages(frames)
    for name in ("ip", "qdisc"):
        assert totals["tx", name].percentile_ns(1.0) < 50_000_000, name
        assert totals["tx", name].coverage >= 0.98


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("to", ["another device", "nowhere"])
def test_packets_that_a_mark_sends_elsewhere_leave_nothing_behind(
    lab: Lab, veth: Link, to: str, ipv6: bool
) -> None:
    """They are routed by their mark after LOCAL_OUT.

    Later packets get their skbs' addresses, and some of those have no LOCAL_OUT that would write down when they began.
    """
    count, rounds, pause = 101, 5, 0.3
    run, version = veth.a.ns.run, "-6" if ipv6 else "-4"
    run("nft", "add table inet marks; add chain inet marks out { type route hook output priority 0; }")
    run("nft", "add rule inet marks out udp dport 99 counter meta mark set 7")
    run("ip", version, "rule", "add", "fwmark", "7", "table", "77")
    if to == "nowhere":
        run("ip", version, "route", "add", "blackhole", "default", "table", "77")
    else:
        run("ip", "link", "add", "away", "type", "ifb")  # it asks for no neighbour
        run("ip", "link", "set", "away", "up")
        run("ip", version, "route", "add", "default", "dev", "away", "table", "77")
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    raw = datagram(veth.a, veth.b, (9, 9), b"x", ends=(veth.a.address(ipv6), veth.b.address(ipv6)))
    with (
        watching(lab, veth.a) as frames,
        veth.a.ns.socket(socket.SOCK_DGRAM, family) as sender,
        answering(veth.b) as server,
    ):
        for _ in range(rounds):
            before = sysfs(veth.a)
            for _ in range(count):
                with suppress(OSError):  # nowhere: some kernels say so
                    sender.sendto(b"x", (veth.b.address(ipv6), 99))
            assert difference(sysfs(veth.a), before)["tx_packets"] <= 3  # what is not theirs
            time.sleep(pause)
            assert send(lab, veth.a, [raw] * count) == count
            assert ask(veth.a, server, count=count, ipv6=ipv6).transactions == count
    rule = run("nft", "list", "chain", "inet", "marks", "out").stdout
    assert f"counter packets {rounds * count} " in rule, rule
    totals = stages(frames)
    whole = range(rounds * count, rounds * (count + 10))  # with what opens and closes the connections
    for name in ("ip", "qdisc", "driver"):
        stage = totals["tx", name]
        assert stage.percentile_ns(1.0) < pause * 1e9 / 3, name
        # Not one of those that went elsewhere; and nobody knows when the raw ones came to IP.
        assert stage.count - (name != "ip") * rounds * count in whole, name
        assert stage.missed - (name == "ip") * rounds * count <= 2, name


def test_corrupt_segments_are_dropped_and_counted(staged: Station) -> None:
    count = 23
    segment = bytearray(tcp(staged.link.b.v4, staged.link.a.v4, 4000, 4001, seq=1, payload=b"x" * 100))
    segment[-1] ^= 0xFF
    frame = ethernet(staged.link.b, staged.link.a, ip(staged.link.b.v4, staged.link.a.v4, 6, bytes(segment)))
    with staged.watch.observing() as frames:
        send(staged.lab, staged.link.b, [frame] * count)
    totals = stages(frames)
    assert totals["rx", "local"].count >= count
    assert totals["rx", "transport"].dropped == count


def test_what_was_never_for_this_host_is_not_dropped_by_it(staged: Station) -> None:
    """Packets for another host, as behind a switch that floods, and to groups that nobody here has joined."""
    count, near, far = 31, staged.link.a, staged.link.b
    group = "ff02::1234"
    away = datagram(far, replace(near, mac="02:00:00:00:00:99"), (4000, 9), b"x")
    unasked = datagram(far, replace(near, mac="33:33:00:00:12:34"), (4000, 9), b"x", ends=(far.v6, group))
    nobody = datagram(far, near, (4000, 9), b"x")
    with staged.watch.observing() as frames:
        send(staged.lab, far, [away, unasked] * count)
        send(staged.lab, far, [nobody] * count)
    totals = stages(frames)
    assert totals["rx", "stack"].count >= 3 * count
    # To a port that nobody listens to: that one was meant for it.
    assert {key: total.dropped for key, total in totals.items() if total.dropped} == {
        ("rx", "transport"): count
    }

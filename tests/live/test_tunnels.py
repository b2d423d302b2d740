"""What is in a tunnel: the packet inside has the flow, with all that flows are told; the rest is the tunnel's own."""

import struct
from collections.abc import Callable

import devices
import pytest
from lab import packets
from lab.packets import ACK, FIN, TUNNELS, Tunnel
from observe import Observed, Row, Station, endpoint
from rtts import Talk, is_min, play_all

from nettop.core import units

NEAR, FAR = "172.16.0.1", "172.16.0.2"


_numbers = iter(range(140))


def flow_bytes(rows: list[Row]) -> int:
    return sum(row["rx_bytes"] + row["tx_bytes"] for row in rows)


def conversation(station: Station, tunnel: Tunnel | None, *, ipv6: bool = False) -> Talk:
    """Opened, 100 bytes answered after 20 ms, one of them sent twice, closed by both."""
    talk = Talk(station.link, next(_numbers), ipv6=ipv6)
    talk.tunnel = tunnel
    talk.open().near(5, seq=1, ack=1, length=100, stamp=20, echo=0)
    talk.far(20, seq=1, ack=101, stamp=40, echo=20)
    talk.near(5, seq=101, ack=1, length=100, stamp=60, echo=40)
    talk.near(250, seq=101, ack=1, length=100, stamp=310, echo=40)
    talk.far(20, seq=1, ack=201, stamp=340, echo=310)
    talk.near(5, seq=201, ack=1, flags=FIN | ACK, stamp=350, echo=340)
    talk.far(20, seq=1, ack=202, flags=FIN | ACK, stamp=380, echo=350)
    return talk.near(1, seq=202, ack=2, stamp=390, echo=380)


@pytest.fixture(scope="module")
def played(station: Station) -> tuple[Observed, dict[tuple[str, bool], tuple[Talk, list[int]]]]:
    """A conversation in each kind of tunnel, over both IP versions; all at once."""
    kinds = [(kind, ipv6) for kind in TUNNELS for ipv6 in (False, True)]
    talks = [
        conversation(station, Tunnel(kind, 0x123456, ends=(NEAR, FAR)), ipv6=ipv6) for kind, ipv6 in kinds
    ]
    with station.watch.observing() as seen:
        times = play_all(station.lab, talks)
    return seen, dict(zip(kinds, zip(talks, times, strict=True), strict=True))


@pytest.mark.parametrize("ipv6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize("kind", TUNNELS)
def test_a_connection_inside_has_its_flow(
    played: tuple[Observed, dict[tuple[str, bool], tuple[Talk, list[int]]]], kind: str, ipv6: bool
) -> None:
    """By the addresses inside, marked with the tunnel and its number; bytes are those of the whole packets."""
    seen, talks = played
    talk, (syn, syn_ack, *_) = talks[kind, ipv6]
    ends = {"local": endpoint(talk.near_address, 40_000), "remote": endpoint(talk.far_address, 8000)}
    row = seen.flow(**ends)
    name = {"gretap": "gre", "geneve-ip": "geneve"}.get(kind, kind)
    assert (row["tunnel"], row["tunnel_id"]) == (name, None if kind == "ipip" else 0x123456)
    assert (row["protocol"], row["state"], row["opened_by"]) == ("tcp", "closed", "local")
    assert is_min(row["rtt"]["min_ns"], syn_ack - syn)
    assert (row["tx_retransmits_total"], row["rx_retransmits_total"]) == (1, 0)
    assert flow_bytes(seen.rows(**ends)) == sum(len(step.frame) for step in talk.steps)
    assert not any(other["remote"].startswith(FAR) for other in seen.rows())


def test_the_same_addresses_in_two_tunnels_are_two_flows(station: Station) -> None:
    """Two tenants, and one who is in no tunnel."""
    tunnels = [Tunnel("vxlan", 1), Tunnel("vxlan", 2), Tunnel("geneve", 1), None]
    number = next(_numbers)
    talks = []
    for tunnel in tunnels:
        talk = Talk(station.link, number)
        talk.tunnel = tunnel
        talks.append(talk.open())
    with station.watch.observing() as seen:
        play_all(station.lab, talks)
    rows = {r["id"]: r for r in seen.rows(remote=endpoint(talks[0].far_address, 8000))}.values()
    found = {(r["tunnel"], r["tunnel_id"]) for r in rows}
    assert found == {("vxlan", 1), ("vxlan", 2), ("geneve", 1), (None, None)}
    assert [r["rx_packets_total"] + r["tx_packets_total"] for r in rows] == [3] * 4


def test_what_is_not_understood_is_the_tunnels_own(station: Station) -> None:
    """ARP inside, a tunnel in a tunnel, a flag of later days, cut off, a fragment: the bytes are in a flow anyway."""
    inside = packets.ip("10.9.9.1", "10.9.9.2", 17, packets.udp("10.9.9.1", "10.9.9.2", 5, 6, b"x" * 30))
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    vxlan_of_arp = struct.pack("!II", 8 << 24, 5 << 8) + arp

    def spoilt(kind: str, at: int, value: int) -> Callable[[tuple[str, str]], bytes]:
        """A tunnel's packet with another byte at this place."""

        def make(ends: tuple[str, str]) -> bytes:
            whole = Tunnel(kind, 5, ends=ends).around(inside)
            return whole[:at] + bytes([value]) + whole[at + 1 :]

        return make

    cases: dict[str, Callable[[tuple[str, str]], bytes]] = {
        "gre 1": spoilt("gre", 21, 1),
        "gre with routing": spoilt("gre", 20, 0x60),
        "gre of something": spoilt("gre", 22, 0x99),
        "vxlan without a number": spoilt("vxlan", 28, 0),
        "vxlan with a flag": spoilt("vxlan", 28, 0x0C),
        "geneve 1": spoilt("geneve", 28, 0x42),
        "geneve's control": spoilt("geneve", 29, 0x80),
        "arp in vxlan": lambda ends: packets.ip(*ends, 17, packets.udp(*ends, 50_000, 4789, vxlan_of_arp)),
        "no ip in ipip": lambda ends: packets.ip(*ends, 4, b"\x65" + bytes(39)),
        "cut": lambda ends: packets.ip(*ends, 4, inside[:15]),
        "cut gre": lambda ends: packets.ip(*ends, 47, b"\x20\0\x08\0"),
        "a fragment": lambda ends: packets.ip(*ends, 4, inside, flags_and_offset=0x2000, identity=9),
        "two deep": lambda ends: Tunnel("ipip", ends=ends).around(
            Tunnel("vxlan", 5, ends=ends).around(inside)
        ),
    }
    at, to = station.link.a, station.link.b
    # Each from an address of its own, by which its flow is found.
    frames = {
        name: packets.ethernet(at, to, make((f"172.16.1.{number}", FAR)))
        for number, (name, make) in enumerate(cases.items())
    }
    with station.watch.observing() as seen:
        packets.send(station.lab, at, frames.values())
    assert seen.total("tx") == sum(map(len, frames.values()))
    for number, (name, frame) in enumerate(frames.items()):
        (row,) = (r for r in seen.rows() if r["local"].startswith(f"172.16.1.{number}:") and r["tx_packets"])
        deep = name == "two deep"
        assert row["remote"].startswith(FAR), name
        assert (row["tunnel"], row["tunnel_id"]) == ("ipip" if deep else None, None), name
        udp = "vxlan" in name or "geneve" in name or deep
        assert row["protocol"] == units.protocol(17 if udp else 47 if "gre" in name else 4), name
        assert row["tx_bytes"] == len(frame), name


def test_below_a_real_vxlan_are_the_connections_in_it() -> None:
    """A megabyte of TCP each way, with segments of many packets: both connections, their ends, and every byte."""
    seen, rows = devices.check_below(devices.below(devices.vxlan), ("vxlan", 7))
    assert [row["state"] for row in rows] == ["closed"] * 2
    assert all(row["local"].startswith("10.88.1.1:") and row["rtt"] is not None for row in rows)
    assert flow_bytes(seen.rows()) == seen.total("rx") + seen.total("tx")

"""What the TC programs make of packets: of valid ones what scapy makes of them, of the others no harm at all.

The programs run by BPF_PROG_TEST_RUN, so nothing is attached and nothing is sent.  `lab/fuzz.c` does that by the
million.  NETTOP_FUZZ_PACKETS asks for more of them, or on a slow machine for fewer; NETTOP_FUZZ_SEED for others.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import itertools
import json
import os
import random
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab import build, packets
from scapy.contrib.geneve import GENEVE
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, GRE, Dot1AD, Dot1Q, Ether
from scapy.layers.ppp import PPP, PPPoE
from scapy.layers.sctp import SCTP
from scapy.layers.vxlan import VXLAN
from scapy.packet import Padding

from nettop.bpf import syscall
from nettop.bpf.config import Config, Counting
from nettop.bpf.filter import Instructions, compile_expression, from_words
from nettop.bpf.maps import open_maps
from nettop.bpf.protocol import Plan
from nettop.loader import attach
from nettop.loader.compile import compile_probe, takes_filter
from nettop.probes.base import all_probes
from nettop.probes.flows.constants import TUNNELS

PACKETS = int(os.environ.get("NETTOP_FUZZ_PACKETS", 1_000_000))
SEED = int(os.environ.get("NETTOP_FUZZ_SEED", 20))
UNSPEC = 0xFFFFFFFF  # TC_ACT_UNSPEC: the next program is asked, and the packet goes its way
FILTER = "tcp or udp port 53 or (ip6 and not icmp6) or vlan 42"
MAC = bytes(range(2, 14))
OUTSIDE = (("172.16.0.1", "172.16.0.2"), ("fc00::1", "fc00::2"))
IN, OUT = 0, 1
ARP_SLOT, OTHER_SLOT, BROKEN_SLOT = 256, 257, 262  # of traffic.protocols


# --- the programs -------------------------------------------------------------------------------------------


class Program:
    """One probe's TC programs with maps of their own, attached nowhere."""

    def __init__(
        self,
        name: str,
        cache: Path,
        config: Config,
        instructions: Instructions = (),
        max_flows: int = 1 << 14,
    ) -> None:
        self.probe = attach.Attached(name, compile_probe(name, cache, instructions=instructions))
        attach.make_maps(self.probe, Plan("lo", (name,), (("flows.flows", max_flows),)))
        declared = {
            (a.target, a.program)
            for hook in self.probe.object.hooks
            for candidate in hook.candidates
            if candidate.via == "tcx"
            for a in candidate.attachments
        }
        self.fds: dict[int, int] = {}
        for target, program in declared:
            code = self.probe.object.linked(program, self.probe.maps)
            fd = syscall.prog_load(syscall.ProgType.SCHED_CLS, code, program)
            self.fds[IN if target == "ingress" else OUT] = fd
            self.probe.programs[(program, "")] = fd
        attach.write_config(self.probe, config)
        answer = attach.report(self.probe)
        self.readers, self.layouts = open_maps(all_probes()[name].maps, answer.probe.maps, answer.fds)

    def fd(self, name: str) -> int:
        """Descriptor of a map."""
        return self.probe.maps[[m.name for m in self.probe.object.maps].index(name)]

    def read(self, name: str) -> Any:
        """A map as the screen reads it; per-CPU values added up."""
        return self.readers[name].read()

    def total(self, name: str, field: str, element: int = 0) -> Any:
        """One field of a per-CPU array's element, over all CPUs."""
        return self.read(name)[element][field].sum(axis=0)


def tc_probes() -> list[str]:
    """All probes that have TC programs."""
    return [
        name
        for name, probe in all_probes().items()
        if any(c.via == "tcx" for hook in probe.hooks for c in hook.candidates)
    ]


@contextlib.contextmanager
def programs(
    cache: Path, config: Config, filter_text: str = "", max_flows: int = 1 << 14
) -> Iterator[dict[str, Program]]:
    """The programs of all probes that have any at TC, by probe."""
    instructions = from_words(compile_expression(filter_text).words) if filter_text else ()
    made: dict[str, Program] = {}
    try:
        for name in tc_probes():
            made[name] = Program(name, cache, config, instructions, max_flows)
        yield made
    finally:
        for program in made.values():
            program.probe.close()


AS_SKB = Config(ifindex=1, count_in=Counting.SKB, count_out=Counting.SKB)


@pytest.fixture(scope="module")
def plain(cache: Path) -> Iterator[dict[str, Program]]:
    with programs(cache, AS_SKB) as made:
        yield made


@pytest.fixture(scope="module")
def bare(cache: Path) -> Iterator[dict[str, Program]]:
    """As on an interface that counts segments, and without the link header."""
    counting = Counting.WIRE | Counting.BARE
    with programs(cache, Config(ifindex=1, count_in=counting, count_out=counting)) as made:
        yield made


# --- packets ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A valid frame, or the fragments of one, by its parts."""

    ipv6: bool
    protocol: int
    transport: bytes
    tags: tuple[tuple[int, int], ...] = ()  # EtherType and TCI, outermost first
    options: int = 0  # words of IPv4 options
    chain: tuple[tuple[int, int], ...] = ()  # IPv6 extension headers: kind, length field
    fragment: int = 0  # bytes of payload in each fragment, 0: whole
    identity: int = 0
    source: bytes = bytes(16)
    target: bytes = bytes(16)
    padding: int = 0  # bytes behind the packet, as short frames have
    wrap: str = ""  # "pppoe", "mpls": what lies between the tags and the packet
    labels: tuple[int, ...] = ()
    tunnel: packets.Tunnel | None = None

    def _wrapped(self, packet: bytes) -> bytes:
        """The packet behind its EtherType, in PPPoE (RFC 2516) or below MPLS labels (RFC 3032)."""
        packet = self.tunnel.around(packet) if self.tunnel else packet
        ipv6 = packet[0] >> 4 == 6
        if self.wrap == "pppoe":
            session = struct.pack("!BBHHH", 0x11, 0, 77, 2 + len(packet), 0x57 if ipv6 else 0x21)
            return b"\x88\x64" + session + packet
        if self.wrap == "mpls":
            last = len(self.labels) - 1
            stack = (struct.pack("!I", v << 12 | (n == last) << 8 | 64) for n, v in enumerate(self.labels))
            return b"\x88\x47" + b"".join(stack) + packet
        return (b"\x86\xdd" if ipv6 else b"\x08\0") + packet

    def frames(self) -> list[bytes]:
        """The frames, in order."""
        size = self.fragment or max(len(self.transport), 1)
        pieces = [self.transport[i : i + size] for i in range(0, max(len(self.transport), 1), size)]
        head = MAC + b"".join(struct.pack("!HH", *tag) for tag in self.tags)
        make = self._ipv6 if self.ipv6 else self._ipv4
        return [
            head + self._wrapped(make(piece, n * size, n < len(pieces) - 1)) + bytes(self.padding)
            for n, piece in enumerate(pieces)
        ]

    def _ipv4(self, piece: bytes, offset: int, more: bool) -> bytes:
        length = 20 + 4 * self.options
        header = struct.pack(
            "!BBHHHBBH4s4s",
            0x40 | length // 4,
            0,
            length + len(piece),
            self.identity & 0xFFFF,
            offset // 8 | more << 13,
            64,
            self.protocol,
            0,
            self.source[-4:],
            self.target[-4:],
        ) + b"\x01" * (4 * self.options)
        return header[:10] + struct.pack("!H", packets.checksum(header)) + header[12:] + piece

    def _ipv6(self, piece: bytes, offset: int, more: bool) -> bytes:
        kinds = [kind for kind, _ in self.chain] + ([44] if self.fragment else []) + [self.protocol]
        body = b""
        for (kind, length), following in zip(self.chain, kinds[1:], strict=False):
            size = (length + 2) * 4 if kind == 51 else (length + 1) * 8
            if kind == 51:
                content = bytes(size - 2)
            elif kind == 43:
                content = b"\0" * (size - 2)
            else:  # PadN over all of it
                content = struct.pack("BB", 1, size - 4) + bytes(size - 4)
            body += struct.pack("BB", following, length) + content
        if self.fragment:
            body += struct.pack("!BBHI", self.protocol, 0, offset | more, self.identity)
        body += piece
        header = struct.pack("!IHBB", 6 << 28, len(body), kinds[0], 64)
        return header + self.source + self.target + body


def transport(draw: Any) -> tuple[int, bytes]:
    """A protocol and a message of it, drawn by ``draw(low, high)``."""
    ports = struct.pack("!HH", draw(0, 65535), draw(0, 65535))
    payload = bytes(draw(0, 255) for _ in range(draw(0, 24)))
    kind = draw(0, 7)
    if kind <= 2:
        flags = (0x02, 0x10, 0x18, 0x11, 0x04, 0x12)[draw(0, 5)]
        stamp = (
            struct.pack("!BBBBII", 1, 1, 8, 10, draw(0, 2**32 - 1), draw(0, 2**32 - 1)) if draw(0, 1) else b""
        )
        extra = b"\x01" * (4 * draw(0, 7)) + stamp
        words = 5 + len(extra) // 4
        numbers = struct.pack("!II", draw(0, 2**32 - 1), draw(0, 2**32 - 1))
        return 6, ports + numbers + struct.pack("!BBHHH", words << 4, flags, 1000, 0, 0) + extra + payload
    if kind == 3:
        ports = (ports, ports[:2] + b"\0\x35", b"\x01\xbb" + ports[2:])[draw(0, 2)]  # any, to DNS, from QUIC
        return 17, ports + struct.pack("!HH", 8 + len(payload), 0) + payload
    if kind == 4:  # the protocol is the IP version's: see shape()
        echo = draw(0, 1)
        return 1, struct.pack("!BBHHH", (8, 0)[echo], 0, 0, draw(0, 65535), draw(0, 65535)) + payload
    if kind == 5:
        return 132, ports + struct.pack("!II", draw(0, 2**32 - 1), 0) + b"\x03\0\0\x10" + bytes(12)
    if kind == 6:
        return 1, struct.pack("!BBHHH", (3, 11)[draw(0, 1)], 0, 0, 0, 0) + bytes(28)
    return (47, 50, 103, 253)[draw(0, 3)], payload + bytes(8)


def shape(draw: Any) -> Shape:
    """Any of the frames that an interface may see, drawn by ``draw(low, high)``."""
    ipv6 = bool(draw(0, 1))
    protocol, message = transport(draw)
    if protocol == 1 and ipv6:
        protocol, message = 58, bytes([{8: 128, 0: 129, 3: 1, 11: 3}[message[0]]]) + message[1:]
    tags = tuple(
        ((0x88A8, 0x8100)[draw(0, 1)] if n == 0 else 0x8100, draw(0, 7) << 13 | draw(1, 4094))
        for n in range((0, 0, 0, 1, 2)[draw(0, 4)])
    )
    chain: tuple[tuple[int, int], ...] = ()
    if ipv6 and draw(0, 1):
        kinds = ((0, 60, 43, 51), (60, 43), (51,), (0,), (60, 60, 51))[draw(0, 4)]
        # An AH ends at a multiple of 8 bytes, and a routing header of type 0 has whole addresses.
        units = {51: (2, 4, 6), 43: (0, 2, 4)}
        chain = tuple((kind, units.get(kind, (0, 1, 3))[draw(0, 2)]) for kind in kinds)
    # The ports of SCTP are in its first eight bytes; scapy looks at no header of it that is cut.
    fragment = 8 * draw(2 if protocol == 132 else 1, 3) if draw(0, 3) == 0 and len(message) > 8 else 0
    if ipv6:
        source, target = (b"\xfd" + bytes(draw(0, 255) for _ in range(15)) for _ in range(2))
    else:
        mapped = bytes(10) + b"\xff\xff"
        source, target = (mapped + bytes((10, draw(0, 255), draw(0, 255), draw(1, 254))) for _ in range(2))
    return Shape(
        ipv6, protocol, message, tags, 0 if ipv6 else (0, 0, 1, 10)[draw(0, 3)], chain, fragment,
        draw(0, 2**32 - 1), source, target, (0, 0, 4, 46)[draw(0, 3)],
        ("", "", "", "pppoe", "mpls")[draw(0, 4)], tuple(draw(16, 2**20 - 1) for _ in range(draw(1, 4))),
        packets.Tunnel(
            packets.TUNNELS[draw(0, 5)], draw(1, 2**24 - 1), draw(0, 7), OUTSIDE[draw(0, 1)]
        ) if draw(0, 1) else None,
    )  # fmt: skip


def real_frames(count: int, seed: int = 7) -> list[bytes]:
    """As many different valid frames, always the same, and one of ARP."""
    numbers = random.Random(seed)
    found = [MAC + b"\x08\x06" + bytes(Ether() / ARP())[14:].ljust(46, b"\0")]
    while len(found) < count:
        found += shape(numbers.randint).frames()
    return found[:count]


# --- the reference ------------------------------------------------------------------------------------------

_EXTENSIONS = (IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt, IPv6ExtHdrRouting, AH)


@dataclass(frozen=True)
class Seen:
    """What scapy makes of a frame: None for the ports where there is no transport header."""

    protocol: int
    source: bytes
    target: bytes
    ports: tuple[int, int] | None
    vlans: tuple[int, ...]
    datagram: tuple[Any, ...] | None = None  # what its fragments have in common
    later: bool = False
    tunnel: tuple[str, int] = ("", 0)  # what it is in, and the number of that
    outside: int = 0  # protocol of the tunnel's own packet, or its own


def seen_by_scapy(frame: bytes) -> Seen:
    """Addresses, protocol, ports, tags, fragments and tunnel, by scapy's dissection alone."""
    whole = Ether(frame)
    vlans = []
    layer = whole.payload
    while isinstance(layer, Dot1Q | Dot1AD):
        vlans.append(layer.vlan)
        layer = layer.payload
    wrap = ("", 0)
    if isinstance(layer, PPPoE):
        assert isinstance(layer.payload, PPP)
        layer = layer.payload.payload
        wrap = ("pppoe", 0)
    while isinstance(layer, MPLS):
        layer = layer.payload
        wrap = ("mpls", 0)
    seen, top = dissected(layer)
    seen = replace(seen, vlans=tuple(vlans), tunnel=wrap, outside=seen.protocol)
    tunnel, inside = entered(top) if not seen.datagram else (("", 0), None)
    if inside is not None:
        seen = replace(dissected(inside)[0], vlans=tuple(vlans), tunnel=tunnel, outside=seen.protocol)
    return seen


def entered(layer: Any) -> tuple[tuple[str, int], Any]:
    """Which tunnel the payload of an IP packet is, and the IP packet inside; None where there is none."""
    if isinstance(layer, IP | IPv6):
        return ("ipip", 0), layer
    if isinstance(layer, GRE):
        kind, inside = ("gre", layer.key or 0), layer.payload
    elif isinstance(layer, UDP) and isinstance(layer.payload, VXLAN | GENEVE):
        kind = "vxlan" if isinstance(layer.payload, VXLAN) else "geneve"
        kind, inside = (kind, layer.payload.vni), layer.payload.payload
    else:
        return ("", 0), None
    inside = inside.payload if isinstance(inside, Ether) else inside
    return kind, inside if isinstance(inside, IP | IPv6) else None


def dissected(layer: Any) -> tuple[Seen, Any]:
    """An IP packet by itself, and the layer above it."""
    source, target = (_packed(layer.src), _packed(layer.dst))
    datagram, later = None, False
    if isinstance(layer, IP):
        protocol = layer.proto
        if layer.frag or layer.flags.MF:
            datagram, later = (source, target, protocol, layer.id), layer.frag > 0
    else:
        assert isinstance(layer, IPv6)
        protocol = layer.nh
        while isinstance(layer.payload, (*_EXTENSIONS, IPv6ExtHdrFragment)):
            layer = layer.payload
            protocol = layer.nh
            if isinstance(layer, AH):  # behind which scapy knows less than behind IPv6's own headers
                padding = layer[Padding].load if Padding in layer else b""
                rest = bytes(layer.payload).removesuffix(padding)
                layer = IPv6(bytes(IPv6(nh=protocol, plen=len(rest))) + rest)
            if isinstance(layer, IPv6ExtHdrFragment) and (layer.offset or layer.m):
                datagram, later = (source, target, protocol, layer.id), layer.offset > 0
    top = layer.payload
    ports = None
    if not later:
        if isinstance(top, TCP | UDP | SCTP):
            ports = (top.sport, top.dport)
        elif isinstance(top, ICMPv6EchoRequest | ICMPv6EchoReply) or (
            isinstance(top, ICMP) and top.type in (0, 8)
        ):
            ports = (top.id, top.id)
    return Seen(protocol, source, target, ports, (), datagram, later), top


def _packed(text: str) -> bytes:
    address = ipaddress.ip_address(text)
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def flow_key(seen: Seen, ports: tuple[int, int], direction: int) -> bytes:
    """struct flow_key (bpf_src/flows/flow.h)."""
    vlans = (*seen.vlans, 0, 0)
    ends = [(seen.source, ports[0]), (seen.target, ports[1])]
    (local, local_port), (remote, remote_port) = ends if direction == OUT else ends[::-1]
    packed = struct.pack("=HHI", local_port, remote_port, seen.protocol | vlans[0] << 8 | vlans[1] << 20)
    return local + remote + packed + struct.pack("=II", TUNNELS.index(seen.tunnel[0]), seen.tunnel[1])


def looked_up(flows: Program, key: bytes) -> np.ndarray[Any, Any]:
    """A flow's bytes and packets so far, received and sent: zeros where there is no such flow."""
    value = np.zeros((), flows.layouts["flows"].value)
    syscall.map_lookup(flows.fd("flows"), key, ctypes.addressof(ctypes.c_char.from_buffer(value.data)))
    return np.array([value["dir"]["bytes"], value["dir"]["packets"]])


def run_once(program: Program, frame: bytes, direction: int) -> None:
    verdict, after, _ = syscall.test_run(program.fds[direction], frame)
    assert verdict == UNSPEC
    assert after == frame


# --- claims -------------------------------------------------------------------------------------------------

EXAMPLES = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
NUMBERS = st.randoms(use_true_random=False)
_fresh = itertools.count(1)


def fresh(drawn: Shape) -> Shape:
    """The same between two hosts that have not been seen yet."""
    number = next(_fresh)
    if drawn.ipv6:
        return replace(drawn, source=drawn.source[:8] + struct.pack("!Q", number))
    return replace(drawn, source=drawn.source[:12] + struct.pack("!I", 0x0A000000 | number))


@EXAMPLES
@given(numbers=NUMBERS)
def test_a_valid_packet_is_counted_as_what_scapy_says_it_is(
    plain: dict[str, Program], numbers: random.Random
) -> None:
    """Its flow by addresses, ports, protocol and tags; bytes and packets; fragments with their first one.

    Each frame passes both ways before the next comes, as on loopback.
    """
    flows, throughput = plain["flows"], plain["throughput"]
    known: dict[Any, tuple[int, int]] = {}
    for frame in fresh(shape(numbers.randint)).frames():
        seen = seen_by_scapy(frame)
        ports = seen.ports or (0, 0)
        if seen.datagram:
            ports = known.get(seen.datagram, (0, 0)) if seen.later else known.setdefault(seen.datagram, ports)
        for direction in (IN, OUT):
            key = flow_key(seen, ports, direction)
            before, fragments = looked_up(flows, key), throughput.total("traffic", "fragments", direction)
            protocols = throughput.total("traffic", "protocols", direction)
            run_once(flows, frame, direction)
            run_once(throughput, frame, direction)
            counted = looked_up(flows, key) - before
            assert counted[:, direction].tolist() == [len(frame), 1], (seen, frame.hex())
            assert counted[:, 1 - direction].tolist() == [0, 0]
            protocols = throughput.total("traffic", "protocols", direction) - protocols
            assert {n: protocols[n] for n in np.flatnonzero(protocols)} == {seen.outside: len(frame)}
            fragments = throughput.total("traffic", "fragments", direction) - fragments
            assert fragments == (seen.datagram is not None and seen.tunnel[0] in TUNNELS[:3])


@EXAMPLES
@given(numbers=NUMBERS)
def test_what_is_cut_off_is_not_made_up(plain: dict[str, Program], numbers: random.Random) -> None:
    """Within the IP header: no flow, and the bytes are nobody's.  Behind it: a flow, and no ports out of thin air."""
    flows, throughput = plain["flows"], plain["throughput"]
    # Behind a tag, else TEST_RUN itself refuses the shortest ones.
    drawn = replace(
        fresh(shape(numbers.randint)),
        chain=(),
        fragment=0,
        padding=0,
        tags=((0x8100, 42),),
        wrap="",
        tunnel=None,
    )
    (frame,) = drawn.frames()
    header = 18 + (40 if drawn.ipv6 else 20 + 4 * drawn.options)
    least = header + {6: 20}.get(drawn.protocol, 8)
    cut = frame[: numbers.randint(18, min(least, len(frame)) - 1)]
    seen = seen_by_scapy(frame)
    key = flow_key(seen, (0, 0), IN)
    before = looked_up(flows, key), flows.total("counters", "untracked")
    protocols = throughput.total("traffic", "protocols", IN)
    run_once(flows, cut, IN)
    run_once(throughput, cut, IN)
    counted = (looked_up(flows, key) - before[0])[:, IN].tolist()
    untracked = flows.total("counters", "untracked") - before[1]
    protocols = throughput.total("traffic", "protocols", IN) - protocols
    whole = len(cut) >= 18 + (40 if drawn.ipv6 else 20)
    assert counted == ([len(cut), 1] if whole else [0, 0]), cut.hex()
    assert untracked == (not whole)
    assert protocols[seen.protocol if whole else BROKEN_SLOT] == len(cut) == protocols.sum()


@EXAMPLES
@given(numbers=NUMBERS)
def test_padding_is_no_transport_header(plain: dict[str, Program], numbers: random.Random) -> None:
    """An IP packet that ends with its header, in a frame that is longer: the bytes behind it are not its ports."""
    flows = plain["flows"]
    drawn = fresh(shape(numbers.randint))
    drawn = replace(drawn, protocol=(6, 17)[numbers.randint(0, 1)], transport=b"", chain=(), fragment=0)
    (frame,) = replace(drawn, padding=0).frames()
    frame += bytes(numbers.randint(1, 255) for _ in range(40))
    if drawn.ipv6:  # its length 0 is a jumbogram's: a byte of payload, then
        at = len(frame) - 40 - 40 + 4
        frame = frame[:at] + b"\0\1" + frame[at + 2 :]
    run_once(flows, frame, IN)
    counted = looked_up(flows, flow_key(seen_by_scapy(frame[:-40]), (0, 0), IN))
    assert counted[:, IN].tolist() == [len(frame), 1], frame.hex()


@EXAMPLES
@given(numbers=NUMBERS, segments=st.integers(0, 65535), size=st.integers(1, 65535))
def test_a_packet_of_many_segments_is_as_many_bytes(
    bare: dict[str, Program], numbers: random.Random, segments: int, size: int
) -> None:
    """Each further segment has the headers again; what has no transport header to repeat is one packet."""
    drawn = replace(fresh(shape(numbers.randint)), fragment=0, padding=0, tunnel=None)
    (frame,) = drawn.frames()
    if numbers.randint(0, 3) == 0:
        frame = frame[: numbers.randint(18, len(frame))]
        if frame[12:14] not in (b"\x81\0", b"\x88\xa8"):
            frame = frame[:12] + b"\x81\0\0\x2a" + frame[12:]
        headers = None
    else:
        behind = len(frame) - len(drawn.transport)
        length = {6: (drawn.transport[12:13] or b"\0")[0] // 16 * 4, 17: 8}.get(drawn.protocol, 0)
        headers = behind + length
    context = bytearray(192)  # struct __sk_buff: gso_segs at 164, gso_size at 176
    struct.pack_into("=I", context, 164, segments)
    struct.pack_into("=I", context, 176, size)
    throughput = bare["throughput"]
    before = [throughput.total("traffic", name, OUT) for name in ("bytes", "packets")]
    verdict, after, _ = syscall.test_run(throughput.fds[OUT], frame, context=bytes(context))
    assert (verdict, after) == (UNSPEC, frame)
    count, number = (
        int(throughput.total("traffic", name, OUT) - old)
        for name, old in zip(("bytes", "packets"), before, strict=True)
    )
    if headers is not None:
        many = segments or max(-(-(len(frame) - headers) // size), 1)
        assert (count, number) == (len(frame) - 14 + max(many - 1, 0) * (headers - 14), max(many, 1))
    assert len(frame) - 14 <= count <= len(frame) - 14 + 65535 * 12400


def test_what_is_no_ip_is_named(plain: dict[str, Program]) -> None:
    """By its EtherType, or by what PPPoE and MPLS carry; it belongs to no flow, and is no loss."""
    lcp = struct.pack("!BBHHHBBH", 0x11, 0, 77, 6, 0xC021, 9, 1, 4)
    labels = [struct.pack("!I", 16 << 12 | bottom << 8 | 64) for bottom in (0, 1)]
    frames = {
        256: b"\x08\x06" + bytes(28),
        257: b"\x22\xf0" + bytes(40),  # AVTP
        258: b"\x88\xcc" + bytes(40),
        259: b"\0\x26\x42\x42\x03" + bytes(35),  # spanning tree
        260: b"\x88\x64" + lcp + bytes(40),
        261: b"\x88\x47" + labels[1] + bytes(4) + bytes(40),  # a pseudowire's control word (RFC 4385)
        262: b"\x08\0\x35" + bytes(40),
    }
    more = {
        260: b"\x88\x63\x11\x09" + bytes(40),
        261: b"\x88\x47" + 4 * labels[0] + labels[1] + b"\x45" + bytes(40),
    }
    flows, throughput = plain["flows"], plain["throughput"]
    untracked = flows.total("counters", "untracked")
    for slot, frame in (*frames.items(), *more.items()):
        before = throughput.total("traffic", "protocols", IN)
        run_once(throughput, MAC + frame, IN)
        run_once(flows, MAC + frame, IN)
        counted = throughput.total("traffic", "protocols", IN) - before
        assert {n: counted[n] for n in np.flatnonzero(counted)} == {slot: len(MAC + frame)}
    assert flows.total("counters", "untracked") - untracked == 1  # the broken one


def fuzz(corpus: Path, count: int, fds: Sequence[int], timeout: float) -> dict[str, Any]:
    """What `lab/fuzz.c` answers: `count` packets made of the corpus, or the corpus itself (0)."""
    argv = [build.program("fuzz"), str(corpus), str(count), str(SEED), str(min(os.cpu_count() or 1, 8))]
    argv += map(str, fds)
    result = subprocess.run(argv, pass_fds=fds, timeout=timeout, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def assert_harmless(found: dict[str, Any], packets_sent: int, programs_run: int) -> None:
    assert found["first"] is None, found
    assert found["runs"] == packets_sent * programs_run
    assert [found[name] for name in ("errors", "verdicts", "changed", "marked")] == [0] * 4


@pytest.fixture(scope="module")
def corpus() -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(suffix=".corpus") as file:
        for frame in real_frames(400):
            file.write(struct.pack("=III", len(frame), 0, 0) + frame)
        file.flush()
        yield Path(file.name)


@pytest.mark.time_limit(600)
def test_a_million_malformed_packets_pass_as_if_nobody_looked(cache: Path, corpus: Path) -> None:
    """Every TC program: no error, the verdict "next", the packet unchanged; and every byte of them is counted once."""
    with programs(cache, AS_SKB) as made:
        fds = [fd for program in made.values() for fd in program.fds.values()]
        assert len(fds) >= 4
        found = fuzz(corpus, PACKETS, fds, timeout=540)
        assert_harmless(found, PACKETS, len(fds))
        assert all(size > PACKETS // 100 for size in found["sizes"])  # short ones and long ones
        for direction in (IN, OUT):
            traffic = {
                name: made["throughput"].total("traffic", name, direction)
                for name in ("bytes", "packets", "protocols", "fragments")
            }
            assert traffic["bytes"] == traffic["protocols"].sum() == found["bytes"]
            assert traffic["packets"] == PACKETS
            # It was a mixture: all kinds of packet, and not only nonsense.
            for slot in (OTHER_SLOT, BROKEN_SLOT):
                assert traffic["protocols"][slot] > found["bytes"] // 100
            assert sum(traffic["protocols"][n] > 0 for n in range(256)) > 200
            assert traffic["fragments"] > PACKETS // 100


@pytest.mark.parametrize("counting", [Counting.SKB, Counting.WIRE | Counting.BARE])
def test_malformed_packets_are_the_same_to_all_programs(
    cache: Path, corpus: Path, counting: Counting
) -> None:
    """The flows have what the interface has, less what is no IP; with segments and without the link header, too."""
    count = min(max(PACKETS // 40, 1), 2500)
    config = Config(ifindex=1, count_in=counting, count_out=counting)
    with programs(cache, config, max_flows=max(8 * count, 1 << 14)) as made:  # none is evicted
        fds = [fd for program in made.values() for fd in program.fds.values()]
        assert_harmless(fuzz(corpus, count, fds, timeout=120), count, len(fds))
        traffic = [made["throughput"].total("traffic", "protocols", direction) for direction in (IN, OUT)]
        _, flows = made["flows"].read("flows")
        counters = {
            name: int(made["flows"].total("counters", name))
            for name in ("untracked", "created", "replaced", "fragment_bytes")
        }
        assert counters["untracked"] > count // 100
        in_flows = int(flows["dir"]["bytes"].sum()) + counters["fragment_bytes"]
        in_ip = int(sum(each[:ARP_SLOT].sum() for each in traffic))
        assert counters["replaced"] == 0  # of so few; one that is replaced takes its bytes with it
        assert in_flows == in_ip
        assert len(flows) == counters["created"] - counters["replaced"]
        segmented = made["throughput"].total("traffic", "bytes", OUT)
        assert segmented < 1 << 50


def test_behind_a_filter_it_is_the_same(cache: Path, corpus: Path) -> None:
    """A filter is compiled into the programs: what it refuses is not counted, and nothing else changes."""
    count = max(PACKETS // 20, 1)
    frames = real_frames(400)
    with programs(cache, AS_SKB, FILTER) as made:
        filtered = [made[name] for name in made if takes_filter(name)]
        assert len(filtered) >= 2
        fds = [fd for program in filtered for fd in program.fds.values()]
        assert_harmless(fuzz(corpus, 0, fds, timeout=60), len(frames), len(fds))
        accepted = [frame for frame in frames if scapy_accepts(frame)]
        assert 50 < len(accepted) < 350
        for direction in (IN, OUT):
            totals = [made["throughput"].total("traffic", n, direction) for n in ("packets", "bytes")]
            assert totals == [len(accepted), sum(map(len, accepted))]
        assert_harmless(fuzz(corpus, count, fds, timeout=120), count, len(fds))


def scapy_accepts(frame: bytes) -> bool:
    """FILTER, by hand over scapy's dissection.

    tcpdump's `tcp` and `udp port` look behind the fixed IPv6 header only, at untagged frames only until `vlan` comes,
    and at first fragments only.
    """
    whole = Ether(frame)
    if whole.type in (0x8100, 0x88A8):
        return bool(whole.payload.vlan == 42)
    if whole.type not in (0x0800, 0x86DD):
        return False
    layer = whole.payload
    if isinstance(layer, IPv6):
        nh = layer.nh
        fragment = layer.payload if isinstance(layer.payload, IPv6ExtHdrFragment) else None
        return not (nh == 58 or (fragment is not None and fragment.nh == 58))
    if layer.proto == 6:
        return True
    seen, _ = dissected(layer)
    return layer.proto == 17 and not seen.later and seen.ports is not None and 53 in seen.ports


@pytest.mark.parametrize("l2_len", [0, 2])
def test_without_a_link_header_it_is_the_same(cache: Path, corpus: Path, l2_len: int) -> None:
    """As on tun and wg: the programs begin to read where the frame begins, with whatever that is."""
    count = max(PACKETS // 40, 1)
    with programs(cache, replace(AS_SKB, l2_len=l2_len)) as made:
        fds = [fd for program in made.values() for fd in program.fds.values()]
        assert_harmless(fuzz(corpus, count, fds, timeout=120), count, len(fds))
        assert made["throughput"].total("traffic", "packets", IN) == count


def test_the_driver_notices_what_a_program_does(corpus: Path) -> None:
    """Three programs that are not harmless: one drops, one marks, one writes into the packet."""
    drops = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)  # r0 = TC_ACT_SHOT
    # r0 = -1 after *(u32 *)(skb + 8), its mark, = 1
    marks = struct.pack("=BBhiBBhiBBhi", 0x62, 1, 8, 1, 0xB7, 0, 0, -1, 0x95, 0, 0, 0)
    # bpf_skb_store_bytes(skb, 0, &zero, 1, 0): helper 9
    stores = struct.pack("=BBhi", 0x72, 10, -8, 0) + struct.pack("=BBhi", 0xB7, 2, 0, 0)
    stores += struct.pack("=BBhi", 0xBF, 0xA3, 0, 0) + struct.pack("=BBhi", 0x07, 3, 0, -8)
    stores += struct.pack("=BBhi", 0xB7, 4, 0, 1) + struct.pack("=BBhi", 0xB7, 5, 0, 0)
    stores += struct.pack("=BBhi", 0x85, 0, 0, 9)
    stores += struct.pack("=BBhi", 0xB7, 0, 0, -1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    for code, wrong in ((drops, "verdicts"), (marks, "marked"), (stores, "changed")):
        fd = syscall.prog_load(syscall.ProgType.SCHED_CLS, code, "harmful")
        try:
            found = fuzz(corpus, 1000, [fd], timeout=20)
        finally:
            os.close(fd)
        assert {n for n in ("errors", "verdicts", "marked", "changed") if found[n]} == {wrong}
        assert found["first"]["packet"]

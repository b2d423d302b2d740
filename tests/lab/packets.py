"""Frames made by hand, for what no socket sends: tags, fragments, chosen sequence numbers and time stamps.

Builders return bytes and compute every length and checksum. `send` puts whole frames on an interface of the
lab; `flood` does it by the hundred thousand (`flood.c`).
"""

import contextlib
import ipaddress
import json
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lab import build
from lab.core import Lab, Link
from lab.errors import LabError
from lab.namespace import Endpoint
from lab.shell import Process

ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
ETH_P_8021Q = 0x8100
ETH_P_8021AD = 0x88A8

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

FLOOD_SOURCES = "198.18.0.0/15"  # RFC 2544: for benchmarks, nobody's addresses


@dataclass(frozen=True)
class Tag:
    """One VLAN tag: number, priority, and the EtherType before it (802.1Q, or 802.1ad for an outer one)."""

    vlan: int
    priority: int = 0
    protocol: int = ETH_P_8021Q


QINQ = (Tag(100, protocol=ETH_P_8021AD), Tag(200))


def checksum(data: bytes) -> int:
    """The Internet checksum, RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(source: Endpoint, target: Endpoint, packet: bytes, *, tags: Sequence[Tag] = ()) -> bytes:
    """A frame around an IPv4 or IPv6 packet, with these tags, outermost first."""
    frame = _mac(target.mac) + _mac(source.mac)
    for tag in tags:
        frame += struct.pack("!HH", tag.protocol, tag.priority << 13 | tag.vlan)
    return frame + struct.pack("!H", ETH_P_IP if packet[0] >> 4 == 4 else ETH_P_IPV6) + packet


def ip(
    source: str,
    target: str,
    protocol: int,
    payload: bytes,
    *,
    identity: int = 0,
    flags_and_offset: int = 0,
    ttl: int = 64,
) -> bytes:
    """An IPv4 or IPv6 packet, by the addresses.

    `flags_and_offset` (IPv4): 0x2000 is MF, the offset in 8 bytes.
    """
    if ipaddress.ip_address(source).version == 6:
        header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, ttl)
        return header + _address(source) + _address(target) + payload
    length = 20 + len(payload)
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, identity, flags_and_offset, ttl, protocol, 0)
    header += _address(source) + _address(target)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def fragments(
    source: str, target: str, protocol: int, payload: bytes, *, size: int, identity: int
) -> list[bytes]:
    """Fragments, in order, of at most `size` payload bytes (a multiple of 8)."""
    if size % 8:
        raise ValueError("all fragments but the last carry a multiple of 8 bytes")
    packets = []
    for offset in range(0, len(payload), size):
        part = payload[offset : offset + size]
        more = offset + size < len(payload)
        if ipaddress.ip_address(source).version == 6:
            extension = struct.pack("!BBHI", protocol, 0, offset | more, identity)
            packets.append(ip(source, target, 44, extension + part))
        else:
            flags = offset // 8 | (0x2000 if more else 0)
            packets.append(ip(source, target, protocol, part, identity=identity, flags_and_offset=flags))
    return packets


TUNNELS = ("ipip", "gre", "gretap", "vxlan", "geneve", "geneve-ip")


@dataclass(frozen=True)
class Tunnel:
    """One of `TUNNELS`: its number, its ends, and what else its header may have.

    `flags` has bits for GRE's checksum, key and sequence number, and for VXLAN's policy and Linux's port, and says how
    many words of options Geneve has.
    """

    kind: str
    number: int = 0
    flags: int = 2
    ends: tuple[str, str] = ("172.16.0.1", "172.16.0.2")

    def around(self, packet: bytes) -> bytes:
        """The tunnel's own packet around an IP packet."""
        number, flags = self.number, self.flags
        kind = struct.pack("!H", ETH_P_IP if packet[0] >> 4 == 4 else ETH_P_IPV6)
        frame = bytes(12) + kind + packet
        if self.kind == "ipip":
            return ip(*self.ends, 4 if packet[0] >> 4 == 4 else 41, packet)
        if self.kind in ("gre", "gretap"):
            body, kind = (packet, kind) if self.kind == "gre" else (frame, b"\x65\x58")
            words = [struct.pack("!I", word) for bit, word in ((1, 0), (2, number), (4, 0)) if flags & bit]
            head = struct.pack("!H", (flags & 1) << 15 | (flags & 2) << 12 | (flags & 4) << 10)
            return ip(*self.ends, 47, head + kind + b"".join(words) + body)
        if self.kind == "vxlan":
            head = struct.pack("!BBHI", 0x88 if flags & 1 else 0x08, 0, 7 * (flags & 1), number << 8)
            return self._udp(8472 if flags & 2 else 4789, head + frame)
        body, kind = (packet, kind) if self.kind == "geneve-ip" else (frame, b"\x65\x58")
        return self._udp(
            6081, bytes([flags, 0]) + kind + struct.pack("!I", number << 8) + bytes(4 * flags) + body
        )

    def _udp(self, port: int, body: bytes) -> bytes:
        return ip(*self.ends, 17, udp(*self.ends, 50_000, port, body))


def udp(source: str, target: str, source_port: int, target_port: int, payload: bytes) -> bytes:
    """A UDP datagram (what goes into `ip` as protocol 17)."""
    datagram = struct.pack("!HHHH", source_port, target_port, 8 + len(payload), 0) + payload
    # RFC 768: a sum of zero is sent as all ones.
    return (
        datagram[:6] + struct.pack("!H", _l4_checksum(source, target, 17, datagram) or 0xFFFF) + datagram[8:]
    )


def datagram(
    at: Endpoint,
    to: Endpoint,
    ports: tuple[int, int],
    payload: bytes,
    *,
    ends: tuple[str, str] | None = None,
    tags: Sequence[Tag] = (),
) -> bytes:
    """The frame of a UDP datagram between two ends of a link, or from one address to the other of `ends`."""
    ends = ends or (at.v4, to.v4)
    return ethernet(at, to, ip(*ends, 17, udp(*ends, *ports, payload)), tags=tags)


def tcp(
    source: str,
    target: str,
    source_port: int,
    target_port: int,
    *,
    seq: int,
    ack: int = 0,
    flags: int = ACK,
    window: int = 65535,
    timestamps: tuple[int, int] | None = None,
    payload: bytes = b"",
) -> bytes:
    """A TCP segment (protocol 6). `timestamps`: (TSval, TSecr); numbers wrap at 2**32 by themselves."""
    options = b""
    if timestamps is not None:
        options = struct.pack("!BBBBII", 1, 1, 8, 10, timestamps[0] % 2**32, timestamps[1] % 2**32)
    words = (20 + len(options)) // 4
    segment = struct.pack(
        "!HHIIBBHHH", source_port, target_port, seq % 2**32, ack % 2**32, words << 4, flags, window, 0, 0
    )
    segment += options + payload
    return segment[:16] + struct.pack("!H", _l4_checksum(source, target, 6, segment)) + segment[18:]


def icmp_echo(
    source: str, target: str, identity: int, sequence: int, payload: bytes, *, reply: bool = False
) -> bytes:
    """An ICMP (protocol 1) or ICMPv6 (58) echo message, by the addresses."""
    ipv6 = ipaddress.ip_address(source).version == 6
    kind = (129 if reply else 128) if ipv6 else (0 if reply else 8)
    message = struct.pack("!BBHHH", kind, 0, 0, identity, sequence) + payload
    total = _l4_checksum(source, target, 58, message) if ipv6 else checksum(message)
    return message[:2] + struct.pack("!H", total) + message[4:]


def stranger(end: Endpoint, *, ipv6: bool = False) -> str:
    """An address of the same network that nobody has: no kernel answers crafted packets to it with a RST."""
    network, separator, host = end.address(ipv6).rpartition(":" if ipv6 else ".")
    return f"{network}{separator}{100 + int(host)}"


@dataclass(frozen=True)
class Step:
    """One frame of a conversation: where it is put in, and how long to wait before (s)."""

    at: Endpoint
    frame: bytes
    wait_s: float = 0.0


def play(lab: Lab, steps: Sequence[Step]) -> list[int]:
    """Put crafted frames in at both ends of a link, in this order.

    Returns when each was sent, in ns of CLOCK_MONOTONIC. The difference of two of these times is the RTT that
    a watcher at either end must report, but for the veth itself (some 10 us). Raises `NotOursError`.
    """
    times = []
    with contextlib.ExitStack() as stack:
        senders = {}
        for end in {step.at for step in steps}:
            lab.check(end.ns, end.name)
            sender = end.ns.socket(socket.SOCK_RAW, socket.AF_PACKET)
            senders[end] = stack.enter_context(sender)
            sender.bind((end.name, 0))
        for step in steps:
            time.sleep(step.wait_s)
            times.append(time.monotonic_ns())
            senders[step.at].send(step.frame)
    return times


def send(lab: Lab, at: Endpoint, frames: Iterable[bytes], *, interval_s: float = 0.0) -> int:
    """Put frames on an interface of the lab (`NotOursError` otherwise), evenly paced. Returns how many."""
    lab.check(at.ns, at.name)
    sent = 0
    with at.ns.socket(socket.SOCK_RAW, socket.AF_PACKET) as sender:
        sender.bind((at.name, 0))
        due = time.monotonic()
        for frame in frames:
            sender.send(frame)
            sent += 1
            due += interval_s
            time.sleep(max(0.0, due - time.monotonic()) if interval_s else 0)
    return sent


def send_gso(lab: Lab, at: Endpoint, frame: bytes, size: int) -> None:
    """Put one large IPv4 TCP frame on an interface, for the kernel or the device to cut into segments of ``size``."""
    lab.check(at.ns, at.name)
    with at.ns.socket(socket.SOCK_RAW, socket.AF_PACKET) as sender:
        sender.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
        sender.bind((at.name, 0))
        # struct virtio_net_hdr: the checksum is yet to be made, TCP over IPv4
        header = struct.pack("<BBHHHH", 1, 1, 54, size, 34, 16)
        sender.send(header + frame)


@dataclass(frozen=True)
class Flood:
    """What `flood.c` sent."""

    sent: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.sent / self.seconds


def flood(
    at: Endpoint,
    frames: Iterable[bytes],
    *,
    count: int = 0,
    per_second: int = 0,
    seconds: float = 0.0,
    flows: int = 0,
) -> Process:
    """Put frames on an interface again and again, until `count`, `seconds` or SIGTERM; `flooded` waits for its end.

    They go past the sender's own TC egress hook and qdisc. `per_second` 0: as fast as possible. `flows`: the frames'
    sources become those of so many flows out of `FLOOD_SOURCES`, in turn.
    """
    words = (count, per_second, seconds, flows)
    process = at.ns.spawn(build.program("flood"), at.name, *map(str, words))
    for frame in frames:
        process.write_line(frame.hex())
    process.close_stdin()
    return process


def flooded(process: Process, *, timeout: float = 60.0) -> Flood:
    """What it has sent, when it has ended by itself or by a signal."""
    try:
        code = process.wait(timeout=timeout)
    finally:
        process.stop()
    if code:
        raise LabError(f"flood: exit code {code}: {process.stderr}")
    return Flood(**json.loads(process.lines[-1]))


def syn_flood(
    lab: Lab, attacker: Endpoint, target: Endpoint, port: int, count: int, *, per_second: int = 0
) -> Flood:
    """`count` IPv4 SYNs to a port, each of its own source address and port."""
    lab.check(attacker.ns, attacker.name)
    ends = "198.18.0.0", target.v4
    frame = ethernet(attacker, target, ip(*ends, 6, tcp(*ends, 1024, port, seq=1, flags=SYN)))
    return flooded(flood(attacker, [frame], count=count, per_second=per_second, flows=count))


def datagram_flood(link: Link, flows: int, per_second: int, seconds: float) -> Process:
    """Datagrams of so many flows into `a`, which nobody there wants: their MAC is a stranger's."""
    ends = "198.18.0.0", "198.51.100.1"  # documentation's own: nobody answers
    frame = ethernet(
        link.b,
        replace(link.a, mac="02:00:00:00:00:99"),
        ip(*ends, 17, udp(*ends, 1024, 9, bytes(18))),
    )
    return flood(link.b, [frame], per_second=per_second, seconds=seconds, flows=flows)


def _l4_checksum(source: str, target: str, protocol: int, segment: bytes) -> int:
    if ipaddress.ip_address(source).version == 6:
        pseudo = _address(source) + _address(target) + struct.pack("!II", len(segment), protocol)
    else:
        pseudo = _address(source) + _address(target) + struct.pack("!HH", protocol, len(segment))
    return checksum(pseudo + segment)


def _address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))

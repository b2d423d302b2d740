"""How many packets reached each stage's end, by nft, the interface, a capture and the reader's bytes.

`Tally` counts while its block lasts. From the capture it follows every TCP connection as its peer could: which packets
came in ESTABLISHED, which brought new data that TCP acknowledged, which carried data for the first time.
"""

import json
import socket
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from lab.errors import LabError
from lab.namespace import Endpoint
from lab.oracle import captured, difference, netstat, sysfs
from lab.packets import ACK, FIN, RST, SYN

NOT_TAKEN = 77  # the TTL of crafted segments that TCP must not take
_HOOKS = {"ip": "prerouting", "local": "input", "forward": "forward", "sent": "postrouting"}


@dataclass(frozen=True)
class Packet:
    """A captured TCP packet, seen from the watched side; `first` is where its data begins, SYN and FIN apart."""

    inward: bool
    connection: tuple[str, int, str, int]  # local, remote
    flags: int
    first: int
    size: int
    ack: int
    ttl: int
    at_ns: int = 0


@dataclass
class Connection:
    """What its packets did, in their order."""

    passive: bool | None = None
    established: bool = False
    closing: bool = False  # one side has sent its FIN, or there was a reset
    base: int | None = None  # where the peer's data begins
    taken: int = 0  # how far TCP has acknowledged it
    sent: int | None = None
    in_established: int = 0
    first_sent: int = 0
    data: list[tuple[int, int]] = field(default_factory=list)


def _follow(packets: Iterable[Packet]) -> dict[tuple[str, int, str, int], Connection]:
    connections: dict[tuple[str, int, str, int], Connection] = defaultdict(Connection)
    for p in packets:
        c = connections[p.connection]
        if p.flags & SYN and c.passive is None:
            c.passive = p.inward
        if p.inward:
            _inward(c, p)
        else:
            _outward(c, p)
    return connections


def _inward(c: Connection, p: Packet) -> None:
    if p.flags & SYN:
        c.base = p.first
    if p.size and p.ttl != NOT_TAKEN and c.base is not None:
        first = (p.first - c.base) & 0xFFFFFFFF
        c.data.append((first, first + p.size))
    if p.flags & SYN:
        c.established |= not c.passive
    elif not c.established:
        c.established = True  # the hand-shake's last ACK itself came before
    elif not c.closing:
        c.in_established += 1
        c.closing = bool(p.flags & (FIN | RST))


def _outward(c: Connection, p: Packet) -> None:
    if p.flags & ACK and not p.flags & RST and c.base is not None:
        acknowledged = (p.ack - c.base) & 0xFFFFFFFF
        if acknowledged < 1 << 31:
            c.taken = max(c.taken, acknowledged)
    if p.flags & SYN:
        c.sent = p.first
    elif p.size and c.sent is not None and (p.first + p.size - c.sent) & 0xFFFFFFFF < 1 << 31:
        c.first_sent += (p.first + p.size) & 0xFFFFFFFF != c.sent
        c.sent = (p.first + p.size) & 0xFFFFFFFF
    c.closing |= bool(p.flags & (FIN | RST))


def fresh(segments: Sequence[tuple[int, int]]) -> list[int]:
    """The ends of those segments that brought a byte which was not there before."""
    ends: list[int] = []
    there: list[tuple[int, int]] = []
    for first, end in segments:
        if any(a <= first and end <= b for a, b in there):
            continue
        ends.append(end)
        apart = [(a, b) for a, b in there if b < first or a > end]
        joined = [(a, b) for a, b in there if not (b < first or a > end)]
        there = [*apart, (min([first, *(a for a, _ in joined)]), max([end, *(b for _, b in joined)]))]
    return ends


def tcp_packets(captured: Iterable[tuple[int, bytes]], macs: Sequence[str]) -> Iterator[Packet]:
    """Of frames with TCP over IPv4; outward is what these addresses sent."""
    ours = {bytes.fromhex(mac.replace(":", "")) for mac in macs}
    for at_ns, frame in captured:
        inward = frame[6:12] not in ours
        header = (frame[14] & 15) * 4
        (length,) = struct.unpack_from(">H", frame, 16)
        source, target = (".".join(map(str, frame[i : i + 4])) for i in (26, 30))
        ports = struct.unpack_from(">HH", frame, 14 + header)
        sequence, ack = struct.unpack_from(">II", frame, 18 + header)
        flags = frame[14 + header + 13]
        size = length - header - (frame[14 + header + 12] >> 4) * 4
        ends = ((source, ports[0]), (target, ports[1]))
        local, remote = ends[::-1] if inward else ends
        first = (sequence + bool(flags & SYN)) & 0xFFFFFFFF
        yield Packet(inward, (*local, *remote), flags, first, size, ack, frame[22], at_ns)


@contextmanager
def segments(at: Endpoint, port: int) -> Iterator[list[tuple[int, int, int]]]:
    """When the segments with data from this port passed, by the monotonic clock, and their first and last place in the
    stream, which begins with the SYN or with the first of them; there when the block has ended."""
    found: list[tuple[int, int, int]] = []
    offset = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.monotonic_ns()
    with captured(at, f"tcp src port {port}") as frames:
        yield found
    moved = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.monotonic_ns() - offset
    if abs(moved) > 100_000:
        raise LabError(f"the clock was set by {moved} ns")
    base = None
    for packet in tcp_packets(frames, (at.mac,)):
        if packet.flags & SYN or (packet.size and base is None):
            base = packet.first
        if packet.size and base is not None:
            first = (packet.first - base) & 0xFFFFFFFF
            found.append((packet.at_ns - offset, first, first + packet.size))


class Tally:
    """Counts at an interface; `above`: devices upon it by which its packets come to IP.

    Its readers of TCP call `recv`, those of UDP count in `datagrams`. `local`: connections end here.
    """

    def __init__(self, at: Endpoint, *above: str, local: bool = True) -> None:
        self.at = at
        self.local = local
        self.names = (at.name, *above)
        self.read: Counter[tuple[int, int]] = Counter()  # bytes, by both ports: ours, the peer's
        self.datagrams = 0
        self.connections: dict[tuple[str, int, str, int], Connection] = {}
        self.packets: dict[str, int] = {}
        self.device: dict[str, int] = {}
        self.counters: dict[str, int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        paths = [f"/sys/class/net/{name}/address" for name in self.names]
        self._macs = self.at.ns.run("cat", *paths).stdout.split()
        names = ", ".join(self.names)
        rules = ["add table inet tally"]
        for name, hook in _HOOKS.items():
            side = "oifname" if hook == "postrouting" else "iifname"
            rules += [
                f"add counter inet tally n_{name}",
                f"add counter inet tally n_{name}_udp",
                f"add chain inet tally {hook} {{ type filter hook {hook} priority -500; }}",
                f"add rule inet tally {hook} {side} {{ {names} }} counter name n_{name}",
                f"add rule inet tally {hook} {side} {{ {names} }} meta l4proto udp counter name n_{name}_udp",
            ]
        self.at.ns.run("nft", "-f", "-", stdin="\n".join(rules) + "\n")
        self._frames = self._stack.enter_context(captured(self.at, "ip and tcp"))
        self._before = sysfs(self.at), netstat(self.at.ns)
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._stack.__exit__(*error)
            if error[0] is not None:
                return
            if self.local:
                self.connections = _follow(tcp_packets(self._frames, self._macs))
            listed = json.loads(
                self.at.ns.run("nft", "-j", "list", "counters", "table", "inet", "tally").stdout
            )
            self.packets = {
                entry["counter"]["name"].removeprefix("n_"): entry["counter"]["packets"]
                for entry in listed["nftables"]
                if "counter" in entry
            }
            self.device = difference(sysfs(self.at), self._before[0])
            self.counters = difference(netstat(self.at.ns), self._before[1])
        finally:
            self.at.ns.run("nft", "delete", "table", "inet", "tally")

    def recv(self, end: socket.socket, size: int = 1000, flags: int = 0) -> bytes:
        """What a reader of the watched side gets from this socket."""
        data = end.recv(size, flags)
        self.read[end.getsockname()[1], end.getpeername()[1]] += len(data)
        return data

    def expected(self) -> dict[tuple[str, str], int]:
        """How many packets came to each stage's end."""
        followed = self.connections.items()
        ends = {key: [end for end in fresh(c.data) if end <= c.taken] for key, c in followed}
        refused = self.counters["UdpRcvbufErrors"] + self.counters["UdpInCsumErrors"]
        return {
            ("rx", "stack"): self.device["rx_packets"],
            ("rx", "ip"): self.packets["ip"],
            ("rx", "local"): self.packets["local"],
            ("rx", "forward"): self.packets["forward"],
            ("rx", "transport"): sum(c.in_established for _, c in followed),
            ("rx", "socket"): sum(map(len, ends.values())) + self.packets["local_udp"] - refused,
            ("rx", "application"): self.datagrams
            + sum(sum(end <= self.read[key[1], key[3]] for end in found) for key, found in ends.items()),
            # Below another device the way out begins at its own queue.
            ("tx", "application"): 0 if self.names[1:] else sum(c.first_sent for _, c in followed),
            ("tx", "ip"): self.packets["sent"],
            ("tx", "qdisc"): self.device["tx_packets"],
            ("tx", "driver"): self.device["tx_packets"],
        }

"""How many packets reached each stage's end, counted without nettop: nft, the interface, a capture, the reader's bytes.

`Tally` counts while its block lasts. From the capture it follows every TCP connection as its peer could: which packets
came in ESTABLISHED, which brought new data that TCP acknowledged, which carried data for the first time.
"""

import json
import socket
import struct
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.errors import LabError
from lab.namespace import Endpoint
from lab.oracle import difference, netstat, sysfs
from lab.packets import ACK, FIN, RST, SYN
from lab.shell import Process, eventually

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


def read_capture(capture: bytes, macs: Sequence[str]) -> Iterator[Packet]:
    """TCP over IPv4 from a pcap with ns and Ethernet headers; outward is what these addresses sent."""
    magic, link = struct.unpack_from("<I16xI", capture)
    if (magic, link) != (0xA1B23C4D, 1):
        raise LabError("not a capture of Ethernet frames with nanoseconds")
    at, ours = 24, {bytes.fromhex(mac.replace(":", "")) for mac in macs}
    while at < len(capture):
        seconds, ns, caught, _ = struct.unpack_from("<IIII", capture, at)
        frame = capture[at + 16 : at + 16 + caught]
        at += 16 + caught
        inward = frame[6:12] not in ours
        header = (frame[14] & 15) * 4
        (length,) = struct.unpack_from(">H", frame, 16)
        source, target = (".".join(map(str, frame[i : i + 4])) for i in (26, 30))
        ports = struct.unpack_from(">HH", frame, 14 + header)
        sequence, ack = struct.unpack_from(">II", frame, 18 + header)
        flags = frame[14 + header + 13]
        size = length - header - (frame[14 + header + 12] >> 4) * 4
        ends = (
            ((target, ports[1]), (source, ports[0])) if inward else ((source, ports[0]), (target, ports[1]))
        )
        first = (sequence + bool(flags & SYN)) & 0xFFFFFFFF
        yield Packet(inward, (*ends[0], *ends[1]), flags, first, size, ack, frame[22], seconds * 10**9 + ns)


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
        self._directory = tempfile.TemporaryDirectory()
        self._process: Process

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
        self._file = Path(self._directory.name) / "packets"
        self._process = self.at.ns.spawn(
            "tcpdump", "-i", self.at.name, "-nn", "-s", "128", "-B", "16384", "--immediate-mode", "-Z", "root",
            "--time-stamp-precision=nano", "-w", str(self._file), "ip and tcp",
        )  # fmt: skip
        if not eventually(lambda: "listening on" in self._process.stderr):
            raise LabError(f"tcpdump: {self._process.stderr}")
        self._before = sysfs(self.at), netstat(self.at.ns)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        time.sleep(0.3)
        self._process.stop(2)
        try:
            if kind is not None:
                return
            if "\n0 packets dropped by kernel" not in self._process.stderr:
                raise LabError(f"tcpdump: {self._process.stderr}")
            if self.local:
                self.connections = _follow(read_capture(self._file.read_bytes(), self._macs))
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
            self._directory.cleanup()

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

"""What the frame says of throughput."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nettop.core.fields import COUNT, Codec, Json, Part, derived, field
from nettop.core.frame import Section

PROTO_SLOTS, PROTO_ARP, PROTO_OTHER = 263, 256, 257
PROTO_LLDP, PROTO_LLC, PROTO_PPPOE, PROTO_MPLS, PROTO_BROKEN = 258, 259, 260, 261, 262
# Upper bounds in bytes of the size classes; the last is open (a jumbo frame of 9000 bytes and its header is 9018).
SIZES = (64, 128, 256, 512, 1024, 1518, 9018, 65550)
# What is in no flow, since it is no IP.
BEYOND_IP = {
    PROTO_ARP: "arp",
    PROTO_OTHER: "other",
    PROTO_LLDP: "lldp",
    PROTO_LLC: "llc",
    PROTO_PPPOE: "pppoe",
    PROTO_MPLS: "mpls",
    PROTO_BROKEN: "broken-ip",
}
_NO_FLOW = frozenset(BEYOND_IP.values())


def _sizes(value: Json) -> tuple[int, ...]:
    found = {COUNT.read(upper): COUNT.read(count) for upper, count in value}
    return tuple(found.get(upper, 0) for upper in SIZES)


_BY_SIZE = Codec(
    lambda counts: [[upper, count] for upper, count in zip(SIZES, counts, strict=True)],
    _sizes,
    lambda: {
        "type": "array",
        "items": {
            "type": "array",
            "prefixItems": [COUNT.schema(), COUNT.schema()],
            "items": False,
            "minItems": 2,
        },
    },
)


@dataclass(frozen=True, slots=True)
class Direction(Part):
    """One direction of the interface in the interval."""

    bytes: int = field(
        "with the link header, counted by TC as the interface's own counters count them", "bytes", default=0
    )
    packets: int = field("counted by TC as the interface's own counters count them", "packets", default=0)
    segments: int = field(
        "packets as on the wire: a GSO or GRO packet stands for its segments", "packets", default=0
    )
    fragments: int = field("IP fragments among the packets", "packets", default=0)
    peak_bits_per_s: int | None = field(
        "the busiest 1.05 ms (2^20 ns) of the interval", "bit/s", default=None
    )
    sizes: tuple[int, ...] = field(
        "`[upper bound in bytes, segments]` by length of frame; the last bound is open",
        default=(0,) * len(SIZES),
        codec=_BY_SIZE,
    )
    bytes_total: int | None = field(
        "the interface's own counter, netlink (IFLA_STATS64)", "bytes", default=None
    )
    packets_total: int | None = field(
        "the interface's own counter, netlink (IFLA_STATS64)", "packets", default=None
    )
    drops: int | None = field("growth of drops_total in the interval", "packets", default=None)
    errors: int | None = field("growth of errors_total in the interval", "packets", default=None)
    drops_total: int | None = field("the interface's own counter, netlink", "packets", default=None)
    errors_total: int | None = field("the interface's own counter, netlink", "packets", default=None)


@dataclass(frozen=True, slots=True)
class Share(Part):
    """What one protocol has of the bytes."""

    protocol: str = field(
        "IANA's name or `ip-N`; of what is no IP `arp`, `lldp`, `llc`, `pppoe`, `mpls`, `broken-ip`, `other`",
        privacy="harmless",
    )
    rx_bytes: int = field("received", "bytes", default=0)
    tx_bytes: int = field("sent", "bytes", default=0)


@dataclass(frozen=True, slots=True)
class InNoFlow(Part):
    """What is no IP, so that no flow has it."""

    rx_bytes: int = field("received", "bytes")
    tx_bytes: int = field("sent", "bytes")
    protocols: tuple[str, ...] = field("its protocols", privacy="harmless")


@dataclass(frozen=True, slots=True)
class Qdisc(Part):
    """The root queueing discipline, by netlink."""

    kind: str | None = field("its kind", default=None, privacy="harmless")
    drops: int | None = field("in the interval", "packets", default=None)
    backlog_bytes: int | None = field("now", "bytes", default=None)
    backlog_packets: int | None = field("now", "packets", default=None)


@dataclass(frozen=True, slots=True)
class Throughput(Section):
    """The section ``throughput``."""

    PLACE: ClassVar[str] = "throughput"
    COMPARABLE: ClassVar[bool] = True

    rx: Direction = field("received", factory=Direction)
    tx: Direction = field("sent", factory=Direction)
    speed_bits_per_s: int | None = field(
        "speed of the link by ethtool; `null` where the driver does not know", "bit/s", default=None
    )
    mtu: int | None = field("MTU of the interface", "bytes", default=None)
    protocols: tuple[Share, ...] = field("bytes by protocol, largest first", default=())
    qdisc: Qdisc = field("the root queueing discipline, by netlink", factory=Qdisc)
    kind: str = field(
        "of the device, by rtnetlink: `veth`, `bridge`, ...; empty for hardware and lo",
        default="",
        privacy="harmless",
    )
    differs: str | None = field(
        "why the interface's own counters count otherwise than `bytes` and `packets`, in words; else `null`",
        default=None,
        privacy="harmless",
    )

    @derived("what is no IP, so that no flow has it")
    def in_no_flow(self) -> InNoFlow:
        """Those of the protocols that are no IP."""
        shares = [share for share in self.protocols if share.protocol in _NO_FLOW]
        return InNoFlow(
            sum(share.rx_bytes for share in shares),
            sum(share.tx_bytes for share in shares),
            tuple(share.protocol for share in shares),
        )

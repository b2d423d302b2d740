"""Expressions of pcap's language and packets to try them on, made by the hundred; no kernel needed.

``MIX`` is one of each kind of packet; ``EXPRESSIONS`` forty expressions that part it; ``expressions()`` is a strategy
for any number of others.  ``Native`` compiles filters with the C compiler of this machine, from the same text that
the kernel's programs are made of.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from hypothesis import strategies as st

from nettop.bpf.filter import Program, to_c

MACS = b"\x02\x4e\x54\0\0\2\x02\x4e\x54\0\0\1"
BROADCAST = b"\xff" * 6 + MACS[6:]
MULTICAST = b"\x01\0\x5e\0\0\x05" + MACS[6:]


def frame(ethertype: int, payload: bytes, *tags: tuple[int, int], macs: bytes = MACS) -> bytes:
    """A frame; tags are (EtherType, TCI), outermost first."""
    head = b"".join(struct.pack("!HH", *tag) for tag in tags)
    return macs + head + struct.pack("!H", ethertype) + payload


def ends(source: str, target: str) -> bytes:
    return ip_address(source).packed + ip_address(target).packed


def v4(
    source: str,
    target: str,
    protocol: int,
    payload: bytes,
    offset: int = 0,
    options: bytes = b"",
    tos: int = 0,
) -> bytes:
    """An IPv4 packet; ``offset`` as in its header, flags and all."""
    length = 20 + len(options) + len(payload)
    head = struct.pack("!BBHHHBBH", 0x40 | 5 + len(options) // 4, tos, length, 7, offset, 64, protocol, 0)
    return head + ends(source, target) + options + payload


def v6(source: str, target: str, following: int, payload: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), following, 64) + ends(source, target) + payload


def tcp(source: int, target: int, flags: int = 0x10, payload: bytes = b"", options: bytes = b"") -> bytes:
    """A TCP segment without a checksum."""
    words = 5 + len(options) // 4
    return struct.pack("!HHIIBBHHH", source, target, 1, 2, words << 4, flags, 512, 0, 0) + options + payload


def udp(source: int, target: int, payload: bytes = b"") -> bytes:
    """A UDP datagram without a checksum."""
    return struct.pack("!HHHH", source, target, 8 + len(payload), 0) + payload


_A, _B, _C = "10.1.2.3", "10.1.9.9", "192.168.7.1"
_A6, _B6 = "fd77::1", "2001:db8::5"
_STAMP = bytes((1, 1, 8, 10)) + b"\0" * 8

MIX: tuple[bytes, ...] = (
    frame(0x0800, v4(_A, _B, 6, tcp(40000, 443, 0x02))),
    frame(0x0800, v4(_B, _A, 6, tcp(443, 40000, 0x12, options=_STAMP))),
    frame(0x0800, v4(_A, _B, 6, tcp(40000, 443, 0x18, b"GET / HTTP/1.1\r\n" * 4, _STAMP))),
    frame(0x0800, v4(_A, _B, 6, tcp(40000, 80, 0x11))),
    frame(0x0800, v4(_B, _A, 6, tcp(22, 51000, 0x04))),
    frame(0x0800, v4(_A, _C, 6, tcp(5201, 33000, 0x10, b"x" * 1400), options=b"\1" * 8)),
    frame(0x0800, v4(_A, _C, 17, udp(53, 53, b"q" * 40))),
    frame(0x0800, v4(_C, _A, 17, udp(443, 60000, b"\x40" + b"r" * 1200), tos=0xB8)),
    frame(0x0800, v4(_A, "224.0.0.251", 17, udp(5353, 5353, b"m" * 30)), macs=MULTICAST),
    frame(0x0800, v4(_A, "10.1.255.255", 17, udp(67, 68, b"d" * 240)), macs=BROADCAST),
    frame(0x0800, v4(_A, _B, 17, udp(1000, 2000, b"f" * 1432), offset=0x2000)),
    frame(0x0800, v4(_A, _B, 17, b"f" * 800, offset=180)),
    frame(0x0800, v4(_A, _B, 6, b"\x01\xbb" * 10, offset=0x2001)),
    frame(0x0800, v4(_A, _B, 1, struct.pack("!BBHHH", 8, 0, 0, 5, 1) + b"p" * 56)),
    frame(0x0800, v4(_B, _A, 1, struct.pack("!BBHHH", 0, 0, 0, 5, 1) + b"p" * 56)),
    frame(0x0800, v4(_C, _A, 1, struct.pack("!BBHHH", 3, 3, 0, 0, 0) + b"u" * 28)),
    frame(0x0800, v4(_A, _B, 132, struct.pack("!HHII", 9899, 9899, 1, 0))),
    frame(0x0800, v4(_A, _B, 47, b"\0\0\x08\0" + v4(_A, _C, 17, udp(1, 2)))),
    frame(0x0800, v4(_A, _C, 2, b"\x16\0\0\0\xe0\0\0\5")),
    frame(0x86DD, v6(_A6, _B6, 6, tcp(40001, 443, 0x02))),
    frame(0x86DD, v6(_B6, _A6, 6, tcp(443, 40001, 0x10, b"y" * 900))),
    frame(0x86DD, v6(_A6, _B6, 17, udp(53, 3000, b"z" * 100))),
    frame(0x86DD, v6(_A6, "ff02::1", 58, struct.pack("!BBHI", 135, 0, 0, 0) + b"\0" * 16)),
    frame(0x86DD, v6(_A6, _B6, 58, struct.pack("!BBHHH", 128, 0, 0, 9, 1) + b"p" * 8)),
    frame(0x86DD, v6(_A6, _B6, 44, struct.pack("!BBHI", 17, 0, 1, 77) + udp(9, 10, b"f" * 1000))),
    frame(0x86DD, v6(_A6, _B6, 44, struct.pack("!BBHI", 6, 0, 0x4D8, 77) + b"f" * 50)),
    frame(0x86DD, v6(_A6, _B6, 0, bytes((6, 0, 1, 4, 0, 0, 0, 0)) + tcp(1, 2))),
    frame(
        0x0806,
        struct.pack("!HHBBH", 1, 0x800, 6, 4, 1) + MACS[6:] + b"\x0a\1\2\3" + bytes(6) + b"\x0a\1\x09\x09",
    ),
    frame(0x0800, v4(_A, _B, 6, tcp(40000, 443, 0x10, b"t" * 20)), (0x8100, 100)),
    frame(0x0800, v4(_B, _A, 17, udp(53, 4000, b"t" * 20)), (0x8100, 0xA064)),
    frame(0x86DD, v6(_A6, _B6, 6, tcp(40001, 80, 0x10)), (0x8100, 5)),
    frame(0x0806, b"\0" * 28, (0x8100, 100)),
    frame(0x0800, v4(_A, _C, 6, tcp(40000, 22)), (0x88A8, 100), (0x8100, 200)),
    frame(0x86DD, v6(_B6, _A6, 17, udp(53, 53)), (0x88A8, 7), (0x8100, 100)),
    frame(0x8847, struct.pack("!I", 16 << 12 | 0x140) + v4(_A, _B, 6, tcp(1, 443))),
    frame(0x8863, struct.pack("!BBHH", 0x11, 9, 0, 4) + b"\1\1\0\0"),
    frame(0x8864, struct.pack("!BBHHH", 0x11, 0, 9, 42, 0x21) + v4(_A, _B, 17, udp(7, 7))),
    frame(0x88CC, b"\2\7\4" + MACS[:6] + b"\0" * 20),
    frame(0x0026, b"\x42\x42\3" + b"\0" * 35),
    frame(0x0800, b"\x45\0\0\x14"),
    frame(0x0800, v4(_A, _B, 6, tcp(40000, 443)[:3])),
    MACS + b"\x08\0",
)

EXPRESSIONS: tuple[str, ...] = (
    "ip",
    "ip6",
    "arp",
    "ip or ip6 or arp",
    "tcp",
    "udp",
    "icmp or icmp6",
    "sctp or igmp or ip proto 47",
    "port 443",
    "tcp port 443",
    "udp port 53",
    "src port 443",
    "dst port 443 and ip6",
    "portrange 1-1024",
    "tcp portrange 20-80",
    "host 10.1.2.3",
    "src host 10.1.2.3 and not dst net 10.0.0.0/8",
    "net 10.1.0.0/16",
    "dst net 192.168.0.0/16 or src net 192.168.0.0/16",
    "ip6 net 2001:db8::/32",
    "src host fd77::1 and dst host 2001:db8::5",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "tcp[tcpflags] = tcp-syn|tcp-ack",
    "tcp port 443 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)",
    "ip[6:2] & 0x3fff != 0",
    "ip[6:2] & 0x1fff != 0 and udp",
    "ip6[6] = 44",
    "icmp[icmptype] = icmp-echo",
    "icmp6[0] = 135",
    "greater 1000",
    "less 60",
    "len >= 100 and len < 1000",
    "ether broadcast or ether multicast",
    "ip broadcast or ip multicast",
    "vlan",
    "vlan 100",
    "vlan and ip and tcp port 443",
    "vlan 100 and vlan 200",
    "ip or (vlan and ip) or (vlan and vlan and ip6)",
    "not (tcp port 443 or udp port 53) and not arp",
    "not ip and not ip6",
    "((tcp and (port 80 or (port 443 and not src net 10.1.9.0/24))) or (udp and (port 53 or greater 500)))"
    " and not (ip6 or vlan)",
    "ether[12:2] = 0x8100 or ether[0] & 1 = 1",
    "ip[0] & 0xf > 5 or ip[1] != 0",
    "ether proto 0x88cc or pppoed or mpls",
    "udp[4:2] > 500 or tcp[13] & 8 != 0",
)

# --- expressions by the thousand --------------------------------------------------------------------------

_address4 = st.sampled_from([_A, _B, _C, "10.0.0.1", "224.0.0.251", "0.0.0.0", "255.255.255.255"])
_address6 = st.sampled_from([_A6, _B6, "::1", "ff02::1", "fe80::1"])
_net = st.sampled_from(
    "10.0.0.0/8 10.1.0.0/16 10.1.9.0/24 192.168.0.0/16 0.0.0.0/0 2001:db8::/32 fd77::/64 ff00::/8".split()
)
_port = st.sampled_from([0, 1, 22, 53, 80, 443, 5201, 33000, 40000, 65535]) | st.integers(0, 65535)
_way = st.sampled_from(["", "src ", "dst ", "src or dst ", "src and dst "])
_base = st.sampled_from(["ether", "ip", "ip6", "tcp", "udp", "icmp", "icmp6", "arp", "sctp", "link"])
_number = (
    st.integers(0, 300) | st.integers(0, (1 << 32) - 1) | st.sampled_from([0x800, 0x86DD, 0x8100, 0xFFFFFFFF])
)
_relation = st.sampled_from(["=", "==", "!=", "<", ">", "<=", ">="])


def _field(draw: st.DrawFn) -> str:
    size = draw(st.sampled_from(["", ":1", ":2", ":4"]))
    return f"{draw(_base)}[{draw(st.integers(0, 60) | st.sampled_from([200, 1000, 1499, 2000, 65535, 1 << 31]))}{size}]"


@st.composite
def _arithmetic(draw: st.DrawFn, depth: int = 2) -> str:
    kind = draw(st.integers(0, 6)) if depth else draw(st.integers(0, 2))
    if kind == 0:
        return "len"
    if kind == 1:
        return str(draw(_number))
    if kind <= 3:
        return _field(draw)
    if kind == 4:  # where to look is itself looked up
        return f"{draw(_base)}[{draw(_arithmetic(depth - 1)).replace('len', '3')}]"
    operator = draw(st.sampled_from(["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"]))
    return f"({draw(_arithmetic(depth - 1))} {operator} {draw(_arithmetic(depth - 1))})"


@st.composite
def _primitive(draw: st.DrawFn) -> str:
    way = draw(_way)
    forms = [
        lambda: draw(
            st.sampled_from(
                "ip ip6 arp rarp tcp udp icmp icmp6 igmp sctp ah esp vrrp mpls pppoed pppoes vlan stp llc "
                "multicast broadcast".split()
            )
        ),
        lambda: f"{way}host {draw(_address4 | _address6)}",
        lambda: f"{way}net {draw(_net)}",
        lambda: f"{draw(st.sampled_from(['', 'tcp ', 'udp ', 'sctp ']))}{way}port {draw(_port)}",
        lambda: "{}portrange {}-{}".format(way, *sorted((draw(_port), draw(_port)))),
        lambda: f"{draw(st.sampled_from(['ip', 'ip6']))} proto {draw(st.integers(0, 255))}",
        lambda: f"ether proto {draw(_number) & 0xFFFF}",
        lambda: (
            f"ether {draw(st.sampled_from(['host', 'src', 'dst']))} 02:4e:54:00:00:0{draw(st.integers(1, 3))}"
        ),
        lambda: f"{draw(st.sampled_from(['greater', 'less']))} {draw(st.integers(0, 1600))}",
        lambda: f"vlan {draw(st.sampled_from([0, 5, 100, 200, 4095]))}",
        lambda: f"{draw(st.sampled_from(['ip', 'ip6', 'ether']))} multicast",
        lambda: f"tcp[tcpflags] & {draw(st.integers(0, 255))} {draw(_relation)} {draw(st.integers(0, 255))}",
        lambda: f"{draw(_arithmetic())} {draw(_relation)} {draw(_arithmetic())}",
        lambda: f"{draw(_arithmetic())} {draw(_relation)} {draw(_number)}",
    ]
    return forms[draw(st.integers(0, len(forms) - 1))]()


def expressions() -> st.SearchStrategy[str]:
    """Expressions of any shape, most of which libpcap compiles; some reject every packet, and it says so."""
    return st.recursive(
        _primitive(),
        lambda inner: (
            st.builds("not {}".format, inner)
            | st.builds("({} and {})".format, inner, inner)
            | st.builds("({} or {})".format, inner, inner)
        ),
        max_leaves=8,
    )


# --- filters as native code -------------------------------------------------------------------------------

# What bpf_src/include/filter.h is in the kernel: the same functions over a piece of memory.
_PRELUDE = """
#include <stdbool.h>
#include <stdint.h>
typedef uint32_t u32;
typedef uint64_t u64;
#define __always_inline inline __attribute__((always_inline))
#define FILTER_STEP(a) ({ asm volatile("" : "+r"(a)); (a); })
struct filter_packet { const unsigned char *bytes; u32 captured, length; };
static __always_inline bool filter_load(const struct filter_packet *p, u64 offset, u32 size, u64 *value)
{
	u64 result = 0;
	if (offset + size > p->captured)
		return false;
	for (u32 i = 0; i < size; i++)
		result = result << 8 | p->bytes[offset + i];
	*value = result;
	return true;
}
static __always_inline u32 filter_length(const struct filter_packet *p) { return p->length; }
static __always_inline u32 filter_packet_type(const struct filter_packet *p) { return 0; }
static __always_inline u32 filter_ifindex(const struct filter_packet *p) { return 0; }
"""


class Native:
    """Filters compiled by gcc, undefined behaviour trapped; ``verdicts`` runs all of them on a packet."""

    def __init__(self, programs: Sequence[Program], folder: Path) -> None:
        self._count = len(programs)
        source, library = folder / "filters.c", folder / "filters.so"
        names = [f"filter_{i}" for i in range(len(programs))]
        parts = [to_c(p.instructions, name) for p, name in zip(programs, names, strict=True)]
        table = f"static u32 (*const all[])(const struct filter_packet *) = {{ {', '.join(names)} }};\n"
        run = """void run(const unsigned char *bytes, u32 captured, u32 length, unsigned char *verdicts)
{
	struct filter_packet p = { bytes, captured, length };
	for (unsigned i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		verdicts[i] = all[i](&p);
}
"""
        source.write_text(_PRELUDE + "\n".join(parts) + table + run)
        flags = "-O0 -w -shared -fPIC -fsanitize=undefined -fsanitize-undefined-trap-on-error".split()
        subprocess.run(["gcc", *flags, "-o", library, source], check=True, timeout=300)
        self._library = ctypes.CDLL(str(library))

    def verdicts(self, packet: bytes, length: int | None = None) -> list[bool]:
        """What each filter says of one packet."""
        result = (ctypes.c_ubyte * self._count)()
        self._library.run(packet, len(packet), len(packet) if length is None else length, result)
        return [bool(v) for v in result]

"""The only place where numbers become text.

Figures keep their width as they grow: four significant places at most, a fixed field, units aligned.  None is shown
as a dash: a value that is not known is never 0.
"""

from __future__ import annotations

import ipaddress
import unicodedata
from datetime import UTC, datetime

NONE = "-"
# Categories: format and direction marks, surrogates, private, unassigned.
_INVISIBLE = ("Cf", "Cs", "Co", "Cn")
_MARKS = 2  # combining marks on one letter: Vietnamese has two, and a hundred cover the lines around
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and symbols that look like spaces
_SI = ("", "k", "M", "G", "T", "P", "E")


def figure(value: float) -> str:
    """At most four characters for 0 <= value < 1000: 0, 1.23, 12.3, 123."""
    if value == 0:
        return "0"
    if value < 9.995:
        return f"{value:.2f}"
    if value < 99.95:
        return f"{value:.1f}"
    return f"{value:.0f}"


def si(value: float | None, unit: str = "") -> str:
    """A number with an SI prefix: ``1.23 kB``, ``812 Mb/s``, ``4 211``-like counts below 10 000 stay whole."""
    if value is None:
        return NONE
    scale = 0
    size = abs(float(value))
    while size >= 999.5 and scale < len(_SI) - 1:
        size /= 1000
        scale += 1
    text = f"{size:.0f}" if scale == 0 else figure(size)
    sign = "-" if value < 0 else ""
    return f"{sign}{text} {_SI[scale]}{unit}".rstrip()


def count(value: int | None) -> str:
    """A count: whole and grouped below a hundred thousand, SI above."""
    if value is None:
        return NONE
    return f"{value:,}".replace(",", " ") if abs(value) < 100_000 else si(value)


def rate(bytes_per_s: float | None, bits: bool = True) -> str:
    """A rate of bytes as bits or bytes a second."""
    if bytes_per_s is None:
        return NONE
    return si(bytes_per_s * 8, "b/s") if bits else si(bytes_per_s, "B/s")


def size(value: int | None) -> str:
    """Bytes."""
    return si(value, "B")


def duration(ns: float | None) -> str:
    """A delay: ``812 ns``, ``1.23 ms``, ``21 ms``; at most 7 characters."""
    if ns is None:
        return NONE
    value = abs(float(ns))
    if value < 999.5:
        return f"{value:.0f} ns"
    for unit, scale in (("µs", 1e3), ("ms", 1e6)):
        if value / scale < 999.5:
            return f"{figure(value / scale)} {unit}"
    return f"{figure(value / 1e9)} s"


def age(ns: float | None) -> str:
    """A long time, coarsely: ``12 s``, ``3 m``, ``5 h``, ``2 d``; at most 4 characters for a year."""
    if ns is None:
        return NONE
    seconds = max(float(ns), 0) / 1e9
    for unit, scale, limit in (("s", 1, 100), ("m", 60, 100), ("h", 3600, 48)):
        if seconds / scale < limit:
            return f"{seconds / scale:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def clock(ns: int) -> str:
    """A span as on a stop-watch: ``00:12``, ``1:02:03``."""
    hours, rest = divmod(ns // 1_000_000_000, 3600)
    minutes = f"{rest // 60:02d}:{rest % 60:02d}"
    return f"{hours}:{minutes}" if hours else minutes


def timestamp(ns: int) -> str:
    """A moment, CLOCK_REALTIME, as ISO 8601 in UTC to the millisecond: ``2025-01-02T03:04:05.678Z``."""
    moment = datetime.fromtimestamp(ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns // 1_000_000 % 1000:03d}Z"


def percent(fraction: float | None) -> str:
    """A share: ``0.4 %``, ``12 %``."""
    if fraction is None:
        return NONE
    value = fraction * 100
    return f"{value:.1f} %" if 0 < value < 9.95 else f"{value:.0f} %"


def address(raw: bytes) -> str:
    """16 bytes of an address, IPv4 as v4-mapped IPv6 (RFC 4291, 2.5.5.2), as text."""
    parsed = ipaddress.IPv6Address(raw)
    return str(parsed.ipv4_mapped or parsed)


def endpoint(raw: bytes, port: int) -> str:
    """``10.0.0.1:80`` or ``[2001:db8::1]:80``."""
    text = address(raw)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


_PROTOCOLS = {
    1: "icmp",
    2: "igmp",
    4: "ipip",
    6: "tcp",
    17: "udp",
    33: "dccp",
    41: "sit",
    47: "gre",
    50: "esp",
    51: "ah",
    58: "icmpv6",
    88: "eigrp",
    89: "ospf",
    103: "pim",
    112: "vrrp",
    132: "sctp",
    136: "udplite",
}
_NUMBERS = {name: number for number, name in _PROTOCOLS.items()}


def protocol(number: int) -> str:
    """An IP protocol's name (IANA, lower case); ``ip-253`` where it has none here."""
    return _PROTOCOLS.get(number, f"ip-{number}")


def protocol_number(name: str) -> int:
    """The inverse of protocol; 255 (reserved) for what is none."""
    if name in _NUMBERS:
        return _NUMBERS[name]
    number = name.removeprefix("ip-")
    return int(number) if number.isdecimal() and int(number) < 256 else 255


def parse_endpoint(text: str) -> tuple[bytes, int]:
    """The inverse of endpoint: 16 bytes and a port; zeros for what is none."""
    host, _, port = text.rpartition(":")
    try:
        parsed = ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        return bytes(16), 0
    raw = parsed.packed if parsed.version == 6 else b"\0" * 10 + b"\xff\xff" + parsed.packed
    return raw, number & 0xFFFF


def name(raw: bytes) -> str:
    """A name from the kernel, which ends at the first NUL."""
    return clean(bytes(raw).split(b"\0")[0].decode("utf-8", "replace"))


def clean(text: str, limit: int = 256) -> str:
    """A string from outside as data, bounded; what could be more than data to a terminal is a replacement character.

    That is: controls (also the eighth-bit ones), line and paragraph separators, marks of direction and of format,
    surrogates, what is not assigned, letters without ink, variation selectors, and combining marks that have no letter
    before them or are too many for it.
    """
    text = text[:limit]
    if text.isascii() and text.isprintable():
        return text
    result: list[str] = []
    marks = _MARKS  # so many on the letter before; none is there at the start
    for c in text:
        kind = unicodedata.category(c)
        if kind in ("Mn", "Me"):
            marks += 1
            good = marks <= _MARKS and not ("\ufe00" <= c <= "\ufe0f" or "\U000e0100" <= c <= "\U000e01ef")
        else:
            good = c.isprintable() and kind not in _INVISIBLE and c not in _BLANK
            marks = 0 if good else _MARKS
        result.append(c if good else "\N{REPLACEMENT CHARACTER}")
    return "".join(result)

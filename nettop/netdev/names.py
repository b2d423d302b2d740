"""Which interface is meant: the names there are, the default route's, and the words of the command line."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from nettop.core import units
from nettop.core.errors import ExitCode, NettopError

_RTF_UP = 0x1  # include/uapi/linux/route.h
_RTF_REJECT = 0x200

# How a pcap-filter expression can begin (pcap-filter(7)).  What begins otherwise is an interface.
_EXPRESSION = frozenset(
    "not tcp udp sctp icmp icmp6 igmp ip ip6 arp rarp ether vlan mpls pppoed pppoes geneve vxlan link fddi "
    "tr wlan ppp host src dst net port portrange proto protochain gateway less greater len broadcast "
    "multicast inbound outbound ifindex".split()
)


def names() -> tuple[str, ...]:
    """The interfaces of this network namespace, in the kernel's order."""
    return tuple(name for _, name in socket.if_nameindex())


def default_route(ipv4: str, ipv6: str) -> str | None:
    """The interface of the default route with the lowest metric, IPv4 first; None where there is none.

    ``ipv4`` and ``ipv6`` are the texts of /proc/net/route and /proc/net/ipv6_route (net/ipv4/fib_trie.c,
    net/ipv6/route.c in the kernel).
    """
    found: list[tuple[int, str]] = []
    for row in map(str.split, ipv4.splitlines()[1:]):
        if len(row) >= 8 and row[1] == row[7] == "00000000" and _flags(row[3]) == _RTF_UP:
            found.append((int(row[6]), row[0]))
    if not found:
        for row in map(str.split, ipv6.splitlines()):
            if len(row) >= 10 and row[0] == "0" * 32 and row[1] == "00" and _flags(row[8]) == _RTF_UP:
                found.append((int(row[5], 16), row[9]))
    return min(found)[1] if found else None


def _flags(text: str) -> int:
    return int(text, 16) & (_RTF_UP | _RTF_REJECT)


def current_default() -> str | None:
    """The default route's interface now."""
    return default_route(_read("/proc/net/route"), _read("/proc/net/ipv6_route"))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # no IPv6, say
        return ""


def begins_expression(word: str) -> bool:
    """Whether a word of the command line is how a filter begins."""
    first = (word.split() or [""])[0]
    return first in _EXPRESSION or first.startswith(("(", "!"))


def apart(argv: Sequence[str], existing: Sequence[str]) -> list[str]:
    """The command line with what ``--snapshot`` must not take for its file: an interface, or a filter's first word.

    ``--snapshot eth0`` is a snapshot of eth0; a file of that name is ``--snapshot=eth0`` or ``--snapshot ./eth0``.
    """
    result = list(argv)
    end = result.index("--") if "--" in result else len(result)
    for place in range(min(end, len(result) - 1)):
        following = result[place + 1]
        if result[place] == "--snapshot" and (following in existing or begins_expression(following)):
            result[place] = "--snapshot="
    return result


def choose(words: Sequence[str], existing: Sequence[str], default: str | None) -> tuple[str, str]:
    """Interface and filter from the command line's words.  NettopError (5) where that gives no interface."""
    known = units.clean(", ".join(existing), 4096)
    hint = f"there are: {known}" if known else "this network namespace has none"
    if words and words[0] in existing:
        return words[0], " ".join(words[1:])
    if words and not begins_expression(words[0]):
        raise NettopError(f"no such interface: {words[0]!r}", hint, ExitCode.NO_INTERFACE)
    if default is None:
        raise NettopError("no default route, so no interface to choose", hint, ExitCode.NO_INTERFACE)
    return default, " ".join(words)

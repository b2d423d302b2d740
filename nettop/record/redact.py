"""Frames without the addresses and names in them, for files and pictures that are shown to others: ``--redact``.

The same address or name has the same pseudonym for as long as the program runs, and another one the next time: a
secret of the run, which is stored nowhere, decides.  Addresses keep their prefixes in common, bit by bit, so that
what was one subnet still is one (Xu, Fan, Ammar and Moon: Prefix-preserving IP address anonymization, ICNP 2002;
here with a keyed BLAKE2 for a cipher).  What kind of address it was can still be seen: private, link-local, loopback,
multicast and public ones stay among themselves.  docs/redact.md says what is hidden and what is not.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nettop.core.fields import Part, Privacy, Spec, described
from nettop.core.frame import Frame
from nettop.core.histogram import Histogram
from nettop.core.table import Column

NOTE = "addresses and names are hidden (--redact)"
_UNDECLARED = Spec("")  # what is not declared is hidden
_KEPT = 1 << 18  # pseudonyms that are remembered, to be quick
_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, 2.5.5.2: how IPv4 is kept

# Networks that an address does not leave, and that none gets into: IANA's special-purpose address registries.
_FIXED4 = tuple(
    ipaddress.IPv4Network(text)
    for text in ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
                 "224.0.0.0/4", "240.0.0.0/4")
)  # fmt: skip
_FIXED6 = tuple(
    ipaddress.IPv6Network(text)
    for text in ("fc00::/8", "fd00::/8", "fe80::/10", "ff00::/8", "2000::/3")
)  # fmt: skip
# First bytes of public IPv4 addresses: those of which all are public, and those of which some are special.
_MIXED = {100: range(64, 128), 169: range(254, 255), 172: range(16, 32), 192: range(168, 169)}
_PUBLIC = tuple(n for n in range(1, 224) if n not in (10, 127, *_MIXED))
# What says nothing of anybody: no address, this host, everybody.
_SAME = {"0.0.0.0", "255.255.255.255", "::", "::1"}

_ADDRESS = re.compile(
    r"(?<![\w.:])(?:(?:[0-9a-fA-F]{1,4})?(?::[0-9a-fA-F]{0,4}){2,7}(?:\d{1,3}(?:\.\d{1,3}){3})?|\d{1,3}(?:\.\d{1,3}){3})"
    r"(?:/\d{1,3})?(?![\w:])"
)
_MAC = re.compile(r"(?<![0-9a-fA-F:-])(?:[0-9a-fA-F]{1,2}[:-]){5}[0-9a-fA-F]{1,2}(?![0-9a-fA-F:-])")
_MAC_NAME = re.compile(r"\b((?:en|wl|ww)x)([0-9a-f]{12})\b")  # an interface that is named after its address
_DOTTED = re.compile(r"[\w-]+(?:\.[\w-]+)+")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_TOKEN = re.compile(r"[^\s()!&|]+|.", re.DOTALL)
# The words of pcap-filter(7) that are not names.
_WORDS = frozenset(
    "host net mask port portrange src dst and or not ether ip ip6 arp rarp tcp udp icmp icmp6 igmp sctp proto "
    "broadcast multicast less greater vlan mpls len inbound outbound gateway protochain ah esp vrrp pim link ppp "
    "tr wlan fddi aarp decnet iso lat atalk stp ipx netbeui igrp carp "
    "< > <= >= = == != + - * / % ^ ( ) ! && || & |".split()
)
_PORTS = re.compile(r"\d{1,5}(-\d{1,5})?\Z")
_AFTER_NUMBER = frozenset("port portrange less greater vlan mpls len proto < > <= >= = == != + -".split())


class Redactor:
    """The pseudonyms of one run."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._known: dict[bytes, bytes] = {}
        self._real: dict[bytes, bytes] = {}
        self._words: dict[str, str] = {}
        self._given: set[str] = set()
        self._public = self._shuffled(b"first", _PUBLIC)
        self._second = {
            first: self._shuffled(bytes((first,)), [n for n in range(256) if n not in special])
            for first, special in _MIXED.items()
        }

    # --- addresses

    def _digest(self, *parts: bytes, size: int = 32) -> bytes:
        return hashlib.blake2b(b"\0".join(parts), key=self._secret, digest_size=size).digest()

    def _shuffled(self, salt: bytes, numbers: Iterable[int]) -> dict[int, int]:
        before = list(numbers)
        after = sorted(before, key=lambda n: self._digest(b"octet", salt, bytes((n,))))
        return dict(zip(before, after, strict=True))

    def _tree(self, address: bytes, fixed: int) -> bytes:
        """Each bit turned, or not, by what the bits before it say; the first ``fixed`` ones stay."""
        result = bytearray()
        for index, octet in enumerate(address):
            if fixed >= 8 * index + 8:
                result.append(octet)
                continue
            turns = int.from_bytes(self._digest(b"tree%d" % len(address), address[:index]), "big")
            found = 0
            for level in range(8):
                bit = octet >> 7 - level & 1
                node = 1 << level | octet >> 8 - level  # the bits of this byte so far
                turn = turns >> node & 1 if 8 * index + level >= fixed else 0
                found = found << 1 | bit ^ turn
            result.append(found)
        return bytes(result)

    def packed(self, address: bytes) -> bytes:
        """An address of 4 or 16 bytes (IPv4 in the latter as v4-mapped) as its pseudonym of the same length."""
        if len(address) == 16 and address[:12] == _MAPPED:
            return _MAPPED + self.packed(address[12:])
        found = self._known.get(address)
        if found is None:
            found = self._v4(address) if len(address) == 4 else self._v6(address)
            if len(self._known) >= _KEPT:
                self._known.clear()
                self._real.clear()
            self._known[address] = found
            self._real[found] = address
        return found

    def _v4(self, address: bytes) -> bytes:
        parsed = ipaddress.IPv4Address(address)
        if str(parsed) in _SAME or address[0] in (0, 127):
            return address
        if fixed := _prefix_of(parsed, _FIXED4):
            return self._tree(address, fixed)
        first, second = address[:2]
        if first in _MIXED:
            return bytes((first, self._second[first][second])) + self._tree(address, 16)[2:]
        return bytes((self._public[first],)) + self._tree(address, 8)[1:]

    def _v6(self, address: bytes) -> bytes:
        parsed = ipaddress.IPv6Address(address)
        if str(parsed) in _SAME:
            return address
        return self._tree(address, 16 if address[0] == 0xFF else _prefix_of(parsed, _FIXED6))

    def address(self, text: str) -> str:
        """An address, or a network with its prefix length, as text; what is neither is a name."""
        host, slash, length = text.partition("/")
        try:
            hidden = ipaddress.ip_address(self.packed(ipaddress.ip_address(host).packed))
            if not slash:
                return str(hidden)
            return str(ipaddress.ip_network(f"{hidden}/{int(length)}", strict=False))
        except ValueError:
            return self.name(text)

    def real(self, text: str) -> str:
        """The inverse for the addresses in a text whose pseudonyms have been given out; the others stay."""

        def back(match: re.Match[str]) -> str:
            host, slash, length = match[0].partition("/")
            try:
                parsed = ipaddress.ip_address(host)
            except ValueError:
                return match[0]
            found = self._real.get(parsed.packed)
            return match[0] if found is None else f"{ipaddress.ip_address(found)}{slash}{length}"

        return _ADDRESS.sub(back, text)

    # --- names and texts

    def name(self, text: str, kind: str = "name") -> str:
        """A name: ``kind`` and eight hexadecimal digits.  What is empty stays so, and so does what is a pseudonym."""
        if not text or text in self._given:
            return text
        hidden = f"{kind}-{self._digest(b'name', text.encode('utf-8', 'replace'), size=4).hex()}"
        if len(self._words) < _KEPT:
            self._words[text] = hidden
            self._given.add(hidden)
        return hidden

    def interface(self, text: str) -> str:
        """An interface's name: only a hardware address in it is hidden (``enx001122334455``)."""
        return _MAC_NAME.sub(lambda m: m[1] + self._digest(b"mac", m[2].encode(), size=6).hex(), text)

    def filter(self, text: str) -> str:
        """A filter expression: its addresses and names.  One that looks at single bytes is hidden as a whole."""
        if not text.strip():
            return text
        if "[" in text or "\\" in text:
            return "(hidden)"
        words: list[str] = []
        before = ""
        for token in _TOKEN.findall(text):
            words.append(token if token.isspace() else self._token(token, before))
            before = before if token.isspace() else token.lower()
        return "".join(words)

    def _token(self, token: str, before: str) -> str:
        if token.lower() in _WORDS or (_PORTS.match(token) and before in _AFTER_NUMBER):
            return token
        if re.fullmatch(r"\d{1,3}(\.\d{1,3}){0,2}(/\d+)?", token):  # the beginning of an address: net 10.1
            head, slash, length = token.partition("/")
            octets = [int(n) for n in head.split(".")]
            if max(octets) < 256:
                hidden = self.packed(bytes(octets + [0] * (4 - len(octets))))
                return ".".join(str(n) for n in hidden[: len(octets)]) + slash + length
        if _MAC.fullmatch(token):
            return self._mac(token)
        return self.address(token)

    def _mac(self, text: str) -> str:
        digest = self._digest(b"mac", re.sub(r"[:-]", "", text).lower().encode(), size=5)
        return ":".join(f"{n:02x}" for n in b"\x02" + digest)  # locally administered

    def text(self, text: str, filters: tuple[str, ...] = ()) -> str:
        """A message: addresses in it, what is quoted, what looks like a host's name, names that are known."""
        for known in sorted(filter(None, filters), key=len, reverse=True):
            text = text.replace(known, self.filter(known))
        text = _QUOTED.sub(lambda m: m[0][0] + self.filter(m[0][1:-1]) + m[0][0], text)
        text = self.interface(text)
        text = _MAC.sub(lambda m: self._mac(m[0]), text)
        text = _ADDRESS.sub(self._address_in_text, text)
        text = _DOTTED.sub(self._dotted, text)
        for real, hidden in self._words.items():
            if real in text and len(real) > 1:
                text = re.sub(rf"(?<![\w-]){re.escape(real)}(?![\w-])", hidden, text)
        return text

    def _address_in_text(self, match: re.Match[str]) -> str:
        host = match[0].partition("/")[0]
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return match[0]
        return self.address(match[0])

    def _dotted(self, match: re.Match[str]) -> str:
        word = match[0]
        if not re.search(r"[A-Za-z]", word) or re.search(r"\.[ch]\Z", word) or re.match(r"\d", word):
            return word  # a version, a C file, a number with its unit
        return self.name(word, "host")

    # --- frames

    def frame(self, frame: Frame) -> Frame:
        """The same frame with pseudonyms in it; a note says so."""
        hidden: Frame = self.part(frame, (frame.filter,))
        return replace(hidden, notes=(*(note for note in hidden.notes if note != NOTE), NOTE))

    def part(self, part: Any, filters: tuple[str, ...] = ()) -> Any:
        """A part of a frame, each field as it is declared.  What is not declared harmless is hidden."""
        kind: Any = type(part)
        specs = {f.attribute: f.spec for f in described(kind)}
        values = {field.name: getattr(part, field.name) for field in fields(part)}
        hidden = {
            name: self._value(value, specs.get(name, _UNDECLARED), filters, name)
            for name, value in values.items()
        }
        changed = {name: value for name, value in hidden.items() if value is not values[name]}
        return replace(part, **changed) if changed else part

    def _value(self, value: Any, spec: Spec, filters: tuple[str, ...], name: str) -> Any:
        """It fails closed: of bytes, and of whatever is of a type that is not known, nothing is left."""
        if value is None or isinstance(value, bool | int | float | np.number | Histogram):
            return value
        if isinstance(value, str):
            return self._string(value, spec.privacy, filters, name)
        if isinstance(value, Part):
            return self.part(value, filters)
        inner = partial(self._value, spec=spec, filters=filters, name=name)
        if type(value) in (tuple, list):
            parts = type(value)(map(inner, value))
            return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
        if isinstance(value, Mapping):
            return {key if isinstance(part, Part) else inner(key): inner(part) for key, part in value.items()}
        if isinstance(value, np.ndarray):
            if spec.codec is not None and spec.codec.columns:
                return self._columns(spec.codec.columns, value.copy())
            return value if value.dtype.kind in "biuf" else np.zeros_like(value)
        return bytes(len(value)) if isinstance(value, bytes) else None

    def _string(self, value: str, privacy: Privacy, filters: tuple[str, ...], name: str) -> str:
        match privacy:
            case "harmless" | "interface":
                return self.interface(value)
            case "address":
                return self.address(value)
            case "endpoint":
                return self.endpoint(value)
            case "name":
                return self.name(value, name)
            case "filter":
                return self.filter(value)
            case "message":
                return value if value == NOTE else self.text(value, filters)
            case _:
                return self.name(value, "hidden")

    def endpoint(self, text: str) -> str:
        """``10.0.0.1:80`` or ``[2001:db8::1]:80``."""
        host, colon, port = text.rpartition(":")
        if not colon:
            return self.address(text)
        hidden = self.address(host.strip("[]"))
        return f"[{hidden}]:{port}" if ":" in hidden else f"{hidden}:{port}"

    def _columns(self, columns: Sequence[Column], rows: NDArray[Any]) -> NDArray[Any]:
        """The rows, changed in place: texts and addresses, and what else is no number and not declared harmless."""
        for c in columns:
            if not c.name:
                continue
            kind = rows.dtype[c.name]
            if c.columns:
                self._columns(c.columns, rows[c.name])
            elif c.privacy == "address" and kind.shape == (16,) and kind.base == np.uint8:
                packed = np.ascontiguousarray(rows[c.name]).view("V16").reshape(-1)
                found, inverse = np.unique(packed, return_inverse=True)
                hidden = np.array([list(self.packed(v.tobytes())) for v in found], np.uint8).reshape(-1, 16)
                rows[c.name] = hidden[inverse.reshape(-1)]
            elif kind.kind == "S" and c.privacy != "harmless":
                prefix = "proc" if c.privacy == "name" else "hidden"
                found, inverse = np.unique(rows[c.name], return_inverse=True)
                words = [self.name(v.decode("utf-8", "replace"), prefix)[: kind.itemsize - 1] for v in found]
                rows[c.name] = np.array([w.encode() for w in words], kind)[inverse.reshape(-1)]
            elif kind.kind not in "biufS":
                rows[c.name] = np.zeros((), kind)
        return rows


def _prefix_of(address: Any, networks: Sequence[Any]) -> int:
    """The prefix length of the network that the address is in; 0: in none."""
    return next((network.prefixlen for network in networks if address in network), 0)


@cache
def this_run() -> Redactor:
    """The pseudonyms of this run; its secret is nowhere else."""
    return Redactor(os.urandom(32))

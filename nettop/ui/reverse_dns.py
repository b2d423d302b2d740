"""Host names of addresses by reverse DNS: resolved in threads, cached for a while; a lookup never blocks.

A resolver may take half a minute, and its answers come from the owner of the address.  So daemon threads ask, which
are not joined at exit, and an answer that is not a valid host name counts as none.
"""

from __future__ import annotations

import ctypes
import ipaddress
import queue
import re
import socket
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from nettop.core import units

THREADS = 4
MOST = 10_000  # addresses that are remembered
WAITING = 500  # addresses that may wait to be asked for
KEEP_S, KEEP_NONE_S = 900.0, 120.0  # how long an answer holds, and how long that there was none
_NI_MAXHOST = 1025  # netdb.h
_LONGEST = 253  # RFC 1035, 2.3.4
# Names of hosts (RFC 1123, 2.1), and the underscore that many have.  At least one letter: none passes for an address.
_HOST = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")


@dataclass(slots=True)
class _Answer:
    name: str
    until: float  # time.monotonic() after which it is asked for again; infinity: it is being asked for


def resolve(address: str) -> str:
    """The name by the system's resolver (getnameinfo(3)); OSError where there is none.  Blocks.

    Called through ctypes, which lets other threads run meanwhile: Python's own call keeps its lock until 3.12, for as
    long as a server does not answer.
    """
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
        place = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, packed, 0)
    else:
        place = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_pton(socket.AF_INET, address))
    name = ctypes.create_string_buffer(_NI_MAXHOST)
    code = ctypes.CDLL(None).getnameinfo(place, len(place), name, len(name), None, 0, socket.NI_NAMEREQD)
    if code:
        raise socket.gaierror(code, "no name")
    return name.value.decode("ascii", "replace")


def checked(name: str) -> str:
    """An answer as data: the name of a host without its final dot, or nothing."""
    name = name.removesuffix(".")
    return name if len(name) <= _LONGEST and name.isascii() and _HOST.fullmatch(name) else ""


class ReverseDns:
    """A cache of names by address.  ``changed`` grows with every answer: what shows names is then drawn again."""

    def __init__(
        self,
        ask: Callable[[str], str] = resolve,
        threads: int = THREADS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._threads = threads
        self._clock = clock
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()
        self._lock = threading.Lock()
        self._queue: queue.Queue[bytes] = queue.Queue(WAITING)
        self._started = False
        self.changed = 0

    def of(self, address: bytes) -> str:
        """The name of a 16-byte address; "" where it has none, or none yet.  Never blocks."""
        with self._lock:
            answer = self._answers.get(address)
            if answer is not None:
                self._answers.move_to_end(address)
            if answer is None or answer.until < self._clock():
                answer = self._enqueue(address, answer.name if answer else "")
            return answer.name

    def _enqueue(self, address: bytes, before: str) -> _Answer:
        """Queue a query; the old name holds until there is a new one.  With a full queue: at the next lookup."""
        answer = _Answer(before, float("inf"))
        try:
            self._queue.put_nowait(address)
        except queue.Full:
            return answer
        self._answers[address] = answer
        while len(self._answers) > MOST:
            self._answers.popitem(last=False)
        if not self._started:
            self._started = True
            for _ in range(self._threads):
                threading.Thread(target=self._work, name="nettop-names", daemon=True).start()
        return answer

    def _work(self) -> None:
        while True:
            address = self._queue.get()
            name = self._name(address)
            with self._lock:
                until = self._clock() + (KEEP_S if name else KEEP_NONE_S)
                if address in self._answers:
                    self._answers[address] = _Answer(name, until)
                self.changed += 1

    def _name(self, address: bytes) -> str:
        if _has_no_name(address):
            return ""
        try:
            return checked(self._ask(units.address(address)))
        except Exception:  # a resolver's failure, whatever it is, is an address without a name
            return ""


def _has_no_name(address: bytes) -> bool:
    """Multicast, unspecified and broadcast addresses: no name is registered for them."""
    parsed = ipaddress.IPv6Address(address)
    real = parsed.ipv4_mapped or parsed
    return real.is_multicast or real.is_unspecified or real == ipaddress.IPv4Address("255.255.255.255")

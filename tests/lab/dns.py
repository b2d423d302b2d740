"""A real DNS server (dnsmasq) in a namespace, and a resolver small enough to know what it sends."""

import contextlib
import secrets
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lab.errors import LabError
from lab.namespace import Endpoint
from lab.traffic import wait_listening

DOMAIN = "lab.test"
ANSWER = "198.51.100.53"


@contextmanager
def dnsmasq(at: Endpoint, *records: str) -> Iterator[None]:
    """Run dnsmasq on both addresses of an endpoint, in a `with`: all names under `DOMAIN` are `ANSWER`, and its options
    for other records."""
    options = "--keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root --pid-file="
    listen = (
        "--bind-interfaces",
        f"--listen-address={at.v4}",
        f"--listen-address={at.v6}",
        "--log-facility=-",
    )
    process = at.ns.spawn("dnsmasq", *options.split(), *listen, f"--address=/{DOMAIN}/{ANSWER}", *records)
    try:
        wait_listening(at.ns, 53)
        yield
    finally:
        process.stop(signal.SIGTERM)


@dataclass(frozen=True)
class Lookups:
    """What the resolver saw: times from query to answer in ns, and its local port (None: one a query)."""

    rtts_ns: tuple[int, ...]
    lost: int
    local_port: int | None


def resolve(
    client: Endpoint,
    server: Endpoint,
    count: int,
    *,
    port: int = 53,
    interval_s: float = 0.0,
    ipv6: bool = False,
    one_socket: bool = True,
    timeout_s: float = 2.0,
) -> Lookups:
    """Ask `count` A queries, one after the other, each with an id of its own.

    Raises `LabError` on a wrong answer. `one_socket` keeps one source port for all of them, as one flow;
    otherwise each query has its own, as resolvers do.
    """
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    rtts: list[int] = []
    lost = 0
    with contextlib.ExitStack() as stack:
        asker: socket.socket | None = None
        for number in range(count):
            if asker is None or not one_socket:
                asker = stack.enter_context(client.ns.socket(socket.SOCK_DGRAM, family))
                asker.settimeout(timeout_s)
                asker.connect((server.address(ipv6), port))
            identity = secrets.randbits(16)
            began = time.monotonic_ns()
            asker.send(_query(identity, f"host{number}.{DOMAIN}"))
            try:
                _check(asker.recv(4096), identity)
            except TimeoutError:
                lost += 1
            else:
                rtts.append(time.monotonic_ns() - began)
            time.sleep(interval_s)
        local_port = int(asker.getsockname()[1]) if asker and one_socket else None
    return Lookups(tuple(rtts), lost, local_port)


def _query(identity: int, name: str) -> bytes:
    """RFC 1035, section 4: one question for an A record, recursion desired."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", identity, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)


def _check(message: bytes, identity: int) -> None:
    answered, flags, _, answers = struct.unpack_from("!HHHH", message)
    if answered != identity or not flags & 0x8000 or flags & 0xF or answers != 1:
        raise LabError(f"a wrong DNS answer: {message.hex()}")
    if message[-4:] != socket.inet_aton(ANSWER):
        raise LabError(f"DNS answered {socket.inet_ntoa(message[-4:])} instead of {ANSWER}")

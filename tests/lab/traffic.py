"""Traffic of known size and shape, and what its makers say they sent.

Each maker runs in the namespace of the endpoint it is given. Sizes are payload bytes, times ns unless the
name says seconds. Nothing here runs longer than its time-out.
"""

import contextlib
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lab import build
from lab.errors import LabError
from lab.namespace import Endpoint, Namespace
from lab.shell import Process, eventually

Kind = Literal["tcp", "churn", "udp"]

_ports = itertools.count(5201)


def fresh_port(count: int = 1) -> int:
    """The first of `count` port numbers that this run has not used before."""
    first, *_ = itertools.islice(_ports, count)
    return first


@dataclass(frozen=True)
class Flow:
    """One connection of iperf3's data, from the client's side."""

    local: str
    local_port: int
    remote: str
    remote_port: int


@dataclass(frozen=True)
class Iperf:
    """iperf3's own account, payload bytes. `raw` is its whole JSON."""

    port: int
    flows: tuple[Flow, ...]
    seconds: float
    sent_bytes: int
    received_bytes: int
    bits_per_s: float
    retransmits: int
    packets: int | None
    lost_packets: int | None
    raw: dict[str, Any]


def iperf3(
    client: Endpoint,
    server: Endpoint,
    *,
    seconds: float = 2.0,
    bits_per_s: int | str = 0,
    udp: bool = False,
    length: int | None = None,
    reverse: bool = False,
    ipv6: bool = False,
    parallel: int = 1,
    payload_bytes: int | None = None,
    args: Sequence[str] = (),
    timeout: float | None = None,
) -> Iperf:
    """One run of iperf3 from client to server (`reverse`: data comes back instead).

    `bits_per_s` 0: unlimited. `payload_bytes` sends exactly so many instead of for `seconds`. Raises
    `LabError` when iperf3 fails.
    """
    port = fresh_port()
    address = server.address(ipv6)
    argv = ["iperf3", "-J", "-c", address, "-p", str(port), "-P", str(parallel), "-b", str(bits_per_s)]
    argv += ["-n", str(payload_bytes)] if payload_bytes is not None else ["-t", f"{seconds:g}"]
    argv += ["-u"] if udp else []
    argv += ["-R"] if reverse else []
    argv += [] if length is None else ["-l", str(length)]
    listener = listen_iperf3(server, port, ipv6=ipv6)
    try:
        result = client.ns.run(*argv, *args, timeout=timeout or seconds + 20, check=False)
    finally:
        listener.stop()
    try:
        raw: dict[str, Any] = json.loads(result.stdout)
    except ValueError as error:
        raise LabError(f"iperf3 said no JSON: {result.stdout[-500:]} {result.stderr[-500:]}") from error
    if "error" in raw:
        raise LabError(f"iperf3: {raw['error']}")
    return _iperf(raw, port)


def listen_iperf3(server: Endpoint, port: int, *, ipv6: bool = False) -> Process:
    """An iperf3 server for one run, when it listens. The caller stops it."""
    process = server.ns.spawn("iperf3", "-s", "-1", "-B", server.address(ipv6), "-p", str(port))
    try:
        wait_listening(server.ns, port)
    except LabError:
        process.stop()
        raise
    return process


def _iperf(raw: dict[str, Any], port: int) -> Iperf:
    end = raw["end"]
    udp_sum = end.get("sum") if "packets" in end.get("sum", {}) else None
    sent = end.get("sum_sent", udp_sum)
    received = end.get("sum_received", udp_sum)
    return Iperf(
        port=port,
        flows=tuple(
            Flow(entry["local_host"], entry["local_port"], entry["remote_host"], entry["remote_port"])
            for entry in raw["start"]["connected"]
        ),
        seconds=float(sent["seconds"]),
        sent_bytes=int(sent["bytes"]),
        received_bytes=int(received["bytes"]),
        bits_per_s=float(received["bits_per_second"]),
        retransmits=int(sent.get("retransmits", 0)),
        packets=int(udp_sum["packets"]) if udp_sum else None,
        lost_packets=int(udp_sum["lost_packets"]) if udp_sum else None,
        raw=raw,
    )


@dataclass(frozen=True)
class Pings:
    """What ping(8) saw, to 1 us; `rtts_ns`, in order of arrival, has only the three digits that it prints."""

    sent: int
    received: int
    min_ns: int
    mean_ns: int
    max_ns: int
    rtts_ns: tuple[int, ...]


def ping(
    source: Endpoint,
    target: Endpoint,
    count: int,
    *,
    interval_s: float = 0.01,
    ipv6: bool = False,
    size: int = 56,
    args: Sequence[str] = (),
) -> Pings:
    """`count` echo requests of `size` payload bytes. Lost ones are no error."""
    argv = ["ping", "-n", "-c", str(count), "-i", f"{interval_s:g}", "-s", str(size), "-W", "1", *args]
    result = source.ns.run(*argv, target.address(ipv6), timeout=count * interval_s + 30, check=False)
    summary = re.search(r"(\d+) packets transmitted, (\d+) received", result.stdout)
    if summary is None:
        raise LabError(f"ping: {result.stdout[-500:]} {result.stderr[-500:]}")
    times = tuple(round(float(text) * 1e6) for text in re.findall(r"time=([\d.]+) ms", result.stdout))
    # None came back: no line of this kind.
    line = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)/[\d.]+ ms", result.stdout)
    least, mean, most = (round(float(text) * 1e6) for text in line.groups()) if line else (0, 0, 0)
    return Pings(int(summary[1]), int(summary[2]), least, mean, most, times)


@dataclass(frozen=True)
class Answers:
    """What the request-response client saw.

    `errors`: TCP transactions that failed; `lost`: UDP ones unanswered. `*_ns`: from the start of the
    question (of the connection, for churn) to the whole answer, as the client saw it.
    """

    transactions: int
    connections: int
    errors: int
    lost: int
    seconds: float
    min_ns: int
    median_ns: int
    p99_ns: int
    max_ns: int

    @property
    def per_second(self) -> float:
        return self.transactions / self.seconds


@dataclass
class Server:
    """A running `server.c`: answers TCP and UDP of both IP versions.

    `served` is known after its block ended.
    """

    at: Endpoint
    port: int
    ports: int
    request: int
    response: int
    process: Process
    served: dict[str, int]


@contextmanager
def answering(
    at: Endpoint, *, request: int = 64, response: int = 64, port: int | None = None, ports: int = 1
) -> Iterator[Server]:
    """A server for `ask` while the block lasts: `response` bytes for every `request` bytes.

    It listens on `ports` ports, and clients go round them. Churn needs one for each 20 000 connections a
    minute: where half of the client's own ports are in TIME_WAIT, connect(2) takes milliseconds to find a
    free one.
    """
    first = port or fresh_port(ports)
    process = at.ns.spawn(build.program("server"), str(first), str(ports), str(request), str(response))
    server = Server(at, first, ports, request, response, process, {})
    try:
        process.wait_lines(1)
        yield server
        process.close_stdin()
        process.wait(timeout=10)
        server.served.update(json.loads(process.lines[-1]))
    finally:
        process.stop()


def asking(
    client: Endpoint,
    server: Server,
    *,
    kind: Kind = "tcp",
    flows: int = 1,
    interval_s: float = 0.0,
    count: int = 0,
    seconds: float = 0.0,
    ipv6: bool = False,
) -> Process:
    """Ask on `flows` flows at once, until `count` transactions or `seconds`; `answers` waits for the end.

    `kind` tcp keeps its connections, churn makes one for each transaction, udp sends datagrams. `interval_s`
    paces each flow, evenly spread over the flows; 0 asks again at once.
    """
    if not count and not seconds:
        raise LabError("neither a count nor seconds: that would never end")
    words = (kind, server.at.address(ipv6), server.port, server.ports, flows, server.request, server.response)
    limits = (round(interval_s * 1e9), count, f"{seconds:g}")
    return client.ns.spawn(build.program("client"), *map(str, (*words, *limits)))


def answers(process: Process, *, timeout: float = 60.0) -> Answers:
    """Wait for a client that `asking` started, and return what it saw."""
    try:
        code = process.wait(timeout=timeout)
    finally:
        process.stop()
    if code != 0:
        raise LabError(f"client: exit code {code}: {process.stderr}")
    return Answers(**json.loads(process.stdout))


def ask(client: Endpoint, server: Server, *, timeout: float = 60.0, **how: Any) -> Answers:
    """Questions and answers, as `asking` has them, to their end."""
    return answers(asking(client, server, **how), timeout=timeout)


def churn(client: Endpoint, server: Server, count: int, *, at_once: int = 32, ipv6: bool = False) -> Answers:
    """Exactly `count` connections: connect, one question, its answer, close. The client closes first.

    More than 20 000 a minute need a server of several `ports`.
    """
    result = ask(client, server, kind="churn", flows=at_once, count=count, ipv6=ipv6)
    if result.connections != count:
        raise LabError(f"{result.connections} connections instead of {count}: {result}")
    return result


@dataclass(frozen=True)
class Transfer:
    """Two connected TCP sockets, each in its own end's namespace: for traffic made by hand."""

    sender: socket.socket
    receiver: socket.socket

    @property
    def local(self) -> tuple[str, int]:
        host, port = self.sender.getsockname()[:2]
        return str(host), int(port)

    @property
    def remote(self) -> tuple[str, int]:
        host, port = self.sender.getpeername()[:2]
        return str(host), int(port)

    def one_byte_each(self, interval_s: float, count: int) -> None:
        """Send single bytes at an even pace and read none of them.

        The receiver delays each ACK, 40 ms. A gap longer than the RTO makes Linux acknowledge at once again,
        and so does each delayed ACK that was sent: TCP_QUICKACK 0 puts the receiver back before every byte
        (tcp_event_data_recv, tcp_delack_timer_handler).
        """
        for _ in range(count):
            self.receiver.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            self.sender.sendall(b".")
            time.sleep(interval_s)

    def send_slowly_read(self, total: int, *, pause_s: float = 0.05, chunk: int = 16384) -> int:
        """Send `total` bytes as fast as the window lets them, to a reader that sleeps before each read."""
        received = 0

        def read() -> None:
            nonlocal received
            while received < total:
                time.sleep(pause_s)
                got = len(self.receiver.recv(chunk))
                if not got:
                    return
                received += got

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        self.sender.sendall(b"\0" * total)
        reader.join(60)
        return received


@contextmanager
def transfer(
    sender: Endpoint,
    receiver: Endpoint,
    *,
    ipv6: bool = False,
    receive_buffer: int | None = None,
    port: int = 0,
) -> Iterator[Transfer]:
    """A TCP connection from sender to receiver whose two sockets this process holds (Nagle off).

    The sender's port is unique, as tests find the flow by it: bound, since connect(2) may give one port to two
    connections to different ports.
    """
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(receiver.ns.socket(socket.SOCK_STREAM, family))
        if receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        listener.bind((receiver.address(ipv6), port))
        listener.listen()
        client = stack.enter_context(sender.ns.socket(socket.SOCK_STREAM, family))
        client.settimeout(60)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.bind((sender.address(ipv6), 0))
        client.connect(listener.getsockname()[:2])
        accepted = stack.enter_context(listener.accept()[0])
        accepted.settimeout(60)
        yield Transfer(client, accepted)


def listening_ports(ns: Namespace) -> set[int]:
    """Ports on which TCP listens or UDP is bound, from /proc/net: no packet is sent to find out."""
    tables = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}

    def read() -> set[int]:
        ports = set()
        for table, state in tables.items():
            for line in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == state:
                    ports.add(int(fields[1].rpartition(":")[2], 16))
        return ports

    return ns.call(read)


def wait_listening(ns: Namespace, port: int, *, timeout: float = 10.0) -> None:
    """Wait until something listens on this port. Raises `LabError`."""
    if not eventually(lambda: port in listening_ports(ns), timeout=timeout):
        raise LabError(f"nothing listens on port {port}")

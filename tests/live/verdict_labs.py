"""Labs in which the verdict on a flow is known: one trouble each with a clear cause, and healthy traffic of many kinds.

Each is a function that builds its traffic in a Scene and names the flow's end; `TROUBLES` and `HEALTHY` list them. The
interface watched is that of host `a`.
"""

import contextlib
import json
import os
import random
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import Direction, Endpoint, Lab, Link, oracle
from lab.namespace import Namespace
from lab.program import interpreter
from lab.shell import Process
from lab.traffic import Server, Transfer, answering, asking, fresh_port, transfer
from stagelab import MS, burning

from nettop.bpf import syscall
from nettop.loader.compile import compile_source

REPOSITORY = Path(__file__).resolve().parents[2]
SO_MAX_PACING_RATE = 47  # asm-generic/socket.h; Python has no name for it
TCP_QUICKACK = socket.TCP_QUICKACK
MB = 1_000_000
NET_RX = 3
Verdict = dict[str, Any]


@contextmanager
def watching(lab: Lab, end: Endpoint, interval_s: float = 0.2, code: Path = REPOSITORY) -> Iterator[Process]:
    """The judge at this interface."""
    driver = lab.spawn(
        end.ns,
        # As nettop itself does: numpy's threads would keep privileges.
        *("env", "OPENBLAS_NUM_THREADS=1", f"PYTHONPATH={code}"),
        interpreter(),
        str(Path(__file__).with_name("verdict_driver.py")),
        *(end.name, str(interval_s)),
    )
    driver.wait_lines(1, timeout=60)
    yield driver
    driver.close_stdin()
    assert driver.wait(timeout=20) == 0, driver.stderr


@dataclass
class Scene:
    """Host `a`, a peer `b`, and traffic between them until the scene ends."""

    lab: Lab
    link: Link
    stack: ExitStack = field(default_factory=ExitStack)
    stop: threading.Event = field(default_factory=threading.Event)
    end: str = ""
    after: Callable[[], object] | None = None  # once the judge has seen the flow

    @property
    def a(self) -> Endpoint:
        return self.link.a

    @property
    def b(self) -> Endpoint:
        return self.link.b

    def background(self, work: Callable[[], object]) -> None:
        """Again and again, until the scene ends or the work says b"" (the end of a stream)."""

        def run() -> None:
            with contextlib.suppress(OSError, ValueError):  # sockets and pipes that are closed
                while not self.stop.is_set():
                    if work() == b"":
                        break

        threading.Thread(target=run, daemon=True).start()

    def pair(self, sender: Endpoint, receiver: Endpoint, **how: Any) -> Transfer:
        """A connection; the flow is named by the port at the far end."""
        pair = self.stack.enter_context(transfer(sender, receiver, **how))
        far = pair.remote if sender is self.a else pair.local
        self.end = f":{far[1]}"
        return pair

    def stream(
        self,
        sender: Endpoint,
        receiver: Endpoint,
        *,
        chunk: int = 65536,
        pause_s: float = 0.0,
        read: int = 1 << 20,
        read_pause_s: float = 0.0,
        receive_buffer: int | None = None,
        send_buffer: int | None = None,
        rate: int | None = None,
    ) -> Transfer:
        """Data one way, at the pace of its writer, of `rate` in bytes a second, and of its reader."""
        pair = self.pair(sender, receiver, receive_buffer=receive_buffer)
        if send_buffer is not None:
            pair.sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        if rate is not None:
            pair.sender.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
        self.flow(pair.sender, pair.receiver, chunk, pause_s, read, read_pause_s)
        return pair

    def flow(
        self,
        out: socket.socket,
        into: socket.socket,
        chunk: int,
        pause_s: float,
        read: int,
        read_pause_s: float,
    ) -> None:
        def write() -> None:
            out.sendall(b"\0" * chunk)
            time.sleep(pause_s)

        def take() -> bytes:
            time.sleep(read_pause_s)
            return into.recv(read)

        self.background(write)
        self.background(take)

    def questions(
        self,
        client: Endpoint,
        server: Endpoint,
        *,
        think_s: float = 0.0,
        pause_s: float = 0.01,
        size: int = 64,
        answer: int = 64,
        at_once: int = 1,
        ipv6: bool = False,
    ) -> None:
        """`at_once` questions, and their answers, whose server takes a while for each."""
        pair = self.pair(client, server, ipv6=ipv6, port=fresh_port())  # a server has the lower port

        def ask() -> bytes:
            pair.sender.sendall(b"?" * size * at_once)
            got, last = 0, b"."
            while got < answer * at_once and last:
                last = pair.sender.recv(1 << 20)
                got += len(last)
            time.sleep(pause_s)
            return last

        def reply() -> bytes:
            got = b""
            while len(got) < size:
                more = pair.receiver.recv(size - len(got))
                if not more:
                    return b""
                got += more
            time.sleep(think_s) if think_s else None
            pair.receiver.sendall(b"!" * answer)
            return got

        self.background(ask)
        self.background(reply)

    def asks(self, **how: Any) -> Server:
        """Questions of `a` that are answered at once, by programs of the lab's."""
        server = self.stack.enter_context(answering(self.b))
        self.end = f":{server.port}"
        self.stack.callback(asking(self.a, server, seconds=3600, **how).stop)
        return server

    def udp(self, sender: Endpoint, reader: Endpoint, port: int = 0) -> tuple[socket.socket, socket.socket]:
        """A sender's socket, connected to a reader's, by whose port the flow is named."""
        out, into = (self.stack.enter_context(end.ns.socket(socket.SOCK_DGRAM)) for end in (sender, reader))
        into.bind((reader.v4, port))
        out.connect(into.getsockname())
        self.end = f":{into.getsockname()[1]}"
        return out, into

    def datagrams(
        self,
        port: int,
        answer: Callable[[bytes], bytes | None],
        question: Callable[[int], bytes],
        pause_s: float,
    ) -> None:
        """UDP from `a` to a server at `b`."""
        client, server = self.udp(self.a, self.b, port)
        count = 0

        def serve() -> bytes:
            data, peer = server.recvfrom(2048)
            said = answer(data)
            if said:
                server.sendto(said, peer)
            return data

        def ask() -> None:
            nonlocal count
            count += 1
            client.send(question(count))
            time.sleep(pause_s)

        self.background(serve)
        self.background(ask)
        self.background(lambda: client.recv(2048) or b".")


@dataclass(frozen=True)
class Kind:
    """A lab: what the verdict must be (one of `right`), and how the scene is made.

    `wire`: both directions of a wire between `a` and `b`, None for a veth pair. `older`: the flow is there before the
    judge is. `held`: what the whole judging happens in, as a load.
    """

    name: str
    right: tuple[str, ...]
    make: Callable[[Scene], object]
    wire: tuple[Direction, Direction] | None = None
    interval_s: float = 0.1
    older: bool = False
    held: Callable[[Scene], contextlib.AbstractContextManager[object]] | None = None
    settings: tuple[tuple[str, int | str], ...] = ()
    keep: bool = False
    fresh: bool = False  # every judgement needs a flow of its own


@contextmanager
def scene(kind: Kind, code: Path = REPOSITORY) -> Iterator[Callable[[], Verdict]]:
    """The lab of this kind, and what asks for one judgement on its flow."""
    with Lab() as lab, ExitStack() as stack:
        link = lab.wire(*kind.wire) if kind.wire else lab.veth()
        for end in (link.a, link.b):
            for key, value in kind.settings:
                end.ns.sysctl(key, value)
        made = Scene(lab, link)
        stack.enter_context(made.stack)
        stack.callback(made.stop.set)
        if kind.older:
            kind.make(made)
            time.sleep(2.0)  # its first ACKs are quick and bare; from then on they come with the answers
        driver = stack.enter_context(watching(lab, link.a, kind.interval_s, code))
        if not kind.older and not kind.fresh:
            kind.make(made)
        if made.after is not None:
            driver.ask(made.end, timeout=60)
            made.after()
            time.sleep(0.2)
            driver.ask(f"{made.end} keep", timeout=60)  # both are in this window
        if kind.held:
            stack.enter_context(kind.held(made))
        time.sleep(0.5 + 3 * kind.interval_s)  # what was before is in the first frames

        def judge() -> Verdict:
            if kind.fresh:
                kind.make(made)
            found: Verdict = json.loads(driver.ask(made.end + " keep" * kind.keep, timeout=90))
            return found

        yield judge


# --- loads -----------------------------------------------------------------------------------------------------------


# As a long chain of firewall rules: each packet from or to one port takes its time, and is then accepted.
_RULES = """
#include "nettop.h"
#include "load.h"

#define ROUNDS 2000 /* the verifier walks through every one */
#define CALLS 64

int rules(struct bpf_nf_ctx *ctx)
{
	u64 began = bpf_ktime_get_ns(), now = began;
	u16 transport = 0, ports[2] = {};
	void *skb, *head;
	int round, call;

	LOAD_AS(skb, ctx, offsetof(struct bpf_nf_ctx, skb), "u64");
	LOAD(TYPED, head, skb, struct sk_buff, head);
	LOAD(TYPED, transport, skb, struct sk_buff, transport_header);
	bpf_probe_read_kernel(ports, sizeof(ports), (const char *)head + transport);
	if (__builtin_bswap16(ports[0]) != PORT && __builtin_bswap16(ports[1]) != PORT)
		return 1;
#pragma clang loop unroll(disable)
	for (round = 0; round < ROUNDS && now - began < TAKE_NS; round++) {
#pragma clang loop unroll(full)
		for (call = 0; call < CALLS; call++)
			now = bpf_ktime_get_ns();
	}
	return 1; /* NF_ACCEPT */
}
"""


@contextmanager
def slow_rules(ns: Namespace, port: int, take_ns: int, folder: Path) -> Iterator[None]:
    """While the block lasts, what comes in for this port takes so long in netfilter's INPUT, where firewalls are."""
    source = folder / "rules.c"
    source.write_text(_RULES)
    flags = (f"-DPORT={port}", f"-DTAKE_NS={take_ns}ULL")
    code = compile_source(source, folder, flags).linked("rules", [])
    program = syscall.prog_load(syscall.ProgType.NETFILTER, code, "rules", syscall.AttachType.NETFILTER)
    # NFPROTO_IPV4, NF_INET_LOCAL_IN, the priority of a firewall's filter, no flags.
    place = struct.pack("=IIiI", 2, 1, 0, 0)
    try:
        link = ns.call(lambda: syscall.link_create(program, 0, syscall.AttachType.NETFILTER, place))
        try:
            yield
        finally:
            os.close(link)
    finally:
        os.close(program)


def softirqs_late(_: Scene) -> contextlib.AbstractContextManager[object]:
    """Each NET_RX softirq comes 4 ms late."""
    return burning("softirq_raise", NET_RX, 4 * MS)


def packets_ruled(s: Scene) -> contextlib.AbstractContextManager[object]:
    """The flow's packets take 1 ms in netfilter's INPUT."""
    folder = Path(s.stack.enter_context(tempfile.TemporaryDirectory()))
    return slow_rules(s.a.ns, int(s.end[1:]), MS, folder)


# --- labs with a trouble ---------------------------------------------------------------------------------------------

LATE_S = 0.05  # of slow readers and late answers
SLOW_READER = {"receive_buffer": 65536, "read": 16384, "read_pause_s": LATE_S}


def wire(ms: float, back_ms: float | None = None, **how: Any) -> tuple[Direction, Direction]:
    return Direction(delay_ms=ms, **how), Direction(delay_ms=ms if back_ms is None else back_ms)


def upload(**how: Any) -> Callable[[Scene], object]:
    return lambda s: s.stream(s.a, s.b, **how)


def download(**how: Any) -> Callable[[Scene], object]:
    return lambda s: s.stream(s.b, s.a, **how)


def asks(**how: Any) -> Callable[[Scene], object]:
    return lambda s: s.questions(s.a, s.b, **how)


def serves(**how: Any) -> Callable[[Scene], object]:
    return lambda s: s.questions(s.b, s.a, **how)


def way_grows(s: Scene) -> None:
    """64 bytes and their echo, and the wire becomes 20 ms longer each way."""
    s.questions(s.a, s.b)
    assert s.link.wire is not None
    s.after = lambda: s.link.wire and s.link.wire.set(Direction(delay_ms=22))


@contextmanager
def qdisc(s: Scene, *how: str) -> Iterator[None]:
    s.a.ns.run("tc", "qdisc", "add", "dev", s.a.name, "root", *how)
    try:
        time.sleep(0.3)
        yield
    finally:
        s.a.ns.run("tc", "qdisc", "del", "dev", s.a.name, "root")


def tbf(s: Scene) -> contextlib.AbstractContextManager[object]:
    """20 Mb/s with room for 60 ms."""
    return qdisc(s, "tbf", "rate", "20mbit", "burst", "20k", "latency", "60ms")


def _connect(s: Scene, port: int, address: str = "") -> None:
    """A connection that will not come about, attempted in the background."""
    client = s.a.ns.socket(socket.SOCK_STREAM)
    s.stack.callback(client.close)
    client.setblocking(False)
    client.connect_ex((address or s.b.v4, port))
    s.end = f":{port}"


def refused(s: Scene) -> None:
    _connect(s, fresh_port())


def unanswered(s: Scene) -> None:
    """An address that nobody has, at the peer's door."""
    absent = s.b.v4.rpartition(".")[0] + ".200"
    s.a.ns.run("ip", "neigh", "replace", absent, "lladdr", s.b.mac, "dev", s.a.name, "nud", "permanent")
    _connect(s, fresh_port(), absent)


def rejected(s: Scene) -> None:
    """The peer forwards, and has no way there: it says so by ICMP, and the kernel sends no second SYN."""
    s.b.ns.sysctl("ipv4.ip_forward", 1)
    s.b.ns.run("ip", "route", "replace", "unreachable", s.b.v4.rpartition(".")[0] + ".200")
    unanswered(s)


def first_syn_lost(client: str) -> Callable[[Scene], object]:
    """The SYN of `a` or `b` is dropped in the other host, and the next one, a second later, is answered."""

    def make(s: Scene) -> None:
        here, there = (s.a, s.b) if client == "a" else (s.b, s.a)
        nft = there.ns.run
        nft("nft", "add table inet lost; add chain inet lost one { type filter hook prerouting priority 0; }")
        once = "limit rate 1/day burst 1 packets"
        nft("nft", f"add rule inet lost one tcp flags & (syn | ack) == syn {once} counter drop")
        # The ACK of an answer comes with the next question: below 5 ms that is no trouble of the way back.
        s.questions(here, there, pause_s=0.002)
        assert "counter packets 1 " in nft("nft", "list table inet lost").stdout
        assert oracle.netstat(here.ns)["TcpExtTCPSynRetrans"] == 1

    return make


def not_accepted(s: Scene) -> None:
    """Three handshakes at once end where there is room for one: the other two are not accepted."""
    listener = s.stack.enter_context(s.b.ns.socket(socket.SOCK_STREAM))
    listener.bind((s.b.v4, 0))
    listener.listen(3)  # it takes one more
    at = s.b.v4, int(listener.getsockname()[1])
    clients = s.a.ns.call(lambda: [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(6)])
    for client in clients[:3]:
        s.stack.callback(client.close)
        client.connect(at)
    time.sleep(0.05)
    for client in clients[3:]:
        s.stack.callback(client.close)
        client.setblocking(False)
        client.connect_ex(at)
    s.end = f":{client.getsockname()[1]}"


def full_buffer(s: Scene) -> None:
    """Datagrams for a reader that takes one every 50 ms."""
    client, server = s.udp(s.b, s.a)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)

    def send() -> None:
        client.send(b"\0" * 500)
        time.sleep(0.002)

    def take() -> bytes:
        time.sleep(LATE_S)
        return server.recv(2048)

    s.background(send)
    s.background(take)


TROUBLES = (
    Kind("rwnd: slow reader there", ("rwnd-limited",), upload(**SLOW_READER)),
    Kind("answers after 50 ms, there", ("server latency",), asks(think_s=0.05)),
    Kind(
        "answers after 30 ms, there; connection older than nettop", ("server latency",),
        asks(think_s=0.03), older=True,
    ),
    Kind("slow reader here", ("receiver-limited",), download(**SLOW_READER)),
    Kind("UDP receive buffer full here", ("receiver-limited",), full_buffer),
    Kind("answers after 50 ms, here", ("app-limited",), serves(think_s=0.05)),
    Kind(
        "300 bytes four times a second", ("app-limited",),
        upload(chunk=300, pause_s=0.25), interval_s=0.3,
    ),
    Kind("tbf of 20 Mb/s", ("qdisc queueing",), upload(), held=tbf),
    Kind("1 ms of rules in netfilter's INPUT", ("stack latency",), asks(pause_s=0.02), held=packets_ruled),
    Kind("softirqs late by 4 ms", ("softirq latency",), asks(pause_s=0.02), held=softirqs_late),
    Kind(
        "a wire that loses 3 %", ("packet loss",), upload(), wire=wire(3, loss=0.03),
    ),
    Kind("a wire of 20 ms each way", ("propagation",), asks(), wire=wire(20)),
    Kind(
        "download over 20 ms each way", ("propagation",), download(rate=2 * MB), wire=wire(20),
    ),
    Kind(
        "a wire of 10 Mb/s, more under way than it carries", ("path queueing",),
        upload(send_buffer=65536, rate=2_500_000),
        wire=wire(1, rate_bits_per_s=10_000_000),
    ),
    Kind(
        "download through 10 Mb/s at the far end", ("path queueing",),
        download(send_buffer=65536, rate=2_500_000),
        wire=(Direction(delay_ms=1), Direction(delay_ms=1, rate_bits_per_s=10_000_000)),
    ),
    Kind(
        "echo, and the wire goes from 2 to 22 ms each way", ("path queueing",), way_grows, wire=wire(2), keep=True,
    ),
    Kind("refused", ("refused",), refused, fresh=True),
    Kind("SYNs dropped on the way", ("unanswered",), unanswered, interval_s=0.4, fresh=True),
    Kind(
        "rejected by ICMP", ("unanswered",), rejected, wire=wire(5), interval_s=1.0, fresh=True,
    ),
    Kind(
        "accept queue full", ("not accepted",), not_accepted, wire=wire(5), interval_s=0.6, fresh=True,
    ),
)  # fmt: skip


# Said beside the verdict: the connection is there, and well.
LATE = (
    Kind("first SYN lost, from here", ("healthy",), first_syn_lost("a"), interval_s=0.2, keep=True),
    Kind("first SYN lost, from there", ("healthy",), first_syn_lost("b"), interval_s=0.2, keep=True),
)


# --- healthy traffic -------------------------------------------------------------------------------------------------

WELL = ("healthy", "nothing found")
SPARSE = (*WELL, "app-limited", "")  # the application is the limit, and says so; or too little was seen


def jitter(s: Scene) -> None:
    """A radio's delays: 2 to 9 ms each way, another one every 25 ms."""
    s.questions(s.a, s.b)
    dice = random.Random(7)

    def change() -> None:
        time.sleep(0.025)
        assert s.link.wire is not None
        s.link.wire.set(Direction(delay_ms=dice.uniform(2, 9)), Direction(delay_ms=dice.uniform(2, 9)))

    s.background(change)


def both_ways(s: Scene) -> None:
    pair = s.stream(s.a, s.b, rate=3 * MB)
    pair.receiver.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 3 * MB)
    s.flow(pair.receiver, pair.sender, 65536, 0.0, 1 << 20, 0.0)


def half_closed(s: Scene) -> None:
    """The client has asked, and closed its side; the answer goes on."""
    pair = s.pair(s.a, s.b)
    pair.sender.sendall(b"?" * 64)
    pair.sender.shutdown(socket.SHUT_WR)
    pair.receiver.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 3 * MB)
    s.flow(pair.receiver, pair.sender, 65536, 0.0, 1 << 20, 0.0)


def keep_alive(s: Scene) -> None:
    pair = s.pair(s.a, s.b)
    for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1)):
        pair.sender.setsockopt(socket.IPPROTO_TCP, option, value)
    pair.sender.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def typing(s: Scene) -> None:
    """A key at a time, and the far end has nothing to say: it delays its ACKs."""
    pair = s.pair(s.a, s.b)

    def key() -> None:
        pair.receiver.setsockopt(socket.IPPROTO_TCP, TCP_QUICKACK, 0)
        pair.sender.sendall(b".")
        time.sleep(0.12)

    s.background(key)
    s.background(lambda: pair.receiver.recv(100))


def dns(s: Scene) -> None:
    s.datagrams(
        53,
        lambda q: q[:2] + b"\x81\x80" + q[4:],
        lambda n: struct.pack("!HHHHHH", n & 0xFFFF, 0x100, 1, 0, 0, 0),
        0.02,
    )


def quic(s: Scene) -> None:
    s.datagrams(443, lambda q: q, lambda _: b"\x40" + b"\0" * 1199, 0.005)


def ping(s: Scene) -> None:
    s.end = s.b.v4
    s.stack.callback(s.a.ns.spawn("ping", "-n", "-q", "-i", "0.02", s.b.v4).stop)


HEALTHY = (
    Kind("bulk upload", WELL, upload(rate=5 * MB)),
    Kind("bulk download", WELL, download(rate=5 * MB)),
    Kind("small questions and answers", WELL, asks()),
    Kind("answers of 100 kB", WELL, asks(answer=100_000, pause_s=0.05)),
    Kind("the client thinks long", SPARSE, asks(pause_s=0.7), interval_s=0.3),
    Kind("idle, with keep-alives", SPARSE, keep_alive, interval_s=0.4),
    Kind("many short connections", SPARSE, lambda s: s.asks(kind="churn", interval_s=0.01)),
    Kind("pipelining, as in HTTP/1.1", WELL, asks(answer=2000, at_once=10, pause_s=0.03)),
    Kind("DNS", WELL, dns),
    Kind("ping", WELL, ping),
    Kind("UDP as of QUIC", WELL, quic),
    Kind("stream in pieces of 50 kB", WELL, download(chunk=50_000, pause_s=0.1)),
    Kind("typing, delayed ACKs", SPARSE, typing, interval_s=0.3),
    Kind("jitter of a radio", WELL, jitter, wire=wire(4)),
    Kind("slow start again and again", WELL, upload(chunk=300_000, pause_s=0.6), wire=wire(5), interval_s=0.3),
    Kind("upload in pieces of 20 kB", WELL, upload(chunk=20_000, pause_s=0.05)),
    Kind("bulk both ways", WELL, both_ways),
    Kind("IPv6", WELL, asks(ipv6=True)),
    Kind("no timestamps", WELL, asks(), settings=(("ipv4.tcp_timestamps", 0),)),
    Kind(
        "reordered, not lost", WELL, upload(rate=5 * MB),
        wire=wire(2, reorder=0.02, reorder_extra_ms=0.3),
    ),
    Kind("a small window by choice", WELL, upload(receive_buffer=8192, chunk=8000, pause_s=0.01)),
    Kind("half closed", WELL, half_closed),
)  # fmt: skip

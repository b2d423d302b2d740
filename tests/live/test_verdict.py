"""Each verdict where it is the truth: one lab, many flows at the same time, each with another trouble, one with none.

The interface watched is a's. Behind it are a neighbour and three wires: a long one, one that loses, one that is slow.
"""

import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lab import Direction, Endpoint, Lab, Link, Nettop, Wire
from lab.core import route_by
from lab.namespace import Namespace
from lab.program import interpreter
from lab.shell import Process
from lab.traffic import Server, answering, ask, asking, transfer
from stagelab import MS, burning

from nettop import bpf
from nettop.loader.compile import compile_source
from nettop.paths import bpf_source

NET_RX = 3
SO_MAX_PACING_RATE = 47  # asm-generic/socket.h; Python has no name for it
PAUSE_S = 0.05  # of the slow readers and of those that answer late
LOSS = 0.03
HELD = 4 * MS  # by which softirqs are late
RULES = 1 * MS  # that the rules for incoming packets take
TRIES = 3  # a stall of the whole machine may spoil one
Verdict = dict[str, Any]


@dataclass
class Town:
    """The flows by name, as the end that `--focus` takes, and the program that judges them."""

    lab: Lab
    near: Link
    wires: dict[str, Wire]
    driver: Process
    stack: ExitStack
    stop: threading.Event
    ends: dict[str, str] = field(default_factory=dict)

    def judge(self, name: str, expected: str, fits: Callable[[Verdict], bool] = lambda _: True) -> Verdict:
        """The verdict on a flow; asked again where it is not the expected one (or does not fit); what was said last."""
        found: Verdict = {}
        for _ in range(TRIES):
            found = json.loads(self.driver.ask(self.ends[name], timeout=30))
            print(name, found["verdict"], found["also"], found["headline"], *found["reasons"], sep="\n  ")
            print({p["part"]: p["ns"] for p in found["parts"]})
            if found["verdict"] == expected and fits(found):
                break
        return found

    def part(self, found: Verdict, name: str) -> float:
        ns = next(p["ns"] for p in found["parts"] if p["part"] == name)
        assert ns is not None, name
        return float(ns)

    def _background(self, work: Callable[[], object]) -> None:
        def run() -> None:
            try:
                while not self.stop.is_set():
                    if work() == b"":
                        break
            except OSError:
                pass  # the end of the lab

        threading.Thread(target=run, daemon=True).start()

    def stream(
        self,
        name: str,
        sender: Endpoint,
        receiver: Endpoint,
        *,
        chunk: int = 65536,
        pause_s: float = 0.0,
        read: int = 65536,
        read_pause_s: float = 0.0,
        receive_buffer: int | None = None,
        send_buffer: int | None = None,
        pace_bytes_per_s: int | None = None,
    ) -> None:
        """Data one way, at the pace of its writer and its reader."""
        pair = self.stack.enter_context(transfer(sender, receiver, receive_buffer=receive_buffer))
        if send_buffer is not None:
            pair.sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        if pace_bytes_per_s is not None:
            pair.sender.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, pace_bytes_per_s)
        far = pair.remote if sender is self.near.a else pair.local
        self.ends[name] = f":{far[1]}"

        def write() -> None:
            pair.sender.send(b"\0" * chunk)
            time.sleep(pause_s)

        def take() -> bytes:
            time.sleep(read_pause_s)
            return pair.receiver.recv(read)

        self._background(write)
        self._background(take)

    def questions(self, name: str, client: Endpoint, server: Endpoint) -> None:
        """One question after the other, whose answer takes the server a while."""
        pair = self.stack.enter_context(transfer(client, server))
        far = pair.remote if client is self.near.a else pair.local
        self.ends[name] = f":{far[1]}"

        def ask() -> bytes:
            pair.sender.sendall(b"?" * 64)
            return pair.sender.recv(4096)

        def answer() -> bytes:
            got = pair.receiver.recv(4096)
            time.sleep(PAUSE_S)
            pair.receiver.sendall(b"!" * 64)
            return got

        self._background(ask)
        self._background(answer)

    def asks(self, name: str, server: Endpoint, interval_s: float) -> Server:
        """Questions that are answered at once."""
        at = self.stack.enter_context(answering(server))
        self.ends[name] = f":{at.port}"
        self.stack.callback(asking(self.near.a, at, seconds=100, interval_s=interval_s).stop)
        return at


@contextmanager
def watching(lab: Lab, link: Link) -> Iterator[Process]:
    """The judge at this interface."""
    driver = lab.spawn(
        link.a.ns,
        # As nettop itself does: numpy's threads would keep privileges.
        *("env", "OPENBLAS_NUM_THREADS=1", f"PYTHONPATH={Path(__file__).resolve().parents[2]}"),
        interpreter(),
        str(Path(__file__).with_name("verdict_driver.py")),
        link.a.name,
    )
    driver.wait_lines(1, timeout=60)
    yield driver
    driver.close_stdin()
    assert driver.wait(timeout=20) == 0, driver.stderr


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
    flags = (f"-I{bpf_source('nettop.h').parent}", f"-DPORT={port}", f"-DTAKE_NS={take_ns}ULL")
    code = compile_source(source, folder, flags).linked("rules", [])
    program = bpf.prog_load(bpf.ProgType.NETFILTER, code, "rules", bpf.AttachType.NETFILTER)
    # NFPROTO_IPV4, NF_INET_LOCAL_IN, the priority of a firewall's filter, no flags.
    place = struct.pack("=IIiI", 2, 1, 0, 0)
    try:
        link = ns.call(lambda: bpf.link_create(program, 0, bpf.AttachType.NETFILTER, place))
        try:
            yield
        finally:
            os.close(link)
    finally:
        os.close(program)


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    with Lab() as lab:
        host, crossing = lab.namespace("a"), lab.namespace("r")
        near = lab.veth(a=host, b=crossing)
        links = {
            "long": lab.wire(Direction(delay_ms=20), a=crossing),
            "losing": lab.wire(Direction(delay_ms=3, loss=LOSS), Direction(delay_ms=3), a=crossing),
            "slow": lab.wire(
                Direction(delay_ms=1, rate_bits_per_s=10_000_000), Direction(delay_ms=1), a=crossing
            ),
        }
        route_by(near.b, near.a)
        for link in links.values():
            route_by(link.a, link.b)
        wires = {name: link.wire for name, link in links.items() if link.wire}
        stop = threading.Event()
        with watching(lab, near) as driver, ExitStack() as stack:
            stack.callback(stop.set)
            made = Town(lab, near, wires, driver, stack, stop)
            a, b = near.a, near.b
            made.asks("healthy", b, 0.01)
            made.stream("paced", a, b, chunk=6000, pause_s=0.004)
            made.asks("long", links["long"].b, 0.0)
            made.stream("losing", a, links["losing"].b)
            # No more under way than the queue takes: nothing is lost, all of it waits.  Twice as fast as the wire, and
            # no faster: of frames that are sent at once the first is timed, which waits less than those behind it.
            made.stream("slow", a, links["slow"].b, send_buffer=65536, pace_bytes_per_s=2_500_000)
            slow = {"receive_buffer": 65536, "read": 16384, "read_pause_s": PAUSE_S}
            made.stream("read late here", b, a, **slow)  # type: ignore[arg-type]
            made.stream("read late there", a, b, **slow)  # type: ignore[arg-type]
            made.stream("idle", a, b, chunk=300, pause_s=0.25)
            made.questions("answered late there", a, b)
            made.questions("answered late here", b, a)
            yield made


def test_nothing_is_wrong_with_a_healthy_flow(town: Town) -> None:
    found = town.judge("healthy", "healthy")
    assert (found["verdict"], found["also"]) == ("healthy", [])
    # Every part is known, and they are the flow's own: no part is longer than the client saw the whole to be.
    assert all(p["ns"] is not None for p in found["parts"])
    assert found["whole_ns"] < 20 * MS


def test_nothing_is_wrong_with_a_writer_that_takes_its_time(town: Town) -> None:
    found = town.judge("paced", "healthy")
    assert (found["verdict"], found["also"]) == ("healthy", [])


def test_delayed_wire(town: Town) -> None:
    found = town.judge("long", "network")
    assert found["verdict"] == "network"
    _, middle = town.wires["long"].round_trip_ns()
    assert town.part(found, "wire") == pytest.approx(middle, rel=0.05)


def test_queue_in_the_network(town: Town) -> None:
    """A wire of 10 Mb/s in front of which more is under way than it carries."""
    wire = town.wires["slow"]
    wire.reset()  # what it held before is not in the verdict

    def as_held(found: Verdict) -> bool:
        held, _ = wire.report()
        return town.part(found, "beyond") == pytest.approx(held.hold_ns.median, rel=0.3)

    found = town.judge("slow", "network", as_held)
    assert found["verdict"] == "network"
    held, _ = wire.report()
    assert town.part(found, "wire") < 0.5 * held.hold_ns.median
    assert town.part(found, "beyond") == pytest.approx(held.hold_ns.median, rel=0.3)


def test_loss(town: Town) -> None:
    found = town.judge("losing", "loss")
    assert found["verdict"] == "loss"
    share = re.search(r"([\d.]+) % of the segments", found["headline"])
    assert share is not None
    assert float(share[1]) / 100 == pytest.approx(LOSS, abs=0.015)


def test_slow_reader_on_this_host(town: Town) -> None:
    found = town.judge("read late here", "application reads late")
    assert found["verdict"] == "application reads late"
    # It sleeps before each read, and there is more than one read's worth in the buffer.
    assert town.part(found, "reader") > 0.9 * PAUSE_S * 1e9


def test_slow_reader_at_the_far_end(town: Town) -> None:
    found = town.judge("read late there", "far end")
    assert found["verdict"] == "far end"
    port = town.ends["read late there"]
    said = town.near.a.ns.run("ss", "-tin", "dst", port).stdout
    kernel = re.search(r"rwnd_limited:\d+ms\(([\d.]+)%\)", said)
    ours = re.search(r"window (\d+) % of the time", found["reasons"][0])
    assert kernel is not None, said
    assert ours is not None, found["reasons"]
    # The socket's since it was opened, and ours of two seconds.
    assert float(ours[1]) == pytest.approx(float(kernel[1]), abs=20)


def test_answers_that_are_late(town: Town) -> None:
    there = town.judge("answered late there", "far end")
    here = town.judge("answered late here", "application writes little")
    for found, verdict in ((there, "far end"), (here, "application writes little")):
        assert found["verdict"] == verdict
        took = re.search(r"takes ([\d.]+) ms to answer", found["headline"])
        assert took is not None, found["headline"]
        assert float(took[1]) == pytest.approx(PAUSE_S * 1e3, rel=0.3)


def test_idle_writer(town: Town) -> None:
    found = town.judge("idle", "application writes little")
    assert found["verdict"] == "application writes little"
    # Not that its answers were late: nobody asks it.
    assert "writes little" in found["headline"]


def test_queue_of_this_host(town: Town) -> None:
    """tbf, 20 Mb/s with room for 60 ms: as long as its queue is full, that is how long a packet waits."""
    a, b = town.near.a, town.near.b
    tbf = ("tbf", "rate", "20mbit", "burst", "20k", "latency", "60ms")
    a.ns.run("tc", "qdisc", "add", "dev", a.name, "root", *tbf)
    try:
        town.stream("queue", a, b)
        time.sleep(0.3)
        found = town.judge("queue", "queue")
    finally:
        a.ns.run("tc", "qdisc", "del", "dev", a.name, "root")
    assert found["verdict"] == "queue"
    assert 10 * MS < town.part(found, "qdisc") < 70 * MS


def test_slow_stack(town: Town, tmp_path: Path) -> None:
    """One flow's packets take 1 ms in the host's own rules; the reader, the softirqs and the wire do not."""
    # Few packets: each keeps a CPU from everybody else's.
    server = town.asks("slow rules", town.near.b, 0.02)

    def one_stall_is_not_in_it(found: Verdict) -> bool:
        return town.part(found, "receive") < 1.5 * RULES

    with slow_rules(town.near.a.ns, server.port, RULES, tmp_path):
        found = town.judge("slow rules", "stack", one_stall_is_not_in_it)
        seen = ask(town.near.a, server, count=25, interval_s=0.01)
        healthy = town.judge("healthy", "healthy")
    assert found["verdict"] == "stack"
    assert 0.9 * RULES < town.part(found, "receive") < 1.5 * RULES
    # No answer came sooner to another client of the same port, by its own clock.
    assert seen.min_ns > RULES
    # The other flows do not go through them.
    assert (healthy["verdict"], healthy["also"]) == ("healthy", [])


def test_starved_softirq(town: Town) -> None:
    """Each NET_RX softirq comes 4 ms late; the last test here, since every other flow stops for it."""
    town.stop.set()
    with burning("softirq_raise", NET_RX, HELD):
        time.sleep(0.5)  # let it be felt: what was before is in the first frames
        found = town.judge("healthy", "interrupts")
    assert found["verdict"] == "interrupts"
    assert town.part(found, "softirq") == pytest.approx(HELD, rel=0.5)


def test_the_verdict_without_a_screen(lab: Lab, veth: Link) -> None:
    """`--focus` finds the flow, takes it into focus and explains it in each frame."""
    with (
        answering(veth.b) as server,
        Nettop(lab, veth.a, "-d", "0.25", "--focus", f":{server.port}") as nettop,
    ):
        client = asking(veth.a, server, seconds=20, interval_s=0.01)
        try:
            frames = nettop.wait_frames(12, timeout=60)
        finally:
            client.stop()
    last = frames[-1]
    assert last["focus"]["flow"] == last["verdict"]["flow"] == last["stages"]["focus"]["flow"]
    # One stall of the machine is not the end of it.
    assert "healthy" in {frame["verdict"]["verdict"] for frame in frames[-6:]}
    assert last["focus"]["socket"]["mss"] > 1000
    # Sixty-four bytes each way; a question is one packet, and each has an answer.
    assert last["focus"]["rx_answers"] == pytest.approx(last["focus"]["tx_data"], abs=2)

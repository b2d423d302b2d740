"""Each verdict where it is the truth: one lab, many flows at the same time, each with another trouble, one with none.

The interface watched is a's. Behind it are a neighbour and three wires: a long one, one that loses, one that is slow.
Every flow is judged once. What needs a lab of its own is in test_verdict_labs.py.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lab import Direction, Endpoint, Lab, Link, Nettop, Wire
from lab.core import route_by
from lab.shell import Process
from lab.traffic import answering, ask, asking
from stagelab import MS, burning
from verdict_labs import LATE_S, NET_RX, SLOW_READER, Scene, Verdict, slow_rules, tbf, watching

pytestmark = pytest.mark.timing  # delays by the wall clock, on a machine that others use

LOSS = 0.03
HELD = 4 * MS  # by which softirqs are late
RULES = 1 * MS  # that the rules for incoming packets take


@dataclass
class Town:
    """The flows by name, and the program that judges them."""

    lab: Lab
    near: Link
    wires: dict[str, Wire]
    driver: Process
    stack: ExitStack
    scenes: dict[str, Scene] = field(default_factory=dict)

    def scene(self, name: str, far: Endpoint | None = None) -> Scene:
        """Where a flow between the host and another one is made; the neighbour, if none is given."""
        made = Scene(self.lab, Link(self.near.a, far or self.near.b, 0))
        self.stack.enter_context(made.stack)
        self.stack.callback(made.stop.set)
        self.scenes[name] = made
        return made

    def judge(self, name: str) -> Verdict:
        """The verdict on a flow, asked once."""
        found: Verdict = json.loads(self.driver.ask(self.scenes[name].end, timeout=30))
        print(name, found["verdict"], found["also"], found["headline"], *found["reasons"], sep="\n  ")
        print({p["part"]: p["ns"] for p in found["parts"]})
        return found


def part(found: Verdict, name: str) -> float:
    ns = next(p["ns"] for p in found["parts"] if p["part"] == name)
    assert ns is not None, name
    return float(ns)


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
        with watching(lab, near.a) as driver, ExitStack() as stack:
            made = Town(lab, near, wires, driver, stack)
            a, b = near.a, near.b
            far = {name: link.b for name, link in links.items()}
            made.scene("healthy").asks(interval_s=0.01)
            made.scene("paced").stream(a, b, chunk=6000, pause_s=0.004)
            made.scene("long", far["long"]).asks()
            made.scene("losing", far["losing"]).stream(a, far["losing"])
            # No more under way than the queue takes: nothing is lost, all of it waits.  Twice as fast as the wire, and
            # no faster: of frames that are sent at once the first is timed, which waits less than those behind it.
            made.scene("slow", far["slow"]).stream(a, far["slow"], send_buffer=65536, rate=2_500_000)
            made.scene("read late here").stream(b, a, **SLOW_READER)  # type: ignore[arg-type]
            made.scene("read late there").stream(a, b, **SLOW_READER)  # type: ignore[arg-type]
            made.scene("idle").stream(a, b, chunk=300, pause_s=0.25)
            made.scene("answered late there").questions(a, b, think_s=LATE_S, pause_s=0.0)
            made.scene("answered late here").questions(b, a, think_s=LATE_S, pause_s=0.0)
            yield made


def test_nothing_is_wrong_with_a_healthy_flow(town: Town) -> None:
    found = town.judge("healthy")
    assert (found["verdict"], found["also"]) == ("healthy", [])
    # Every part is known, and they are the flow's own: no part is longer than the client saw the whole to be.
    assert all(p["ns"] is not None for p in found["parts"])
    assert found["whole_ns"] < 20 * MS


def test_nothing_is_wrong_with_a_writer_that_takes_its_time(town: Town) -> None:
    found = town.judge("paced")
    assert (found["verdict"], found["also"]) == ("healthy", [])


def test_delayed_wire(town: Town) -> None:
    found = town.judge("long")
    assert found["verdict"] == "propagation"
    _, middle = town.wires["long"].round_trip_ns()
    assert part(found, "wire") == pytest.approx(middle, rel=0.05)


def test_queue_in_the_network(town: Town) -> None:
    """A wire of 10 Mb/s in front of which more is under way than it carries."""
    wire = town.wires["slow"]
    wire.reset()  # what it held before is not in the verdict

    found = town.judge("slow")
    assert found["verdict"] == "path queueing"
    held, _ = wire.report()
    assert part(found, "wire") < 0.5 * held.hold_ns.median
    assert part(found, "beyond") == pytest.approx(held.hold_ns.median, rel=0.3)


def test_loss(town: Town) -> None:
    found = town.judge("losing")
    assert found["verdict"] == "packet loss"
    share = re.search(r"([\d.]+) % of the segments", found["headline"])
    assert share is not None
    assert float(share[1]) / 100 == pytest.approx(LOSS, abs=0.015)


def test_slow_reader_on_this_host(town: Town) -> None:
    found = town.judge("read late here")
    assert found["verdict"] == "receiver-limited"
    # It sleeps before each read, and there is more than one read's worth in the buffer.
    assert part(found, "reader") > 0.9 * LATE_S * 1e9


def test_slow_reader_at_the_far_end(town: Town) -> None:
    found = town.judge("read late there")
    assert found["verdict"] == "rwnd-limited"
    port = town.scenes["read late there"].end
    said = town.near.a.ns.run("ss", "-tin", "dst", port).stdout
    kernel = re.search(r"rwnd_limited:\d+ms\(([\d.]+)%\)", said)
    ours = re.search(r"window (\d+) % of the time", found["reasons"][0])
    assert kernel is not None, said
    assert ours is not None, found["reasons"]
    # The socket's since it was opened, and ours of two seconds.
    assert float(ours[1]) == pytest.approx(float(kernel[1]), abs=20)


def test_answers_that_are_late(town: Town) -> None:
    there = town.judge("answered late there")
    here = town.judge("answered late here")
    for found, verdict in ((there, "server latency"), (here, "app-limited")):
        assert found["verdict"] == verdict
        took = re.search(r"takes ([\d.]+) ms to answer", found["headline"])
        assert took is not None, found["headline"]
        assert float(took[1]) == pytest.approx(LATE_S * 1e3, rel=0.3)


def test_idle_writer(town: Town) -> None:
    found = town.judge("idle")
    assert found["verdict"] == "app-limited"
    # Not that its answers were late: nobody asks it.
    assert "writes little" in found["headline"]


def test_queue_of_this_host(town: Town) -> None:
    """tbf, 20 Mb/s with room for 60 ms: as long as its queue is full, that is how long a packet waits."""
    scene = town.scene("queue")
    scene.stream(scene.a, scene.b)
    with tbf(scene):
        found = town.judge("queue")
    assert found["verdict"] == "qdisc queueing"
    assert 10 * MS < part(found, "qdisc") < 70 * MS


def test_slow_stack(town: Town, tmp_path: Path) -> None:
    """One flow's packets take 1 ms in the host's own rules; the reader, the softirqs and the wire do not."""
    # Few packets: each keeps a CPU from everybody else's.
    server = town.scene("slow rules").asks(interval_s=0.02)

    with slow_rules(town.near.a.ns, server.port, RULES, tmp_path):
        found = town.judge("slow rules")
        seen = ask(town.near.a, server, count=25, interval_s=0.01)
        healthy = town.judge("healthy")
    assert found["verdict"] == "stack latency"
    # A mean of some seventy packets: one stall of the machine, of 50 ms, is another 0.7 ms.
    assert 0.9 * RULES < part(found, "receive") < 2 * RULES
    # No answer came sooner to another client of the same port, by its own clock.
    assert seen.min_ns > RULES
    # The other flows do not go through them.
    assert (healthy["verdict"], healthy["also"]) == ("healthy", [])


@pytest.mark.alone
def test_starved_softirq(town: Town) -> None:
    """Each NET_RX softirq comes 4 ms late; the last test here, since every other flow stops for it."""
    for scene in town.scenes.values():
        scene.stop.set()
    with burning("softirq_raise", NET_RX, HELD):
        time.sleep(0.5)  # let it be felt: what was before is in the first frames
        found = town.judge("healthy")
    assert found["verdict"] == "softirq latency"
    assert part(found, "softirq") == pytest.approx(HELD, rel=0.5)


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
    assert last["verdict"]["verdict"] == "healthy"
    assert last["verdict"]["unseen"] == []
    assert last["focus"]["socket"]["mss"] > 1000
    # Sixty-four bytes each way; a question is one packet, and each has an answer.
    assert last["focus"]["rx_answers"] == pytest.approx(last["focus"]["tx_data"], abs=2)

"""Round trips through the kernel's own netem, whose delay is known: none shorter, and none that could not be.

The faults follow one another on one link, under one nettop; by each way that TC programs can be attached here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import ladder
import pytest
from lab import Lab, oracle
from lab.traffic import answering, ask, ping, transfer
from observe import Station, endpoint, watching
from rtts import MS, histogram_sum, median, middle_bucket

VIAS = ["tcx", "clsact"] if ladder.version() >= (6, 6) else ["clsact"]
PINGS, QUESTIONS, PAYLOAD = 31, 43, 700_000
BUCKET = 1.0625  # of the histograms: at most that much above the value
# Between our hooks and the programs that measure the same lies an emulated CPU that does other things meanwhile.
ELSEWHERE = 15 * MS
STALL = 150 * MS


@dataclass(frozen=True)
class Fault:
    """What netem does at either end, and the round trip in ms: the least that it lets through, and the usual."""

    name: str
    near: str
    far: str
    least: float
    usual: float


FAULTS = (
    Fault("delay", "delay 10ms", "delay 10ms", 20, 20),
    # Evenly between 6 and 14 ms each way.
    Fault("jitter", "delay 10ms 4ms", "delay 10ms 4ms", 12, 20),
    Fault("loss", "delay 10ms loss 3%", "delay 10ms loss 3%", 20, 20),
    # What is chosen passes at once, before all that waits.
    Fault("reorder", "delay 15ms", "delay 5ms reorder 10%", 15, 20),
    Fault("duplicate", "delay 10ms duplicate 10%", "delay 10ms duplicate 10%", 20, 20),
)


@pytest.fixture(scope="module", params=VIAS)
def station(request: pytest.FixtureRequest) -> Iterator[Station]:
    with Lab() as lab:
        link = lab.veth()
        for end in (link.a, link.b):
            # A packet of 64 kB would be lost as one.
            end.ns.run("ethtool", "-K", end.name, "tso", "off", "gso", "off")
        with watching(lab, link.a, env={"NETTOP_VIA": request.param}) as watch:
            yield Station(lab, link, watch)


@pytest.mark.timing
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_rtt_is_what_netem_makes_it(station: Station, fault: Fault, request: pytest.FixtureRequest) -> None:
    near, far = station.link.a, station.link.b
    for end, words in ((near, fault.near), (far, fault.far)):
        end.ns.run("tc", "qdisc", "replace", "dev", end.name, "root", "netem", *words.split())
    least, usual = round(fault.least * MS), round(fault.usual * MS)
    identity = 4700 + FAULTS.index(fault)

    with station.watch.observing() as echoes:
        pings = ping(near, far, PINGS, interval_s=0.02, args=("-e", str(identity)))
    with station.watch.observing() as questions, answering(far) as server:
        asked = ask(near, server, count=QUESTIONS)
    before = oracle.netstat(near.ns)
    with station.watch.observing() as sent, transfer(near, far) as connection:
        connection.send_slowly_read(PAYLOAD, pause_s=0)
        remote = connection.remote
    again = oracle.difference(oracle.netstat(near.ns), before)["TcpRetransSegs"]
    lost = sum(q["drops"] for q in oracle.qdiscs(near) if q["kind"] == "netem")

    frames = [*echoes.frames, *questions.frames, *sent.frames]
    for hook in frames[-1]["probes"]["flows"]["hooks"]:
        assert not hook["hook"].startswith("tc_") or hook["via"] in request.node.name

    echoed = [row["rtt"] for row in echoes.rows(protocol="icmp", local=endpoint(near.v4, identity))]
    asked_rows = questions.rows(protocol="tcp", remote=endpoint(far.v4, server.port))
    by_echo = histogram_sum([frame["rtt"]["all"] for frame in echoes.frames])
    by_segment = histogram_sum([frame["rtt"]["all"] for frame in questions.frames])
    print(f"{fault.name}: ping {pings.received}/{pings.sent}, {pings.min_ns} to {pings.max_ns}, "
          f"client {asked.min_ns}, {asked.median_ns}, {asked.max_ns}; {by_echo}; {by_segment}; "
          f"again {again}, lost {lost}")  # fmt: skip

    # No sample is shorter than what netem lets through, none is longer than what a program waited for.
    every = histogram_sum([frame["rtt"]["all"] for frame in frames])
    assert min(every) >= least
    assert max(by_echo) <= pings.max_ns * BUCKET + STALL
    assert max(by_segment) <= asked.max_ns * BUCKET + STALL
    assert echoed[-1]["min_ns"] >= least
    assert echoed[-1]["method"] == "echo"
    assert asked_rows[-1]["rtt"]["method"] == "timestamp"
    assert asked_rows[-1]["rtt"]["min_ns"] >= least
    # The least is near what ping saw least; the usual is what ping and the client saw usually.
    assert echoed[-1]["min_ns"] <= pings.min_ns + ELSEWHERE
    for found, theirs in ((by_echo, median(list(pings.rtts_ns))), (by_segment, asked.median_ns)):
        assert theirs is not None
        assert max(least, theirs - ELSEWHERE) <= middle_bucket(found) <= theirs * BUCKET + ELSEWHERE
    assert middle_bucket(by_echo) >= usual * 0.8
    # A duplicate is no sample, a lost packet none either.
    assert 0.5 * pings.received <= sum(by_echo.values()) <= pings.sent
    assert QUESTIONS / 2 <= sum(by_segment.values()) <= 3 * QUESTIONS

    bulk = sent.flow(protocol="tcp", remote=endpoint(*remote))
    assert bulk["tx_retransmits_total"] == again
    assert fault.name != "loss" or lost > 0
    assert fault.name not in ("delay", "jitter") or lost == 0
    if fault.name in ("delay", "jitter"):
        for seen in (echoes, questions, sent):
            seen.agrees()

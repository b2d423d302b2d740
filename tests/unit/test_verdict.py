"""A flow's delay in parts and the verdict: each rule on figures that hold and on figures just below them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import changed, histogram, packed, written
from lab import layouts

from nettop.analysis.focus import Explainer
from nettop.analysis.verdict import explain
from nettop.analysis.verdict.evidence import split
from nettop.analysis.verdict.flow import check_end, chosen
from nettop.analysis.verdict.rules import VERDICTS
from nettop.core.errors import NettopError
from nettop.core.frame import Frame, ProbeStatus
from nettop.core.histogram import Histogram
from nettop.probes.flows.constants import FLAG_MIDWAY, FLAG_OPENED_BY_LOCAL, FLAG_OPENED_BY_REMOTE, METHODS
from nettop.probes.flows.focus import Focused, FocusedFold, Socket
from nettop.probes.flows.rows import FLAG_STAMPED_BY_REMOTE, ROW
from nettop.probes.flows.section import Flows, Sample, row_of
from nettop.probes.irq.section import Irq, Poll, SoftIrq
from nettop.probes.stages.section import FocusedStages, Stage, Stages
from nettop.probes.throughput.section import Direction, Qdisc, Throughput
from nettop.settings import build, parse

US, MS, S = 1_000, 1_000_000, 1_000_000_000
FLOW = 77


def stage(name: str, ns: float | None, count: int = 100) -> Stage:
    if ns is None:
        return Stage(name, "", "", "", Histogram.empty(), 0)
    delay = histogram(round(ns), count=count)
    return Stage(name, "", "", "", delay, 0, path_ns=delay.sum_ns, path_packets=count)


@dataclass(frozen=True)
class Facts:
    """What a second of a flow looks like.  Delays in ns; counts of the second.  By default all is well."""

    rtt: float | None = 300 * US
    least: float = 280 * US
    packets: tuple[int, int] = (500, 500)
    size: tuple[int, int] = (200_000, 400_000)
    again: tuple[int, int] = (0, 0)
    late: tuple[int, int] = (0, 0)
    rx: dict[str, float | None] = field(default_factory=lambda: {"stack": 2e3, "ip": 1e3, "socket": 2e3})
    reader: float | None = 40 * US
    tx: dict[str, float | None] = field(default_factory=lambda: {"ip": 2e3, "driver": 3e3})
    qdisc: float | None = 1 * US
    paced: float = 0  # of that
    queued: int = 100  # packets timed in it
    buffer: float | None = 4 * US
    softirq: float = 3 * US
    hardware: bool = True
    data: tuple[int, int] = (200, 300)
    zero: tuple[int, int] = (0, 0)
    answers: tuple[int, int] = (200, 200)
    answer_ns: tuple[float, float] = (400 * US, 60 * US)  # the mean of one
    busy: float = 0.6
    window: float = 0.0
    unsent: int = 0
    unread: int = 0
    cwnd: int = 10
    backlog: int = 0
    others: int = 0  # bytes that other flows send
    qdisc_drops: int = 0
    flags: int = FLAG_OPENED_BY_LOCAL
    protocol: int = 6
    focus: bool = True
    stages: bool = True
    socket: bool = True
    payload: int | None = None  # of what ends a round trip
    trips: int = 3  # samples
    unasked: tuple[int, int] | None = (0, 0)
    kernel_min: float | None = None
    receiver: float | None = None  # the kernel's round trip as a receiver
    kernel_again: tuple[int, int] | None = None  # retransmitted, and of these had already
    send_window: int = 65_536
    state: int = 2
    since: tuple[int, int] = (0, 0)  # packets since the start, where they are not those of the intervals
    dropped: int = 0
    last: int = 0  # when its newest packet came; 0: in every interval


def row(step: int, facts: Facts) -> Any:
    one = np.zeros(1, ROW)
    one["id"], one["protocol"], one["flags"], one["state"] = FLOW, facts.protocol, facts.flags, facts.state
    one["local"], one["remote"] = (np.frombuffer(packed(a), "u1") for a in ("10.0.0.1", "10.0.0.2"))
    one["local_port"], one["remote_port"] = 40_000, 443
    one["process"]["pid"], one["process"]["name"] = 7, b"curl"
    one["last"] = facts.last or (step + 1) * S
    for way, index in (("rx", 0), ("tx", 1)):
        one[f"{way}_packets"], one[f"{way}_bytes"] = facts.packets[index], facts.size[index]
        one[f"{way}_bytes_total"] = facts.size[index] * (step + 1)
        one[f"{way}_packets_total"] = facts.since[index] or facts.packets[index] * (step + 1)
        one[f"{way}_retransmits"] = facts.again[index] * (step + 1)
        one[f"{way}_out_of_order"] = facts.late[index] * (step + 1)
    if facts.rtt is not None:
        how = METHODS.index("timestamp")
        one["rtt"] = (facts.rtt, facts.least, 0, facts.rtt, facts.rtt / 9, step * S, 20, 20 * (step + 1), how)
    return one


def frame(step: int, facts: Facts) -> Frame:
    socket = Socket(
        time_ns=step * S, cwnd=facts.cwnd, ssthresh=None, mss=1448, send_window=facts.send_window,
        receive_window=65_536, in_flight=1448, unsent=facts.unsent, unread=facts.unread, span_ns=S,
        busy_ns=round(facts.busy * S),
        window_ns=round(facts.window * S),
        rtt_min_ns=None if facts.kernel_min is None else round(facts.kernel_min),
        rcv_rtt_ns=None if facts.receiver is None else round(facts.receiver),
        retransmits=None if facts.kernel_again is None else facts.kernel_again[0],
        dsack_dups=None if facts.kernel_again is None else facts.kernel_again[1],
    )  # fmt: skip
    focused = Focused(
        FLOW, facts.data, facts.zero, facts.answers,
        (round(facts.answers[0] * facts.answer_ns[0]), round(facts.answers[1] * facts.answer_ns[1])),
        socket if facts.socket else None, facts.unasked,
    )  # fmt: skip
    own = FocusedStages(
        rx=(
            *(replace(stage(n, ns), dropped=facts.dropped * (n == "socket")) for n, ns in facts.rx.items()),
            stage("application", facts.reader),
        ),
        tx=(
            stage("application", facts.buffer),
            *(stage(n, ns) for n, ns in facts.tx.items()),
            replace(stage("qdisc", facts.qdisc, facts.queued), paced_ns=round(facts.paced) * facts.queued),
        ),
        flow=FLOW,
    )  # fmt: skip
    samples: tuple[Sample, ...] = ()
    if facts.rtt is not None:
        one = Sample(step * S, round(facts.rtt), False, "timestamp", facts.payload)
        samples = (one,) * facts.trips
    softirq = histogram(round(facts.softirq), count=100)
    sections: dict[str, Any] = {
        "throughput": Throughput(
            rx=Direction(bytes=facts.size[0]), tx=Direction(bytes=facts.size[1] + facts.others),
            qdisc=Qdisc("tbf", facts.qdisc_drops, facts.backlog),
        ),
        "flows": Flows(row(step, facts), 1, (step + 1) * S, focused=focused if facts.focus else None, samples=samples),
        "stages": Stages(focus=own if facts.focus and facts.stages else None),
        "irq": Irq(
            soft=(SoftIrq("NET_RX", softirq, Histogram.empty()),),
            poll=(Poll("eth0", softirq if facts.hardware else None, Histogram.empty()),),
            hardware=facts.hardware,
        ),
    }  # fmt: skip
    probes = dict.fromkeys(sections, ProbeStatus("live"))
    if not facts.stages:
        probes["stages"] = ProbeStatus("off", "not asked for")
        del sections["stages"]
    return Frame(1_750_000_000 * S + step * S, S, "host", "eth0", probes=probes, sections=sections)


def explained(count: int = 10, **facts: Any) -> explain.Explanation:
    return explain.explain([frame(step, Facts(**facts)) for step in range(count)], FLOW)


def part(found: explain.Explanation, name: str) -> explain.Part:
    return next(p for p in found.parts if p.name == name)


# --- the verdicts --------------------------------------------------------------------------------------------------

BULK = {
    "answers": (0, 0), "data": (0, 900), "packets": (400, 900), "size": (30_000, 1_200_000), "reader": None, "busy": 1.0
}  # fmt: skip
IDLE = {
    "answers": (0, 0),
    "data": (0, 4),
    "packets": (4, 4),
    "size": (264, 1400),
    "busy": 0.01,
    "reader": None,
}
SERVED = {"flags": FLAG_OPENED_BY_REMOTE, "packets": (40, 40), "answers": (9, 9), "data": (10, 10)}
DOWNLOAD = {
    "answers": (0, 0), "data": (300, 0), "packets": (900, 400), "size": (1_200_000, 30_000), "rtt": None,
    "flags": FLAG_OPENED_BY_LOCAL | FLAG_STAMPED_BY_REMOTE, "kernel_min": 2 * MS,
}  # fmt: skip
LATE = {"answers": (30, 30), "answer_ns": (30 * MS, 60 * US), "packets": (30, 30), "size": (3000, 3000)}
SYN = {"state": 1, "packets": (0, 1), "size": (0, 74), "since": (0, 3), "rtt": None, "focus": False}
CASES = {
    "refused": [{**SYN, "state": 5, "since": (1, 1), "packets": (1, 1), "size": (54, 74)}],
    "unanswered": [
        SYN,
        # A SYN flood: nobody completes the handshake.
        {**SYN, "flags": FLAG_OPENED_BY_REMOTE, "again": (0, 3), "since": (1, 4), "packets": (1, 3), "size": (7, 7)},
        # One SYN alone, three seconds and more ago: the rows' clock is at ten seconds.
        {**SYN, "since": (0, 1), "last": 6 * S},
    ],
    # A SYN-ACK again and again: no loss.
    "not accepted": [
        {**SYN, "state": 2, "again": (3, 0), "since": (4, 2), "packets": (3, 1), "size": (7, 74), "focus": True}
    ],
    "rwnd-limited": [
        {**BULK, "window": 0.3, "unsent": 90_000, "zero": (1, 0)},
        {**BULK, "window": 0.3, "unsent": 90_000, "send_window": 1000},
        # It never closes its window, and the way is long for it.
        {**BULK, "window": 0.9, "rtt": 20 * MS, "least": 20 * MS, "send_window": 20_000},
        {**BULK, "socket": False, "zero": (1, 0)},
    ],
    "server latency": [
        {"answers": (5, 5), "answer_ns": (50 * MS, 60 * US)},
        # An older connection: its ACKs come with the answers, and the kernel has seen shorter round trips.
        {**LATE, "flags": FLAG_MIDWAY, "rtt": 30 * MS, "least": 29 * MS, "payload": 64, "kernel_min": 11 * US},
    ],
    "receiver-limited": [
        {"reader": 6 * MS},
        {"reader": 25 * MS, "rtt": 2 * MS, "softirq": 1 * MS},
        {"reader": None, "zero": (0, 2), "unread": 60_000},
        {"stages": False, "zero": (0, 2), "unread": 60_000},
        {"protocol": 17, "socket": False, "dropped": 60},
    ],
    "qdisc queueing": [
        {"rtt": 3 * MS, "qdisc": 2.5 * MS, "packets": (500, 100)},
        {"rtt": 40 * MS, "backlog": 16_000, "qdisc_drops": 3, "again": (0, 9)},
        {"rtt": 40 * MS, "backlog": 16_000, "stages": False},
    ],
    "softirq latency": [
        {"rtt": 2 * MS, "softirq": 1 * MS, "reader": 15 * MS},
        {"rtt": 2 * MS, "softirq": 1 * MS},
        # A device without interrupts calls netif_rx: it is the flow's own packets that waited.
        {"rtt": 2 * MS, "softirq": 1 * MS, "hardware": False, "rx": {"stack": 1 * MS}},
    ],
    "packet loss": [
        {"again": (0, 6)},
        {"again": (6, 0)},
        {"again": (0, 6), "rtt": 60 * MS, "least": 20 * MS},
        {"again": (0, 0), "kernel_again": (9, 1)},
    ],
    "stack latency": [{"rx": {"local": 0.6 * MS}}, {"tx": {"ip": 0.3 * MS, "driver": 0.3 * MS}}],
    "app-limited": [IDLE, {**SERVED, "answer_ns": (1 * MS, 30 * MS)}],
    "propagation": [{"rtt": 40 * MS, "least": 39 * MS}, {**DOWNLOAD, "kernel_min": 40 * MS}],
    "path queueing": [{"rtt": 30 * MS, "least": 10 * MS}, {**DOWNLOAD, "receiver": 30 * MS}],
    "healthy": [
        {},
        BULK,
        {"rtt": 20 * MS, "least": 19 * MS},
        {"reader": 4 * MS},
        {"rtt": 1.4 * MS, "qdisc": 0.9 * MS},
        {"rtt": 2 * MS, "softirq": 0.4 * MS},
        {"rtt": 20 * MS, "least": 18 * MS, "softirq": 1 * MS},
        {"again": (0, 4)},
        # The kernel knows better than what is seen: none was sent again, or all of it was there already.
        {"again": (0, 60), "kernel_again": (0, 0)},
        {"again": (0, 60), "kernel_again": (60, 58)},
        {**BULK, "window": 0.2, "zero": (1, 0)},
        # A small window by choice, that never closes, over a short way.
        {**BULK, "window": 0.9, "send_window": 8000},
        {"rx": {"local": 0.2 * MS}},
        {**DOWNLOAD, "receiver": 3 * MS},
        # Little sends much: the pauses of the sender are in it.
        {**DOWNLOAD, "receiver": 21 * MS},
        # What waits behind a gap in the stream waits in TCP, and not for it.
        {"rx": {"socket": 5 * MS}, "late": (2, 0)},
        # Nobody asks: the server has nothing to say, and that is not its fault.
        {**SERVED, "answer_ns": (900 * MS, 1 * MS)},
        # The far end speaks unasked: what comes after our data is no answer to it.
        {"answers": (5, 5), "answer_ns": (50 * MS, 60 * US), "unasked": (30, 0)},
        # The far end delays its ACKs, and nothing waits for them.
        {"rtt": 40.4 * MS, "size": (33_000, 60_000), "payload": 0},
    ],
    "nothing found": [
        {"rtt": None},
        {"focus": False},
        {"stages": False},
        {"socket": False},
        DOWNLOAD,
        {**DOWNLOAD, "receiver": 30 * MS, "unasked": (9, 0)},
        {**DOWNLOAD, "receiver": 30 * MS, "flags": FLAG_OPENED_BY_LOCAL},
        {"packets": (0, 500)},
        {"protocol": 17, "socket": False, "again": (0, 50)},
        # Answers that come late, and nothing says why: not the far end, which nobody has seen to be quicker.
        {**LATE, "flags": FLAG_MIDWAY, "rtt": 30 * MS, "least": 29 * MS, "payload": 64},
        # A connection that was reset after its handshake: not refused.
        {"state": 5, "since": (1, 2), "focus": False},
        # One SYN, three seconds ago: the second may still come.
        {**SYN, "since": (0, 1), "last": 7 * S},
        # A few packets: nothing to judge loss by.
        {"packets": (4, 4), "again": (0, 1), "focus": False},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        pytest.param(name, facts, id=f"{name} {n}")
        for name, each in CASES.items()
        for n, facts in enumerate(each)
    ],
)
def test_verdict(expected: str, facts: dict[str, Any]) -> None:
    found = explained(**facts)
    assert found.verdict == expected, (found.headline, found.reasons)
    assert found.to_json()["term"] == (None if expected in ("healthy", "nothing found") else expected)
    assert found.headline
    assert found.reasons


@pytest.mark.parametrize("facts", [SYN, {**SYN, "since": (0, 1), "last": 6 * S}])
def test_silence_is_not_said_to_be_no_refusal(facts: dict[str, Any]) -> None:
    """A firewall rejects with ICMP, which is not looked at."""
    found = explained(**facts)
    assert found.verdict == "unanswered"
    assert any("ICMP error" in reason and "would not show" in reason for reason in found.reasons)
    assert "no refusal" not in " ".join(found.reasons)


def handshake(*then: Facts) -> explain.Explanation:
    return explain.explain([frame(step, facts) for step, facts in enumerate(then)], FLOW)


WAITING = Facts(**{**SYN, "since": (0, 1)})
OPENED = Facts(packets=(4, 5), again=(0, 1), since=(4, 6), focus=False)
LATE_HANDSHAKE = "a late handshake: after 1.00 s this host had sent {}, and nothing had come back"


def test_a_syn_that_was_lost_is_said_of_the_connection_that_came_about() -> None:
    """One frame saw the SYN and no answer; then there was a connection, and one segment sent again: that SYN."""
    assert LATE_HANDSHAKE.format("1 SYN") in handshake(WAITING, OPENED).reasons
    in_time = handshake(WAITING, replace(OPENED, again=(0, 0)))
    assert not any("handshake" in reason for reason in in_time.reasons), "the far end took its time"


def test_two_syns_before_an_answer_are_a_late_handshake_whatever_else_was_sent_again() -> None:
    found = handshake(replace(WAITING, since=(0, 2)), replace(OPENED, again=(0, 0)))
    assert LATE_HANDSHAKE.format("2 SYNs") in found.reasons


def test_of_a_flow_too_short_for_a_verdict_it_is_said_what_was_sent_again() -> None:
    found = handshake(OPENED)
    assert found.verdict == ""
    assert found.reasons == ("1 of 10 segments retransmitted so far",)
    assert handshake(replace(OPENED, again=(0, 0))).reasons == ()


def test_a_handshake_that_no_frame_saw_is_not_called_late() -> None:
    assert not any("handshake" in reason for reason in handshake(OPENED, OPENED).reasons)


def test_every_verdict_has_a_case() -> None:
    assert set(CASES) == set(VERDICTS)


def test_the_reasons_have_the_figures() -> None:
    found = explained(**BULK, window=0.83, unsent=420_000, zero=(12, 0))
    text = " ".join(found.reasons)
    assert "83 %" in text
    assert "120 times" in text  # twelve in each of ten seconds
    assert "420 kB" in text
    assert "280 µs" in text


def test_what_was_not_seen_is_said() -> None:
    found = explained(stages=False, rtt=None)
    assert found.verdict == "nothing found"
    for words in ("round trip", "qdisc", "receive stack", "wait for reader"):
        assert any(text.startswith(words) for text in found.unseen), words
        assert any(words in reason for reason in found.reasons), words
    assert explained().unseen == ()


def test_one_stall_is_no_trouble() -> None:
    """One interval of ten in which data waited for a second, so that the mean of all is long."""
    frames = [frame(step, Facts(reader=1000 * MS if step == 4 else 40 * US)) for step in range(10)]
    found = explain.explain(frames, FLOW)
    assert part(found, "reader").ns == pytest.approx(100 * MS, rel=0.01)
    assert found.verdict == "healthy"


# --- round trips ---------------------------------------------------------------------------------------------------

TICK = 1 * MS  # of a TSval
NEAR = 4 * MS


def echoes(trips: list[float], back: float, payload: int = 64, size: int = 130) -> explain.Explanation:
    """Answers with data, ten in each second, whose way back has ``back`` of what they are longer than the least."""
    frames = []
    for step, trip in enumerate(trips):
        made = frame(
            step,
            Facts(rtt=trip, least=NEAR, answers=(10, 10), answer_ns=(trip, 60 * US), size=(9, 500 * size)),
        )
        samples = []
        for n in range(10):
            arrives = step * S + n * S // 10
            sent = arrives - NEAR / 2 - back * (trip - NEAR)
            stamp = 4_294_960_000 + int(sent // TICK) & 0xFFFFFFFF  # it wraps after seven seconds
            wobble = n * 20 * US
            samples.append(Sample(arrives + wobble, round(trip) + wobble, False, "timestamp", payload, stamp))
        frames.append(changed(made, "flows", samples=tuple(samples)))
    return explain.explain(frames, FLOW)


GROWN = [NEAR] * 6 + [44 * MS] * 10


def test_a_way_that_became_longer_is_the_networks() -> None:
    """By the far end's clock half of it is on the way back: no application can do that."""
    found = echoes(GROWN, 0.5)
    assert found.verdict == "path queueing"
    assert part(found, "beyond").ns == pytest.approx(40 * MS, rel=0.02)
    assert any("way back alone is 20" in reason for reason in found.reasons)


def test_answers_that_became_late_are_the_far_ends() -> None:
    """The same times, and the way back is what it was."""
    found = echoes(GROWN, 0.0)
    assert found.verdict == "server latency"
    assert "takes 40" in found.headline


def test_bare_acks_of_small_segments() -> None:
    """All of them 40 ms late are a receiver's timer; not where the way back has become longer by its clock."""
    assert echoes(GROWN, 0.5, payload=0, size=60).verdict == "path queueing"
    held = echoes(GROWN, 0.0, payload=0, size=60)
    assert part(held, "beyond").ns == 0
    assert "delayed ACK" in held.reasons[-1]
    # Of full segments none is held back.
    assert echoes(GROWN, 0.0, payload=0, size=1400).verdict == "path queueing"


def test_jitter_is_no_queue() -> None:
    """A short round trip among any ten: no queue stands there, whatever the mean is."""
    made = frame(0, Facts())
    samples = tuple(
        Sample(n * S // 10, round(NEAR + (n % 5) * 6 * MS), False, "timestamp", 0) for n in range(30)
    )
    rows = made.sections["flows"].rows.copy()  # type: ignore[attr-defined]
    rows["rtt"]["min"] = NEAR
    made = changed(made, "flows", samples=samples, rows=rows)
    frames = [replace(made, time_ns=made.time_ns + n * S) for n in range(9)]
    found = explain.explain(frames, FLOW)
    assert part(found, "beyond").ns == pytest.approx(12 * MS, rel=0.01)
    assert found.verdict == "healthy"


def test_what_holds_besides_is_named() -> None:
    found = explained(reader=20 * MS, again=(0, 50))
    assert (found.verdict, found.also) == ("receiver-limited", ("packet loss",))


def test_too_little_is_no_verdict() -> None:
    assert explained(1).verdict == ""
    assert explain.explain([], FLOW).verdict == ""
    assert explain.explain([frame(0, Facts())] * 3, FLOW + 1).verdict == ""


def test_only_the_newest_intervals_that_moved_are_judged() -> None:
    sick = [frame(step, Facts(reader=50 * MS)) for step in range(10)]
    well = [frame(step, Facts()) for step in range(10, 20)]
    still = [frame(step, Facts(packets=(0, 0), size=(0, 0), reader=None, rtt=None)) for step in range(20, 25)]
    assert explain.explain(sick, FLOW).verdict == "receiver-limited"
    found = explain.explain([*sick, *well, *still], FLOW)
    assert (found.verdict, found.intervals) == ("healthy", 10)


def test_what_was_before_the_window_is_not_counted() -> None:
    """A thousand retransmissions, and then none."""
    made = frame(0, Facts(again=(0, 1000)))
    frames = [replace(made, time_ns=made.time_ns + n * S) for n in range(11)]
    assert explain.explain(frames, FLOW).verdict == "healthy"


# --- the parts -----------------------------------------------------------------------------------------------------


def test_the_parts_of_the_way_are_what_was_put_in_and_add_up() -> None:
    found = explained(rtt=10 * MS, least=4 * MS, qdisc=2 * MS, softirq=1 * MS, tx={"ip": 1e5, "driver": 2e5})
    known = {p.name: p.ns for p in found.parts}
    assert known["qdisc"] == 2 * MS
    assert known["softirq"] == 1 * MS
    assert known["send"] == pytest.approx(3e5)
    assert known["wire"] == 4 * MS
    # 10 ms less the least, the qdisc, the driver and the interrupt.
    assert known["beyond"] == pytest.approx(10 * MS - 4 * MS - 2 * MS - 2e5 - 1 * MS)
    assert known["receive"] == pytest.approx(5e3)
    assert known["reader"] == 40 * US
    assert known["buffer"] == 4 * US
    assert found.whole_ns == pytest.approx(sum(known[n] or 0 for n in explain.WAY))
    assert sum(p.share or 0 for p in found.parts) == pytest.approx(1)
    assert part(found, "buffer").share is None


def test_one_interval_splits_as_the_whole_does() -> None:
    facts = Facts(rtt=10 * MS, least=4 * MS, qdisc=2 * MS)
    one = split(frame(0, facts), FLOW)
    found = explain.explain([frame(s, facts) for s in range(10)], FLOW)
    for name in explain.NAMES:
        assert one[name] == pytest.approx(part(found, name).ns), name
    assert split(frame(0, facts), 1) == dict.fromkeys(explain.NAMES)


def test_a_host_wide_wait_is_never_longer_than_the_flows_own_round_trip() -> None:
    assert part(explained(rtt=300 * US, softirq=50 * MS), "softirq").ns == 300 * US


def test_what_waits_for_the_softirq_is_not_counted_again_in_the_stack() -> None:
    """A driver that calls netif_rx: the wait is between its call and the stack."""
    found = explained(rtt=5 * MS, softirq=2 * MS, hardware=False, rx={"stack": 2.1 * MS, "ip": 1e3})
    assert part(found, "softirq").ns == 2 * MS
    assert part(found, "receive").ns == pytest.approx(0.101 * MS)


def test_a_queue_that_cuts_packets_is_known_by_what_waits_in_it() -> None:
    """16 kB that go at 400 kB/s wait 40 ms, also where the flow was never seen without the queue."""
    assert part(explained(rtt=90 * MS, backlog=16_000), "qdisc").ns == pytest.approx(40 * MS)
    always = explained(rtt=41 * MS, least=40.5 * MS, backlog=16_000)
    assert part(always, "qdisc").ns == pytest.approx(40 * MS)
    assert part(always, "wire").ns == pytest.approx(1 * MS, rel=0.01)
    assert always.verdict == "qdisc queueing"


def test_a_queue_that_is_this_flows_is_known_by_what_waits_in_it_also_where_packets_were_timed() -> None:
    """Many at once find it short and are most of the packets; it is long for most of the time, and so are RTTs."""
    found = explained(rtt=45 * MS, backlog=16_000, qdisc=10 * MS, queued=490)
    assert part(found, "qdisc").ns == pytest.approx(40 * MS)
    assert (found.verdict, found.also) == ("qdisc queueing", ())


def test_samples_that_are_newer_than_the_row_are_enough() -> None:
    """With --scan-interval the table is read more rarely than they come."""
    history = [frame(step, Facts()) for step in range(10)]
    for each in history:
        row_of(each, FLOW)["rtt"]["samples_total"] = 0
    assert explain.explain(history, FLOW).verdict == "healthy"


def test_what_fq_holds_until_its_time_has_come_is_no_queue() -> None:
    """It is in the round trip, which begins before the qdisc, and is nobody's trouble."""
    fq = {"qdisc": 9.1 * MS, "paced": 9 * MS, "queued": 490, "backlog": 16_000}
    found = explained(**BULK, rtt=9.4 * MS, least=280 * US, **fq)
    assert part(found, "qdisc").ns == pytest.approx(0.1 * MS)
    assert part(found, "beyond").ns == pytest.approx(20 * US, abs=10 * US)
    assert part(found, "buffer").ns == pytest.approx(9 * MS + 4 * US)
    assert found.verdict == "healthy"


def test_a_flow_that_passes_the_queue_by_does_not_wait_in_it() -> None:
    """Most of what the interface sends is others': only what its round trips are longer can be the queue."""
    small = {"size": (4000, 40_000), "others": 360_000, "backlog": 16_000}
    assert part(explained(rtt=0.3 * MS, **small), "qdisc").ns == pytest.approx(20 * US)
    assert part(explained(rtt=30 * MS, **small), "qdisc").ns == pytest.approx(29.72 * MS)


@pytest.mark.parametrize(
    ("facts", "name", "note"),
    [
        ({"stages": False}, "reader", "stages is off"),
        ({"focus": False}, "qdisc", "not in focus"),
        ({"rtt": None}, "wire", "no round trip"),
        (DOWNLOAD, "beyond", "no data is sent"),
        ({}, "softirq", "host-wide"),
        ({}, "wire", "timestamp"),
    ],
)
def test_what_is_missing_says_why(facts: dict[str, Any], name: str, note: str) -> None:
    assert part(explained(**facts), name).note == note


# --- readings of the socket ----------------------------------------------------------------------------------------


def reading(time_ns: int, chrono: tuple[int, int, int] = (0, 0, 0), start: int = 0, **more: int) -> Any:
    value = np.zeros(1, layouts.of("flows")["focused"].value)[0]
    value["id"], value["time"], value["jiffies"] = FLOW, time_ns, 5_000_000_000 + time_ns // (4 * MS)
    value["chrono"], value["chrono_start"] = chrono, (5_000_000_000 + start // (4 * MS)) & 0xFFFFFFFF
    value["mss"], value["send_window"] = 1000, 10_000
    for name, number in more.items():
        value[name] = number
    return value


def test_the_kernels_account_becomes_time() -> None:
    fold = FocusedFold()
    fold(reading(1 * S, (10, 0, 0)), FLOW)
    second = fold(reading(2 * S, (60, 100, 0)), FLOW)
    assert second
    assert (second.socket.span_ns, second.socket.busy_ns, second.socket.window_ns) == (S, 600 * MS, 400 * MS)


def test_what_goes_on_counts_as_what_it_is() -> None:
    """Unsent data that the window has no room for, since 1.2 s; and data in flight, since then."""
    fold = FocusedFold()
    fold(reading(1 * S), FLOW)
    stalled = fold(reading(2 * S, start=1200 * MS, unsent=5000, send_window=0), FLOW)
    assert stalled
    assert stalled.socket.window_ns == 800 * MS
    busy = fold(reading(3 * S, (0, 200, 0), start=2000 * MS, in_flight=5000), FLOW)
    assert busy
    assert (busy.socket.window_ns, busy.socket.busy_ns) == (0, S)


def test_another_flow_starts_anew_and_no_flow_is_none() -> None:
    fold = FocusedFold()
    assert fold(reading(0, id=0), 0) is None
    fold(reading(1 * S, data=(5, 7)), FLOW)
    again = fold(reading(2 * S, data=(9, 7)), FLOW)
    # The entry is of the flow that was in focus before, until the other one has moved.
    waiting = fold(reading(2 * S, data=(9, 8)), FLOW + 1)
    other = fold(reading(3 * S, id=FLOW + 1, data=(2, 3)), FLOW + 1)
    assert again
    assert other
    assert waiting == Focused(FLOW + 1, unasked=(0, 0))
    assert (again.data, other.data, other.flow) == ((4, 0), (2, 3), FLOW + 1)
    assert fold(reading(4 * S, id=FLOW + 1), 0) is None


def test_the_focus_survives_json() -> None:
    made = frame(3, Facts(zero=(1, 2))).sections["flows"]
    again = Flows.from_frame(json.loads(json.dumps(made.in_frame(10, ""))))
    assert again.focused == made.focused
    assert again.rows["flags"][0] == FLAG_OPENED_BY_LOCAL
    assert Flows.from_frame({}).focused is None


def test_a_history_keeps_the_flow_in_focus() -> None:
    made = frame(0, Facts()).sections["flows"]
    others = np.repeat(made.rows, 9)
    others["id"], others["rx_bytes"] = np.arange(9) + 1, 10**9
    kept = replace(made, rows=np.concatenate([others, made.rows])).trimmed(5)
    assert FLOW in kept.rows["id"]
    assert len(kept.rows) == 6


# --- which flow ----------------------------------------------------------------------------------------------------


def rows(*ends: tuple[str, int, str, int, int]) -> Frame:
    table = np.zeros(len(ends), ROW)
    for one, (local, local_port, remote, remote_port, traffic) in zip(table, ends, strict=True):
        one["id"] = traffic
        one["local"], one["remote"] = (np.frombuffer(packed(a), "u1") for a in (local, remote))
        one["local_port"], one["remote_port"], one["tx_bytes_total"] = local_port, remote_port, traffic
    return replace(frame(0, Facts()), sections={"flows": Flows(table)})


MANY = rows(
    ("10.0.0.1", 40_000, "10.0.0.2", 443, 10),
    ("10.0.0.1", 40_001, "10.0.0.2", 443, 30),
    ("10.0.0.1", 443, "10.0.0.3", 50_000, 20),
    ("2001:db8::1", 40_000, "2001:db8::2", 443, 5),
)


@pytest.mark.parametrize(
    ("end", "flow"),
    [
        ("10.0.0.2:443", 30),
        ("10.0.0.2", 30),
        (":443", 30),
        (":50000", 20),
        ("10.0.0.1:40000", 10),
        ("10.0.0.1:40000-10.0.0.2:443", 10),
        ("[2001:db8::2]:443", 5),
        ("2001:db8::2", 5),
        ("[2001:db8::1]", 5),
        ("2001:db8::1-[2001:db8::2]:443", 5),
        ("10.0.0.9:443", 0),
        ("10.0.0.2:443-10.0.0.1:40000", 0),  # the local end is the first one
    ],
)
def test_an_end_chooses_the_busiest_flow_that_has_it(end: str, flow: int) -> None:
    assert chosen(MANY, end) == flow


@pytest.mark.parametrize(
    "end", ["", ":", "web.example:443", "10.0.0.1:http", "1.2.3.4-5.6.7.8-9.9.9.9", "10.0.0.300"]
)
def test_what_is_no_end_is_refused(end: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the text is for the user, whatever it is
        check_end(end)


# --- without a screen ----------------------------------------------------------------------------------------------


def test_the_outputs_explain_the_flow() -> None:
    frames = [frame(step, Facts(reader=50 * MS)) for step in range(3)]
    lines = written("ndjson", *frames, focus="10.0.0.2:443").splitlines()
    first, *_, last = [json.loads(line)["verdict"] for line in lines]
    assert first["verdict"] is None
    assert last["verdict"] == "receiver-limited"
    assert last["parts"][-1]["ns"] == 50 * MS
    text = written("text", *frames, focus="10.0.0.2:443")
    assert "receiver-limited" in text
    assert "wait for reader" in text


def test_the_command_line_takes_an_end_for_batch_alone() -> None:
    parsed = parse(["-b", "--focus", "10.0.0.2:443", "lo"])
    assert build(parsed, Path("/nonexistent")).focus == "10.0.0.2:443"
    with pytest.raises(NettopError, match="--batch"):
        parse(["--focus", ":443", "lo"])


def test_without_an_end_nothing_is_explained() -> None:
    assert "verdict" not in json.loads(written("ndjson", frame(0, Facts())))


def test_a_flow_that_went_makes_room_for_the_next() -> None:
    explainer = Explainer(":443")
    assert explainer.add(replace(MANY, sections={})) is None
    explainer.add(MANY)
    assert explainer.flow == 30
    explainer.add(rows(("10.0.0.1", 40_000, "10.0.0.2", 443, 10)))
    assert explainer.flow == 10

"""The rules of the verdict, each with its evidence: docs/verdict.md gives the reasons for every threshold."""

from __future__ import annotations

from collections.abc import Callable

from nettop.analysis.verdict.evidence import WAY, Evidence, Parts
from nettop.analysis.verdict.trips import GROUP
from nettop.core import units
from nettop.probes.flows.constants import FLAG_MIDWAY
from nettop.probes.flows.handshake import Finding, times

MS = 1_000_000
OFTEN = 0.3  # of the intervals: below, it is a stall, and no trouble of the flow's
WINDOW_SHARE = 0.25  # of the time, limited by the far end's window
READ_NS, READ_OFTEN = 5 * MS, 0.5  # of the packets, and of the intervals: a stall has few of either
STARVED = 20  # times as long as a starved softirq: no process waits so long for a CPU alone
QUEUE_NS, QUEUE_SHARE = 1 * MS, 0.3
SOFTIRQ_NS, SOFTIRQ_SHARE, SOFTIRQ_OFTEN, SOFTIRQ_PACKETS = MS // 2, 0.1, 0.5, 10
LOSS_SHARE, LOSS_COUNT, LOSS_OF = 0.01, 3, 50
STACK_NS, STACK_SHARE = MS // 2, 0.4
ANSWER_NS, ANSWER_COUNT, ANSWER_OFTEN = 20 * MS, 3, 0.5
WAITING_NS, WAITING_SHARE = 5 * MS, 0.5
DISTANCE_NS, DISTANCE_SHARE = 25 * MS, 0.6
IDLE_SHARE, IDLE_WRITES = 0.5, 10  # busy for less of the time, and fewer writes a second

# The verdicts, worst evidence first: of several that hold, the first is the verdict and the rest are named beside it.
# HEALTHY has evidence for every part; without that it is NOTHING_FOUND.
NO_CONNECTION, FAR_END, READS_LATE, QUEUE, INTERRUPTS, LOSS, STACK, WRITES_LITTLE, NETWORK = (
    "no connection",
    "far end",
    "application reads late",
    "queue",
    "interrupts",
    "loss",
    "stack",
    "application writes little",
    "network",
)
HEALTHY, NOTHING_FOUND = "healthy", "nothing found"
VERDICTS = (
    *(NO_CONNECTION, FAR_END, READS_LATE, QUEUE, INTERRUPTS, LOSS, STACK, WRITES_LITTLE, NETWORK),
    *(HEALTHY, NOTHING_FOUND),
)


def _of_the_way(e: Evidence, ns: float) -> str:
    return units.percent(ns / e.moved_ns if e.moved_ns else None)


def _exceeds(name: str, ns: float) -> Callable[[Parts], bool | None]:
    """Whether this part of an interval is that long; None where it is not known."""

    def exceeds(parts: Parts) -> bool | None:
        value = parts[name]
        return None if value is None else value >= ns

    return exceeds


def _far_end(e: Evidence) -> Finding | None:
    """It takes what it is sent too slowly: its window is closed, and the kernel has accounted for the time."""
    if not e.tcp:
        return None
    zero = e.zero_windows[0]
    said = (f"it announced a window of 0 {times(zero)}",) if zero else ()
    least = (
        (f"the wire is short: an RTT of {units.duration(e.least_ns)} has been seen",) if e.least_ns else ()
    )
    if e.socket is not None and e.account_ns and e.data[1]:
        share = e.window_ns / e.account_ns
        sockets = [f.socket for f in e.looks if f.socket is not None]
        often = [s.window_ns >= WINDOW_SHARE * s.span_ns for s in sockets if s.span_ns]
        if share < WINDOW_SHARE or sum(often) < OFTEN * len(often):
            return None
        figures = (
            f"the kernel waited for its window {units.percent(share)} of the time (rwnd_limited)",
            *said,
            f"its window now: {units.size(e.socket.send_window)}; {units.size(e.socket.unsent)} wait here to be sent",
        )
        narrow = [s for s in sockets if s.send_window < 2 * s.mss]
        if zero >= ANSWER_COUNT or len(narrow) >= OFTEN * len(sockets):
            return Finding(
                "the far end takes the data too slowly: its window is full",
                (*figures, *least),
                ("buffer", "beyond"),
                "rwnd-limited",
            )
        if e.trips.trusted and (e.least_ns or 0.0) >= WAITING_NS:
            room = max(s.send_window for s in sockets)
            return Finding(
                f"the far end's window is small for this way: {units.size(room)} a round trip",
                (*figures, f"a round trip takes {units.duration(e.least_ns)} at least; it reads in time"),
                ("buffer", "wire"),
                "rwnd-limited",
            )
        return None
    if e.socket is None and zero >= ANSWER_COUNT:
        return Finding(
            "the far end takes the data too slowly: its window is closed",
            (*said, *least),
            term="rwnd-limited",
        )
    return None


def _pushes(e: Evidence, end: int) -> bool:
    """Whether this end speaks unasked: then what comes after the other's data need not be an answer to it."""
    return e.unasked is not None and 2 * e.unasked[end] > e.answers[end]


def _answers_late(e: Evidence) -> Finding | None:
    """Its answers take far longer than a round trip: the far end thinks."""
    if e.local_asks is not True or e.answers[0] < ANSWER_COUNT or _pushes(e, 0):
        return None
    mean = e.answer_ns[0] / e.answers[0]
    network = e.rtt_ns
    if network is None or not e.trips.trusted:
        return None
    thinks = mean - network
    over = network + ANSWER_NS
    if thinks < ANSWER_NS or thinks < 2 * network or e.answers_often(0, over) < ANSWER_OFTEN:
        return None
    reasons = [
        f"from a question to the first byte of its answer: {units.duration(mean)}, the mean of {e.answers[0]}",
        f"the round trip of the network is {units.duration(network)} of that",
    ]
    if e.trips.late_ns:
        back = e.trips.return_ns
        reasons.append(
            "its ACKs come with the answers; a queue on the way there would look the same"
            if back is None
            else f"by its own clock the way back is no longer than before ({units.duration(max(back, 0.0))})"
        )
    return Finding(
        f"the far end takes {units.duration(thinks)} to answer", tuple(reasons), term="server latency"
    )


def _reads_late(e: Evidence) -> Finding | None:
    """What has arrived waits for the application."""
    waits = e.parts["reader"]
    closed = e.zero_windows[1]
    figures = []
    unread = e.socket.unread if e.socket is not None else 0
    if unread:
        figures.append(f"{units.size(unread)} have arrived and are not read")
    if closed:
        figures.append(f"our own window was closed {times(closed)}: there was no room for more")
    lost = e.dropped_by_reader if not e.tcp else 0
    if lost >= LOSS_COUNT and lost >= LOSS_SHARE * e.packets[0]:
        share = units.percent(lost / max(e.packets[0], lost))
        return Finding(
            f"{e.process} reads too slowly: {units.count(lost)} datagrams were dropped",
            (f"its receive buffer was full for {share} of those received", *figures),
            ("reader",),
            "receiver-limited",
        )
    if waits is not None and _interrupts(e) is not None and waits < STARVED * (e.parts["softirq"] or 0.0):
        return None  # where softirqs wait for a CPU, processes do too
    if (
        waits is not None
        and waits >= READ_NS
        and waits >= max(e.parts[n] or 0.0 for n in WAY)
        and e.often(_exceeds("reader", READ_NS)) >= READ_OFTEN
        and e.waited(READ_NS) >= READ_OFTEN
        and (
            _answers_late(e) is None or waits > e.answer_ns[0] / e.answers[0]
        )  # the larger wait is the cause
    ):
        share = units.percent(waits / (e.moved_ns + waits))
        return Finding(
            f"{e.process} reads {units.duration(waits)} after the data is there",
            (f"that is {share} of the way from the far end to the reader", *figures),
            ("reader",),
            "receiver-limited",
        )
    if waits is None and closed and unread:
        return Finding(
            f"{e.process} does not read what has arrived", tuple(figures), ("reader",), "receiver-limited"
        )
    return None


def _queue(e: Evidence) -> Finding | None:
    """This host's own queueing discipline."""
    waits = e.parts["qdisc"]
    if waits is None or waits < QUEUE_NS or waits < QUEUE_SHARE * e.moved_ns:
        return None
    if e.often(_exceeds("qdisc", QUEUE_NS)) < OFTEN:
        return None
    figures = [f"{_of_the_way(e, waits)} of a packet's way to the far end and back"]
    if e.backlog_bytes:
        figures.append(f"{e.qdisc or 'the qdisc'} holds {units.size(e.backlog_bytes)} now")
    if e.dropped_by_qdisc:
        figures.append(f"{e.qdisc or 'the qdisc'} dropped {units.count(e.dropped_by_qdisc)} packets")
    if e.least_ns:
        figures.append(
            f"the least round trip seen is {units.duration(e.least_ns)}, the mean one now {units.duration(e.rtt_ns)}"
        )
    return Finding(
        f"packets wait {units.duration(waits)} in this host's own qdisc",
        tuple(figures),
        ("qdisc",),
        "qdisc queueing",
    )


def _interrupts(e: Evidence) -> Finding | None:
    """The packet is there, and the CPU is not."""
    waits = e.parts["softirq"]
    if waits is None or waits < SOFTIRQ_NS or waits < SOFTIRQ_SHARE * e.moved_ns:
        return None
    if e.often(_exceeds("softirq", SOFTIRQ_NS)) < SOFTIRQ_OFTEN:
        return None
    if e.rtt_ns is None and e.packets[0] < SOFTIRQ_PACKETS * e.seconds:
        return None  # the host's other packets waited; of this flow's few nothing is known
    figures = [f"{_of_the_way(e, waits)} of a packet's way; host-wide, of every packet received"]
    if e.dropped_in_softnet:
        figures.append(f"the backlog was full: {units.count(e.dropped_in_softnet)} packets dropped")
    return Finding(
        f"received packets wait {units.duration(waits)} until a CPU runs their softirq",
        tuple(figures),
        ("softirq",),
        "softirq latency",
    )


def _loss(e: Evidence) -> Finding | None:
    """Segments are sent again, and had to be: what came late or twice is not counted (docs/probes/flows.md)."""
    shares = [a / p if p else 0.0 for a, p in zip(e.again, e.packets, strict=True)]
    worst = 1 if shares[1] >= shares[0] else 0
    again, packets = e.again[worst], e.packets[worst]
    if not e.tcp or again < LOSS_COUNT or shares[worst] < LOSS_SHARE or packets < LOSS_OF:
        return None
    who = ("the far end", "this host")[worst]
    by = " (the kernel's own count)" if worst and e.again_by == "kernel" else ""
    figures = [f"{who} sent {units.count(again)} of {units.count(packets)} segments again{by}"]
    if any(e.late):
        figures.append(f"{units.count(sum(e.late))} more came out of order and were not lost")
    if worst and e.dropped_by_qdisc:
        figures.append(
            f"this host's own {e.qdisc or 'qdisc'} dropped {units.count(e.dropped_by_qdisc)} packets"
        )
    if e.socket is not None and worst:
        figures.append(f"the congestion window is down to {units.count(e.socket.cwnd)} segments")
    return Finding(
        f"{units.percent(shares[worst])} of the segments are sent again", tuple(figures), term="packet loss"
    )


def _stack(e: Evidence) -> Finding | None:
    """The code between driver and socket."""
    # What waits behind a gap waits in TCP, and not for it.
    gaps = any(e.again) or any(e.late)

    def of(parts: Parts) -> float:
        return (0.0 if gaps else parts["receive"] or 0.0) + (parts["send"] or 0.0)

    spent = of(e.parts)
    if spent < STACK_NS or spent < STACK_SHARE * e.moved_ns:
        return None
    if e.often(lambda parts: None if parts["receive"] is None else of(parts) >= STACK_NS) < OFTEN:
        return None
    receive, send = 0.0 if gaps else e.parts["receive"] or 0.0, e.parts["send"] or 0.0
    return Finding(
        f"packets spend {units.duration(spent)} in this host's network stack",
        (
            f"{_of_the_way(e, spent)} of their way: "
            f"receiving {units.duration(receive)}, sending {units.duration(send)}",
            "netfilter rules, traffic taps and busy CPUs are what makes it long; pane 4 shows which stage",
        ),
        ("receive", "send"),
        "stack latency",
    )


def _writes_little(e: Evidence) -> Finding | None:
    """Nothing keeps the sender but that it has nothing to send."""
    if not e.tcp:
        return None
    if e.local_asks is False and e.answers[1] >= ANSWER_COUNT and not _pushes(e, 1):
        mean = e.answer_ns[1] / e.answers[1]
        if mean < ANSWER_NS or mean < (e.rtt_ns or 0.0) or e.answers_often(1, ANSWER_NS) < ANSWER_OFTEN:
            return None
        return Finding(
            f"{e.process} takes {units.duration(mean)} to answer",
            (
                f"from a question's arrival to the answer's first packet, the mean of {e.answers[1]}",
                f"it reads in time ({units.duration(e.parts['reader'])}): it computes, or waits for something else",
            ),
            term="app-limited",
        )
    if e.socket is None or not e.account_ns or not e.data[1] or e.socket.unsent > e.socket.mss:
        return None
    busy, writes = e.busy_ns / e.account_ns, e.data[1] / e.seconds
    if busy >= IDLE_SHARE or writes >= IDLE_WRITES or e.size[1] < e.size[0] or e.window_ns > e.busy_ns // 2:
        return None
    return Finding(
        f"{e.process} writes little: nothing waits to be sent",
        (
            f"{units.figure(writes)} packets with data a second, {units.size(e.size[1] // max(e.packets[1], 1))} each",
            f"data was on its way or waiting {units.percent(busy)} of the time; the rest there was none",
            f"{units.size(e.socket.send_window)} of window and {units.count(e.socket.cwnd)} segments of "
            "congestion window are open",
        ),
        term="app-limited",
    )


def _network(e: Evidence) -> Finding | None:
    """The way itself: long, or full."""
    wire, beyond, standing = e.parts["wire"], e.parts["beyond"], e.trips.standing_ns
    if wire is None or not e.trips.trusted:
        return None
    figures = [_round_trip(e)]
    count = min(e.trips.samples, GROUP)
    if (
        beyond is not None
        and beyond >= WAITING_NS
        and beyond >= WAITING_SHARE * e.moved_ns
        and standing is not None
        and standing >= WAITING_NS
    ):
        figures.append(
            f"even the shortest of every {count} is {units.duration(standing)} above the least: a queue that stands"
        )
        figures.append(
            f"this host's own queue, driver and interrupts are not in the {units.duration(beyond)}"
        )
        if e.trips.return_ns is not None and e.trips.return_ns >= WAITING_NS:
            figures.append(
                f"the way back alone is {units.duration(e.trips.return_ns)} longer, by the far end's own clock"
            )
        elif e.socket is not None and e.data[1]:
            figures.append(f"{units.size(e.socket.in_flight)} are under way")
        return Finding(
            f"packets wait {units.duration(beyond)} on the way or at the far end",
            tuple(figures),
            ("beyond",),
            "queueing (bufferbloat)",
        )
    if wire >= DISTANCE_NS and wire >= DISTANCE_SHARE * e.moved_ns:
        seen = not int(e.row["flags"]) & FLAG_MIDWAY or "kernel" in e.trips.source
        why = "the handshake is in that" if seen else "or a queue that was never empty since it is watched"
        figures.append(f"{_of_the_way(e, wire)} of a packet's way is distance: {why}")
        window = e.socket.cwnd * e.socket.mss if e.socket is not None else 0
        if e.socket is not None and e.socket.unsent and 5 * e.socket.in_flight >= 4 * window:
            figures.append(f"{units.size(window)} of congestion window a round trip is what it can carry")
        return Finding(
            f"the way is long: {units.duration(wire)} for a round trip",
            tuple(figures),
            ("wire",),
            "propagation",
        )
    return None


def _round_trip(e: Evidence) -> str:
    if e.rtt_ns is None:
        return f"RTT at least {units.duration(e.least_ns)} by the kernel; none of now, since this host sends no data"
    if e.trips.late_ns:
        later = units.duration(e.trips.late_ns)
        return f"RTT at least {units.duration(e.least_ns)} by {e.trips.source}; answers come {later} later than that"
    return f"RTT {units.duration(e.rtt_ns)} by {e.trips.source}, at least {units.duration(e.least_ns)}"


RULES: tuple[tuple[str, Callable[[Evidence], Finding | None]], ...] = (
    (FAR_END, _far_end),
    (READS_LATE, _reads_late),
    (QUEUE, _queue),
    (INTERRUPTS, _interrupts),
    (LOSS, _loss),
    (STACK, _stack),
    (FAR_END, _answers_late),
    (NETWORK, _network),
    (WRITES_LITTLE, _writes_little),
)


def _nothing(e: Evidence) -> tuple[str, Finding]:
    """No rule holds: healthy where every part was seen, and else what was not."""
    figures = []
    if e.least_ns is not None:
        figures.append(_round_trip(e))
    if e.tcp:
        again = sum(e.again)
        figures.append(f"{units.count(again)} of {units.count(sum(e.packets))} segments sent again")
    if e.parts["reader"] is not None:
        figures.append(f"what arrives is read after {units.duration(e.parts['reader'])}")
    if e.parts["qdisc"] is not None:
        figures.append(f"the qdisc keeps a packet {units.duration(e.parts['qdisc'])}")
    if not e.unseen:
        return HEALTHY, Finding("nothing is wrong with this flow", tuple(figures))
    unseen = tuple(f"not seen: {text}" for text in e.unseen)
    return NOTHING_FOUND, Finding("nothing wrong in what was seen, which is not all", (*unseen, *figures))


def judge(e: Evidence) -> tuple[str, Finding, tuple[str, ...]]:
    """The verdict, what it rests on, and the verdicts that hold besides."""
    found = [(name, finding) for name, rule in RULES if (finding := rule(e)) is not None]
    if not found:
        return (*_nothing(e), ())
    name, finding = found[0]
    # What the far end does with its time is in the round trip.
    beside = {name, NETWORK} if name == FAR_END else {name}
    others = dict.fromkeys(other for other, _ in found[1:] if other not in beside)
    return name, finding, tuple(others)

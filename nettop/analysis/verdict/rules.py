"""The rules of the verdict, each with its evidence: docs/verdict.md gives the reasons for every threshold."""

from __future__ import annotations

from collections.abc import Callable

from nettop.analysis.verdict.evidence import WAY, Evidence, Parts
from nettop.analysis.verdict.trips import GROUP
from nettop.core import units
from nettop.probes.flows.constants import FLAG_MIDWAY
from nettop.probes.flows.handshake import NOT_ACCEPTED, REFUSED, UNANSWERED, Finding, times

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

# The verdicts: of several that hold, the first of RULES is the verdict and the rest are named beside it.
# HEALTHY has evidence for every part; without that it is NOTHING_FOUND.
RWND_LIMITED, RECEIVER_LIMITED, APP_LIMITED = "rwnd-limited", "receiver-limited", "app-limited"
QDISC_QUEUEING, SOFTIRQ_LATENCY, STACK_LATENCY = "qdisc queueing", "softirq latency", "stack latency"
PACKET_LOSS, SERVER_LATENCY = "packet loss", "server latency"
PATH_QUEUEING, PROPAGATION = "path queueing", "propagation"
HEALTHY, NOTHING_FOUND = "healthy", "nothing found"
VERDICTS = (
    *(REFUSED, UNANSWERED, NOT_ACCEPTED, RWND_LIMITED, RECEIVER_LIMITED, QDISC_QUEUEING, SOFTIRQ_LATENCY),
    *(PACKET_LOSS, STACK_LATENCY, SERVER_LATENCY, PATH_QUEUEING, PROPAGATION, APP_LIMITED),
    *(HEALTHY, NOTHING_FOUND),
)
_OF_THE_OTHER_END = {RWND_LIMITED, SERVER_LATENCY}  # its time is in the round trip
_OF_THE_PATH = {PATH_QUEUEING, PROPAGATION}


def _of_the_way(e: Evidence, ns: float) -> str:
    return units.percent(ns / e.moved_ns if e.moved_ns else None)


def _long(e: Evidence, name: str, least_ns: float, share: float, often: float) -> float | None:
    """A part's mean, where it is that long, such a share of the way, and so in that share of the intervals."""
    waits = e.parts[name]
    if waits is None or waits < max(least_ns, share * e.moved_ns) or e.often(name, least_ns) < often:
        return None
    return waits


def _rwnd_limited(e: Evidence) -> Finding | None:
    """It takes what it is sent too slowly: its window is closed, and the kernel has accounted for the time."""
    if not e.tcp:
        return None
    zero = e.focus.zero_windows[0]
    said = (f"it announced a window of 0 {times(zero)}",) if zero else ()
    short = f"the wire is short: an RTT of {units.duration(e.trips.least_ns)} has been seen"
    least = (short,) if e.trips.least_ns else ()
    if e.socket is not None and e.account_ns and e.focus.data[1]:
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
            headline = "the far end takes the data too slowly: its window is full"
            return Finding(RWND_LIMITED, headline, (*figures, *least), ("buffer", "beyond"))
        if e.trips.trusted and (e.trips.least_ns or 0.0) >= WAITING_NS:
            room = max(s.send_window for s in sockets)
            return Finding(
                RWND_LIMITED,
                f"the far end's window is small for this way: {units.size(room)} a round trip",
                (
                    *figures,
                    f"a round trip takes {units.duration(e.trips.least_ns)} at least; it reads in time",
                ),
                ("buffer", "wire"),
            )
        return None
    if e.socket is None and zero >= ANSWER_COUNT:
        headline = "the far end takes the data too slowly: its window is closed"
        return Finding(RWND_LIMITED, headline, (*said, *least))
    return None


def _pushes(e: Evidence, end: int) -> bool:
    """Whether this end speaks unasked: then what comes after the other's data need not be an answer to it."""
    return e.focus.unasked is not None and 2 * e.focus.unasked[end] > e.focus.answers[end]


def _server_latency(e: Evidence) -> Finding | None:
    """Its answers take far longer than a round trip: the far end thinks."""
    if e.local_asks is not True or e.focus.answers[0] < ANSWER_COUNT or _pushes(e, 0):
        return None
    mean = e.focus.answer_ns[0] / e.focus.answers[0]
    network = e.trips.rtt_ns
    if network is None or not e.trips.trusted:
        return None
    thinks = mean - network
    if thinks < max(ANSWER_NS, 2 * network) or e.answers_often(0, network + ANSWER_NS) < ANSWER_OFTEN:
        return None
    reasons = [
        f"from a question to the first byte of its answer: {units.duration(mean)}, the mean of {e.focus.answers[0]}",
        f"the round trip of the network is {units.duration(network)} of that",
    ]
    if e.trips.late_ns:
        back = e.trips.return_ns
        reasons.append(
            "its ACKs come with the answers; a queue on the way there would look the same"
            if back is None
            else f"by its own clock the way back is no longer than before ({units.duration(max(back, 0.0))})"
        )
    headline = f"the far end takes {units.duration(thinks)} to answer"
    return Finding(SERVER_LATENCY, headline, tuple(reasons))


def _receiver_limited(e: Evidence) -> Finding | None:
    waits = e.parts["reader"]
    closed = e.focus.zero_windows[1]
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
            RECEIVER_LIMITED,
            f"{e.process} reads too slowly: {units.count(lost)} datagrams were dropped",
            (f"its receive buffer was full for {share} of those received", *figures),
            ("reader",),
        )
    if (
        waits is not None
        and _softirq_latency(e) is not None
        and waits < STARVED * (e.parts["softirq"] or 0.0)
    ):
        return None  # where softirqs wait for a CPU, processes do too
    longest = max(READ_NS, *(e.parts[n] or 0.0 for n in WAY))
    often = min(e.often("reader", READ_NS), e.waited(READ_NS)) >= READ_OFTEN
    # Of two waits the larger is the cause.
    thinks = e.focus.answer_ns[0] / e.focus.answers[0] if _server_latency(e) is not None else 0.0
    if waits is not None and waits >= longest and often and waits > thinks:
        share = units.percent(waits / (e.moved_ns + waits))
        return Finding(
            RECEIVER_LIMITED,
            f"{e.process} reads {units.duration(waits)} after the data is there",
            (f"that is {share} of the way from the far end to the reader", *figures),
            ("reader",),
        )
    if waits is None and closed and unread:
        headline = f"{e.process} does not read what has arrived"
        return Finding(RECEIVER_LIMITED, headline, tuple(figures), ("reader",))
    return None


def _qdisc_queueing(e: Evidence) -> Finding | None:
    waits = _long(e, "qdisc", QUEUE_NS, QUEUE_SHARE, OFTEN)
    if waits is None:
        return None
    name = e.qdisc or "the qdisc"
    figures = [f"{_of_the_way(e, waits)} of a packet's way to the far end and back"]
    if e.backlog_bytes:
        figures.append(f"{name} holds {units.size(e.backlog_bytes)} now")
    if e.dropped_by_qdisc:
        figures.append(f"{name} dropped {units.count(e.dropped_by_qdisc)} packets")
    if e.trips.least_ns:
        least, now = units.duration(e.trips.least_ns), units.duration(e.trips.rtt_ns)
        figures.append(f"the least round trip seen is {least}, the mean one now {now}")
    headline = f"packets wait {units.duration(waits)} in this host's own qdisc"
    return Finding(QDISC_QUEUEING, headline, tuple(figures), ("qdisc",))


def _softirq_latency(e: Evidence) -> Finding | None:
    waits = _long(e, "softirq", SOFTIRQ_NS, SOFTIRQ_SHARE, SOFTIRQ_OFTEN)
    if waits is None:
        return None
    if e.trips.rtt_ns is None and e.packets[0] < SOFTIRQ_PACKETS * e.seconds:
        return None  # the host's other packets waited; of this flow's few nothing is known
    figures = [f"{_of_the_way(e, waits)} of a packet's way; host-wide, of every packet received"]
    if e.dropped_in_softnet:
        figures.append(f"the backlog was full: {units.count(e.dropped_in_softnet)} packets dropped")
    headline = f"received packets wait {units.duration(waits)} until a CPU runs their softirq"
    return Finding(SOFTIRQ_LATENCY, headline, tuple(figures), ("softirq",))


def _packet_loss(e: Evidence) -> Finding | None:
    """Segments are sent again, and had to be: what came late or twice is not counted (docs/probes/flows.md)."""
    shares = [a / p if p else 0.0 for a, p in zip(e.again, e.packets, strict=True)]
    worst = 1 if shares[1] >= shares[0] else 0
    again, packets = e.again[worst], e.packets[worst]
    if not e.tcp or again < LOSS_COUNT or shares[worst] < LOSS_SHARE or packets < LOSS_OF:
        return None
    who = ("the far end", "this host")[worst]
    by = " (the kernel's own count)" if worst and e.again_by == "kernel" else ""
    figures = [f"{who} retransmitted {units.count(again)} of {units.count(packets)} segments{by}"]
    if any(e.late):
        figures.append(f"{units.count(sum(e.late))} more were reordered and not lost")
    if worst and e.dropped_by_qdisc:
        name = e.qdisc or "qdisc"
        figures.append(f"this host's own {name} dropped {units.count(e.dropped_by_qdisc)} packets")
    if e.socket is not None and worst:
        figures.append(f"the congestion window is down to {units.count(e.socket.cwnd)} segments")
    headline = f"{units.percent(shares[worst])} of the segments are retransmitted"
    return Finding(PACKET_LOSS, headline, tuple(figures))


def _stack_latency(e: Evidence) -> Finding | None:
    # What waits behind a gap waits in TCP, and not for it.
    gaps = any(e.again) or any(e.late)

    def receiving(parts: Parts) -> float:
        return 0.0 if gaps else parts["receive"] or 0.0

    receive, send = receiving(e.parts), e.parts["send"] or 0.0
    spent = receive + send
    if spent < max(STACK_NS, STACK_SHARE * e.moved_ns):
        return None
    known = [receiving(c) + (c["send"] or 0.0) >= STACK_NS for c in e.columns if c["receive"] is not None]
    if not known or sum(known) < OFTEN * len(known):
        return None
    return Finding(
        STACK_LATENCY,
        f"packets spend {units.duration(spent)} in this host's network stack",
        (
            f"{_of_the_way(e, spent)} of their way: "
            f"receiving {units.duration(receive)}, sending {units.duration(send)}",
            "netfilter rules, traffic taps and busy CPUs are what makes it long; pane 4 shows which stage",
        ),
        ("receive", "send"),
    )


def _app_limited(e: Evidence) -> Finding | None:
    """Nothing keeps the sender but that it has nothing to send."""
    if not e.tcp:
        return None
    if e.local_asks is False and e.focus.answers[1] >= ANSWER_COUNT and not _pushes(e, 1):
        mean = e.focus.answer_ns[1] / e.focus.answers[1]
        if mean < ANSWER_NS or mean < (e.trips.rtt_ns or 0.0) or e.answers_often(1, ANSWER_NS) < ANSWER_OFTEN:
            return None
        return Finding(
            APP_LIMITED,
            f"{e.process} takes {units.duration(mean)} to answer",
            (
                f"from a question's arrival to the answer's first packet, the mean of {e.focus.answers[1]}",
                f"it reads in time ({units.duration(e.parts['reader'])}): it computes, or waits for something else",
            ),
        )
    if e.socket is None or not e.account_ns or not e.focus.data[1] or e.socket.unsent > e.socket.mss:
        return None
    busy, writes = e.busy_ns / e.account_ns, e.focus.data[1] / e.seconds
    if busy >= IDLE_SHARE or writes >= IDLE_WRITES or e.size[1] < e.size[0] or e.window_ns > e.busy_ns // 2:
        return None
    return Finding(
        APP_LIMITED,
        f"{e.process} writes little: nothing waits to be sent",
        (
            f"{units.figure(writes)} packets with data a second, {units.size(e.size[1] // max(e.packets[1], 1))} each",
            f"data was on its way or waiting {units.percent(busy)} of the time; the rest there was none",
            f"{units.size(e.socket.send_window)} of window and {units.count(e.socket.cwnd)} segments of "
            "congestion window are open",
        ),
    )


def _path(e: Evidence) -> Finding | None:
    wire, beyond, standing = e.parts["wire"], e.parts["beyond"], e.trips.standing_ns
    if wire is None or not e.trips.trusted:
        return None
    figures = [_round_trip(e)]
    count = min(e.trips.samples, GROUP)
    waiting = max(WAITING_NS, WAITING_SHARE * e.moved_ns)
    if beyond is not None and beyond >= waiting and standing is not None and standing >= WAITING_NS:
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
        elif e.socket is not None and e.focus.data[1]:
            figures.append(f"{units.size(e.socket.in_flight)} in flight")
        headline = f"packets wait {units.duration(beyond)} on the way or at the far end"
        return Finding(PATH_QUEUEING, headline, tuple(figures), ("beyond",))
    if wire >= max(DISTANCE_NS, DISTANCE_SHARE * e.moved_ns):
        seen = not int(e.row["flags"]) & FLAG_MIDWAY or "kernel" in e.trips.source
        why = "the handshake is in that" if seen else "or a queue that was never empty since it is watched"
        figures.append(f"{_of_the_way(e, wire)} of a packet's way is distance: {why}")
        window = e.socket.cwnd * e.socket.mss if e.socket is not None else 0
        if e.socket is not None and e.socket.unsent and 5 * e.socket.in_flight >= 4 * window:
            figures.append(f"{units.size(window)} of congestion window a round trip is what it can carry")
        headline = f"the way is long: {units.duration(wire)} for a round trip"
        return Finding(PROPAGATION, headline, tuple(figures), ("wire",))
    return None


def _round_trip(e: Evidence) -> str:
    trips = e.trips
    least = f"at least {units.duration(trips.least_ns)}"
    if trips.rtt_ns is None:
        return f"RTT {least} by the kernel; none of now, since this host sends no data"
    if trips.late_ns:
        return f"RTT {least} by {trips.source}; answers come {units.duration(trips.late_ns)} later than that"
    return f"RTT {units.duration(trips.rtt_ns)} by {trips.source}, {least}"


RULES: tuple[Callable[[Evidence], Finding | None], ...] = (
    *(_rwnd_limited, _receiver_limited, _qdisc_queueing, _softirq_latency, _packet_loss, _stack_latency),
    *(_server_latency, _path, _app_limited),
)


def _nothing(e: Evidence) -> Finding:
    """No rule holds: healthy where every part was seen, and else what was not."""
    figures = []
    if e.trips.least_ns is not None:
        figures.append(_round_trip(e))
    if e.tcp:
        figures.append(f"{units.count(sum(e.again))} of {units.count(sum(e.packets))} segments retransmitted")
    if e.parts["reader"] is not None:
        figures.append(f"what arrives is read after {units.duration(e.parts['reader'])}")
    if e.parts["qdisc"] is not None:
        figures.append(f"the qdisc keeps a packet {units.duration(e.parts['qdisc'])}")
    if not e.unseen:
        return Finding(HEALTHY, "nothing is wrong with this flow", tuple(figures))
    unseen = tuple(f"not seen: {text}" for text in e.unseen)
    return Finding(NOTHING_FOUND, "nothing wrong in what was seen, which is not all", (*unseen, *figures))


def judge(e: Evidence) -> tuple[Finding, tuple[str, ...]]:
    """What is wrong, with what it rests on, and the verdicts that hold besides."""
    found = [finding for rule in RULES if (finding := rule(e)) is not None]
    if not found:
        return _nothing(e), ()
    first = found[0]
    hidden = {first.verdict}
    if first.verdict in _OF_THE_OTHER_END:
        hidden |= _OF_THE_OTHER_END | _OF_THE_PATH
    return first, tuple(dict.fromkeys(f.verdict for f in found[1:] if f.verdict not in hidden))

"""What is known of one flow over the newest intervals: its delay in parts, and the counts that the rules judge.

Pure: from frames to values.  What a frame does not hold is None here, or named in ``unseen``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean
from typing import Any

from nettop.analysis.verdict.flow import focused_of, round_trips, rows_of, stages_of
from nettop.analysis.verdict.trips import RECENT_NS, RISE_NS, Trips, trips_of
from nettop.core import units
from nettop.core.frame import Frame
from nettop.core.histogram import Histogram, bucket_of
from nettop.probes.flows.constants import (
    FLAG_OPENED_BY_LOCAL,
    FLAG_OPENED_BY_REMOTE,
    PROTOCOLS,
    both_ways,
)
from nettop.probes.flows.focus import Focused, Socket
from nettop.probes.flows.section import Flows, row_of
from nettop.probes.irq.section import Irq
from nettop.probes.throughput.section import Throughput

WINDOW = 10  # intervals with something in them that a verdict looks at
FORGET_NS = 60_000_000_000  # and none of them is older than this
MINE_SHARE = 0.5  # of what the interface sends: its queue is this flow's
COVERED = 0.5  # of the flow's packets timed in the qdisc: so long do they wait, whatever else waits there


@dataclass(frozen=True, slots=True)
class Kind:
    """A part of the way: its name, the words for it, and where it is known from."""

    name: str
    words: str
    source: str


# From write to read.
KINDS = (
    Kind("buffer", "send buffer", "stages"),
    Kind("send", "send stack", "stages"),
    Kind("qdisc", "qdisc", "stages"),
    Kind("wire", "RTT, least seen", "flows"),
    Kind("beyond", "RTT, above least", "flows"),
    Kind("softirq", "interrupt to poll", "irq"),
    Kind("receive", "receive stack", "stages"),
    Kind("reader", "wait for reader", "stages"),
)
NAMES = tuple(kind.name for kind in KINDS)
WAY = NAMES[1:]  # a packet's way; what waits in the send buffer waits until it may begin
_RECEIVE = ("stack", "ip", "local", "transport", "socket")
_SEND = ("ip", "driver")

Parts = dict[str, float | None]


class _Means:
    """Sums and counts of several intervals: means of delays that may be added up."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, int]] = {}

    def add(self, name: str, total: int, count: int) -> None:
        before, counted = self._sums.get(name, (0, 0))
        self._sums[name] = before + total, counted + count

    def mean(self, name: str) -> float | None:
        total, count = self._sums.get(name, (0, 0))
        return total / count if count else None

    def stage(self, name: str) -> float | None:
        """Means over whole paths add up; where no packet went all the way (bare ACKs) the stage's own must do."""
        path = self.mean(f"{name} path")
        return self.mean(f"{name} all") if path is None else path

    def stages(self, direction: str, names: Iterable[str]) -> float | None:
        """The sum of those that are known; None where none is."""
        known = [mean for name in names if (mean := self.stage(f"{direction} {name}")) is not None]
        return sum(known) if known else None


def _gather(means: _Means, frame: Frame, row: Any) -> None:
    stages = stages_of(frame, int(row["id"]))
    for direction, stage in stages.rows() if stages is not None else ():
        # What a qdisc holds until the packet's own time (fq, etf) is pacing, and no queue.
        spent = stage.latency.sum_ns
        paced = min(stage.paced_ns or 0, spent)
        if stage.path_packets:
            queued = 1.0 - paced / spent if paced else 1.0
            means.add(f"{direction} {stage.stage} path", round(stage.path_ns * queued), stage.path_packets)
        elif spent:
            means.add(f"{direction} {stage.stage} all", spent - paced, stage.matched)
        if (direction, stage.stage) == ("tx", "qdisc"):
            means.add("paced", paced, stage.matched)
            means.add("qdisc covered", stage.matched, int(row["tx_packets"]))
    sent = Throughput.find(frame)
    if sent is not None and sent.qdisc.backlog_bytes is not None:
        # Little's law: what waits, by the rate at which it goes, is how long it waits.
        means.add("backlog", sent.qdisc.backlog_bytes * frame.interval_ns, sent.tx.bytes)
        means.add("mine", int(row["tx_bytes"]), sent.tx.bytes)
    irq = Irq.find(frame)
    if irq is not None and (waited := softirq_wait(irq)) is not None:
        means.add("softirq", waited.sum_ns, waited.count)
        means.add("backlogged", int(irq.hardware is False), 1)


def softirq_wait(irq: Irq) -> Histogram | None:
    """From the device's interrupt to its poll; for one without interrupts the wait of NET_RX.  Host-wide."""
    own = next((p.irq_to_poll for p in irq.poll if p.irq_to_poll is not None), None)
    if own is not None and own.count:
        return own
    return next((s.wait for s in irq.soft if s.vector == "NET_RX"), None)


def _split(means: _Means, rtt: float | None, least: float | None, late: float = 0.0) -> Parts:
    """The parts of the way in ns, by name: each a mean, so that they add up to one.

    ``late`` came on top of the round trip, and is not known to be the network's: this host's own parts may be in it.  A
    round trip is measured from TC to TC: this host's qdisc, driver and interrupt are in it, and are taken out of it
    where they are known.  Where there is a least and no round trip of now, the rest of it is not known.
    """
    paced = means.mean("paced") or 0.0
    if rtt is not None:  # it is timed from before the qdisc
        rtt = max(rtt - paced, 0.0)
    qdisc, receive, stack = means.stage("tx qdisc"), means.stages("rx", _RECEIVE), means.stage("rx stack")
    softirq = means.mean("softirq")
    if softirq and stack and receive and means.mean("backlogged") and 2 * stack > softirq:
        # The driver has called netif_rx, and the stack waited for the softirq: this flow's own wait, and counted once.
        softirq = min(softirq, stack)
        receive -= softirq
    if softirq is not None and rtt is not None:
        softirq = min(softirq, rtt + late)  # host-wide: this flow's own cannot have been longer
    queued = means.mean("backlog")
    mine = (means.mean("mine") or 0.0) >= MINE_SHARE and not paced
    covered = (means.mean("qdisc covered") or 0.0) >= COVERED
    if queued and rtt is not None and least is not None and (mine or not covered):
        # A queue that cuts large packets (tbf) hands on others than it was given, and the few that it did not cut are
        # no measure; and where many are given at once, the mean of packets is not that of the time, which round trips
        # are.  What waits in it is: all of that where most of it must be this flow's, and else as far as the flow's
        # round trips are longer than they could be.
        qdisc = max(qdisc or 0.0, min(queued, rtt + late if mine else max(rtt + late - least, 0.0)))
    buffer = means.mean("tx application path")
    parts: Parts = {
        **dict.fromkeys(NAMES),
        "buffer": buffer if buffer is None else buffer + paced,
        "send": means.stages("tx", _SEND),
        "qdisc": qdisc,
        "softirq": softirq,
        "receive": receive,
        "reader": means.mean("rx application path"),
    }
    if least is not None:
        ours = sum(part for part in (qdisc, means.stage("tx driver"), softirq) if part is not None)
        whole = (least if rtt is None else rtt) + min(late, ours)
        parts["wire"] = wire = min(least, max(whole - ours, 0.0))
        parts["beyond"] = None if rtt is None else max(whole - wire - ours, 0.0)
    return parts


def split(frame: Frame, flow: int) -> Parts:
    """The parts of one interval in ns, by the names of KINDS; None where there is nothing to know one from."""
    row = row_of(frame, flow)
    if row is None:
        return dict.fromkeys(NAMES)
    means = _Means()
    _gather(means, frame, row)
    trips = round_trips(frame, flow)
    return _split(means, fmean(trips) if trips else None, float(row["rtt"]["min"]) if trips else None)


# --- what several frames say ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What the rules judge: sums over the window.  Pairs are received, sent.

    ``columns`` are the parts of each interval; ``focus`` is what is known of the flow in focus, summed over ``looks``.
    """

    row: Any  # the newest
    span_ns: int
    intervals: int
    parts: Parts
    columns: tuple[Parts, ...]
    trips: Trips
    packets: tuple[int, int]
    size: tuple[int, int]
    again: tuple[int, int]
    late: tuple[int, int]
    again_by: str  # who counted what was sent again
    looks: tuple[Focused, ...]
    focus: Focused
    socket: Socket | None
    account_ns: int  # the time that the two that follow are of
    busy_ns: int
    window_ns: int
    dropped_by_qdisc: int
    backlog_bytes: int | None
    qdisc: str
    dropped_in_softnet: int
    dropped_by_reader: int  # datagrams that found the receive buffer full
    reads: Histogram  # how long each packet waited for its reader
    unseen: tuple[str, ...] = ()

    @property
    def tcp(self) -> bool:
        return bool(self.row["protocol"] == PROTOCOLS["tcp"])

    @property
    def seconds(self) -> float:
        return max(self.span_ns, 1) / 1e9

    @property
    def moved_ns(self) -> float:
        """The delay of a packet on its way: the parts but for what waits in a buffer until it may go, or is fetched."""
        return sum(self.parts[n] or 0.0 for n in WAY if n != "reader")

    @property
    def local_asks(self) -> bool | None:
        """Whether this host opened the connection; where that was not seen, the lower port is the server's."""
        flags = int(self.row["flags"])
        if flags & (FLAG_OPENED_BY_LOCAL | FLAG_OPENED_BY_REMOTE):
            return bool(flags & FLAG_OPENED_BY_LOCAL)
        local, remote = int(self.row["local_port"]), int(self.row["remote_port"])
        return None if local == remote else local > remote

    @property
    def process(self) -> str:
        return units.name(self.row["process"]["name"]) or "the application"

    def often(self, name: str, ns: float) -> float:
        """Of the intervals in which this part is known the share in which it is that long: one stall is no trouble."""
        known = [value >= ns for column in self.columns if (value := column[name]) is not None]
        return sum(known) / len(known) if known else 0.0

    def waited(self, ns: int) -> float:
        """The share of packets that waited so long for their reader, or longer."""
        counts = self.reads.counts
        return float(counts[bucket_of(ns) :].sum() / max(int(counts.sum()), 1))

    def answers_often(self, end: int, over_ns: float) -> float:
        """The share of intervals with answers of this end in which they took that long in the mean."""
        means = [f.answer_ns[end] / f.answers[end] for f in self.looks if f.answers[end]]
        return sum(mean >= over_ns for mean in means) / len(means) if means else 0.0


def _moved(frame: Frame, flow: int) -> bool:
    """Whether the frame has news of the flow."""
    section, row = Flows.find(frame), row_of(frame, flow)
    return section is not None and row is not None and not section.age_ns and any(both_ways(row, "packets"))


def _window(history: Sequence[Frame], flow: int) -> list[int]:
    """The newest intervals in which the flow moved, as indexes of the history, oldest first."""
    moved = (i for i in range(len(history) - 1, -1, -1) if _moved(history[i], flow))
    chosen = list(islice(moved, WINDOW))[::-1]
    return [i for i in chosen if history[chosen[-1]].time_ns - history[i].time_ns <= FORGET_NS]


def gather(history: Sequence[Frame], flow: int) -> Evidence | None:
    """The evidence of the newest intervals that have some; None where there is none."""
    chosen = _window(history, flow)
    if not chosen:
        return None
    first, last = chosen[0], chosen[-1]
    frames = [history[i] for i in chosen]
    rows = rows_of(frames, flow)
    newest = rows[-1]
    # What began before the window is not of it.
    base = next((r for f in reversed(history[:first]) if (r := row_of(f, flow)) is not None), rows[0])
    means = _Means()
    for frame, row in zip(frames, rows, strict=True):
        _gather(means, frame, row)
    looks = [f for frame in frames if (f := focused_of(frame, flow)) is not None]
    sockets = [f.socket for f in looks if f.socket is not None]
    irqs = [irq for irq in map(Irq.find, frames) if irq is not None]
    qdiscs = [section.qdisc for section in map(Throughput.find, frames) if section is not None]
    received = [stage for f in frames if (own := stages_of(f, flow)) is not None for stage in own.rx]
    recent = [f for f in history[: last + 1] if history[last].time_ns - f.time_ns <= RECENT_NS]
    trips = trips_of(recent, frames, flow, sockets)
    again, again_by = _again(newest, base, sockets)
    parts = _split(means, trips.rtt_ns, trips.least_ns, trips.late_ns)
    if trips.late_ns and trips.rtt_ns is not None:
        # As far as this host's own parts explain it, an answer is not late.
        ours = sum(parts[name] or 0.0 for name in ("wire", "qdisc", "softirq")) - trips.rtt_ns
        ours = min(max(ours + (means.mean("tx driver path") or 0.0), 0.0), trips.late_ns)
        late = trips.late_ns - ours
        trips = replace(trips, rtt_ns=trips.rtt_ns + ours, late_ns=late if late >= RISE_NS else 0.0)
    e = Evidence(
        row=newest,
        span_ns=history[last].time_ns - history[first].time_ns + history[first].interval_ns,
        intervals=len(frames),
        parts=parts,
        columns=tuple(split(frame, flow) for frame in frames),
        trips=trips,
        packets=_summed([both_ways(row, "packets") for row in rows]),
        size=_summed([both_ways(row, "bytes") for row in rows]),
        again=again,
        late=_grown(newest, base, "out_of_order"),
        again_by=again_by,
        looks=tuple(looks),
        focus=_together(looks, flow),
        socket=sockets[-1] if sockets else None,
        account_ns=sum(s.span_ns for s in sockets),
        busy_ns=sum(s.busy_ns for s in sockets),
        window_ns=sum(s.window_ns for s in sockets),
        dropped_by_qdisc=sum(qdisc.drops or 0 for qdisc in qdiscs),
        backlog_bytes=qdiscs[-1].backlog_bytes if qdiscs else None,
        qdisc=(qdiscs[-1].kind or "") if qdiscs else "",
        dropped_in_softnet=sum(cpu.dropped for irq in irqs for cpu in irq.cpus or ()),
        # Between IP and the reader.
        dropped_by_reader=sum(s.dropped or 0 for s in received if s.stage in ("transport", "socket")),
        reads=Histogram.total([s.latency for s in received if s.stage == "application"]),
    )
    return replace(e, unseen=_unseen(e, bool(irqs), frames[-1].health.seconds_one_in))


def _summed(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)


def _together(looks: Sequence[Focused], flow: int) -> Focused:
    """The counts of several intervals as those of one."""
    pairs: dict[str, Any] = {
        name: _summed([getattr(look, name) for look in looks])
        for name in ("data", "zero_windows", "answers", "answer_ns")
    }
    unasked = [look.unasked for look in looks if look.unasked is not None]
    return Focused(flow, **pairs, unasked=_summed(unasked) if unasked else None)


def _grown(newest: Any, base: Any, what: str) -> tuple[int, int]:
    received, sent = (
        max(now - then, 0) for now, then in zip(both_ways(newest, what), both_ways(base, what), strict=True)
    )
    return received, sent


def _again(newest: Any, base: Any, sockets: Sequence[Socket]) -> tuple[tuple[int, int], str]:
    """Segments sent again, and who says so: of what this host sends, its own kernel, which knows.

    Less what the remote end says it had already (DSACK): that was not lost.
    """
    received, sent = _grown(newest, base, "retransmits")
    counted = [(s.retransmits, s.dsack_dups or 0) for s in sockets if s.retransmits is not None]
    if counted:
        return (received, max(sum(c[0] - c[1] for c in counted), 0)), "kernel"
    return (received, sent), "packets"


def _unseen(e: Evidence, irq: bool, one_in: int) -> tuple[str, ...]:
    """What would have to be seen to call the flow healthy, and was not.

    ``irq``: whether the interrupt path was watched; ``one_in``: the seconds in which the stages were, one in so many.
    """
    trips = e.trips
    missing = []
    if not e.looks and e.tcp:
        missing.append("not in focus: windows, answers, the socket")
    elif e.socket is None and e.tcp:
        missing.append("no socket on this host: congestion window, what kept the sender")
    if not e.tcp:
        missing.append("loss and windows: not TCP")
    if not all(e.packets):
        missing.append(f"one direction only: nothing was {'received' if e.packets[1] else 'sent'}")
    if trips.rtt_ns is None:
        missing.append("round trip: none is known")
        if trips.least_ns is not None:
            missing[-1] = "round trip of now: this host sends no data; the kernel knows the least one"
    elif trips.standing_ns is None:
        missing.append("a queue on the way: too few round trips")
    elif trips.late_ns:
        missing.append(f"why answers come {units.duration(trips.late_ns)} later than the least round trip")
    elif trips.answers_only and not trips.trusted:
        missing.append("the network's round trip: every one ends with an answer, the far end's time is in it")
    stages = [
        k.words for k in KINDS if k.source == "stages" and k.name != "buffer" and e.parts[k.name] is None
    ]
    if not e.focus.data[0] and e.looks:
        stages = [words for words in stages if words != KINDS[-1].words]  # there is nothing to read
    why = f"not timed, in {one_in - 1} of {one_in} s for the budget's sake" if one_in > 1 else "not timed"
    if one_in <= 1 and len(e.looks) == 1:  # the interval in which it was taken into focus is of both
        why = "not timed yet: just taken into focus"
    missing += [f"{words}: {why}" for words in stages]
    if not irq:  # where it is on and timed none, no packet has waited: the device hands them over at once
        missing.append(f"interrupt to poll: {why}")
    return tuple(missing)

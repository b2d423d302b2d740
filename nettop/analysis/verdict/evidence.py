"""What is known of one flow over the newest intervals: its delay in parts, and the counts that the rules judge.

Pure: from frames to values.  What a frame does not hold is None here, or named in ``unseen``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from nettop.analysis.verdict.flow import focused_of, round_trips, stages_of
from nettop.analysis.verdict.trips import RECENT_NS, RISE_NS, Trips, trips_of
from nettop.core import units
from nettop.core.frame import Frame
from nettop.core.histogram import Histogram, bucket_of
from nettop.probes.flows.constants import FLAG_OPENED_BY_LOCAL, FLAG_OPENED_BY_REMOTE, PROTOCOLS
from nettop.probes.flows.section import row_of

if TYPE_CHECKING:
    from nettop.probes.flows.focus import Focused, Socket
    from nettop.probes.flows.section import Flows
    from nettop.probes.irq.section import Irq
    from nettop.probes.throughput.section import Throughput

WINDOW = 10  # intervals with something in them that a verdict looks at
FORGET_NS = 60_000_000_000  # and none of them is older than this
MINE_SHARE = 0.5  # of what the interface sends: its queue is this flow's
COVERED = (
    0.5  # of the flow's packets timed in the qdisc: that is how long they wait, whatever else waits there
)


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
        self._sums: dict[str, list[int]] = {}

    def add(self, name: str, total: int, count: int) -> None:
        known = self._sums.setdefault(name, [0, 0])
        known[0] += total
        known[1] += count

    def mean(self, name: str) -> float | None:
        total, count = self._sums.get(name, (0, 0))
        return total / count if count else None

    def sum(self, names: Sequence[str]) -> float | None:
        """The sum of those means that are known; None where none is."""
        known = [mean for name in names if (mean := self.mean(name)) is not None]
        return sum(known) if known else None


def _gather(means: _Means, frame: Frame, flow: int) -> None:
    """One interval's stages and softirq waits."""
    stages = stages_of(frame, flow)
    for direction in ("rx", "tx") if stages is not None else ():
        for stage in getattr(stages, direction):
            # What a qdisc holds until the packet's own time (fq, etf) is pacing, and no queue.
            paced = min(stage.paced_ns or 0, stage.latency.sum_ns)
            queued = 1.0 - paced / stage.latency.sum_ns if paced else 1.0
            if stage.stage == "qdisc":
                means.add("paced", paced, stage.matched)
            # Means over whole paths add up; where no packet went all the way (bare ACKs) the stage's own must do.
            if stage.path_packets:
                means.add(
                    f"{direction} {stage.stage} path", round(stage.path_ns * queued), stage.path_packets
                )
            elif stage.latency.sum_ns:
                means.add(f"{direction} {stage.stage} all", stage.latency.sum_ns - paced, stage.matched)
            if (direction, stage.stage) == ("tx", "qdisc") and (row := row_of(frame, flow)) is not None:
                means.add("qdisc covered", stage.matched, int(row["tx_packets"]))
    sent = _interface(frame)
    if sent is not None and sent.qdisc.backlog_bytes is not None:
        # Little's law: what waits, by the rate at which it goes, is how long it waits.
        means.add("backlog", sent.qdisc.backlog_bytes * frame.interval_ns, sent.tx.bytes)
        row = row_of(frame, flow)
        means.add("mine", 0 if row is None else int(row["tx_bytes"]), sent.tx.bytes)
    waited = softirq_wait(frame)
    if waited is not None:
        means.add("softirq", waited.sum_ns, waited.count)
        means.add("backlogged", int((irq := _irq(frame)) is not None and irq.hardware is False), 1)


def _irq(frame: Frame) -> Irq | None:
    section: Irq | None = frame.sections.get("irq")  # type: ignore[assignment]
    return section


def softirq_wait(frame: Frame) -> Histogram | None:
    """From the device's interrupt to its poll; for one without interrupts the wait of NET_RX.  Host-wide."""
    irq = _irq(frame)
    if irq is None:
        return None
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

    def stage(name: str) -> float | None:
        path = means.mean(f"{name} path")
        return means.mean(f"{name} all") if path is None else path

    def stages(direction: str, names: Sequence[str]) -> float | None:
        known = [mean for name in names if (mean := stage(f"{direction} {name}")) is not None]
        return sum(known) if known else None

    paced = means.mean("paced") or 0.0
    if rtt is not None:  # it is timed from before the qdisc
        rtt = max(rtt - paced, 0.0)
    qdisc, receive, stack = stage("tx qdisc"), stages("rx", _RECEIVE), stage("rx stack")
    softirq = means.mean("softirq")
    if (
        softirq
        and stack is not None
        and receive is not None
        and means.mean("backlogged")
        and 2 * stack > softirq
    ):
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
        "buffer": buffer if buffer is None else buffer + paced,
        "send": stages("tx", _SEND),
        "qdisc": qdisc,
        "wire": None,
        "beyond": None,
        "softirq": softirq,
        "receive": receive,
        "reader": means.mean("rx application path"),
    }
    if least is not None:
        ours = sum(part for part in (qdisc, stage("tx driver"), softirq) if part is not None)
        whole = (least if rtt is None else rtt) + min(late, ours)
        wire = min(least, max(whole - ours, 0.0))
        parts["wire"] = wire
        parts["beyond"] = None if rtt is None else max(whole - wire - ours, 0.0)
    return parts


def split(frame: Frame, flow: int) -> Parts:
    """The parts of one interval in ns, by the names of KINDS; None where there is nothing to know one from."""
    row = row_of(frame, flow)
    if row is None:
        return dict.fromkeys(NAMES)
    means = _Means()
    _gather(means, frame, flow)
    trips = round_trips(frame, flow)
    return _split(means, fmean(trips) if trips else None, float(row["rtt"]["min"]) if trips else None)


# --- what several frames say ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What the rules judge: sums over the window.  Pairs are received, sent.

    ``columns`` are the parts of each interval; ``prompt`` of ``answering`` intervals had answers within ANSWER_NS.
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
    data: tuple[int, int]
    zero_windows: tuple[int, int]
    answers: tuple[int, int]
    answer_ns: tuple[int, int]
    unasked: tuple[int, int] | None
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
    unseen: tuple[str, ...]

    @property
    def rtt_ns(self) -> float | None:
        return self.trips.rtt_ns

    @property
    def least_ns(self) -> float | None:
        return self.trips.least_ns

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
        name = units.clean(bytes(self.row["process"]["name"]).split(b"\0")[0].decode("utf-8", "replace"))
        return name or "the application"

    def often(self, exceeds: Callable[[Parts], bool | None]) -> float:
        """The share of intervals in which that holds, of those in which it is known: one stall is no trouble."""
        known = [held for column in self.columns if (held := exceeds(column)) is not None]
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
    section: Flows | None = frame.sections.get("flows")  # type: ignore[assignment]
    row = row_of(frame, flow)
    return (
        section is not None
        and row is not None
        and not section.age_ns
        and bool(row["rx_packets"] or row["tx_packets"])
    )


def _window(history: Sequence[Frame], flow: int) -> list[int]:
    """The newest intervals in which the flow moved, as indexes of the history, oldest first."""
    chosen: list[int] = []
    for index in range(len(history) - 1, -1, -1):
        if len(chosen) == WINDOW:
            break
        if chosen and history[chosen[0]].time_ns - history[index].time_ns > FORGET_NS:
            break
        if _moved(history[index], flow):
            chosen.append(index)
    return chosen[::-1]


def gather(history: Sequence[Frame], flow: int) -> Evidence | None:
    """The evidence of the newest intervals that have some; None where there is none."""
    chosen = _window(history, flow)
    if not chosen:
        return None
    first, last = chosen[0], chosen[-1]
    frames = [history[i] for i in chosen]
    rows = [row for frame in frames if (row := row_of(frame, flow)) is not None]
    # What began before the window is not of it.
    before = next((r for i in range(first - 1, -1, -1) if (r := row_of(history[i], flow)) is not None), None)
    newest, base = rows[-1], before if before is not None else rows[0]
    means = _Means()
    for frame in frames:
        _gather(means, frame, flow)
    looks = [f for frame in frames if (f := focused_of(frame, flow)) is not None]
    sockets = [f.socket for f in looks if f.socket is not None]
    recent = [f for f in history[: last + 1] if history[last].time_ns - f.time_ns <= RECENT_NS]
    trips = trips_of(recent, frames, flow, sockets)
    queue = [q for frame in frames if (q := _interface(frame)) is not None]
    again, again_by = _again(newest, base, sockets)
    parts = _split(means, trips.rtt_ns, trips.least_ns, trips.late_ns)
    if trips.late_ns and trips.rtt_ns is not None:
        # As far as this host's own parts explain it, an answer is not late.
        ours = sum(parts[name] or 0.0 for name in ("wire", "qdisc", "softirq")) - trips.rtt_ns
        ours = min(max(ours + (means.mean("tx driver path") or 0.0), 0.0), trips.late_ns)
        late = trips.late_ns - ours
        trips = replace(trips, rtt_ns=trips.rtt_ns + ours, late_ns=late if late >= RISE_NS else 0.0)
    return Evidence(
        row=newest,
        span_ns=history[last].time_ns - history[first].time_ns + history[first].interval_ns,
        intervals=len(frames),
        parts=parts,
        columns=tuple(split(frame, flow) for frame in frames),
        trips=trips,
        packets=(packets := _pair(lambda r: (int(r["rx_packets"]), int(r["tx_packets"])), rows)),
        size=_pair(lambda r: (int(r["rx_bytes"]), int(r["tx_bytes"])), rows),
        again=again,
        late=_grown(newest, base, "out_of_order"),
        again_by=again_by,
        looks=tuple(looks),
        data=_pair(lambda f: f.data, looks),
        zero_windows=_pair(lambda f: f.zero_windows, looks),
        answers=_pair(lambda f: f.answers, looks),
        answer_ns=_pair(lambda f: f.answer_ns, looks),
        unasked=_pair(lambda f: f.unasked or (0, 0), looks) if any(f.unasked for f in looks) else None,
        socket=sockets[-1] if sockets else None,
        account_ns=sum(s.span_ns for s in sockets),
        busy_ns=sum(s.busy_ns for s in sockets),
        window_ns=sum(s.window_ns for s in sockets),
        dropped_by_qdisc=sum(q.qdisc.drops or 0 for q in queue),
        backlog_bytes=queue[-1].qdisc.backlog_bytes if queue else None,
        qdisc=(queue[-1].qdisc.kind or "") if queue else "",
        dropped_in_softnet=sum(_softnet_drops(frame) for frame in frames),
        dropped_by_reader=sum(_dropped(frame, flow) for frame in frames),
        reads=Histogram.total([h for frame in frames for h in _reads(frame, flow)]),
        unseen=_unseen(newest, parts, packets, trips, looks, sockets, frames),
    )  # fmt: skip


def _pair(pick: Callable[[Any], tuple[int, int]], values: Sequence[Any]) -> tuple[int, int]:
    pairs = [pick(v) for v in values]
    return sum(p[0] for p in pairs), sum(p[1] for p in pairs)


def _grown(newest: Any, base: Any, field: str) -> tuple[int, int]:
    return (
        max(int(newest[f"rx_{field}"]) - int(base[f"rx_{field}"]), 0),
        max(int(newest[f"tx_{field}"]) - int(base[f"tx_{field}"]), 0),
    )


def _again(newest: Any, base: Any, sockets: Sequence[Socket]) -> tuple[tuple[int, int], str]:
    """Segments sent again, and who says so: of what this host sends, its own kernel, which knows.

    Less what the remote end says it had already (DSACK): that was not lost.
    """
    received, sent = _grown(newest, base, "retransmits")
    counted = [(s.retransmits, s.dsack_dups or 0) for s in sockets if s.retransmits is not None]
    if counted:
        return (received, max(sum(c[0] - c[1] for c in counted), 0)), "kernel"
    return (received, sent), "packets"


def _interface(frame: Frame) -> Throughput | None:
    section: Throughput | None = frame.sections.get("throughput")  # type: ignore[assignment]
    return section


def _softnet_drops(frame: Frame) -> int:
    irq = _irq(frame)
    return sum(cpu.dropped for cpu in irq.cpus) if irq is not None and irq.cpus else 0


def _reads(frame: Frame, flow: int) -> list[Histogram]:
    stages = stages_of(frame, flow)
    return [s.latency for s in stages.rx if s.stage == "application"] if stages is not None else []


def _dropped(frame: Frame, flow: int) -> int:
    """What was dropped between IP and the reader."""
    stages = stages_of(frame, flow)
    if stages is None:
        return 0
    return sum(stage.dropped or 0 for stage in stages.rx if stage.stage in ("transport", "socket"))


def _unseen(
    row: Any,
    parts: Parts,
    packets: tuple[int, int],
    trips: Trips,
    looks: Sequence[Focused],
    sockets: Sequence[Socket],
    frames: Sequence[Frame],
) -> tuple[str, ...]:
    """What would have to be seen to call the flow healthy, and was not."""
    tcp = bool(row["protocol"] == PROTOCOLS["tcp"])
    data = _pair(lambda f: f.data, looks)
    missing = []
    if not looks and tcp:
        missing.append("not in focus: windows, answers, the socket")
    elif not sockets and tcp:
        missing.append("no socket on this host: congestion window, what kept the sender")
    if not tcp:
        missing.append("loss and windows: not TCP")
    if not all(packets):
        missing.append(f"one direction only: nothing was {'received' if packets[1] else 'sent'}")
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
    stages = [k.words for k in KINDS if k.source == "stages" and k.name != "buffer" and parts[k.name] is None]
    if not data[0] and looks:
        stages = [words for words in stages if words != KINDS[-1].words]  # there is nothing to read
    rests = frames[-1].health.seconds_one_in
    why = f"not timed, in {rests - 1} of {rests} s for the budget's sake" if rests > 1 else "not timed"
    if rests <= 1 and len(looks) == 1:  # the interval in which it was taken into focus is of both
        why = "not timed yet: just taken into focus"
    missing += [f"{words}: {why}" for words in stages]
    if not any(
        _irq(frame) is not None for frame in frames
    ):  # where it is on and timed none, no packet has waited: the device hands them over at once
        missing.append(f"interrupt to poll: {why}")
    return tuple(missing)

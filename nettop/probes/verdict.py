"""One flow's whole delay, in parts, and what is wrong with it, in words.  The rules: docs/verdict.md.

Pure: from frames to values.  What a frame does not hold (a probe that is off, a flow that is not in focus) is missing
here and said to be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from nettop import units
from nettop.model import Frame, Histogram
from nettop.probes.flows_layout import FLAG_OPENED_BY_LOCAL, FLAG_OPENED_BY_REMOTE, METHODS, PROTOCOLS

if TYPE_CHECKING:
    from nettop.probes.flows import Flows
    from nettop.probes.flows_focus import Focused, Socket
    from nettop.probes.irq import Irq
    from nettop.probes.throughput import Throughput

WINDOW = 10  # intervals with something in them that a verdict looks at
FORGET_NS = 60_000_000_000  # and none of them is older than this

MS = 1_000_000
# The rules' thresholds; docs/verdict.md gives the reasons.
WINDOW_SHARE = 0.25  # of the time, limited by the far end's window
READ_NS = 5 * MS
STARVED = 20  # times as long as a starved softirq: no process waits so long for a CPU alone
MINE_SHARE = 0.5  # of what the interface sends: its queue is this flow's
QUEUE_NS, QUEUE_SHARE = 1 * MS, 0.3
SOFTIRQ_NS, SOFTIRQ_SHARE = MS // 2, 0.1
LOSS_SHARE, LOSS_COUNT = 0.01, 3
STACK_NS, STACK_SHARE = MS // 2, 0.4
ANSWER_NS, ANSWER_COUNT = 20 * MS, 3
WAITING_NS, WAITING_SHARE = 5 * MS, 0.5
DISTANCE_NS, DISTANCE_SHARE = 25 * MS, 0.6
IDLE_SHARE, IDLE_WRITES = 0.5, 10  # busy for less of the time, and fewer writes a second
HELD_NS = (30 * MS, 60 * MS)  # a delayed ACK: 40 ms in Linux, 50 in others

# The verdicts, worst evidence first: of several that hold, the first is the verdict and the rest are named beside it.
FAR_END, READS_LATE, QUEUE, INTERRUPTS, LOSS, STACK, WRITES_LITTLE, NETWORK, HEALTHY = (
    "far end",
    "application reads late",
    "queue",
    "interrupts",
    "loss",
    "stack",
    "application writes little",
    "network",
    "healthy",
)
VERDICTS = (FAR_END, READS_LATE, QUEUE, INTERRUPTS, LOSS, STACK, WRITES_LITTLE, NETWORK, HEALTHY)


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


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the whole delay: its mean in ns, and its share of the way; None where that is not known.

    ``note`` says what is special about the figure, or why there is none.
    """

    name: str
    words: str
    ns: float | None
    share: float | None
    source: str
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "part": self.name,
            "ns": None if self.ns is None else round(self.ns),
            "share": None if self.share is None else round(self.share, 4),
            "source": self.source,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a flow's delay is made of, and what is wrong.

    ``verdict`` is one of VERDICTS, empty where too little was seen; ``culprits`` names the parts that it speaks of.
    ``also``: verdicts that hold besides.  ``span_ns`` is the time that it is about.
    """

    flow: int
    verdict: str
    headline: str
    reasons: tuple[str, ...]
    also: tuple[str, ...]
    parts: tuple[Part, ...]
    culprits: tuple[str, ...]
    span_ns: int
    intervals: int

    @property
    def whole_ns(self) -> float | None:
        """The mean of the whole way: the sum of its parts that are known; None where none is."""
        known = [part.ns for part in self.parts if part.ns is not None and part.name in WAY]
        return sum(known) if known else None

    def to_json(self) -> dict[str, Any]:
        """The key ``verdict`` of the frame."""
        whole = self.whole_ns
        return {
            "flow": self.flow,
            "verdict": self.verdict or None,
            "headline": self.headline,
            "reasons": list(self.reasons),
            "also": list(self.also),
            "whole_ns": None if whole is None else round(whole),
            "span_ns": self.span_ns,
            "intervals": self.intervals,
            "parts": [part.to_json() for part in self.parts],
        }


# --- what a frame says of a flow -----------------------------------------------------------------------------------


def row_of(frame: Frame, flow: int) -> Any | None:
    """The flow's row of a frame."""
    section: Flows | None = frame.sections.get("flows")  # type: ignore[assignment]
    if section is None:
        return None
    found = np.flatnonzero(section.rows["id"] == np.uint64(flow))
    return section.rows[found[0]] if found.size else None


def focused_of(frame: Frame, flow: int) -> Focused | None:
    """What is known of the flow because it was in focus."""
    section: Flows | None = frame.sections.get("flows")  # type: ignore[assignment]
    focused = section.focused if section is not None else None
    return focused if focused is not None and focused.flow == flow else None


def stages_of(frame: Frame, flow: int) -> Any | None:
    """The flow's own stages, where it was in focus."""
    focused = getattr(frame.sections.get("stages"), "focus", None)
    return focused if focused is not None and focused.flow == flow else None


def round_trips(frame: Frame, flow: int) -> list[int]:
    """Outward round trips of the interval in ns: every sample of the flow in focus, else the newest one."""
    row = row_of(frame, flow)
    if row is None or not row["rtt"]["samples"]:
        return []
    if focused_of(frame, flow) is not None:
        section: Flows = frame.sections["flows"]  # type: ignore[assignment]
        samples = [s.rtt_ns for s in section.samples if not s.inward]
        if samples:
            return samples
    return [int(row["rtt"]["last"])]


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
            # Means over whole paths add up; where no packet went all the way (bare ACKs) the stage's own must do.
            if stage.path_packets:
                means.add(f"{direction} {stage.stage} path", stage.path_ns, stage.path_packets)
            elif stage.latency.sum_ns:
                means.add(f"{direction} {stage.stage} all", stage.latency.sum_ns, stage.matched)
    sent = _interface(frame)
    if sent is not None and sent.backlog_bytes is not None:
        # Little's law: what waits, by the rate at which it goes, is how long it waits.
        means.add("backlog", sent.backlog_bytes * frame.interval_ns, sent.tx.bytes)
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


def _split(means: _Means, rtt: float | None, least: float | None) -> dict[str, float | None]:
    """The parts of the way in ns, by name.

    A round trip is measured from TC to TC: this host's qdisc, driver and interrupt are in it, and are taken out of it
    where they are known.
    """

    def stage(name: str) -> float | None:
        path = means.mean(f"{name} path")
        return means.mean(f"{name} all") if path is None else path

    def stages(direction: str, names: Sequence[str]) -> float | None:
        known = [mean for name in names if (mean := stage(f"{direction} {name}")) is not None]
        return sum(known) if known else None

    softirq = means.mean("softirq")
    if softirq is not None and rtt is not None:
        softirq = min(softirq, rtt)  # host-wide: this flow's own cannot have been longer
    qdisc, receive = stage("tx qdisc"), stages("rx", _RECEIVE)
    queued = means.mean("backlog")
    if queued and rtt is not None and least is not None:
        # A queue that cuts large packets (tbf) hands on others than it was given, and the few that it did not cut are
        # no measure.  What waits in it is: all of that where most of it must be this flow's, and else as far as the
        # flow's round trips are longer than they could be.
        mine = (means.mean("mine") or 0.0) >= MINE_SHARE
        qdisc = max(qdisc or 0.0, min(queued, rtt if mine else max(rtt - least, 0.0)))
    stack = stage("rx stack")
    if (
        softirq
        and receive is not None
        and stack is not None
        and means.mean("backlogged")
        and 2 * stack > softirq
    ):
        receive -= min(softirq, stack)  # the driver has called netif_rx, and the stack waited for the softirq
    parts: dict[str, float | None] = {
        "buffer": means.mean("tx application path"),
        "send": stages("tx", _SEND),
        "qdisc": qdisc,
        "wire": None,
        "beyond": None,
        "softirq": softirq,
        "receive": receive,
        "reader": means.mean("rx application path"),
    }
    if rtt is not None and least is not None:
        ours = sum(part for part in (qdisc, stage("tx driver"), softirq) if part is not None)
        wire = min(least, max(rtt - ours, 0.0))
        parts["wire"] = wire
        parts["beyond"] = max(rtt - wire - ours, 0.0)
    return parts


def split(frame: Frame, flow: int) -> dict[str, float | None]:
    """The parts of one interval in ns, by the names of KINDS; None where there is nothing to know one from."""
    means = _Means()
    if row_of(frame, flow) is None:
        return dict.fromkeys(NAMES)
    _gather(means, frame, flow)
    trips = round_trips(frame, flow)
    row = row_of(frame, flow)
    least = float(row["rtt"]["min"]) if row is not None and trips else None
    return _split(means, sum(trips) / len(trips) if trips else None, least)


# --- what several frames say ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What the rules judge: sums over the window.  Pairs are received, sent."""

    row: Any  # the newest
    span_ns: int
    intervals: int
    parts: dict[str, float | None]
    rtt_ns: float | None
    least_ns: float | None
    packets: tuple[int, int]
    size: tuple[int, int]
    again: tuple[int, int]
    late: tuple[int, int]
    data: tuple[int, int]
    zero_windows: tuple[int, int]
    answers: tuple[int, int]
    answer_ns: tuple[int, int]
    socket: Socket | None
    account_ns: int  # the time that the two that follow are of
    busy_ns: int
    window_ns: int
    dropped_by_qdisc: int
    backlog_bytes: int | None
    qdisc: str
    dropped_in_softnet: int
    held_acks: bool
    newest_ns: int
    focused: bool

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
        name = units.clean(bytes(self.row["process"]).split(b"\0")[0].decode("utf-8", "replace"))
        return name or "the application"


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


def gather(history: Sequence[Frame], flow: int) -> Evidence | None:
    """The evidence of the newest intervals that have some; None where there is none."""
    chosen: list[int] = []
    for index in range(len(history) - 1, -1, -1):
        if len(chosen) == WINDOW:
            break
        if chosen and history[chosen[0]].time_ns - history[index].time_ns > FORGET_NS:
            break
        if _moved(history[index], flow):
            chosen.append(index)
    if not chosen:
        return None
    first, last = chosen[-1], chosen[0]
    frames = [history[i] for i in reversed(chosen)]
    rows = [row_of(frame, flow) for frame in frames]
    # What began before the window is not of it.
    before = next((r for i in range(first - 1, -1, -1) if (r := row_of(history[i], flow)) is not None), None)
    newest, base = rows[-1], before if before is not None else rows[0]
    assert newest is not None
    assert base is not None
    means = _Means()
    trips: list[float] = []
    for frame in frames:
        _gather(means, frame, flow)
        samples = round_trips(frame, flow)
        trips += samples
    looks = [f for frame in frames if (f := focused_of(frame, flow)) is not None]
    sockets = [f.socket for f in looks if f.socket is not None]
    rtt = float(median(trips)) if trips else None
    least = float(newest["rtt"]["min"]) if newest["rtt"]["samples_total"] else None
    span = history[last].time_ns - history[first].time_ns + history[first].interval_ns

    def pair(pick: Callable[[Any], tuple[int, int]], values: Sequence[Any]) -> tuple[int, int]:
        pairs = [pick(v) for v in values]
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs)

    def grown(field: str) -> tuple[int, int]:
        return (
            max(int(newest[f"rx_{field}"]) - int(base[f"rx_{field}"]), 0),
            max(int(newest[f"tx_{field}"]) - int(base[f"tx_{field}"]), 0),
        )

    packets = pair(lambda r: (int(r["rx_packets"]), int(r["tx_packets"])), rows)
    size = pair(lambda r: (int(r["rx_bytes"]), int(r["tx_bytes"])), rows)
    queue = [q for frame in frames if (q := _interface(frame)) is not None]
    held = _held(rtt, least, packets, size, sockets)
    if held:
        rtt = least
    return Evidence(
        row=newest,
        span_ns=span,
        intervals=len(frames),
        parts=_split(means, rtt, least),
        rtt_ns=rtt,
        least_ns=least,
        packets=packets,
        size=size,
        again=grown("retransmits"),
        late=grown("out_of_order"),
        data=pair(lambda f: f.data, looks),
        zero_windows=pair(lambda f: f.zero_windows, looks),
        answers=pair(lambda f: f.answers, looks),
        answer_ns=pair(lambda f: f.answer_ns, looks),
        socket=sockets[-1] if sockets else None,
        account_ns=sum(s.span_ns for s in sockets),
        busy_ns=sum(s.busy_ns for s in sockets),
        window_ns=sum(s.window_ns for s in sockets),
        dropped_by_qdisc=sum(q.qdisc_drops or 0 for q in queue),
        backlog_bytes=queue[-1].backlog_bytes if queue else None,
        qdisc=(queue[-1].qdisc or "") if queue else "",
        dropped_in_softnet=sum(_softnet_drops(frame) for frame in frames),
        held_acks=held,
        newest_ns=frames[-1].time_ns,
        focused=bool(looks),
    )


def _interface(frame: Frame) -> Throughput | None:
    section: Throughput | None = frame.sections.get("throughput")  # type: ignore[assignment]
    return section


def _softnet_drops(frame: Frame) -> int:
    irq = _irq(frame)
    return sum(cpu.dropped for cpu in irq.cpus) if irq is not None and irq.cpus else 0


def _held(
    rtt: float | None,
    least: float | None,
    packets: tuple[int, int],
    size: tuple[int, int],
    sockets: Sequence[Socket],
) -> bool:
    """Whether the round trips are those of delayed ACKs: single small segments that nobody answers (RFC 9293, 3.8.6.3).

    The receiver then holds its ACK for 40 or 50 ms.  No data waits for that.
    """
    if rtt is None or least is None or not packets[1]:
        return False
    small = size[1] / packets[1] < 600 and not any(s.unsent for s in sockets)
    return small and HELD_NS[0] <= rtt - least <= HELD_NS[1]


# --- the rules -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that holds: the sentence, the figures behind it, the parts that it speaks of."""

    headline: str
    reasons: tuple[str, ...]
    culprits: tuple[str, ...] = ()


def _time(ns: float | None) -> str:
    return units.duration(ns)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{units.count(count)} times"


def _of_the_way(e: Evidence, ns: float) -> str:
    return units.percent(ns / e.moved_ns if e.moved_ns else None)


def _far_end(e: Evidence) -> Finding | None:
    """It takes what it is sent too slowly: its window is full, and the kernel has accounted for the time."""
    if not e.tcp:
        return None
    zero = e.zero_windows[0]
    said = (f"it announced a window of 0 {_times(zero)}",) if zero else ()
    least = (f"the wire is short: an RTT of {_time(e.least_ns)} has been seen",) if e.least_ns else ()
    if e.socket is not None and e.account_ns and e.data[1]:
        share = e.window_ns / e.account_ns
        if share < WINDOW_SHARE:
            return None
        figures = (
            f"the kernel waited for its window {units.percent(share)} of the time (rwnd_limited)",
            *said,
            f"its window now: {units.size(e.socket.send_window)}; {units.size(e.socket.unsent)} wait here to be sent",
        )
        return Finding(
            "the far end takes the data too slowly: its window is full",
            (*figures, *least),
            ("buffer", "beyond"),
        )
    if e.socket is None and zero >= ANSWER_COUNT:
        return Finding("the far end takes the data too slowly: its window is closed", (*said, *least))
    return None


def _answers_late(e: Evidence) -> Finding | None:
    """Its answers take far longer than a round trip: the far end thinks."""
    if e.local_asks is False or e.answers[0] < ANSWER_COUNT:
        return None
    mean = e.answer_ns[0] / e.answers[0]
    thinks = mean - (e.rtt_ns or 0.0)
    if thinks < ANSWER_NS or e.rtt_ns is None or thinks < 2 * e.rtt_ns or not e.local_asks:
        return None
    return Finding(
        f"the far end takes {_time(thinks)} to answer",
        (
            f"from a question to the first byte of its answer: {_time(mean)}, the mean of {e.answers[0]}",
            f"the round trip of the network is {_time(e.rtt_ns)} of that",
        ),
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
        figures.append(f"our own window was closed {_times(closed)}: there was no room for more")
    if waits is not None and _interrupts(e) is not None and waits < STARVED * (e.parts["softirq"] or 0.0):
        return None  # where softirqs wait for a CPU, processes do too
    if waits is not None and waits >= READ_NS and waits >= max(e.parts[n] or 0.0 for n in WAY):
        total = e.moved_ns + waits
        share = units.percent(waits / total)
        return Finding(
            f"{e.process} reads {_time(waits)} after the data is there",
            (f"that is {share} of the way from the far end to the reader", *figures),
            ("reader",),
        )
    if waits is None and closed and unread:
        return Finding(f"{e.process} does not read what has arrived", tuple(figures), ("reader",))
    return None


def _queue(e: Evidence) -> Finding | None:
    """This host's own queueing discipline."""
    waits = e.parts["qdisc"]
    if waits is None or waits < QUEUE_NS or waits < QUEUE_SHARE * e.moved_ns:
        return None
    figures = [f"{_of_the_way(e, waits)} of a packet's way to the far end and back"]
    if e.backlog_bytes:
        figures.append(f"{e.qdisc or 'the qdisc'} holds {units.size(e.backlog_bytes)} now")
    if e.dropped_by_qdisc:
        figures.append(f"{e.qdisc or 'the qdisc'} dropped {units.count(e.dropped_by_qdisc)} packets")
    if e.least_ns:
        figures.append(
            f"the least round trip seen is {_time(e.least_ns)}, the usual one now {_time(e.rtt_ns)}"
        )
    return Finding(f"packets wait {_time(waits)} in this host's own qdisc", tuple(figures), ("qdisc",))


def _interrupts(e: Evidence) -> Finding | None:
    """The packet is there, and the CPU is not."""
    waits = e.parts["softirq"]
    if waits is None or waits < SOFTIRQ_NS or waits < SOFTIRQ_SHARE * e.moved_ns:
        return None
    figures = [f"{_of_the_way(e, waits)} of a packet's way; host-wide, of every packet received"]
    if e.dropped_in_softnet:
        figures.append(f"the backlog was full: {units.count(e.dropped_in_softnet)} packets dropped")
    return Finding(
        f"received packets wait {_time(waits)} until a CPU runs their softirq", tuple(figures), ("softirq",)
    )


def _loss(e: Evidence) -> Finding | None:
    """Segments are sent again."""
    shares = [a / p if p else 0.0 for a, p in zip(e.again, e.packets, strict=True)]
    worst = 1 if shares[1] >= shares[0] else 0
    again, packets = e.again[worst], e.packets[worst]
    if not e.tcp or again < LOSS_COUNT or shares[worst] < LOSS_SHARE:
        return None
    who = ("the far end", "this host")[worst]
    figures = [f"{who} sent {units.count(again)} of {units.count(packets)} segments again"]
    if any(e.late):
        figures.append(f"{units.count(sum(e.late))} more came out of order and were not lost")
    if worst and e.dropped_by_qdisc:
        figures.append(
            f"this host's own {e.qdisc or 'qdisc'} dropped {units.count(e.dropped_by_qdisc)} packets"
        )
    if e.socket is not None and worst:
        figures.append(f"the congestion window is down to {units.count(e.socket.cwnd)} segments")
    return Finding(f"{units.percent(shares[worst])} of the segments are sent again", tuple(figures))


def _stack(e: Evidence) -> Finding | None:
    """The code between driver and socket."""
    receive, send = e.parts["receive"] or 0.0, e.parts["send"] or 0.0
    if any(e.again) or any(e.late):
        receive = 0.0  # what waits behind a gap waits in TCP, and not for it
    spent = receive + send
    if spent < STACK_NS or spent < STACK_SHARE * e.moved_ns:
        return None
    return Finding(
        f"packets spend {_time(spent)} in this host's network stack",
        (
            f"{_of_the_way(e, spent)} of their way: receiving {_time(receive)}, sending {_time(send)}",
            "netfilter rules, traffic taps and busy CPUs are what makes it long; pane 4 shows which stage",
        ),
        ("receive", "send"),
    )


def _writes_little(e: Evidence) -> Finding | None:
    """Nothing keeps the sender but that it has nothing to send."""
    if not e.tcp:
        return None
    if e.local_asks is False and e.answers[1] >= ANSWER_COUNT:
        mean = e.answer_ns[1] / e.answers[1]
        if mean < ANSWER_NS or mean < (e.rtt_ns or 0.0):
            return None
        return Finding(
            f"{e.process} takes {_time(mean)} to answer",
            (
                f"from a question's arrival to the answer's first packet, the mean of {e.answers[1]}",
                f"it reads in time ({_time(e.parts['reader'])}): it computes, or waits for something else",
            ),
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
    )


def _network(e: Evidence) -> Finding | None:
    """The way itself: long, or full."""
    wire, beyond = e.parts["wire"], e.parts["beyond"]
    if wire is None or beyond is None or e.rtt_ns is None:
        return None
    how = METHODS[int(e.row["rtt"]["method"])]
    figures = [f"RTT {_time(e.rtt_ns)} by {how}, at least {_time(e.least_ns)}"]
    if beyond >= WAITING_NS and beyond >= WAITING_SHARE * e.moved_ns:
        figures.append(f"this host's own queue, driver and interrupts are not in the {_time(beyond)}")
        if e.socket is not None:
            figures.append(f"{units.size(e.socket.in_flight)} are under way")
        return Finding(
            f"packets wait {_time(beyond)} on the way or at the far end",
            tuple(figures),
            ("beyond",),
        )
    if wire >= DISTANCE_NS and wire >= DISTANCE_SHARE * e.moved_ns:
        opened = int(e.row["flags"]) & (FLAG_OPENED_BY_LOCAL | FLAG_OPENED_BY_REMOTE)
        why = "the handshake is in that" if opened else "or a queue that was never empty since it is watched"
        figures.append(f"{_of_the_way(e, wire)} of a packet's way is distance: {why}")
        window = e.socket.cwnd * e.socket.mss if e.socket is not None else 0
        if e.socket is not None and e.socket.unsent and 5 * e.socket.in_flight >= 4 * window:
            figures.append(f"{units.size(window)} of congestion window a round trip is what it can carry")
        return Finding(f"the way is long: {_time(wire)} for a round trip", tuple(figures), ("wire",))
    return None


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


def _healthy(e: Evidence) -> Finding:
    figures = []
    if e.rtt_ns is not None:
        how = METHODS[int(e.row["rtt"]["method"])]
        figures.append(f"RTT {_time(e.rtt_ns)} by {how}, at least {_time(e.least_ns)}")
    if e.tcp:
        again = sum(e.again)
        figures.append(f"{units.count(again)} of {units.count(sum(e.packets))} segments sent again")
    if e.parts["reader"] is not None:
        figures.append(f"what arrives is read after {_time(e.parts['reader'])}")
    if e.parts["qdisc"] is not None:
        figures.append(f"the qdisc keeps a packet {_time(e.parts['qdisc'])}")
    return Finding("nothing is wrong with this flow", tuple(figures))


def judge(e: Evidence) -> tuple[str, Finding, tuple[str, ...]]:
    """The verdict, what it rests on, and the verdicts that hold besides."""
    found = [(name, finding) for name, rule in RULES if (finding := rule(e)) is not None]
    if not found:
        return HEALTHY, _healthy(e), ()
    name, finding = found[0]
    # What the far end does with its time is in the round trip.
    beside = {name, NETWORK} if name == FAR_END else {name}
    others = dict.fromkeys(other for other, _ in found[1:] if other not in beside)
    return name, finding, tuple(others)


# --- both together -------------------------------------------------------------------------------------------------


def explain(history: Sequence[Frame], flow: int) -> Explanation:
    """One flow's delay in parts, and the verdict, from the newest intervals in which it moved."""
    e = gather(history, flow)
    if e is None or e.intervals < 2:
        values = e.parts if e is not None else dict.fromkeys(NAMES)
        span, intervals = (e.span_ns, e.intervals) if e is not None else (0, 0)
        parts = _parts(values, history, flow, e)
        return Explanation(
            flow, "", "too little of this flow was seen yet", (), (), parts, (), span, intervals
        )
    verdict, finding, also = judge(e)
    reasons = finding.reasons
    if e.held_acks:
        reasons = (
            *reasons,
            "round trips of 40 ms are ACKs that the far end holds back; nothing waits for them",
        )
    return Explanation(
        flow,
        verdict,
        finding.headline,
        reasons,
        also,
        _parts(e.parts, history, flow, e),
        finding.culprits,
        e.span_ns,
        e.intervals,
    )


def _parts(
    values: dict[str, float | None], history: Sequence[Frame], flow: int, e: Evidence | None
) -> tuple[Part, ...]:
    total = sum(values[name] or 0.0 for name in WAY)
    return tuple(
        Part(
            kind.name,
            kind.words,
            value := values[kind.name],
            None if value is None or not total or kind.name not in WAY else value / total,
            kind.source,
            _note(kind, value, history, flow, e),
        )
        for kind in KINDS
    )


def _note(kind: Kind, value: float | None, history: Sequence[Frame], flow: int, e: Evidence | None) -> str:
    """What is special about a part, or why it is not known."""
    if value is not None:
        if kind.name == "softirq":
            return "host-wide"
        if kind.name == "wire" and e is not None:
            return METHODS[int(e.row["rtt"]["method"])]
        return ""
    newest = history[-1] if history else None
    status = newest.probes.get(kind.source) if newest is not None else None
    if status is not None and status.state != "live":
        return {"off": f"{kind.source} is off"}.get(status.state, f"{kind.source}: {status.state}")
    if kind.source == "stages" and newest is not None and stages_of(newest, flow) is None:
        return "not in focus"
    return "nothing seen"


# --- which flow ----------------------------------------------------------------------------------------------------


def _ends(text: str) -> tuple[tuple[str, int | None], ...]:
    """``ADDRESS:PORT``, ``ADDRESS``, ``:PORT`` or two of them with ``-`` between: (address or "", port or None)."""
    ends: list[tuple[str, int | None]] = []
    for word in text.split("-"):
        word = word.strip()
        host, colon, port = word.rpartition(":")
        if word.startswith("[") and word.endswith("]"):
            host, colon, port = word, "", ""
        elif not colon or (":" in host and not host.endswith("]")):  # an address alone
            host, port = word, ""
        host = host.strip("[]")
        if port and not port.isdecimal():
            raise ValueError(f"{word!r} is no ADDRESS:PORT")
        raw, _ = units.parse_endpoint(f"[{host}]:1" if ":" in host else f"{host}:1") if host else (b"", 0)
        if host and not any(raw) and host not in ("0.0.0.0", "::"):
            raise ValueError(f"{host!r} is no address")
        if not host and not port:
            raise ValueError("neither an address nor a port")
        ends.append((units.address(raw) if host else "", int(port) if port else None))
    if len(ends) > 2:
        raise ValueError("more than two ends")
    return tuple(ends)


def check_end(text: str) -> None:
    """ValueError where ``chosen`` could make nothing of it."""
    _ends(text)


def chosen(frame: Frame, text: str) -> int:
    """The id of the flow with the most traffic that has this end (or these two, local first; empty: of all flows).

    0 where there is none.
    """
    section: Flows | None = frame.sections.get("flows")  # type: ignore[assignment]
    if section is None or not len(section.rows):
        return 0
    rows = section.rows

    def has(which: str, end: tuple[str, int | None]) -> Any:
        address, port = end
        found = np.ones(len(rows), bool)
        if port is not None:
            found &= rows[f"{which}_port"] == port
        if address:
            raw = np.frombuffer(
                units.parse_endpoint(f"[{address}]:1" if ":" in address else f"{address}:1")[0], "u1"
            )
            found &= (rows[which] == raw).all(axis=1)
        return found

    ends = _ends(text) if text else ()
    if not ends:
        found = np.ones(len(rows), bool)
    elif len(ends) == 2:
        found = has("local", ends[0]) & has("remote", ends[1])
    else:
        found = has("local", ends[0]) | has("remote", ends[0])
    where = np.flatnonzero(found)
    if not len(where):
        return 0
    traffic = rows["rx_bytes_total"][where] + rows["tx_bytes_total"][where]
    return int(rows["id"][where[int(np.argmax(traffic))]])

"""One flow's whole delay, in parts, and what is wrong with it, in words.  The rules: docs/verdict.md.

Pure: from frames to values.  What a frame does not hold (a probe that is off, a flow that is not in focus) is missing
here and said to be.  The parts are found in verdict_evidence.py, round trips in verdict_trips.py, and judged in
verdict_rules.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nettop.analysis.verdict.evidence import KINDS, NAMES, WAY, WINDOW, Evidence, Kind, gather, split
from nettop.analysis.verdict.flow import check_end, chosen, focused_of, round_trips, stages_of
from nettop.analysis.verdict.rules import (
    HEALTHY,
    NO_CONNECTION,
    NOTHING_FOUND,
    VERDICTS,
    WRITES_LITTLE,
    judge,
)
from nettop.core import units
from nettop.core.fields import Codec, Part, derived, field
from nettop.core.frame import Frame
from nettop.probes.flows.constants import FLAG_OPENED_BY_LOCAL, PROTOCOLS, STATE_SYN, TUNNELS
from nettop.probes.flows.handshake import SYNS, no_connection
from nettop.probes.flows.section import row_of

LATE_NS = 200_000_000  # a SYN without an answer for so long was lost, or its answer

__all__ = [
    "HEALTHY",
    "KINDS",
    "NAMES",
    "NOTHING_FOUND",
    "NO_CONNECTION",
    "VERDICTS",
    "WAY",
    "WINDOW",
    "WRITES_LITTLE",
    "DelayPart",
    "Explanation",
    "check_end",
    "chosen",
    "explain",
    "focused_of",
    "round_trips",
    "row_of",
    "split",
    "stages_of",
]


def _rounded(digits: int) -> Codec:
    return Codec(
        lambda value: None if value is None else round(value, digits) if digits else round(value),
        lambda value: None if value is None else float(value),
        lambda: {"type": ["number" if digits else "integer", "null"]},
    )


OR_NULL = Codec(lambda text: text or None, lambda text: text or "", lambda: {"type": ["string", "null"]})


@dataclass(frozen=True, slots=True)
class DelayPart(Part):
    """A part of the whole delay: its mean in ns, and its share of the way; None where that is not known.

    ``note`` says what is special about the figure, or why there is none.
    """

    words: str
    name: str = field("of the delay", name="part")
    ns: float | None = field("its mean", "ns", codec=_rounded(0))
    share: float | None = field("of the whole", codec=_rounded(4))
    source: str = field("the probe that it is from")
    note: str = field("what is special about the figure, or why there is none", default="")


@dataclass(frozen=True, slots=True)
class Explanation(Part):
    """What a flow's delay is made of, and what is wrong.

    ``verdict`` is one of VERDICTS, empty where too little was seen; ``culprits`` names the parts that it speaks of.
    """

    flow: int = field("its `id`")
    verdict: str = field("what is wrong, in a word; `null` where too little was seen", codec=OR_NULL)
    headline: str = field("what is wrong, as a sentence")
    term: str = field(
        "the field's own word for it: `rwnd-limited`, `receiver-limited`, `server latency`, `app-limited`, "
        "`packet loss`, `propagation`, `queueing (bufferbloat)`, `qdisc queueing`, `softirq latency`, "
        "`stack latency`, `refused`, `unanswered`, `not accepted`; `null`: none",
        codec=OR_NULL,
        default="",
    )
    reasons: tuple[str, ...] = field("the figures that it rests on", default=())
    also: tuple[str, ...] = field("verdicts that hold besides", default=())
    unseen: tuple[str, ...] = field(
        "what would have to be seen before the flow could be called healthy, and was not", default=()
    )
    span_ns: int = field("the time that this is from", "ns", default=0)
    intervals: int = field("the frames that this is from", "frames", default=0)
    parts: tuple[DelayPart, ...] = field("of the delay", default=())
    culprits: tuple[str, ...] = ()

    @derived("mean of a packet's whole way: the sum of its parts that are known", "ns", codec=_rounded(0))
    def whole_ns(self) -> float | None:
        """None where no part is known."""
        known = [part.ns for part in self.parts if part.ns is not None and part.name in WAY]
        return sum(known) if known else None


# --- both together -------------------------------------------------------------------------------------------------


def explain(history: Sequence[Frame], flow: int) -> Explanation:
    """One flow's delay in parts, and the verdict, from the newest intervals in which it moved."""
    e = gather(history, flow)
    row, at = next(
        ((row, _now_ns(frame)) for frame in reversed(history) if (row := row_of(frame, flow)) is not None),
        (None, 0),
    )
    tunnel = "" if row is None else TUNNELS[int(row["tunnel"])]
    parts = _parts(e.parts if e is not None else dict.fromkeys(NAMES), history, flow, tunnel, e)
    span, intervals = (e.span_ns, e.intervals) if e is not None else (0, 0)
    refused = None if row is None else no_connection(row, at)
    if refused is not None:
        return Explanation(
            flow,
            NO_CONNECTION,
            refused.headline,
            reasons=refused.reasons,
            parts=parts,
            span_ns=span,
            intervals=intervals,
            term=refused.term,
        )
    if e is None or intervals < 2:
        unseen = () if e is None else e.unseen
        text = "too little of this flow was seen yet"
        reasons = _again_so_far(row)
        return Explanation(
            flow, "", text, reasons=reasons, parts=parts, span_ns=span, intervals=intervals, unseen=unseen
        )
    verdict, finding, also = judge(e)
    reasons = (*finding.reasons, *_late_handshake(history, flow))
    if e.trips.held:
        reasons = (
            *reasons,
            f"{e.trips.held} round trips were ACKs that the far end holds back (delayed ACK); nothing waits for them",
        )
    return Explanation(
        flow,
        verdict,
        finding.headline,
        finding.term,
        reasons,
        also,
        e.unseen,
        e.span_ns,
        e.intervals,
        parts,
        finding.culprits,
    )


def _now_ns(frame: Frame) -> int:
    """CLOCK_MONOTONIC of the frame's rows; 0 where it is not known."""
    return int(getattr(frame.sections.get("flows"), "now_ns", 0))


def _again_so_far(row: Any | None) -> tuple[str, ...]:
    """What was sent again, where that is too little to judge loss by: a SYN that was lost is one segment of few."""
    if row is None or row["protocol"] != PROTOCOLS["tcp"]:
        return ()
    again = int(row["rx_retransmits"]) + int(row["tx_retransmits"])
    packets = int(row["rx_packets_total"]) + int(row["tx_packets_total"])
    return (f"{units.count(again)} of {units.count(packets)} segments sent again so far",) if again else ()


def _late_handshake(history: Sequence[Frame], flow: int) -> tuple[str, ...]:
    """That a SYN had to be sent again before there was a connection: a frame had it unanswered, a later one has more.

    A frame between the SYN and its answer has to have seen it: of two that were sent within one nothing is known.
    """
    rows = [(row, _now_ns(frame)) for frame in history if (row := row_of(frame, flow)) is not None]
    if not rows or rows[-1][0]["state"] == STATE_SYN:
        return ()
    ours = bool(int(rows[0][0]["flags"]) & FLAG_OPENED_BY_LOCAL)
    way, back, who = ("tx", "rx", "this host") if ours else ("rx", "tx", "the far end")
    asked = [
        (row, now) for row, now in rows if row["state"] == STATE_SYN and not row[f"{back}_packets_total"]
    ]
    if not asked:
        return ()
    row, now = asked[-1]
    opened = next(later for later, _ in rows if later["state"] != STATE_SYN)
    syns, waited = int(row[f"{way}_packets_total"]), now - int(row["first"])
    again = int(opened[f"{way}_retransmits"]) + int(opened[f"{back}_retransmits"])
    if syns < SYNS and (waited < LATE_NS or not again):
        return ()
    sent = f"{who} had sent {units.count(syns)} SYN{'s' if syns > 1 else ''}"
    return (f"a late handshake: after {units.duration(waited)} {sent}, and nothing had come back",)


def _parts(
    values: dict[str, float | None], history: Sequence[Frame], flow: int, tunnel: str, e: Evidence | None
) -> tuple[DelayPart, ...]:
    total = sum(values[name] or 0.0 for name in WAY)
    return tuple(
        DelayPart(
            kind.words,
            kind.name,
            value := values[kind.name],
            None if value is None or not total or kind.name not in WAY else value / total,
            kind.source,
            _note(kind, value, history, flow, tunnel, e),
        )
        for kind in KINDS
    )


def _note(
    kind: Kind, value: float | None, history: Sequence[Frame], flow: int, tunnel: str, e: Evidence | None
) -> str:
    """What is special about a part, or why it is not known."""
    if value is not None:
        if kind.name == "softirq":
            return "host-wide"
        if kind.name == "wire" and e is not None:
            return e.trips.source
        return ""
    newest = history[-1] if history else None
    status = newest.probes.get(kind.source) if newest is not None else None
    if status is not None and status.state != "live":
        return {"off": f"{kind.source} is off"}.get(status.state, f"{kind.source}: {status.state}")
    if kind.source == "stages" and newest is not None:
        if tunnel:
            return f"inside {tunnel}"  # there a packet has its outer headers
        if stages_of(newest, flow) is None:
            return "not in focus"
    if kind.source == "flows" and e is not None:
        return "no data is sent" if not e.data[1] and e.looks else "no round trip"
    return "nothing seen"

"""One flow's whole delay, in parts, and what is wrong with it, in words.  The rules: docs/verdict.md.

Pure: from frames to values.  What a frame does not hold (a probe that is off, a flow that is not in focus) is missing
here and said to be.  The parts are found in evidence.py, round trips in trips.py, and judged in rules.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nettop.analysis.verdict.evidence import KINDS, NAMES, WAY, Evidence, Kind, Parts, gather
from nettop.analysis.verdict.flow import stages_of
from nettop.analysis.verdict.rules import HEALTHY, NOTHING_FOUND, judge
from nettop.core import units
from nettop.core.fields import Codec, Part, derived, field
from nettop.core.frame import Frame
from nettop.probes.flows.constants import FLAG_OPENED_BY_LOCAL, PROTOCOLS, STATE_SYN, TUNNELS, both_ways
from nettop.probes.flows.handshake import SYNS, no_connection
from nettop.probes.flows.section import Flows, row_of

LATE_NS = 200_000_000  # a SYN without an answer for so long was lost, or its answer


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
    verdict: str = field(
        "what is wrong, in the field's words (verdict.md); `null` where too little was seen", codec=OR_NULL
    )
    headline: str = field("what is wrong, as a sentence")
    reasons: tuple[str, ...] = field("the figures that it rests on", default=())
    also: tuple[str, ...] = field("verdicts that hold besides", default=())
    unseen: tuple[str, ...] = field(
        "what would have to be seen before the flow could be called healthy, and was not", default=()
    )
    span_ns: int = field("the time that this is from", "ns", default=0)
    intervals: int = field("the frames that this is from", "frames", default=0)
    parts: tuple[DelayPart, ...] = field("of the delay", default=())
    culprits: tuple[str, ...] = ()

    @derived(
        "`verdict` where something is wrong, else `null`; of the time when `verdict` had other words",
        codec=OR_NULL,
    )
    def term(self) -> str:
        return "" if self.verdict in (HEALTHY, NOTHING_FOUND) else self.verdict

    @derived("mean of a packet's whole way: the sum of its parts that are known", "ns", codec=_rounded(0))
    def whole_ns(self) -> float | None:
        """None where no part is known."""
        known = [part.ns for part in self.parts if part.ns is not None and part.name in WAY]
        return sum(known) if known else None


# --- both together -------------------------------------------------------------------------------------------------


def explain(history: Sequence[Frame], flow: int) -> Explanation:
    """One flow's delay in parts, and the verdict, from the newest intervals in which it moved."""
    e = gather(history, flow)
    at = next((frame for frame in reversed(history) if row_of(frame, flow) is not None), None)
    row = None if at is None else row_of(at, flow)
    explanation = partial(
        Explanation,
        flow,
        parts=_parts(e, row, history[-1] if history else None),
        span_ns=e.span_ns if e is not None else 0,
        intervals=e.intervals if e is not None else 0,
    )
    refused = None if at is None else no_connection(row, Flows.of(at).now_ns)
    if refused is not None:
        return explanation(refused.verdict, refused.headline, refused.reasons)
    if e is None or e.intervals < 2:
        unseen = () if e is None else e.unseen
        reasons = () if row is None else _again_so_far(row)
        return explanation("", "too little of this flow was seen yet", reasons=reasons, unseen=unseen)
    finding, also = judge(e)
    reasons = (*finding.reasons, *_late_handshake(history, flow))
    if e.trips.held:
        held = f"{e.trips.held} round trips were ACKs that the far end holds back (delayed ACK); nothing waits for them"
        reasons = (*reasons, held)
    return explanation(finding.verdict, finding.headline, reasons, also, e.unseen, culprits=finding.culprits)


def _again_so_far(row: Any) -> tuple[str, ...]:
    """What was sent again, where that is too little to judge loss by: a SYN that was lost is one segment of few."""
    again, packets = (sum(both_ways(row, what)) for what in ("retransmits", "packets_total"))
    if row["protocol"] != PROTOCOLS["tcp"] or not again:
        return ()
    return (f"{units.count(again)} of {units.count(packets)} segments retransmitted so far",)


def _late_handshake(history: Sequence[Frame], flow: int) -> tuple[str, ...]:
    """That a SYN had to be sent again before there was a connection: a frame had it unanswered, a later one has more.

    A frame between the SYN and its answer has to have seen it: of two that were sent within one nothing is known.
    """
    rows = [(row, Flows.of(f).now_ns) for f in history if (row := row_of(f, flow)) is not None]
    if not rows or rows[-1][0]["state"] == STATE_SYN:
        return ()
    ours = bool(int(rows[0][0]["flags"]) & FLAG_OPENED_BY_LOCAL)
    way, back, who = ("tx", "rx", "this host") if ours else ("rx", "tx", "the far end")
    asked = [each for each in rows if each[0]["state"] == STATE_SYN and not each[0][f"{back}_packets_total"]]
    if not asked:
        return ()
    row, now = asked[-1]
    opened = next(later for later, _ in rows if later["state"] != STATE_SYN)
    syns, waited = int(row[f"{way}_packets_total"]), now - int(row["first"])
    if syns < SYNS and (waited < LATE_NS or not any(both_ways(opened, "retransmits"))):
        return ()
    sent = f"{who} had sent {units.count(syns)} SYN{'s' if syns > 1 else ''}"
    return (f"a late handshake: after {units.duration(waited)} {sent}, and nothing had come back",)


def _parts(e: Evidence | None, row: Any | None, newest: Frame | None) -> tuple[DelayPart, ...]:
    values: Parts = e.parts if e is not None else dict.fromkeys(NAMES)
    total = sum(values[name] or 0.0 for name in WAY)
    return tuple(
        DelayPart(
            kind.words,
            kind.name,
            value := values[kind.name],
            None if value is None or not total or kind.name not in WAY else value / total,
            kind.source,
            _note(kind, value, e, row, newest),
        )
        for kind in KINDS
    )


def _note(kind: Kind, value: float | None, e: Evidence | None, row: Any | None, newest: Frame | None) -> str:
    """What is special about a part, or why it is not known."""
    if value is not None:
        if kind.name == "softirq":
            return "host-wide"
        if kind.name == "wire" and e is not None:
            return e.trips.source
        return ""
    status = newest.probes.get(kind.source) if newest is not None else None
    if status is not None and status.state != "live":
        return f"{kind.source} is off" if status.state == "off" else f"{kind.source}: {status.state}"
    if kind.source == "stages" and newest is not None:
        if row is not None and row["tunnel"]:
            return f"inside {TUNNELS[int(row['tunnel'])]}"  # there a packet has its outer headers
        if row is None or stages_of(newest, int(row["id"])) is None:
            return "not in focus"
    if kind.source == "flows" and e is not None:
        return "no data is sent" if not e.focus.data[1] and e.looks else "no round trip"
    return "nothing seen"

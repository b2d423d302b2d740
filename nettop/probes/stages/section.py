"""What the frame says of the stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from nettop.core.fields import Part, derived, field
from nettop.core.frame import Section
from nettop.core.histogram import Histogram
from nettop.probes.stages.boundaries import Direction


@dataclass(frozen=True, slots=True)
class Stage(Part):
    """One stage in the interval."""

    stage: str = field("its name", privacy="harmless")
    begin: str = field("the hook where it begins", name="from", default="", privacy="harmless")
    end: str = field("the hook where it ends", name="to", default="", privacy="harmless")
    via: str = field("the mechanism that watches its end", default="", privacy="harmless")
    latency: Histogram = field("of the interval", factory=Histogram.empty)
    missed: int | None = field(
        "seen at its end alone; `null` where that cannot be known", "packets", default=None
    )
    dropped: int | None = field(
        "ended in this stage; `null` where that is not watched", "packets", default=None
    )
    path_ns: int = field(
        "its part of the delay of packets that were seen all the way, summed", "ns", default=0
    )
    path_packets: int = field("those packets", "packets", default=0)
    merged: tuple[str, ...] = field(
        "boundaries that cannot be watched on this kernel: their stages' time is in this one",
        default=(),
        privacy="harmless",
    )
    paced_ns: int | None = field(
        "of the stage `qdisc`: the part of its sum before which the packets were not to leave, so pacing (fq, etf) "
        "and no queue; `null` elsewhere",
        "ns",
        default=None,
    )

    @derived("seen at both ends: with `missed` the stage's coverage", "packets")
    def matched(self) -> int:
        """Packets that it could time."""
        return self.latency.count

    @property
    def coverage(self) -> float | None:
        """The share of packets at the stage's end that it could time."""
        if self.missed is None or not self.matched + self.missed:
            return None
        return float(self.matched / (self.matched + self.missed))


@dataclass(frozen=True, slots=True)
class TraceEvent(Part):
    """One boundary that one packet has passed."""

    time_ns: int = field("CLOCK_MONOTONIC", "ns")
    flow: int = field("id of the flow in focus; 0: another one")
    packet: int = field("a number that all events of a packet share, for as long as 4 million packets a CPU")
    direction: Direction = field("received or sent")
    stage: str = field("the stage that ends here; empty where the packet was first seen", privacy="harmless")
    delay_ns: int | None = field("of that stage; `null` at the beginning and for a drop", "ns")
    cpu: int = field("where it was")
    dropped: bool = field("whether the packet ended in the stage", default=False)


@dataclass(frozen=True, slots=True)
class Paths(Part):
    """Stages in the packet's order, and whole paths measured as one interval."""

    rx: tuple[Stage, ...] = field("received, in the order of the path", default=())
    tx: tuple[Stage, ...] = field("sent, in the order of the path", default=())
    rx_whole: Histogram = field("the whole path of what is received", factory=Histogram.empty)
    tx_whole: Histogram = field("the whole path of what is sent", factory=Histogram.empty)

    def rows(self) -> tuple[tuple[Direction, Stage], ...]:
        """All stages, received first."""
        return (*(("rx", s) for s in self.rx), *(("tx", s) for s in self.tx))

    def stage(self, direction: str, name: str) -> Stage | None:
        """The stage of this name; None where there is none."""
        return next((s for way, s in self.rows() if (way, s.stage) == (direction, name)), None)

    def whole(self, direction: str) -> Histogram:
        """A direction's whole path."""
        return self.rx_whole if direction == "rx" else self.tx_whole


@dataclass(frozen=True, slots=True)
class FocusedStages(Paths):
    """The same of the packets of one flow alone."""

    flow: int = field("its id in the flow table", default=0)


@dataclass(frozen=True, slots=True)
class Stages(Paths, Section):
    """The section ``stages``."""

    PLACE: ClassVar[str] = "stages"

    focus: FocusedStages | None = field(
        "the same of the flow in focus alone; `null` where there is none. The first frame after a change of focus has "
        "zeros there",
        default=None,
    )
    sample: int = field(
        "one packet in so many was followed, and all counts are of those; 1: every one",
        name="sampled_one_in",
        default=1,
    )
    trace: tuple[TraceEvent, ...] | None = field(
        "with `--trace` alone: the boundaries that packets passed, by time", default=None, absent=True
    )
    trace_lost: int | None = field("found no room in the ring buffer", "events", default=None, absent=True)
    trace_left_out: int | None = field(
        "beyond the budget, and not in the list at all", "packets", default=None, absent=True
    )

    def health(self) -> Mapping[str, int]:
        return {"lost_events": self.trace_lost or 0}

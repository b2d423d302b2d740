"""The sections flows and rtt of the frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from nettop.core.fields import Json, Part, field
from nettop.core.frame import Frame, Section
from nettop.core.histogram import Histogram
from nettop.core.table import Array, codec_of
from nettop.probes.flows.focus import Focused
from nettop.probes.flows.rows import COLUMNS, ROW, TABLE

OTHERS = "others"  # the row of all subnets beyond the table
_TABLE = codec_of(COLUMNS)


def _read_rows(value: Json) -> Array:
    rows: Array = _TABLE.read(value)
    nameless = rows["id"] == 0  # of the first recordings
    rows["id"][nameless] = np.flatnonzero(nameless) + 1
    return rows


ROWS = replace(_TABLE, read=_read_rows)


@dataclass(frozen=True, slots=True)
class Subnet(Part):
    """Outward RTT of one subnet; the last one, OTHERS, stands for all that found no room in the kernel's table."""

    prefix: str = field(
        "of the remote end (lengths by `--subnets`); `others`: all that found no room", privacy="address"
    )
    rtt: Histogram = field("of the interval", factory=Histogram.empty)
    min_ns: int | None = field("the smallest since the start", "ns", default=None)


@dataclass(frozen=True, slots=True)
class Rtts(Part):
    """RTT of all flows in the interval, from the same samples."""

    outward: Histogram = field("from the interface outward", name="all", factory=Histogram.empty)
    inward: Histogram = field("from the interface inward", name="internal", factory=Histogram.empty)
    subnets: tuple[Subnet, ...] = field("by the remote end's subnet", default=())


@dataclass(frozen=True, slots=True)
class Sample(Part):
    """One RTT sample of the flow in focus."""

    time_ns: int = field("CLOCK_MONOTONIC", "ns")
    rtt_ns: int = field("the round trip", "ns")
    inward: bool = field("from the interface inward", name="internal")
    method: str = field("what was matched", privacy="harmless")
    payload: int | None = field(
        "of data in what answered (0: a bare ACK); `null`: not known", "bytes", default=None
    )
    tsval: int | None = field("its timestamp; `null`: not known", default=None)


@dataclass(frozen=True, slots=True)
class Flows(Section):
    """The sections ``flows`` and ``rtt`` of the frame.  ``rows`` is a structured array of dtype ROW."""

    TABLE: ClassVar = TABLE

    rows: Array = field(
        "the first by `--sort`, at most `--top`", name="flows", codec=ROWS, factory=lambda: np.zeros(0, ROW)
    )
    total: int = field("in the table", "flows", name="flows_total", default=0)
    now_ns: int = field(
        "end of the interval by CLOCK_MONOTONIC, the clock of the flows' times",
        "ns",
        name="monotonic_ns",
        default=0,
    )
    interval_ns: int = field(
        "the interval that the counts in `flows` belong to, from one reading of the table to the next: divide by this "
        "for rates. Longer than the frame's with `--scan-interval`",
        "ns",
        name="flows_interval_ns",
        default=0,
    )
    age_ns: int = field(
        "how long before the frame's end the table was read. Not 0: this frame carries on the rows of an earlier one, "
        "and adding up their counts would count them twice",
        "ns",
        name="flows_age_ns",
        default=0,
    )
    opened: int = field("opened in the interval", "connections", name="flows_opened", default=0)
    closed: int = field("closed in the interval", "connections", name="flows_closed", default=0)
    expired: int = field(
        "left the table in the interval because they were idle", "flows", name="flows_expired", default=0
    )
    opened_total: int = field("opened since the start", "connections", name="flows_opened_total", default=0)
    closed_total: int = field("closed since the start", "connections", name="flows_closed_total", default=0)
    fragments: int = field(
        "whose first one was not seen: in the totals, in no flow",
        "fragments",
        name="fragments_without_first",
        default=0,
    )
    fragment_bytes: int = field("of those", "bytes", name="fragments_without_first_bytes", default=0)
    rtt: Rtts = field("RTT of all flows in the interval", factory=Rtts)
    samples: tuple[Sample, ...] = field("RTT samples of the flow in focus", default=())
    focused: Focused | None = field(
        "what is known of the flow in focus alone; `null` where there is none", name="focus", default=None
    )
    lost_events: int = field("found the ring buffer full", "events", place="health", default=0)
    evicted: int = field(
        "left the full table before their time", "flows", name="evicted_flows", place="health", default=0
    )
    untracked: int = field(
        "should have a flow and have none: a broken IP header, or no room in the table. What is no IP is in "
        "`throughput.in_no_flow`",
        "packets",
        name="untracked_packets",
        place="health",
        default=0,
    )

    @classmethod
    def from_frame(cls, data: Mapping[str, Any]) -> Self:
        made = super(Flows, cls).from_frame(data)
        # Of frames from before a field came.
        return replace(
            made,
            total=made.total or len(made.rows),
            now_ns=made.now_ns or int(made.rows["last"].max(initial=0)),
            interval_ns=made.interval_ns or int(data.get("interval_ns") or 0),
        )

    def trimmed(self, top: int) -> Self:
        rows = TABLE.top(self.rows, top, "rate")
        if self.focused is not None and self.focused.flow not in rows["id"]:
            rows = np.concatenate([rows, self.rows[self.rows["id"] == self.focused.flow]])
        return replace(self, rows=rows.copy())


def row_of(frame: Frame, flow: int) -> Any | None:
    """The flow's row of a frame."""
    section = Flows.find(frame)
    if section is None:
        return None
    found = section.rows[section.rows["id"] == np.uint64(flow)]
    return found[0] if len(found) else None

"""What is measured, as values: integers in ns and bytes, nothing formatted, nothing that can change.

A Frame holds one interval of everything.  The screen, the outputs, a snapshot, a recording and a replay all speak
Frames.  Each probe contributes one Section, whose type lives in the probe's own module; this module holds what they
share.  Schema: docs/frame.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from nettop.core.fields import TIME, Part, elsewhere, field
from nettop.core.table import Rows

SCHEMA = "nettop/1"

State = Literal["live", "failed", "unavailable", "off"]
SECONDS, FRAMES = "seconds_one_in", "frames_one_in"  # of Health.shed


@dataclass(frozen=True, slots=True)
class Focus:
    """The flow in focus: its id in the flow table, and its key by the fields of struct flow_key."""

    id: int
    key: Mapping[str, int | bytes]

    def __post_init__(self) -> None:
        if not 0 < self.id < 1 << 64:
            raise ValueError("not a flow")


@dataclass(frozen=True, slots=True)
class HookStatus(Part):
    """One boundary in the kernel: by which mechanism it is watched, and what that cost in the interval."""

    hook: str = field("the boundary in the kernel", privacy="harmless")
    via: str = field(
        "the mechanism that was chosen: `tcx`, `clsact`, `tp_btf`, `raw_tracepoint`, `netfilter`, `fentry`, `kprobe`, "
        "`prog_run` (a program of no packet, which nettop itself runs)",
        privacy="harmless",
    )
    runs: int | None = field(
        "of its programs, from the kernel's run statistics; they are on for a tenth of each second, so this is an "
        "estimate; `null` where the kernel gives none",
        "runs",
        default=None,
    )
    run_ns: int | None = field("CPU time of those, likewise", "ns", default=None)
    recursion_misses: int | None = field(
        "that the kernel left out, as another run of the same program on that CPU had not ended, counted one by one: "
        "what was to be seen there was not; `null` where it does not say",
        "runs",
        default=None,
    )


@dataclass(frozen=True, slots=True)
class ProbeStatus(Part):
    """Whether a probe works."""

    state: State = field(
        "`live`; `failed` while loading or running; `unavailable` on this kernel; `off`, not asked for"
    )
    detail: str = field("why it is not live, and what would help", default="", privacy="message")
    hooks: tuple[HookStatus, ...] = field("the boundaries that it watches", default=())


@dataclass(frozen=True, slots=True)
class Health(Part):
    """What the frame missed and what it cost, in the interval."""

    # By name, as the sections declare it.
    missed: Mapping[str, int] = field("what the probes missed", factory=dict, open=True, privacy="harmless")
    kernel_ns: int | None = field("CPU time of all programs: the sum of `run_ns`", "ns", default=None)
    user_ns: int = field("CPU time of nettop's two processes, by their CPU clocks", "ns", default=0)
    rss_bytes: int = field("their resident memory, /proc/PID/statm", "bytes", default=0)
    budget_ns: int | None = field(
        "what `kernel_ns` and `user_ns` may be together (`--budget`); `null`: no budget", "ns", default=None
    )
    # By name, as the probes declare it; FRAMES and SECONDS are the engine's own.
    shed: Mapping[str, int] = field(
        "what was left out to stay within it, one in so many; 1: nothing", factory=dict, privacy="harmless"
    )

    @property
    def seconds_one_in(self) -> int:
        """The seconds in which the duty-cycled probes were attached: one in so many."""
        return self.shed.get(SECONDS, 1)


class Section(Part):
    """One probe's part of a Frame."""

    __slots__ = ()
    PLACE: ClassVar[str] = ""  # the frame's key that it lies under; empty: its fields are the frame's own
    TABLE: ClassVar[Rows | None] = None  # of its rows, where it has any
    # Its ``rx`` and ``tx`` have what passed by the programs and ``_total`` by the interface's own counters.
    COMPARABLE: ClassVar[bool] = False

    def in_frame(self, top: int, sort: str) -> dict[str, Any]:
        """Its top-level keys of the frame; at most ``top`` rows of a long table, by column ``sort``."""
        data = self.shown(top, sort).to_json()
        return {self.PLACE: data} if self.PLACE else data

    @classmethod
    def from_frame(cls, data: Mapping[str, Any]) -> Self:
        """The same from a whole frame's JSON; ValueError and its kin where a value makes no sense."""
        made = cls.from_json((data.get(cls.PLACE) or {}) if cls.PLACE else data)
        health = data.get("health") or {}
        kind: Any = cls
        found: dict[str, Any] = {}
        for f in elsewhere(kind, "health"):
            if health.get(f.name) is not None:
                try:
                    found[f.attribute] = f.codec.read(health[f.name])
                except (ValueError, TypeError) as error:
                    raise ValueError(f"health: {f.name}: {error}") from None
        return dataclasses.replace(made, **found) if found else made  # type: ignore[type-var]

    @classmethod
    def find(cls, frame: Frame) -> Self | None:
        """This section of a frame; None where its probe is not live."""
        return next((section for section in frame.sections.values() if isinstance(section, cls)), None)

    @classmethod
    def of(cls, frame: Frame) -> Self:
        found = cls.find(frame)
        assert found is not None
        return found

    def shown(self, top: int, sort: str) -> Self:
        """The section with at most ``top`` rows, in the order of column ``sort``."""
        if self.TABLE is None:
            return self
        rows = self.TABLE.top(getattr(self, self.TABLE.attribute), top, sort)
        return dataclasses.replace(self, **{self.TABLE.attribute: rows})  # type: ignore[type-var]

    def trimmed(self, top: int) -> Self:
        """The section with at most ``top`` rows: what a history can afford to keep."""
        return self.shown(top, "")

    def health(self) -> Mapping[str, int]:
        kind: Any = type(self)
        return {f.name: getattr(self, f.attribute) for f in elsewhere(kind, "health")}


@dataclass(frozen=True, slots=True)
class Frame(Part):
    """One interval of everything."""

    time_ns: int = field("end of the interval, CLOCK_REALTIME", "ns", codec=TIME)
    interval_ns: int = field("its length, CLOCK_MONOTONIC; divide counts by this for rates", "ns", codec=TIME)
    host: str = field("host name", default="", privacy="name")
    interface: str = field("the interface that is watched", default="", privacy="interface")
    filter: str = field("the pcap-filter expression in the kernel; empty: none", default="", privacy="filter")
    probes: Mapping[str, ProbeStatus] = field("by name", factory=dict)
    health: Health = field("what the frame missed, and what it cost", factory=Health)
    notes: tuple[str, ...] = field(
        "what the user should know now, as sentences; left out where there is nothing",
        default=(),
        absent=True,
        privacy="message",
    )
    sections: Mapping[str, Section] = dataclasses.field(default_factory=dict)  # of the probes that are live

    @property
    def seconds(self) -> float:
        """The interval in seconds; never 0."""
        return max(self.interval_ns, 1) / 1e9

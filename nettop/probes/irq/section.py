"""What the frame says of the interrupt path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nettop.core.fields import Part, field
from nettop.core.frame import Section
from nettop.core.histogram import Histogram

BACKLOG = "backlog"  # the CPU's own poll, for packets of devices without NAPI


@dataclass(frozen=True, slots=True)
class Line(Part):
    """One interrupt line in the interval."""

    irq: int = field("its number")
    name: str = field("as in /proc/interrupts", default="", privacy="harmless")
    latency: Histogram = field("the handler's run", factory=Histogram.empty)
    own: bool | None = field("it is the watched device's; `null` where that is not known", default=None)
    unhandled: int = field("runs in which the handler left it unhandled", "runs", default=0)


@dataclass(frozen=True, slots=True)
class SoftIrq(Part):
    """One softirq vector."""

    vector: str = field("its name in include/linux/interrupt.h", privacy="harmless")
    wait: Histogram = field("from its first raise to its run", factory=Histogram.empty)
    run: Histogram = field("the run", factory=Histogram.empty)


@dataclass(frozen=True, slots=True)
class Poll(Part):
    """The polls of one device."""

    device: str = field(
        "the interface, or `backlog`: the CPU's own, for devices without NAPI", privacy="harmless"
    )
    irq_to_poll: Histogram | None = field("`null` without an interrupt of its own", default=None)
    run: Histogram = field("the poll", factory=Histogram.empty)
    work: int = field("taken in polls", "packets", default=0)
    polls: int = field("polls", "polls", default=0)
    budget_exhausted: int = field("polls that used their whole budget", "polls", default=0)
    irq_missed: int | None = field(
        "interrupts that scheduled a poll which was not seen", "interrupts", default=None
    )


@dataclass(frozen=True, slots=True)
class Cpu(Part):
    """Softnet's counters of one CPU, in the interval."""

    cpu: int = field("its number")
    processed: int = field("taken from the backlog or by a poll", "packets", default=0)
    dropped: int = field("found the CPU's backlog full", "packets", default=0)
    time_squeeze: int = field("softirqs that ended with work left", "runs", default=0)


@dataclass(frozen=True, slots=True)
class Irq(Section):
    """The section ``irq``: the interrupt path."""

    PLACE: ClassVar[str] = "irq"

    hard: tuple[Line, ...] = field("interrupt lines, the device's own first", default=())
    soft: tuple[SoftIrq, ...] = field("softirq vectors", default=())
    poll: tuple[Poll, ...] = field("NAPI polls: the device's, and of the backlog", default=())
    cpus: tuple[Cpu, ...] | None = field(
        "/proc/net/softnet_stat; `null` where it cannot be read", default=None
    )
    hardware: bool | None = field("whether the device has interrupts at all; `null`: not known", default=None)

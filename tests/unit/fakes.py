"""Frames for tests: a probe's section that is as simple as one can be, and files made of such frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from hypothesis import strategies as st

from nettop.core import units
from nettop.core.fields import field
from nettop.core.frame import Frame, Health, HookStatus, ProbeStatus, Section
from nettop.probes.throughput.section import Direction, Share, Throughput


@dataclass(frozen=True)
class Numbers(Section):
    """Contributes the keys ``numbers_total`` and ``numbers``, as flows do."""

    numbers: tuple[int, ...] = field("numbers", default=())
    names: tuple[str, ...] = field("names", default=(), privacy="name")

    def in_frame(self, top: int, sort: str) -> dict[str, Any]:
        return {"numbers_total": len(self.numbers), **super().in_frame(top, sort)}

    def shown(self, top: int, sort: str) -> Self:
        chosen = tuple(sorted(self.numbers)) if sort == "ascending" else self.numbers
        return replace(self, numbers=chosen[:top])

    def trimmed(self, top: int) -> Self:
        return replace(self, numbers=self.numbers[:top])


KINDS = {"numbers": Numbers}


def frame(index: int = 0, *numbers: int, interval_ns: int = 1_000_000_000, **changes: Any) -> Frame:
    """A frame of the stand-in probe, second ``index`` of the year 2025."""
    made = Frame(
        time_ns=1_735_689_600_000_000_000 + index * interval_ns,
        interval_ns=interval_ns,
        host="db-3",
        interface="eth0",
        probes={"numbers": ProbeStatus("live", "", (HookStatus("tc_ingress", "tcx", 7, 700),))},
        health=Health({"lost_events": 1, "evicted_flows": 2, "untracked_packets": 3}, None, 4, 5),
        sections={"numbers": Numbers(numbers or (index,))},
    )
    return replace(made, **changes)


def traffic(index: int = 0, rx_bytes: int = 125_000, **changes: Any) -> Frame:
    """A frame that the program itself can replay: one probe, throughput, live."""
    section = Throughput(
        rx=Direction(bytes=rx_bytes, packets=100, peak_bits_per_s=2_000_000, bytes_total=rx_bytes),
        tx=Direction(bytes=4096, packets=10, bytes_total=4096),
        protocols=(Share("tcp", rx_bytes, 4096),),
    )
    status = {"throughput": ProbeStatus("live", "", (HookStatus("tc_ingress", "tcx", 7, 700),))}
    return replace(frame(index), probes=status, sections={"throughput": section}, **changes)


# --- for hypothesis -----------------------------------------------------------------------------------------

big = st.integers(0, 2**63 - 1)
# What survives a file unchanged: whatever can be printed.
harmless = st.text(
    st.characters(exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")), max_size=40
).map(units.clean)  # marks without a letter, or too many
statuses = st.builds(
    ProbeStatus,
    st.just("live"),
    harmless,
    st.lists(st.builds(HookStatus, harmless, harmless, *[st.none() | big] * 3), max_size=3).map(tuple),
)
frames = st.builds(
    Frame,
    time_ns=big,
    interval_ns=big,
    host=harmless,
    interface=harmless,
    filter=harmless,
    probes=st.builds(lambda status: {"numbers": status}, statuses),
    health=st.builds(
        Health, st.dictionaries(st.sampled_from(["lost_events", "others"]), big), st.none() | big, big, big
    ),
    sections=st.builds(
        lambda numbers, names: {"numbers": Numbers(tuple(numbers), tuple(names))},
        st.lists(big, max_size=5),
        st.lists(harmless, max_size=3),
    ),
    notes=st.lists(harmless, max_size=2).map(tuple),
)

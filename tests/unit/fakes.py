"""What several tests need: simple frames, recordings of them, addresses, histograms, the size of what is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

import numpy as np
from hypothesis import strategies as st

from nettop.core import units
from nettop.core.fields import field
from nettop.core.frame import Frame, Health, HookStatus, ProbeStatus, Section
from nettop.core.histogram import SLOTS, Histogram, bucket_of
from nettop.output import WRITERS, Style
from nettop.probes.throughput.section import Direction, Share, Throughput
from nettop.record.recording import Header, Recorder
from nettop.render import draw
from nettop.render.canvas import Line


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
LIVE = ProbeStatus("live", "", (HookStatus("tc_ingress", "tcx", 7, 700),))


def frame(index: int = 0, *numbers: int, interval_ns: int = 1_000_000_000, **changes: Any) -> Frame:
    """A frame of the probe ``numbers``, second ``index`` of the year 2025."""
    made = Frame(
        time_ns=1_735_689_600_000_000_000 + index * interval_ns,
        interval_ns=interval_ns,
        host="db-3",
        interface="eth0",
        probes={"numbers": LIVE},
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
    return frame(index, **{"probes": {"throughput": LIVE}, "sections": {"throughput": section}, **changes})


def changed(shown: Frame, section: str, **changes: Any) -> Frame:
    """The frame with other values in one of its sections."""
    return replace(shown, sections={**shown.sections, section: replace(shown.sections[section], **changes)})


def record(path: Path, frames: Iterable[Frame], header: Header | None = None, top: int = 1000) -> Path:
    """A recording of these frames."""
    with Recorder(str(path), header or Header(), top, "") as recorder:
        for each in frames:
            recorder.record(each)
    return path


def written(form: str, *frames: Frame, **style: Any) -> str:
    """What an output in this form writes of the frames."""
    texts: list[str] = []
    writer = WRITERS[form](texts.append, Style(**style))
    for each in frames:
        writer.write(each)
    return "".join(texts)


def packed(address: object) -> bytes:
    """An address, IPv4 mapped, as the 16 bytes that rows have."""
    parsed = ip_address(str(address))
    return parsed.packed if parsed.version == 6 else bytes(10) + b"\xff\xff" + parsed.packed


def histogram(*delays_ns: int, count: int = 1) -> Histogram:
    """Each of these delays ``count`` times."""
    counts = np.zeros(SLOTS, np.uint64)
    for delay in delays_ns:
        counts[bucket_of(delay)] += np.uint64(count)
    return Histogram(counts, sum(delays_ns) * count)


def assert_fits(lines: Sequence[Line], width: int, height: int) -> None:
    assert len(lines) <= height
    assert max((draw.cells_of(row) for row in lines), default=0) <= width


# --- strings of somebody else ----------------------------------------------------------------------------------

HOSTILE = {
    "escape": "\x1b[31m\x1b]0;title\x07",
    "eighth-bit controls": "\x9b31m\x9d0;x\x9c\x85",
    "bidi": "a\u202e\u202d\u202a\u202b\u202c\u2066\u2067\u2068\u2069\u200e\u200f\u061cb",
    "no width": "a\u200b\u200c\u200d\ufeff\u2060\u00ad\u034fb",
    "lines": "a\nb\rc\vd\fe\u2028f\u2029g\x00h",
    "combining flood": "a" + "\u0301\u0316\u0488" * 40,
    "leading mark": "\u0301abc",
    "variation selectors": "a\ufe0f\ufe00\U000e0100b",
    "tags": "a\U000e0041\U000e007fb",
    "blank letters": "a\u3164\u115f\u1160\uffa0\u2800b",
    "surrogates": "a\ud800\udfffb",
    "private use": "a\ue000\U0010ffffb",
    "long": "x" * 10_000,
    "markup": "[red]x[/red][link=file:///etc/passwd]y[/link]",
}
# What moves the cursor, hides, turns round, or belongs to no letter.
NEVER = {*map(chr, [*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])}
NEVER |= {
    *"\u200b\u200c\u200d\u200e\u200f\u061c\ufeff\u2060\u00ad\u2028\u2029\u3164\u115f\u1160\uffa0\u2800\ufe0f"
}

# --- for hypothesis -----------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
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

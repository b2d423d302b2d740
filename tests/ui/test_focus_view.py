"""The page of one flow: its verdict, the bar of its delay, and what it did; on every size of canvas."""

from dataclasses import replace

import frames
import pytest
from fakes import assert_fits, changed
from hypothesis import given, settings
from hypothesis import strategies as st

from nettop.analysis import flow_page
from nettop.analysis.verdict import explain
from nettop.core.frame import Frame, ProbeStatus
from nettop.probes.flows import table as flows_table
from nettop.render.canvas import Canvas, text_of

HISTORY = frames.frames(75)
OTHER = 1 << 40  # a flow that is not in focus


def page(canvas: Canvas, history=HISTORY, flow=frames.FOCUS) -> list[str]:
    return [text_of(row) for row in flow_page.detail(history, flow, canvas)]


@settings(max_examples=120)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 60),
    unicode=st.booleans(),
    shades=st.booleans(),
    flow=st.sampled_from([frames.FOCUS, OTHER, OTHER + 2, OTHER + 7]),
    count=st.integers(1, 75),
)
def test_the_page_is_not_larger_than_its_canvas(width, height, unicode, shades, flow, count):
    canvas = Canvas(width, height, unicode=unicode, shades=shades)
    lines = flow_page.detail(HISTORY[:count], flow, canvas)
    assert_fits(lines, width, height)
    if not unicode:
        assert all(c.isascii() or c in "µ…" for row in lines for c in text_of(row))


def test_it_says_what_is_wrong_and_by_which_figures():
    found = explain.explain(HISTORY, frames.FOCUS)
    text = "\n".join(page(Canvas(116, 37)))
    assert found.verdict == "path queueing"
    for said in (found.verdict, found.headline, *found.reasons):
        assert said in text


@pytest.mark.parametrize(("width", "height"), [(116, 37), (76, 21), (160, 50)])
def test_every_part_stands_beside_the_bar(width, height):
    rows = page(Canvas(width, height))
    at = [next(i for i, row in enumerate(rows) if kind.words in row) for kind in explain.KINDS]
    assert at == sorted(at, reverse=True)[: len(at)], "the first on the way stands lowest"


def test_the_part_that_the_verdict_speaks_of_is_warm_and_marked():
    lines = flow_page.detail(HISTORY, frames.FOCUS, Canvas(116, 37))
    words = next(k.words for k in explain.KINDS if k.name == "beyond")
    warm = next(row for row in lines if any(words in span.text for span in row))
    assert text_of(warm).rstrip().endswith("◂")
    assert [span.role for span in warm if span.text.startswith("█ ")] == ["warn"]
    assert sum(text_of(row).rstrip().endswith("◂") for row in lines) == 1


def test_without_shades_each_part_has_a_texture_of_its_own():
    for unicode in (True, False):
        canvas = Canvas(116, 37, unicode=unicode, shades=False)
        glyphs = [flow_page._glyph(name, canvas) for name in explain.NAMES]
        assert len(set(glyphs)) == len(glyphs)
        bar = [row for row in page(canvas) if "▕" in row or "|" in row]
        beyond = flow_page._glyph("beyond", canvas)
        assert sum(row[9:70].count(beyond) for row in bar) > 100


def test_the_bar_is_as_high_as_the_way_is_long():
    parts = dict.fromkeys(explain.NAMES, 0.0) | {"wire": 25.0, "reader": 50.0}
    lines = flow_page.bars([parts, parts], Canvas(4, 8, shades=False), 100.0, ())
    column = [text_of(row)[-1] for row in lines]
    assert column == [" ", " ", "█", "█", "█", "█", "░", "░"]
    assert all(text_of(row)[:2] == "  " for row in lines)


def test_a_rare_exception_does_not_flatten_the_rest():
    assert flow_page._top([1.0] * 50) == 1.0
    assert flow_page._top([1.0] * 49 + [3.0]) == 3.0
    assert flow_page._top([1.0] * 49 + [300.0]) == 2.0
    parts = dict.fromkeys(explain.NAMES, 0.0) | {"wire": 300.0}
    assert text_of(flow_page.bars([parts], Canvas(1, 4), 2.0, ())[0]) == "↑"


def test_a_flow_that_is_not_in_focus_shows_what_is_known_and_what_is_missing():
    rows = page(Canvas(116, 37), flow=OTHER)
    assert any("wait for reader" in row and "not in focus" in row for row in rows)
    assert any("RTT, least seen" in row and "20.0 ms" in row for row in rows)


def test_a_probe_that_is_off_is_named():
    def without(frame):
        sections = {k: v for k, v in frame.sections.items() if k not in ("stages", "irq")}
        probes = {**frame.probes, "stages": ProbeStatus("off"), "irq": ProbeStatus("unavailable", "no hooks")}
        return replace(frame, sections=sections, probes=probes)

    rows = page(Canvas(116, 37), [without(f) for f in HISTORY])
    assert any("wait for reader" in row and "stages is off" in row for row in rows)
    assert any("interrupt to poll" in row and "irq: unavailable" in row for row in rows)
    assert any("RTT, least seen" in row and "24.0 ms" in row for row in rows)


def test_samples_of_the_flow_in_focus_are_a_heat_map():
    def heats(history) -> bool:
        lines = flow_page.detail(history, frames.FOCUS, Canvas(116, 37))
        return any(span.role.startswith("heat:") for row in lines for span in row)

    assert not heats(HISTORY[: frames.FOCUSED_SINCE])
    assert heats(HISTORY)


def test_a_spin_bit_that_does_not_spin_is_said():
    table = flows_table.rows(HISTORY[-1]).copy()
    quic = table["id"] == OTHER + 2
    table["rtt"]["samples_total"][quic], table["rtt"]["samples"][quic] = 0, 0
    table["spin_packets"][quic] = 64
    rows = page(Canvas(116, 37), [*HISTORY[:-1], changed(HISTORY[-1], "flows", rows=table)], OTHER + 2)
    assert any("does not spin" in row for row in rows)


def test_what_came_late_and_cannot_be_told_is_said_as_that():
    assert not any("uncertain" in row or "duplicated" in row for row in page(Canvas(160, 37)))
    table = flows_table.rows(HISTORY[-1]).copy()
    ours = table["id"] == frames.FOCUS
    table["rx_uncertain"][ours], table["tx_duplicates"][ours] = 7, 3
    rows = page(Canvas(160, 37), [*HISTORY[:-1], changed(HISTORY[-1], "flows", rows=table)])
    assert any("uncertain 7" in row and "duplicated 3" in row for row in rows)


def of_the_focus(
    srtt_us: int, least: int | None, data: tuple[int, int] | None = None, **fields: int
) -> list[Frame]:
    """The kernel's RTT and its least one in ns; ``data``: no round trip, and packets with data, received and sent."""
    made = []
    for frame in HISTORY[-3:]:
        flows = frame.sections["flows"]
        rows, ours = flows.rows.copy(), flows.rows["id"] == frames.FOCUS
        rows["kernel_rtt"]["smoothed"][ours] = srtt_us * 1000
        focused = replace(flows.focused, socket=replace(flows.focused.socket, rtt_min_ns=least))
        if data:
            for name, value in {"rx_packets_total": 900, "tx_packets_total": 400, **fields}.items():
                rows[name][ours] = value
            rows["rtt"]["samples_total"][ours] = rows["rtt"]["samples"][ours] = 0
            flows, focused = replace(flows, samples=()), replace(focused, data=data)
        made.append(changed(frame, "flows", rows=rows, focused=focused, samples=flows.samples))
    return made


def test_the_kernels_round_trips_stand_beside_ours():
    """What the far end takes to answer is in ours alone: the kernel's least has an ACK that came before."""
    rows = page(Canvas(116, 37), of_the_focus(30_100, 11_000))
    assert any("kernel srtt 30.1 ms, min 11.0 µs" in row for row in rows)


WHY_NO_ROUND_TRIP = [
    ((40_300, None, (300, 0)), {}, "no data sent; kernel 40.3 ms"),
    ((0, 40_100_000, (300, 0)), {}, "no data sent; kernel ≥40.1 ms"),
    ((0, None, (300, 0)), {}, "no data sent"),
    ((40_300, None, (300, 9)), {}, "no sample; kernel 40.3 ms"),
    ((0, None, (0, 9)), {"rx_packets_total": 0}, "one direction only"),
    ((0, None, (9, 9)), {"protocol": 17, "spin_packets": 0}, "not measured: no TCP"),
]


@pytest.mark.parametrize(("width", "height"), [(116, 37), (76, 21)])
@pytest.mark.parametrize(("facts", "fields", "why"), WHY_NO_ROUND_TRIP)
def test_where_there_is_no_round_trip_the_page_says_why_and_whole(facts, fields, why, width, height):
    rows = page(Canvas(width, height), of_the_focus(*facts, **fields))
    said = [row.split("RTT  ")[1].strip() for row in rows if "  RTT  " in row]
    assert said == [why]

"""Panes as pure functions: at no size wider or taller than their canvas, and saying what the frame says."""

from dataclasses import replace

import frames
import numpy as np
import pytest
from fakes import assert_fits, changed, packed
from hypothesis import given, settings
from hypothesis import strategies as st

from nettop.analysis import flow_page
from nettop.probes.flows import rtt_pane as flows_rtt_pane
from nettop.probes.flows import table as flows_table
from nettop.probes.throughput import pane as throughput_pane
from nettop.probes.throughput.section import Throughput
from nettop.render import draw
from nettop.render.canvas import Canvas, Pane, text_of

HISTORY = frames.frames(70)
EMPTY = [frames.frame(0, sections={"throughput": Throughput(), "flows": frames.Flows()})]
PANES = (*throughput_pane.PANES, *flows_table.PANES)
DRAWN: list[Pane] = [pane for pane in PANES if pane.draw is not None]


@pytest.mark.parametrize("history", ["busy", "empty"])
@pytest.mark.parametrize("pane", DRAWN, ids=lambda p: p.name)
@settings(max_examples=60)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 60),
    zoomed=st.booleans(),
    unicode=st.booleans(),
    shades=st.booleans(),
    cursor=st.one_of(st.none(), st.tuples(st.integers(0, 250), st.integers(0, 80))),
)
def test_no_pane_is_larger_than_its_canvas(pane, history, width, height, zoomed, unicode, shades, cursor):
    canvas = Canvas(width, height, zoomed, cursor, unicode=unicode, shades=shades)
    assert_fits(pane.draw({"busy": HISTORY, "empty": EMPTY}[history], canvas), width, height)


def test_the_compact_form_is_not_larger_either():
    for width in range(1, 201):
        assert_fits(throughput_pane.compact(HISTORY, Canvas(width, 2)), width, 2)


@pytest.mark.parametrize("bits", [True, False])
def test_every_cell_fits_its_column_and_no_figure_is_cut(bits):
    frame, rows = HISTORY[-1], flows_table.rows(HISTORY[-1])
    for column in flows_table.COLUMNS:
        for width in range(column.width, 60):
            for row in rows:
                text = column.cell(row, Canvas(width, 1, bits=bits), frame).text
                assert draw.cells(text) <= width, column.key


def shown(key: str, index: int, frame=HISTORY[-1], **canvas) -> str:
    column = next(c for c in flows_table.COLUMNS if c.key == key)
    return column.cell(flows_table.rows(frame)[index], Canvas(column.width, 1, **canvas), frame).text.strip()


def test_a_row_says_what_the_flow_is():
    wanted = {
        "protocol": "tcp", "local": ":443", "remote": "203.0.113.7:51122", "process": "nginx 812", "rx": "808 Mb/s",
        "tx": "8.80 Mb/s", "rtt": "21.0 ms", "min": "20.0 ms", "method": "ts", "state": "open",
    }  # fmt: skip
    assert {key: shown(key, 0, frames.frame(0)) for key in wanted} == wanted


def test_what_is_not_known_is_a_dash_and_never_zero():
    for key in ("process", "rtt", "min", "jitter", "method", "retransmits", "state"):
        assert shown(key, 8) == "-", key


@pytest.mark.parametrize(
    ("us", "said"),
    [
        (40_300, "(40ms)"),
        (3_270, "(3.3ms)"),
        (9_960, "(10ms)"),
        (350, "(350µs)"),
        (1_240_000, "(1.2s)"),
        (0, "-"),
    ],
)
def test_without_a_round_trip_of_the_flow_the_kernels_stands_in_brackets(us, said):
    """A download sends nothing that is answered; what its socket knows is not taken for what was measured."""
    made = frames.frame(0)
    rows = flows_table.rows(made).copy()
    rows["rtt"]["samples_total"][0], rows["kernel_rtt"]["smoothed"][0] = 0, us * 1000
    made = changed(made, "flows", rows=rows)
    assert shown("rtt", 0, made) == said
    assert shown("method", 0, made) == ("kern" if us else "-")
    assert shown("min", 0, made) == "-"
    assert shown("rtt", 1, made) == "234 ms", "where there is one, it alone"
    assert np.isnan(next(c for c in flows_table.COLUMNS if c.key == "rtt").sort(rows)[0])


def test_rates_are_in_bytes_when_asked():
    assert shown("rx", 0, frames.frame(0), bits=False) == "101 MB/s"


def test_a_name_stands_for_an_address_where_there_is_one():
    names = {packed("203.0.113.7"): "a.example"}
    column = next(c for c in flows_table.COLUMNS if c.key == "remote")
    canvas = Canvas(24, 1, names=lambda address: names.get(address, ""))
    cells = [column.cell(row, canvas, HISTORY[-1]).text.strip() for row in flows_table.rows(HISTORY[-1])[:2]]
    assert cells == ["a.example:51122", "198.51.100.4:40110"]


def test_a_round_trip_far_above_its_minimum_is_warm_and_an_old_one_dim():
    column = next(c for c in flows_table.COLUMNS if c.key == "rtt")
    frame = frames.frame(0)
    roles = [column.cell(row, Canvas(7, 1), frame).role for row in flows_table.rows(frame)]
    assert roles[:2] == ["value", "bad"]  # 21 ms over 20; 187 over 24
    assert roles[6] == "dim"  # 30 s old


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("nginx", 2),
        ("NGINX", 2),
        ("203.0.113", 1),
        ("2001:db8", 2),
        ("443", 3),
        (":443", 3),
        ("udp", 3),
        ("20133", 1),
        ("reset", 0),
        ("nothing at all", 0),
        ("java", 24),
    ],
)
def test_a_plain_word_finds_rows(word, found):
    assert int(flows_table.matches(flows_table.rows(HISTORY[-1]), word).sum()) == found


def test_a_plain_word_is_never_an_error():
    for word in ("", "\0", "é", "9" * 400, "-1", "::", "%s"):
        flows_table.matches(flows_table.rows(HISTORY[-1]), word)
        flows_table.matches(np.zeros(0, frames.ROW), word)


def test_the_copied_row_is_whole():
    ends = "[2001:db8::10]:55012 [2001:db8:40:aaaa:bbbb:cccc:dddd:eeee]:6443"
    assert flows_table.copy(flows_table.rows(frames.frame(0))[5]).startswith(f"tcp {ends} kubelet 733 rx ")


def test_the_page_of_a_flow_that_is_gone_says_so():
    assert "not in the frames" in text_of(flow_page.detail(HISTORY, 99, Canvas(80, 20))[0])
    gone = [*HISTORY, frames.frame(70, sections={"flows": frames.Flows()})]
    assert "gone" in text_of(flow_page.detail(gone, 1 << 40, Canvas(80, 20))[0])


def test_throughput_says_rate_burst_packets_and_drops():
    rx = text_of(throughput_pane.pane(frames.frames(1), Canvas(60, 7))[0])
    assert rx.split() == "rx 1.76 Gb/s peak 5.10 Gb/s in 1 ms 157 k/s 0 drop".split()


def test_a_burst_that_fills_the_link_is_warm():
    full = frames.frame(0)
    rx = replace(full.sections["throughput"].rx, peak_bits_per_s=9_800_000_000)
    lines = throughput_pane.pane([changed(full, "throughput", rx=rx)], Canvas(60, 7))
    roles = {span.text.strip(): span.role for span in lines[0]}
    assert roles["9.80 Gb/s"] == "warn"


def test_an_axis_of_round_trips_holds_them_all():
    low, high = flows_rtt_pane.decades([flows_rtt_pane.heap([300_000, 45_000_000])])
    assert (low, high) == (100_000, 100_000_000)
    assert flows_rtt_pane.decades([flows_rtt_pane.heap([300])])[0] == 1_000
    assert flows_rtt_pane.decades([]) == (1_000_000, 100_000_000)


@pytest.mark.parametrize("height", [1, 5, 7, 20, 40])
def test_the_cursor_on_round_trips_names_its_cell(height):
    lines = flows_rtt_pane.pane(HISTORY, Canvas(80, height, zoomed=True, cursor=(3, 0)))
    text = "\n".join(text_of(row) for row in lines)
    assert len(lines) == height
    assert height == 1 or "3 s ago" in text

"""Pure drawing: widths are exact, figures are whole, heat is told by glyph as well as by colour."""

from ipaddress import IPv6Address
from itertools import pairwise

import numpy as np
import pytest
from fakes import histogram
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from nettop.render import draw
from nettop.render.canvas import CURSOR, Canvas, Span, line, text_of

WIDTHS = st.integers(0, 60)
# What units.clean lets through and terminals agree about: letters, marks, wide characters, figures.
TEXTS = st.text(
    st.characters(
        codec="utf-8",
        categories=("Lu", "Ll", "Lo", "Nd", "Zs", "Po"),
        exclude_characters="\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000",
        max_codepoint=0xFFFF,
    ),
    max_size=40,
)


@pytest.mark.parametrize(
    "text", ["", "abc", "10.0.0.1:443", "日本語", "é", "µs → █ ▁ ░ ⏎ ⇄", "e\u0301", "한글 x"]
)
def test_width_in_cells_is_what_the_screen_uses(text):
    assert draw.cells(text) == cell_len(text)


@given(TEXTS, WIDTHS, st.sampled_from(["left", "right", "center"]))
def test_fitted_text_has_exactly_the_width(text, width, align):
    fitted = draw.fit(text, width, align)
    # A wide character at the edge may leave its second cell empty, which padding fills.
    assert draw.cells(fitted) == width


@given(st.integers(0, 10**12), st.text(st.sampled_from("ab "), max_size=5), st.integers(1, 20))
def test_a_shortened_text_never_shows_a_part_of_a_figure(number, word, width):
    text = f"{word}{number}"
    digits = "".join(c for c in draw.shorten(text, width) if c.isdigit())
    assert digits in ("", str(number))


def test_shortened_text_ends_in_an_ellipsis():
    assert draw.shorten("systemd-resolve", 10) == "systemd-r…"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("812 Mb/s", "  812 Mb/s"),
        ("9.10 Gb/s", " 9.10 Gb/s"),
        ("0 b/s", "    0 b/s "),
        ("-", "    -     "),
        ("123456789 Mb/s", "         …"),
    ],
)
def test_numbers_and_units_stand_in_columns(text, shown):
    assert draw.quantity(text, 10, 4) == shown


@given(st.integers(0, 2**128 - 1), st.integers(1, 65535), st.integers(1, 60))
def test_an_endpoint_keeps_its_port(number, port, width):
    text = f"[{IPv6Address(number)}]:{port}"
    short = draw.endpoint(text, width)
    assert len(short) <= width
    assert short.endswith(f":{port}" if width >= len(f":{port}") else "…")


@given(st.lists(st.tuples(TEXTS, st.sampled_from(["plain", "dim"])), max_size=6), WIDTHS)
def test_a_padded_line_has_exactly_the_width(pieces, width):
    assert draw.cells_of(draw.pad(line(*pieces), width)) == width


@given(
    st.lists(st.tuples(st.integers(0, 3), TEXTS), max_size=5), st.lists(TEXTS, max_size=3), st.integers(1, 60)
)
def test_sides_fill_the_width_whatever_has_to_leave(left, right, width):
    made = draw.sides([(p, line(t)) for p, t in left], [(0, line(t)) for t in right], width)
    assert draw.cells_of(made) == width


def test_the_least_important_piece_leaves_first_and_whole():
    pieces = [(0, line("always")), (2, line("seldom")), (1, line("often"))]
    assert text_of(draw.parts(pieces, 30)) == "always  seldom  often"
    assert text_of(draw.parts(pieces, 20)) == "always  often"
    assert text_of(draw.parts(pieces, 8)) == "always"


@given(TEXTS, st.integers(1, 40))
def test_wrapped_lines_are_not_wider_than_asked(text, width):
    assert all(draw.cells_of(row) <= width for row in draw.wrap(text, width))


@pytest.mark.parametrize(
    ("value", "top"),
    [(0, 1), (0.9, 1), (1, 1), (1.01, 2), (2.5, 3), (4, 5), (5.1, 10), (99, 100), (3e9, 3e9)],
)
def test_scales_are_round_and_hold_the_value(value, top):
    assert draw.ceiling(value) == pytest.approx(top)


def test_an_area_shows_the_newest_value_at_the_right_and_nothing_where_nothing_is_known():
    rows = [text_of(row) for row in draw.area([None, 0.0, 8.0, 16.0], Canvas(6, 2), 2, 16.0, "rx")]
    assert rows == ["     █", "    ██"]


def test_a_tiny_value_is_not_drawn_as_nothing():
    assert draw.area([1e-9], Canvas(1, 1), 1, 1e9, "rx")[0][0].text == "▁"


def test_a_bar_is_as_long_as_its_share():
    assert draw.bar(0.5, Canvas(10, 1), 10, "rx").text == "█████     "
    assert draw.bar(1e-9, Canvas(10, 1), 4, "rx").text == "▏   "
    assert draw.bar(None, Canvas(10, 1), 4, "rx").text == "    "
    assert draw.bar(7, Canvas(10, 1), 4, "rx").text == "████"


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e12)), max_size=80), st.integers(1, 40), st.integers(1, 6))
def test_graphs_have_the_size_of_their_canvas(values, width, rows):
    for unicode in (True, False):
        lines = draw.area(values, Canvas(width, rows, unicode=unicode), rows, 1e9, "rx")
        assert len(lines) == rows
        assert all(draw.cells_of(row) == width for row in lines)


def test_without_unicode_everything_is_ascii():
    canvas = Canvas(20, 4, unicode=False, shades=False)
    heaps = [histogram(5_000_000, count=n + 1) for n in range(20)]
    plane = draw.Plane.of(heaps, canvas, 1_000, 1_000_000_000)
    drawn = [
        *plane.lines(canvas),
        *draw.area([1.0, 2.0], canvas, 2, 2.0, "rx"),
        draw.legend(canvas, "few", "many"),
    ]
    drawn += [(draw.bar(0.4, canvas, 9, "rx"),), draw.time_axis([0, 10**9], 20, canvas)]
    assert all(text_of(row).isascii() for row in drawn)


def test_heats_rise_with_values_and_nothing_is_not_a_heat():
    heats = draw.levels(np.array([0.0, np.nan, 1.0, 10.0, 100.0, 1e9]), 1.0, 100.0)
    assert heats.tolist() == [-1, -1, 0, 5, 9, 9]


def test_every_heat_is_told_by_its_glyph_too():
    shades = [span for span in draw.legend(Canvas(10, 1), "few", "many") if span.role.startswith("heat:")]
    text = text_of(shades)
    ramp = "░▒▓█"
    places = [ramp.index(c) for c in text]
    assert places == sorted(places)
    assert set(text) == set(ramp)
    assert [span.role for span in shades] == [f"heat:{n}" for n in (0, 2, 4, 6, 8, 9)]


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=60), st.integers(2, 40))
def test_binning_many_histograms_is_binning_each(delays, bins):
    edges = draw.log_edges(1_000, 1_000_000_000, bins)
    heaps = [histogram(d, count=1 + d % 7) for d in delays]
    made = draw.binned([*heaps, None], edges)
    assert made[:-1].tolist() == [draw.binned([h], edges)[0].tolist() for h in heaps]
    assert not made[-1].any()


@given(st.integers(1, 60), st.integers(1, 20), st.booleans(), st.integers(0, 90))
def test_a_plane_fills_its_canvas_and_loses_no_sample(width, height, shades, columns):
    canvas = Canvas(width, height, shades=shades)
    heaps = [histogram(10_000 * (n + 1), count=n + 1) for n in range(columns)]
    plane = draw.Plane.of(heaps, canvas, 1_000, 1_000_000_000)
    lines = plane.lines(canvas)
    assert len(lines) == height
    assert all(draw.cells_of(row) == width for row in lines)
    shown = range(max(columns - width, 0), columns)
    assert int(plane.counts.sum()) == sum(n + 1 for n in shown)


@pytest.mark.parametrize("shades", [True, False])
def test_the_cursor_names_the_cell_it_stands_on(shades):
    canvas = Canvas(10, 6, shades=shades, cursor=(2, 3))
    heaps = [histogram(1_000)] * 10
    plane = draw.Plane.of(heaps, canvas, 1_000, 1_000_000_000)
    back, low, high, _ = plane.under((2, 3), canvas)
    assert back == 2
    # Six lines over six decades: the fourth from the top is 10 to 100 us.
    assert (low, high) == (pytest.approx(100_000, rel=0.01), pytest.approx(1_000_000, rel=0.01))
    total = sum(plane.under((0, y), canvas)[3] for y in range(6))
    assert total == 1
    marked = [row for row in plane.lines(canvas) if any(s.role == CURSOR for s in row)]
    assert marked == [plane.lines(canvas)[3]]


def test_a_plane_has_its_longest_delay_on_top():
    canvas = Canvas(1, 3)
    plane = draw.Plane.of([histogram(900_000, count=5)], canvas, 1_000, 1_000_000)
    rows = [text_of(row) for row in plane.lines(canvas)]
    assert rows[0] != " "
    assert rows[1:] == [" ", " "]


def test_the_delay_axis_names_powers_of_ten_in_order():
    canvas = Canvas(10, 12)
    plane = draw.Plane.of([], canvas, 1_000, 1_000_000_000)
    labels = [text_of(row)[:-1].strip() for row in draw.delay_axis(plane.edges, canvas)]
    assert [x for x in labels if x] == ["1 s", "100 ms", "10 ms", "1 ms", "100 µs", "10 µs", "1 µs"]


def test_the_time_axis_says_how_long_ago():
    times = [n * 1_000_000_000 for n in range(31)]
    text = text_of(draw.time_axis(times, 31, Canvas(31, 1)))
    assert text.startswith(" -30 s ")
    assert text.endswith(" now ")
    assert len(text) == 31


def test_neighbours_of_one_role_are_joined():
    spans = draw.merged([Span("a", "x"), Span("b", "x"), Span("", "y"), Span("c", "x"), Span("d", "y")])
    assert spans == (Span("abc", "x"), Span("d", "y"))
    assert all(a.role != b.role for a, b in pairwise(spans))


@pytest.mark.parametrize(
    ("text", "short"), [("5.00 Gb/s", "5 Gb/s"), ("10.0 ms", "10 ms"), ("300 ms", "300 ms")]
)
def test_round_figures_lose_their_zeros(text, short):
    assert draw.scale(text) == short

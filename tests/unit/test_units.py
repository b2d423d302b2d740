"""Numbers become text of a bounded width, and strings from outside are harmless."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.core import units


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1, "1.00"), (9.99, "9.99"), (9.996, "10.0"), (99.96, "100"), (123.4, "123")],
)
def test_figure(value, text):
    assert units.figure(value) == text


@given(st.floats(0, 999))
def test_a_figure_has_at_most_four_characters(value):
    assert len(units.figure(value)) <= 4


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "B", "0 B"),
        (999, "B", "999 B"),
        (1000, "B", "1.00 kB"),
        (999_499, "B", "999 kB"),
        (999_500, "B", "1.00 MB"),
        (1.5e9, "b/s", "1.50 Gb/s"),
        (-2000, "B", "-2.00 kB"),
        (None, "B", "-"),
        (5, "", "5"),
    ],
)
def test_si(value, unit, text):
    assert units.si(value, unit) == text


@given(st.integers(0, 10**20))
def test_si_keeps_its_width_and_its_value(value):
    text = units.si(value, "B")
    number, prefix = text.split(" ")
    assert len(number) <= 4
    scale = 1000 ** ("", "k", "M", "G", "T", "P", "E").index(prefix.removesuffix("B"))
    assert float(number) * scale == pytest.approx(value, rel=0.006, abs=0.5)


def test_bits_and_bytes():
    assert units.rate(125_000) == "1.00 Mb/s"
    assert units.rate(125_000, bits=False) == "125 kB/s"
    assert units.rate(None) == units.size(None) == units.count(None) == units.NONE


def test_counts_are_grouped():
    assert units.count(0) == "0"
    assert units.count(4211) == "4 211"
    assert units.count(99_999) == "99 999"
    assert units.count(100_000) == "100 k"


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "-"),
        (0, "0 ns"),
        (812, "812 ns"),
        (999, "999 ns"),
        (1000, "1.00 µs"),
        (1_230_000, "1.23 ms"),
        (21_000_000, "21.0 ms"),
        (999_600_000, "1.00 s"),
        (12_300_000_000, "12.3 s"),
        (2_000_000_000_000, "2000 s"),
    ],
)
def test_duration(ns, text):
    assert units.duration(ns) == text


@given(st.integers(0, 999 * 10**9))
def test_a_duration_has_at_most_seven_characters(ns):
    assert len(units.duration(ns)) <= 7


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99, "99 s"), (100, "2 m"), (5940, "99 m"), (7200, "2 h"), (172_800, "2 d"), (-5, "0 s")],
)
def test_age(seconds, text):
    assert units.age(seconds * 1e9) == text


@given(st.integers(0, 365 * 86400))
def test_an_age_of_a_year_has_at_most_five_characters(seconds):
    assert len(units.age(seconds * 10**9)) <= 5


def test_clock():
    assert units.clock(12 * 10**9) == "00:12"
    assert units.clock(3723 * 10**9) == "1:02:03"


def test_a_moment_is_in_utc_to_the_millisecond():
    assert units.timestamp(1_735_787_045_678_999_999) == "2025-01-02T03:04:05.678Z"
    assert units.timestamp(0) == "1970-01-01T00:00:00.000Z"


@pytest.mark.parametrize("ns", [2**63 - 1, 2**64 - 1])
def test_the_latest_moment_that_a_frame_can_claim_has_a_text(ns):
    assert units.timestamp(ns).endswith("Z")


def test_percent():
    assert [units.percent(f) for f in (None, 0, 0.004, 0.0994, 0.1, 1)] == [
        "-",
        "0 %",
        "0.4 %",
        "9.9 %",
        "10 %",
        "100 %",
    ]


def test_endpoints_of_both_families():
    v4 = bytes(10) + b"\xff\xff" + bytes([10, 0, 0, 1])
    v6 = ipaddress.IPv6Address("2001:db8::1").packed
    assert units.endpoint(v4, 80) == "10.0.0.1:80"
    assert units.endpoint(v6, 443) == "[2001:db8::1]:443"


@given(st.binary(min_size=16, max_size=16), st.integers(0, 65535))
def test_an_endpoint_is_parsed_back(raw, port):
    assert units.parse_endpoint(units.endpoint(raw, port)) == (raw, port)


@given(st.text(max_size=30))
def test_any_text_parses_as_an_endpoint_or_as_none(text):
    raw, port = units.parse_endpoint(text)
    assert len(raw) == 16
    assert 0 <= port < 65536


@given(st.integers(0, 255))
def test_protocols_have_names_that_lead_back(number):
    assert units.protocol_number(units.protocol(number)) == number


def test_escapes_and_direction_marks_are_replaced_and_the_rest_is_kept():
    assert units.clean("a\x1b[2Jb\u202ec\x9bd é 漢") == "a�[2Jb�c�d é 漢"

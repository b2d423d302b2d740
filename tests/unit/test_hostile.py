"""Frames of a file that somebody made up: each is refused in one way, or read so that everything can be drawn."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nettop.analysis.baseline import Baseline
from nettop.analysis.pages import panes_of
from nettop.cli import DEMO
from nettop.core.errors import NettopError
from nettop.core.frame import Frame
from nettop.core.histogram import SLOTS, histogram_from_json
from nettop.probes.base import all_probes
from nettop.record.recording import Recording
from nettop.record.schema import SchemaError, frame_from_json, frame_to_json, loads
from nettop.render.canvas import Canvas, Pane, Table, text_of

OLD = str(Path(__file__).parent / "recordings" / "nettop-1.ndjson.gz")
FILES = pytest.mark.parametrize("name", [OLD, str(DEMO)], ids=["old", "demo"])


@cache
def recorded(name: str = OLD) -> tuple[dict[str, Any], ...]:
    """Frames as nettop wrote them: one of before, and the one to spoil."""
    with Recording(name) as recording:
        middle = len(recording) // 2
        return tuple(loads(recording._text(recording._place(i))) for i in (middle - 1, middle))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in it."""
    found = [path] if path else []
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys)[:6] if isinstance(value, list) else keys:
        found += places(value[key], (*path, key))
    return found


@cache
def all_places(name: str) -> list[tuple[Any, ...]]:
    return places(recorded(name)[1])


hostile: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.sampled_from(
        [-1, 0, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -(2**63), 10**400, 1.5, -0.0, 1e300]
    )
    | st.sampled_from(["", "x", "\x1b[2J", "1", "nan", "-1", "\u202e", "x" * 5000, "tcp", "10.0.0.1:80", "["])
    | st.sampled_from(
        [[], {}, [[]], [None], [1], {"a": 1}, [[1, 2]], [{}], [["x", "y"]], {"buckets": [[1, -1]]}]
    )
)
spoilt = st.lists(st.tuples(st.integers(0, 10**6), hostile | st.just("delete")), min_size=1, max_size=3)


def spoil(name: str, changes: list[tuple[int, Any]]) -> dict[str, Any]:
    data: Any = copy.deepcopy(recorded(name)[1])
    for number, value in changes:
        path = all_places(name)[number % len(all_places(name))]
        with suppress(KeyError, IndexError, TypeError):  # an earlier change took it away
            inside = reduce(getitem, path[:-1], data)
            if value == "delete":
                del inside[path[-1]]
            else:
                inside[path[-1]] = value
    return data  # type: ignore[no-any-return]


def read(data: Any) -> Frame | None:
    """As from a file.  Anything but SchemaError is a failure of ours."""
    try:
        return frame_from_json(loads(json.dumps(data)))
    except SchemaError as error:
        said = str(error)
    assert said
    assert said.isprintable()
    assert len(said) < 400
    return None


def draw_everything(history: list[Frame]) -> None:
    """Every function that a pane has, as the screen calls it."""
    frame = history[-1]
    for name, probe in all_probes().items():
        if name in frame.sections:
            for pane in panes_of(probe):
                draw_pane(pane, history)


def draw_pane(pane: Pane, history: list[Frame]) -> None:
    frame = history[-1]
    selected = pane.rows(history)[:3] if pane.rows else ()
    for canvas in (
        Canvas(116, 9),
        Canvas(76, 8, unicode=False, shades=False, bits=False),
        Canvas(116, 34, zoomed=True, cursor=(1, 2)),
        *(Canvas(116, 34, zoomed=True, selected=name) for name in selected),
    ):
        for function in (pane.draw, pane.compact):
            if function:
                drawn(lambda f=function, c=canvas: f(history, c))
    if pane.subtitle:
        assert pane.subtitle(history, Canvas(80, 1)).isprintable()
    if pane.badge:
        assert pane.badge(frame).isprintable()
    if pane.table:
        draw_table(pane.table, history)


def draw_table(table: Table, history: list[Frame]) -> None:
    frame = history[-1]
    rows = table.rows(frame)
    for column in table.columns:
        assert len(column.sort(rows)) == len(rows)
        for row in rows[:8]:
            assert column.cell(row, Canvas(column.width, 1), frame).text.isprintable()
    for row in rows[:4]:
        if table.copy:
            assert table.copy(row).isprintable()
        if table.detail:
            for line in table.detail(history, int(row[table.identity]), Canvas(116, 34, zoomed=True)):
                assert text_of(line).isprintable()
    if table.matches:
        assert len(table.matches(rows, "x")) == len(rows)


def drawn(function: Callable[[], Any]) -> None:
    for line in function():
        assert text_of(line).isprintable()


@FILES
@settings(max_examples=200)
@given(changes=spoilt, alone=st.booleans())
def test_a_spoilt_frame_is_refused_or_can_be_drawn(name, changes, alone):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # they would be written over the screen
        frame = read(spoil(name, changes))
        if frame is not None:
            before = frame_from_json(recorded(name)[0])
            draw_everything([frame] if alone else [before, frame])
            Baseline(before)(frame)
            Baseline(frame)(before)


@FILES
@settings(max_examples=50)
@given(changes=spoilt)
def test_what_was_read_can_be_written_and_read_again(name, changes):
    frame = read(spoil(name, changes))
    if frame is not None:
        again = frame_from_json(loads(json.dumps(frame_to_json(frame, 1000, ""))))
        assert frame_to_json(again, 1000, "") == frame_to_json(frame, 1000, "")


PEAK = ("throughput", "rx", "peak_bits_per_s")


def changed_at(path: tuple[Any, ...], value: Any) -> Any:
    data: Any = copy.deepcopy(recorded()[1])
    inside = reduce(getitem, path[:-1], data)
    assert path[-1] in inside
    inside[path[-1]] = value
    return data


@pytest.mark.parametrize("value", ["x", 10**30, -(10**30), [1], {"a": 1}, True, 1.5])
@pytest.mark.parametrize(
    "path",
    [
        PEAK,
        ("throughput", "rx", "drops"),
        ("throughput", "mtu"),
        ("throughput", "speed_bits_per_s"),
        ("throughput", "qdisc", "backlog_bytes"),
        ("stages", "rx", 0, "missed"),
        ("stages", "rx", 0, "dropped"),
        ("rtt", "subnets", 0, "min_ns"),
    ],
    ids=lambda path: ".".join(map(str, path)),
)
def test_what_is_no_number_is_named(path, value):
    data = changed_at(path, value)
    with pytest.raises(SchemaError, match=str(path[-1])):
        frame_from_json(loads(json.dumps(data)))


def test_null_is_not_known():
    frame = frame_from_json(changed_at(PEAK, None))
    assert frame.sections["throughput"].rx.peak_bits_per_s is None  # type: ignore[attr-defined]


def test_the_line_of_the_file_is_named(tmp_path):
    data = changed_at(PEAK, "fast")
    path = tmp_path / "x.ndjson"
    path.write_text("".join(json.dumps(each) + "\n" for each in (recorded()[0], data, recorded()[0])))
    with Recording(str(path)) as recording, pytest.raises(NettopError) as caught:
        list(recording.frames())
    assert caught.value.message == f"{path}: line 2: throughput: rx: peak_bits_per_s: not a whole number"


@pytest.mark.parametrize("count", [-1, 2**53, 2**64, "x"])
def test_a_histograms_counts_are_counts(count):
    with pytest.raises(ValueError, match=r"range|invalid"):
        histogram_from_json({"buckets": [[1000, count]], "sum_ns": 1})
    assert len(histogram_from_json({"buckets": [[1000, 1]]}).counts) == SLOTS

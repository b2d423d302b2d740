"""The order of a table's rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.core import row_order as module
from nettop.core.row_order import order
from nettop.render.canvas import Column, Span

ROW = np.dtype([("id", "u8"), ("value", "f8"), ("name", "S4")])
NOBODY = np.zeros(0, np.uint64)


def column(key: str, ascending: bool = False) -> Column:
    return Column(
        key, key, 4, lambda row, canvas, frame: Span(""), lambda rows: rows[key], ascending=ascending
    )


VALUE, NAME = column("value"), column("name", ascending=True)


def made(*values: float) -> np.ndarray:
    table = np.zeros(len(values), ROW)
    table["id"] = np.arange(len(values)) + 100
    table["value"] = values
    table["name"] = [str(v).encode() for v in values]
    return table


def test_largest_first_and_reversed_smallest_first():
    table = made(1, 3, 2)
    assert order(table, "id", VALUE, False, NOBODY).tolist() == [1, 2, 0]
    assert order(table, "id", VALUE, True, NOBODY).tolist() == [0, 2, 1]
    assert order(table, "id", NAME, False, NOBODY).tolist() == [0, 2, 1]


def test_ties_keep_the_places_that_they_had():
    before = np.array([103, 101, 100, 102], np.uint64)
    table = made(5, 5, 5, 5, 5)
    # 104 is new: it comes after those that were there.
    assert table["id"][order(table, "id", VALUE, False, before)].tolist() == [103, 101, 100, 102, 104]
    assert table["id"][order(table, "id", VALUE, True, before)].tolist() == [103, 101, 100, 102, 104]


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_not_known_comes_last_either_way(reverse):
    table = made(np.nan, 2, np.nan, 1)
    assert order(table, "id", VALUE, reverse, NOBODY).tolist()[2:] == [0, 2]


@given(st.lists(st.integers(0, 5), max_size=60), st.booleans(), st.randoms())
def test_the_order_is_a_stable_sort(values, reverse, random):
    table = made(*map(float, values))
    ids = table["id"].tolist()
    random.shuffle(ids)
    before = np.array(ids, np.uint64)
    place = {identity: index for index, identity in enumerate(ids)}
    expected = sorted(
        range(len(values)), key=lambda i: (values[i] if reverse else -values[i], place[int(table["id"][i])])
    )
    assert order(table, "id", VALUE, reverse, before).tolist() == expected


def test_of_very_many_rows_the_foremost_are_ordered(monkeypatch):
    monkeypatch.setattr(module, "MOST", 10)
    table = made(*map(float, np.random.default_rng(1).permutation(1000)))
    assert table["value"][order(table, "id", VALUE, False, NOBODY)].tolist() == [999.0 - n for n in range(10)]
    assert table["value"][order(table, "id", VALUE, True, NOBODY)].tolist() == [float(n) for n in range(10)]
    assert len(order(table, "id", NAME, False, NOBODY)) == 10

"""The order of a table's rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.core import table as module
from nettop.core.table import order
from nettop.render.canvas import Column, Span

ROW = np.dtype([("id", "u8"), ("value", "f8"), ("name", "S4")])


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
    assert order(table, "id", VALUE, False).tolist() == [1, 2, 0]
    assert order(table, "id", VALUE, True).tolist() == [0, 2, 1]
    assert order(table, "id", NAME, False).tolist() == [0, 2, 1]


@pytest.mark.parametrize("reverse", [False, True])
def test_rows_that_tie_are_in_the_order_of_their_identities(reverse):
    table = made(5, 5, 5, 5, 5)
    table["id"] = [103, 101, 100, 102, 104]
    assert table["id"][order(table, "id", VALUE, reverse)].tolist() == [100, 101, 102, 103, 104]


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_not_known_comes_last_either_way(reverse):
    table = made(np.nan, 2, np.nan, 1)
    assert order(table, "id", VALUE, reverse).tolist()[2:] == [0, 2]


@given(st.lists(st.integers(0, 5), max_size=60), st.booleans(), st.randoms())
def test_the_order_is_a_stable_sort(values, reverse, random):
    table = made(*map(float, values))
    ids = table["id"].tolist()
    random.shuffle(ids)
    table["id"] = ids
    expected = sorted(
        range(len(values)), key=lambda i: (values[i] if reverse else -values[i], int(table["id"][i]))
    )
    assert order(table, "id", VALUE, reverse).tolist() == expected


def test_of_very_many_rows_the_foremost_are_ordered(monkeypatch):
    monkeypatch.setattr(module, "MOST", 10)
    table = made(*map(float, np.random.default_rng(1).permutation(1000)))
    assert table["value"][order(table, "id", VALUE, False)].tolist() == [999.0 - n for n in range(10)]
    assert table["value"][order(table, "id", VALUE, True)].tolist() == [float(n) for n in range(10)]
    assert len(order(table, "id", NAME, False)) == 10

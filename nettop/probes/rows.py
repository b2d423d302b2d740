"""The order of a table's rows: pure, stable, and cheap for many."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nettop.probes.view import Column, Table

Order = NDArray[np.intp]
MOST = 20_000  # rows that are put in full order; of more, the first ones by the sort column


def order(
    table: Table,
    rows: NDArray[np.void],
    column: Column,
    reverse: bool,
    before: NDArray[np.uint64],
    most: int = 0,
) -> Order:
    """intp[n]: indices of the rows in the order to show, n <= ``most`` (0: MOST).

    ``before`` holds the identities as they were ordered last time, uint64[m]: rows that tie keep their places; new ones
    come after them.  NaN is not known and comes last in either direction.
    """
    most = most or MOST
    key = np.asarray(column.sort(rows))
    ascending = column.ascending != reverse
    candidates = _foremost(key, ascending, most) if len(rows) > most else np.arange(len(rows))
    candidates = candidates[np.argsort(_places(rows[table.identity][candidates], before), kind="stable")]
    key = key[candidates]
    if ascending:
        index = np.argsort(key, kind="stable")
    else:
        index = len(key) - 1 - np.argsort(key[::-1], kind="stable")[::-1]
        if key.dtype.kind == "f":
            unknown = int(np.isnan(key).sum())  # sorted to the end, so they came first when turned round
            index = np.concatenate((index[unknown:], index[:unknown]))
    return candidates[index]


def _foremost(key: NDArray[Any], ascending: bool, most: int) -> Order:
    if key.dtype.kind not in "fiu":
        return np.argsort(key, kind="stable")[:most] if ascending else np.argsort(key, kind="stable")[-most:]
    if ascending:
        return np.argpartition(key, most)[:most]
    if key.dtype.kind == "f":
        key = np.nan_to_num(key, nan=-np.inf)
    return np.argpartition(key, len(key) - most)[-most:]


def first(table: Table, rows: NDArray[np.void], sort: str, count: int) -> Order:
    """The first rows by the column of this key (an unknown one: the default), as on the screen; ties by identity."""
    by_key = {c.key: c for c in table.columns}
    column = by_key.get(sort) or by_key[table.default_sort]
    return order(table, rows, column, False, np.sort(rows[table.identity]), max(count, MOST))[:count]


def _places(ids: NDArray[np.uint64], before: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each row was last time; behind all others where it was not there."""
    if not len(before):
        return np.zeros(len(ids), np.int64)
    by_id = np.argsort(before)
    found = np.minimum(np.searchsorted(before, ids, sorter=by_id), len(before) - 1)
    where = by_id[found]
    return np.where(before[where] == ids, where, len(before)).astype(np.int64)

"""The order of a table's rows: pure, stable, and cheap for many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Order = NDArray[np.intp]


class Sorted(Protocol):
    """What rows can be sorted by: ``sort`` gives the array that orders them, NaN where a value is not known."""

    @property
    def sort(self) -> Callable[[NDArray[Any]], NDArray[Any]]: ...

    @property
    def ascending(self) -> bool: ...


@dataclass(frozen=True)
class Sorting:
    """The same by itself: largest first unless ``ascending``."""

    sort: Callable[[NDArray[Any]], NDArray[Any]]
    ascending: bool = False


MOST = 20_000  # rows that are put in full order; of more, the first ones by the sort column


def order(
    rows: NDArray[np.void],
    identity: str,
    column: Sorted,
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
    candidates = candidates[np.argsort(_places(rows[identity][candidates], before), kind="stable")]
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


def first(
    rows: NDArray[np.void], identity: str, sorts: Mapping[str, Sorted], name: str, default: str, count: int
) -> Order:
    """The first rows by what has this name (an unknown one: the default), as on the screen; ties by identity."""
    by = sorts.get(name) or sorts[default]
    return order(rows, identity, by, False, np.sort(rows[identity]), max(count, MOST))[:count]


def _places(ids: NDArray[np.uint64], before: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each row was last time; behind all others where it was not there."""
    if not len(before):
        return np.zeros(len(ids), np.int64)
    by_id = np.argsort(before)
    found = np.minimum(np.searchsorted(before, ids, sorter=by_id), len(before) - 1)
    where = by_id[found]
    return np.where(before[where] == ids, where, len(before)).astype(np.int64)

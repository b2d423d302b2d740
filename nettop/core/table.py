"""Tables of the frame: rows as a structured array, whose columns are declared once, as the fields of parts are.

From the declaration come numpy's layout, the JSON of the rows both ways, the schema, the page, CSV, the order by any
column, what redaction hides and what ``r`` sets back.  Columns are written and read whole, not row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nettop.core import units
from nettop.core.fields import COUNT, Codec, Json, Privacy, Schema

Array = NDArray[Any]
Order = NDArray[np.intp]
Rule = Callable[[Array, str], Array]  # of rows and a column's name


@dataclass(frozen=True)
class Sorting:
    """What rows can be sorted by: ``sort`` gives the array that orders them, NaN where a value is not known.

    Largest first unless ``ascending``.
    """

    sort: Callable[[Array], Array]
    ascending: bool = False


@dataclass(frozen=True)
class Kind:
    """How a column's values are written, read back into rows that are zeros, ordered, and described.

    Each is given the rows and the column's name; ``read`` also the values, None where there is none.  ``order`` gives
    what numpy sorts by, NaN where the value is not known; None: the column has no order.
    """

    write: Callable[[Array, str], list[Json]]
    read: Callable[[Array, str, list[Json]], None] | None
    schema: Callable[[], Schema]
    order: Rule | None = None
    words: bool = False  # smallest first


def _read_numbers(rows: Array, name: str, values: list[Json]) -> None:
    rows[name] = [0 if value is None else COUNT.read(value) for value in values]


def _as_they_are(rows: Array, name: str) -> Array:
    return np.asarray(rows[name])


def number_where(holds: Rule) -> Kind:
    """A number in the rows where this holds (bool[n]), elsewhere null."""
    return Kind(
        lambda rows, name: [
            value if there else None
            for value, there in zip(rows[name].tolist(), holds(rows, name), strict=True)
        ],
        _read_numbers,
        lambda: {"type": ["integer", "null"], "minimum": 0},
        lambda rows, name: np.where(holds(rows, name), rows[name].astype(np.float64), np.nan),
    )


NUMBER = Kind(lambda rows, name: list(rows[name].tolist()), _read_numbers, COUNT.schema, _as_they_are)
NUMBER_OR_NULL = number_where(lambda rows, name: np.asarray(rows[name] != 0))  # 0 says that there is none


def one_of(words: Sequence[str]) -> Kind:
    """A word by its number; an empty one is null."""

    def read(rows: Array, name: str, values: list[Json]) -> None:
        rows[name] = [words.index(value) if value in words else 0 for value in values]

    return Kind(
        lambda rows, name: [words[n] or None for n in rows[name].tolist()],
        read,
        lambda: {"enum": [word or None for word in words]},
        lambda rows, name: np.asarray(np.array(words)[rows[name]]),
        words=True,
    )


def _texts(rows: Array, name: str) -> list[Json]:
    return [units.clean(value.decode(errors="replace")) or None for value in rows[name].tolist()]


def _read_texts(rows: Array, name: str, values: list[Json]) -> None:
    if not all(value is None or isinstance(value, str) for value in values):
        raise ValueError("not a text")
    size = rows.dtype[name].itemsize
    rows[name] = [units.clean(value or "").encode()[:size] for value in values]


TEXT = Kind(_texts, _read_texts, lambda: {"type": ["string", "null"]}, _as_they_are, words=True)


@dataclass(frozen=True, eq=False)
class Column:
    """One column.

    ``name`` is numpy's, with its type ``dtype``, or "" where the column is worked out from others; ``key`` its name in
    the frame, "" where it is not in the frame by itself.  ``text`` says what it is, ``unit`` in what it is counted.
    ``total``: it runs since the start.  ``columns`` are those of a group, an object in the frame, which is null where
    ``present`` says so.  ``source`` is where it stands in the kernel's entry, for the probe's own use.
    """

    name: str
    dtype: Any
    key: str
    text: str = ""
    unit: str = ""
    kind: Kind = NUMBER
    privacy: Privacy = "hidden"
    total: bool = False
    was: tuple[str, ...] = ()
    csv: str = ""
    columns: tuple[Column, ...] = ()
    present: Rule | None = None
    source: tuple[Any, ...] = field(default=())


@dataclass(frozen=True, eq=False)
class Rows:
    """A section's table: its columns, what it is sorted by, and the order of its columns in CSV.

    ``attribute`` of the section holds the rows, which ``identity`` tells apart.  ``csv``: these come first, others in
    the order of their declaration; what is said of the whole frame among them, see output/csv.py.
    """

    columns: tuple[Column, ...]
    identity: str
    sorts: Mapping[str, Sorting]
    default_sort: str
    attribute: str = "rows"
    csv: tuple[str, ...] = ()

    def top(self, rows: Array, count: int, sort: str) -> Array:
        """The rows to show, in the screen's order; ties keep that of age."""
        return np.asarray(rows[first(rows, self, sort, count)])


def column(
    name: str, dtype: Any, text: str, unit: str = "", *, key: str | None = None, **more: Any
) -> Column:
    """A column of the rows that is in the frame."""
    key = name if key is None else key
    return Column(name, dtype, key, text, unit, total=more.pop("total", key.endswith("_total")), **more)


def inner(name: str, dtype: Any, **more: Any) -> Column:
    """A column of the rows that is not in the frame by itself."""
    return Column(name, dtype, "", **more)


def made(key: str, text: str, kind: Kind, unit: str = "", **more: Any) -> Column:
    """A field of the frame that is worked out from other columns."""
    return Column("", None, key, text, unit, kind, **more)


def group(
    name: str, columns: Sequence[Column], text: str, present: Rule | None = None, **more: Any
) -> Column:
    """Columns that are an object of the frame; null where ``present`` does not hold: bool[n], of rows and its name."""
    return Column(name, layout(columns), name, text, columns=tuple(columns), present=present, **more)


def layout(columns: Sequence[Column]) -> np.dtype[Any]:
    """numpy's type of a row."""
    return np.dtype([(c.name, c.dtype) for c in columns if c.name])


def rows_json(columns: Sequence[Column], rows: Array) -> list[dict[str, Json]]:
    """The rows as the frame has them."""
    shown = {c.key: _written(c, rows) for c in columns if c.key}
    return [dict(zip(shown, row, strict=True)) for row in zip(*shown.values(), strict=True)]


def _written(c: Column, rows: Array) -> list[Json]:
    if not c.columns:
        return c.kind.write(rows, c.name)
    part = rows[c.name]
    objects: list[Json] = list(rows_json(c.columns, part))
    if c.present is None:
        return objects
    return [each if there else None for each, there in zip(objects, c.present(rows, c.name), strict=True)]


def rows_of(columns: Sequence[Column], listed: Sequence[Mapping[str, Json]]) -> Array:
    """The inverse of rows_json; what is missing or null stays 0.  ValueError where a value makes no sense."""
    rows = np.zeros(len(listed), layout(columns))
    _fill(columns, rows, listed)
    return rows


def _fill(columns: Sequence[Column], rows: Array, listed: Sequence[Mapping[str, Json]]) -> None:
    if any(not isinstance(row, Mapping) for row in listed):
        raise ValueError("a row is no table")
    for c in columns:
        if not c.key:
            continue
        values = [next((row[key] for key in (c.key, *c.was) if key in row), None) for row in listed]
        try:
            if c.columns:
                _fill(c.columns, rows[c.name], [value or {} for value in values])
            elif c.kind.read is not None:
                c.kind.read(rows, c.name, values)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{c.key}: {error}") from None


def codec_of(columns: Sequence[Column]) -> Codec:
    """How a table is written: a list of rows."""

    def read(value: Json) -> Array:
        if not isinstance(value, list):
            raise ValueError("not a list")
        return rows_of(columns, value)

    return Codec(
        partial(rows_json, columns),
        read,
        lambda: {"type": "array", "items": table_schema(columns)},
        tuple(columns),
    )


def table_schema(columns: Sequence[Column]) -> Schema:
    """JSON Schema of one row."""
    return {"type": "object", "properties": {c.key: _schema(c) for c in columns if c.key}}


def _schema(c: Column) -> Schema:
    text = f"{c.text}, {c.unit}" if c.unit else c.text
    if not c.columns:
        return {"description": text, **c.kind.schema()}
    whole = table_schema(c.columns)
    if c.present is None:
        return {"description": text, **whole}
    return {"description": text, "anyOf": [whole, {"type": "null"}]}


def flat(
    columns: Sequence[Column], prefix: str = "", path: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and path of every single value of a row, as CSV has them: ``rtt_min_ns`` of ``rtt.min_ns``."""
    for c in columns:
        if not c.key:
            continue
        if c.columns:
            yield from flat(c.columns, f"{c.csv or prefix + c.key}_", (*path, c.key))
        else:
            yield c.csv or f"{prefix}{c.key}", (*path, c.key)


def sortings(
    columns: Sequence[Column], prefix: str = "", path: tuple[str, ...] = ()
) -> Mapping[str, Sorting]:
    """What rows can be sorted by, by each field's name, ``rtt.min_ns`` within a group: numbers largest first."""
    found: dict[str, Sorting] = {}
    for c in columns:
        if c.columns:
            found |= sortings(c.columns, f"{prefix}{c.key}.", (*path, c.name))
        elif c.key and c.kind.order:
            by = partial(_ordered, c.kind.order, path, c.name)
            found[f"{prefix}{c.key}"] = Sorting(by, ascending=c.kind.words)
    return found


def _ordered(order: Rule, path: tuple[str, ...], name: str, rows: Array) -> Array:
    for part in path:
        rows = rows[part]
    return order(rows, name)


# --- the order of rows: pure, stable, and cheap for many ------------------------------------------------------------

MOST = 20_000  # rows that are put in full order; of more, the first ones by the sort column


def order(rows: NDArray[np.void], identity: str, by: Sorting, reverse: bool, most: int = 0) -> Order:
    """intp[n]: indices of the rows in the order to show, n <= ``most`` (0: MOST).

    Rows that tie are in the order of their identities.  NaN is not known and comes last in either direction.
    """
    most = most or MOST
    key = np.asarray(by.sort(rows))
    ascending = by.ascending != reverse
    candidates = _foremost(key, ascending, most) if len(rows) > most else np.arange(len(rows))
    candidates = candidates[np.argsort(rows[identity][candidates], kind="stable")]
    key = key[candidates]
    if ascending:
        index = np.argsort(key, kind="stable")
    else:
        index = len(key) - 1 - np.argsort(key[::-1], kind="stable")[::-1]
        if key.dtype.kind == "f":
            unknown = int(np.isnan(key).sum())  # sorted to the end, so they came first when turned round
            index = np.concatenate((index[unknown:], index[:unknown]))
    return candidates[index]


def _foremost(key: Array, ascending: bool, most: int) -> Order:
    if key.dtype.kind not in "fiu":
        return np.argsort(key, kind="stable")[:most] if ascending else np.argsort(key, kind="stable")[-most:]
    if ascending:
        return np.argpartition(key, most)[:most]
    if key.dtype.kind == "f":
        key = np.nan_to_num(key, nan=-np.inf)
    return np.argpartition(key, len(key) - most)[-most:]


def first(rows: NDArray[np.void], table: Any, name: str, count: int) -> Order:
    """The first rows of a table (Rows, or a pane's) by what has this name, as on the screen.

    An unknown name is the default one; ties by identity.
    """
    by = table.sorts.get(name) or table.sorts[table.default_sort]
    return order(rows, table.identity, by, False, max(count, MOST))[:count]

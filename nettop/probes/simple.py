"""A whole probe from one declaration of its columns: a hash map of the kernel, each entry of it a row of a table.

The columns are fields of the C structures, key and value, by name; how these are laid out the compiler says.  From them
come the section of the frame, the fold and a sortable table.  With a ``count`` the kernel's number only grows:
the frame has what it grew by in the interval, and itself as ``NAME_total``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from nettop.bpf.layout import Map
from nettop.core import table, units
from nettop.core.fields import Json, Privacy, Schema, field
from nettop.core.frame import Frame, Section
from nettop.core.table import TEXT, Kind, Rows
from nettop.probes.base import Array, Fold, Folded, Probe, Reads, Setup
from nettop.render import canvas, draw
from nettop.render.canvas import DIM, PLAIN, VALUE, Canvas, Pane, Span, Table

_ID = table.column("id", "u8", "tells the row from others, in all frames of a run")
_LARGEST_ID = (1 << 53) - 1  # what every reader of JSON takes exactly
_WIDTHS = {"bytes": 8, "ns": 8, "share": 6}
_LINES = 8  # of the pane


@dataclass(frozen=True)
class Column:
    """A column as ``number``, ``count``, ``text`` and ``share`` make it; ``title`` stands over it on the screen."""

    columns: tuple[table.Column, ...]  # of the frame's rows; the first of them is shown
    title: str
    dtype: Any = None  # in the map
    cell: Callable[[Any], str] = str  # of a row's value
    width: int = 7
    left: bool = False


def _formatted(unit: str) -> Callable[[Any], str]:
    known: Mapping[str, Callable[[Any], str]] = {"bytes": units.size, "ns": units.duration, "": str}
    return lambda value: known.get(unit, units.count)(int(value))


def number(name: str, dtype: str, what: str, unit: str = "", *, title: str = "") -> Column:
    """A number as it is in the map.  ``dtype`` is numpy's: u1, u2, u4, u8; ``unit``: bytes, ns, or what is counted."""
    made = table.column(name, dtype, what, unit)
    return Column((made,), title or name, dtype, _formatted(unit), _WIDTHS.get(unit, 7))


def count(name: str, dtype: str, what: str, unit: str, *, title: str = "") -> Column:
    """What the kernel counts up: NAME is of the interval, NAME_total since the row is there."""
    interval = table.column(name, dtype, f"{what}, in the interval", unit)
    total = table.column(f"{name}_total", dtype, f"{what}, since the entry is there", unit)
    return Column((interval, total), title or name, dtype, _formatted(unit), _WIDTHS.get(unit, 7))


def text(name: str, size: int, what: str, *, privacy: Privacy = "hidden", title: str = "") -> Column:
    """A ``char[size]``.  --redact hides it, whole or (privacy="name") as a name; not where it is "harmless"."""
    made = table.column(name, f"S{size}", what, kind=TEXT, privacy=privacy)
    return Column((made,), title or name, f"S{size}", units.name, min(size, 16), left=True)


def share(name: str, what: str, of: Callable[[Array], Array], *, title: str = "") -> Column:
    """A share that is worked out from the rows (0 to 1 each, NaN: not known), and is in no map."""

    def write(rows: Array, _: str) -> list[Json]:
        return [None if np.isnan(value) else round(float(value), 4) for value in of(rows)]

    def schema() -> Schema:
        return {"type": ["number", "null"]}

    made = table.made(name, what, Kind(write, None, schema, lambda rows, _: np.asarray(of(rows))))
    return Column((made,), title or name, None, lambda value: units.percent(float(value)), _WIDTHS["share"])


def table_probe(
    name: str,
    summary: str,
    *,
    map: str,  # noqa: A002  (the name of what it is, where it is declared)
    key: Sequence[Column],
    value: Sequence[Column],
    sort: str,
    title: str = "",
    help: str = "",  # noqa: A002
    duty_cycled: bool = True,
) -> Probe:
    """A probe whose map ``map`` is a hash; a ``share`` may stand anywhere among the columns of ``value``.

    The frame has ``NAME: {MAP: [row, ...]}``, and the screen a table with a column each, sorted by the one called
    ``sort``.  ``duty_cycled``: it may be attached in some of the seconds only, where the budget asks for that.
    """
    shown = (*key, *value)
    columns = (_ID, *(c for each in shown for c in each.columns))
    sorts = table.sortings(columns)
    if sort not in sorts:
        raise ValueError(f"{sort!r} is no column to sort by: {', '.join(sorts)}")
    section = _section(name, map, Rows(columns, "id", sorts, sort))
    keys = _named(key)
    screen = Table(
        tuple(_drawn(each, sorts, priority) for priority, each in enumerate(shown)),
        lambda frame: section.of(frame).rows,  # type: ignore[attr-defined]
        identity="id",
        default_sort=sort,
        copy=lambda row: " ".join(f"{each.title} {_text(each, row)}" for each in shown),
        fields=sorts,
    )
    said = help or f"{summary}."
    pane = Pane(name, title or name, 0, "bottom", table=screen, height=_LINES, help=said)
    return Probe(
        name,
        summary,
        hooks=(),  # in the names of its functions
        maps=(Map(map, "hash", " ".join(_named(value)), " ".join(keys) if len(keys) > 1 else ""),),
        fold=partial(_fold, map, section, keys, _named(value)),
        section=section,
        panes=(pane,),
        duty_cycled=duty_cycled,
    )


def _named(part: Iterable[Column]) -> list[str]:
    """Those of the columns that are in the map."""
    return [each.columns[0].name for each in part if each.dtype is not None]


def _section(name: str, key: str, rows: Rows) -> type[Section]:
    empty = partial(np.zeros, 0, table.layout(rows.columns))
    declared = field(
        "one for each entry of the map", name=key, codec=table.codec_of(rows.columns), factory=empty
    )
    namespace = {"PLACE": name, "TABLE": rows, "__doc__": f"The section ``{name}`` of the frame."}
    made: type[Section] = dataclasses.make_dataclass(
        name.title(), [("rows", Array, declared)], bases=(Section,), namespace=namespace, frozen=True
    )
    return made


# --- the fold --------------------------------------------------------------------------------------------------------


def _fold(name_of_map: str, section: type[Section], keys: list[str], values: list[str], _: Setup) -> Fold:
    """What the counts have grown by is told by entry; what was not there before has grown from 0."""
    dtype = section().rows.dtype  # type: ignore[attr-defined]
    counted = [name for name in values if f"{name}_total" in dtype.names]
    before: dict[int, Any] = {}

    def fold(reads: Reads) -> Folded:
        entries, found = reads.maps[name_of_map]
        rows = np.zeros(len(entries), dtype)
        for name in keys:  # a number is a key by itself
            rows[name] = entries[name] if entries.dtype.names else entries
        for name in values:
            rows[f"{name}_total" if name in counted else name] = found[name]
        rows["id"] = _ids(entries)
        for name in counted:
            now = rows[f"{name}_total"]
            then = np.array([before[i][name] if i in before else 0 for i in rows["id"].tolist()], now.dtype)
            rows[name] = np.where(now >= then, now - then, now)  # less: the entry had to go, and came back
        before.clear()
        before.update((row["id"].item(), {name: row[f"{name}_total"] for name in counted}) for row in rows)
        return Folded(section(rows))  # type: ignore[call-arg]

    return fold


def _ids(keys: Array) -> list[int]:
    """A number for each key: itself, where it is small."""
    found = []
    for key in keys:
        raw = key.tobytes()
        whole = int.from_bytes(raw, "little")
        digest = hashlib.blake2b(raw, digest_size=8).digest()
        found.append(whole if 0 < whole <= _LARGEST_ID else int.from_bytes(digest, "little") & _LARGEST_ID)
    return found


# --- the table on the screen -----------------------------------------------------------------------------------------


def _text(each: Column, row: Any) -> str:
    """What is shown of a row; a dash where it is not known."""
    made = each.columns[0]
    if made.name:
        return each.cell(row[made.name]) or units.NONE
    value = made.kind.write(np.array([row], row.dtype), "")[0]
    return units.NONE if value is None else each.cell(value)


def _drawn(each: Column, sorts: Mapping[str, Any], priority: int) -> canvas.Column:
    key = each.columns[0].key
    align: Literal["left", "right"] = "left" if each.left else "right"

    def cell(row: Any, room: Canvas, _: Frame) -> Span:
        shown = _text(each, row)
        role = DIM if shown in ("0", "0 B", units.NONE) else PLAIN if each.left else VALUE
        return Span(draw.fit(shown, room.width, align), role)

    by = sorts[key]
    width = max(each.width, len(each.title))
    return canvas.Column(
        key, each.title, width, cell, by.sort, align, priority, by.ascending, stretch=each.left
    )

"""The frame's reference, as its fields are declared: docs/frame.schema.json and the tables of docs/frame.md.

``python -m nettop.output.reference DOCS`` writes both; a test compares.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from nettop.analysis.verdict.explain import Explanation
from nettop.core.fields import COUNT, Described, Schema, described, field_schema, part_schema
from nettop.core.frame import SCHEMA, Frame, Health, ProbeStatus
from nettop.core.table import Column
from nettop.probes.base import Probe, all_probes, built_in, missed, sheddings
from nettop.record.recording import Header

_SCHEMA_FILE, _PAGE = "frame.schema.json", "frame.md"
_TABLE = re.compile(r"(<!-- fields: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HEAD = "| field | unit | what, and from where |\n|---|---|---|\n"
Row = tuple[str, str, str]  # name, unit, text


# --- the schema ------------------------------------------------------------------------------------------------------


def frame_schema(probes: Mapping[str, Probe] | None = None) -> Schema:
    """JSON Schema of a whole frame (draft 2020-12), with the sections of these probes: all, users' own among them."""
    probes = all_probes() if probes is None else probes
    whole = part_schema(Frame)
    version = {
        "type": "string",
        "pattern": "^nettop/[0-9]+$",
        "description": f"the form of this frame, {SCHEMA}",
    }
    properties: dict[str, Any] = {"schema": version, **whole["properties"]}
    health = properties["health"]["properties"]
    health["shed"]["properties"] = {
        s.name: COUNT.schema() | {"description": s.text} for s in sheddings(probes.values())
    }
    properties["health"]["properties"] = {
        f.name: field_schema(f) | {"type": ["integer", "null"]} for f in missed(probes.values())
    } | health
    for probe in probes.values():
        section = part_schema(probe.section)
        if probe.section.PLACE:
            properties[probe.section.PLACE] = {"description": probe.summary, **section}
        else:
            properties |= section["properties"]
    properties["verdict"] = {
        "description": "with --focus: the delay of that flow, explained; null where no flow has the end",
        "anyOf": [part_schema(Explanation), {"type": "null"}],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:nettop:frame:1",
        "title": f"A frame of nettop, schema {SCHEMA}",
        "description": "One interval of everything. Fields that are not listed here may be added at any time: ignore "
        "them. What is not known is null.",
        "type": "object",
        "properties": properties,
        "required": ["schema", *whole["required"], "host", "interface", "filter", "probes", "health"],
        "$defs": {"histogram": _HISTOGRAM},
    }


def _edge(text: str) -> Schema:
    return {"type": ["integer", "null"], "minimum": 0, "description": text}


_HISTOGRAM: Schema = {
    "type": "object",
    "description": "log-linear histogram of delays, 16 steps an octave; percentiles are off by 3.2 % at most",
    "properties": {
        "count": COUNT.schema() | {"description": "samples"},
        "sum_ns": COUNT.schema() | {"description": "their exact sum"},
        "min_ns": _edge("lower edge of the lowest bucket in use"),
        "max_ns": _edge("upper edge of the highest bucket in use"),
        "p50_ns": _edge("median"),
        "p90_ns": _edge("90th percentile"),
        "p99_ns": _edge("99th percentile"),
        "buckets": {
            "type": "array",
            "description": "buckets in use: [upper edge in ns, count]",
            "items": {
                "type": "array",
                "prefixItems": [{"type": "integer", "minimum": 1}, {"type": "integer", "minimum": 1}],
                "items": False,
                "minItems": 2,
            },
        },
    },
    "required": ["count", "sum_ns", "min_ns", "max_ns", "p50_ns", "p90_ns", "p99_ns", "buckets"],
}


# --- the page --------------------------------------------------------------------------------------------------------


def page(text: str) -> str:
    """docs/frame.md with each table, between ``<!-- fields: NAME -->`` and ``<!-- end -->``, as it is declared."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{tables(found[2])}\n{found[3]}", text)


def tables(name: str) -> str:
    """The tables of a part of the frame: its own fields, then those of the parts in it."""
    if name == "health":
        counters = map(_row, missed(built_in().values()))
        shed = ((f"shed.{s.name}", "", s.text) for s in sheddings(built_in().values()))
        return _HEAD + _lines(chain(counters, _rows(Health), shed))
    kinds: Mapping[str, tuple[Any, str]] = {
        "frame": (Frame, ""),
        "probes": (ProbeStatus, "probes.NAME"),
        "verdict": (Explanation, "verdict"),
        "header": (Header, ""),
    }
    if name in kinds:
        kind, place = kinds[name]
    else:
        kind = built_in()[name].section
        place = kind.PLACE
    return "\n".join(_tables(kind, place, inner=name != "frame"))


def _tables(kind: Any, place: str, inner: bool) -> Iterator[str]:
    yield _HEAD + _lines(_rows(kind))
    places: dict[str, list[str]] = {}  # parts with the same fields share a table
    for where, lines in _inner(kind, f"{place}." if place else "") if inner else ():
        places.setdefault(lines, []).append(where)
    for lines, shared in places.items():
        yield f"{', '.join(f'`{where}`' for where in shared)}:\n\n{_HEAD}{lines}"


def _inner(kind: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """The parts and tables in a part, however deep: where each is, and the lines of its table."""
    for f in described(kind):
        where = f"{prefix}{f.name}{'[]' if f.several and f.way < 0 else ''}"
        if f.codec.columns:
            yield where, _lines(_columns(f.codec.columns))
            yield from (
                (f"{where}.{c.key}", _lines(_columns(c.columns))) for c in f.codec.columns if c.columns
            )
        elif f.part is not None:
            yield where, _lines(_rows(f.part))
            yield from _inner(f.part, f"{where}.")


def _rows(kind: Any) -> Iterator[Row]:
    return (_row(f) for f in described(kind) if not f.spec.open)


def _row(f: Described) -> Row:
    schema = str(f.codec.schema())
    histogram = "$ref" in schema and "properties" not in schema
    return f.name, f.spec.unit or ("HISTOGRAM" if histogram else ""), f.spec.text


def _columns(columns: tuple[Column, ...]) -> Iterator[Row]:
    return ((c.key, c.unit, c.text) for c in columns if c.key)


def _lines(rows: Iterable[Row]) -> str:
    """A line a field; those that follow one another and have one text share it."""
    return "".join(
        f"| {', '.join(f'`{name}`' for name, _, _ in group)} | {unit} | {text} |\n"
        for (unit, text), group in groupby(rows, key=lambda row: row[1:])
    )


def write(folder: Path) -> None:
    """Both files, of what comes with nettop."""
    (folder / _SCHEMA_FILE).write_text(
        json.dumps(frame_schema(built_in()), indent=2) + "\n", encoding="utf-8"
    )
    path = folder / _PAGE
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

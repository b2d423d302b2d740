"""A row for each of a table's rows of each frame, as CSV after RFC 4180: a header, CRLF, what is not known is empty."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from functools import cache
from typing import Any

from nettop.core import units
from nettop.core.frame import Frame
from nettop.core.table import Rows, flat, rows_json
from nettop.output.base import Writer
from nettop.probes.base import all_probes

_FRAME = ("time", "time_ns", "interval_ns", "host", "interface", "age_ns")  # what all rows of a frame share


@cache
def paths(table: Rows) -> Mapping[str, tuple[str, ...]]:
    """Where each column stands in a row of the frame's table, in the order of the file; () for what all rows share."""
    declared = dict(flat(table.columns))
    names = dict.fromkeys((*(table.csv or _FRAME), *declared))
    return {name: () if name in _FRAME else declared[name] for name in names}


def table_of(frame: Frame) -> tuple[str, Rows]:
    """The probe whose table is written, and that: the first that runs and has one."""
    tables = [(name, p.section.TABLE) for name, p in all_probes().items() if p.section.TABLE is not None]
    runs = [each for each in tables if each[0] in frame.probes and frame.probes[each[0]].state != "off"]
    return (runs or tables)[0]


class CsvWriter(Writer):
    """CSV of the first table there is; a frame without one has no rows."""

    def begin(self) -> None:
        self._begun = False

    def format(self, frame: Frame) -> str:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\r\n")
        name, table = table_of(frame)
        columns = paths(table)
        if not self._begun:
            writer.writerow(columns)
            self._begun = True
        section: Any = frame.sections.get(name)
        longer = getattr(section, "interval_ns", 0)  # with --scan-interval
        shared = {
            "time": units.timestamp(frame.time_ns),
            "time_ns": frame.time_ns,
            "interval_ns": longer or frame.interval_ns,
            "host": frame.host,
            "interface": frame.interface,
            "age_ns": getattr(section, "age_ns", 0),
        }
        rows = section and getattr(section.shown(self.style.top, self.style.sort), table.attribute)
        for row in () if rows is None else rows_json(table.columns, rows):
            writer.writerow(_cell(_at(row, path) if path else shared[name]) for name, path in columns.items())
        return text.getvalue()


def _at(row: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        row = row.get(name) if isinstance(row, Mapping) else None
    return row


def _cell(value: Any) -> Any:
    """A text as data for spreadsheets, too: what they would take for a formula begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    text = units.clean(value)
    return "'" + text if text.startswith(("=", "+", "-", "@")) else text

"""A frame for people at a shell: the screen's panes as plain lines, one after another."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nettop.analysis.flow_page import said
from nettop.analysis.verdict.explain import row_of
from nettop.core import units
from nettop.core.frame import Frame, ProbeStatus
from nettop.core.row_order import first
from nettop.output.base import Writer
from nettop.probes.base import all_probes, shed_words
from nettop.render.canvas import Canvas, Column, Pane, Table, cell_of, text_of
from nettop.render.columns import place_columns
from nettop.render.draw import cells, fit, wrap

_GAP = 2
_WIDE = 300  # cells: more than any cell needs
_FIGURE = re.compile(r"^(-?[\d.,]+)\s+(\S+)$")
_ASCII = str.maketrans({"µ": "u", "\N{NARROW NO-BREAK SPACE}": " ", "\N{NO-BREAK SPACE}": " ", "·": "-"})


class TextWriter(Writer):
    """Aligned text of the style's width; frames have an empty line between them."""

    def format(self, frame: Frame) -> str:
        """A headline, each probe's panes, and what was lost and spent."""
        lines = [_headline(frame)]
        lines += [f"! {units.clean(note)}" for note in frame.notes]
        for name, status in frame.probes.items():
            probe = all_probes().get(name)
            if probe is None or status.state == "off":
                continue
            for pane in sorted(probe.panes, key=lambda p: p.number):
                lines += self._pane(pane, name, status, frame)
        if self.explainer is not None:
            lines += self._explained(frame)
        lines.append(_footline(frame))
        if not self.style.unicode:
            lines = [line.translate(_ASCII).encode("ascii", "replace").decode() for line in lines]
        return "\n".join(line.rstrip() for line in lines) + "\n\n"

    def _explained(self, frame: Frame) -> list[str]:
        assert self.explainer is not None
        found = self.explainer.add(frame)
        if found is None:
            return [f"Focus: no flow has {units.clean(self.style.focus)}"]
        canvas = Canvas(self.style.width, 24, bits=self.style.bits, unicode=self.style.unicode)
        return [text_of(row) for row in said(found, row_of(frame, found.flow), canvas)]

    def _pane(self, pane: Pane, name: str, status: ProbeStatus, frame: Frame) -> list[str]:
        if name not in frame.sections:
            detail = f": {units.clean(status.detail, 1000)}" if status.detail else ""
            return [text_of(part) for part in wrap(f"{pane.title}: {status.state}{detail}", self.style.width)]
        height = pane.height or 12
        canvas = Canvas(self.style.width, height, bits=self.style.bits, unicode=self.style.unicode)
        history = (frame,)
        subtitle = pane.subtitle(history, canvas) if pane.subtitle else ""
        title = f"{pane.title}  {subtitle}".rstrip()
        if pane.table and self.style.plain:
            return [title, *plain_lines(pane.table, frame, canvas, self.style.top, self.style.sort)]
        if pane.table:
            return [title, *table_lines(pane.table, frame, canvas, self.style.top, self.style.sort)]
        if pane.compact:
            return [text_of(part) for part in pane.compact(history, canvas)]
        # A graph over time says nothing in one frame: its subtitle does.
        drawn = pane.draw(history, canvas) if pane.draw and not subtitle else []
        return [title, *(text_of(part) for part in drawn)]


def _headline(frame: Frame) -> str:
    parts = [units.timestamp(frame.time_ns), frame.interface, frame.host, units.duration(frame.interval_ns)]
    if frame.filter:
        parts.append(f"filter: {frame.filter}")
    return "  ".join(units.clean(part) for part in parts if part)


def _footline(frame: Frame) -> str:
    health = frame.health
    kernel = None if health.kernel_ns is None else health.kernel_ns / max(frame.interval_ns, 1)
    return "  ".join(
        (
            *(f"{name.replace('_', ' ')} {units.count(count)}" for name, count in health.missed.items()),
            f"kernel {units.percent(kernel)}",
            f"user {units.percent(health.user_ns / max(frame.interval_ns, 1))}",
            units.size(health.rss_bytes),
            *(
                (f"budget {units.percent(health.budget_ns / max(frame.interval_ns, 1))}",)
                if health.budget_ns
                else ()
            ),
            *((f"shed {', '.join(left_out)}",) if (left_out := shed_words(health.shed)) else ()),
        )
    )


def _first(table: Table, rows: NDArray[np.void], sort: str, count: int) -> NDArray[np.intp]:
    return first(rows, table.identity, table.sorts, sort, table.default_sort, count)


def table_lines(table: Table, frame: Frame, canvas: Canvas, top: int, sort: str) -> list[str]:
    """A table as aligned text, its titles first; ``sort`` is a column's key, or empty for the default."""
    rows = table.rows(frame)
    shown = _first(table, rows, sort, top)
    wanted = [c for c in table.columns if c.wanted is None or c.wanted(rows)]
    columns = [(p.column, p.width) for p in place_columns(wanted, canvas.width, gap=_GAP)]
    cellular = [replace(canvas, width=width, height=1) for _, width in columns]
    absent = [c for c in table.columns if c.instead and c not in [kept for kept, _ in columns]]
    lines = [_row([c.title for c, _ in columns], columns)]
    for row in rows[shown]:
        texts = [
            cell_of(c, absent, row, cell, frame).text for (c, _), cell in zip(columns, cellular, strict=True)
        ]
        lines.append(_row(texts, columns))
    return [*lines, *_more(len(rows) - len(shown))]


def _more(count: int) -> list[str]:
    return [f"and {units.count(count)} more"] if count else []


def plain_lines(table: Table, frame: Frame, canvas: Canvas, top: int, sort: str) -> list[str]:
    """The same for awk and its like: every column, nothing cut, each cell one word (``-`` where it is empty)."""
    rows = table.rows(frame)
    shown = _first(table, rows, sort, top)
    wide = replace(canvas, width=_WIDE, height=1)
    ordered = sorted(table.columns, key=lambda c: c.wanted is not None)  # none moves another
    words = [[_word(c.key) for c in ordered]]
    words += [[_word(c.cell(row, wide, frame).text) for c in ordered] for row in rows[shown]]
    widths = [max(map(cells, column)) for column in zip(*words, strict=True)]
    columns = list(zip(ordered, widths, strict=True))
    return [*(_row(line, columns) for line in words), *_more(len(rows) - len(shown))]


def _word(text: str) -> str:
    """One word: a figure and its unit without a space between, other words with ``_``."""
    return re.sub(r"\s+", "_", _FIGURE.sub(r"\1\2", text.strip())) or units.NONE


def _row(texts: list[str], columns: list[tuple[Column, int]]) -> str:
    parts = []
    for text, (column, width) in zip(texts, columns, strict=True):
        parts.append(text if cells(text) == width else fit(text, width, column.align))
    return (" " * _GAP).join(parts)

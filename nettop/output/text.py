"""A frame for people at a shell: the screen's panes as plain lines, one after another."""

from __future__ import annotations

import re
from dataclasses import replace

from nettop.analysis.flow_page import said
from nettop.analysis.trace import Trace
from nettop.core import units
from nettop.core.frame import Frame, ProbeStatus
from nettop.core.table import first
from nettop.output.base import Writer
from nettop.probes.base import all_probes, shed_words
from nettop.render.canvas import Canvas, Column, Pane, Table, cell_of, place_columns, text_of
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
        return [text_of(row) for row in said(found, frame, canvas)]

    def _pane(self, pane: Pane, name: str, status: ProbeStatus, frame: Frame) -> list[str]:
        if name not in frame.sections:
            detail = f": {units.clean(status.detail, 1000)}" if status.detail else ""
            return [text_of(part) for part in wrap(f"{pane.title}: {status.state}{detail}", self.style.width)]
        height = pane.height or 12
        canvas = Canvas(self.style.width, height, bits=self.style.bits, unicode=self.style.unicode)
        history = (frame,)
        subtitle = pane.subtitle(history, canvas) if pane.subtitle else ""
        title = f"{pane.title}  {subtitle}".rstrip()
        if pane.table:
            lines = plain_lines if self.style.plain else table_lines
            return [title, *lines(pane.table, frame, canvas, self.style.top, self.style.sort)]
        if pane.compact:
            return [text_of(part) for part in pane.compact(history, canvas)]
        # A graph over time says nothing in one frame: its subtitle does.
        drawn = pane.draw(history, canvas) if pane.draw and not subtitle else []
        return [title, *(text_of(part) for part in drawn)]


class TraceWriter(Writer):
    """``--trace``: packets one by one, a line for every boundary that each of them passes.

    Which flow it is, and the titles, are due where a file begins.
    """

    def begin(self) -> None:
        self._trace = Trace()

    def format(self, frame: Frame) -> str:
        return self._trace.text(frame)


def _headline(frame: Frame) -> str:
    parts = [units.timestamp(frame.time_ns), frame.interface, frame.host, units.duration(frame.interval_ns)]
    parts += [f"filter: {frame.filter}"] if frame.filter else []
    return "  ".join(units.clean(part) for part in parts if part)


def _footline(frame: Frame) -> str:
    health, interval_ns = frame.health, max(frame.interval_ns, 1)
    kernel = None if health.kernel_ns is None else health.kernel_ns / interval_ns
    parts = [f"{name.replace('_', ' ')} {units.count(count)}" for name, count in health.missed.items()]
    parts += [f"kernel {units.percent(kernel)}", f"user {units.percent(health.user_ns / interval_ns)}"]
    parts += [units.size(health.rss_bytes)]
    if health.budget_ns:
        parts.append(f"budget {units.percent(health.budget_ns / interval_ns)}")
    if left_out := shed_words(health.shed):
        parts.append(f"shed {', '.join(left_out)}")
    return "  ".join(parts)


def table_lines(table: Table, frame: Frame, canvas: Canvas, top: int, sort: str) -> list[str]:
    """A table as aligned text, its titles first; ``sort`` is a column's key, or empty for the default."""
    rows = table.rows(frame)
    shown = rows[first(rows, table, sort, top)]
    wanted = [c for c in table.columns if c.wanted is None or c.wanted(rows)]
    columns = [(p.column, p.width) for p in place_columns(wanted, canvas.width, gap=_GAP)]
    cellular = [replace(canvas, width=width, height=1) for _, width in columns]
    absent = [c for c in table.columns if c.instead and c not in [kept for kept, _ in columns]]
    lines = [_row([c.title for c, _ in columns], columns)]
    for row in shown:
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
    shown = rows[first(rows, table, sort, top)]
    wide = replace(canvas, width=_WIDE, height=1)
    ordered = sorted(table.columns, key=lambda c: c.wanted is not None)  # none moves another
    words = [[_word(c.key) for c in ordered]]
    words += [[_word(c.cell(row, wide, frame).text) for c in ordered] for row in shown]
    widths = [max(map(cells, column)) for column in zip(*words, strict=True)]
    columns = list(zip(ordered, widths, strict=True))
    return [*(_row(line, columns) for line in words), *_more(len(rows) - len(shown))]


def _word(text: str) -> str:
    """One word: a figure and its unit without a space between, other words with ``_``."""
    return re.sub(r"\s+", "_", _FIGURE.sub(r"\1\2", text.strip())) or units.NONE


def _row(texts: list[str], columns: list[tuple[Column, int]]) -> str:
    parts = (fit(text, width, c.align) for text, (c, width) in zip(texts, columns, strict=True))
    return (" " * _GAP).join(parts)

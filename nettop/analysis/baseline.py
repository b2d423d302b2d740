"""Totals from a moment on: a frame of that moment is taken off every later one.  Nothing in the kernel changes.

By what the frame's fields are declared to be: those that run since the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nettop.core.fields import Part, described
from nettop.core.frame import Frame
from nettop.core.histogram import smallest
from nettop.core.table import Array, Column
from nettop.probes.flows.section import Subnet


class Baseline:
    """Makes of a frame the same with totals since ``base``.  Give it every frame, in order.

    The least RTT of a subnet is that of the samples since then: exact where it is below all that came before, else the
    lower edge of its histogram's bucket.  That of a single flow stays what it was: it belongs to the path.
    """

    def __init__(self, base: Frame) -> None:
        self._base = base.sections
        self._least: dict[str, int] = {}

    def __call__(self, frame: Frame) -> Frame:
        sections = {
            name: self._less(section, self._base[name]) if name in self._base else section
            for name, section in frame.sections.items()
        }
        return replace(frame, sections=sections)

    def _less(self, now: Any, base: Any) -> Any:
        kind: Any = type(now)
        changed: dict[str, Any] = {}
        for f in described(kind):
            if f.derived or f.way > 0:
                continue
            name, value = f.attribute, getattr(now, f.attribute)
            before = getattr(base, name, None)
            if isinstance(value, tuple) and value and isinstance(value[0], Subnet):
                changed[name] = self._subnets(value, before or ())
            elif f.codec.columns and isinstance(before, np.ndarray):
                changed[name] = _rows(f.codec.columns, value, before)
            elif isinstance(value, Part) and type(value) is type(before):
                changed[name] = self._less(value, before)
            elif f.total and isinstance(value, int) and isinstance(before, int):
                changed[name] = value - before if value >= before else value  # it started anew
        return replace(now, **changed) if changed else now

    def _subnets(self, now: tuple[Subnet, ...], base: tuple[Subnet, ...]) -> tuple[Subnet, ...]:
        before = {subnet.prefix: subnet.min_ns for subnet in base}
        result = []
        for subnet in now:
            then = before.get(subnet.prefix)
            fresh = subnet.min_ns is not None and (then is None or subnet.min_ns < then)
            seen = (self._least.get(subnet.prefix), subnet.min_ns if fresh else smallest(subnet.rtt))
            least = min((ns for ns in seen if ns is not None), default=None)
            if least is not None:
                self._least[subnet.prefix] = least
            result.append(replace(subnet, min_ns=least))
        return tuple(result)


def _rows(columns: Sequence[Column], now: Array, base: Array) -> Array:
    """Rows less those of the same id; a new flow's as they are."""
    result = now.copy()
    if not len(base):
        return result
    order = np.argsort(base["id"])
    place = np.searchsorted(base["id"], now["id"], sorter=order)
    found = order[np.minimum(place, len(order) - 1)]
    known = base["id"][found] == now["id"]
    _subtract(columns, result, base[found], known)
    return result


def _subtract(columns: Sequence[Column], rows: Array, before: Array, known: Array) -> None:
    for c in columns:
        if c.columns:
            _subtract(c.columns, rows[c.name], before[c.name], known)
        elif c.name and c.total:
            part, then = rows[c.name], before[c.name]
            part[...] = np.where(known & (part >= then), part - then, part)

"""Totals from a moment on: a frame of that moment is taken off every later one.  Nothing in the kernel changes.

By the names that the frame gives its fields (docs/frame.md): what ends in ``_total`` runs since the start.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from nettop import stats
from nettop.model import Frame, Histogram
from nettop.probes.base import Array
from nettop.probes.flows import Subnet

_RUNNING = (
    "_retransmits",
    "_out_of_order",
    "_duplicates",
    "_probes",
    "_unneeded",
    "_uncertain",
)  # of a flow's row: they run, though their names don't say so


class Since:
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
        """A section or a part of one, less what it was then."""
        changed: dict[str, Any] = {}
        for field in fields(now):
            name, value = field.name, getattr(now, field.name)
            before = getattr(base, name, None)
            if isinstance(value, tuple) and value and isinstance(value[0], Subnet):
                changed[name] = self._subnets(value, before or ())
            elif (
                isinstance(value, np.ndarray)
                and isinstance(before, np.ndarray)
                and "id" in (value.dtype.names or ())
            ):
                changed[name] = _rows(value, before)
            elif is_dataclass(value) and not isinstance(value, Histogram) and type(value) is type(before):
                changed[name] = self._less(value, before)
            elif name.endswith("_total") and isinstance(value, int) and isinstance(before, int):
                changed[name] = value - before if value >= before else value  # it started anew
        return replace(now, **changed) if changed else now

    def _subnets(self, now: tuple[Subnet, ...], base: tuple[Subnet, ...]) -> tuple[Subnet, ...]:
        before = {subnet.prefix: subnet.min_ns for subnet in base}
        result = []
        for subnet in now:
            least = stats.smallest(subnet.rtt)
            then = before.get(subnet.prefix)
            if subnet.min_ns is not None and (then is None or subnet.min_ns < then):
                least = subnet.min_ns
            known = self._least.get(subnet.prefix)
            if least is None or (known is not None and known < least):
                least = known
            if least is not None:
                self._least[subnet.prefix] = least
            result.append(replace(subnet, min_ns=least))
        return tuple(result)


def _rows(now: Array, base: Array) -> Array:
    """Rows less those of the same id; a new flow's as they are."""
    result = now.copy()
    if not len(base):
        return result
    order = np.argsort(base["id"])
    place = np.searchsorted(base["id"], now["id"], sorter=order)
    found = order[np.minimum(place, len(order) - 1)]
    known = base["id"][found] == now["id"]
    _subtract(result, base[found], known)
    return result


def _subtract(rows: Array, before: Array, known: Array) -> None:
    for name in rows.dtype.names or ():
        part, then = rows[name], before[name]
        if part.dtype.names:
            _subtract(part, then, known)
        elif name.endswith(("_total", *_RUNNING)):
            part[...] = np.where(known & (part >= then), part - then, part)

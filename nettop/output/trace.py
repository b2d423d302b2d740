"""``--trace``: packets one by one, a line for every boundary that each of them passes."""

from __future__ import annotations

from typing import Any

from nettop.analysis.trace import Trace
from nettop.core.frame import Frame
from nettop.output.base import Writer


class TraceWriter(Writer):
    """The trace as text; which flow it is, and the titles, are due where a file begins."""

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        self._trace = Trace()

    def begin(self) -> None:
        self._trace = Trace()

    def format(self, frame: Frame) -> str:
        return self._trace.text(frame)

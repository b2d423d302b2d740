"""What a writer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from nettop.analysis.focus import Explainer
from nettop.analysis.trace import traced
from nettop.core.errors import NettopError
from nettop.core.frame import Frame

Emit = Callable[[str], None]


@dataclass(frozen=True)
class Style:
    """How frames are to be written: ``top`` rows by column ``sort``, and for text the width in cells.

    ``plain``: for a program that reads lines, not for a person: nothing of a table is left out or cut, and each cell is
    one word.
    """

    top: int = 1000
    sort: str = ""
    filter: str = ""  # as it was asked for: a snapshot keeps it
    width: int = 120
    bits: bool = True
    unicode: bool = True
    plain: bool = False
    focus: str = ""  # an end of the flow to explain
    trace: bool = False  # packets one by one were asked for


class Writer(ABC):
    """Gives each frame to ``emit`` as one whole text: whatever cuts the output, cuts it between frames."""

    def __init__(self, emit: Emit, style: Style) -> None:
        self._emit = emit
        self.style = style
        self.explainer = Explainer(style.focus) if style.focus else None
        self._traced = False
        self.begin()

    def begin(self) -> None:  # noqa: B027  (most have nothing at the head)
        """A file begins: what is due at its head comes with the next frame."""

    def write(self, frame: Frame) -> None:
        self._traced = self._traced or traced(frame)
        self._emit(self.format(frame))

    def unmet(self) -> NettopError | None:
        """What was asked for and never came, once there are no more frames; None where there is no such thing."""
        if self.style.trace:
            which = f"of a flow with {self.style.focus} " if self.style.focus else ""
            hint = "it takes one that passes: -n N waits for more frames"
            return None if self._traced else NettopError(f"no packet {which}was traced", hint)
        if self.explainer is None or self.explainer.flow:
            return None
        return NettopError(
            f"no flow had {self.style.focus}", "wait for one that has packets: -n N takes more frames"
        )

    @abstractmethod
    def format(self, frame: Frame) -> str:
        """The frame as text, ending in a line feed."""

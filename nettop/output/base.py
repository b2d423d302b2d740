"""What a writer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from nettop.model import Frame
from nettop.output.focus import Explainer

Emit = Callable[[str], None]


@dataclass(frozen=True)
class Style:
    """How frames are to be written: ``top`` rows by column ``sort``, and for text the width in cells."""

    top: int = 1000
    sort: str = ""
    width: int = 120
    bits: bool = True
    unicode: bool = True
    focus: str = ""  # an end of the flow to explain


class Writer(ABC):
    """Gives each frame to ``emit`` as one whole text: whatever cuts the output, cuts it between frames."""

    def __init__(self, emit: Emit, style: Style) -> None:
        self._emit = emit
        self.style = style
        self.explainer = Explainer(style.focus) if style.focus else None

    def write(self, frame: Frame) -> None:
        """Write one frame."""
        self._emit(self.format(frame))

    @abstractmethod
    def format(self, frame: Frame) -> str:
        """The frame as text, ending in a line feed."""

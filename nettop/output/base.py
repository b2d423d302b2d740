"""What a writer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from nettop.model import Frame

Emit = Callable[[str], None]


@dataclass(frozen=True)
class Style:
    """How frames are to be written: ``top`` rows by column ``sort``, and for text the width in cells."""

    top: int = 1000
    sort: str = ""
    width: int = 120
    bits: bool = True
    unicode: bool = True


class Writer(ABC):
    """Gives each frame to ``emit`` as one whole text: whatever cuts the output, cuts it between frames."""

    def __init__(self, emit: Emit, style: Style) -> None:
        self._emit = emit
        self.style = style

    def write(self, frame: Frame) -> None:
        """Write one frame."""
        self._emit(self.format(frame))

    @abstractmethod
    def format(self, frame: Frame) -> str:
        """The frame as text, ending in a line feed."""

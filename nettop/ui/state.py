"""What the screen knows besides the widgets: the history, what of it is shown, and the user's choices."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from nettop.core.frame import Frame
from nettop.core.histogram import packed
from nettop.render.canvas import Canvas
from nettop.ui.theme import Palette

ROWS_KEPT = 100  # rows of a long table in frames of the past
FRAMES_KEPT = 1200  # whatever the interval
INTERVALS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


def neighbour(ladder: Sequence[float], value: float, step: int) -> float:
    """The next higher rung of a ladder, or the next lower one where ``step`` is below 0; its end beyond that."""
    if step > 0:
        return next((rung for rung in ladder if rung > value * 1.001), ladder[-1])
    return next((rung for rung in reversed(ladder) if rung < value * 0.999), ladder[0])


def kept(frame: Frame) -> Frame:
    """A frame as the history keeps it: few rows, packed histograms."""
    sections = {name: packed(section.trimmed(ROWS_KEPT)) for name, section in frame.sections.items()}
    return replace(frame, sections=sections)


@dataclass
class State:
    """Mutable, owned by the app, read by its widgets."""

    palette: Palette
    span_ns: int = 600_000_000_000
    history: deque[Frame] = field(default_factory=deque)
    frozen: list[Frame] | None = None  # what was there when the screen was paused
    back: int = 0  # frames back from the newest of those
    first_ns: int = 0
    ended: bool = False  # the source has no more frames
    interval: float = 1.0
    filter_word: str = ""
    filter_text: str = ""
    bits: bool = True
    names: Callable[[bytes], str] | None = None
    unicode: bool = True
    focused: str = ""  # the name of the pane in focus
    chosen: str = ""  # of those that share a place on a small screen, the one that has it
    zoomed: bool = False

    def add(self, frame: Frame) -> None:
        """One more frame; those of the past lose what a history can't afford.

        A frame from before the newest one (a replay that went back, a clock that was set) takes the place of all
        later ones.
        """
        while self.history and self.history[-1].time_ns >= frame.time_ns:
            self.history.pop()
        if self.history:
            self.history[-1] = kept(self.history[-1])
        else:
            self.first_ns = frame.time_ns - frame.interval_ns
        self.history.append(frame)
        while len(self.history) > FRAMES_KEPT or frame.time_ns - self.history[0].time_ns > self.span_ns:
            self.history.popleft()

    def insert(self, frames: list[Frame]) -> None:
        """Frames that were missing in the history, in any order."""
        if not self.history:
            return
        newest = self.history[-1].time_ns
        known = {f.time_ns: f for f in (*frames, *self.history) if newest - f.time_ns <= self.span_ns}
        ordered = sorted(known.values(), key=lambda f: f.time_ns)
        self.history = deque(f for f in ordered if f.time_ns <= newest)

    def clear(self) -> None:
        self.history.clear()
        self.frozen, self.back = None, 0

    @property
    def paused(self) -> bool:
        return self.frozen is not None

    def pause(self) -> None:
        if self.frozen is None and self.history:
            self.frozen, self.back = list(self.history), 0

    def resume(self) -> None:
        self.frozen, self.back = None, 0

    def step(self, frames: int) -> None:
        if self.frozen:
            self.back = min(max(self.back - frames, 0), len(self.frozen) - 1)

    def frames(self) -> list[Frame]:
        """What is shown: oldest first, the last is the one."""
        if self.frozen is None:
            return list(self.history)
        return self.frozen[: len(self.frozen) - self.back]

    @property
    def shown(self) -> Frame | None:
        if self.frozen is None:
            return self.history[-1] if self.history else None
        return self.frozen[-1 - self.back]

    @property
    def age_ns(self) -> int:
        """How much older what is shown is than the newest frame."""
        return self.history[-1].time_ns - self.shown.time_ns if self.shown and self.history else 0

    def canvas(self, width: int, height: int) -> Canvas:
        return Canvas(
            max(width, 0),
            max(height, 0),
            bits=self.bits,
            unicode=self.unicode,
            shades=self.palette.shades,
            names=self.names,
        )

"""The flow in focus: found in a frame, followed without a screen (``--focus``), and explained."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace

from nettop.analysis.verdict.evidence import WINDOW
from nettop.analysis.verdict.explain import Explanation, explain
from nettop.analysis.verdict.flow import chosen
from nettop.core.frame import Focus, Frame
from nettop.core.histogram import packed
from nettop.probes.flows.constants import key_of
from nettop.probes.flows.section import row_of
from nettop.settings import Control


def focus_on(frame: Frame | None, flow: int) -> Focus | None:
    """The flow of this id as the programs know it; None where the frame has no such flow."""
    row = row_of(frame, flow) if frame and flow else None
    return None if row is None else Focus(flow, key_of(row))


class Explainer:
    """The frames that a verdict needs, and the flow that it is about: the busiest with this end, while it is there."""

    def __init__(self, end: str) -> None:
        self._end = end
        self._frames: deque[Frame] = deque(maxlen=3 * WINDOW)
        self.flow = 0

    def add(self, frame: Frame) -> Explanation | None:
        """The flow's delay and verdict with this frame; None where no flow has the end."""
        if self._frames:
            newest = self._frames[-1]
            kept = {name: packed(section.trimmed(100)) for name, section in newest.sections.items()}
            self._frames[-1] = replace(newest, sections=kept)
        self._frames.append(frame)
        if not self.flow or row_of(frame, self.flow) is None:
            self.flow = chosen(frame, self._end)
        return explain(list(self._frames), self.flow) if self.flow else None


async def focusing(frames: AsyncIterator[Frame], control: Control, end: str) -> AsyncIterator[Frame]:
    """The same frames; the flow with this end is taken into focus when there is one, and the next when it went."""
    try:
        async for frame in frames:
            if control.focus is None or row_of(frame, control.focus.id) is None:
                control.focus = focus_on(frame, chosen(frame, end))
            yield frame
    finally:
        close = getattr(frames, "aclose", None)
        if close:
            await close()

"""Where frames come from: a recording here, the kernel in nettop.collect.live.  Needs neither kernel nor root."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from nettop.core.frame import Frame
from nettop.record.recording import Recording


class Source(Protocol):
    """Whatever yields frames: the screen, the outputs and a recorder don't know which."""

    def frames(self) -> AsyncIterator[Frame]:
        """Frames, each when its interval is over."""


class Replay:
    """A recording, played: the same frames with the same time between them, and a hand on it.

    ``speed`` 2.0 plays twice as fast; infinity without waiting.  With ``hold`` it stays at the last frame, to
    go back from; without, the frames end, and a file that was cut raises its problem then.
    """

    def __init__(self, recording: Recording, speed: float = 1.0, hold: bool = False) -> None:
        self.recording = recording
        self.hold = hold
        self._position = 0
        self._shown = -1
        self._target: int | None = None
        self._speed = 1.0
        self._paused = False
        self._changed = asyncio.Event()
        self.speed = speed

    @property
    def position(self) -> int:
        """Number of the frame that is shown, or is about to be."""
        return self._position if self._target is None else self._target

    @property
    def shown(self) -> int:
        """Number of the frame that came last; -1 before the first."""
        return self._shown

    @property
    def at_end(self) -> bool:
        """Whether the last frame is shown."""
        return self._target is None and self._shown == len(self.recording) - 1

    @property
    def speed(self) -> float:
        """How many times as fast as it was."""
        return self._speed

    @speed.setter
    def speed(self, value: float) -> None:
        if not value > 0:
            raise ValueError("speed must be above 0")
        self._speed = value
        self._changed.set()

    @property
    def paused(self) -> bool:
        """Whether it stands still until told otherwise."""
        return self._paused

    @paused.setter
    def paused(self, value: bool) -> None:
        self._paused = value
        self._changed.set()

    def seek(self, index: int) -> None:
        """Show this frame next, at once; numbers outside go to the nearest end."""
        self._target = min(max(index, 0), len(self.recording) - 1)
        self._changed.set()

    def seek_time(self, time_ns: int) -> None:
        """Show the last frame that ended by this time (CLOCK_REALTIME)."""
        earlier = [i for i, t in enumerate(self.recording.times_ns) if t <= time_ns]
        self.seek(earlier[-1] if earlier else 0)

    def step(self, frames: int) -> None:
        """Pause, and go this many frames on (or back, below 0)."""
        self._paused = True
        self.seek(self.position + frames)

    def history(self, count: int) -> list[Frame]:
        """At most ``count`` frames up to the one shown, oldest first: what a graph needs after a seek."""
        return [self.recording.frame(i) for i in range(max(self.position + 1 - count, 0), self.position + 1)]

    async def frames(self) -> AsyncIterator[Frame]:
        """The frames from the present position on."""
        due = asyncio.get_running_loop().time()
        while True:
            # Parsing takes a while where there are many flows: not on the loop that draws the screen.
            position = self._position
            frame = await asyncio.to_thread(self.recording.frame, position)
            self._shown = position
            yield frame
            next_due = await self._advance(due)
            if next_due is None:
                return
            due = next_due

    async def _advance(self, due: float) -> float | None:
        """Wait for the next frame's time, or a command; the time it was due, None at the end."""
        loop = asyncio.get_running_loop()
        while True:
            if self._target is not None:
                self._position, self._target = self._target, None
                return loop.time()
            following = self._position + 1
            at_end = following >= len(self.recording)
            if at_end and not self.hold:
                if self.recording.problem:
                    raise self.recording.problem
                return None
            wait: float | None = None
            if not at_end and not self._paused:
                next_due = due + self.recording.interval_ns(following) / 1e9 / self._speed
                wait = next_due - loop.time()
                if wait <= 0:
                    self._position = following
                    # Who fell far behind does not catch up in a burst.
                    return next_due if wait > -1 else loop.time()
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
                due = loop.time()  # something changed: the wait starts again
            except TimeoutError:
                pass


async def replay(path: str, speed: float = 1.0) -> AsyncIterator[Frame]:
    """The frames of a recording with their original timing, ``speed`` times as fast."""
    with Recording(path) as recording:
        async for frame in Replay(recording, speed).frames():
            yield frame

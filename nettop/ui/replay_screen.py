"""The screen over a recording: the same, with a line that says where one is in it, and keys that move in it."""

from __future__ import annotations

from typing import Any

from textual.app import ComposeResult

from nettop.core.frame import Frame
from nettop.record.sources import Replay
from nettop.ui.keys import bindings
from nettop.ui.main_screen import MainScreen
from nettop.ui.replay import Past, TimeLine, next_mark, next_speed

_LAST = 1 << 62  # beyond every recording's last frame


class ReplayScreen(MainScreen):
    """The screen over a recording."""

    BINDINGS = bindings("slower", "faster", "start", "end", "last_mark", "next_mark")

    def __init__(self, replay: Replay, *args: Any) -> None:
        super().__init__(*args)
        self.replay = replay
        self._past = Past(self.state, replay)

    def compose(self) -> ComposeResult:
        """As a live one, with the time line above the footer."""
        yield self.header
        yield self.body
        yield self.filter_bar
        yield TimeLine(self.state, self.replay)
        yield self.footer

    def take(self, frame: Frame) -> None:
        """One more frame; after a jump, those before it are read in the background."""
        if missing := self._past.arrived(frame):
            self.run_worker(self._past.load(missing, self.redraw), group="past", exclusive=True)
        self.taken()

    @property
    def stopped(self) -> bool:
        """Whether it is paused, or at its end."""
        return self.replay.paused or self.replay.at_end

    def action_pause(self) -> None:
        """Pause, or go on; at the end, from the start."""
        stopped = self.stopped
        if self.replay.at_end:
            self.replay.seek(0)
        self.replay.paused = not stopped
        self.redraw()

    action_resume = action_pause

    def action_earlier(self) -> None:
        """One frame back."""
        self.step(-1)

    def step(self, frames: int) -> None:
        """Through the recording; negative is back."""
        self.replay.step(frames)
        self.redraw()

    def action_slower(self) -> None:
        """The next lower speed."""
        self._set_speed(-1)

    def action_faster(self) -> None:
        """The next higher speed."""
        self._set_speed(1)

    def _set_speed(self, step: int) -> None:
        self.replay.speed = next_speed(self.replay.speed, step)
        self.redraw()

    def action_start(self) -> None:
        """The first frame."""
        self._seek(0)

    def action_end(self) -> None:
        """The last frame."""
        self._seek(_LAST)

    def action_last_mark(self) -> None:
        """The mark before."""
        self._seek(next_mark(self.replay.recording, self.replay.position, -1))

    def action_next_mark(self) -> None:
        """The next mark."""
        self._seek(next_mark(self.replay.recording, self.replay.position, 1))

    def on_time_line_sought(self, message: TimeLine.Sought) -> None:
        """The user pointed at the time line."""
        recording = self.replay.recording
        self._seek(recording.at(int(message.share * recording.length_ns)))

    def _seek(self, index: int) -> None:
        self.replay.seek(index)
        self.redraw()

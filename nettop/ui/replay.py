"""The screen over a recording: the line that says where one is in it, the history there, keys that move in it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partialmethod
from typing import Any

from textual import events
from textual.message import Message
from textual.widget import Widget

from nettop.core import units
from nettop.core.errors import NettopError
from nettop.core.frame import Frame
from nettop.record.recording import Recording, Replay
from nettop.render.canvas import ACCENT, DIM, GOOD, LABEL, TITLE, VALUE, WARN, Line, Role, Span, line
from nettop.render.draw import cells_of, merged, shorten, sides
from nettop.ui.keys import bindings
from nettop.ui.lines import LineWidget
from nettop.ui.main_screen import MainScreen
from nettop.ui.state import FRAMES_KEPT, State, kept, neighbour

SPEEDS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0)
_CHUNK = 4  # frames that are read at once: what is lost when the user jumps again meanwhile
_SHOW_SECONDS = 0.15  # between looks at what has been read
_LEAST_BAR = 10


def next_mark(recording: Recording, index: int, step: int) -> int:
    """The number of the next marked frame in a direction; the end of the recording where there is none."""
    places = [mark.index for mark in recording.marks]
    if step > 0:
        return next((place for place in places if place > index), len(recording) - 1)
    return next((place for place in reversed(places) if place < index), 0)


class Past:
    """The state's history, kept as if the recording had been watched up to where one is.

    A jump leaves frames missing; they are read in the background, newest first, so that the screen never waits.
    """

    def __init__(self, state: State, replay: Replay) -> None:
        self._state = state
        self._replay = replay
        self._last = -1

    def arrived(self, frame: Frame) -> list[int]:
        """Put a frame in; the numbers of those before it that are missing, newest first."""
        recording, index = self._replay.recording, self._replay.shown
        follows, self._last = index == self._last + 1, index
        if follows:
            self._state.add(frame)
            return []
        held = {one.time_ns: one for one in self._state.history}
        before = [(number, held.get(recording.times_ns[number])) for number in self._before(index)]
        self._state.history = deque([*(kept(one) for _, one in reversed(before) if one is not None), frame])
        return [number for number, one in before if one is None]

    def _before(self, index: int) -> list[int]:
        """Numbers of the frames that would be in the history now, newest first; see State.add."""
        times = self._replay.recording.times_ns
        earliest = newest = times[index]
        numbers: list[int] = []
        for number in range(index - 1, -1, -1):
            if newest - times[number] > self._state.span_ns or len(numbers) >= FRAMES_KEPT - 1:
                break
            if times[number] < earliest:
                earliest = times[number]
                numbers.append(number)
        return numbers

    async def load(self, missing: list[int], redraw: Callable[[], None]) -> None:
        """Read what is missing, and show it piece by piece.  A frame that makes no sense ends it."""
        recording = self._replay.recording

        def read(numbers: list[int]) -> list[Frame]:
            return [kept(recording.frame(number)) for number in numbers]

        drawn = time.monotonic()
        for start in range(0, len(missing), _CHUNK):
            try:
                frames = await asyncio.to_thread(read, missing[start : start + _CHUNK])
            except NettopError:
                return  # it is said when it is reached
            self._state.insert(frames)
            last = start + _CHUNK >= len(missing)
            if last or time.monotonic() - drawn > _SHOW_SECONDS:
                redraw()
                drawn = time.monotonic()


class TimeLine(LineWidget):
    """Where one is in a recording: state, time, the line with its marks, speed, the clock of that moment."""

    @dataclass
    class Sought(Message):
        """The user pointed at a moment: this share of the whole."""

        share: float

    def __init__(self, state: State, replay: Replay) -> None:
        super().__init__(state)
        self._replay = replay
        self._bar = range(0)

    def draw(self, width: int, height: int) -> list[Line]:
        text, self._bar = time_line(self._replay, max(width - 2, 1), self.state.unicode)
        self._bar = range(self._bar.start + 1, self._bar.stop + 1)
        return [(*line(" "), *text)]

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self._point(event.x)
        self.capture_mouse()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if event.button:
            self._point(event.x)

    def on_mouse_up(self) -> None:
        self.release_mouse()

    def _point(self, x: int) -> None:
        if len(self._bar) > 1:
            share = (x - self._bar.start) / (len(self._bar) - 1)
            self.post_message(self.Sought(min(max(share, 0.0), 1.0)))


def time_line(replay: Replay, width: int, unicode: bool) -> tuple[Line, range]:
    """The line, and the columns of its bar (none where there is no room for one)."""
    recording = replay.recording
    index = max(replay.position, 0)
    total = units.clock(recording.ends_ns[-1])
    elapsed = units.clock(recording.ends_ns[index]).rjust(len(total))
    word, role = state_of(replay)
    left: list[tuple[int, Line]] = [
        (0, line((f"{word:<7}", role))),
        (1, line((elapsed, VALUE), (f" / {total}", LABEL))),
    ]
    speed = f"x{replay.speed:g}"
    right: list[tuple[int, Line]] = [(2, line((f"{speed:>5}", VALUE if speed != "x1" else LABEL)))]
    here = [mark.text for mark in recording.marks if mark.index == index]
    if here:
        right.insert(0, (4, line((shorten(units.clean(" · ".join(here)), max(width // 4, 4)), WARN))))
    right.append((3, line((_moment(recording.times_ns[index]), LABEL))))
    # The ends go before the bar gets too short to point at.
    while right and _needed(left) + _needed(right) + _LEAST_BAR > width:
        right.remove(max(right, key=lambda piece: piece[0]))
    room = width - _needed(left) - _needed(right)
    if room < _LEAST_BAR:
        return sides(left, right, width, gap=2), range(0)
    start = _needed(left)
    whole = [span for _, piece in left for span in (*piece, Span("  "))]
    whole += bar(replay, index, room, unicode)
    whole += [span for _, piece in right for span in (Span("  "), *piece)]
    return tuple(whole), range(start, start + room)


def _needed(pieces: list[tuple[int, Line]]) -> int:
    return sum(cells_of(piece) + 2 for _, piece in pieces)


def state_of(replay: Replay) -> tuple[str, Role]:
    """In a word, what a replay does at present."""
    if replay.at_end:
        return "end", WARN
    return ("paused", WARN) if replay.paused else ("playing", GOOD)


def _moment(time_ns: int) -> str:
    try:
        return units.timestamp(time_ns)[:19].replace("T", " ") + " UTC"
    except (ValueError, OverflowError, OSError):  # a year that no calendar has
        return units.NONE


def bar(replay: Replay, index: int, width: int, unicode: bool) -> Line:
    """The played part, the cursor, what is not played yet, and marks on both."""
    recording = replay.recording
    played, unplayed, cursor, mark = "━─●┿" if unicode else "=-o+"

    def column(number: int) -> int:
        share = recording.ends_ns[number] / max(recording.ends_ns[-1], 1) if number else 0.0
        return min(round(share * (width - 1)), width - 1)

    here = column(index)
    glyphs: list[tuple[str, Role]] = [(played, ACCENT)] * here + [(unplayed, DIM)] * (width - here)
    for each in recording.marks:
        glyphs[column(each.index)] = (mark, WARN)
    glyphs[here] = (cursor, TITLE)
    return merged(Span(*each) for each in glyphs)


def _seeking(to: Callable[[Replay], int]) -> Callable[[ReplayScreen], None]:
    """An action that goes to a frame."""

    def action(screen: ReplayScreen) -> None:
        screen.replay.seek(to(screen.replay))
        screen.redraw()

    return action


class ReplayScreen(MainScreen):
    """The screen over a recording."""

    BINDINGS = bindings("slower", "faster", "start", "end", "last_mark", "next_mark")

    def __init__(self, replay: Replay, *args: Any) -> None:
        super().__init__(*args)
        self.replay = replay
        self._past = Past(self.state, replay)

    def above_footer(self) -> Sequence[Widget]:
        return (TimeLine(self.state, self.replay),)

    def take(self, frame: Frame) -> None:
        """One more frame; after a jump, those before it are read in the background."""
        if missing := self._past.arrived(frame):
            self.run_worker(self._past.load(missing, self.redraw), group="past", exclusive=True)
        self.taken()

    @property
    def stopped(self) -> bool:
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
        self.step(-1)

    def step(self, frames: int) -> None:
        self.replay.step(frames)
        self.redraw()

    def _set_speed(self, step: int) -> None:
        self.replay.speed = neighbour(SPEEDS, self.replay.speed, step)
        self.redraw()

    action_slower, action_faster = partialmethod(_set_speed, -1), partialmethod(_set_speed, 1)

    action_start = _seeking(lambda replay: 0)
    action_end = _seeking(lambda replay: len(replay.recording) - 1)
    action_last_mark = _seeking(lambda replay: next_mark(replay.recording, replay.position, -1))
    action_next_mark = _seeking(lambda replay: next_mark(replay.recording, replay.position, 1))

    def on_time_line_sought(self, message: TimeLine.Sought) -> None:
        recording = self.replay.recording
        self.replay.seek(recording.at(int(message.share * recording.ends_ns[-1])))
        self.redraw()

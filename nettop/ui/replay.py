"""A recording on the screen: the line that says where one is in it, and the history that belongs there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from textual import events
from textual.message import Message

from nettop.core import units
from nettop.core.errors import NettopError
from nettop.core.frame import Frame
from nettop.record.recording import Recording
from nettop.record.sources import Replay
from nettop.render.canvas import ACCENT, DIM, GOOD, LABEL, TITLE, VALUE, WARN, Line, Role, Span, line
from nettop.render.draw import cells_of, shorten, sides
from nettop.ui.lines import LineWidget
from nettop.ui.state import FRAMES_KEPT, State, kept

SPEEDS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0)
_CHUNK = 4  # frames that are read at once: what is lost when the user jumps again meanwhile
_SHOW_SECONDS = 0.15  # between looks at what has been read
_LEAST_BAR = 10


def next_speed(speed: float, step: int) -> float:
    """The neighbour of a speed on the ladder."""
    if step > 0:
        return next((s for s in SPEEDS if s > speed * 1.001), SPEEDS[-1])
    return next((s for s in reversed(SPEEDS) if s < speed * 0.999), SPEEDS[0])


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
        present = [frame]
        missing: list[int] = []
        for number in self._before(index):
            found = held.get(recording.times_ns[number])
            if found is None:
                missing.append(number)
            else:
                present.append(kept(found))
        self._state.show(present[::-1], self._start_ns(missing[-1] if missing else None, present[-1]))
        return missing

    def _start_ns(self, number: int | None, first: Frame) -> int:
        if number is None:
            return first.time_ns - first.interval_ns
        return self._replay.recording.times_ns[number] - self._replay.recording.interval_ns(number)

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

    class Sought(Message):
        """The user pointed at a moment: this share of the whole."""

        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share

    def __init__(self, state: State, replay: Replay) -> None:
        super().__init__(state)
        self._replay = replay
        self._bar = range(0)

    def draw(self, width: int, height: int) -> list[Line]:
        """One line, a blank on either side."""
        text, self._bar = time_line(self._replay, max(width - 2, 1), self.state.unicode)
        self._bar = range(self._bar.start + 1, self._bar.stop + 1)
        return [(*line(" "), *text)]

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Go there, and follow the mouse."""
        self._point(event.x)
        self.capture_mouse()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Follow the mouse while its button is down."""
        if event.button:
            self._point(event.x)

    def on_mouse_up(self) -> None:
        """Follow it no more."""
        self.release_mouse()

    def _point(self, x: int) -> None:
        if len(self._bar) > 1:
            share = (x - self._bar.start) / (len(self._bar) - 1)
            self.post_message(self.Sought(min(max(share, 0.0), 1.0)))


def time_line(replay: Replay, width: int, unicode: bool) -> tuple[Line, range]:
    """The line, and the columns of its bar (none where there is no room for one)."""
    recording = replay.recording
    index = max(replay.position, 0)
    total = units.clock(recording.length_ns)
    elapsed = units.clock(recording.elapsed_ns(index)).rjust(len(total))
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


def bar(replay: Replay, index: int, width: int, unicode: bool) -> list[Span]:
    """The played part, the cursor, what is not played yet, and marks on both."""
    recording = replay.recording
    played, unplayed, cursor, mark = "━─●┿" if unicode else "=-o+"

    def column(number: int) -> int:
        share = recording.elapsed_ns(number) / max(recording.length_ns, 1) if number else 0.0
        return min(round(share * (width - 1)), width - 1)

    here = column(index)
    glyphs: list[tuple[str, Role]] = [(played, ACCENT)] * here + [(unplayed, DIM)] * (width - here)
    for each in recording.marks:
        glyphs[column(each.index)] = (mark, WARN)
    glyphs[here] = (cursor, TITLE)
    spans: list[Span] = []
    for glyph, role in glyphs:
        if spans and spans[-1].role == role:
            spans[-1] = Span(spans[-1].text + glyph, role)
        else:
            spans.append(Span(glyph, role))
    return spans

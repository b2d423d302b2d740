"""The first line of the screen: what is measured, what the user should know, and what measuring costs."""

from __future__ import annotations

from collections.abc import Callable

from nettop.core import units
from nettop.core.frame import Frame
from nettop.probes.base import shed_words
from nettop.render.canvas import ACCENT, BAD, DIM, LABEL, PLAIN, TITLE, VALUE, WARN, Line, Role, line
from nettop.render.draw import cells_of, shorten, sides
from nettop.ui.lines import LineWidget
from nettop.ui.state import State

_DOT = (" · ", DIM)
_GAP = 3
_LEAST_TEXT = 12  # what a note leaves for the filter behind it


def header(state: State, badge: str, width: int, recording: bool = False, clock: bool = True) -> Line:
    """Interface, host, filter, what the user should know, interval, clock, own cost; whole pieces, as many as fit."""
    frame = state.shown
    if frame is None:
        return sides([(0, line(("nettop", TITLE)))], [(0, line(("starting", DIM)))], width)
    name = line((units.clean(frame.interface), VALUE), (f" {badge}" if badge else "", LABEL))
    left: list[tuple[int, Line]] = [(3, line(("nettop", TITLE))), (0, name)]
    left.append((6, line((units.clean(frame.host), LABEL))))
    right: list[tuple[int, Line]] = []
    if recording:
        right.append((0, line(("● ", BAD), ("recording", WARN))))
    right += [(4, line((f"{state.interval:g} s", LABEL))), *([_clock(state)] if clock else [])]
    long, short = cost(frame), cost(frame, short=True)
    # What the user must know is always there: notes and the filter are shortened, the cost has a short form.
    needed = sum(cells_of(piece) + _GAP for priority, piece in (*left, *right) if priority < 2)
    texts = [("", units.clean(note), WARN) for note in frame.notes]
    if text := state.filter_word or (frame.filter if state.paused else state.filter_text or frame.filter):
        applied = state.paused or bool(state.filter_word) or text == frame.filter
        texts.append(("filter " if applied else "applying ", units.clean(text), ACCENT))
    for count, (label, text, role) in enumerate(texts):
        others = (len(texts) - count - 1) * (_LEAST_TEXT + _GAP)
        room = max(width - needed - others - cells_of(short) - len(label) - _GAP, 4)
        piece = line((label, LABEL), (shorten(text, room), role))
        left.append((0, piece))
        needed += cells_of(piece) + _GAP
    extra = sum(cells_of(piece) + _GAP for priority, piece in (*left, *right) if 2 <= priority < 5)
    right.append((0, long if needed + extra + cells_of(long) <= width else short))
    return sides(left, right, width, gap=_GAP)


def _clock(state: State) -> tuple[int, Line]:
    if state.paused:
        age = f"{units.age(state.age_ns)} ago" if state.age_ns else "now"
        return 0, line(("paused ", WARN), (age, VALUE))
    newest = state.history[-1].time_ns if state.history else 0
    clock = units.clock(max(newest - state.first_ns, 0))
    if state.ended:
        return 0, line(("end ", WARN), (clock, VALUE))
    return 3, line((clock, VALUE))


def cost(frame: Frame, short: bool = False) -> Line:
    """What watching costs: the programs' share of a CPU, this program's, its memory; what was left out for a budget."""
    health = frame.health
    kernel = None if health.kernel_ns is None else health.kernel_ns / max(frame.interval_ns, 1)
    pieces: list[tuple[str, Role]] = [
        ("k " if short else "kernel ", LABEL),
        (units.percent(kernel), PLAIN),
        _DOT,
        ("u " if short else "user ", LABEL),
        (units.percent(health.user_ns / max(frame.interval_ns, 1)), PLAIN),
        _DOT,
        (units.size(health.rss_bytes or None), PLAIN),
    ]
    if left_out := shed_words(health.shed):
        pieces += [_DOT, ("shed" if short else f"shed {', '.join(left_out)}", WARN)]
    return line(*pieces)


class Header(LineWidget):
    """The first line."""

    def __init__(
        self, state: State, badge: Callable[[Frame], str], recording: Callable[[], str], clock: bool = True
    ) -> None:
        super().__init__(state)
        self._badge = badge
        self._recording = recording
        self._clock = clock

    def draw(self, width: int, height: int) -> list[Line]:
        """One line, a blank on either side."""
        badge = self._badge(self.state.shown) if self.state.shown else ""
        return [
            (*line(" "), *header(self.state, badge, max(width - 2, 1), bool(self._recording()), self._clock))
        ]

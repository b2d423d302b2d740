"""The first line of the screen: what is measured, what the user should know, what that costs; and the last: keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual import events
from textual.message import Message

from nettop.core import units
from nettop.core.frame import Frame
from nettop.probes.base import Probe, shed_words
from nettop.render.canvas import ACCENT, BAD, DIM, LABEL, PLAIN, TITLE, VALUE, WARN, Line, Role, line
from nettop.render.draw import cells_of, parts, shorten, sides
from nettop.ui.keys import Action, shown
from nettop.ui.layout import WIDE
from nettop.ui.lines import LineWidget
from nettop.ui.state import State

_DOT = (" · ", DIM)
_GAP = 3
_LEAST_TEXT = 12  # what a note leaves for the filter behind it
_NOTICE_SECONDS = 4.0


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
    """The first line: interface, host, filter, what the user should know, interval, clock, own cost."""

    def __init__(
        self, state: State, badge: Callable[[Frame], str], recording: Callable[[], str], clock: bool
    ) -> None:
        super().__init__(state)
        self._badge = badge
        self._recording = recording
        self._clock = clock

    def draw(self, width: int, height: int) -> list[Line]:
        return [(*line(" "), *self._pieces(max(width - 2, 1)))]

    def _pieces(self, width: int) -> Line:
        """Whole pieces, as many as fit."""
        state, frame = self.state, self.state.shown
        if frame is None:
            return sides([(0, line(("nettop", TITLE)))], [(0, line(("starting", DIM)))], width)
        badge = self._badge(frame)
        name = line((units.clean(frame.interface), VALUE), (f" {badge}" if badge else "", LABEL))
        left = [(3, line(("nettop", TITLE))), (0, name), (6, line((units.clean(frame.host), LABEL)))]
        right = [(0, line(("● ", BAD), ("recording", WARN)))] if self._recording() else []
        right += [(4, line((f"{state.interval:g} s", LABEL))), *([_clock(state)] if self._clock else [])]
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


def losses(frame: Frame, probes: Sequence[Probe], short: bool = False) -> Line:
    """What was missed, where that is measured, and how many of the wanted hooks are attached."""
    missed = frame.health.missed
    pieces = [(f"{units.count(n)} {name.partition('_')[0]}", WARN) for name, n in missed.items() if n]
    if missed and not pieces:
        pieces = [("0 lost", LABEL)]
    states = {name: status.state for name, status in frame.probes.items()}
    if wanted := sum(len(p.hooks) for p in probes if states.get(p.name, "off") != "off"):
        attached = sum(len(status.hooks) for status in frame.probes.values() if status.state == "live")
        text = f"{attached} of {wanted} hooks{'' if short else ' attached'}"
        pieces.append((text, WARN if "failed" in states.values() else LABEL))
    return line(*(part for piece in pieces for part in (_DOT, piece)))[1:]


class Footer(LineWidget):
    """The last line."""

    @dataclass
    class Notice(Message):
        """Something to say to the user for a moment."""

        text: str
        role: Role = LABEL

    @dataclass
    class Pressed(Message):
        """The user clicked on a key."""

        action: str

    def __init__(
        self, state: State, probes: Sequence[Probe], actions: Callable[[], Sequence[Action]]
    ) -> None:
        super().__init__(state)
        self._probes = probes
        self._actions = actions
        self._targets: list[tuple[range, str]] = []
        self._notice: Line = ()

    def draw(self, width: int, height: int) -> list[Line]:
        width = max(width - 2, 1)
        frame = self.state.shown
        right = losses(frame, self._probes, short=width < WIDE) if frame else ()
        room = max(width - cells_of(right) - 3, 1)
        self._targets = []
        left = parts([(0, self._notice)], room) if self._notice else self._keys(room)
        return [(*line(" "), *sides([(0, left)], [(1, right)], width, gap=2))]

    def _keys(self, room: int) -> Line:
        """As many keys as fit, in order of their rank; where each stands is kept for clicks."""
        pieces: list[tuple[int, Line]] = []
        at = 1
        for action in sorted((a for a in self._actions() if a.keys), key=lambda a: a.footer):
            piece = line((shown(action.keys[0]), "key"), (f" {action.label}", LABEL))
            end = at + cells_of(piece)
            if end > room + 1:
                break
            pieces.append((0, piece))
            self._targets.append((range(at, end), action.id))
            at = end + 2
        return parts(pieces, room)

    def say(self, notice: Notice) -> None:
        self._notice = shown = line((notice.text, notice.role))
        self.redraw()

        def clear() -> None:
            if self._notice is shown:  # no newer one
                self._notice = ()
                self.redraw()

        self.set_timer(_NOTICE_SECONDS, clear)

    def on_click(self, event: events.Click) -> None:
        for columns, action in self._targets:
            if event.x in columns:
                self.post_message(self.Pressed(action))

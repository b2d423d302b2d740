"""The lines above and below the panes: what is measured, what it costs and misses, and which keys there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual import events
from textual.message import Message

from nettop import units
from nettop.budget import words
from nettop.model import Frame
from nettop.probes.base import Probe
from nettop.probes.draw import cells_of, parts, shorten, sides
from nettop.probes.view import ACCENT, BAD, DIM, LABEL, PLAIN, TITLE, VALUE, WARN, Line, Role, line
from nettop.ui.keys import Action, shown
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
    if left_out := words(health.shed):
        pieces += [_DOT, ("shed" if short else f"shed {', '.join(left_out)}", WARN)]
    return line(*pieces)


def losses(frame: Frame, probes: Sequence[Probe]) -> Line:
    """What was missed, and how many of the hooks hold."""
    health = frame.health
    counts = (
        (health.lost_events, "lost"),
        (health.evicted_flows, "evicted"),
        (health.untracked_packets, "untracked"),
    )
    missed = [(f"{units.count(count)} {what}", WARN) for count, what in counts if count]
    wanted = sum(len(p.hooks) for p in probes if _state(frame, p.name) != "off")
    live = sum(len(status.hooks) for status in frame.probes.values() if status.state == "live")
    failed = any(_state(frame, p.name) == "failed" for p in probes)
    pieces: list[tuple[str, Role]] = []
    for piece in missed or [("0 lost", LABEL)]:
        pieces += [piece, _DOT]
    return line(*pieces, (f"hooks {live}/{wanted}", WARN if failed else LABEL))


def _state(frame: Frame, probe: str) -> str:
    status = frame.probes.get(probe)
    return status.state if status else "off"


class Header(LineWidget):
    """The first line."""

    def __init__(
        self,
        state: State,
        badge: Callable[[Frame], str],
        recording: Callable[[], str],
        clock: bool = True,
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


class Footer(LineWidget):
    """The last line: keys of the pane in focus, or a message for a moment; losses."""

    class Pressed(Message):
        """The user clicked on a key."""

        def __init__(self, action: str) -> None:
            super().__init__()
            self.action = action

    def __init__(
        self, state: State, probes: Sequence[Probe], actions: Callable[[], Sequence[Action]]
    ) -> None:
        super().__init__(state)
        self._probes = probes
        self._actions = actions
        self._targets: list[tuple[range, str]] = []
        self.message: Line = ()

    def draw(self, width: int, height: int) -> list[Line]:
        """One line, a blank on either side."""
        width = max(width - 2, 1)
        frame = self.state.shown
        right = losses(frame, self._probes) if frame else ()
        room = max(width - cells_of(right) - 3, 1)
        self._targets = []
        if self.message:
            left = parts([(0, self.message)], room)
        else:
            left = self._keys(room)
        return [(*line(" "), *sides([(0, left)], [(1, right)], width, gap=2))]

    def _keys(self, room: int) -> Line:
        pieces = {
            a.id: line((shown(a.keys[0]), "key"), (f" {a.label}", LABEL)) for a in self._actions() if a.keys
        }
        ranked = sorted((a for a in self._actions() if a.keys), key=lambda a: a.footer)
        while ranked and sum(cells_of(pieces[a.id]) + 2 for a in ranked) - 2 > room:
            ranked.pop()
        at = 1
        for action in ranked:
            self._targets.append((range(at, at + cells_of(pieces[action.id])), action.id))
            at += cells_of(pieces[action.id]) + 2
        return parts([(0, pieces[a.id]) for a in ranked], room)

    def on_click(self, event: events.Click) -> None:
        """As if the key was pressed."""
        for columns, action in self._targets:
            if event.x in columns:
                self.post_message(self.Pressed(action))

"""The last line of the screen: keys of what is in focus, or a notice for a moment, and what was missed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual import events
from textual.message import Message

from nettop.core import units
from nettop.core.frame import Frame
from nettop.probes.base import Probe
from nettop.render.canvas import DIM, LABEL, WARN, Line, Role, line
from nettop.render.draw import cells_of, parts, sides
from nettop.ui.keys import Action, shown
from nettop.ui.lines import LineWidget
from nettop.ui.state import State

_DOT = (" · ", DIM)
_NOTICE_SECONDS = 4.0


def losses(frame: Frame, probes: Sequence[Probe]) -> Line:
    """What was missed, and how many of the hooks hold."""
    missed = [
        (f"{units.count(count)} {name.partition('_')[0]}", WARN)
        for name, count in frame.health.missed.items()
        if count
    ]
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


class Footer(LineWidget):
    """The last line."""

    class Notice(Message):
        """Something to say to the user for a moment."""

        def __init__(self, text: str, role: Role = LABEL) -> None:
            super().__init__()
            self.text = text
            self.role = role

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
        self._notice: Line = ()

    def draw(self, width: int, height: int) -> list[Line]:
        """One line, a blank on either side."""
        width = max(width - 2, 1)
        frame = self.state.shown
        right = losses(frame, self._probes) if frame else ()
        room = max(width - cells_of(right) - 3, 1)
        self._targets = []
        if self._notice:
            left = parts([(0, self._notice)], room)
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

    def say(self, notice: Notice) -> None:
        """Show a notice in place of the keys."""
        self._notice = shown = line((notice.text, notice.role))
        self.redraw()

        def clear() -> None:
            if self._notice is shown:  # no newer one
                self._notice = ()
                self.redraw()

        self.set_timer(_NOTICE_SECONDS, clear)

    def on_click(self, event: events.Click) -> None:
        """As if the key was pressed."""
        for columns, action in self._targets:
            if event.x in columns:
                self.post_message(self.Pressed(action))

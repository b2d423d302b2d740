"""The widget of one pane: its frame, its state, and what its probe draws."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partialmethod

from textual import events
from textual.actions import SkipAction
from textual.message import Message

from nettop.core.frame import Frame, ProbeStatus
from nettop.core.units import clean
from nettop.render.canvas import ACCENT, DIM, LABEL, TITLE, WARN, Canvas, Line, Pane, Span, line, text_of
from nettop.render.draw import fit, wrap
from nettop.ui.keys import bindings
from nettop.ui.lines import BLANK, LineWidget, framed
from nettop.ui.state import State

log = logging.getLogger(__name__)

_FAR = 1 << 30  # rows: more than there are
_MARGIN = 4  # columns of a frame: edges and a blank on either side


def _moving(x: int, y: int, pages: int = 0) -> Callable[[PaneWidget], None]:
    """An action that moves the cursor: by columns, back from the newest one, by rows, and by pages of rows."""

    def action(pane: PaneWidget) -> None:
        pane.move(x, y + pages * max(pane.size.height - 3, 1))

    return action


class PaneWidget(LineWidget, can_focus=True):
    """One pane.  Knows how to show any probe's Pane; the table has a class of its own."""

    FOCUS_ON_CLICK = False  # what a click does depends on whether the pane had the focus before
    BINDINGS = bindings(
        *("enter", "back", "down", "up", "left", "right", "top", "bottom", "page_down", "page_up")
    )

    @dataclass
    class PageChanged(Message):
        """The page of a row was opened, or left: see ``pane.inside``."""

        pane: PaneWidget

    def __init__(self, state: State, pane: Pane, probe: str) -> None:
        super().__init__(state, name=pane.name)
        self.pane = pane
        self.probe = probe
        self.compact = False
        self.cursor = (0, 0)
        self.moved = False
        self.selected = ""

    # --- drawing

    @property
    def inside(self) -> bool:
        return bool(self.selected)

    @property
    def current(self) -> bool:
        """Whether this pane has the focus, or gets it back when a field or a page over the panes is closed."""
        return self.state.focused == self.pane.name

    def draw(self, width: int, height: int) -> list[Line]:
        if self.compact:
            mark = Span("▎" if self.state.unicode else ">", ACCENT) if self.current else Span(" ")
            inner = self.guarded(width - 2, height, compact=True)
            return [(mark, *row) for row in inner]
        inner = self.guarded(width - _MARGIN, height - 2)
        role = "border-focus" if self.current else "border"
        title = line(
            " ", (f"{self.pane.number} ", ACCENT if self.current else DIM), (self.heading(), TITLE), " "
        )
        subtitle = self.subtitle(width)
        return framed(inner, width, height, title, subtitle, role, self.state.unicode, self.thumb(height - 2))

    def heading(self) -> str:
        return f"{self.pane.title} › {self.selected}" if self.selected else self.pane.title

    def subtitle(self, width: int) -> Line:
        frames = self.state.frames()
        if self.pane.subtitle is None or not frames or self.probe not in frames[-1].sections:
            return ()
        try:
            text = self.pane.subtitle(frames, self.state.canvas(width - _MARGIN, 1))
        except Exception:
            log.exception("subtitle of pane %s", self.pane.name)
            return ()
        return line((f" {text} ", LABEL)) if text else ()

    def thumb(self, height: int) -> range:
        return range(0)

    def guarded(self, width: int, height: int, compact: bool = False) -> list[Line]:
        """What the probe draws, or calmly why not: one pane's failure is not the others'."""
        width, height = max(width, 1), max(height, 1)
        frame = self.state.shown
        if frame is None:
            return middle([line(("waiting for the first frame", DIM))], width, height)
        status = frame.probes.get(self.probe)
        if status is not None and status.state != "live":
            return trouble(self.pane.title, status, width, height)
        if self.probe not in frame.sections:
            return middle([line(("no data to draw", DIM))], width, height)
        try:
            return self.content(frame, width, height, compact)
        except Exception as error:
            log.exception("drawing pane %s", self.pane.name)
            failed = ProbeStatus(
                "failed", f"drawing failed: {error!r}\nthe log has the details; please report it"
            )
            return trouble(self.pane.title, failed, width, height)

    def content(self, frame: Frame, width: int, height: int, compact: bool) -> list[Line]:
        if compact and self.pane.compact is not None:
            return self.pane.compact(self.state.frames(), self.state.canvas(width, height))
        if self.pane.draw is None:
            return []
        return self.pane.draw(self.state.frames(), self.canvas(width, height))

    def canvas(self, width: int, height: int) -> Canvas:
        zoomed = self.state.zoomed and self.current
        cursor = self.cursor if self.current and (self.moved or self.pane.rows is not None) else None
        plain = self.state.canvas(width, height)
        return replace(plain, zoomed=zoomed, cursor=cursor, selected=self.selected)

    # --- what keys do

    def names(self) -> tuple[str, ...]:
        frame = self.state.shown
        if self.pane.rows is None or frame is None or self.probe not in frame.sections:
            return ()
        return self.pane.rows(self.state.frames())

    def move(self, x: int, y: int) -> None:
        """Move the cursor: over rows, or over the plane when zoomed.  x counts back from the newest column."""
        zoomed = self.state.zoomed
        rows = self.size.height - 2 if zoomed or self.pane.rows is None else len(self.names())
        across = self.cursor[0] + x if zoomed or self.pane.rows is None else 0
        self.cursor = (
            min(max(across, 0), max(self.size.width - _MARGIN - 1, 0)),
            min(max(self.cursor[1] + y, 0), max(rows - 1, 0)),
        )
        self.moved = True
        self.redraw()

    def open_page(self) -> bool:
        names = self.names()
        if not names or self.selected:
            return False
        self.selected = names[min(self.cursor[1], len(names) - 1)]
        self.cursor, self.moved = (0, 0), False
        return True

    def leave_page(self) -> bool:
        if not self.selected:
            return False
        names = self.names()
        row = names.index(self.selected) if self.selected in names else 0
        self.selected, self.cursor, self.moved = "", (0, row), False
        return True

    def close_page(self) -> bool:
        """Leave the page of a row, and tell the others; whether there was one."""
        closed = self.leave_page()
        if closed:
            self.post_message(self.PageChanged(self))
        return closed

    def clear_cursor(self) -> None:
        """The focus or the zoom has gone: the cursor of a plane means nothing now."""
        self.moved = False
        if self.pane.rows is None:
            self.cursor = (0, 0)

    def action_enter(self) -> None:
        if self.open_page():
            self.post_message(self.PageChanged(self))

    def action_back(self) -> None:
        """Leave the page of a row; without a page and a zoom, take the cursor off."""
        if self.close_page():
            return
        if self.state.zoomed or not self.moved:
            raise SkipAction
        self.clear_cursor()
        self.redraw()

    action_down, action_up = _moving(0, 1), _moving(0, -1)
    action_left, action_right = _moving(1, 0), _moving(-1, 0)
    action_page_down, action_page_up = _moving(0, 0, 1), _moving(0, 0, -1)
    action_bottom, action_top = _moving(0, _FAR), _moving(0, -_FAR)

    def help(self) -> str:
        return self.pane.help

    def on_show(self) -> None:
        """Textual takes the focus from what has no room; with room again, it is back."""
        if self.current and self.screen.focused is None:
            self.focus(scroll_visible=False)

    # --- mouse

    def on_click(self, event: events.Click) -> None:
        event.stop()
        if self.pane.rows is not None and not self.compact and not self.selected and self.current:
            self.move(0, event.y - 1 - self.cursor[1])
        self.focus(scroll_visible=False)

    def _wheel(self, rows: int, event: events.MouseScrollDown | events.MouseScrollUp) -> None:
        """The wheel moves the cursor of the pane under it, if that has the focus."""
        event.stop()
        if self.current:
            self.move(0, rows)

    on_mouse_scroll_down, on_mouse_scroll_up = partialmethod(_wheel, 3), partialmethod(_wheel, -3)


def trouble(title: str, status: ProbeStatus, width: int, height: int) -> list[Line]:
    """A pane that can't work: what, why, what would help."""
    what = {
        "failed": (f"{title} has stopped", WARN),
        "unavailable": (f"{title} can't be measured here", LABEL),
        "off": (f"{title} is switched off", LABEL),
    }.get(status.state, (title, LABEL))
    return middle([line(what), *wrap(clean_lines(status.detail), max(width - 4, 10), DIM)], width, height)


def clean_lines(text: str) -> str:
    """A text from outside, of some lines, as data."""
    return "\n".join(clean(row) for row in text.splitlines()[:12])


def middle(lines: list[Line], width: int, height: int) -> list[Line]:
    """Lines in the middle of a pane."""
    shown = lines[:height]
    centred = [line((fit(text_of(row), width, "center"), row[0].role if row else DIM)) for row in shown]
    return [BLANK] * ((height - len(shown)) // 2) + centred

"""The panes of the screen: where they stand, which one has the focus, and the zoom."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partialmethod

from textual.actions import SkipAction
from textual.geometry import NULL_OFFSET, NULL_SPACING, Region, Size
from textual.layout import ArrangeResult, Layout, WidgetPlacement
from textual.widget import Widget

from nettop.analysis.pages import panes_of
from nettop.probes.base import Probe
from nettop.record.recording import View
from nettop.render.canvas import DIM, TITLE, Line
from nettop.render.draw import wrap
from nettop.ui.keys import bindings
from nettop.ui.layout import MIN_HEIGHT, MIN_WIDTH, Box, arrange, shares_place, too_small
from nettop.ui.lines import LineWidget, redraw_all
from nettop.ui.panes import PaneWidget, middle
from nettop.ui.state import State
from nettop.ui.table import TablePane


class Bands(Layout):
    """nettop.ui.layout as a layout of Textual."""

    name = "bands"

    def arrange(
        self, parent: Widget, children: list[Widget], size: Size, greedy: bool = True
    ) -> ArrangeResult:
        """Boxes for the panes; those without one get none of the screen."""
        assert isinstance(parent, Body)
        small = parent.too_small
        boxes = parent.boxes(size)
        placements: list[WidgetPlacement] = []
        for child in children:
            region = Region(0, 0, 0, 0)
            if isinstance(child, PaneWidget):
                box = boxes.get(child.pane.name)
                if box is not None:
                    region = Region(box.x, box.y, box.width, box.height)
                    child.compact = box.compact
            elif small:
                region = size.region
            placements.append(WidgetPlacement(region, NULL_OFFSET, NULL_SPACING, child))
        return placements


class TooSmall(LineWidget):
    """What a terminal says that has no room for a pane."""

    def draw(self, width: int, height: int) -> list[Line]:
        size = self.app.size
        rows = [
            *wrap("nettop needs a little more room", width, TITLE),
            *wrap(f"{size.width}x{size.height} here, {MIN_WIDTH}x{MIN_HEIGHT} at least", width, DIM),
        ]
        return middle(rows, width, height)


class Body(Widget):
    """All panes.  ``state.focused`` follows Textual's focus, and stays while the filter's field has that."""

    BINDINGS = bindings("zoom", "pane", "next_pane", "previous_pane", "back")

    def __init__(self, state: State, panes: Sequence[PaneWidget]) -> None:
        self._too_small = TooSmall(state)
        super().__init__(*panes, self._too_small)
        self.state = state
        self.panes = list(panes)
        self._bands = Bands()

    @property
    def layout(self) -> Layout:
        return self._bands

    @property
    def too_small(self) -> bool:
        return too_small(self.app.size.width, self.app.size.height)

    def boxes(self, size: Size) -> dict[str, Box]:
        """Where the panes stand, by name; those that are not there are not shown."""
        if self.too_small:
            return {}
        state, panes = self.state, [w.pane for w in self.panes]
        return arrange(panes, size.width, size.height, state.focused, state.chosen, state.zoomed)

    @property
    def current(self) -> PaneWidget | None:
        """The pane that keys go to, unless a field takes them."""
        return next((p for p in self.panes if p.current), None)

    def picked(self, pane: PaneWidget) -> None:
        if pane.current:
            return
        if self.current is not None:
            self.current.clear_cursor()
        before = self.boxes(self.size)
        self.state.focused = pane.pane.name
        if shares_place(pane.pane):
            self.state.chosen = pane.pane.name
        self._show(moved=self.boxes(self.size) != before)

    def _show(self, moved: bool) -> None:
        """Draw all panes again; where they have ``moved``, place them first."""
        if moved:  # Textual arranges what is in a widget anew when one of its children asks for it
            self._too_small.refresh(repaint=False, layout=True)
        redraw_all(self.screen)  # the foot too: it has the keys of what is in focus

    def on_resize(self) -> None:
        self._too_small.redraw()

    def zoom(self, on: bool) -> None:
        if self.current is not None and not on:
            self.current.close_page()
            self.current.clear_cursor()
        self.state.zoomed = on
        self._show(moved=True)

    def on_pane_widget_page_changed(self, message: PaneWidget.PageChanged) -> None:
        """The page of a row takes all of the room."""
        self.zoom(message.pane.inside)

    def action_zoom(self) -> None:
        self.zoom(not self.state.zoomed)

    def action_back(self) -> None:
        if not self.state.zoomed:
            raise SkipAction
        self.zoom(False)

    def action_pane(self, number: int) -> None:
        pane = next((p for p in self.panes if p.pane.number == number), None)
        if pane is not None and pane.current:
            self.action_zoom()
        elif pane is not None:
            self.screen.set_focus(pane, scroll_visible=False)

    def _focus_neighbour(self, step: int) -> None:
        if self.current is not None:
            pane = self.panes[(self.panes.index(self.current) + step) % len(self.panes)]
            self.screen.set_focus(pane, scroll_visible=False)

    action_next_pane = partialmethod(_focus_neighbour, 1)
    action_previous_pane = partialmethod(_focus_neighbour, -1)


def make_panes(state: State, probes: Sequence[Probe], sort: str, look: View) -> list[PaneWidget]:
    """The probes' panes, by number; the one that ``look`` names is the first to have the focus, else a table."""
    places = sorted(
        ((pane, probe.name) for probe in probes for pane in panes_of(probe)), key=lambda p: p[0].number
    )
    panes = [
        TablePane(state, pane, probe, sort) if pane.table else PaneWidget(state, pane, probe)
        for pane, probe in places
    ]
    table = first_table(panes)
    if table is not None:
        table.reversed = look.reverse
    wanted = [p for p in panes if p.pane.name == look.pane]
    first = next((p for p in (*wanted, table, *panes) if p), None)
    state.focused = first.pane.name if first else ""
    sharing = [p.pane.name for p in panes if shares_place(p.pane)]
    state.chosen = state.focused if state.focused in sharing else next(iter(sharing), "")
    return panes


def first_table(panes: Sequence[PaneWidget]) -> TablePane | None:
    """The table whose order and page a snapshot keeps."""
    return next((p for p in panes if isinstance(p, TablePane)), None)

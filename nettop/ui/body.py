"""The panes of the screen: where they stand, which one has the focus, and the zoom."""

from __future__ import annotations

from collections.abc import Sequence

from textual.actions import SkipAction
from textual.geometry import NULL_OFFSET, NULL_SPACING, Region, Size
from textual.layout import ArrangeResult, Layout, WidgetPlacement
from textual.widget import Widget

from nettop.analysis.pages import panes_of
from nettop.probes.base import Probe
from nettop.render.canvas import DIM, TITLE, Line, line
from nettop.render.draw import fit, wrap
from nettop.ui.commands import Options
from nettop.ui.keys import bindings
from nettop.ui.layout import MIN_HEIGHT, MIN_WIDTH, Box, arrange, shares_place, too_small
from nettop.ui.lines import LineWidget, redraw_all
from nettop.ui.panes import PaneWidget
from nettop.ui.state import Place, State
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
        """In the middle, as much as fits."""
        size = self.app.size
        rows = [
            *wrap("nettop needs a little more room", width, TITLE),
            *wrap(f"{size.width}x{size.height} here, {MIN_WIDTH}x{MIN_HEIGHT} at least", width, DIM),
        ]
        above = max((height - len(rows)) // 2, 0)
        return [()] * above + [
            line((fit("".join(s.text for s in r), width, "center"), r[0].role)) for r in rows if r
        ]


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
        """Bands."""
        return self._bands

    @property
    def too_small(self) -> bool:
        """Whether the terminal has no room for panes."""
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
        """A pane got the focus."""
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
        """Places follow from the size by themselves."""
        self._too_small.redraw()

    def zoom(self, on: bool) -> None:
        """The pane in focus alone, or all."""
        if self.current is not None and not on:
            self.current.close_page()
            self.current.clear_cursor()
        self.state.zoomed = on
        self._show(moved=True)

    def on_pane_widget_page_changed(self, message: PaneWidget.PageChanged) -> None:
        """The page of a row takes all of the room."""
        self.zoom(message.pane.inside)

    def action_zoom(self) -> None:
        """The pane in focus alone, and back."""
        self.zoom(not self.state.zoomed)

    def action_back(self) -> None:
        """Leave the zoom."""
        if not self.state.zoomed:
            raise SkipAction
        self.zoom(False)

    def action_pane(self, number: int) -> None:
        """Focus the pane of a number; zoom it if it has the focus."""
        pane = next((p for p in self.panes if p.pane.number == number), None)
        if pane is not None and pane.current:
            self.action_zoom()
        elif pane is not None:
            self.screen.set_focus(pane, scroll_visible=False)

    def action_next_pane(self) -> None:
        """Focus the next pane."""
        self._focus_neighbour(1)

    def action_previous_pane(self) -> None:
        """Focus the pane before."""
        self._focus_neighbour(-1)

    def _focus_neighbour(self, step: int) -> None:
        if self.current is not None:
            pane = self.panes[(self.panes.index(self.current) + step) % len(self.panes)]
            self.screen.set_focus(pane, scroll_visible=False)


def make_panes(state: State, probes: Sequence[Probe], options: Options) -> list[PaneWidget]:
    """The probes' panes, by number; the one that ``options`` name is the first to have the focus, else a table."""
    places = [Place(pane, probe.name) for probe in probes for pane in panes_of(probe)]
    places.sort(key=lambda p: p.pane.number)
    panes = [TablePane(state, p, options.sort) if p.pane.table else PaneWidget(state, p) for p in places]
    table = first_table(panes)
    if table is not None:
        table.reversed = options.reverse
    first = table or (panes[0] if panes else None)
    first = next((p for p in panes if p.pane.name == options.pane), first)
    state.focused = first.pane.name if first else ""
    sharing = [p.pane.name for p in panes if shares_place(p.pane)]
    state.chosen = state.focused if state.focused in sharing else next(iter(sharing), "")
    return panes


def first_table(panes: Sequence[PaneWidget]) -> TablePane | None:
    """The table whose order and page a snapshot keeps."""
    return next((p for p in panes if isinstance(p, TablePane)), None)

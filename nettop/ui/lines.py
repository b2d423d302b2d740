"""A widget that is nothing but styled lines, and redraws only the cells that changed."""

from __future__ import annotations

from itertools import takewhile

from rich.segment import Segment
from textual.dom import DOMNode
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from nettop.render.canvas import Line, Role, Span
from nettop.render.draw import cells, cells_of, pad
from nettop.ui.state import State
from nettop.ui.theme import Palette

BLANK: Line = ()
_ON_GROUND = frozenset({"plain", "dim", "label", "value"})
_PLAIN = str.maketrans("µ→·›…⇄●", "u>->~=*")


def _plain(text: str) -> str:
    """A text for terminals that know ASCII alone, of the same width where its characters are one cell wide."""
    return text if text.isascii() else text.translate(_PLAIN).encode("ascii", "replace").decode()


class LineWidget(Widget):
    """Lines in, strips out.  Subclasses give ``draw``; ``redraw`` is called when what they draw has changed.

    Textual's style cache, borders and padding are bypassed: every line is as wide as the widget, and a refresh
    names the cells that differ from the last one, so the terminal gets those and no more.
    """

    ALLOW_SELECT = False

    def __init__(self, state: State, name: str | None = None) -> None:
        super().__init__(name=name)
        self.state = state
        self._lines: list[Line] = []
        self._strips: list[Strip] = []
        self._drawn: tuple[Size, Palette] | None = None

    def draw(self, width: int, height: int) -> list[Line]:
        """At most ``height`` lines of at most ``width`` cells."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Draw anew and have the changed cells painted."""
        if not self.size or not self.is_attached:
            return
        if self._drawn != (self.size, self.state.palette):
            self._drawn = None
            self.refresh()
            return
        before = self._lines
        self._build()
        changed = [
            Region(left, y, right - left, 1)
            for y, (old, new) in enumerate(zip(before, self._lines, strict=True))
            for left, right in [_difference(old, new)]
            if right > left
        ]
        if changed:
            self.refresh(*changed)

    def _build(self) -> None:
        width, height = self.size
        lines = [pad(line, width) for line in self.draw(width, height)[:height]]
        if not self.state.unicode:
            lines = [tuple(Span(_plain(s.text), s.role) for s in line) for line in lines]
        lines += [pad(BLANK, width)] * (height - len(lines))
        same = len(lines) == len(self._lines) and self._drawn == (self.size, self.state.palette)
        style = self.state.palette.style
        self._strips = [
            self._strips[y]
            if same and line == self._lines[y]
            else Strip([Segment(s.text, style(s.role)) for s in _joined(line)], width)
            for y, line in enumerate(lines)
        ]
        self._lines = lines
        self._drawn = (self.size, self.state.palette)

    def render_lines(self, crop: Region) -> list[Strip]:
        if self._drawn != (self.size, self.state.palette):
            self._build()
        x1, x2 = crop.column_span
        strips = [self._strips[y] for y in crop.line_range if 0 <= y < len(self._strips)]
        strips += [Strip.blank(self.size.width)] * (crop.height - len(strips))
        return strips if (x1, x2) == (0, self.size.width) else [strip.crop(x1, x2) for strip in strips]


def redraw_all(node: DOMNode) -> None:
    """Everything below it that is made of lines; only cells that changed go to the terminal."""
    for widget in node.query(LineWidget):
        widget.redraw()


def _joined(line: Line) -> list[Span]:
    """The same cells in as few spans as possible: each costs forty bytes of escape sequences on its way out.

    Blanks take the role of what is before them, if that is shown on the same ground.
    """
    joined: list[Span] = []
    for span in line:
        if joined:
            before = joined[-1]
            blank = span.role in _ON_GROUND and _on_ground(before.role) and not span.text.strip(" ")
            if blank or span.role == before.role:
                joined[-1] = Span(before.text + span.text, before.role)
                continue
        if span.text:
            joined.append(span)
    return joined


def _on_ground(role: Role) -> bool:
    """Whether a role leaves the ground as it is: not the cursor, not a row under it, not a heat on another."""
    return role != "cursor" and not role.endswith("+row") and role.count(":") < 2


def _difference(old: Line, new: Line) -> tuple[int, int]:
    """The columns between which two lines of one width differ."""
    if old == new:
        return 0, 0
    left, right = _common(old, new), _common(old[::-1], new[::-1])
    return left, cells_of(new) - right


def _common(old: Line, new: Line) -> int:
    """The width of what two lines begin with alike."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False))
    return sum(cells(span.text) for span, _ in alike)


def thumb_of(first: int, room: int, total: int) -> range:
    """Where the scroll mark stands among ``room`` lines that show ``total`` ones from ``first`` on."""
    if total <= room:
        return range(0)
    size = max(room * room // total, 1)
    top = (room - size) * first // (total - room)
    return range(top, top + size)


def framed(
    inner: list[Line],
    width: int,
    height: int,
    title: Line,
    subtitle: Line,
    role: str,
    unicode: bool,
    thumb: range,
) -> list[Line]:
    """Lines with a border round them, ``title`` and ``subtitle`` in its top edge.

    ``thumb``: the inner lines beside which the right edge is drawn heavy, where there is more than fits.
    """
    corners, flat, tall, heavy = ("╭╮╰╯", "─", "│", "┃") if unicode else ("++++", "-", "|", "#")
    room = width - 4 - cells_of(title)
    right = () if room < 4 else pad(subtitle, room - 2) if cells_of(subtitle) > room - 2 else subtitle
    end = (flat if right else "") + corners[1]
    rule = width - 2 - cells_of((*title, *right)) - len(end)
    head = (Span(corners[0] + flat, role), *title, Span(flat * rule, role), *right, Span(end, role))
    lines: list[Line] = [head]
    edge, blank = Span(tall, role), Span(" ")
    for row in range(height - 2):
        line = pad(inner[row] if row < len(inner) else BLANK, max(width - 4, 0))
        lines.append((edge, blank, *line, blank, Span(heavy, "accent") if row in thumb else edge))
    lines.append((Span(corners[2] + flat * max(width - 2, 0) + corners[3], role),))
    return lines

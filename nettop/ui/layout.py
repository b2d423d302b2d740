"""Where each pane goes: a pure function from the size of the terminal to boxes.

A band is a row of panes on a wide terminal; on a narrow one each pane is a row of its own.  Where they do not all fit,
a pane of the top band first takes its compact form, if it has one; then the others except tables share one place,
which the chosen one gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nettop.render.canvas import Pane, shares

WIDE = 100  # columns from which panes stand side by side
MIN_WIDTH, MIN_HEIGHT = 40, 10  # of the whole terminal
_FRAME = 2
_MIN_FLEXIBLE = 4 + _FRAME  # a table's title and three rows
_MIN_FIXED = 3 + _FRAME
_BANDS = {"top": 0, "middle": 1, "bottom": 2}


@dataclass(frozen=True)
class Box:
    """A place on the screen in cells; ``compact`` has no frame."""

    x: int
    y: int
    width: int
    height: int
    compact: bool = False


def too_small(width: int, height: int) -> bool:
    """Whether a terminal has no room for anything but a word about it."""
    return width < MIN_WIDTH or height < MIN_HEIGHT


def shares_place(pane: Pane) -> bool:
    """Whether a pane is one of those that share a place on a small screen: no table, and not the summary at the top."""
    return pane.table is None and not _summary(pane)


def _summary(pane: Pane) -> bool:
    """Whether a pane stays on a small screen in its compact form."""
    return pane.compact is not None and pane.band == "top"


def arrange(
    panes: Sequence[Pane], width: int, height: int, focused: str, chosen: str, zoomed: bool
) -> dict[str, Box]:
    """Boxes of the panes that are visible, by name, in ``width`` x ``height`` cells."""
    if zoomed and any(pane.name == focused for pane in panes):
        return {focused: Box(0, 0, width, height)}
    rows, compact = _choose(panes, width, height, focused, chosen)
    boxes: dict[str, Box] = {}
    y = 0
    for pane in compact:
        boxes[pane.name] = Box(0, y, width, 2, compact=True)
        y += 2
    heights = _heights(rows, height - y)
    for row, tall in zip(rows, heights, strict=True):
        x = 0
        total = sum(pane.weight for pane in row)
        before = 0
        for pane in row:
            before += pane.weight
            right = width * before // total
            boxes[pane.name] = Box(x, y, right - x, tall)
            x = right
        y += tall
    return boxes


def _choose(
    panes: Sequence[Pane], width: int, height: int, focused: str, chosen: str
) -> tuple[list[list[Pane]], list[Pane]]:
    """Rows of framed panes, and the compact ones above them."""
    ordered = sorted(panes, key=lambda p: (_BANDS[p.band], p.number))
    rows = _rows(ordered, width)
    if _wanted_height(rows) <= height:
        return rows, []
    compact = [pane for pane in ordered if _summary(pane)]
    rows = _rows([pane for pane in ordered if not _summary(pane)], width)
    room = height - 2 * len(compact)
    if _wanted_height(rows) <= room:
        return rows, compact
    # Tables stay; of the others, the row that holds the chosen one.
    kept = [row for row in rows if any(not shares_place(p) or p.name == chosen for p in row)]
    if _min_height(kept) <= room:
        return kept, compact
    single = [row for row in rows if any(p.name == focused for p in row)] or kept[:1]
    if _min_height(single) > room:
        compact = []
    return single, compact


def _rows(ordered: Sequence[Pane], width: int) -> list[list[Pane]]:
    if width < WIDE:
        return [[pane] for pane in ordered]
    rows: dict[str, list[Pane]] = {}
    for pane in ordered:
        rows.setdefault(pane.band, []).append(pane)
    return list(rows.values())


def _flexible(row: Sequence[Pane]) -> bool:
    return any(pane.height == 0 for pane in row)


def _wanted_height(rows: Sequence[Sequence[Pane]]) -> int:
    return sum(_MIN_FLEXIBLE + 3 if _flexible(row) else max(p.height for p in row) + _FRAME for row in rows)


def _min_height(rows: Sequence[Sequence[Pane]]) -> int:
    return sum(_MIN_FLEXIBLE if _flexible(row) else _MIN_FIXED for row in rows)


def _heights(rows: Sequence[Sequence[Pane]], height: int) -> list[int]:
    """Every row its wanted height, the flexible ones what is left; where that is too little, the fixed ones shrink."""
    if not rows:
        return []
    heights = [0 if _flexible(row) else max(p.height for p in row) + _FRAME for row in rows]
    flexible = [index for index, row in enumerate(rows) if _flexible(row)]
    missing = _MIN_FLEXIBLE * len(flexible) - (height - sum(heights))
    for index in reversed(range(len(rows))):
        if missing <= 0:
            break
        if index not in flexible:
            give = min(missing, heights[index] - _MIN_FIXED)
            heights[index] -= max(give, 0)
            missing -= max(give, 0)
    left = height - sum(heights)
    for index, share in zip(flexible or [-1], shares(left, len(flexible) or 1), strict=True):
        heights[index] += share
    return heights

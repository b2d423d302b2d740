"""Which of a table's columns have room in a width, and where each stands: on the screen and in text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from nettop.render.canvas import Column

_STRETCH_MAX = 30  # cells that a column of the screen grows by: no name gets more readable


@dataclass(frozen=True)
class Placed:
    """A column where it stands, in cells."""

    column: Column
    x: int
    width: int


def place_columns(
    columns: Sequence[Column], width: int, keep: str = "", gap: int | None = None
) -> tuple[Placed, ...]:
    """As many columns as fit into ``width`` cells, ``keep`` among them, those that stretch widened where there is room.

    ``gap`` cells between two; None: one or, where there is room, two, and one more between a word and a figure.
    Depends on nothing but these, so that nothing jumps when a value grows.
    """
    chosen = _chosen(columns, width, keep, gap or 1)
    spare = width - sum(c.width for c in chosen) - (gap or 1) * (len(chosen) - 1)
    turns: set[str] = set()
    most = max(spare, 0) if gap else _STRETCH_MAX
    if gap is None:
        gap = 1
        if spare >= len(chosen) - 1 + 12:
            gap, spare = 2, spare - (len(chosen) - 1)
        # A figure that follows a word is set off from it.
        turns = {b.key for a, b in pairwise(chosen) if (a.align, b.align) == ("left", "right")}
        turns = turns if 0 < len(turns) <= spare else set()
        spare -= len(turns)
    wide = [c.key for c in chosen if c.stretch]
    shares = _shares(max(spare, 0), len(wide))
    extra = {key: min(share, most) for key, share in zip(wide, shares, strict=True)}
    placed: list[Placed] = []
    x = 0
    for column in chosen:
        x += column.key in turns
        size = min(column.width + extra.get(column.key, 0), max(width - x, 0))
        placed.append(Placed(column, x, size))
        x += size + gap
    return tuple(placed)


def _chosen(columns: Sequence[Column], width: int, keep: str, gap: int) -> list[Column]:
    """Those that fit: the highest priority number leaves first, of equal ones the last; priority 0 stays."""
    chosen = list(columns)

    def rank(index: int) -> tuple[int, int]:
        return (0 if chosen[index].key == keep else chosen[index].priority, index)

    while len(chosen) > 1 and sum(c.width for c in chosen) + gap * (len(chosen) - 1) > width:
        worst = max(range(len(chosen)), key=rank)
        if rank(worst)[0] == 0:
            break
        del chosen[worst]
    return chosen


def _shares(cells: int, count: int) -> list[int]:
    """Cells divided among so many, none left over."""
    return [cells * (i + 1) // count - cells * i // count for i in range(count)]

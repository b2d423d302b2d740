"""How the stages pane is drawn."""

from __future__ import annotations

from nettop.probes.view import Canvas, History, Line, Pane, line


def draw(history: History, canvas: Canvas) -> list[Line]:
    return [line("stages")]


PANES = (Pane("stages", "Stages", 4, "bottom", draw=draw),)

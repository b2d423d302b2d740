"""What `enter` on a row opens: pages that look across probes, which therefore know nothing of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nettop.analysis import flow_page
from nettop.probes.base import Probe
from nettop.render.canvas import Detail, Pane


@dataclass(frozen=True)
class Page:
    """The page of a table's row, and what ``?`` says of it."""

    draw: Detail
    help: str


PAGES: Mapping[str, Page] = {"flows": Page(flow_page.detail, flow_page.HELP)}  # by the table's pane


def panes_of(probe: Probe) -> tuple[Pane, ...]:
    """The probe's panes, each with its rows' page where there is one."""
    return tuple(_with_page(pane) for pane in probe.panes)


def _with_page(pane: Pane) -> Pane:
    page = PAGES.get(pane.name)
    if page is None or pane.table is None:
        return pane
    return replace(pane, table=replace(pane.table, detail=page.draw, detail_help=page.help))

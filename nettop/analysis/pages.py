"""What `enter` on a row opens: pages that look across probes, which therefore know nothing of them."""

from __future__ import annotations

from dataclasses import replace

from nettop.analysis import flow_page
from nettop.probes.base import Probe
from nettop.render.canvas import Pane


def panes_of(probe: Probe) -> tuple[Pane, ...]:
    """The probe's panes, each with its rows' page where there is one."""
    return tuple(_with_page(pane) for pane in probe.panes)


def _with_page(pane: Pane) -> Pane:
    if pane.name != "flows" or pane.table is None:
        return pane
    return replace(pane, table=replace(pane.table, detail=flow_page.detail, detail_help=flow_page.HELP))

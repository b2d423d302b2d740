"""Somebody else's strings on the screen: every cell holds data, and nothing else of the screen is moved by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import frames
import pytest
from app_driver import Heard, running
from fakes import HOSTILE, NEVER

from nettop.core.frame import Frame, ProbeStatus
from nettop.settings import Settings

# Those that a screen draws in ways of their own; tests/unit/test_hostile_strings.py has all.
DRAWN = ("escape", "eighth-bit controls", "bidi", "no width", "combining flood", "markup", "lines", "long")


def hostile(frame: Frame, text: str) -> Frame:
    """The same frame with this text in each place where somebody else may write."""
    sections: dict[str, Any] = dict(frame.sections)
    flows, irq = sections["flows"], sections["irq"]
    rows = flows.rows.copy()
    rows["process"]["name"] = text.encode("utf-8", "replace")[:15]
    subnets = tuple(replace(subnet, prefix=text) for subnet in flows.rtt.subnets)
    sections["flows"] = replace(flows, rows=rows, rtt=replace(flows.rtt, subnets=subnets))
    sections["irq"] = replace(
        irq,
        hard=tuple(replace(line, name=text) for line in irq.hard),
        poll=tuple(replace(poll, device=text) for poll in irq.poll),
    )
    return replace(
        frame,
        host=text,
        interface=text,
        filter=text,
        notes=(text, text),
        sections=sections,
        probes={**frame.probes, "stages": ProbeStatus("failed", text)},
    )


class Named(Heard):
    """A DNS server of somebody else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names = Mock(of=lambda address: text, changed=0)


@pytest.mark.parametrize("name", DRAWN)
async def test_a_hostile_string_is_data_on_every_page(name: str) -> None:
    text = HOSTILE[name]
    made = [hostile(frame, text) for frame in frames.frames(3)]
    async with running(frames=made, heard=Named(text), options=Settings(names=True)) as d:
        pages = [d.rows()]
        for keys in (("z",), ("z", "3", "enter"), ("escape", "?"), ("escape", "/")):
            await d.press(*keys)
            pages.append(d.rows())
        if name == "markup":  # as it is written, and not in red
            assert any("[red]x[/red]" in row for page in pages for row in page)
    for page in pages:
        assert len(page) == 40
        for row in page:
            assert not set(row) & NEVER, ascii(row)
            assert "\u0301\u0301\u0301" not in row

"""Somebody else's strings on the screen: every cell holds data, and nothing else of the screen is moved by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import frames
import pytest
from app_driver import Heard, running

from nettop.core.frame import Frame, ProbeStatus
from nettop.ui.commands import Options

HOSTILE = {
    "escape": "\x1b[31m\x1b]0;x\x07",
    "eighth-bit controls": "\x9b31m\x85\x9d",
    "bidi": "\u202e\u2066\u200f\u061cabc",
    "no width": "a\u200b\u200d\ufeff\u00ad\u3164b",
    "combining flood": "a" + "\u0301" * 60,
    "markup": "[red]x[/]",
    "lines": "a\nb\u2028c",
    "long": "x" * 10_000,
}
NEVER = {*map(chr, [*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])}
NEVER |= set("\u200b\u200d\u200f\u061c\ufeff\u00ad\u2028\u2029\u3164")


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
        self.text = text

    def name_of(self, address: bytes) -> str:
        return self.text


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_string_is_data_on_every_page(name: str) -> None:
    text = HOSTILE[name]
    made = [hostile(frame, text) for frame in frames.frames(3)]
    async with running(frames=made, heard=Named(text), options=Options(names=True)) as d:
        pages = [d.rows()]
        for keys in (("z",), ("z", "3", "enter"), ("escape", "?"), ("escape", "/")):
            await d.press(*keys)
            pages.append(d.rows())
        if name == "markup":  # as it is written, and not in red
            assert any("[red]x[/]" in row for page in pages for row in page)
    for page in pages:
        assert len(page) == 40
        for row in page:
            assert not set(row) & NEVER, ascii(row)
            assert "\u0301\u0301\u0301" not in row

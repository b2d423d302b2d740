"""Whole screens as text.  NETTOP_UPDATE_SNAPSHOTS=1 writes them anew; look at the difference before committing it."""

import os
from dataclasses import replace
from pathlib import Path

import frames
import pytest
from app_driver import Refusing, running
from replay_driver import eventful, playing, recorded

from nettop.core.frame import Health, ProbeStatus

SNAPSHOTS = Path(__file__).parent / "snapshots"
UPDATE = os.environ.get("NETTOP_UPDATE_SNAPSHOTS", "") not in ("", "0")
SIZES = ((120, 40), (80, 24))

SCREENS: dict[str, list[str]] = {
    "live": [],
    "flow": ["j", "enter"],
    "throughput": ["1", "z"],
    "rtt": ["2", "z", "h", "h", "h", *"jjjjjjj"],
    "help": ["?"],
    "sort": ["s"],
    "filter": ["/", *"nginx"],
    "filter-error": ["/", *"prot tcp", "enter"],
    "paused": ["[", "[", "["],
    "stages": ["4"],
    "stages-zoomed": ["4", "z"],
    "stage": ["4", "z", "j", "j", "j", "j", "j", "enter", *"hhhhhhhh", "k", "k"],
    "irq": ["5"],
    "irq-zoomed": ["5", "z"],
    "bytes": ["u"],
}


def compare(name: str, text: str) -> None:
    path = SNAPSHOTS / f"{name}.txt"
    if UPDATE:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} differs; NETTOP_UPDATE_SNAPSHOTS=1 accepts it"


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", SCREENS)
async def test_screen(name, size):
    async with running(*size, frames=frames.frames(130)) as d:
        await d.press(*SCREENS[name])
        compare(f"{name}-{size[0]}x{size[1]}", d.text())


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_bad_day(size):
    """A probe that failed, losses, an interface that went."""
    frame = frames.frame(40)
    probes = dict(frame.probes)
    probes["throughput"] = ProbeStatus(
        "failed", "OSError: [Errno 12] Cannot allocate memory\nThe log has more."
    )
    probes["irq"] = ProbeStatus(
        "unavailable", "irq_handler_entry: this kernel has none of the ways to watch it"
    )
    frame = replace(
        frame,
        probes=probes,
        health=Health(
            {"lost_events": 1204, "evicted_flows": 37, "untracked_packets": 0}, None, 31_000_000, 92_000_000
        ),
        notes=("eth0 is gone; waiting for it to come back",),
    )
    async with running(*size, frames=[*frames.frames(40), frame], heard=Refusing()) as d:
        compare(f"bad-day-{size[0]}x{size[1]}", d.text())


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_replay(size, tmp_path):
    """At a mark, of three."""
    async with playing(recorded(tmp_path, eventful()), *size, start=40) as p:
        compare(f"replay-{size[0]}x{size[1]}", p.text())


async def test_small():
    async with running(30, 8, frames=frames.frames(3)) as d:
        compare("small-30x8", d.text())


async def test_plain(monkeypatch):
    """No colour, no Unicode."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("nettop.ui.app.draws_unicode", lambda charset: False)
    async with running(120, 40, frames=frames.frames(130)) as d:
        compare("plain-120x40", d.text())

"""What the screen asks for: snapshots and recordings in the current directory, values for the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import traffic

from nettop.core.errors import NettopError
from nettop.core.frame import Frame
from nettop.probes.flows.rows import ROW
from nettop.probes.flows.section import Flows
from nettop.record.recording import Recorder, Recording, View
from nettop.session import Session
from nettop.settings import Control, Settings


class Frames:
    """A source of a few frames, which may fail in the end."""

    def __init__(self, count: int, failure: NettopError | None = None) -> None:
        self.made = [traffic(i) for i in range(count)]
        self.failure = failure

    async def frames(self) -> AsyncIterator[Frame]:
        for one in self.made:
            yield one
        if self.failure:
            raise self.failure


async def test_a_recording_holds_the_frames_from_its_start_to_its_end(tmp_path):
    source, session = Frames(5), Session(Settings(), folder=tmp_path)
    path = ""
    async for one in session.watched(source.frames()):
        if one == source.made[1]:
            path = await session.record(True)
            assert session.recording == path
        if one == source.made[3]:
            assert await session.record(False) == path
            assert session.recording == ""
    with Recording(path) as recording:
        assert list(recording.frames()) == source.made[2:4]


async def test_a_recording_that_fails_is_said_and_frames_go_on(tmp_path, monkeypatch):
    def full(self: Recorder, one: Frame) -> None:
        raise NettopError("No space left on device")

    monkeypatch.setattr(Recorder, "record", full)
    source, session = Frames(3), Session(Settings(), folder=tmp_path)
    session.start_recording(str(tmp_path / "x"))
    shown = [f async for f in session.watched(source.frames())]
    assert len(shown) == 3
    assert all("No space left" in f.notes[0] for f in shown)
    assert session.recording == ""


async def test_a_snapshot_holds_the_history(tmp_path):
    session, frames = Session(Settings(), folder=tmp_path), Frames(4).made
    session.look = View(sort="rtt", reverse=True, filter="nginx", focus="7", pane="flows")
    path = Path(await session.snapshot(frames))
    assert path.parent == tmp_path
    with Recording(str(path)) as recording:
        assert list(recording.frames()) == frames
        assert recording.header.view == View("rtt", True, "nginx", "7", "flows")


async def test_a_second_file_in_the_same_second_gets_a_number(tmp_path):
    session, frames = Session(Settings(), folder=tmp_path), Frames(1).made
    names = [Path(await session.snapshot(frames)).name for _ in range(3)]
    assert len(set(names)) == 3
    assert names[1].endswith("-2.snapshot.json.gz")


async def test_after_a_reset_totals_start_anew_on_the_screen_and_not_in_the_recording(tmp_path):
    source, session = Frames(0), Session(Settings(), Control(), folder=tmp_path)
    source.made = [traffic(i, 1000 * (i + 1)) for i in range(3)]
    await session.reset()  # before the first frame: there is nothing to start from
    session.start_recording(str(tmp_path / "x"))
    totals = []
    async for one in session.watched(source.frames()):
        totals.append(one.sections["throughput"].rx.bytes_total)
        if len(totals) == 2:
            await session.reset()
    session.close()
    assert totals == [1000, 2000, 1000]
    with Recording(str(tmp_path / "x")) as recording:
        assert [f.sections["throughput"].rx.bytes_total for f in recording.frames()] == [1000, 2000, 3000]


async def test_nothing_to_write_yet_is_said(tmp_path):
    session = Session(Settings(), folder=tmp_path)
    for asked in (session.snapshot([]), session.record(True)):
        with pytest.raises(NettopError, match="no frame yet"):
            await asked


async def test_a_known_problem_is_shown_and_another_one_ends_the_screen(tmp_path):
    problem = NettopError("line 4: the file ends too early")
    session = Session(Settings(), problem=problem, folder=tmp_path)
    shown = [f async for f in session.watched(Frames(2, problem).frames())]
    assert [f.notes for f in shown] == [("line 4: the file ends too early",)] * 2
    with pytest.raises(NettopError, match="gone"):
        [f async for f in session.watched(Frames(2, NettopError("gone")).frames())]


def test_only_a_running_kernel_has_an_interval_and_a_focus():
    control = Control()
    session = Session(Settings(), control)
    assert {"interval", "focus"} <= session.offers
    session.set_interval(0.5)
    assert control.delay == 0.5
    assert not {"interval", "focus"} & Session(Settings()).offers


async def test_the_flow_in_focus_is_looked_up_in_the_newest_frame(tmp_path):
    rows = np.zeros(2, ROW)
    rows["id"], rows["protocol"], rows["local_port"], rows["remote_port"] = (5, 7), 6, 443, (40_000, 40_001)
    rows["vlan"], rows["vlan_inner"] = 12, 34
    rows["local"][1], rows["remote"][1] = range(16), range(16, 32)
    source, control = Frames(1), Control()
    source.made = [replace(f, sections={"flows": Flows(rows)}) for f in source.made]
    session = Session(Settings(), control, folder=tmp_path)
    session.set_focus(7)
    assert control.focus is None  # no frame yet
    assert [f async for f in session.watched(source.frames())]
    session.set_focus(7)
    assert control.focus
    assert control.focus.id == 7
    key = control.focus.key
    assert key["local"] + key["remote"] == bytes(range(32))
    assert (key["local_port"], key["remote_port"]) == (443, 40_001)
    assert key["protocol"] == 6 | 12 << 8 | 34 << 20
    session.set_focus(8)
    assert control.focus is None
    session.set_focus(5)
    session.set_focus(0)
    assert control.focus is None


def test_the_screen_gets_the_settings_as_they_are():
    chosen = Settings(delay=2.0, sort="rx", units="bytes", history=60.0, theme="x")
    assert Session(chosen).settings == chosen

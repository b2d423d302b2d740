"""A recording on the screen: the time line, its keys and its mouse, and the history after a jump."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import frames
import pytest
from replay_driver import eventful, playing, recorded

from nettop.core.errors import NettopError
from nettop.record.recording import Header, Recording, Replay, View, write_snapshot
from nettop.render.canvas import text_of
from nettop.ui.keys import rebound
from nettop.ui.replay import SPEEDS, Past, TimeLine, next_mark, time_line
from nettop.ui.state import FRAMES_KEPT, State, neighbour
from nettop.ui.table import TablePane
from nettop.ui.theme import NETTOP, Palette

FIXTURES = Path(__file__).resolve().parents[1] / "unit" / "recordings"


@pytest.fixture(scope="module")
def event_file(tmp_path_factory) -> str:
    with recorded(tmp_path_factory.mktemp("eventful"), eventful()) as recording:
        return recording.path


@pytest.fixture
def events(event_file) -> Recording:
    return Recording(event_file)


async def test_the_time_line_says_where_one_is(events):
    async with playing(events, start=30) as p:
        assert "paused" in p.bottom()
        for said in ("00:31 / 01:00", "x1", "UTC"):
            assert said in p.bottom()
        assert p.bottom().count("┿") == 3
        assert p.bottom().count("●") == 1
        assert "00:31" not in p.rows()[0]


@pytest.mark.parametrize("size", [(40, 10), (60, 16), (80, 24), (200, 50)])
async def test_it_fits_every_terminal(events, size):
    async with playing(events, *size, start=20) as p:
        assert all(len(row) == size[0] for row in p.rows())
        assert "00:21 / 01:00" in p.bottom()


def test_it_has_the_width_that_it_is_given(events):
    with events as recording:
        for width, index in product(range(1, 160), (0, 19, 40, 59)):
            replay = Replay(recording)
            replay.seek(index)
            text, bar = time_line(replay, width, unicode=True)
            assert len(text_of(text)) <= width
            assert bar.stop <= width


async def test_it_plays_and_pauses(tmp_path):
    made = [frames.frame(step, interval=0.3) for step in range(100)]
    async with playing(recorded(tmp_path, made), start=None) as p:
        assert "playing" in p.bottom()
        await p.passes(p.replay.shown + 2)
        await p.press("space")
        await p.settle()
        there = p.replay.shown
        assert "paused" in p.bottom()
        assert "space resume" in p.rows()[-1]
        await p.pilot.pause(0.5)
        assert p.replay.shown <= there + 1  # one may have been on its way
        await p.press("space")
        await p.passes(p.replay.shown + 2)
        assert "playing" in p.bottom()


async def test_steps_and_ends(events):
    async with playing(events, start=10) as p:
        await p.press("]", "]")
        await p.comes(12)
        await p.press("[")
        await p.comes(11)
        await p.press("end")
        await p.comes(59)
        assert p.bottom().split()[0] == "end"
        await p.press("home")
        await p.comes(0)
        assert "paused" in p.bottom()
        await p.press("G")  # rows are still reached
        assert p.main.body.current.at == len(p.main.body.current._ids) - 1


async def test_at_the_end_it_starts_again(events):
    async with playing(events, start=59) as p:
        assert "end" in p.bottom()
        await p.press("space")
        await p.until(lambda: p.replay.shown < 30)
        assert "playing" in p.bottom()


async def test_at_an_end_that_was_played_to_it_starts_again_and_plays(event_file):
    async with playing(Recording(event_file), start=None) as p:
        p.replay.speed = float("inf")
        await p.passes(59)
        assert p.bottom().split()[0] == "end"
        p.replay.speed = 1.0
        await p.press("space")
        assert p.replay.position < 30
        assert not p.main.stopped
        assert "playing" in p.bottom()


async def test_speed(events):
    async with playing(events) as p:
        await p.press("}", "}")
        assert p.replay.speed == 4
        assert "x4" in p.bottom()
        await p.press("{", "{", "{")
        assert p.replay.speed == 0.5
        assert "x0.5" in p.bottom()


def test_speeds_are_a_ladder():
    assert [neighbour(SPEEDS, s, 1) for s in SPEEDS] == [*SPEEDS[1:], SPEEDS[-1]]
    assert [neighbour(SPEEDS, s, -1) for s in SPEEDS] == [SPEEDS[0], *SPEEDS[:-1]]


async def test_marks_are_found_by_key_and_named(events):
    async with playing(events) as p:
        for index, text in ((20, "filter tcp"), (40, "a gap of 1 minute"), (50, "a note")):
            await p.press(")")
            await p.comes(index)
            assert text in p.bottom()
        await p.press("(")
        await p.comes(40)
        assert next_mark(p.replay.recording, 55, 1) == 59
        assert next_mark(p.replay.recording, 20, -1) == 0


async def test_the_mouse_goes_to_where_it_points(events):
    async with playing(events) as p:
        bar = p.app.query_one(TimeLine)._bar
        row = p.app.size.height - 2
        await p.pilot.mouse_down(offset=(bar.stop - 1, row))
        await p.comes(59)
        await p.pilot.hover(offset=(bar.start, row))
        await p.pilot.mouse_up(offset=(bar.start, row))
        await p.pilot.click(offset=((bar.start + bar.stop) // 2, row))
        await p.pilot.pause()
        assert 27 <= p.replay.position <= 33


async def shown_at(recording: Recording, path: Sequence[int]) -> str:
    """The screen after these jumps, one after the other, without the time line and the foot."""
    async with playing(recording, start=path[0]) as p:
        for index in path[1:]:
            p.replay.seek(index)
            await p.comes(index)
        return "\n".join(p.rows()[:-2])


async def test_what_is_shown_depends_on_where_one_is_and_not_on_the_way_there(event_file):
    there = await shown_at(Recording(event_file), [45])
    for way in ([44, 45], [0, 59, 45], [50, 20, 45]):
        assert await shown_at(Recording(event_file), way) == there, way
    async with playing(Recording(event_file), start=None) as p:
        p.replay.speed = float("inf")
        await p.passes(59)
        p.replay.paused = True
        p.replay.seek(45)
        await p.comes(45)
        assert "\n".join(p.rows()[:-2]) == there


async def test_the_history_is_what_a_screen_would_have_kept(tmp_path):
    """Bounded by time, and without what a clock that was set back put out of order."""
    made = [frames.frame(step, interval=20.0) for step in range(60)]
    made[30] = replace(made[30], time_ns=made[10].time_ns + 1)
    async with playing(recorded(tmp_path, made), start=35) as p:
        times = [f.time_ns for f in p.app.state.history]
        kept = [f.time_ns for f in (*made[5:11], made[30], *made[31:36])]
    assert times == kept


async def test_a_frame_that_makes_no_sense_ends_it_with_its_line(tmp_path):
    recording = recorded(tmp_path, eventful()[:10])
    recording.close()
    path = tmp_path / "made.ndjson"
    lines = path.read_text().splitlines(keepends=True)
    lines[5] = lines[5].replace('"host":"db-3"', '"host":3')
    path.write_text("".join(lines))
    async with playing(Recording(str(path)), start=8) as p:
        assert len(p.app.state.history) >= 1  # what is before is not needed
        p.replay.seek(4)
        while p.app.is_running and p.app.failure is None:
            await p.pilot.pause(0.05)
        assert isinstance(p.app.failure, NettopError)
        assert "line 6: host: not a text" in p.app.failure.message


# --- how a file says it was looked at -----------------------------------------------------------------------


async def test_a_snapshot_opens_as_it_was_looked_at(tmp_path):
    made = frames.frames(30)
    flow = int(frames.flow_rows(29)["id"][2])
    view = View("rtt", True, "java", str(flow), "flows", zoomed=True)
    path = tmp_path / "x.snapshot.json"
    write_snapshot(str(path), made, view, 1000)
    async with playing(Recording(str(path)), start=len(made)) as p:
        table = next(w for w in p.main.body.panes if isinstance(w, TablePane))
        assert (table.column.key, table.reversed, table.entered) == ("rtt", True, flow)
        assert p.app.state.zoomed
        assert p.app.state.filter_word == "java"
        assert len(p.app.state.history) == 30
        assert "details" in p.text()
        await p.press("escape")
        assert "match java" in p.text()
        assert "by RTT, reversed" in p.text()
        look = p.main.look()
        assert (look.sort, look.reverse, look.filter, look.pane) == ("rtt", True, "java", "flows")


async def test_an_expression_that_was_applied_is_no_word(tmp_path):
    made = [frames.frame(step, filter="tcp port 443") for step in range(3)]
    path = tmp_path / "x.snapshot.json"
    write_snapshot(str(path), made, View(filter="tcp port 443", pane="irq"), 99)
    async with playing(Recording(str(path)), start=9) as p:
        assert p.app.state.filter_word == ""
        assert "filter tcp port 443" in p.rows()[0]
        assert p.app.state.focused == "irq"


@pytest.mark.parametrize("focus", ["", "0", "77", "-1", "x", "9" * 20, "9" * 300])
async def test_a_focus_that_is_not_there_opens_nothing(tmp_path, focus):
    header = Header(view=View("nosuch", False, "", focus, "nosuch"))
    async with playing(recorded(tmp_path, frames.frames(3), header), start=2) as p:
        assert "Flows" in p.text()
        assert not p.app.state.zoomed


@pytest.mark.parametrize("name", ["nettop-1.ndjson.gz", "nettop-1.snapshot.json.gz"])
async def test_files_of_an_older_nettop_open(name):
    """Made by version 0.1.0 as it was first released."""
    recording = Recording(str(FIXTURES / name))
    assert recording.problem is None
    async with playing(recording, start=len(recording)) as p:
        text = p.text()
        assert "10.77.1.2" in text
        assert "drawing failed" not in text
        for pane in p.main.body.panes:
            p.main.set_focus(pane)
            await p.press("z", "z")
            assert "drawing failed" not in p.text()


async def test_a_filter_over_a_recording_is_a_word(tmp_path):
    async with playing(recorded(tmp_path, frames.frames(3)), start=2) as p:
        await p.press("/", *"tcp port 443", "enter")
        assert "filtered already" in p.text()
        await p.press("escape", "/", *"nginx", "enter")
        assert "match nginx" in p.text()


# --- keys ---------------------------------------------------------------------------------------------------


def test_keys_of_a_replay_are_its_own_only_there():
    live = {a.id: a.keys for a in rebound({}, {"interval"})}
    assert "start" not in live
    assert "home" in live["top"]
    played = {a.id: a.keys for a in rebound({}, {"replay"})}
    assert played["start"] == ("home",)
    assert played["top"] == ("g",)
    assert "longer" not in played


def test_a_replay_may_have_a_key_twice_with_live_but_not_with_itself():
    rebound({"faster": ("+",)})
    with pytest.raises(NettopError, match="slower"):
        rebound({"faster": ("{",)})


async def test_the_help_names_them(tmp_path):
    async with playing(recorded(tmp_path, frames.frames(3)), 140, 60) as p:
        await p.press("?")
        assert "play faster" in p.text()
        assert "a longer interval" not in p.text()


def test_a_jump_in_the_recording_of_a_day_is_quick(tmp_path):
    """86 400 frames: no jump looks at all of them more than once."""
    path, count = tmp_path / "day.ndjson", 86_400
    head = json.dumps(Header().to_json())
    base = {
        "schema": "nettop/1",
        "interval_ns": 10**9,
        "host": "h",
        "interface": "eth0",
        "probes": {},
        "health": {},
    }
    lines = (json.dumps({**base, "time_ns": 10**18 + n * 10**9}) for n in range(count))
    path.write_text("\n".join([head, *lines]) + "\n")
    with Recording(str(path)) as recording:
        replay = Replay(recording, hold=True)
        past = Past(State(Palette(NETTOP.to_color_system().generate(), "none")), replay)
        longest = 0.0
        for index in (count - 1, 0, count // 2, 700, count - 700, 43_210):
            began = time.process_time()
            replay.seek(index)
            assert replay.position == index
            replay.shown = index
            missing = past.arrived(recording.frame(index))
            time_line(replay, 120, True)
            longest = max(longest, time.process_time() - began)
            assert len(missing) <= FRAMES_KEPT
    print(f"longest {longest * 1e3:.1f} ms")
    assert longest < 0.05

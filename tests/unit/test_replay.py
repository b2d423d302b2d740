"""A replay gives the same frames with the same time between them, and obeys the hand on it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes import KINDS, frame, record

from nettop.core.errors import NettopError
from nettop.core.frame import Frame
from nettop.record.recording import Recording, Replay

TICK = 20_000_000  # ns between frames in these recordings


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return made(tmp_path, 10)


def made(folder: Path, count: int, interval_ns: int = TICK) -> Recording:
    frames = (frame(index, interval_ns=interval_ns) for index in range(count))
    return Recording(str(record(folder / f"{count}.ndjson", frames)), KINDS)


def number(shown: Frame) -> int:
    return shown.sections["numbers"].numbers[0]  # type: ignore[attr-defined]


async def collect(frames: AsyncIterator[Frame], limit: int = 1000) -> list[int]:
    shown: list[int] = []
    async for one in frames:
        shown.append(number(one))
        if len(shown) >= limit:
            break
    return shown


async def nothing_comes(frames: AsyncIterator[Frame], seconds: float = 0.2) -> asyncio.Task[Frame]:
    task: asyncio.Task[Frame] = asyncio.ensure_future(anext(frames))  # type: ignore[arg-type]
    done, _ = await asyncio.wait([task], timeout=seconds)
    assert not done
    return task


async def test_all_frames_in_order(recording):
    assert await collect(Replay(recording, float("inf")).frames()) == list(range(10))


@pytest.mark.timing
@pytest.mark.parametrize(("speed", "seconds"), [(1.0, 0.18), (4.0, 0.045)])
async def test_the_time_between_frames_is_that_of_the_recording(recording, speed, seconds):
    start = time.monotonic()
    await collect(Replay(recording, speed).frames())
    took = time.monotonic() - start
    assert took >= seconds * 0.99
    assert took < seconds + 0.5  # a busy machine is late, never early


@pytest.mark.timing
async def test_infinite_speed_does_not_wait(tmp_path):
    start = time.monotonic()
    await collect(Replay(made(tmp_path, 20, 10**10), float("inf")).frames())
    assert time.monotonic() - start < 5


async def test_pause_and_go_on(recording):
    replay = Replay(recording)
    frames = replay.frames()
    assert number(await anext(frames)) == 0
    replay.paused = True
    waiting = await nothing_comes(frames)
    replay.paused = False
    assert number(await waiting) == 1


async def test_after_a_long_pause_the_next_frame_still_takes_its_time(tmp_path):
    replay = Replay(made(tmp_path, 3, 500_000_000))
    frames = replay.frames()
    await anext(frames)
    replay.paused = True
    waiting = await nothing_comes(frames, 0.6)
    replay.paused = False
    done, _ = await asyncio.wait([waiting], timeout=0.25)
    assert not done
    assert number(await waiting) == 1


async def test_steps_while_paused(recording):
    replay = Replay(recording)
    frames = replay.frames()
    await anext(frames)
    replay.step(3)
    assert replay.paused
    assert number(await anext(frames)) == 3
    replay.step(-2)
    assert number(await anext(frames)) == 1
    replay.step(-5)
    assert number(await anext(frames)) == 0
    (await nothing_comes(frames)).cancel()


async def test_steps_add_up_before_they_are_shown(recording):
    replay = Replay(recording)
    frames = replay.frames()
    await anext(frames)
    replay.step(1)
    replay.step(1)
    assert replay.position == 2
    assert number(await anext(frames)) == 2


async def test_seek_and_play_on(recording):
    replay = Replay(recording)
    frames = replay.frames()
    await anext(frames)
    replay.seek(8)
    assert await collect(frames) == [8, 9]
    replay = Replay(recording, float("inf"))
    replay.seek(6)
    frames = replay.frames()
    await anext(frames)
    assert number(await anext(frames)) == 6
    replay.seek(0)
    assert number(await anext(frames)) == 0


async def test_at_the_end_it_holds_if_told_to_and_goes_back(recording):
    replay = Replay(recording, float("inf"), hold=True)
    frames = replay.frames()
    assert await collect(frames, 10) == list(range(10))
    waiting = await nothing_comes(frames)
    replay.seek(4)
    assert number(await waiting) == 4


async def test_speed_can_change_while_it_waits(tmp_path):
    replay = Replay(made(tmp_path, 3, 60 * 10**9))
    frames = replay.frames()
    await anext(frames)
    waiting = await nothing_comes(frames)
    replay.speed = float("inf")
    assert number(await asyncio.wait_for(waiting, 5)) == 1


@pytest.mark.parametrize("speed", [0, -1, float("nan")])
def test_no_such_speed(recording, speed):
    with pytest.raises(ValueError, match="speed"):
        Replay(recording, speed)


def cut(folder: Path) -> Recording:
    """Two frames, and the third in part."""
    path = Path(made(folder, 3).path)
    os.truncate(path, path.stat().st_size - 9)
    return Recording(str(path), KINDS)


async def test_a_recording_that_was_cut_plays_up_to_there_and_then_says_so(tmp_path):
    frames = Replay(cut(tmp_path), float("inf")).frames()
    assert await collect(frames, 2) == [0, 1]
    with pytest.raises(NettopError, match="line 4"):
        await anext(frames)

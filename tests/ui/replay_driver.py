"""The screen over a recording: made of made-up frames, driven by keys, read as text."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import frames
from app_driver import Driven

from nettop.core.frame import Frame
from nettop.probes.base import all_probes
from nettop.record.recording import Header, Recorder, Recording
from nettop.record.sources import Replay
from nettop.session import Session
from nettop.settings import Settings
from nettop.ui.app import NettopApp


def eventful() -> list[Frame]:
    """Sixty seconds: from the 20th on with a filter, before the 40th a gap of a minute, a note from the 50th on."""
    made = [frames.frame(step, extra=0, filter="tcp" if step >= 20 else "") for step in range(60)]
    made[40:] = [replace(f, time_ns=f.time_ns + 60 * frames.SECOND) for f in made[40:]]
    return made[:50] + [replace(f, notes=("eth0 is gone",)) for f in made[50:]]


def recorded(folder: Path, made: Sequence[Frame], header: Header | None = None) -> Recording:
    path = folder / "made.ndjson"
    with Recorder(str(path), header or Header(), 1000, "") as recorder:
        for one in made:
            recorder.write(one)
    return Recording(str(path))


class Player(Driven):
    """The screen over a recording."""

    replay: Replay

    async def comes(self, index: int) -> None:
        """Wait until a frame is there, with all of its history."""
        wanted = self.replay.recording.times_ns[index]
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            await self.settle()
            if self.app.state.history and self.app.state.history[-1].time_ns == wanted:
                loading = [w for w in self.app.workers if w.group == "past"]
                if loading:
                    await self.app.workers.wait_for_complete(loading)
                await self.settle()
                return
        raise AssertionError(f"frame {index} does not come\n{self.text()}")

    async def passes(self, index: int) -> None:
        """Wait until it has played up to a frame."""
        deadline = time.monotonic() + 20
        while self.replay.shown < index and time.monotonic() < deadline:
            await self.pilot.pause(0.05)
        assert self.replay.shown >= index
        await self.settle()

    def bottom(self) -> str:
        return self.rows()[-2]


@asynccontextmanager
async def playing(
    recording: Recording, width: int = 120, height: int = 40, start: int | None = 0
) -> AsyncIterator[Player]:
    """The application over a recording, paused at a frame; playing with ``start`` None."""
    with recording:
        replay = Replay(recording, hold=True)
        if start is not None:
            replay.step(start)
        session = Session(Settings(), replay=replay)
        options = session.options()
        app = NettopApp(session.watched(replay), tuple(all_probes().values()), options, session)
        async with app.run_test(size=(width, height)) as pilot:
            player = Player(app, pilot, None, None)  # type: ignore[arg-type]
            player.replay = replay
            if start is None:
                await player.passes(0)  # it plays on, whether or not this machine keeps up
            else:
                await player.comes(min(start, len(recording) - 1))
            yield player

"""The screen over a recording: made of made-up frames, driven by keys, read as text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import frames
from app_driver import Driven
from fakes import record

from nettop.core.frame import Frame
from nettop.probes.base import all_probes
from nettop.record.recording import Header, Recording, Replay
from nettop.session import Session
from nettop.settings import Settings
from nettop.ui.app import NettopApp


def eventful() -> list[Frame]:
    """Sixty seconds: from the 20th on with a filter, before the 40th a gap of a minute, a note from the 50th on."""
    made = [frames.frame(step, extra=0, filter="tcp" if step >= 20 else "") for step in range(60)]
    made[40:] = [replace(f, time_ns=f.time_ns + 60 * frames.SECOND) for f in made[40:]]
    return made[:50] + [replace(f, notes=("eth0 is gone",)) for f in made[50:]]


def recorded(folder: Path, made: Sequence[Frame], header: Header | None = None) -> Recording:
    return Recording(str(record(folder / "made.ndjson", made, header)))


class Player(Driven):
    """The screen over a recording."""

    replay: Replay

    async def comes(self, index: int) -> None:
        """Wait until a frame is there, with all of its history."""
        wanted, state = self.replay.recording.times_ns[index], self.app.state
        await self.until(lambda: bool(state.history) and state.history[-1].time_ns == wanted)
        if loading := [w for w in self.app.workers if w.group == "past"]:
            await self.app.workers.wait_for_complete(loading)
            await self.settle()

    async def passes(self, index: int) -> None:
        """Wait until it has played up to a frame."""
        await self.until(lambda: self.replay.shown >= index)

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
        shown = session.watched(replay.frames())
        app = NettopApp(shown, tuple(all_probes().values()), session.settings, session)
        async with app.run_test(size=(width, height)) as pilot:
            player = Player(app, pilot, None, None)  # type: ignore[arg-type]
            player.replay = replay
            if start is None:
                await player.passes(0)  # it plays on, whether or not this machine keeps up
            else:
                await player.comes(min(start, len(recording) - 1))
            yield player

"""What the screen can ask for, served: interval, focus, snapshots, recordings.  No toolkit, no kernel."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

from nettop.analysis.baseline import Baseline
from nettop.analysis.focus import focus_on
from nettop.bpf.filter import compile_or_word, link_type
from nettop.core.errors import NettopError
from nettop.core.frame import Frame
from nettop.netdev.link import link_header
from nettop.record import files
from nettop.record.recording import Recorder, Replay, View, file_name, start_recorder, write_snapshot
from nettop.record.redact import this_run
from nettop.settings import Control, Settings
from nettop.ui.commands import Commands, Filtered
from nettop.ui.reverse_dns import ReverseDns


def _looked_at(settings: Settings, replay: Replay) -> tuple[Settings, View]:
    """What shows a recording as its file's header says; the settings' order wins over that."""
    recording = replay.recording
    view, last = recording.header.view, len(recording) - 1
    return replace(
        settings,
        delay=max(round(recording.interval_ns(last) / 50e6), 2) / 20,  # 0.98 s is meant as 1
        sort=settings.sort or view.sort,
        word=view.filter if view.filter != recording.frame(last).filter else "",
    ), replace(
        view,
        reverse=view.reverse and settings.sort in ("", view.sort),
        focus=view.focus if re.fullmatch(r"\d{1,20}", view.focus) else "",
    )


class Session(Commands):
    """The screen's requests, turned into values for the engine and files for the user.

    ``control`` is what the engine reads; None for a replay, which has no interval and no kernel to change.
    ``problem`` is what is known to be wrong with that: it is shown, and does not end the screen.
    """

    def __init__(
        self,
        settings: Settings,
        control: Control | None = None,
        problem: NettopError | None = None,
        folder: Path | None = None,
        replay: Replay | None = None,
    ) -> None:
        self.offers = frozenset(
            {"snapshot", "record"}
            | (set() if settings.redact else {"names"})  # pseudonyms have no reverse DNS
            | ({"interval", "focus", "filter", "reset"} if control else set())
            | ({"replay"} if replay else set())
        )
        self.replay = replay
        self.names = ReverseDns()
        self._settings = self.settings = settings
        if replay is not None:
            self.settings, self.look = _looked_at(settings, replay)
        self._hide = this_run() if settings.redact and replay is None else None  # a replay hides by itself
        self._control = control
        self._problem = problem
        self._folder = folder or Path()
        self._recorder: Recorder | None = None
        self._newest: Frame | None = None
        self._baseline: Baseline | None = None
        self._trouble = problem.message if problem else ""

    @property
    def recording(self) -> str:
        return self._recorder.path if self._recorder else ""

    async def watched(self, frames: AsyncIterator[Frame]) -> AsyncIterator[Frame]:
        try:
            async for frame in frames:
                self._newest = frame
                if self._recorder:
                    await asyncio.to_thread(self._record, self._hidden(frame))
                if self._baseline:
                    frame = self._baseline(frame)
                if self._hide:
                    frame = await asyncio.to_thread(self._hidden, frame)
                yield replace(frame, notes=(*frame.notes, self._trouble)) if self._trouble else frame
        except NettopError as error:
            if error is not self._problem:
                raise

    def _hidden(self, frame: Frame) -> Frame:
        return self._hide.frame(frame) if self._hide else frame

    def _record(self, frame: Frame) -> None:
        assert self._recorder
        try:
            self._recorder.record(frame)
        except NettopError as error:
            self._recorder = None
            self._trouble = f"recording has stopped: {error.message}"

    def start_recording(self, path: str) -> None:
        chosen = self._settings
        view = View(sort=chosen.sort, filter=chosen.filter)
        self._recorder = start_recorder(path, chosen.interface, view, chosen.top, chosen.redact)

    def close(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder:
            recorder.close()

    def set_interval(self, seconds: float) -> None:
        if self._control:
            self._control.delay = seconds

    def set_focus(self, flow: int) -> None:
        """Keep this flow's own histograms and samples; 0, or one that the newest frame does not have: of none."""
        if self._control:
            self._control.focus = focus_on(self._newest, flow)

    async def set_filter(self, text: str) -> Filtered:
        """A pcap-filter expression goes to the kernel; a plain word to the screen, and the kernel's filter goes."""
        if not self._control:
            if " " in text.strip():
                return Filtered(error="what was recorded is filtered already; a plain word searches the rows")
            return Filtered(word=text)
        # It may have been renamed.
        name = self._newest.interface if self._newest else self._settings.interface
        shown = ""
        if self._hide:  # what is typed may be what the screen shows: the real addresses are filtered by
            text = self._hide.real(text)
            shown = self._hide.filter(text)
        try:
            link = link_type(link_header(name))
            program = await asyncio.to_thread(compile_or_word, text, link) if text else None
        except NettopError as error:
            return Filtered(error=error.message)
        except OSError:
            return Filtered(error=f"{name} is gone")
        self._control.filter = text if program else ""
        return Filtered(word="" if program else text, shown=shown if program else "")

    async def reset(self) -> None:
        """Totals on the screen from the newest frame on; a recording keeps what was measured."""
        if self._newest is not None:
            self._baseline = Baseline(self._newest)

    @property
    def filter_wanted(self) -> str | None:
        """What the kernel is to apply; what it was before again, where that could not be."""
        return self._control.filter if self._control else None

    async def snapshot(self, frames: list[Frame]) -> str:
        """Write the frames into a new file in the current directory; its name."""
        if not frames:
            raise NettopError("there is no frame yet", "wait for the first interval to end")
        path = self._new(file_name(frames[-1], "snapshot"))
        view = self.look
        if self._hide:
            view = replace(view, filter=self._hide.filter(self._hide.real(view.filter)))
        await asyncio.to_thread(write_snapshot, path, frames, view, self._settings.top)
        return path

    async def record(self, on: bool) -> str:
        if not on:
            path = self.recording
            await asyncio.to_thread(self.close)
            return path
        if self._newest is None:
            raise NettopError("there is no frame yet", "wait for the first interval to end")
        if not self._recorder:
            self.start_recording(self._new(file_name(self._hidden(self._newest), "recording")))
        return self.recording

    def _new(self, name: str) -> str:
        """The name, or with a number where there is such a file."""
        stem, dot, suffix = name.partition(".snapshot" if ".snapshot" in name else ".ndjson")
        others = (f"{stem}-{number}{dot}{suffix}" for number in count(2))
        paths = (str(self._folder / each) for each in chain([name], others))
        return next(path for path in paths if not files.exists(path))

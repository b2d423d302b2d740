"""What the screen can ask for, served: interval, focus, snapshots, recordings.  No toolkit, no kernel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from nettop.errors import NettopError
from nettop.filter import link_type, understand
from nettop.loader.interface import link_header
from nettop.model import Frame
from nettop.recording import Recorder, View, file_name, header_of, start_recorder, write_snapshot
from nettop.settings import Control, Settings
from nettop.sources import Source
from nettop.ui.control import Commands, Filtered, Options


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
    ) -> None:
        self.offers = frozenset(
            {"snapshot", "record"} | ({"interval", "focus", "filter"} if control else set())
        )
        self._settings = settings
        self._control = control
        self._problem = problem
        self._folder = folder or Path()
        self._recorder: Recorder | None = None
        self._newest: Frame | None = None
        self._trouble = problem.message if problem else ""

    @property
    def recording(self) -> str:
        """Where frames are being recorded to; empty: nowhere."""
        return self._recorder.path if self._recorder else ""

    def options(self) -> Options:
        """What the screen takes from the settings."""
        return replace(Options.of(self._settings), history=self._settings.history)

    async def watched(self, source: Source) -> AsyncIterator[Frame]:
        """The source's frames, recorded on their way when asked for."""
        try:
            async for frame in source.frames():
                self._newest = frame
                if self._recorder:
                    await asyncio.to_thread(self._record, frame)
                yield replace(frame, notes=(*frame.notes, self._trouble)) if self._trouble else frame
        except NettopError as error:
            if error is not self._problem:
                raise

    def _record(self, frame: Frame) -> None:
        assert self._recorder
        try:
            self._recorder.write(frame)
        except NettopError as error:
            self._recorder = None
            self._trouble = f"recording has stopped: {error.message}"

    def start_recording(self, path: str) -> None:
        """Record every frame from now on.  NettopError if there is such a file already."""
        self._recorder = start_recorder(path, self._settings)

    def close(self) -> None:
        """End the recording, if there is one."""
        recorder, self._recorder = self._recorder, None
        if recorder:
            recorder.close()

    def set_interval(self, seconds: float) -> None:
        """Frames every so many seconds from now on."""
        if self._control:
            self._control.delay = seconds

    def set_focus(self, flow: int) -> None:
        """Keep this flow's own histograms and samples."""
        if self._control:
            self._control.focus = flow

    async def set_filter(self, text: str) -> Filtered:
        """A pcap-filter expression goes to the kernel; a plain word to the screen, and the kernel's filter goes."""
        if not self._control:
            return Filtered(word=text)
        try:
            link = link_type(link_header(self._settings.interface))
            program = await asyncio.to_thread(understand, text, link) if text else None
        except NettopError as error:
            return Filtered(error=error.message)
        except OSError:
            return Filtered(error=f"{self._settings.interface} is gone")
        self._control.filter = text if program else ""
        return Filtered(word="" if program else text)

    async def snapshot(self, frames: list[Frame]) -> str:
        """Write the frames into a new file in the current directory; its name."""
        if not frames:
            raise NettopError("there is no frame yet", "wait for the first interval to end")
        path = self._new(file_name(frames[-1], "snapshot"))
        look = self.look
        focus = str(look.focus) if look.focus else ""
        view = View(look.sort, look.reverse, look.filter, focus, look.pane)
        header = header_of(frames[-1], "snapshot", view)
        await asyncio.to_thread(write_snapshot, path, frames, header, self._settings.top, look.sort)
        return path

    async def record(self, on: bool) -> str:
        """Start a recording in the current directory, or stop it; its name."""
        if not on:
            path = self.recording
            await asyncio.to_thread(self.close)
            return path
        if self._newest is None:
            raise NettopError("there is no frame yet", "wait for the first interval to end")
        if not self._recorder:
            self.start_recording(self._new(file_name(self._newest, "recording")))
        return self.recording

    def _new(self, name: str) -> str:
        """The name, or with a number where there is such a file."""
        stem, dot, suffix = name.partition(".snapshot" if ".snapshot" in name else ".ndjson")
        number = 1
        path = self._folder / name
        while path.exists() or path.is_symlink():
            number += 1
            path = self._folder / f"{stem}-{number}{dot}{suffix}"
        return str(path)

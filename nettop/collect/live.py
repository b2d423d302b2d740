"""Frames from the running kernel: programs are loaded, watched, and followed by the loop, one frame an interval.

``Live`` is the loop's.  What blocks is done on one control thread (control_thread.py), which gives back values.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from nettop.bpf.protocol import Stats
from nettop.collect.control_thread import ControlThread, State, Wanted
from nettop.collect.engine import Engine, Pace
from nettop.collect.loader_client import LoaderHandle
from nettop.collect.meter import LiveMeter
from nettop.collect.notes import Notes
from nettop.collect.shedding import LOOK_SECONDS, Shedder
from nettop.collect.unseen import Unseen
from nettop.core.frame import Focus, Frame, ProbeStatus
from nettop.probes.base import all_probes
from nettop.settings import Control, Settings

_FIRST_SECONDS = 0.2  # until the screen's first frame: who opens it wants to see something
_T = TypeVar("_T")


class Live:
    """What the control thread said last, what the user wants, and the engine between them."""

    def __init__(self, handle: LoaderHandle, settings: Settings, control: Control) -> None:
        self._settings = settings
        self._control = control
        self._executor = ThreadPoolExecutor(1, "nettop-control")
        self._thread = ControlThread(handle, settings)  # used by the executor alone
        self._state = State(settings.interface)
        self._focus: Focus | None = None  # what the programs were told
        self._focus_changed = asyncio.Event()
        self._unseen = Unseen()
        self._notes = Notes(lambda: control.delay)
        self._shedder = Shedder(settings.budget)
        self._meter = LiveMeter(
            (os.getpid(), handle.pid), lambda on: self._run(partial(handle.request, Stats(on)))
        )
        self.least: dict[str, int] = {}  # see Wanted
        self._engine: Engine

    async def load(self) -> Engine:
        """Have everything compiled and attached.  NettopError where nothing can work."""
        state = await self._run(partial(self._thread.load, self._control.trace))
        first = None if self._settings.batch else _FIRST_SECONDS
        pace = Pace(self._interval, first)
        self._engine = Engine((), pace, self._meter, self._describe, self._notes)
        self._take(state)
        return self._engine

    async def watch(self) -> None:
        """Have the control thread look after everything, and pass on what the user changes, until cancelled."""
        while True:
            await self._wait()
            wanted = Wanted(self._control.filter, self._shedder.shed, dict(self.least))
            state = await self._run(partial(self._thread.look_after, wanted))
            if wanted.filter == self._control.filter != state.filter:
                self._control.filter = state.filter  # it could not be applied
            self._take(state)
            await self._follow_focus()

    def finished(self, frame: Frame) -> Frame:
        """The engine's frame with its budget; its cost decides what is shed, its counts what is said to be unseen."""
        state = self._state
        self._unseen.look(frame, not (state.filter or state.gone), state.changed)
        return self._shedder.account(frame)

    def look_at_focus(self) -> None:
        """Have ``watch`` follow at once where the user has chosen another flow."""
        if self._control.focus != self._focus:
            self._focus_changed.set()

    def close(self) -> None:
        """Nothing more is asked of the control thread."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _take(self, state: State) -> None:
        """What is so now, as the control thread says."""
        self._state = state
        for note in state.notes:
            self._notes.add(note)
        if state.gone or state.notes:
            self._unseen.reset()
        self._meter.attached(state.hooks, state.share, state.switches)
        for worker in state.opened:
            self._engine.put(worker)
        if state.opened:
            self._shedder.probes_changed(w.probe for w in self._engine.workers if w.status.state == "live")

    async def _wait(self) -> None:
        """Until it is time for the next look; a focus that comes meanwhile does not wait for it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + LOOK_SECONDS
        while (left := end - loop.time()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._focus_changed.wait(), left)
                self._focus_changed.clear()
                await self._follow_focus()

    async def _follow_focus(self) -> None:
        if self._control.focus != self._focus:
            self._focus = self._control.focus
            self._take(await self._run(partial(self._thread.set_focus, self._focus)))

    async def _run(self, job: Callable[[], _T]) -> _T:
        """On the control thread: one change of thread, which costs as much as most jobs."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, job)

    def _interval(self) -> float:
        return self._control.delay * self._shedder.slower

    def _describe(self) -> Frame:
        """A frame with everything but what the workers measure."""
        state = self._state
        asked = self._settings.probes or tuple(all_probes())
        off = {n: ProbeStatus("off", "not asked for: --probes") for n in all_probes() if n not in asked}
        unusable = {name: p.problem for name, p in all_probes().items() if p.problem and name in asked}
        failed = {n: ProbeStatus("failed", detail) for n, detail in {**unusable, **state.failed}.items()}
        about = (state.gone,) if state.gone else (state.trouble, self._unseen.note)
        return Frame(
            time_ns=0,
            interval_ns=0,
            host=socket.gethostname(),
            interface=state.interface,
            filter=state.filter,
            probes={**off, **failed},
            notes=tuple(n for n in (*about, *self._notes.current(), state.filter_note) if n),
        )


async def frames(handle: LoaderHandle, settings: Settings, control: Control) -> AsyncIterator[Frame]:
    """Frames of the running kernel, one an interval, for ever.  Closing the iterator lets the loader go."""
    live = Live(handle, settings, control)
    try:
        engine = await live.load()
        watcher = asyncio.create_task(live.watch())
        stream = engine.frames()
        try:
            while True:
                yield live.finished(await _next(stream, watcher))
                live.look_at_focus()
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
            await stream.aclose()  # type: ignore[attr-defined]
            handle.close()
    finally:
        live.close()


async def _next(stream: AsyncIterator[Frame], watcher: asyncio.Task[None]) -> Frame:
    """The next frame, or at once what has ended the watcher: that is not to wait for the end of a long interval."""
    step = asyncio.ensure_future(anext(stream))
    try:
        await asyncio.wait({step, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if watcher.done():
            watcher.result()
        return step.result()
    finally:
        if not step.done():
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)


def check(handle: LoaderHandle, settings: Settings) -> Iterable[tuple[str, str, str, bool]]:
    """What this kernel offers: (probe, hook, mechanism or reason, whether it holds)."""
    thread = ControlThread(handle, replace(settings, filter=""))
    thread.load("")
    yield from ((name, "-", p.problem, False) for name, p in all_probes().items() if p.problem)
    for info in thread.infos.values():
        if info.state == "failed":
            yield info.name, "-", info.detail, False
        yield from ((info.name, hook.hook, hook.via, True) for hook in info.hooks)
        yield from ((info.name, hook, reason, False) for hook, reason in info.missing)

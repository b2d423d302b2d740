"""Running without a screen: frames from a source to standard output and files, until the end or a signal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Protocol

from nettop.errors import ExitCode, NettopError
from nettop.files import Sink
from nettop.model import Frame

_PATIENCE = 2.0  # seconds that the outputs have to end their files


class Output(Protocol):
    """Where frames go."""

    def write(self, frame: Frame) -> None:
        """Write one frame; NettopError or OSError where that is not possible."""

    def close(self) -> None:
        """Nothing more comes."""


def to_stdout(text: str) -> None:
    """Write to standard output, past Python's buffer: that is locked while a reader keeps us waiting."""
    view = memoryview(text.encode("utf-8", "replace"))
    while view:
        view = view[os.write(1, view) :]


class Formatted:
    """Frames through a writer (nettop.output) to standard output or a file."""

    def __init__(self, write: Callable[[Frame], None], sink: Sink | None = None) -> None:
        self._write = write
        self._sink = sink

    def write(self, frame: Frame) -> None:
        """Format and write one frame."""
        try:
            self._write(frame)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise NettopError(
                f"standard output: {error.strerror}", "make room, or name another file with -o"
            ) from None

    def close(self) -> None:
        """End the file, if it is one."""
        if self._sink:
            self._sink.close()


class _Hand:
    """A thread that writes.

    Whoever reads our output may keep a write waiting for ever, and we must still be able to stop: so it is a
    daemon, and nobody joins it.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], asyncio.Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="nettop-write", daemon=True).start()

    async def do(self, job: Callable[[], None]) -> None:
        """Run the job there."""
        future = asyncio.get_running_loop().create_future()
        self._jobs.put((job, future))
        await future

    def _work(self) -> None:
        while True:
            job, future = self._jobs.get()
            failure: BaseException | None = None
            try:
                job()
            except BaseException as error:  # it is raised again where the job came from
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                future.get_loop().call_soon_threadsafe(_settle, future, failure)


def _settle(future: asyncio.Future[None], failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)


async def run(
    frames: AsyncIterator[Frame],
    outputs: Sequence[Output],
    count: int | None = None,
    recorder: Output | None = None,
    complain: Callable[[str], None] = lambda text: None,
) -> ExitCode:
    """Pass ``count`` frames (None: all) on to the outputs.

    A ``recorder`` that fails is given up, with a complaint, and the rest goes on; the exit code tells it.
    """
    hand = _Hand()
    code = ExitCode.OK
    left = count
    try:
        async for frame in frames:
            for output in outputs:
                await hand.do(lambda output=output, frame=frame: output.write(frame))  # type: ignore[misc]
            if recorder:
                try:
                    await hand.do(lambda recorder=recorder, frame=frame: recorder.write(frame))  # type: ignore[misc]
                except NettopError as error:
                    complain(error.lines())
                    recorder, code = None, error.code
            if left is not None:
                left -= 1
                if left <= 0:
                    break
    finally:
        await _end(frames, hand, [*outputs, *([recorder] if recorder else [])])
    return code


async def _end(frames: AsyncIterator[Frame], hand: _Hand, outputs: Sequence[Output]) -> None:
    close = getattr(frames, "aclose", None)
    if close:
        await close()
    for output in outputs:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hand.do(output.close), _PATIENCE)


def until_signal(work: Coroutine[None, None, ExitCode]) -> ExitCode:
    """Run to the end, or to SIGINT (130), SIGTERM or SIGHUP (0): then what is open is closed first."""

    async def main() -> ExitCode:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task
        received: list[int] = []

        def stop(number: int) -> None:
            if not received:
                task.cancel()
            received.append(number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, number)
        try:
            return await work
        except asyncio.CancelledError:
            return ExitCode.INTERRUPTED if received and received[0] == signal.SIGINT else ExitCode.OK

    return asyncio.run(main())

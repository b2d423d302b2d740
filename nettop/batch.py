"""Running without a screen: frames from a source to standard output and files, until the end or a signal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Protocol

from nettop.core.errors import ExitCode, NettopError
from nettop.core.frame import Frame
from nettop.record.files import Sink

if TYPE_CHECKING:
    from nettop.output import Writer

_PATIENCE = 2.0  # seconds that the outputs have to end their files


class Output(Protocol):
    """Where frames go."""

    def write(self, frame: Frame) -> None:
        """Write one frame; NettopError or OSError where that is not possible."""

    def reopen(self) -> None:
        """The file was moved away: go on in a new one of its name.  NettopError where that cannot be."""

    def unmet(self) -> NettopError | None:
        """What was asked for and never came, when there are no more frames."""

    def close(self) -> None:
        """Nothing more comes."""


def to_stdout(text: str) -> None:
    """Write to standard output, past Python's buffer: that is locked while a reader keeps us waiting."""
    view = memoryview(text.encode("utf-8", "replace"))
    while view:
        view = view[os.write(1, view) :]


class Formatted:
    """Frames through a writer (nettop.output) to standard output or a file."""

    def __init__(self, writer: Writer, sink: Sink | None = None) -> None:
        self._writer = writer
        self._sink = sink

    def write(self, frame: Frame) -> None:
        """Format and write one frame."""
        try:
            if self._sink and self._sink.fresh():
                self._writer.begin()
            self._writer.write(frame)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise NettopError(
                f"standard output: {error.strerror}", "make room, or name another file with -o"
            ) from None

    def reopen(self) -> None:
        """Go on in a new file of the same name, if it is a file."""
        if self._sink:
            self._sink.reopen()

    def unmet(self) -> NettopError | None:
        """What the writer missed."""
        return self._writer.unmet()

    def close(self) -> None:
        """End the file, if it is one."""
        if self._sink:
            self._sink.close()


class _Hand:
    """A thread that writes.

    Whoever reads our output may keep a write waiting for ever, and we must still be able to stop: so it is a
    daemon thread that is not joined.
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
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the waiter
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
    hangup: asyncio.Event | None = None,
    live: bool = False,
) -> ExitCode:
    """Pass ``count`` frames (None: all) on to the outputs.

    A ``recorder`` that fails is given up, with a complaint, and the rest goes on; the exit code tells it.  It tells as
    well where no probe works at the end of a ``live`` run.  At each ``hangup`` files are opened anew.
    """
    hand = _Hand()
    code = ExitCode.OK
    left = count
    last: Frame | None = None
    files = [*outputs, *([recorder] if recorder else [])]
    rotating = asyncio.create_task(_rotate(hangup, hand, files, complain)) if hangup else None
    try:
        async for frame in frames:
            last = frame
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
        if rotating:
            rotating.cancel()
        await _end(frames, hand, [*outputs, *([recorder] if recorder else [])])
    if live and last is not None:
        missing = [nothing_works(last), *(output.unmet() for output in outputs)]
        if found := next((m for m in missing if m), None):
            complain(found.lines())
            code = code or found.code
    return code


def nothing_works(frame: Frame) -> NettopError | None:
    """The failure to report where each probe that was asked for has failed or is unavailable; else None."""
    asked = {name: status for name, status in frame.probes.items() if status.state != "off"}
    if not asked or any(status.state == "live" for status in asked.values()):
        return None
    why = "; ".join(
        f"{name} {status.state}: {' '.join(status.detail.split())}" for name, status in asked.items()
    )
    unsupported = all(status.state == "unavailable" for status in asked.values())
    return NettopError(
        f"no probe works: {why}",
        "nettop --check says what this kernel offers; --log FILE keeps the details",
        ExitCode.UNSUPPORTED if unsupported else ExitCode.FAILURE,
    )


async def _rotate(
    hangup: asyncio.Event, hand: _Hand, files: Sequence[Output], complain: Callable[[str], None]
) -> None:
    while True:
        await hangup.wait()
        hangup.clear()
        for file in files:
            try:
                await hand.do(file.reopen)
            except NettopError as error:
                complain(error.lines())


async def _end(frames: AsyncIterator[Frame], hand: _Hand, outputs: Sequence[Output]) -> None:
    close = getattr(frames, "aclose", None)
    if close:
        await close()
    for output in outputs:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hand.do(output.close), _PATIENCE)


def until_signal(work: Coroutine[None, None, ExitCode], hangup: asyncio.Event | None = None) -> ExitCode:
    """Run to the end, or to SIGINT (130), SIGTERM (0) or SIGHUP (129): then what is open is closed first.

    With ``hangup`` SIGHUP sets that and ends nothing, as logrotate expects it of a program that writes a file; but
    where the terminal is gone it means that, and ends the run.  Who starts us with SIGHUP ignored (nohup) is obeyed.
    """

    async def main() -> ExitCode:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task
        received: list[int] = []
        terminal = _has_terminal()

        def stop(number: int) -> None:
            if not received:
                task.cancel()
            received.append(number)

        def hang_up() -> None:
            if hangup is None or (terminal and not _has_terminal()):
                stop(signal.SIGHUP)
            else:
                hangup.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        if hangup is not None or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, hang_up)
        try:
            return await work
        except asyncio.CancelledError:
            return _ENDED_BY.get(received[0] if received else 0, ExitCode.OK)

    return asyncio.run(main())


_ENDED_BY = {int(signal.SIGINT): ExitCode.INTERRUPTED, int(signal.SIGHUP): ExitCode.HANGUP}


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal, and the other side of that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True

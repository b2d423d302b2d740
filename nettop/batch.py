"""Running without a screen: frames from a source to standard output and files, until the end or a signal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING

from nettop.core.errors import ExitCode, NettopError
from nettop.core.frame import Frame
from nettop.record.files import Sink
from nettop.record.recording import Recorder

if TYPE_CHECKING:
    from nettop.output import Writer

_PATIENCE = 2.0  # seconds that the outputs have to end their files


def to_stdout(text: str) -> None:
    """Write to standard output, past Python's buffer: that is locked while a reader keeps us waiting."""
    view = memoryview(text.encode("utf-8", "replace"))
    while view:
        view = view[os.write(1, view) :]


class Output:
    """Frames through a writer (nettop.output) to standard output or a file."""

    def __init__(self, writer: Writer, sink: Sink | None = None) -> None:
        self._writer = writer
        self._sink = sink

    def write(self, frame: Frame) -> None:
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
        if self._sink:
            self._sink.reopen()

    def unmet(self) -> NettopError | None:
        return self._writer.unmet()

    def close(self) -> None:
        if self._sink:
            self._sink.close()


class _WriterThread:
    """A daemon thread that writes and is not joined: a reader of the output may block a write for ever."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], asyncio.Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="nettop-write", daemon=True).start()

    async def run(self, job: Callable[[], None]) -> None:
        future = asyncio.get_running_loop().create_future()
        self._jobs.put((job, future))
        await future

    def _work(self) -> None:
        while True:
            job, future = self._jobs.get()
            settle: Callable[[], None] = partial(future.set_result, None)
            try:
                job()
            except BaseException as error:  # it is raised again where the job came from
                settle = partial(future.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the waiter
                future.get_loop().call_soon_threadsafe(_unless_done, future, settle)


def _unless_done(future: asyncio.Future[None], settle: Callable[[], None]) -> None:
    if not future.done():
        settle()


async def run(
    frames: AsyncIterator[Frame],
    output: Output,
    count: int | None,
    recorder: Recorder | None,
    print_error: Callable[[str], None],
    hangup: asyncio.Event | None = None,
    live: bool = False,
) -> ExitCode:
    """Write ``count`` frames (None: all) to the output.

    A ``recorder`` that fails is dropped with an error message; the output continues, and the exit code is the error's.
    A ``live`` run also fails where no probe works at its end.  Files are reopened at each ``hangup``.
    """
    thread = _WriterThread()
    code = ExitCode.OK
    last: Frame | None = None
    files: list[Output | Recorder] = [output, recorder] if recorder else [output]
    rotating = asyncio.create_task(_rotate(hangup, thread, files, print_error)) if hangup else None
    try:
        async for frame in frames:
            last = frame
            await thread.run(partial(output.write, frame))
            if recorder and recorder in files:
                try:
                    await thread.run(partial(recorder.record, frame))
                except NettopError as error:
                    print_error(error.lines())
                    files.remove(recorder)
                    code = error.code
            if count is not None:
                count -= 1
                if count <= 0:
                    break
    finally:
        if rotating:
            rotating.cancel()
        if close := getattr(frames, "aclose", None):
            await close()
        for file in files:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(thread.run(file.close), _PATIENCE)
    if live and last is not None and (missing := nothing_works(last) or output.unmet()):
        print_error(missing.lines())
        code = code or missing.code
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
    hangup: asyncio.Event,
    thread: _WriterThread,
    files: Sequence[Output | Recorder],
    print_error: Callable[[str], None],
) -> None:
    while True:
        await hangup.wait()
        hangup.clear()
        for file in files:
            try:
                await thread.run(file.reopen)
            except NettopError as error:
                print_error(error.lines())


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
            codes = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGHUP: ExitCode.HANGUP}
            return codes.get(signal.Signals(received[0]), ExitCode.OK) if received else ExitCode.OK

    return asyncio.run(main())


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal, and the other side of that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True

"""What fails while it runs: a probe, the loader; and lists that one thread changes while another reads them."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import numpy as np
import pytest
from fakes import Numbers, frame

from nettop.bpf import protocol
from nettop.bpf.layout import Map
from nettop.bpf.protocol import (
    AttachInterface,
    Done,
    Filter,
    Load,
    Plan,
    Request,
    ResumeProbes,
    RetryProbes,
    Stats,
)
from nettop.collect import engine, live, loader_client
from nettop.collect import meter as meter_module
from nettop.collect.attachments import Attachment
from nettop.collect.engine import Engine, Pace
from nettop.collect.loader_client import LoaderGoneError, LoaderHandle
from nettop.collect.meter import LiveMeter
from nettop.collect.unseen import Compared
from nettop.collect.worker import Worker
from nettop.core.frame import Health, ProbeStatus
from nettop.loader import compile as compile_
from nettop.probes.base import Folded, Probe, Reads
from nettop.settings import Control, Settings

COUNT = np.dtype([("n", "u8")])
PROBE = Probe("numbers", "", (), (Map("counts", "array", "n"),), lambda s: Growth(), Numbers, ())  # type: ignore[arg-type, return-value]


class Growth:
    """A fold that says by how much a counter has grown."""

    def __init__(self) -> None:
        self._before: int | None = None

    def __call__(self, reads: Reads) -> Folded:
        now = int(reads.maps["counts"]["n"][0])
        grown = now - (self._before or 0)
        self._before = now
        return Folded(Numbers((grown,)))


class Counter:
    """A counter that grows by 10 with every reading; ``fail`` makes a reading raise."""

    def __init__(self) -> None:
        self.value = 0
        self.fail: Exception | None = None

    def read(self) -> Any:
        self.value += 10
        if self.fail:
            raise self.fail
        return np.array([(self.value,)], COUNT)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The engine's monotonic clock, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(engine.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(engine.time, "monotonic_ns", lambda: int(now[0] * 1e9))
    return now


def made(counter: Counter) -> Worker:
    return Worker(PROBE, Growth, {"counts": counter}, {}, ProbeStatus("live", "with BTF"))  # type: ignore[dict-item]


def shown(worker: Worker) -> tuple[int, ...] | None:
    section = worker.step()
    return None if section is None else section.numbers  # type: ignore[attr-defined, no-any-return]


def test_a_probe_that_fails_once_is_tried_again_and_counts_right(clock: list[float]) -> None:
    counter = Counter()
    worker = made(counter)
    assert [shown(worker), shown(worker)] == [(10,), (10,)]
    counter.fail = OSError(12, "Cannot allocate memory")
    assert shown(worker) is None
    assert worker.status.state == "failed"
    assert "Cannot allocate memory; next try at " in worker.status.detail
    counter.fail = None
    assert shown(worker) is None  # not yet
    clock[0] += 2
    assert shown(worker) is None  # the base of the next interval
    assert worker.status == ProbeStatus("live", "with BTF")
    assert shown(worker) == (10,)  # and not what came while it had failed


def test_one_that_fails_for_ever_is_tried_seldom(clock: list[float]) -> None:
    counter = Counter()
    worker = made(counter)
    counter.fail = RuntimeError("no")
    readings: list[float] = []
    for _ in range(600):
        before = counter.value
        worker.step()
        readings += [clock[0] - 1000] if counter.value > before else []
        clock[0] += 1
    assert worker.status.state == "failed"
    assert readings[:4] == [0, 1, 6, 36]
    assert len(readings) < 16


def test_one_that_never_was_is_left_alone(clock: list[float]) -> None:
    counter = Counter()
    worker = made(counter)
    worker.status = ProbeStatus("unavailable", "this kernel lacks it")
    for _ in range(100):
        assert worker.step() is None
        clock[0] += 10
    assert counter.value == 0


@pytest.fixture
def handle() -> Iterator[tuple[LoaderHandle, socket.socket]]:
    """A loader's socket, and a process that says nothing."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield LoaderHandle(ours, process), theirs
        theirs.close()
        process.kill()


REQUESTS = (
    Load(Plan("lo", ("flows",))),
    AttachInterface(),
    Filter(),
    ResumeProbes(("irq",)),
    RetryProbes(("irq",)),
    Stats(True),
)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda message: type(message).__name__)
def test_a_loader_that_does_not_answer_is_given_up(
    handle: tuple[LoaderHandle, socket.socket], monkeypatch: pytest.MonkeyPatch, request_: Request
) -> None:
    ours, theirs = handle
    monkeypatch.setitem(loader_client._SECONDS, type(request_), 0.1)  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(LoaderGoneError, match=f"does not answer .{type(request_).__name__}, 0.1 s"):
        ours.request(request_)
    assert time.monotonic() - began < 5
    assert protocol.receive(theirs) == request_
    with pytest.raises(EOFError):  # it sees that we have gone, and goes
        protocol.receive(theirs)
    with pytest.raises(LoaderGoneError, match="does not answer"):
        ours.check()
    with pytest.raises(LoaderGoneError, match="does not answer"):
        ours.request(Stats(False))


async def test_frames_end_where_the_loader_hangs_at_the_start(
    handle: tuple[LoaderHandle, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loader_client._SECONDS, Load, 0.2)  # type: ignore[arg-type]
    with pytest.raises(LoaderGoneError, match=r"does not answer .Load, 0\.2 s"):
        await anext(live.frames(handle[0], Settings(interface="lo"), Control()))


def test_a_loader_that_answers_in_parts_for_ever_is_given_up(
    handle: tuple[LoaderHandle, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is for the whole answer."""
    ours, theirs = handle
    monkeypatch.setitem(loader_client._SECONDS, Filter, 0.5)  # type: ignore[arg-type]
    over = threading.Event()

    def drip() -> None:
        with suppress(OSError):
            while not over.wait(0.1):
                protocol.send(theirs, protocol.Loaded(protocol.ProbeInfo("flows", "live")))

    thread = threading.Thread(target=drip)
    thread.start()
    began = time.monotonic()
    with pytest.raises(LoaderGoneError, match="does not answer"):
        ours.request(Filter())
    over.set()
    thread.join()
    assert 0.4 < time.monotonic() - began < 5


def test_what_is_quick_has_less_time_than_a_compiler() -> None:
    seconds = loader_client._SECONDS
    assert set(seconds) == {type(message) for message in REQUESTS}
    compiling = {Load, Filter, RetryProbes}
    assert max(s for kind, s in seconds.items() if kind not in compiling) <= 60
    assert min(s for kind, s in seconds.items() if kind in compiling) > 2 * compile_._PATIENCE_S


def test_closing_ends_a_request_that_waits(handle: tuple[LoaderHandle, socket.socket]) -> None:
    ours, theirs = handle
    timer = threading.Timer(0.2, lambda: ours._shut())
    timer.start()
    with pytest.raises(LoaderGoneError):
        ours.request(Stats(True))
    timer.join()
    with suppress(OSError):
        protocol.send(theirs, Done())


def test_a_program_is_run_once_with_each_value_that_the_fold_gives() -> None:
    told: list[bytes] = []
    worker = made(Counter())
    worker.fold = lambda _: Folded(Numbers((1,)), run={"expire": (b"a", b"b")})
    worker.runs = {"expire": told.append}
    assert shown(worker) == (1,)
    assert told == [b"a", b"b"]


async def test_a_worker_that_comes_late_counts_from_its_first_reading() -> None:
    """As at the start: a probe that was tried again and runs now."""
    counter = Counter()
    shown: list[tuple[int, ...] | None] = []
    idle = Mock(measure=AsyncMock(), hooks=lambda *_: (), health=lambda _: Health())
    running = Engine((), Pace(lambda: 0.02), idle, lambda: frame(probes={}, sections={}))
    stream = running.frames()
    async for each in stream:
        shown.append(each.sections["numbers"].numbers if each.sections else None)  # type: ignore[attr-defined]
        if len(shown) == 2:
            running.put(made(counter))
            running.put(made(counter))  # in the place of the first
        if len(shown) == 6:
            break
    await stream.aclose()  # type: ignore[attr-defined]
    assert [worker.probe.name for worker in running.workers] == ["numbers"]
    assert shown == [None, None, None, (10,), (10,), (10,)]


def open_hooks(count: int) -> tuple[Attachment, ...]:
    return tuple(Attachment("stages", f"hook{n}", "tp_btf", (os.dup(0),)) for n in range(count))


def is_open(fd: int) -> bool:
    with suppress(OSError):
        os.fstat(fd)
        return True
    return False


async def test_programs_that_run_no_more_are_closed_between_two_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not while one is being taken; what stays attached stays open."""
    meter = LiveMeter((os.getpid(),), AsyncMock())
    monkeypatch.setattr(meter_module, "_STATS_SECONDS", 0.05)
    samples: list[tuple[int, ...]] = []

    def sample(fds: tuple[int, ...]) -> dict[int, tuple[int, int]]:
        assert all(map(is_open, fds))
        samples.append(fds)
        return dict.fromkeys(fds, (0, 0))

    monkeypatch.setattr(meter_module.programs, "sample", sample)
    first = open_hooks(40)
    meter.attached(first)
    measuring = asyncio.create_task(meter.measure())
    await asyncio.sleep(0.01)
    second = (*first[:10], *open_hooks(30))
    meter.attached(second)
    await measuring
    assert all(is_open(fd) for hook in first for fd in hook.programs)
    await meter.measure()
    assert [is_open(fd) for hook in first for fd in hook.programs] == [True] * 10 + [False] * 30
    assert set(samples[-1]) == {fd for hook in second for fd in hook.programs}
    meter.attached(())
    await meter.measure()
    assert not any(is_open(fd) for hook in second for fd in hook.programs)


async def test_what_is_kept_of_programs_goes_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each filter brings other programs: what was counted of the old ones is not kept for ever."""
    meter = LiveMeter((os.getpid(),), AsyncMock())
    monkeypatch.setattr(meter_module.syscall, "program_info", lambda fd: SimpleNamespace(recursion_misses=7))
    for _ in range(20):
        meter.attached(open_hooks(5))
        assert [hook.recursion_misses for hook in meter.hooks("stages", 1)] == [7] * 5
        assert [hook.recursion_misses for hook in meter.hooks("stages", 1)] == [0] * 5
        assert len(meter._missed) == 5
        meter._close_retired()
    meter.attached(())
    meter._close_retired()
    assert not meter._missed


MB = 1_000_000
LATE = random.Random(8)


def late(frames: list[int]) -> tuple[list[int], list[int]]:
    """What both count where the interface's counters are read later by up to a frame, each time by another part."""
    counted, seen, left = [], [], 0
    for size in frames:
        ahead = LATE.randrange(size + 1)  # comes between the two readings: seen a frame later
        counted.append(size)
        seen.append(size - ahead + left)
        left = ahead
    return counted, seen


@pytest.mark.parametrize(
    ("counted", "seen"),
    [
        ([MB] * 8, [MB] * 8),
        ([0, 0, MB, MB, MB], [0, 0, 0, MB, MB]),  # it began between the two readings
        ([MB, MB, MB, 0, 0, 0], [MB, MB, MB, 0, 0, 0]),  # it ended
        ([MB, MB, 9 * MB, MB, MB], [MB, MB, MB, 9 * MB, MB]),  # a burst between them
        ([MB, 0, MB, 0, 0], [MB, 0, 0, MB, 0]),  # one burst before them, and one between
        ([50_000, 0, 0, 0], [0, 0, 0, 0]),  # too little to tell
        late([MB] * 200),
        late([MB, 0, 0, 3 * MB] * 50),
        late([LATE.randrange(MB) for _ in range(400)]),
    ],
)
def test_readings_that_are_apart_are_no_difference(counted: list[int], seen: list[int]) -> None:
    compared = Compared(100_000)
    assert max(abs(compared.add(*each)) for each in zip(counted, seen, strict=True)) < 0.05


@pytest.mark.parametrize(
    ("factor", "frames"), [(0.0, 3), (0.7, 5), (0.9, 24), (0.94, 24), (1.1, 24), (1.5, 5), (40, 2)]
)
def test_what_always_differs_is_told_after_a_few_frames(factor: float, frames: int) -> None:
    compared = Compared(100_000)
    told = [compared.add(MB, round(MB * factor)) for _ in range(60)]
    assert told[-1] == pytest.approx(factor - 1, abs=0.02)
    assert next(i for i, each in enumerate(told) if abs(each) > 0.05) < frames


# --- tables that are read every --scan-interval, with the first frames too --------------------------------------------


def scans(clock: list[float], scan_s: float, frames_s: list[float]) -> list[bool]:
    """Whether each frame, so long after the one before, had the table in it."""
    maps = (Map("large", "array", "n", scan=True), Map("small", "array", "n"))
    probe = replace(PROBE, maps=maps)
    readers = {"large": Counter(), "small": Counter()}
    worker = Worker(probe, Growth, readers, {}, ProbeStatus("live"), round(scan_s * 1e9))  # type: ignore[arg-type]
    result = []
    for seconds in frames_s:
        clock[0] += seconds
        maps = worker.collect().maps
        assert "small" in maps
        result.append("large" in maps)
    return result


def test_without_an_interval_every_frame_has_the_table(clock: list[float]) -> None:
    assert all(scans(clock, 0, [0.1] * 20))


def test_the_base_and_the_first_frame_have_it_then_every_sixth(clock: list[float]) -> None:
    found = scans(clock, 3, [0, 0.2, *[0.5] * 18])
    assert found[:2] == [True, True]
    assert found[2:] == [False, False, False, False, False, True] * 3


def test_frames_that_come_a_little_early_or_late_make_no_difference(clock: list[float]) -> None:
    steps = [0.48, 0.53, 0.49, 0.5, 0.51, 0.49] * 10
    found = scans(clock, 3, [0, 0.2, *steps])[2:]
    assert sum(found) == 10
    assert [n % 6 for n, scanned in enumerate(found) if scanned] == [5] * 10


def test_after_a_stop_the_interval_starts_anew(clock: list[float]) -> None:
    found = scans(clock, 3, [0, 0.2, 0.5, 20, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert found == [True, True, False, True, False, False, False, False, False, True]


def test_an_interval_shorter_than_a_frame_is_a_frame(clock: list[float]) -> None:
    assert all(scans(clock, 0.5, [0, 0.2, *[2.0] * 5]))

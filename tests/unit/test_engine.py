"""What fails while it runs: a probe, the loader; and lists that one thread changes while another reads them."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from standins import Numbers

from nettop import engine, live, protocol
from nettop.engine import Worker
from nettop.live import Compared, LiveMeter, LoaderGoneError, LoaderHandle
from nettop.model import ProbeStatus
from nettop.probes.base import Folded, Map, Probe, Reads
from nettop.protocol import HookInfo, Stats

COUNT = np.dtype([("n", "u8")])
PROBE = Probe("numbers", "", (), (Map("counts", "array", COUNT),), lambda s: Growth(), Numbers.from_json, ())  # type: ignore[arg-type, return-value]


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
    assert "Cannot allocate memory" in worker.status.detail
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
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield LoaderHandle(ours, process), theirs
        theirs.close()
        process.kill()


def test_a_loader_that_does_not_answer_is_given_up(
    handle: tuple[LoaderHandle, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = handle
    monkeypatch.setattr(live, "_QUICK_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(LoaderGoneError, match="does not answer"):
        ours.request(Stats(True))
    assert time.monotonic() - began < 5
    assert isinstance(protocol.receive(theirs), Stats)
    with pytest.raises(EOFError):  # it sees that we have gone, and goes
        protocol.receive(theirs)
    with pytest.raises(LoaderGoneError, match="does not answer"):
        ours.check()
    with pytest.raises(LoaderGoneError, match="does not answer"):
        ours.request(Stats(False))


def test_a_program_is_run_once_with_each_value_that_the_fold_gives() -> None:
    told: list[bytes] = []
    worker = made(Counter())
    worker.fold = lambda _: Folded(Numbers((1,)), run={"expire": (b"a", b"b")})
    worker.runs = {"expire": told.append}
    assert shown(worker) == (1,)
    assert told == [b"a", b"b"]


def test_hooks_may_be_read_while_another_thread_attaches(handle: tuple[LoaderHandle, socket.socket]) -> None:
    """What is attached again puts other hooks in, in a thread of its own; each reading sees the one or the other."""
    attached = object.__new__(live.Live)
    attached.meter = LiveMeter(handle[0])
    names = [f"hook{n}" for n in range(40)]

    def attach() -> None:
        fds = [os.dup(0) for _ in names]
        info = protocol.ProbeInfo(
            "stages", "live", hooks=tuple(HookInfo(n, "tp_btf", (i,)) for i, n in enumerate(names))
        )
        attached._hook(info, tuple(fds))

    attach()
    seen, fds = attached.meter.hooked, [hook.programs for hook in attached.meter.hooked]
    attach()
    # Whoever was going through them goes on with what there was, whole, and the next look has the new ones.
    assert [hook.info.hook for hook in seen] == names
    assert [hook.programs for hook in seen] == fds
    assert [hook.info.hook for hook in attached.meter.hooked] == names
    assert [hook.programs for hook in attached.meter.hooked] != fds
    for hook in attached.meter.hooked:
        attached.meter.retire(hook.programs)
    attached.meter.hooked = ()
    attached.meter._close_retired()


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

"""When a worker reads its large tables: with the first frames, then every --scan-interval, whatever the frames do."""

import numpy as np
import pytest

from nettop.bpf.layout import Map
from nettop.collect import engine
from nettop.collect.worker import Worker
from nettop.core.frame import ProbeStatus, Section
from nettop.probes.base import Folded, Probe, Reads

S = 1_000_000_000
VALUE = np.dtype([("count", "u8")])
PROBE = Probe(
    "fake",
    "",
    (),
    (Map("large", "array", "count", scan=True), Map("small", "array", "count")),
    fold=lambda setup: _fold,
    section=Section,
    panes=(),
)


def _fold(reads: Reads) -> Folded:
    raise AssertionError("not folded here")


class Reader:
    def read(self) -> np.ndarray:
        return np.zeros(1, VALUE)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [1000 * S]
    monkeypatch.setattr(engine.time, "monotonic_ns", lambda: now[0])
    return now


def scans(clock: list[int], scan_s: float, frames_s: list[float]) -> list[bool]:
    """Whether each frame, so long after the one before, had the table in it."""
    readers = {"large": Reader(), "small": Reader()}
    worker = Worker(PROBE, lambda: _fold, readers, {}, ProbeStatus("live"), round(scan_s * S))  # type: ignore[arg-type]
    result = []
    for seconds in frames_s:
        clock[0] += round(seconds * S)
        maps = worker.collect().maps
        assert "small" in maps
        result.append("large" in maps)
    return result


def test_without_an_interval_every_frame_has_the_table(clock: list[int]) -> None:
    assert all(scans(clock, 0, [0.1] * 20))


def test_the_base_and_the_first_frame_have_it_then_every_sixth(clock: list[int]) -> None:
    found = scans(clock, 3, [0, 0.2, *[0.5] * 18])
    assert found[:2] == [True, True]
    assert found[2:] == [False, False, False, False, False, True] * 3


def test_frames_that_come_a_little_early_or_late_make_no_difference(clock: list[int]) -> None:
    steps = [0.48, 0.53, 0.49, 0.5, 0.51, 0.49] * 10
    found = scans(clock, 3, [0, 0.2, *steps])[2:]
    assert sum(found) == 10
    assert [n % 6 for n, scanned in enumerate(found) if scanned] == [5] * 10


def test_after_a_stop_the_interval_starts_anew(clock: list[int]) -> None:
    found = scans(clock, 3, [0, 0.2, 0.5, 20, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert found == [True, True, False, True, False, False, False, False, False, True]


def test_an_interval_shorter_than_a_frame_is_a_frame(clock: list[int]) -> None:
    assert all(scans(clock, 0.5, [0, 0.2, *[2.0] * 5]))

"""What is said of gaps, a suspended machine and a clock that was set; and how long it is said."""

from __future__ import annotations

import time

import pytest

from nettop.collect.notes import Clocks, Notes

SECOND = 1_000_000_000


class World:
    """The clocks of a machine: seconds pass, it sleeps, somebody sets the time."""

    def __init__(self) -> None:
        clocks = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, time.CLOCK_REALTIME)
        self.ns = dict.fromkeys(clocks, 1_700_000_000 * SECOND)
        self.torn: list[int] = []  # what passes at each further reading
        self.look = Clocks(self.read).look

    def read(self, clock: int) -> int:
        if self.torn:
            self.passes(self.torn.pop(0) / SECOND)
        return self.ns[clock]

    def passes(self, seconds: float) -> None:
        for clock in self.ns:
            self.ns[clock] += round(seconds * SECOND)

    def sleeps(self, seconds: float) -> None:
        for clock in (time.CLOCK_BOOTTIME, time.CLOCK_REALTIME):
            self.ns[clock] += round(seconds * SECOND)

    def is_set(self, seconds: float) -> None:
        self.ns[time.CLOCK_REALTIME] += round(seconds * SECOND)


def test_frames_in_time_are_nothing_to_speak_of():
    world = World()
    for interval in (1.0, 0.25, 10.0, 60.0):
        world.look(interval)
        world.passes(interval * 1.5)
        assert world.look(interval) == []


def test_a_gap_is_said_with_its_length():
    world = World()
    world.look(1.0)
    world.passes(17.5)
    (said,) = world.look(1.0)
    assert said.startswith("17.5 s without a frame until ")
    world.passes(1.0)
    assert world.look(1.0) == []


def test_a_shorter_interval_makes_no_gap_of_the_longer_one_before():
    world = World()
    world.look(60.0)
    world.passes(55)
    assert world.look(1.0) == []
    world.passes(55)
    assert len(world.look(1.0)) == 1


@pytest.mark.parametrize(("seconds", "words"), [(3 * 3600, "slept for 3 h"), (42, "slept for 42.0 s")])
def test_a_suspended_machine_is_no_gap_and_no_clock_that_was_set(seconds, words):
    world = World()
    world.look(1.0)
    world.sleeps(seconds)
    world.passes(1.0)
    (said,) = world.look(1.0)
    assert words in said


@pytest.mark.parametrize(
    ("seconds", "words"), [(3600, "set 60 m forward"), (-7200, "set 2 h back"), (-1.5, "set 1.50 s back")]
)
def test_a_clock_that_was_set_is_said_and_once(seconds, words):
    world = World()
    world.look(1.0)
    world.is_set(seconds)
    world.passes(1.0)
    (said,) = world.look(1.0)
    assert words in said
    world.passes(1.0)
    assert world.look(1.0) == []


def test_a_clock_that_is_slewed_and_a_torn_reading_are_not_taken_for_a_step():
    world = World()
    for _ in range(100):
        world.passes(60)
        world.is_set(60 * 500e-6)
        assert world.look(60.0) == []
    # We were held up for a second between two readings: read again.
    world.passes(60)
    world.torn = [0, 0, 0, SECOND, 0]
    assert world.look(60.0) == []


def test_notes_stay_a_minute_and_three_frames():
    now, interval = [1000.0], [1.0]
    notes = Notes(lambda: interval[0], lambda: now[0])
    notes.add("first")
    now[0] += 59
    notes.add("second")
    assert notes.current() == ("second", "first")
    now[0] += 2
    assert notes.current() == ("second",)
    now[0] += 60
    assert notes.current() == ()
    interval[0] = 60.0
    notes.add("third")
    now[0] += 170
    assert notes.current() == ("third",)


def test_the_newest_notes_are_kept_and_none_is_said_twice():
    notes = Notes(lambda: 1.0)
    for text in ("a", "b", "c", "b"):
        notes.add(text)
    assert notes.current() == ("b", "c")

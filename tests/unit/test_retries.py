"""Probes that have failed: when each is tried again, and what its pane says."""

from __future__ import annotations

import re

import pytest

from nettop.bpf.config import Config
from nettop.bpf.protocol import Done, Filter, Load, Loaded, Plan, ProbeInfo, Request, RetryProbes, Stats
from nettop.collect import control_thread
from nettop.collect.control_thread import ControlThread, Wanted
from nettop.collect.retries import Retries
from nettop.core.errors import NettopError
from nettop.loader.rate import Limits
from nettop.settings import Settings


class Clock:
    """Seconds that pass when they are told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_pause_doubles_up_to_five_minutes() -> None:
    clock = Clock()
    retries = Retries(clock)
    tried: list[float] = []
    retries.failed("flows", "no memory")
    for second in range(2000):
        clock.now = 1000.0 + second
        if retries.due():
            tried.append(second)
            retries.failed("flows", "no memory")
    assert tried[:7] == [10, 30, 70, 150, 310, 610, 910]


def test_the_pane_says_why_and_when() -> None:
    retries = Retries(Clock())
    retries.failed("flows", "cannot make the map flows: Cannot allocate memory")
    detail = retries.details()["flows"]
    assert re.fullmatch(
        r"cannot make the map flows: Cannot allocate memory; next try at \d\d:\d\d:\d\d", detail
    )


def test_one_that_works_again_begins_anew() -> None:
    clock = Clock()
    retries = Retries(clock)
    for _ in range(5):
        retries.failed("irq", "busy")
    retries.works("irq")
    assert not retries.details()
    retries.failed("irq", "busy")
    clock.now += 10
    assert retries.due() == ("irq",)


class Loader:
    """Answers as the loader would, where no probe can be attached until `works`; `asked` for these."""

    pid = 1

    def __init__(self, *states: str) -> None:
        self.states = states
        self.works = False
        self.asked: list[tuple[str, ...]] = []

    def check(self) -> None:
        """It is there."""

    def request(self, message: object) -> tuple[list[Loaded], Done]:
        done = Done(config=Config(ifindex=1).to_json())
        if isinstance(message, Load):
            names = message.plan.probes
            infos = [ProbeInfo(n, s, "why") for n, s in zip(names, self.states, strict=True)]
        else:
            assert isinstance(message, RetryProbes)
            self.asked.append(message.probes)
            infos = [ProbeInfo(n, "live" if self.works else "failed", "why again") for n in message.probes]
        return [Loaded(info) for info in infos], done


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time by which probes are tried again; and an interface that nothing happens to."""
    made = Clock()
    monkeypatch.setattr(control_thread, "Retries", lambda: Retries(made))
    monkeypatch.setattr(control_thread.InterfaceWatch, "look", lambda self: "")
    return made


def thread_of(loader: Loader, *probes: str) -> ControlThread:
    return ControlThread(loader, Settings(interface="lo", probes=probes))  # type: ignore[arg-type]


def test_a_probe_that_failed_is_asked_for_again_and_then_runs(clock: Clock) -> None:
    loader = Loader("live", "failed")
    thread = thread_of(loader, "throughput", "flows")
    state = thread.load("")
    assert [worker.probe.name for worker in state.opened] == ["throughput"]
    assert state.failed["flows"].startswith("why; next try at ")
    for seconds, asked in ((9, 0), (2, 1), (18, 1), (3, 2)):
        clock.now += seconds
        state = thread.look_after(Wanted())
        assert loader.asked == [("flows",)] * asked
        assert not state.opened
    assert state.failed["flows"].startswith("why again; next try at ")
    loader.works = True
    clock.now += 41
    state = thread.look_after(Wanted())
    assert [(worker.probe.name, worker.status.state) for worker in state.opened] == [("flows", "live")]
    assert not state.failed
    clock.now += 1000
    thread.look_after(Wanted())
    assert len(loader.asked) == 3


def test_one_that_this_kernel_cannot_run_is_left_alone(clock: Clock) -> None:
    loader = Loader("unavailable")
    thread = thread_of(loader, "irq")
    assert [worker.status.state for worker in thread.load("").opened] == ["unavailable"]
    clock.now += 10_000
    state = thread.look_after(Wanted())
    assert not state.failed
    assert not loader.asked


def test_while_the_interface_is_away_nothing_is_tried(clock: Clock) -> None:
    loader = Loader("failed")
    thread = thread_of(loader, "flows")
    thread.load("")
    thread._interface.gone = "lo is gone"
    clock.now += 100
    thread.look_after(Wanted())
    assert not loader.asked
    thread._interface.gone = ""
    thread.look_after(Wanted())
    assert loader.asked == [("flows",)]


# How often the loader does what it is asked to


TOO_MANY = r"too many requests in a short time; the next is served in [\d.]+ s"


def served(limits: Limits, request_: Request, times: int) -> int:
    """How many of these are not refused."""
    refused: list[str] = []
    for _ in range(times):
        try:
            limits.admit(request_)
        except NettopError as error:
            refused.append(error.message)
    assert all(re.fullmatch(TOO_MANY, message) for message in refused)
    return times - len(refused)


@pytest.mark.parametrize("request_", [Filter(), RetryProbes(("irq",)), Load(Plan("lo", ()))], ids=type)
def test_compilers_are_started_four_times_a_minute_in_the_long_run(request_: Request) -> None:
    clock = Clock()
    limits = Limits(clock)
    assert served(limits, request_, 100) == 20
    for _ in range(600):
        clock.now += 1
        limits.admit(Stats(True))  # which is another bucket
    assert served(limits, request_, 100) == 20
    total = 0
    for _ in range(3600):
        clock.now += 1
        total += served(limits, request_, 3)
    assert 239 <= total <= 241


def test_quick_requests_have_room_for_an_honest_screen() -> None:
    clock = Clock()
    limits = Limits(clock)
    assert served(limits, Stats(True), 1000) == 100
    clock.now += 10
    for _ in range(600):  # five a second
        clock.now += 0.2
        limits.admit(Stats(True))

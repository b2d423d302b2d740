"""Fixtures of the lab, and a limit on the time that any live test may take."""

import signal
import types
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import stagelab
from lab import Lab, Link, Router, build, faults
from observe import Station, watching

TIME_LIMIT_S = 120.0


@pytest.fixture
def lab() -> Iterator[Lab]:
    """An empty lab, gone with everything in it when the test is over.

    `lab.wire(...)` makes wires of known delay.
    """
    with Lab() as made:
        yield made


@pytest.fixture
def veth(lab: Lab) -> Link:
    """Two namespaces joined by a veth pair; nettop runs at `a`."""
    return lab.veth()


@pytest.fixture
def router(lab: Lab) -> Router:
    """Client - router - server, over veth."""
    return lab.router()


@pytest.fixture(scope="module")
def station() -> Iterator[Station]:
    """A link whose end `a` one nettop watches for all of the tests of a module that need nothing else."""
    with Lab() as lab:
        link = lab.veth()
        with watching(lab, link.a) as watch:
            yield Station(lab, link, watch)


@pytest.fixture(scope="module")
def staged() -> Iterator[stagelab.Station]:
    """The same for tests of stages that leave the link as it was."""
    with Lab() as lab:
        link = lab.veth()
        with stagelab.running(lab, link.a) as watch:
            yield stagelab.Station(lab, link, watch)


@pytest.fixture(scope="session")
def cache() -> Path:
    """Where BPF objects that tests compile are kept."""
    build.OBJECTS.mkdir(parents=True, exist_ok=True)
    return build.OBJECTS


@pytest.fixture
def walkable() -> Iterator[Path]:
    """A directory that any user may enter; pytest's own are for whoever runs it."""
    with faults.folder() as path:
        path.chmod(0o755)
        yield path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that hangs, so that its fixtures still clean up."""
    marker = item.get_closest_marker("time_limit")
    limit = float(marker.args[0]) if marker else TIME_LIMIT_S

    def expire(number: int, frame: types.FrameType | None) -> None:
        raise TimeoutError(f"the test took longer than {limit:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

"""Inside a guest: the lab and the checkout on the import path, and patience: an emulated CPU is ten times slower."""

import signal
import sys
import types
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests"), str(CHECKOUT / "tests" / "live")]

import ladder  # noqa: E402  (the path above makes these importable)
import observe  # noqa: E402
import timing  # noqa: E402
from lab import Lab, Link, Nettop  # noqa: E402

TIME_LIMIT_S = ladder.TIME_LIMIT_S

# An emulated CPU is over any budget, and nettop would follow fewer packets; what is counted is the claim here.
assert Nettop.__init__.__kwdefaults__
Nettop.__init__.__kwdefaults__["defaults"] = ("-b", "--format", "ndjson", "--budget", "0")
observe.FIRST_FRAME_S = TIME_LIMIT_S
for method in (Nettop.wait_frames, Nettop.more_frames, Nettop.stop):
    assert method.__kwdefaults__  # the lab's limits are those of a real machine
    method.__kwdefaults__["timeout"] = 200.0


def pytest_configure(config: pytest.Config) -> None:
    timing.register(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The ladder first: it compiles what the others then find compiled."""
    items.sort(key=lambda item: item.path.name != "test_ladder.py")


@pytest.fixture(scope="session")
def ways() -> dict[tuple[str, str], list[ladder.Way]]:
    """Every way of every hook, tried once; what is compiled for it is there for all later runs."""
    return ladder.climb()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def veth(lab: Lab) -> Link:
    return lab.veth()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Fail what hangs, so that the others have their time and the namespaces go; set-up and tear-down count too."""

    def expire(number: int, frame: types.FrameType | None) -> None:
        raise TimeoutError(f"the test took longer than {TIME_LIMIT_S:g} s")

    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S, TIME_LIMIT_S)  # and again, for a second time
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)

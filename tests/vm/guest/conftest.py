"""Inside a guest: the lab and the checkout on the import path, and patience: an emulated CPU is ten times slower."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests"), str(CHECKOUT / "tests" / "live")]

import ladder  # noqa: E402  (the path above makes these importable)
from lab import Lab, Link, Nettop  # noqa: E402

for method in (Nettop.wait_frames, Nettop.more_frames, Nettop.stop):
    assert method.__kwdefaults__  # the lab's limits are those of a real machine
    method.__kwdefaults__["timeout"] = 120.0


@pytest.fixture(scope="session", autouse=True)
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

"""The budget's controller against simulated loads: it sheds in order, comes to rest, and takes everything up again."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from fakes import written
from hypothesis import given, settings
from hypothesis import strategies as st

from nettop.collect.budget import WINDOW_S, Budget, Ladder
from nettop.core.frame import FRAMES, SECONDS, Frame, Health
from nettop.probes.base import FRAMES_STEPS, SECONDS_STEPS, all_probes, shed_words

Load = Callable[[float], float]


def ladder(*names: str) -> Ladder:
    return Ladder(all_probes()[name] for name in names or all_probes())


class World:
    """Costs as they come about: what is always there, and what each of the three can save."""

    def __init__(self, budget: Budget, noise: float = 0.0, stale: bool = True) -> None:
        self.budget = budget
        self.random = np.random.default_rng(7)
        self.noise = noise
        self.stale = stale  # the cost is that of the frame before, as with statistics taken once a second
        self.now = 0.0
        self.levels: list[int] = []
        self._costs: list[tuple[float, float]] = []

    def costs(self, load: float) -> tuple[float, float]:
        """Shares of a core: what is attached costs by being called, and more by following packets, RTT little."""
        shed = self.budget.shed
        stages = (0.2 + 0.65 / shed.get("stages_one_in", 1)) / shed.get(SECONDS, 1)
        kernel = load * (0.1 + stages + 0.05 / shed.get("rtt_one_in", 1))
        user = 0.002 + 0.01 / shed[FRAMES]
        noise = 1 + self.noise * float(self.random.standard_normal())
        return max(kernel * noise, 0.0), user

    def cost(self, load: float) -> float:
        return sum(self.costs(load))

    def run(self, seconds: float, load: Load | float, step: float = 1.0) -> list[int]:
        """The levels of so many seconds."""
        levels = []
        for _ in range(math.ceil(seconds / step)):
            amount = load(self.now) if callable(load) else load
            self._costs.append(self.costs(amount))
            seen = self._costs[-2] if self.stale and len(self._costs) > 1 else self._costs[-1]
            self.budget.update(*seen, step)
            self.now += step
            levels.append(self.budget.level)
        self.levels += levels
        return levels


def changes(levels: list[int]) -> int:
    return sum(a != b for a, b in itertools.pairwise(levels))


def turns(levels: list[int]) -> int:
    """How often it went the other way."""
    steps = [b - a for a, b in itertools.pairwise(levels) if a != b]
    return sum(a * b < 0 for a, b in itertools.pairwise(steps))


def test_the_order_is_stages_then_seconds_then_rtt_then_frames() -> None:
    steps = ladder("throughput", "flows", "stages", "irq").steps
    assert set(steps[0].values()) == {1}
    assert [s["stages_one_in"] for s in steps[:4]] == [1, 4, 16, 64]
    assert [s[SECONDS] for s in steps[4:6]] == list(SECONDS_STEPS)
    assert [s["rtt_one_in"] for s in steps[6:10]] == [2, 4, 8, 16]
    assert [s[FRAMES] for s in steps[10:]] == list(FRAMES_STEPS)
    for before, after in itertools.pairwise(steps):
        assert sum(before[name] != after[name] for name in after) == 1


@pytest.mark.parametrize(
    ("names", "shed"),
    [
        (("flows", "irq"), {SECONDS, "rtt_one_in", FRAMES}),
        (("flows",), {"rtt_one_in", FRAMES}),
        (("stages",), {"stages_one_in", SECONDS, FRAMES}),
        (("throughput",), {FRAMES}),
    ],
)
def test_of_a_probe_that_does_not_run_nothing_is_shed(names: tuple[str, ...], shed: set[str]) -> None:
    assert set(ladder(*names).steps[-1]) == shed


@pytest.mark.parametrize("names", [("irq",), ("flows", "irq"), ("throughput",)])
def test_what_a_step_is_worth_can_be_learnt_without_the_dear_probe(names: tuple[str, ...]) -> None:
    world = World(Budget(0.05, ladder(*names)))
    assert world.run(120, 0.5)[-1] > 0


@pytest.mark.parametrize(("budget", "load"), [(0.20, 0.15), (0.0, 5.0)], ids=["within", "without"])
def test_within_the_budget_and_without_one_nothing_is_shed(budget: float, load: float) -> None:
    assert set(World(Budget(budget, ladder())).run(600, load)) == {0}


def test_one_peak_is_not_a_load() -> None:
    world = World(Budget(0.20, ladder()))
    world.run(20, 0.05)
    world.run(1, 0.3)
    assert set(world.run(30, 0.05)) == {0}


@pytest.mark.parametrize("load", [0.21, 0.25, 0.30, 0.40, 0.50, 0.60, 1.0, 2.0])
@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("step", [0.25, 1.0, 5.0])
def test_a_constant_load_is_shed_at_once_and_then_left_alone(load: float, noise: float, step: float) -> None:
    world = World(Budget(0.20, ladder()), noise)
    world.run(120, load, step)
    rest = world.run(3600, load, step)
    # The noise may bring it over an edge now and then; without any it rests.
    assert changes(rest) <= (0 if noise == 0 else 20)
    all_shed = ladder()
    all_shed.steps = all_shed.steps[-1:]
    if World(Budget(0.20, all_shed)).cost(load) > 0.20:
        assert rest[-1] == len(ladder().steps) - 1
    else:
        assert world.cost(load) <= 0.20 * (1 + 3 * noise)


def test_a_load_that_sheds_is_taken_up_again_when_it_falls() -> None:
    world = World(Budget(0.20, ladder()))
    world.run(60, 0.5)
    assert world.budget.shed["stages_one_in"] > 1
    quiet = world.run(30, 0.02)
    assert quiet[-1] == 0
    assert quiet.index(0) <= 4 * WINDOW_S
    assert turns(quiet) == 0


def test_a_load_that_falls_a_little_is_taken_up_a_little() -> None:
    world = World(Budget(0.20, ladder()))
    world.run(120, 0.5)
    before = world.budget.level
    after = world.run(200, 0.3)[-1]
    assert 0 < after < before
    assert world.cost(0.3) <= 0.20


def test_a_load_that_comes_and_goes_is_followed_without_a_drift() -> None:
    world = World(Budget(0.20, ladder()), noise=0.03)
    for _ in range(5):
        busy = world.run(120, 0.5)
        assert world.cost(0.5) <= 0.20 * 1.1
        assert turns(busy) <= 1
        assert world.run(200, 0.01)[-1] == 0


def test_trying_in_vain_gets_rarer() -> None:
    """What is gained by a step was learnt while the load grew, so it is underrated: a try fails, and few follow."""
    world = World(Budget(0.20, ladder()))
    world.run(40, lambda t: 0.1 + t / 80)
    levels = world.run(3600, 0.6)
    assert turns(levels) <= 6
    assert turns(levels[1800:]) <= 1


@settings(max_examples=60)
@given(
    st.floats(0.02, 0.5),
    st.lists(st.floats(0.0, 3.0), min_size=1, max_size=5),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_whatever_the_load_was_it_rests_and_recovers(limit: float, loads: list[float], step: float) -> None:
    world = World(Budget(limit, ladder()))
    for load in loads:
        world.run(90, load, step)
    world.run(1300, loads[-1], step)
    assert changes(world.run(600, loads[-1], step)) == 0
    world.run(1300, 0.0, step)
    if limit * 0.8 > 0.01:
        assert world.budget.level == 0


def test_what_is_shed_is_said_in_words() -> None:
    assert shed_words({}) == shed_words(dict.fromkeys(("stages_one_in", FRAMES), 1)) == ()
    assert shed_words({"stages_one_in": 8}) == ("stages 1:8",)
    everything = {"stages_one_in": 64, "rtt_one_in": 16, FRAMES: 2, SECONDS: 4}
    assert shed_words(everything) == ("stages 1:64", "stages and irq 1 s in 4", "RTT 1:16", "frames 1:2")


def test_text_output_says_what_is_left_out() -> None:
    health = Health(kernel_ns=10**8, user_ns=10**8, budget_ns=2 * 10**8, shed={"stages_one_in": 8, FRAMES: 2})

    def last_line(health: Health) -> str:
        return written("text", Frame(1, 10**9, "host", "eth0", health=health)).rstrip().splitlines()[-1]

    assert "budget 20" in last_line(health)
    assert "shed stages 1:8, frames 1:2" in last_line(health)
    assert not {"budget", "shed"} & set(last_line(Health()).split())

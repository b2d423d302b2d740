"""What is shed when watching costs more than the budget, and resumed when the load falls.

A pure controller: costs in, a step of a ladder out.  It learns from each change of step how much that step saves, so
that it resumes nothing that it would have to shed again at once: on a constant load it settles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nettop.core.frame import FRAMES, SECONDS
from nettop.probes.base import Probe, sheddings

_CALLED = 0.15  # what being called costs of a duty-cycled probe, by the measure of Shedding.weight
SETTLE_S = 1.2  # after a change, until the run statistics, taken once a second, speak of the new state
WINDOW_S = 2.0  # a decision is made on the mean of so long
ROOM = 0.8  # of the budget: what is taken up again must be expected to fit into this much
HOLD_S, LONGEST_HOLD_S = 10.0, 600.0  # after taking something up in vain
_MOST_GAIN = 4.0  # what a step can be worth, as none leaves out more: what is above was the load's own change

_Cost = tuple[float, float]  # of programs in the kernel and of our processes, as shares of a core
_KERNEL, _USER = 0, 1


class Ladder:
    """The steps in their order: each a ``health.shed``; of probes that do not run there is nothing to shed."""

    def __init__(self, probes: Iterable[Probe]) -> None:
        probes = tuple(probes)
        self._cycled = [p for p in probes if p.duty_cycled]
        self._others = [s for p in probes if not p.duty_cycled for s in p.sheds]
        order = sheddings(probes)
        steps = [dict.fromkeys((s.name for s in order), 1)]
        for shedding in order:
            steps += [{**steps[-1], shedding.name: count} for count in shedding.steps]
        self.steps: tuple[Mapping[str, int], ...] = tuple(steps)

    def left(self, step: int) -> _Cost:
        """Roughly, the share of what can be shed that remains at this step, of either part of the cost.

        Duty-cycled probes cost by being called at every boundary of every packet, and more by what they do there.
        """
        shed = self.steps[step]
        cycled = sum(_CALLED + sum(s.weight / shed[s.name] for s in p.sheds) for p in self._cycled)
        others = sum(s.weight / shed[s.name] for s in self._others)
        return cycled / shed.get(SECONDS, 1) + others, 1 / shed[FRAMES]


class Budget:
    """Keeps the cost below ``limit``, a share of one core (0: no limit)."""

    def __init__(self, limit: float, ladder: Ladder) -> None:
        self.limit = limit
        self.level = 0
        self._ladder = ladder
        self._steps = steps = ladder.steps
        # How many times as much the step before costs, of the part of the cost that the step is about.
        self._gains = [1.0] * len(steps)
        self._parts = [_KERNEL if step[FRAMES] == 1 else _USER for step in steps]
        self._clock = 0.0
        self._changed = 0.0  # when the level changed
        self._from: tuple[int, _Cost] | None = None  # level and cost before that
        self._sum, self._seconds = (0.0, 0.0), 0.0
        self._hold = HOLD_S
        self._undo_from = 0.0  # nothing is taken up again before
        self._undone = -LONGEST_HOLD_S  # when something was

    @property
    def shed(self) -> Mapping[str, int]:
        """What is shed now."""
        return self._steps[self.level]

    def update(self, kernel: float, user: float, seconds: float) -> Mapping[str, int]:
        """What is shed from now on, after the last ``seconds`` cost so much, as shares of a core."""
        self._clock += seconds
        # The first frame after a change tells of before it.
        if self.limit <= 0 or self._clock - self._changed < max(SETTLE_S, 1.5 * seconds):
            return self.shed
        self._sum = self._sum[0] + kernel * seconds, self._sum[1] + user * seconds
        self._seconds += seconds
        if self._seconds >= WINDOW_S:
            mean = self._sum[0] / self._seconds, self._sum[1] / self._seconds
            self._sum, self._seconds = (0.0, 0.0), 0.0
            self._learn(mean)
            self._decide(mean)
        return self.shed

    def _learn(self, mean: _Cost) -> None:
        """From the first figures after a change: what the steps in between are worth."""
        if self._from is None:
            return
        level, before = self._from
        self._from = None
        low, high = sorted((level, self.level))
        dear, cheap = (before, mean) if level < self.level else (mean, before)
        for part in (_KERNEL, _USER):
            crossed = [step for step in range(low + 1, high + 1) if self._parts[step] == part]
            if not crossed:
                continue
            # A line through both: the constant part, and what depends on the step.
            most, least = (self._ladder.left(step)[part] for step in (crossed[0] - 1, crossed[-1]))
            slope = max(dear[part] - cheap[part], 0.0) / (most - least)
            for step in crossed:
                without, with_it = (
                    cheap[part] + slope * (self._ladder.left(s)[part] - least) for s in (step - 1, step)
                )
                self._gains[step] = min(max(without / max(with_it, 1e-9), 1.0), _MOST_GAIN)

    def _decide(self, mean: _Cost) -> None:
        cost = sum(mean)
        if cost > self.limit:
            far = 1 + (cost > 1.5 * self.limit) + (cost > 2.5 * self.limit)
            target = min(self.level + far, len(self._steps) - 1)
            if target > self.level and self._clock - self._undone < self._hold + LONGEST_HOLD_S / 10:
                # What was taken up did not fit after all: wait longer before the next try.
                self._undo_from = self._clock + self._hold
                self._hold = min(2 * self._hold, LONGEST_HOLD_S)
        else:
            if self._clock - self._undone > 2 * LONGEST_HOLD_S:
                self._hold = HOLD_S
            target = self._fitting(mean)
            if target < self.level:
                if self._clock < self._undo_from:
                    return
                self._undone = self._clock
        if target != self.level:
            self._from = (self.level, mean)
            self.level = target
            self._changed = self._clock

    def _fitting(self, mean: _Cost) -> int:
        """The lowest level that is expected to fit into the budget, with room to spare."""
        expected = list(mean)
        target = self.level
        while target:
            expected[self._parts[target]] *= self._gains[target]
            if sum(expected) > ROOM * self.limit:
                break
            target -= 1
        return target

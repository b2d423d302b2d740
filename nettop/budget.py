"""What is left out when watching costs more than it may, and taken up again when the load falls.

A pure controller: costs in, a step of a ladder out.  It knows nothing of where the cost comes from, and learns from
each change of step how much that step is worth, so that it takes nothing up again that it would have to give up at
once: on a constant load it comes to rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from nettop.model import Shed

STAGES_SHIFT = 6  # at most: one packet in 64
RTT_SHIFT = 4  # at most: a probe in 268 ms instead of one in 17 ms
SLOWER = (2, 4)  # frames so many times as far apart
SETTLE_S = 1.2  # after a change, until the run statistics, taken once a second, speak of the new state
WINDOW_S = 2.0  # a decision is made on the mean of so long
ROOM = 0.8  # of the budget: what is taken up again must be expected to fit into this much
HOLD_S, LONGEST_HOLD_S = 10.0, 600.0  # after taking something up in vain
_MOST_GAIN = 2.0  # what a step can be worth, as each leaves out half: more was the load's own change

_Cost = tuple[float, float]  # of programs in the kernel and of our processes, as shares of a core
_KERNEL, _USER = 0, 1


def ladder(stages: bool = True, flows: bool = True) -> tuple[Shed, ...]:
    """The steps in their order; of probes that do not run there is nothing to leave out."""
    steps = [Shed()]
    if stages:
        steps += [Shed(1 << n) for n in range(1, STAGES_SHIFT + 1)]
    last = steps[-1]
    if flows:
        steps += [Shed(last.stages_one_in, 1 << n) for n in range(1, RTT_SHIFT + 1)]
    last = steps[-1]
    return (*steps, *(Shed(last.stages_one_in, last.rtt_one_in, factor) for factor in SLOWER))


class Budget:
    """Keeps the cost below ``limit``, a share of one core (0: no limit)."""

    def __init__(self, limit: float, steps: Sequence[Shed] = ladder()) -> None:
        self.limit = limit
        self.level = 0
        self._steps = steps
        # How many times as much the step before costs, of the part of the cost that the step is about.
        self._gains = [1.0] * len(steps)
        self._parts = [_KERNEL if step.frames_one_in == 1 else _USER for step in steps]
        self._clock = 0.0
        self._changed = 0.0  # when the level changed
        self._from: tuple[int, _Cost] | None = None  # level and cost before that
        self._sum, self._seconds = (0.0, 0.0), 0.0
        self._hold = HOLD_S
        self._undo_from = 0.0  # nothing is taken up again before
        self._undone = -LONGEST_HOLD_S  # when something was

    @property
    def shed(self) -> Shed:
        """What is left out now."""
        return self._steps[self.level]

    def update(self, kernel: float, user: float, seconds: float) -> Shed:
        """Take in what programs and processes took in the last ``seconds``, as shares of a core.

        Returns what is to be left out from now on.
        """
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
        """From the first figures after a change: what the steps in between are worth, all alike."""
        if self._from is None:
            return
        level, before = self._from
        self._from = None
        low, high = sorted((level, self.level))
        dear, cheap = (before, mean) if level < self.level else (mean, before)
        for part in (_KERNEL, _USER):
            crossed = [step for step in range(low + 1, high + 1) if self._parts[step] == part]
            for step in crossed:
                gain = (dear[part] / max(cheap[part], 1e-9)) ** (1 / len(crossed))
                self._gains[step] = min(max(gain, 1.0), _MOST_GAIN)

    def _decide(self, mean: _Cost) -> None:
        cost = sum(mean)
        if cost > self.limit:
            target = min(self.level + (2 if cost > 2 * self.limit else 1), len(self._steps) - 1)
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


def words(shed: Shed) -> tuple[str, ...]:
    """What is left out, each in a few words: ``stages 1:8``."""
    parts = (("stages", shed.stages_one_in), ("RTT", shed.rtt_one_in), ("frames", shed.frames_one_in))
    return tuple(f"{what} 1:{count}" for what, count in parts if count > 1)

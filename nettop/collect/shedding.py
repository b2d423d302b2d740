"""What is shed to stay within the budget: decided from what each frame cost, and told to the programs.

``Shedder`` is the loop's: a frame in, what to shed from then on.  ``DutyCycle``, which makes that so, is the
control thread's, as are the attachments that it is given.  Between them goes the frame's ``health.shed``, a value.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from nettop.collect.attachments import Attachments
from nettop.collect.budget import Budget, Ladder
from nettop.core.errors import NettopError
from nettop.core.frame import FRAMES, SECONDS, Frame
from nettop.probes.base import Probe, Shedding, shed_words

_log = logging.getLogger(__name__)
LOOK_SECONDS = 0.5  # how often ``follow`` is called
_IN_FLIGHT_SECONDS = 0.02  # until a packet that is followed has come to its end, as most have


class Shedder:
    """Keeps what watching costs below ``percent`` of a core (0: no limit)."""

    def __init__(self, percent: float) -> None:
        self._limit = percent / 100
        self._budget = Budget(self._limit, Ladder(()))

    @property
    def slower(self) -> int:
        """How many times as far apart as asked for frames are."""
        return self.shed[FRAMES]

    @property
    def shed(self) -> Mapping[str, int]:
        """What is shed now."""
        return self._budget.shed

    def probes_changed(self, live: Iterable[Probe]) -> None:
        """These run now: of others there is nothing to shed."""
        self._budget = Budget(self._limit, Ladder(live))

    def account(self, frame: Frame) -> Frame:
        """The frame with its budget and what was shed in it; its cost decides what is shed from now on."""
        shed, health = self.shed, frame.health
        if not self._limit:
            return replace(frame, health=replace(health, shed=shed))
        interval, kernel = max(frame.interval_ns, 1), health.kernel_ns or 0
        self._budget.update(kernel / interval, health.user_ns / interval, frame.seconds)
        if self.shed != shed:
            now = ", ".join(shed_words(self.shed)) or "nothing"
            cost = (kernel + health.user_ns) / interval * 100
            _log.info("watching costs %.1f %% of a core; shed: %s", cost, now)
        limit = round(self._limit * frame.interval_ns)
        return replace(frame, health=replace(health, budget_ns=limit, shed=shed))


class DutyCycle:
    """Samples packets and RTT probes as the budget says, and attaches some probes for one second in several only.

    ``share``: of the time for which a probe is attached, where that is not all.  ``switches``: how often they were
    suspended or resumed, odd while they are suspended.
    """

    def __init__(self, attachments: Attachments) -> None:
        self._attachments = attachments
        self._live: tuple[Probe, ...] = ()
        self._cycled: tuple[str, ...] = ()
        self._suspended = False
        self._looks = 0
        self.share: Mapping[str, float] = {}
        self.switches = 0

    def probes_changed(self, live: Iterable[Probe]) -> None:
        """These run now; what has just been attached is detached again if it is to be suspended."""
        self._live = tuple(live)
        self._cycled = tuple(probe.name for probe in self._live if probe.duty_cycled)
        self.attached()

    def attached(self) -> None:
        """Something was attached meanwhile: it is detached again if it is to be suspended."""
        if self._suspended:
            self._attachments.suspend(self._cycled)

    def follow(self, shed: Mapping[str, int], least: Mapping[str, int]) -> None:
        """Shed this, and by each field of struct config in ``least`` at least so much.  Blocks."""
        self._tell(shed, least)
        one_in = shed.get(SECONDS, 1)
        self.share = dict.fromkeys(self._cycled, 1 / one_in) if one_in > 1 else {}
        second = round(1 / LOOK_SECONDS)
        suspend = self._looks % (one_in * second) >= second
        self._looks += 1
        if suspend == self._suspended:
            return
        if suspend:
            self._suspended = True
            self._tell(shed, least)  # no packet is followed that could not be followed to its end
            time.sleep(_IN_FLIGHT_SECONDS)
            self._attachments.suspend(self._cycled)
        else:
            try:
                self._attachments.resume(self._cycled)
            except NettopError as error:
                _log.warning("%s: not attached again: %s", " and ".join(self._cycled), error)
                return
            self._suspended = False
            self._tell(shed, least)
        self.switches += 1

    def _tell(self, shed: Mapping[str, int], least: Mapping[str, int]) -> None:
        """Tell the programs how much to shed."""

        def value(what: Shedding) -> int:
            if self._suspended and what.suspended is not None:
                return what.suspended
            return max(least.get(what.knob, 0), shed.get(what.name, 1).bit_length() - 1)

        told: dict[str, Any] = {what.knob: value(what) for probe in self._live for what in probe.sheds}
        self._attachments.configure(replace(self._attachments.config, **told))

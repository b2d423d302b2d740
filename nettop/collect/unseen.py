"""What the interface counts and the programs do not see."""

from __future__ import annotations

import time
from collections import deque
from itertools import pairwise

from nettop.core.frame import Frame

_JUDGED_BYTES = 100_000  # of the interface's own counting, before what we have seen of them is looked at
_JUDGED_PACKETS = 200  # the same
_JUDGED_SHARE = 0.05  # of them: from here on it is told
_JUDGED_FRAMES = 24  # that are looked at together


class Compared:
    """What passed in one direction of late, in bytes or packets: by the interface, and by us.

    Its counters are read after our maps, and before the next frame's maps are.  So what it has more than we have is
    right to a frame's traffic, and as good as right in the frame that is read quickest.
    """

    def __init__(self, enough: int) -> None:
        self._enough = enough  # of the interface's own counting, before anything is told
        # Counted and seen, since the start.
        self._sums: deque[tuple[int, int]] = deque([(0, 0)], _JUDGED_FRAMES)

    def add(self, counted: int, seen: int) -> float:
        """A frame's; by which share of the interface's we have more, below 0 less: 0 where that cannot be told."""
        sums = self._sums
        sums.append((sums[-1][0] + counted, sums[-1][1] + seen))
        whole = sums[-1][0] - sums[0][0]
        if whole < self._enough:
            return 0.0
        ahead = [ours - theirs for theirs, ours in sums]
        largest = max(after[0] - before[0] for before, after in pairwise(sums))
        grown = ahead[-1] - ahead[0]
        if abs(grown) - largest > _JUDGED_SHARE * whole:
            return grown / whole
        if len(sums) < _JUDGED_FRAMES:
            return 0.0
        # The first quarter of them beside the last, each by the frame that leans most the other way.
        part = _JUDGED_FRAMES // 4
        first, last = range(part), range(_JUDGED_FRAMES - part, _JUDGED_FRAMES)
        before, after = max(first, key=ahead.__getitem__), min(last, key=ahead.__getitem__)
        more = ahead[after] - ahead[before]
        if more <= 0:
            before, after = min(first, key=ahead.__getitem__), max(last, key=ahead.__getitem__)
            more = min(ahead[after] - ahead[before], 0)
        return more / max(sums[after][0] - sums[before][0], 1)


class Unseen:
    """Compares what the interface counts with what the programs saw, frame by frame.

    ``note`` says what differs, and why that may be; empty: nothing does.
    """

    def __init__(self) -> None:
        self.note = ""
        self._totals: dict[tuple[str, str], int] = {}  # by direction and unit, the interface's own
        self._waits = 0  # bytes in the queue
        self._judged = _unjudged()

    def reset(self) -> None:
        """What was compared is of something else than what comes now."""
        self.note = ""
        self._judged = _unjudged()

    def look(self, frame: Frame, comparable: bool, changed: float) -> None:
        """Take a frame in.  ``comparable``: all packets are counted, and have been since ``changed`` (monotonic)."""
        section = next((each for each in frame.sections.values() if each.COMPARABLE), None)
        before, self._totals = self._totals, {}
        for direction, what in self._judged:
            total = getattr(getattr(section, direction, None), f"{what}_total", None)
            if total is not None:
                self._totals[direction, what] = total
        # What waits in the queue has been counted by us, and will be by the interface.
        waited = self._waits
        self._waits = getattr(getattr(section, "qdisc", None), "backlog_bytes", None) or 0
        if not comparable or time.monotonic() - changed < 1.5 * frame.seconds:
            self._judged = _unjudged()
            return
        self.note = ""
        for (direction, what), now in self._totals.items():
            if (direction, what) in before:
                seen = getattr(getattr(section, direction), what)
                if direction == "tx":
                    seen -= self._waits - waited
                share = self._judged[direction, what].add(now - before[direction, what], seen)
                # We have more of what is sent where the queue drops, which comes behind us.
                tells = share < -_JUDGED_SHARE or (share > _JUDGED_SHARE and direction == "rx")
                if tells and not self.note:
                    self.note = getattr(section, "differs", None) or _sentence(direction, what, share)


def _unjudged() -> dict[tuple[str, str], Compared]:
    """By direction and unit.  Packets that wait in the queue are not known as the interface will count them."""
    return {
        ("rx", "bytes"): Compared(_JUDGED_BYTES),
        ("rx", "packets"): Compared(_JUDGED_PACKETS),
        ("tx", "bytes"): Compared(_JUDGED_BYTES),
    }


def _sentence(direction: str, what: str, share: float) -> str:
    """What to say where the interface counts more, or less, than comes to TC, where all programs of ours are."""
    word = "received" if direction == "rx" else "sent"
    if share > 0:
        return f"{round(100 * share)} % more {what} {word} than the interface counts: how it counts is not known here"
    text = f"{round(-100 * share)} % of the {what} {word} are not seen"
    if what == "packets":  # and hardly any bytes
        return f"{text}, or are merged or cut up where that cannot be followed"
    if direction == "rx":
        return f"{text}: XDP, AF_XDP, or a TC program before nettop takes them"
    return f"{text}: AF_XDP or PACKET_QDISC_BYPASS, which pass by TC, or a TC program before nettop"

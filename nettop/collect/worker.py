"""One probe's readings and fold."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nettop.bpf.maps import Reader
from nettop.core.frame import ProbeStatus, Section
from nettop.probes.base import Fold, Probe, Reads

_log = logging.getLogger(__name__)

DRAIN_NS = 100_000_000
_RETRY_S = (1.0, 5.0, 30.0, 60.0)  # after a probe has failed, until it is tried again; then the last for ever
_SLACK_NS = 50_000_000


@dataclass
class Worker:
    """One probe's readers and fold.  ``status`` is what its pane says.

    It is used by one at a time, which the engine's lock sees to: its executor for ``step``, the loop for the rest.

    A worker that has failed is tried again with a fold of its own (``renew``): what the old one remembers is half of an
    interval.  Its first reading is the base of the next, and no section comes of it.
    """

    probe: Probe
    renew: Callable[[], Fold]
    readers: Mapping[str, Reader]
    system: Mapping[str, Callable[[str], Any]]  # of the interface's name
    status: ProbeStatus
    scan_ns: int = 0  # how far apart the readings of large tables are; 0: with every frame
    runs: Mapping[str, Callable[[bytes], None]] = field(default_factory=dict)  # by hook, see Folded
    last_ns: int = field(default_factory=time.monotonic_ns)
    fold: Fold = field(init=False)
    _failures: int = 0
    _retry: float = 0.0  # time.monotonic() of the next try
    _detail: str = ""  # of the status while it worked
    _scans: int = 0
    _scan_due: int = 0
    _events: dict[str, list[Any]] = field(default_factory=dict)
    _early: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    _due: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fold = self.renew()

    def drain(self) -> None:
        """Empty the ring buffers, and take the readings that are due more often than a frame."""
        now = time.monotonic_ns()
        for layout in self.probe.maps:
            reader = self.readers.get(layout.name)
            if reader is None:
                continue
            if layout.read == "ring":
                events = reader.read()
                if len(events):
                    self._events.setdefault(layout.name, []).append(events)
            elif layout.every_ns and now >= self._due.get(layout.name, 0):
                self._due[layout.name] = now + layout.every_ns
                self._early.setdefault(layout.name, []).append((now, reader.read().copy()))  # type: ignore[union-attr]

    def collect(self, interface: str = "") -> Reads:
        """Everything since the last time, with what the system says of this interface.  Runs in the executor."""
        self._due.clear()
        self.drain()
        scanning = self._scanning()
        maps: dict[str, Any] = {}
        for layout in self.probe.maps:
            reader = self.readers.get(layout.name)
            if reader is None or (layout.scan and not scanning):
                continue
            if layout.read == "ring":
                parts = self._events.pop(layout.name, [])
                maps[layout.name] = np.concatenate(parts) if parts else reader.read()
            elif layout.every_ns:
                maps[layout.name] = self._early.pop(layout.name, [])
            else:
                maps[layout.name] = reader.read()
        system: dict[str, Any] = {}
        for name, reading in self.system.items():
            try:
                system[name] = reading(interface)
            except OSError as error:
                _log.debug("%s: reading %s: %s", self.probe.name, name, error)
                system[name] = None
        now = time.monotonic_ns()
        interval, self.last_ns = now - self.last_ns, now
        return Reads(now, interval, maps, system)

    def _scanning(self) -> bool:
        """Whether the large tables are read this time: always for the base and the first frame, then when due."""
        now = time.monotonic_ns()
        # A frame comes a little early or late: what is due within the slack is due.
        if now < self._scan_due - min(self.scan_ns // 10, _SLACK_NS):
            return False
        self._scans += 1
        if self._scans > 1:
            late = now - self._scan_due
            self._scan_due = (self._scan_due if late < self.scan_ns else now) + self.scan_ns
        return True

    def step(self, interface: str = "") -> Section | None:
        """One interval: read, fold, and run what the fold asks for.  Runs in the executor."""
        trying = self._failures > 0 and self.status.state == "failed"
        if self.status.state != "live" and not (trying and time.monotonic() >= self._retry):
            return None
        try:
            if trying:
                self._begin_again()
            folded = self.fold(self.collect(interface))
            for hook, values in folded.run.items():
                for value in values:
                    self.runs[hook](value)
        except Exception as error:  # one probe's failure is its own: its pane says so, the others go on
            self.failed(error)
            return None
        if trying:
            _log.info("probe %s works again", self.probe.name)
            self.status = replace(self.status, state="live", detail=self._detail)
            return None
        if self._failures and time.monotonic() > self._retry + _RETRY_S[-1]:
            self._failures = 0  # it has worked for a minute
        return folded.section

    def failed(self, error: Exception) -> None:
        """Say so, and when it is tried again."""
        _log.error("probe %s failed", self.probe.name, exc_info=error)
        if self.status.state == "live":
            self._detail = self.status.detail
        wait = _RETRY_S[min(self._failures, len(_RETRY_S) - 1)]
        self._failures += 1
        self._retry = time.monotonic() + wait
        clock = time.strftime("%H:%M:%S", time.localtime(time.time() + wait))
        detail = f"{type(error).__name__}: {error}; next try at {clock}"
        self.status = replace(self.status, state="failed", detail=detail)

    def _begin_again(self) -> None:
        """Forget what was read before, as at the start."""
        self.fold = self.renew()
        self._events.clear()
        self._early.clear()
        self._due.clear()
        self._scans = self._scan_due = 0
        self.last_ns = time.monotonic_ns()

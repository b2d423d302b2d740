"""What the programs and both processes cost, and what the programs missed.  All of it is the loop's.

The descriptors of programs come from the control thread (attachments.py) and are closed here, when nothing that is
attached has them any more and no sample of them is being taken.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping

from nettop.bpf import programs, syscall
from nettop.collect.attachments import Attachment
from nettop.collect.loader_client import LoaderGoneError
from nettop.core.errors import NettopError
from nettop.core.frame import Health, HookStatus
from nettop.netdev import counters

_log = logging.getLogger(__name__)

_STATS_SECONDS = 0.1  # of each second: statistics cost every run about 20 ns


class LiveMeter:
    """The programs' run statistics, by duty cycle, and the cost of these processes.

    ``switch`` turns the kernel's run statistics on or off; NettopError or OSError where it cannot.
    """

    def __init__(self, pids: tuple[int, ...], switch: Callable[[bool], Awaitable[object]]) -> None:
        self._pids = pids
        self._switch = switch
        self._hooks: tuple[Attachment, ...] = ()
        self._share: Mapping[str, float] = {}  # of the time in which a probe is attached, where not all
        self._switches = 0  # how often one has been attached or detached, and odd while it is not
        self._cost: programs.Cost | None = None
        self._cpu_ns = self._cpu()
        self._can = True
        self._retired: set[int] = set()
        self._missed: dict[int, int] = {}  # recursion_misses so far, by descriptor

    def attached(
        self, hooks: tuple[Attachment, ...], share: Mapping[str, float] | None = None, switches: int = 0
    ) -> None:
        """What is attached now, and for which share of the time (see DutyCycle)."""
        self._retired |= _programs(self._hooks)
        self._retired -= _programs(hooks)
        self._missed = {fd: n for fd, n in self._missed.items() if fd not in self._retired}
        self._hooks, self._share, self._switches = hooks, share or {}, switches

    async def measure(self) -> None:
        """Statistics on for a tenth of a second; the rates found stand for the whole second.  Once a second at most."""
        self._close_retired()
        fds = tuple(sorted(_programs(self._hooks)))
        if not fds or not self._can:
            return
        try:
            await self._switch(True)
            start, before, switches = time.monotonic_ns(), programs.sample(fds), self._switches
            await asyncio.sleep(_STATS_SECONDS)
            window, after = time.monotonic_ns() - start, programs.sample(fds)
            await self._switch(False)
        except (NettopError, OSError) as error:
            level = logging.INFO if isinstance(error, LoaderGoneError) else logging.WARNING
            _log.log(level, "no run statistics: %s", error)
            self._can, self._cost = False, None
            return
        found = programs.cost(before, after, window)
        if self._cost and self._share and (switches != self._switches or switches & 1):
            # Not attached for all of it: what was found when they were stands, for the share of time that they are.
            suspended = {fd for hook in self._hooks if hook.probe in self._share for fd in hook.programs}
            found = {
                fd: self._cost.get(fd, (0.0, 0.0)) if fd in suspended else rates
                for fd, rates in found.items()
            }
        self._cost = found

    def _close_retired(self) -> None:
        """Between two samples."""
        for fd in self._retired:
            os.close(fd)
        self._retired.clear()

    def hooks(self, probe: str, interval_ns: int) -> tuple[HookStatus, ...]:
        """The hooks of a probe with estimates for the interval."""
        result: list[HookStatus] = []
        for hook in (h for h in self._hooks if h.probe == probe):
            missed = self._recursion_misses(hook)
            rates = [self._cost[fd] for fd in set(hook.programs) if fd in self._cost] if self._cost else []
            if not rates:  # or only those of programs that a change of the filter has ended
                result.append(HookStatus(hook.hook, hook.via, recursion_misses=missed))
                continue
            attached_ns = interval_ns * self._share.get(probe, 1.0)
            runs, ns = (int(sum(each) * attached_ns) for each in zip(*rates, strict=True))
            result.append(HookStatus(hook.hook, hook.via, runs, ns, missed))
        return tuple(result)

    def _recursion_misses(self, hook: Attachment) -> int | None:
        """Since it was asked for last; None where the kernel does not say."""
        missed = 0
        for fd in hook.programs:
            try:
                total = syscall.program_info(fd).recursion_misses
            except OSError:
                return None
            missed += total - self._missed.get(fd, 0)
            self._missed[fd] = total
        return missed

    def health(self, interval_ns: int) -> Health:
        """The program's own cost in the interval."""
        now = self._cpu()
        used, self._cpu_ns = max(now - self._cpu_ns, 0), now
        kernel = None if self._cost is None else int(self._kernel(self._cost) * interval_ns)
        return Health(kernel_ns=kernel, user_ns=used, rss_bytes=sum(map(counters.resident_bytes, self._pids)))

    def _kernel(self, cost: programs.Cost) -> float:
        """ns of programs in each ns."""
        shares = {fd: self._share.get(hook.probe, 1.0) for hook in self._hooks for fd in hook.programs}
        return sum(rate * shares.get(fd, 1.0) for fd, (_, rate) in cost.items())

    def _cpu(self) -> int:
        return sum(map(counters.cpu_ns, self._pids))


def _programs(hooks: tuple[Attachment, ...]) -> set[int]:
    return {fd for hook in hooks for fd in hook.programs}

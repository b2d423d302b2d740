"""What the programs cost: run counts and times of bpf_prog_info, taken while the loader has statistics on.

The kernel's figure includes its own two clock readings a run (20-30 ns), so it errs on the high side.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from nettop.bpf import syscall


@dataclass(frozen=True)
class Cost:
    """Runs and ns of run time in each ns of real time, by program descriptor."""

    runs: Mapping[int, float]
    ns: Mapping[int, float]


def kept(found: Cost, before: Cost, fds: Set[int]) -> Cost:
    """What was found, but for these descriptors what was found before."""
    return Cost(
        {fd: (before.runs.get(fd, 0.0) if fd in fds else rate) for fd, rate in found.runs.items()},
        {fd: (before.ns.get(fd, 0.0) if fd in fds else rate) for fd, rate in found.ns.items()},
    )


def sample(fds: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """(runs, run_ns) so far, by descriptor."""
    result: dict[int, tuple[int, int]] = {}
    for fd in fds:
        info = syscall.program_info(fd)
        result[fd] = (info.runs, info.run_ns)
    return result


def cost(before: Mapping[int, tuple[int, int]], after: Mapping[int, tuple[int, int]], window_ns: int) -> Cost:
    """The rates between two samples."""
    window = max(window_ns, 1)
    return Cost(
        {fd: (after[fd][0] - before[fd][0]) / window for fd in after if fd in before},
        {fd: (after[fd][1] - before[fd][1]) / window for fd in after if fd in before},
    )

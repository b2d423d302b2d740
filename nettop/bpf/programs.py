"""What the programs cost: run counts and times of bpf_prog_info, taken while the loader has statistics on.

The kernel's figure includes its own two clock readings a run (20-30 ns), so it errs on the high side.
"""

from __future__ import annotations

from collections.abc import Mapping

from nettop.bpf import syscall

Cost = Mapping[
    int, tuple[float, float]
]  # by program descriptor: runs, and ns of run time, in each ns of real time


def sample(fds: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """(runs, run_ns) so far, by descriptor."""
    infos = {fd: syscall.program_info(fd) for fd in fds}
    return {fd: (info.runs, info.run_ns) for fd, info in infos.items()}


def cost(before: Mapping[int, tuple[int, int]], after: Mapping[int, tuple[int, int]], window_ns: int) -> Cost:
    """The rates between two samples."""
    window = max(window_ns, 1)
    return {
        fd: ((runs - before[fd][0]) / window, (ns - before[fd][1]) / window)
        for fd, (runs, ns) in after.items()
        if fd in before
    }

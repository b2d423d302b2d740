"""From the command to the first figures on the screen, in a pseudo-terminal of 120x40, with a warm cache.

sudo .venv/bin/python bench/start.py [--repeats N] [--quick]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable

from common import Options, Table, Terminal, nettop, run, say, spread
from lab import Lab, Link

FIRST_FIGURES = b"b/s"  # a rate: nothing on the waiting screen has one


def start(link: Link) -> float:
    """Seconds until the first rate is on the screen."""
    begin = time.monotonic()
    with Terminal(link.a.ns.argv(nettop(link.a.name))) as terminal:
        while FIRST_FIGURES not in terminal.head:
            if time.monotonic() > begin + 60:
                raise TimeoutError(f"no figures in a minute: {terminal.head[-300:]!r}")
            time.sleep(0.01)
        return time.monotonic() - begin


def measure(options: Options) -> Iterable[Table]:
    """One row."""
    say("start")
    with Lab() as lab:
        link = lab.veth()
        start(link)  # fills the cache
        times = [start(link) for _ in range(options.times(9, 3))]
    table = Table(
        "Start",
        "sudo .venv/bin/python bench/start.py",
        ("from the command to the first figures on the screen, s", "starts"),
        words="The cache is warm; the first interval is 0.2 s of it.",
    )
    table.rows.append([spread(times, ".2f"), str(len(times))])
    table.facts["start"] = statistics.median(times)
    yield table


if __name__ == "__main__":
    run(__doc__, measure)

"""Connections that come and go as fast as the lab can make them: each counted as opened and as closed.

sudo .venv/bin/python bench/churn.py [--repeats N] [--quick]
"""

from __future__ import annotations

from collections.abc import Iterable

from common import Options, Table, run, say
from lab import Lab, Nettop
from lab.traffic import answering, churn


def measure(options: Options) -> Iterable[Table]:
    """A row a run."""
    count = 30_011 if options.quick else 150_011
    table = Table(
        "Connection churn",
        "sudo .venv/bin/python bench/churn.py",
        ("connections", "a second", "opened", "closed", "evicted", "lost events", "beyond"),
        words="""
Connect, 64 bytes each way, close, 64 at once; the rate is the lab's limit. *Beyond*: opened flows that were not the
client's.
""",
    )
    for number in range(options.times(3)):
        say(f"churn: run {number + 1}")
        with Lab() as lab:
            link = lab.veth()
            with Nettop(lab, link.a, "--max-flows", "1048576") as nettop:
                nettop.wait_frames(2, timeout=60)
                with answering(link.b, ports=16) as server:
                    result = churn(link.a, server, count, at_once=64)
                nettop.more_frames(3)
                frames = nettop.frames
        opened, closed = frames[-1]["flows_opened_total"], frames[-1]["flows_closed_total"]
        evicted, lost = (sum(f["health"][k] for f in frames) for k in ("evicted_flows", "lost_events"))
        figures = (count, round(result.per_second), opened, closed, evicted, lost, opened - count)
        table.rows.append([str(figure) for figure in figures])
        wrong = abs(opened - count) + abs(closed - count) - evicted
        table.facts["connections miscounted"] = max(table.facts.get("connections miscounted", 0), wrong)
        table.facts["connections a second"] = max(
            table.facts.get("connections a second", 0), result.per_second
        )
    yield table


if __name__ == "__main__":
    run(__doc__, measure)

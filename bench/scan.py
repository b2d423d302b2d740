"""What reading the flow table costs: nettop with ten thousand to a million live flows.

    sudo .venv/bin/python bench/scan.py [--quick]

The flows are live: datagrams of all of them in turn, 50 000 a second, from a raw socket at the other end
(tests/lab/flood.c).  nettop runs as for a user who pipes it, `-p flows --max-flows 1048576 --top 50`: the table is
read, joined with the reading before, and the top 50 written.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable

from common import Options, Table, memory_of, run, say, spread
from lab import Lab, Nettop
from lab.program import Frame
from workloads import flood

PER_SECOND = 50_000
FAST = 100_000  # while the table is being filled
MOST = 1 << 20


def whole(frames: list[Frame]) -> list[Frame]:
    """From after one reading of the table to another: as many readings as there are intervals between them."""
    fresh = [number for number, frame in enumerate(frames) if frame["flows_age_ns"] == 0]
    return frames[fresh[0] + 1 : fresh[-1] + 1]


def one(flows: int, scan: float, seconds: float, facts: dict[str, float]) -> list[str]:
    """One size and one pace: the row of the table, and its figures by themselves."""
    with Lab() as lab:
        link = lab.veth()
        pace = ("--scan-interval", f"{scan:g}") if scan > 1 else ()
        options = ("-p", "flows", "--max-flows", str(MOST), "--top", "50", "--budget", "0", *pace)
        with Nettop(lab, link.a, *options) as nettop:
            nettop.wait_frames(2, timeout=60)
            flood(link, flows, FAST, 0).wait(timeout=120)
            process = flood(link, flows, PER_SECOND, seconds + scan + 60)
            nettop.more_frames(3, timeout=60)
            first = len(nettop.frames)
            end = time.monotonic() + seconds
            while time.monotonic() < end or sum(f["flows_age_ns"] == 0 for f in nettop.frames[first:]) < 3:
                nettop.more_frames(1, timeout=60)
            frames = whole(nettop.frames[first:])
            memory = max(memory_of(nettop.pid))
            process.stop()
    user = [f["health"]["user_ns"] / f["interval_ns"] * 100 for f in frames]
    mean = sum(f["health"]["user_ns"] for f in frames) / sum(f["interval_ns"] for f in frames)
    kernel = [f["health"]["kernel_ns"] / f["interval_ns"] * 100 for f in frames if f["health"]["kernel_ns"]]
    total = statistics.median(f["flows_total"] for f in frames)
    evicted = sum(f["health"]["evicted_flows"] for f in frames)
    facts[f"cores, {flows} every {scan:g} s"] = mean
    facts[f"missing of {flows}"] = max(flows - total, 0) + evicted
    return [
        f"{flows:,}".replace(",", " "),
        f"{scan:g} s",
        f"**{mean:.3f}**",
        spread(user, ".1f"),
        spread(kernel, ".1f"),
        f"{total:,.0f}".replace(",", " "),
        str(evicted),
        f"{memory / 1e6:.0f}",
    ]


def measure(options: Options) -> Iterable[Table]:
    """A row for each number of flows and pace of scanning."""
    table = Table(
        "Reading the flow table",
        "sudo .venv/bin/python bench/scan.py",
        (
            "flows",
            "scan every",
            "cores",
            "percent by frame",
            "in the kernel, percent",
            "held",
            "evicted",
            "MB",
        ),
        words=f"""
*Cores*: CPU of nettop's processes with system time. *By frame*: frames with and without a scan. {PER_SECOND} packets a
second, each of a flow that the caches have forgotten. *MB*: resident memory of the screen's process.
""",
    )
    sizes = (10_000, 100_000, 500_000) if options.quick else (10_000, 100_000, 500_000, 1_000_000)
    for flows in sizes:
        say(f"scan: {flows} flows")
        table.rows.append(one(flows, 1, options.seconds(10, 5), table.facts))
        if flows >= 500_000:
            table.rows.append(one(flows, 10, options.seconds(42, 32), table.facts))
    yield table


if __name__ == "__main__":
    run(__doc__, measure)

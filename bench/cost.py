"""Kernel ns a packet of throughput.c and flows.c, beside an empty TC program on the same packets.

    sudo .venv/bin/python bench/cost.py [--repeats N] [--quick]

All of them are attached to one end of a veth at once, so that they see the same packets in the same run; the kernel's
run statistics count and time each.  `net` is what is above the empty program: the clock readings of the statistics
are in both.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from attached import attached, costs, empty, probe
from attached import statistics as bpf_statistics
from common import Options, Table, run, say, spread
from lab import Lab
from workloads import WORKLOADS

PROGRAMS = ("throughput", "flows")


def measure(options: Options) -> Iterable[Table]:
    """A table of what is net of the empty program, by workload."""
    objects = {"empty": empty(), **{name: probe(name) for name in PROGRAMS}}
    found: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(options.times(5)):
        for name, workload in WORKLOADS.items():
            say(f"kernel cost: {name}")
            with Lab() as lab:
                link = lab.veth()
                with attached(link.a, objects) as probes, bpf_statistics():
                    workload(link, options.seconds(1.5, 1.0))
                    each = {p: costs(it) for p, it in probes.items()}
            base = {}
            for function, (runs, ns) in each["empty"].items():
                base[function.rpartition("_")[2]] = ns / max(runs, 1)
            for program, functions in each.items():
                for function, (runs, ns) in functions.items():
                    if runs < 100:
                        continue
                    way = function.rpartition("_")[2]
                    net = ns / runs - (base[way] if program != "empty" and way in base else 0)
                    found.setdefault((name, program, way), []).append(net)
    table = Table(
        "Kernel: ns a packet",
        "sudo .venv/bin/python bench/cost.py",
        ("workload", "empty in / out", "throughput, net", "flows, net", "both, net", "owner hook, a call"),
        words="""
*Net*: above the empty program of the same run. *Both*: throughput and flows with RTT, mean of the directions. The owner
hook runs once for each read and write of a socket; gross.
""",
        apart=() if any("owner" in key for key in found) else (5,),
    )  # fmt: skip
    for name in WORKLOADS:

        def pair(program: str, name: str = name) -> str:
            return " / ".join(
                spread(found.get((name, program, way), ())).partition(" ")[0] for way in ("ingress", "egress")
            )

        both = [
            sum(parts) / 2
            for parts in zip(
                *(found[name, program, way] for program in PROGRAMS for way in ("ingress", "egress")),
                strict=True,
            )
        ]
        owner = found.get((name, "flows", "owner"), [])
        table.rows.append(
            [name, pair("empty"), pair("throughput"), pair("flows"), f"**{spread(both)}**", spread(owner)]
        )
        if both:
            table.facts[f"net, {name}"] = statistics.median(both)
    yield table


if __name__ == "__main__":
    run(__doc__, measure)

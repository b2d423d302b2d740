"""Kernel ns a packet of throughput.c and flows.c, beside an empty TC program on the same packets.

    sudo .venv/bin/python bench/cost.py [--repeats N] [--seconds S]

All three are attached to one end of a veth at once, so that they see the same packets in the same run; bpf_stats
counts and times each.  What is published is the difference to the empty program: the clock readings of the statistics
themselves are in both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "tests")]

from attached import attached, costs, empty, probe  # noqa: E402
from attached import statistics as bpf_statistics  # noqa: E402
from lab import Lab, Link  # noqa: E402
from lab.traffic import answering, ask, churn, iperf3  # noqa: E402


def request_response(flows: int) -> Callable[[Link, float], None]:
    def run(link: Link, seconds: float) -> None:
        with answering(link.b) as server:
            ask(link.a, server, flows=flows, seconds=seconds)

    return run


def bulk(link: Link, seconds: float) -> None:
    iperf3(client=link.a, server=link.b, seconds=seconds)


def connections(link: Link, seconds: float) -> None:
    with answering(link.b, ports=4) as server:
        churn(link.a, server, int(4000 * seconds))


def udp(link: Link, seconds: float) -> None:
    with answering(link.b) as server:
        ask(link.a, server, kind="udp", flows=16, seconds=seconds)


WORKLOADS: Mapping[str, Callable[[Link, float], None]] = {
    "64 request-response flows": request_response(64),
    "1000 request-response flows": request_response(1000),
    "connect-request-close": connections,
    "bulk TCP, GSO": bulk,
    "UDP, 64-byte datagrams": udp,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    options = parser.parse_args()
    programs = {
        "empty": empty,
        "throughput": probe("throughput"),
        "flows": probe("flows"),
        "flows without RTT": probe("flows", "-DRTT=0"),
    }
    print(
        f"{'workload':30}{'program':26}{'packets':>10}{'ns a run':>10}{'net':>8}   (median of {options.repeats})"
    )
    for name, workload in WORKLOADS.items():
        if options.only not in name:
            continue
        found: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for _ in range(options.repeats):
            with Lab() as lab:
                link = lab.veth()
                with attached(link.a, programs) as probes, bpf_statistics():
                    workload(link, options.seconds)
                    for name_of_it, it in probes.items():
                        for function, (runs, ns) in costs(it).items():
                            if runs:
                                way = function.rpartition("_")[2]
                                found.setdefault((name_of_it, way), []).append((runs, ns / runs))
        base = {
            way: statistics.median(cost for _, cost in found["empty", way]) for way in ("ingress", "egress")
        }
        for (it_name, way), measured in found.items():
            cost = statistics.median(each for _, each in measured)
            net = f"{cost - base[way]:8.0f}" if way in base else "       -"
            print(f"{name:30}{it_name + ' ' + way:26}{measured[0][0]:10d}{cost:10.0f}{net}", flush=True)


if __name__ == "__main__":
    main()

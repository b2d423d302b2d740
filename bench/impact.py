"""What watching costs the traffic: transactions a second and bulk throughput, with and without nettop.

    sudo .venv/bin/python bench/impact.py [--repeats N] [--seconds S]

Both ends of the veth and nettop itself run on this machine's cores, which the traffic saturates: whatever the programs
and the screen take is missing from the traffic.  Runs are interleaved, and each configuration is compared with the
`nothing` of the same round; `the same again` says how much of a difference is noise.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "tests")]

from attached import attached, empty  # noqa: E402
from lab import Lab, Link, Nettop  # noqa: E402
from lab.traffic import answering, ask, iperf3  # noqa: E402

Watch = Callable[[Lab, Link], AbstractContextManager[object]]


def watching(*arguments: str) -> Watch:
    @contextmanager
    def watch(lab: Lab, link: Link) -> Iterator[None]:
        with Nettop(lab, link.a, *arguments) as nettop:
            nettop.wait_frames(2)
            yield

    return watch


CONFIGURATIONS: Mapping[str, Watch] = {
    "nothing": lambda lab, link: nullcontext(),
    "the same again": lambda lab, link: nullcontext(),
    "empty TC program": lambda lab, link: attached(link.a, {"empty": empty}),
    "throughput": watching("-p", "throughput"),
    "throughput, flows": watching("-p", "throughput,flows"),
    "everything": watching(),
}


def transactions(lab: Lab, link: Link, seconds: float) -> float:
    with answering(link.b) as server:
        return ask(link.a, server, flows=64, seconds=seconds).per_second


def bulk(lab: Lab, link: Link, seconds: float) -> float:
    return iperf3(client=link.a, server=link.b, seconds=seconds).bits_per_s


WORKLOADS = {"64 request-response flows, transactions/s": transactions, "bulk TCP, bit/s": bulk}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    for workload, measure in WORKLOADS.items():
        results: dict[str, list[float]] = {name: [] for name in CONFIGURATIONS}
        for _ in range(options.repeats):
            for name, watch in CONFIGURATIONS.items():
                with Lab() as lab:
                    link = lab.veth()
                    with watch(lab, link):
                        results[name].append(measure(lab, link, options.seconds))
        print(f"\n{workload}, {options.repeats} interleaved rounds of {options.seconds:g} s")
        print(f"{'attached':24}{'median':>14}{'ratio':>8}{'lowest':>8}{'highest':>8}")
        for name, values in results.items():
            ratios = [v / base for v, base in zip(values, results["nothing"], strict=True)]
            print(
                f"{name:24}{statistics.median(values):14.3g}{statistics.median(ratios):8.3f}"
                f"{min(ratios):8.3f}{max(ratios):8.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

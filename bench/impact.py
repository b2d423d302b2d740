"""What watching takes from the traffic: transactions, their p99, and bulk throughput, with nettop and without.

    sudo .venv/bin/python bench/impact.py [--repeats N] [--quick]

Both ends of the veth and nettop itself run on this machine's cores, which the traffic saturates: whatever the programs
and the screen take is missing from the traffic.  Runs are interleaved, and each configuration is compared with the
`nothing` of the same round; `the same again` says how much of a difference is noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import stages_cost
from attached import attached, empty, probe
from common import Options, Table, run, say, spread
from lab import Lab, Link, Nettop
from lab.traffic import Answers, answering, ask, iperf3

from nettop.settings import Settings

SETTLING_S = 14.0  # of load, until the default budget has found what to leave out
Watch = Callable[[Lab, Link], AbstractContextManager[object]]


def watching(*arguments: str) -> Watch:
    @contextmanager
    def watch(lab: Lab, link: Link) -> Iterator[None]:
        with Nettop(lab, link.a, *arguments) as nettop:
            nettop.wait_frames(2, timeout=60)
            yield

    return watch


def published(lab: Lab, link: Link) -> AbstractContextManager[object]:
    """The published way of timing stages, and flow accounting beside it."""
    objects, _ = stages_cost.sets()["published"]
    return attached(link.a, {**objects, "flows": probe("flows")}, incomplete=True)


CONFIGURATIONS: Mapping[str, Watch] = {
    "nothing": lambda lab, link: nullcontext(),
    "the same again": lambda lab, link: nullcontext(),
    "empty TC program": lambda lab, link: attached(link.a, {"empty": empty()}),
    "throughput, flows": watching("-p", "throughput,flows", "--budget", "0"),
    "everything": watching("--budget", f"{Settings.budget:g}"),
    "everything, no budget": watching("--budget", "0"),
    "published stages, and flows": published,
}
BUDGETED = "everything"


def answered(link: Link, seconds: float, settle: float) -> Answers:
    with answering(link.b) as server:
        if settle:
            ask(link.a, server, flows=64, seconds=settle)
        return ask(link.a, server, flows=64, seconds=seconds)


def measure(options: Options) -> Iterable[Table]:
    """Ratios to nothing in the same round."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CONFIGURATIONS}
    seconds = options.seconds(2.0, 1.0)
    rounds = options.times(9, 2)
    for number in range(rounds):
        say(f"impact: round {number + 1} of {rounds}")
        for name, watch in CONFIGURATIONS.items():
            settle = options.seconds(SETTLING_S, 5.0) if name == BUDGETED else 0.0
            with Lab() as lab:
                link = lab.veth()
                with watch(lab, link):
                    answers = answered(link, seconds, settle)
                    bits = iperf3(client=link.a, server=link.b, seconds=seconds).bits_per_s
                found[name].append((answers.per_second, answers.p99_ns, bits))
    table = Table(
        "What it takes from the traffic",
        "sudo .venv/bin/python bench/impact.py",
        ("attached", "transactions/s", "transactions, ratio", "p99 of a request, ratio", "bulk bit/s, ratio"),
        words=f"""
64 request-response flows of 64 bytes, then bulk TCP, over a veth whose two ends saturate the cores that nettop shares.
{rounds} interleaved rounds of {seconds:g} s; ratios to `nothing` of the same round. `everything`: the defaults, after
{options.seconds(SETTLING_S, 5.0):g} s under load.
""",
        apart=(1,),
    )
    for name, values in found.items():
        ratios = [
            [mine / base for mine, base in zip(*pair, strict=True)]
            for pair in zip(zip(*values, strict=True), zip(*found["nothing"], strict=True), strict=True)
        ]
        table.rows.append(
            [name, spread([each[0] for each in values]), *(spread(ratio, ".3f") for ratio in ratios)]
        )
        table.facts[f"transactions, {name}"] = statistics.median(ratios[0])
        table.facts[f"bulk, {name}"] = statistics.median(ratios[2])
    yield table


if __name__ == "__main__":
    run(__doc__, measure)

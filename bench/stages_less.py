#!/usr/bin/env python3
"""What a packet costs in stages.c that is not followed: not sampled, or refused by the filter; and what focus adds.

As bench/stages_cost.py: request-response over the loopback of a namespace, sets that take turns, net of programs that
do nothing on the same hooks.

    sudo .venv/bin/python bench/stages_less.py [--repeats N] [--quick]
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import ROOT, Options, Table, run, say
from stages_cost import PUBLISHED, on_loopback, per_run, translated, turn

from nettop.bpf.config import Config
from nettop.bpf.filter import compile_expression
from nettop.bpf.protocol import Plan
from nettop.loader.compile import TYPED_ONLY, Object, compile_probe, compile_source


def filtered(text: str, cache: Path) -> Object:
    return compile_probe("stages", cache, TYPED_ONLY, compile_expression(text).instructions)


def plain(config: Config) -> Config:
    return config


def sampled(config: Config) -> Config:
    return replace(config, sample_shift=4)


def barely(config: Config) -> Config:
    return replace(config, sample_shift=20)


def with_filter(config: Config) -> Config:
    return config.filtered(0, True)


def focused(config: Config) -> Config:
    return replace(config, focus=1)


def inside(turns: int, seconds: float) -> None:
    """In the namespace: measure, and print JSON."""
    plan = Plan("lo", ("stages",))
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        ours = compile_probe("stages", cache, TYPED_ONLY)
        other = compile_source(ROOT / "bench/published.c", cache)
        empty = tuple(translated(h, "empty", "empty_netfilter") for h in ours.hooks if h.name in PUBLISHED)
        sets = {
            "empty": (Object(other.maps, other.programs, empty), plain),
            "every packet": (ours, plain),
            "a flow in focus, another's packets": (ours, focused),
            "one packet in 16": (ours, sampled),
            "packets that are not sampled": (ours, barely),
            "packets that the filter accepts (tcp)": (filtered("tcp", cache), with_filter),
            "packets that it refuses (udp port 9)": (filtered("udp port 9", cache), with_filter),
        }
        results: dict[str, list[dict[str, tuple[int, int]]]] = {name: [] for name in sets}
        for _ in range(turns):
            for name, (made, change) in sets.items():
                results[name].append(turn([("stages", made)], plan, seconds, change))
    print(json.dumps(results))


def net_per_packet(turns: list[dict[str, Any]], empty: list[dict[str, Any]]) -> float:
    """All hooks' ns for one packet through the stack, less what programs take that do nothing."""
    total = 0.0
    for hook in PUBLISHED:
        mine, nothing = per_run(turns, hook), per_run(empty, hook)
        if mine is not None and nothing is not None:
            runs = statistics.median(t[hook][0] / t["netif_receive_skb"][0] for t in turns)
            total += runs * (mine - nothing)
    return total


def measure(options: Options) -> Iterable[Table]:
    """A row a way of leaving packets out."""
    turns, seconds, flows = options.times(6, 3), 0.25, 16
    say("packets that stages leave out")
    results = on_loopback(__file__, turns, seconds, flows, lasts=turns * 7 * (seconds + 3.0) + 60)
    empty = results.pop("empty")
    table = Table(
        "Packets that stages leave out",
        "sudo .venv/bin/python bench/stages_less.py",
        ("what", "net ns a packet", "of every packet's"),
    )
    whole = 0.0
    for name, turns_ in results.items():
        net = net_per_packet(turns_, empty)
        whole = whole or net
        table.rows.append([name, f"{net:.0f}", f"{net / whole:.2f}"])
    table.words = f"""
ns of all hooks for one packet, both ways, net of being called, over the loopback of a namespace, {flows}
request-response flows; the sets take turns, {turns} times, and the least of the turns counts for each hook.
"""
    yield table


if __name__ == "__main__":
    if "--inside" in sys.argv:
        inside(int(sys.argv[2]), float(sys.argv[3]))
    else:
        run(__doc__, measure)

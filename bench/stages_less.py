#!/usr/bin/env python3
"""What a packet costs in stages.c that is not followed: not sampled, or refused by the filter; and what focus adds.

As bench/stages_cost.py: request-response over the loopback of a namespace, sets that take turns, net of programs that
do nothing on the same hooks.

    sudo .venv/bin/python bench/stages_less.py [--repeats N] [--quick]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable
from dataclasses import replace

from attached import CACHE, Change, unchanged
from common import Options, Table, run, say
from stages_cost import PUBLISHED, Counts, Set, inside, on_loopback, per_run, stand_ins

from nettop.bpf.filter import compile_expression
from nettop.loader.compile import TYPED_ONLY, Object, compile_probe


def sets() -> dict[str, Set]:
    """The programs that take turns, each with what it is told."""
    ours = compile_probe("stages", CACHE, TYPED_ONLY)
    accepting, refusing = (
        compile_probe("stages", CACHE, TYPED_ONLY, compile_expression(text).instructions)
        for text in ("tcp", "udp port 9")
    )
    made: dict[str, tuple[Object, Change]] = {
        "empty": (stand_ins(ours.hooks)["empty"], unchanged),
        "every packet": (ours, unchanged),
        "a flow in focus, another's packets": (ours, lambda c: replace(c, focus=1)),
        "one packet in 16": (ours, lambda c: replace(c, sample_shift=4)),
        "packets that are not sampled": (ours, lambda c: replace(c, sample_shift=20)),
        "packets that the filter accepts (tcp)": (accepting, lambda c: c.filtered(0, True)),
        "packets that it refuses (udp port 9)": (refusing, lambda c: c.filtered(0, True)),
    }
    return {name: ({"stages": each}, change) for name, (each, change) in made.items()}


def net_per_packet(turns: list[Counts], empty: list[Counts]) -> float:
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
    sets()  # compiled before the traffic begins
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
        inside(sets())
    else:
        run(__doc__, measure)

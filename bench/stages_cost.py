#!/usr/bin/env python3
"""What stages.c and irq.c cost, beside the published method on the same hooks and the same traffic.

Request-response over the loopback of a namespace of its own, so that every packet is a watched one, both ways.  Three
sets of programs (ours, the published method's, programs that do nothing) take turns; the least of the turns counts for
a hook, the median for the sum.  Nanoseconds are the run statistics of the kernel; net is what is left when those of the
empty program are taken off.

    sudo .venv/bin/python bench/stages_cost.py [--repeats N] [--quick]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from attached import CACHE, HERE, Change, attached, probe, unchanged
from attached import statistics as bpf_statistics
from common import Options, Table, run, say
from lab import Endpoint, Lab
from lab.namespace import Namespace
from lab.traffic import answering, asking

from nettop.bpf import syscall
from nettop.bpf.hooks import Attachment, Candidate, Hook
from nettop.loader import attach
from nettop.loader.compile import Object, compile_source

# Our hook -> the published method's program for it.
PUBLISHED = {
    "driver": "driver",
    "netif_receive_skb": "stack",
    "ip_rcv": "ip",
    "ip_local_deliver": "local",
    "tcp_rcv_established": "tcp",
    "sk_data_ready": "ready",
    "tcp_rcv_space_adjust": "read",
    "sock_recv_length": "received",
    "tcp_sendmsg_locked": "write",
    "ip_local_out": "out",
    "net_dev_queue": "queue",
    "net_dev_start_xmit": "xmit",
    "net_dev_xmit": "sent",
    "consume_skb": "consumed",
    "softirq_raise": "raise",
    "softirq_entry": "entry",
    "softirq_exit": "exit",
    "napi_poll": "poll",
}


Counts = dict[str, tuple[int, int]]  # runs and ns by hook
Set = tuple[Mapping[str, Object], Change]  # each C file's object


def translated(hook: Hook, program: str, netfilter: str) -> Hook:
    """The same places with another program in each."""
    candidates = []
    for candidate in hook.candidates:
        if candidate.via in ("raw_tracepoint", "netfilter"):
            name = netfilter if candidate.via == "netfilter" else program
            attachments = tuple(Attachment(name, a.target) for a in candidate.attachments)
            candidates.append(Candidate(candidate.via, attachments))
    return Hook(hook.name, tuple(candidates))


def stand_ins(hooks: Iterable[Hook]) -> dict[str, Object]:
    """Other programs on the same hooks: the published method's, and empty ones."""
    made = compile_source(HERE / "published.c", CACHE)
    shared = [h for h in hooks if h.name in PUBLISHED]
    names = [f"published_{PUBLISHED[h.name]}" for h in shared]
    return {
        "published": Object(made.maps, made.programs, tuple(map(translated, shared, names, names))),
        "empty": Object(
            made.maps, made.programs, tuple(translated(h, "empty", "empty_netfilter") for h in shared)
        ),
    }


def sets() -> dict[str, Set]:
    """The programs that take turns."""
    ours = {name: probe(name) for name in ("stages", "irq")}
    others = stand_ins([hook for o in ours.values() for hook in o.hooks])
    return {"ours": (ours, unchanged), **{name: ({name: o}, unchanged) for name, o in others.items()}}


def turn(objects: Mapping[str, Object], change: Change, seconds: float) -> Counts:
    """Attach to this namespace's loopback, count for a while, detach: runs and ns by hook."""

    def read() -> Counts:
        result = {}
        for it in probes.values():
            for hook, candidate in it.via.items():
                fds = {attach.load(it, candidate.via, a) for a in candidate.attachments}
                infos = [syscall.program_info(fd) for fd in fds]
                result[hook] = sum(i.runs for i in infos), sum(i.run_ns for i in infos)
        return result

    here = Endpoint(Namespace(None), "lo", "", "127.0.0.1", "::1")
    with attached(here, objects, incomplete=True, change=change) as probes:
        time.sleep(0.2)
        with bpf_statistics():
            before = read()
            time.sleep(seconds)
            after = read()
    return {hook: (runs - before[hook][0], ns - before[hook][1]) for hook, (runs, ns) in after.items()}


def inside(sets: Mapping[str, Set]) -> None:
    """In the namespace, as `--inside TURNS SECONDS`: the sets take turns; prints JSON."""
    results: dict[str, list[Counts]] = {name: [] for name in sets}
    for _ in range(int(sys.argv[2])):
        for name, (objects, change) in sets.items():
            results[name].append(turn(objects, change, float(sys.argv[3])))
    print(json.dumps(results))


def per_run(turns: list[Counts], hook: str) -> float | None:
    values = [t[hook][1] / t[hook][0] for t in turns if hook in t and t[hook][0] > 100]
    # The least of the turns: an interrupt in the middle of a program counts as its time, and only adds.
    return min(values) if values else None


def per_packet(turns: list[Counts], hooks: set[str]) -> float:
    """All hooks' ns for one packet through the stack."""
    return statistics.median(
        sum(ns for hook, (_, ns) in t.items() if hook in hooks) / t["netif_receive_skb"][0] for t in turns
    )


def called_per_packet(turns: list[Counts], empty: list[Counts], hooks: set[str]) -> float:
    """What just being called costs: an empty program's ns on each hook, as often as it ran."""
    result = []
    for t in turns:
        total = sum(runs * (per_run(empty, hook) or 0) for hook, (runs, _) in t.items() if hook in hooks)
        result.append(total / t["netif_receive_skb"][0])
    return statistics.median(result)


def on_loopback(script: str, turns: int, seconds: float, flows: int, lasts: float) -> Any:
    """What `script --inside TURNS SECONDS` prints in a namespace with request and response on its loopback."""
    with Lab() as lab:
        ns = lab.namespace()
        at = Endpoint(ns, "lo", "", "127.0.0.1", "::1")
        with answering(at) as server:
            client = asking(at, server, flows=flows, seconds=lasts)
            try:
                argv = [sys.executable, script, "--inside", str(turns), str(seconds)]
                done = subprocess.run(
                    ns.argv(argv), capture_output=True, text=True, timeout=lasts + 60, check=False
                )
            finally:
                client.stop()
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: Options) -> Iterable[Table]:
    """A row a hook, and the sums."""
    turns, seconds, flows = options.times(5, 2), 0.7, 16
    say("stages and irq beside the published method")
    sets()  # compiled before the traffic begins
    lasts = turns * 3 * (seconds + 2.0) + 20
    results = on_loopback(__file__, turns, seconds, flows, lasts)
    ours, published, empty = results["ours"], results["published"], results["empty"]
    table = Table(
        "Stages and irq, beside the published method",
        "sudo .venv/bin/python bench/stages_cost.py",
        ("hook", "ours", "net", "published", "net", "empty"),
        apart=(1, 3, 5),
    )
    shared = {hook for t in published for hook in t}
    for hook in ours[0]:
        mine, theirs, nothing = per_run(ours, hook), per_run(published, hook), per_run(empty, hook)
        if mine is None:
            continue
        net = mine - nothing if nothing else None
        cells = [mine, net, theirs, theirs - nothing if theirs and nothing else None, nothing]
        table.rows.append([hook, *("-" if c is None else f"{c:.0f}" for c in cells)])
    a, b = per_packet(ours, shared), per_packet(published, shared)
    net_a = a - called_per_packet(ours, empty, shared)
    net_b = b - called_per_packet(published, empty, shared)
    table.rows.append(
        ["**all, a packet**", f"{a:.0f}", f"**{net_a:.0f}**", f"{b:.0f}", f"**{net_b:.0f}**", ""]
    )
    table.words = f"""
ns a run above an empty program on the same hook, ours and the published method's (a hash keyed by skb, a probe read a
field, a hash as histogram); loopback of a namespace, {flows} request-response flows, {turns} turns, the least for a
hook, the median for the sum. **Ours costs {a / b:.2f} of it, {net_a / net_b:.2f} net.**
"""
    table.facts = {"stages": a / b, "stages, net": net_a / net_b}
    yield table


if __name__ == "__main__":
    if "--inside" in sys.argv:
        inside(sets())
    else:
        run(__doc__, measure)

"""Many short connections whose two directions are on different CPUs, and what is wrong with the account of them.

The flow programs are attached as the loader does it, and their maps read whole: no flow is left out of a frame, and
none expires meanwhile.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lab import Link, oracle
from lab.namespace import Endpoint
from lab.traffic import answering, churn

from nettop.bpf.maps import open_maps
from nettop.bpf.protocol import Plan
from nettop.loader import attach
from nettop.loader.compile import compile_probe
from nettop.loader.mechanisms import TYPES, Target
from nettop.netdev import link as interface
from nettop.probes.flows.constants import STATES, states
from nettop.probes.flows.probe import PROBE

ID_LIMIT = 1 << 53  # what JSON's readers can hold
Array = np.ndarray[Any, Any]


@contextmanager
def received_on(end: Endpoint, cpu: int) -> Iterator[None]:
    """What this interface receives is handled on one CPU (RPS), whoever sends it."""
    path = f"/sys/class/net/{end.name}/queues/rx-0/rps_cpus"
    end.ns.run("sh", "-c", f"echo {1 << cpu:x} > {path}")
    yield


@contextmanager
def flow_programs(end: Endpoint, entries: int) -> Iterator[attach.Attached]:
    """The flow programs at this interface while the block lasts, with a table of so many entries."""
    probe = attach.Attached("flows", compile_probe("flows", Path(tempfile.gettempdir()) / "nettop-tests"))

    def inside() -> None:
        plan = Plan(end.name, (), (("flows.flows", entries),))
        config = interface.describe(plan)
        attach.make_maps(probe, plan)
        attach.attach(probe, Target(end.name, config.ifindex))
        attach.write_config(probe, config)

    try:
        end.ns.call(inside)
        TYPES.close()
        yield probe
    finally:
        probe.close()


def read(probe: attach.Attached) -> tuple[Array, Array, dict[str, int]]:
    """Keys and values of the whole table, and the counters over all CPUs."""
    answer = attach.report(probe)
    readers, _ = open_maps(PROBE.maps, answer.probe.maps, answer.fds)
    keys, values = readers["flows"].read()
    counters = readers["counters"].read()[0]
    return keys, values, {name: int(counters[name].sum()) for name in counters.dtype.names or ()}


def short_connections(link: Link, count: int, *, ports: int = 8, at_once: int = 32) -> list[str]:
    """Make ``count`` connections from a to b beside the flow programs at a; what of their account is wrong, in words.

    Opened = closed = ``count``, every id its own and below 2^53, every flow closed, or reset where a RST was sent, and
    the sums over all flows those of the interface.  What is sent is sent on the client's CPUs, what is received is
    handled on the last one.
    """
    cpus = sorted(os.sched_getaffinity(0))
    with (
        received_on(link.a, cpus[-1]),
        flow_programs(link.a, 1 << (2 * count).bit_length()) as probe,
        answering(link.b, ports=ports) as server,
    ):
        before = oracle.sysfs(link.a)
        os.sched_setaffinity(0, cpus[:-1] or cpus)
        try:
            made = churn(link.a, server, count, at_once=at_once)
        finally:
            os.sched_setaffinity(0, cpus)
        grown = oracle.difference(oracle.sysfs(link.a), before)
        _, values, counters = read(probe)
    return [*_wrong(values, counters, grown, made.connections, resets_sent(link.a) + resets_sent(link.b))]


def resets_sent(end: Endpoint) -> int:
    """The RSTs that this namespace's TCP has sent (/proc/net/snmp, OutRsts)."""
    head, values = (
        line.split()
        for line in end.ns.run("cat", "/proc/net/snmp").stdout.splitlines()
        if line.startswith("Tcp:")
    )
    return int(values[head.index("OutRsts")])


def _wrong(
    values: Array, counters: dict[str, int], grown: dict[str, int], count: int, resets: int
) -> Iterator[str]:
    for name in ("opened", "closed", "created"):
        if counters[name] - (counters["revived"] if name == "closed" else 0) != count:
            yield f"{name}: {counters[name]} of {count}"
    for name in ("untracked", "revived", "expired", "fragments"):
        if counters[name]:
            yield f"{name}: {counters[name]}"
    if len(values) + counters["replaced"] != count:
        yield f"{len(values)} flows in the table, {counters['replaced']} replaced"
    if len(np.unique(values["id"])) != len(values):
        yield "an id belongs to several flows"
    if int(values["id"].min()) <= 0 or int(values["id"].max()) >= ID_LIMIT:
        yield "an id is out of its range"
    found, numbers = np.unique(states(values["flags"]), return_counts=True)
    left = {STATES[int(s)]: int(n) for s, n in zip(found, numbers, strict=True)}
    # Seldom one ends by a RST; how many were sent is the kernel's own count.
    if set(left) - {"closed", "reset"} or left.get("reset", 0) > resets:
        yield f"states: {left}; the two ends have sent {resets} RSTs"
    for index, way in enumerate(("rx", "tx")):
        for what in ("packets", "bytes"):
            total = int(values["dir"][what][:, index].sum())
            if not counters["replaced"] and total != grown[f"{way}_{what}"]:
                yield f"{way} {what}: {total}, the interface's own {grown[f'{way}_{what}']}"

#!/usr/bin/env python3
"""What a packet costs that the filter lets through, and one that it does not, in ns.

    sudo .venv/bin/python bench/filter_cost.py [--json] [FILTER ...]

Each program is run a million times on one packet by BPF_PROG_TEST_RUN, packets in turn, and the least of the rounds
is taken.  An empty program is the base, which is subtracted: entering a program costs the same whatever it does.  The
flow is an established one with timestamps, so what matches is an ordinary segment that finds its flow.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit")]

from expressions import frame, tcp, udp, v4, v6  # noqa: E402  (the path above makes it importable)

from nettop.bpf import syscall  # noqa: E402
from nettop.bpf.config import Config  # noqa: E402
from nettop.bpf.filter import compile_expression  # noqa: E402
from nettop.bpf.protocol import Plan  # noqa: E402
from nettop.loader import attach  # noqa: E402
from nettop.loader.compile import compile_probe  # noqa: E402

ROUNDS, REPEAT = 9, 100_000
STAMP = bytes((1, 1, 8, 10)) + b"\0\0\0\1\0\0\0\2"
MATCHING = frame(0x0800, v4("10.0.0.1", "10.0.0.2", 6, tcp(40000, 443, 0x10, b"x" * 100, STAMP)))
OTHERS = {
    "another port": frame(0x0800, v4("10.0.0.1", "10.0.0.2", 6, tcp(40000, 5201, 0x10, b"x" * 100, STAMP))),
    "UDP": frame(0x0800, v4("10.0.0.1", "10.0.0.2", 17, udp(40000, 443, b"x" * 100))),
    "IPv6": frame(0x86DD, v6("fd77::1", "fd77::2", 6, tcp(40000, 80, 0x10, b"x" * 100, STAMP))),
    "ARP": frame(0x0806, b"\0" * 28),
}
EACH = ("tcp port 443", "tcp port 443 and net 10.0.0.0/8", "host 10.0.0.1 and tcp dst port 443")
FILTERS = {
    **dict(zip(EACH, EACH, strict=True)),
    "20 ports": "tcp dst port 443 or " + " or ".join(f"tcp dst port {n}" for n in range(8000, 8019)),
}
EMPTY = struct.pack("<BBhi", 0xB7, 0, 0, -1) + struct.pack("<BBhi", 0x95, 0, 0, 0)


@contextmanager
def program(name: str, direction: str, text: str, cache: Path) -> Iterator[int]:
    """One of a probe's programs, with this filter."""
    made = compile_probe(name, cache, instructions=compile_expression(text).instructions if text else ())
    probe = attach.Attached(name, made)
    try:
        attach.make_maps(probe, Plan("lo", (name,)))
        attach.write_config(probe, Config(ifindex=1))
        function = f"{name}_{direction}"
        probe.programs[(function, "")] = syscall.prog_load(
            syscall.ProgType.SCHED_CLS, made.linked(function, probe.maps), function
        )
        yield probe.programs[(function, "")]
    finally:
        probe.close()


def cost(programs: list[tuple[int, bytes]]) -> list[float]:
    """ns a run of each program on its packet: the least of the rounds, all of them in each: others only add to it."""
    for fd, packet in programs:
        syscall.test_run(fd, packet, 1000)  # opens the flow, warms the caches
    rounds = [[syscall.test_run(fd, packet, REPEAT)[2] for fd, packet in programs] for _ in range(ROUNDS)]
    return [min(column) for column in zip(*rounds, strict=True)]


def measure(cache: Path, labels: list[str]) -> list[dict[str, object]]:
    """A row for each probe and each of these filters."""
    rows: list[dict[str, object]] = []
    empty = syscall.prog_load(syscall.ProgType.SCHED_CLS, EMPTY, "empty")
    for name in ("throughput", "flows"):
        for label in labels:
            text = FILTERS[label]
            with (
                program(name, "egress", "", cache) as plain,
                program(name, "egress", text, cache) as filtered,
            ):
                packets = [(filtered, packet) for packet in OTHERS.values()]
                base, unfiltered, matching, *others = cost(
                    [(empty, MATCHING), (plain, MATCHING), (filtered, MATCHING), *packets]
                )
            row: dict[str, object] = {"probe": name, "filter": label, "empty_ns": base}
            row |= {"no_filter_ns": unfiltered - base, "matching_ns": matching - base}
            row |= {kind: value - base for kind, value in zip(OTHERS, others, strict=True)}
            row["worst_share"] = round((max(others) - base) / (matching - base), 3)
            rows.append(row)
    os.close(empty)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "filters", nargs="*", choices=[*FILTERS, []], metavar="FILTER", help=f"of these: {', '.join(FILTERS)}"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        rows = measure(Path(cache), arguments.filters or list(FILTERS))
    if arguments.json:
        for row in rows:
            print(json.dumps(row))
        return 0
    figures = ("no_filter_ns", "matching_ns", *OTHERS, "worst_share")
    columns = {"probe": 10, "filter": 34, **dict.fromkeys(figures, 13)}
    for row in [dict(zip(columns, columns, strict=True)), *rows]:
        print("".join(f"{row[column]!s:>{width}}" for column, width in columns.items()))
    print(f"less the {rows[0]['empty_ns']:g} ns of an empty program")
    return 0


if __name__ == "__main__":
    sys.exit(main())

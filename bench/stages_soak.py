#!/usr/bin/env python3
"""Minutes of load: whether coverage drifts, and what is left in the maps when the traffic has stopped.

Request-response, bulk and datagrams take turns over a veth pair.  Each minute prints every stage's coverage; the end
counts slots that still name a packet, and packets that still wait in a socket's queue.

    sudo bench/stages_soak.py [--minutes N]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402

from nettop.bpf import syscall  # noqa: E402
from nettop.bpf.maps import open_maps  # noqa: E402
from nettop.bpf.protocol import Plan  # noqa: E402
from nettop.loader import attach  # noqa: E402
from nettop.loader.compile import compile_probe  # noqa: E402
from nettop.loader.mechanisms import Target  # noqa: E402
from nettop.netdev import link as interface  # noqa: E402
from nettop.probes.base import Reads, Setup  # noqa: E402
from nettop.probes.stages.probe import PROBE  # noqa: E402
from nettop.probes.stages.section import Stages  # noqa: E402

PERIOD_S = 30.0


def inside(name: str, minutes: float) -> None:
    """In the namespace: attach, print one line of JSON a period, and one of what is left."""
    plan = Plan(name, ("stages",))
    config = interface.describe(plan)
    with tempfile.TemporaryDirectory() as cache:
        probe = attach.Attached("stages", compile_probe("stages", Path(cache)))
    attach.make_maps(probe, plan)
    attach.write_config(probe, config)
    attach.attach(probe, Target(name, config.ifindex))
    fds = {spec.name: (fd, spec) for fd, spec in zip(probe.maps, probe.object.maps, strict=True)}
    answer = attach.report(probe)
    readers, _ = open_maps(PROBE.maps, answer.probe.maps, answer.fds)
    hooks = {hook: candidate.via for hook, candidate in probe.via.items()}
    fold = PROBE.fold(Setup(name, 2, hooks=hooks))
    end = time.monotonic() + minutes * 60
    print("attached", flush=True)
    while time.monotonic() < end:
        time.sleep(min(PERIOD_S, max(end - time.monotonic(), 0.1)))
        maps = {key: reader.read() for key, reader in readers.items()}
        section = fold(Reads(0, 1, maps, {})).section
        assert isinstance(section, Stages)
        rows = {f"{d} {s.stage}": (s.matched, s.missed, s.dropped) for d, s in section.rows() if s.matched}
        print(json.dumps(rows), flush=True)
    time.sleep(5)  # the traffic has stopped
    print(json.dumps(left(fds)), flush=True)
    probe.close()


# As struct slot and struct fifo have them (bpf_src/stages/slot.h, fifo.h): where `passed` is, and head and tail of
# the queue with which a socket's entry begins.
PASSED_AT, AT_SENT, LEFT_OUT = 32, 0x40, 0x80
HEAD_AT, TAIL_AT = 16, 64


def left(fds: dict[str, tuple[int, attach.Object]]) -> dict[str, int]:
    """What is still on its way: slots whose packet has not come to its end, and packets in the queues of sockets.

    A slot keeps the name of a packet that the driver has taken until it is freed, or another comes: `handed over`.
    """
    result = {"rx_slots": 0, "tx_slots": 0, "handed over": 0, "waiting": 0}
    for name in ("rx_slots", "tx_slots", "rx_socks", "tx_socks"):
        fd, spec = fds[name]
        value = ctypes.create_string_buffer(spec.value_size)
        for index in range(spec.max_entries):
            syscall.map_lookup(fd, index.to_bytes(4, sys.byteorder), ctypes.addressof(value))
            if not np.frombuffer(value.raw, np.uint64, 1)[0]:
                continue
            if name.endswith("slots"):
                (passed,) = np.frombuffer(value.raw, np.uint32, 1, PASSED_AT)
                result["handed over" if passed & AT_SENT else name] += not passed & LEFT_OUT
            elif name == "rx_socks":
                (head,), (tail,) = (np.frombuffer(value.raw, np.uint32, 1, at) for at in (HEAD_AT, TAIL_AT))
                result["waiting"] += int(head) - int(tail)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.inside, options.minutes)
        return 0
    from lab import Lab
    from lab.traffic import answering, ask, iperf3

    with Lab() as lab:
        link = lab.veth()
        argv = [sys.executable, __file__, "--inside", link.a.name, "--minutes", str(options.minutes)]
        worker = subprocess.Popen(link.a.ns.argv(argv), stdout=subprocess.PIPE, text=True)
        assert worker.stdout
        worker.stdout.readline()
        end = time.monotonic() + options.minutes * 60 - 8
        with answering(link.b) as server:
            while time.monotonic() < end:
                ask(link.a, server, flows=64, seconds=4)
                ask(link.a, server, kind="udp", flows=16, seconds=3)
                ask(link.a, server, kind="churn", flows=16, seconds=2, ipv6=True)
                iperf3(link.a, link.b, seconds=3, reverse=True)
        for line in worker.stdout:
            rows = json.loads(line)
            if "rx_slots" in rows:
                print("left over:", rows)
                continue
            shown = (f"{k} {m / (m + (x or 0)):.4f} of {m + (x or 0)}" for k, (m, x, _) in rows.items())
            print(" | ".join(shown), flush=True)
        worker.wait(30)
    return 0


if __name__ == "__main__":
    sys.exit(main())

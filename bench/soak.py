#!/usr/bin/env python3
"""Half an hour under changing load: whether memory stays flat, descriptors are closed, and totals do not drift.

Two of nettop watch one end of a veth pair: a batch run, whose totals are compared with /sys/class/net each time the
load has stopped, and a screen that records, on which panes and filters are changed with the keyboard.  The load goes
round: idle, request-response, bulk both ways, short connections, a flood of flows, and the interface goes down and up.
Every round prints a line for each process: resident memory, descriptors, BPF objects, flows in the table.

    sudo .venv/bin/python bench/soak.py [--minutes 30]

The exit code is 0 where the verdict is good: once the first rounds are over, a fifth of the time, resident memory of
each process grows by 5 % at most (the medians of the first and the last third are compared: what one round shows
depends on how full the flow table just is), descriptors and BPF objects do not grow, and no total drifts by a byte.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "live")]

from lab import Lab, Link, Nettop, bpf, faults, oracle, packets  # noqa: E402
from lab.shell import eventually  # noqa: E402
from lab.traffic import answering, ask, iperf3  # noqa: E402
from terminal import Terminal  # noqa: E402

from nettop.netdev.counters import resident_bytes  # noqa: E402

MIB = 1 << 20
TOLERANCE = 0.05
WARM_UP = 0.2  # of the time
# What is typed while the load is on: filters as the kernel takes them, a plain word, none, panes, sorting.
KEYS = (
    b"/", b"tcp port 443\r", b"/", b"\x15udp or icmp\r", b"/", b"\x15client\r", b"\x1b", b"/", b"\x15\r",
    b"2", b"2", b"2", b"3", b">", b"?", b"\x1b", b" ", b"[", b" ", b"4", b"z", b"z", b"3",
)  # fmt: skip


@dataclass
class Process:
    """One process of the two programs, and what was read of it in each round."""

    name: str
    pid: int
    resident: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def look(self, sizes: list[tuple[int, int]]) -> None:
        """From several readings in a quiet moment: statistics are on now and then, which takes a descriptor."""
        self.resident.append(int(statistics.median(size for size, _ in sizes)))
        self.descriptors.append(min(count for _, count in sizes))


def size(pid: int) -> tuple[int, int]:
    """Resident bytes and open descriptors."""
    return resident_bytes(pid), len(os.listdir(f"/proc/{pid}/fd"))


def loads(lab: Lab, link: Link, seconds: float) -> dict[str, Callable[[], object]]:
    """The phases of a round by name; each ends by itself and leaves no traffic behind."""
    nobody = replace(link.a, v4="10.99.99.99")  # no answer: a hundred thousand RSTs would go on for a while

    def requests() -> None:
        with answering(link.b) as server:
            ask(link.a, server, flows=64, interval_s=0.005, seconds=seconds)

    def bulk() -> None:
        iperf3(link.a, link.b, seconds=round(max(seconds / 2, 1)))
        iperf3(link.a, link.b, seconds=round(max(seconds / 2, 1)), reverse=True)

    def churn() -> None:
        with answering(link.b, ports=4) as server:
            ask(link.a, server, kind="churn", flows=16, interval_s=0.01, seconds=seconds)

    def many() -> None:
        packets.syn_flood(lab, link.b, nobody, 80, int(5000 * seconds), per_second=5000)

    def down() -> None:
        faults.set_link(link.a, "down")
        time.sleep(1.5)
        faults.configure(link.a, link.b)

    return {
        "idle": lambda: time.sleep(seconds),
        **{load.__name__: load for load in (requests, bulk, churn, many, down)},
    }


class Typist:
    """Presses one key after another, except while it rests; what the screen draws is read all the while."""

    def __init__(self, screen: Terminal, pause: float) -> None:
        self._screen = screen
        self._pause = pause
        self._done = threading.Event()
        self._may = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def work(self) -> None:
        self._may.set()

    def rest(self) -> None:
        """Stop, and give what was asked for last the time to be done."""
        self._may.clear()
        time.sleep(4)

    def _run(self) -> None:
        keys = cycle(KEYS)
        while not self._done.is_set() and self._screen.running():
            until = time.monotonic() + self._pause
            while time.monotonic() < until:
                self._screen.skip(0.1)
            if self._may.is_set():
                self._screen.type(next(keys))


def soak(minutes: float, folder: Path) -> list[str]:
    """Run it; what is wrong, nothing where all is well."""
    end = time.monotonic() + minutes * 60
    warm = time.monotonic() + minutes * 60 * WARM_UP
    seconds = min(max(minutes * 60 / 40, 2.0), 15.0)  # of a phase: at least six rounds
    config, recording = folder / "soak.toml", folder / "soak.ndjson.gz"
    config.write_text("history = 60\n")  # full before the warm-up is over
    with Lab() as lab:
        link = lab.veth()
        for one in (link.a, link.b):
            one.ns.sysctl("ipv6.conf.all.disable_ipv6", 1)  # it sends packets of its own
        with (
            Nettop(lab, link.a, "--top", "100") as batch,
            Terminal(lab, link.a, "-c", str(config), "--record", str(recording)) as screen,
            Typist(screen, 0.5) as typist,
        ):
            batch.wait_frames(2, timeout=60)
            if not eventually(lambda: bool(bpf.held(screen.pid).programs), timeout=60):
                raise SystemExit(f"the screen has not started: {screen.text}")
            time.sleep(2)  # and its compilers have ended
            start = oracle.sysfs(link.a)
            first = len(batch.frames)
            programs = {"batch": batch.pid, "screen": screen.pid}
            processes = [
                Process(f"{name} {what}", pid)
                for name, top in programs.items()
                for what, pid in zip(("itself", "loader", "switch"), bpf.family(top), strict=False)
            ]
            objects: list[int] = []
            drifts: list[int] = []
            warm_rounds = 0
            number = 0
            while time.monotonic() < end or number < 2:
                number += 1
                typist.work()
                for name, load in loads(lab, link, seconds).items():
                    load()
                    for _ in range(10):  # on a busy machine a frame may be late; what is lost stays lost
                        batch.more_frames(2, timeout=60)
                        counted = totals(batch, first)
                        kernel = oracle.difference(oracle.sysfs(link.a), start)
                        drift = max(abs(counted[key] - kernel[key]) for key in counted)
                        if not drift:
                            break
                    if drift:
                        print(f"  {name}: counted {counted}, /sys/class/net {[kernel[k] for k in counted]}")
                    drifts.append(drift)
                typist.rest()
                counts: list[int] = []
                sizes: dict[int, list[tuple[int, int]]] = {one.pid: [] for one in processes}
                for _ in range(7):
                    time.sleep(0.27)
                    for one in processes:
                        sizes[one.pid].append(size(one.pid))
                    held = bpf.held(batch.pid) | bpf.held(screen.pid)
                    counts.append(len(held.programs) + len(held.maps) + len(held.links))
                for one in processes:
                    one.look(sizes[one.pid])
                objects.append(min(counts))
                if time.monotonic() < warm:
                    warm_rounds = number
                describe(number, processes, objects[-1], batch, drifts)
            problems = verdict(processes, objects, drifts, warm_rounds)
            screen.signal(15)
            if screen.wait() != 0:
                problems.append(f"the screen ended with {screen.process.returncode}")
            outcome = batch.stop()
            if outcome.code != 130 or outcome.stderr:
                problems.append(f"the batch run ended with {outcome.code}: {outcome.stderr}")
        frames = faults.recorded(recording)
        print(f"{len(batch.frames)} frames in batch, {len(frames)} in the screen's recording, which is whole")
    return problems


def totals(batch: Nettop, first: int) -> dict[str, int]:
    """What nettop has counted, under the names that sysfs has for it."""
    frames = batch.frames[first:]
    return {
        f"{way}_{what}": sum(f["throughput"][way][what] for f in frames)
        for way in ("rx", "tx")
        for what in ("bytes", "packets")
    }


def describe(number: int, processes: list[Process], objects: int, batch: Nettop, drifts: list[int]) -> None:
    """One round's lines."""
    health = [f["health"] for f in batch.frames]
    most = max(f["flows_total"] for f in batch.frames)
    print(
        f"round {number}: {objects} BPF objects, at most {most} flows in the table, "
        f"{sum(h['evicted_flows'] for h in health)} evicted, {sum(h['lost_events'] for h in health)} events lost, "
        f"largest drift {max(drifts)}"
    )
    for one in processes:
        print(f"  {one.name:14}  {one.resident[-1] / MIB:7.1f} MiB  {one.descriptors[-1]:4} descriptors")
    sys.stdout.flush()


def thirds(rounds: list[int]) -> tuple[float, float]:
    """The medians of the first third and of the last: one round may fall into the moment of a change."""
    part = max(len(rounds) // 3, 1)
    return statistics.median(rounds[:part]), statistics.median(rounds[-part:])


def grown(rounds: list[int]) -> bool:
    first, last = thirds(rounds)
    return last > first


def verdict(processes: list[Process], objects: list[int], drifts: list[int], warm_rounds: int) -> list[str]:
    """What is not as it should be, from the rounds after warming up."""
    problems = []
    warm = min(warm_rounds, len(objects) - 2)
    for one in processes:
        settled = one.resident[warm:]
        base, end = thirds(settled)
        growth = (end - base) / base
        print(
            f"{one.name:14}  {base / MIB:.1f} MiB after round {warm + 1}, {end / MIB:.1f} in the end ({growth:+.1%}), "
            f"between {min(settled) / MIB:.1f} and {max(settled) / MIB:.1f}"
        )
        if growth > TOLERANCE:
            problems.append(f"{one.name}: memory grew by {growth:.1%}")
        if grown(one.descriptors[warm:]):
            problems.append(f"{one.name}: descriptors {one.descriptors}")
    if grown(objects[warm:]):
        problems.append(f"BPF objects {objects}")
    if any(drifts):
        problems.append(f"totals drifted by up to {max(drifts)}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    options = parser.parse_args()
    with faults.folder() as folder:
        problems = soak(options.minutes, folder)
    print("good: memory flat, no descriptor left open, no drift" if not problems else "\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

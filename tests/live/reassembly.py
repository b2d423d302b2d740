"""The stages `socket` and `application` beside reassembly: reassembly.py [--seconds N] [--only X] [--json F] [--write].

One TCP stream crosses a wire that loses segments. tcpdump at the receiving interface says when each segment came, and
so when its last byte was in order: the socket's part of its wait. The reader writes down when each of its calls
returned, and how many bytes it had got: from the one to the other is the application's part. Every segment counts once
that brought a byte which was not there before, as it does in nettop. Labs that are in F already are left out;
`--write` puts the table of all that is in F into docs/probes/stages.md. CI runs a short form (test_stages_sockets.py).
"""

import argparse
import json
import socket
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from lab import Direction, Lab, shell
from lab.errors import LabError
from lab.program import REPOSITORY, command
from lab.traffic import transfer
from stagelab import MS, Total, stages, watching
from tally import segments

from nettop.core.histogram import histogram_from_json, percentile

BEGIN, END = "<!-- REASSEMBLY: tests/live/reassembly.py --write -->", "<!-- END REASSEMBLY -->"
STAGES = ("socket", "application")

# A process of its own, and before others on its CPU: what lies between a call's return and its clock is no wait.
READER = """
import array, os, socket, sys, time
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5))
s, size, pause = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3])
calls, buffer = array.array("q"), bytearray(size)
while count := s.recv_into(buffer):
    calls.append(time.monotonic_ns()); calls.append(count)
    if pause: time.sleep(pause)
sys.stdout.buffer.write(calls.tobytes())
"""
SENDER = """
import socket, sys, time
s, end = socket.socket(fileno=int(sys.argv[1])), time.monotonic() + float(sys.argv[2])
data = bytes(1 << 16)
while time.monotonic() < end: s.sendall(data)
s.shutdown(socket.SHUT_WR)
"""


@dataclass(frozen=True)
class Case:
    """`size` and `pause_ms`: what the reader asks for at once, and sleeps before it asks again."""

    congestion: str = "cubic"
    loss: float = 0.0
    rate: int = 20_000_000
    reader: str = "prompt"
    size: int = 65536
    pause_ms: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.congestion}, {self.loss * 100:g} %, {self.rate // 10**6} Mbit/s, {self.reader}"


READERS = {"prompt": (65536, 0.0), "small": (1000, 0.0), "sleeps": (1 << 20, 5.0)}
CASES = [
    Case(congestion, loss / 100, rate * 10**6, reader, *READERS[reader])
    for congestion in ("cubic", "bbr")
    for loss in (0, 1, 3, 6)
    for rate, reader in ((20, "prompt"), (20, "sleeps"), (100, "small"))
]


@dataclass(frozen=True)
class Waits:
    """Of one stage: how many, their mean and their 99th percentile, in ns."""

    packets: int
    mean: float
    p99: float


@dataclass(frozen=True)
class Result:
    """What nettop showed and what the witness says, by stage; nettop's misses."""

    shown: dict[str, Waits]
    truth: dict[str, Waits]
    missed: dict[str, int]


def reassembled(segments: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Of each segment that brought something new: when it came, when its last byte was in order, where it ends."""
    done: list[tuple[int, int, int]] = []
    received = 0
    ahead: list[list[int]] = []  # ranges that came before their turn, in order and apart
    waiting: list[tuple[int, int]] = []
    for at, first, end in segments:
        place = bisect_left(ahead, [first, end])
        new = end > received and not any(
            a <= first and end <= b for a, b in ahead[max(place - 1, 0) : place + 1]
        )
        if not new:
            continue
        waiting.append((at, end))
        merged = [first, end]
        rest = []
        for a, b in ahead:
            if b < merged[0] or a > merged[1]:
                rest.append([a, b])
            else:
                merged = [min(a, merged[0]), max(b, merged[1])]
        ahead = sorted([*rest, merged])
        while ahead and ahead[0][0] <= received:
            received = max(received, ahead.pop(0)[1])
        done += ((came, at, last) for came, last in waiting if last <= received)
        waiting = [(came, last) for came, last in waiting if last > received]
    return done


def _waits(values: Sequence[int]) -> Waits:
    # As nettop defines it: with few segments the next one in order may be far away.
    p99 = np.percentile(values, 99, method="inverted_cdf")
    return Waits(len(values), float(np.mean(values)), float(p99))


def _shown(total: Total) -> Waits:
    buckets = sorted(total.buckets.items())
    p99 = percentile(histogram_from_json({"buckets": buckets, "sum_ns": total.sum_ns}), 0.99)
    return Waits(total.count, total.mean_ns, float(p99 or 0))


def measure(case: Case, seconds: float) -> Result:
    """One stream of so many seconds over a wire of 20 ms each way, watched where it is received."""
    with Lab() as lab:
        there = Direction(delay_ms=20.0, rate_bits_per_s=case.rate, loss=case.loss, queue=200)
        link = lab.wire(there, Direction(delay_ms=20.0))
        port = 41000
        with watching(lab, link.b) as frames, segments(link.b, port) as came:
            link.a.ns.sysctl("ipv4.ip_local_port_range", f"{port} {port}")
            with transfer(link.a, link.b) as pair:
                # By the socket: a namespace's default may be no algorithm that the machine keeps to itself.
                pair.sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, case.congestion.encode())
                ends = [pair.receiver.fileno(), pair.sender.fileno()]
                for end in (pair.receiver, pair.sender):
                    end.settimeout(None)
                words = str(case.size), str(case.pause_ms / 1000)
                reader = subprocess.Popen(
                    [sys.executable, "-c", READER, str(ends[0]), *words],
                    pass_fds=ends[:1],
                    stdout=subprocess.PIPE,
                )
                sender = subprocess.Popen(
                    [sys.executable, "-c", SENDER, str(ends[1]), str(seconds)], pass_fds=ends[1:]
                )
                try:
                    calls, _ = reader.communicate(timeout=seconds * 3 + 30)
                    sender.wait(timeout=10)
                finally:
                    for process in (reader, sender):
                        process.kill()
                        process.wait()
    if any(frame["stages"]["sampled_one_in"] != 1 for frame in frames):
        raise LabError("nettop followed a part of the packets alone")
    totals = stages(frames)
    read = np.frombuffer(calls, np.int64).reshape(-1, 2)
    returned, upto = read[:, 0], np.cumsum(read[:, 1])
    ready = reassembled(came)
    if not ready or max(end for _, _, end in ready) != upto[-1]:
        raise LabError(f"{max(end for _, _, end in ready)} bytes came and {upto[-1]} were read")
    times = [int(returned[np.searchsorted(upto, end)]) for _, _, end in ready]
    truth = {
        "socket": _waits([told - came for came, told, _ in ready]),
        "application": _waits([at - told for at, (_, told, _) in zip(times, ready, strict=True)]),
    }
    return Result(
        {name: _shown(totals["rx", name]) for name in STAGES},
        truth,
        {name: totals["rx", name].missed for name in STAGES},
    )


def agree(shown: float, truth: float) -> bool:
    """Within 5 % and 0.2 ms."""
    return abs(shown - truth) <= 0.05 * truth + 0.2 * MS


def right(result: Result, name: str) -> bool:
    """The mean and the 99th percentile are the witness's, and every segment is counted, once."""
    shown, truth = result.shown[name], result.truth[name]
    return (
        agree(shown.mean, truth.mean)
        and agree(shown.p99, truth.p99)
        and shown.packets + result.missed[name] == truth.packets
    )


def table(results: dict[str, Result]) -> str:
    """A row a lab; times in ms, nettop's before the stroke and the oracle's behind it."""
    lines = [
        "| lab | segments | missed | socket: mean | p99 | application: mean | p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        if result := results.get(case.name):
            missed = dict.fromkeys(str(result.missed[name]) for name in STAGES)
            cells = [case.name, str(result.truth[STAGES[0]].packets), ", ".join(missed)]
            for name in STAGES:
                shown, truth = result.shown[name], result.truth[name]
                cells.append(f"{shown.mean / MS:.2f}/{truth.mean / MS:.2f}")
                cells.append(f"{shown.p99 / MS:.2f}/{truth.p99 / MS:.2f}")
                cells[-1] += "" if right(result, name) else " **not within**"
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def load(file: Path) -> dict[str, Result]:
    if not file.exists():
        return {}
    return {
        name: Result(
            *({k: Waits(**w) for k, w in part.items()} for part in (found["shown"], found["truth"])),
            found["missed"],
        )
        for name, found in json.loads(file.read_text()).items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    results = load(args.json) if args.json else {}
    # What is compiled on a busy machine takes longer than a case waits for its first frame.
    shell.run(command("lo", "-b", "-n", "1", "-d", "0.1", "-p", "stages"), cwd=REPOSITORY, timeout=300)
    for case in CASES:
        if args.only in case.name and case.name not in results:
            results[case.name] = measure(case, args.seconds)
            print(table({case.name: results[case.name]}).split("\n", 2)[2], flush=True)
            if args.json:
                args.json.write_text(json.dumps({name: asdict(result) for name, result in results.items()}))
    if args.write:
        document = REPOSITORY / "docs" / "probes" / "stages.md"
        text = document.read_text()
        head, rest = text.split(BEGIN)
        document.write_text(f"{head}{BEGIN}\n\n{table(results)}\n\n{END}{rest.split(END)[1]}")
    return 0 if all(right(result, name) for result in results.values() for name in STAGES) else 1


if __name__ == "__main__":
    sys.exit(main())

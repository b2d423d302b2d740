"""CPU and memory of the whole program, beside what a user would take instead, under the same loads.

    sudo .venv/bin/python bench/programs.py [--repeats N] [--quick]

Each program in turn watches the same end of a veth under the same load.  CPU is that of the processes, in percent of
one core; what programs in the kernel cost is given for nettop (from its own frames) and is in nobody's else's figure:
tcpdump's, nethogs' and iftop's packets are copied for them in the traffic's own time.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable

from common import Options, Table, Terminal, cpu_of, memory_of, nettop, run, say, spread
from lab import Lab, Link, Nettop
from start import FIRST_FIGURES
from workloads import LOADS


def commands(link: Link) -> dict[str, list[str]]:
    """Each program's command line, of those that are installed; nettop's screen at two rates, and its batch output."""
    name = link.a.name
    found = {
        "nettop, screen at 1 Hz": nettop(name),
        "nettop, screen at 4 Hz": nettop("-d", "0.25", name),
        "nettop, throughput and flows": nettop("-p", "throughput,flows", name),
        "nethogs -t": ["nethogs", "-t", "-d", "1", name],
        "iftop -t": ["iftop", "-t", "-n", "-N", "-P", "-i", name],
        "tcpdump -w /dev/null": ["tcpdump", "-n", "-i", name, "-w", "/dev/null"],
        "tcptop (BCC)": ["tcptop-bpfcc", "1"],
    }
    return {k: argv for k, argv in found.items() if shutil.which(argv[0])}


def watched(
    link: Link, argv: list[str], settle: float, seconds: float
) -> tuple[float, list[int], float] | None:
    """Percent of a core, resident bytes by process, and bytes a second to the terminal; None: it does not run."""
    with Terminal(link.a.ns.argv(argv)) as terminal:
        until = time.monotonic() + 20
        while "nettop" in argv and FIRST_FIGURES not in terminal.head and time.monotonic() < until:
            time.sleep(0.1)  # the first start after a change compiles
        time.sleep(settle)
        if not any(memory_of(terminal.pid)):
            return None
        written, before, start = terminal.written, cpu_of(terminal.pid), time.monotonic()
        time.sleep(seconds)
        taken = time.monotonic() - start
        percent = (cpu_of(terminal.pid) - before) / taken / 1e7
        return percent, memory_of(terminal.pid), (terminal.written - written) / taken


def in_kernel(lab: Lab, link: Link, budget: str, seconds: float) -> float:
    """Percent of a core that nettop's programs take by their own account."""
    with Nettop(lab, link.a, "--budget", budget) as batch:
        batch.wait_frames(2, timeout=60)
        time.sleep(seconds)
        frames = [f for f in batch.frames[2:] if f["health"]["kernel_ns"] is not None]
    return sum(f["health"]["kernel_ns"] for f in frames) / max(sum(f["interval_ns"] for f in frames), 1) * 100


def measure(options: Options) -> Iterable[Table]:
    """CPU by program and load; memory and bytes to the terminal."""
    settle, seconds = options.seconds(2.5, 2.0), options.seconds(4.0, 2.0)
    percent: dict[tuple[str, str], list[float]] = defaultdict(list)
    memory: dict[str, list[list[int]]] = defaultdict(list)
    written: dict[tuple[str, str], list[float]] = defaultdict(list)
    kernel: dict[str, list[float]] = defaultdict(list)
    missing: set[str] = set()
    rounds = options.times(3)
    for number in range(rounds):
        for load, running in LOADS.items():
            say(f"programs: {load}, round {number + 1} of {rounds}")
            with Lab() as lab:
                link = lab.veth()
                with running(link):
                    time.sleep(0.5)
                    for program, argv in commands(link).items():
                        if program in missing:
                            continue
                        found = watched(link, argv, settle, seconds)
                        if found is None:
                            missing.add(program)
                            continue
                        percent[program, load].append(found[0])
                        written[program, load].append(found[2])
                        if load == "idle":
                            memory[program].append(found[1])
                    kernel[load].append(in_kernel(lab, link, "0", seconds))
    names = list(dict.fromkeys(p for p, _ in percent))
    cpu = Table(
        "CPU of the whole program, percent of a core",
        "sudo .venv/bin/python bench/programs.py",
        ("program", *LOADS),
        words=f"""
All processes, {seconds:g} s after {settle:g} s of settling, terminal of 120x40, {rounds} rounds. Last row: nettop's
programs by run statistics, no budget. Copying packets to tcpdump, nethogs and iftop is in no row. 10 000 active
flows: 20 000 datagrams a second.
""",
    )
    for program in names:
        cpu.rows.append([program, *(spread(percent[program, load], ".1f") for load in LOADS)])
    cpu.rows.append(["nettop, in the kernel", *(spread(kernel[load], ".1f") for load in LOADS)])
    cpu.facts = {f"{program}, {load}": statistics.median(found) for (program, load), found in percent.items()}
    yield cpu
    size = Table(
        "Memory, and bytes to the terminal",
        "sudo .venv/bin/python bench/programs.py",
        ("program", "resident, MB, by process", *(f"kB/s, {load}" for load in LOADS)),
        words="Resident after the start, of each process; shared pages count in each.",
    )
    for program in names:
        sizes = [statistics.median(part) / 1e6 for part in zip(*memory[program], strict=False)]
        rates = (spread([v / 1e3 for v in written[program, load]], ".1f") for load in LOADS)
        size.rows.append(
            [program, " + ".join(f"{mb:.1f}" for mb in sizes), *(rate.partition(" ")[0] for rate in rates)]
        )
        size.facts |= {f"memory, {program}, {number}": mb for number, mb in enumerate(sizes)}
    for program in sorted(missing):
        size.rows.append([program, "does not run on this kernel", *("-" for _ in LOADS)])
    yield size


if __name__ == "__main__":
    run(__doc__, measure)

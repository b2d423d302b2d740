"""The whole report: every row in turn, and what they found into docs/performance.md, between its two marks.

sudo scripts/bench [--quick] [--only WORD] [--dry-run]
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import sys
import time
from pathlib import Path

from common import ROOT, Measure, Options, Table, say

# In the order of the report.
ROWS = ("cost", "stages_cost", "impact", "programs", "scan", "churn", "start", "screen")
PAGE = ROOT / "docs/performance.md"
BEGIN, END = "<!-- figures: scripts/bench writes what is between the marks -->", "<!-- end of figures -->"


# What is aimed at: in words, the fact, and the most (or, below 0, the least) that it may be.
SCREEN = "nettop, screen at 1 Hz"
AIMS: tuple[tuple[str, str, float], ...] = (
    ("throughput and flows, 64 request-response flows, ns net", "net, 64 request-response flows", 200),
    ("throughput and flows, connection churn, ns net", "net, connect, request, close", 400),
    ("stages and irq, part of the published method, net", "stages, net", 1 / 3),
    ("transactions left, everything on, default budget", "transactions, everything", -0.90),
    ("transactions left, no budget", "transactions, everything, no budget", -0.90),
    ("bulk throughput left, everything on", "bulk, everything", -0.98),
    ("500 000 flows read every 10 s, cores", "cores, 500000 every 10 s", 0.05),
    ("500 000 flows read every second, cores", "cores, 500000 every 1 s", 0.3),
    ("1 000 000 flows: missing in the table", "missing of 1000000", 0.5),
    ("idle screen at 1 Hz, percent of a core", f"{SCREEN}, idle", 1.5),
    ("10 000 active flows, percent of a core", f"{SCREEN}, 10 000 active flows", 6),
    ("memory of the screen after the start, MB", f"memory, {SCREEN}, 0", 90),
    ("memory of the loader after the start, MB", f"memory, {SCREEN}, 1", 20),
    ("connections miscounted under churn", "connections miscounted", 0.5),
)


def aims(facts: dict[str, float]) -> Table:
    """What was found beside what is aimed at."""
    table = Table("Aims", "sudo scripts/bench", ("", "aim", "found", ""))
    for words, key, limit in AIMS:
        if key not in facts:
            continue
        found = facts[key]
        if limit > 0:
            aim = "none" if limit == 0.5 else f"at most {limit:.3g}"
            met = "met" if found <= limit else "**missed**"
        else:
            aim, met = f"at least {-limit:.3g}", "met" if found >= -limit else "**missed**"
        table.rows.append([words, aim, f"{found:.0f}" if abs(found) >= 100 else f"{found:.3g}", met])
    return table


def machine() -> str:
    """One sentence about where this runs."""
    cpuinfo, release = Path("/proc/cpuinfo").read_text(), platform.release().split("-")[0]
    model = re.search(r"^model name\s*: (.*)", cpuinfo, re.MULTILINE)
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1e6
    return (
        f"{'A virtual machine' if 'hypervisor' in cpuinfo else 'Hardware'} with {os.cpu_count()} cores "
        f"({model[1] if model else 'an unknown processor'}), {memory:.0f} GB, Linux {release}, "
        f"{platform.freedesktop_os_release().get('PRETTY_NAME', '')}, Python {platform.python_version()}; "
        f"load before it began {os.getloadavg()[0]:.1f}."
    )


def write(tables: list[str], about: str) -> None:
    """Put the tables between the marks of the page; what is around them stays."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        raise SystemExit(f"{PAGE} has no marks: {BEGIN} and {END}")
    middle = "\n".join([f"{BEGIN}\n", about, "", *tables])
    PAGE.write_text(f"{head}{middle}\n{END}{tail}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a look in a few minutes; writes nothing")
    parser.add_argument("--only", default="", help="rows whose name has this in it; writes nothing")
    parser.add_argument("--repeats", type=int, default=0, help="interleaved repeats of each row")
    parser.add_argument("--dry-run", action="store_true", help="do not write docs/performance.md")
    given = parser.parse_args()
    if os.geteuid():
        print("bench: needs root\nhint: sudo scripts/bench", file=sys.stderr)
        return 3
    options = Options(given.quick, given.repeats)
    begun, about = time.time(), machine()
    tables: list[str] = []
    facts: dict[str, float] = {}
    failed = []
    for name in ROWS:
        if given.only not in name:
            continue
        measure: Measure = importlib.import_module(name).measure
        try:
            for table in measure(options):
                print(table.text(), flush=True)
                tables.append(table.markdown())
                facts |= table.facts
        except Exception as error:  # one row's failure is told, and the others are worth having
            say(f"{name} failed: {type(error).__name__}: {error}")
            failed.append(name)
            tables.append(f"### {name}\n\nNot measured: {type(error).__name__}.\n")
    print(aims(facts).text(), flush=True)
    tables.insert(0, aims(facts).markdown())
    minutes = (time.time() - begun) / 60
    if not (given.quick or given.only or given.dry_run):
        day = time.strftime("%Y-%m-%d", time.gmtime(begun))
        write(tables, f"Measured on {day} by `sudo scripts/bench` in {minutes:.0f} minutes. {about}")
        say(f"written to {PAGE.relative_to(ROOT)}")
    say(f"done in {minutes:.1f} minutes" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

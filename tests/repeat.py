"""For hunting: the chosen tests N times, one after another, each time in a pytest of its own; and who failed how often.

scripts/test --repeat N [--into FILE] [PYTEST ARGUMENT ...] calls it.  Nothing runs twice within a round, not even
what measures time (NETTOP_ONCE), and nothing beside another but with --numprocesses, as in CI.  With --into FILE
what came out is added to the file, and the table is of all that is in it: so a long hunt may run in parts.
Interrupted, it shows what it has.
Status: 0 all passed, 1 some failed, 2 wrong usage or nothing chosen, 3 a round had no end.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

FILE = "NETTOP_REPEAT_TO"  # where a round's pytest leaves its outcomes
USAGE = "usage: scripts/test --repeat N [--into FILE] [PYTEST ARGUMENT ...]"


class Outcomes:
    """In a round's pytest: a line for each test as it ends, so that an interrupted round is not lost."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.failed: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.skipped: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        node = report.nodeid
        self.seconds[node] = self.seconds.get(node, 0.0) + report.duration
        if report.skipped:
            self.skipped.add(node)  # neither passed nor failed
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            words = (crash.message if crash else str(report.longrepr)).splitlines() or ["?"]
            self.failed.setdefault(node, words[0][:300])
        if report.when == "teardown" and (node not in self.skipped or node in self.failed):
            self.leave(node, self.seconds[node])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed[report.nodeid] = "not collected"
            self.leave(report.nodeid, 0.0)

    def leave(self, node: str, seconds: float) -> None:
        with self.file.open("a") as out:
            line = {"test": node, "failed": self.failed.pop(node, ""), "seconds": round(seconds, 2)}
            out.write(json.dumps(line) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """As a plugin (-p repeat). Of tests side by side the workers say nothing: all they saw is reported to the first."""
    if hasattr(config, "workerinput"):
        return
    config.pluginmanager.register(Outcomes(Path(os.environ[FILE])))


@dataclass
class Row:
    """A test over all rounds."""

    runs: int = 0
    failed: list[str] = field(default_factory=list)
    longest: float = 0.0


def rows(lines: Iterable[str]) -> dict[str, Row]:
    """By test; a last line that an interruption cut is left out."""
    found: dict[str, Row] = {}
    for line in lines:
        if not line.endswith("\n"):
            continue
        said = json.loads(line)
        row = found.setdefault(said["test"], Row())
        row.runs += 1
        row.longest = max(row.longest, said["seconds"])
        if said["failed"]:
            row.failed.append(said["failed"])
    return found


def table(found: dict[str, Row]) -> str:
    """Those that failed first, the most often failed at the top; below each what it said, once each."""
    lines = ["failed  runs  longest  test"]
    for test, row in sorted(found.items(), key=lambda item: (-len(item[1].failed), item[0])):
        lines.append(f"{len(row.failed):6}  {row.runs:4}  {row.longest:5.1f} s  {test}")
        lines += [f"{'':25}{words}" for words in dict.fromkeys(row.failed)]
    runs, failed = sum(r.runs for r in found.values()), sum(len(r.failed) for r in found.values())
    flaky = sum(bool(row.failed) for row in found.values())
    return "\n".join([*lines, f"{len(found)} tests, {runs} runs, {failed} failed, of {flaky} tests"])


def rounds(times: int, file: Path, arguments: Sequence[str]) -> int:
    """The worst that happened: 0, or a status as above."""
    worst = 0
    env = os.environ | {FILE: str(file), "NETTOP_ONCE": "1", "PYTHONPATH": str(Path(__file__).parent)}
    argv = [sys.executable, "-m", "pytest", "-p", "repeat", "-p", "no:cacheprovider", *arguments]
    for number in range(1, times + 1):
        print(f"round {number} of {times}", file=sys.stderr, flush=True)
        process = subprocess.Popen(argv, env=env)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # from the terminal it has that already; twice does no harm
            process.wait()  # it takes its namespaces away first
            return 3
        if status not in (0, 1):
            return 2 if status in (4, 5) else 3
        worst = max(worst, status)
    return worst


def main(words: list[str]) -> int:
    """See the module."""
    if not words or not words[0].isdecimal() or int(words[0]) < 1:
        print(USAGE, file=sys.stderr)
        return 2
    times, arguments = int(words[0]), words[1:]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "outcomes")
        if arguments[:1] == ["--into"] and len(arguments) > 1:
            file, arguments = Path(arguments[1]).absolute(), arguments[2:]
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        status = rounds(times, file, arguments)
        found = rows(file.open()) if file.exists() else {}
        print(table(found))
    return status or int(any(row.failed for row in found.values()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""For finding flaky tests: runs the chosen tests N times, each round in a pytest of its own, and counts failures.

scripts/test --repeat N [--into FILE] [PYTEST ARGUMENT ...] calls it.  Tests that measure time run once a round
(NETTOP_ONCE), and one at a time without --numprocesses.  With --into FILE outcomes are added to the file, and the table
is of all that is in it.  Interrupted, it shows what it has.
Status: 0 all passed, 1 some failed, 2 wrong usage or nothing chosen, 3 a round did not end.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
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
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.skipped: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        node = report.nodeid
        self.seconds[node] += report.duration
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
    """As a plugin (-p repeat). Workers of pytest-xdist report to the first process."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(Path(os.environ[FILE])))


@dataclass
class Row:
    """A test over all rounds."""

    runs: int = 0
    failed: list[str] = field(default_factory=list)
    longest: float = 0.0


def rows(lines: Iterable[str]) -> dict[str, Row]:
    """By test; a last line that an interruption cut is left out."""
    found: defaultdict[str, Row] = defaultdict(Row)
    for said in (json.loads(line) for line in lines if line.endswith("\n")):
        row = found[said["test"]]
        row.runs += 1
        row.longest = max(row.longest, said["seconds"])
        row.failed += [said["failed"]] * bool(said["failed"])
    return found


def table(found: dict[str, Row]) -> str:
    """The most often failed first, each with its messages, once each."""
    lines = ["failed  runs  longest  test"]
    for test, row in sorted(found.items(), key=lambda item: (-len(item[1].failed), item[0])):
        lines.append(f"{len(row.failed):6}  {row.runs:4}  {row.longest:5.1f} s  {test}")
        lines += [f"{'':25}{words}" for words in dict.fromkeys(row.failed)]
    runs, failed = sum(r.runs for r in found.values()), sum(len(r.failed) for r in found.values())
    flaky = sum(bool(row.failed) for row in found.values())
    return "\n".join([*lines, f"{len(found)} tests, {runs} runs, {failed} failed, of {flaky} tests"])


def rounds(times: int, file: Path, arguments: Sequence[str]) -> int:
    """The worst status of all rounds."""
    worst = 0
    env = os.environ | {FILE: str(file), "NETTOP_ONCE": "1", "PYTHONPATH": str(Path(__file__).parent)}
    argv = [sys.executable, "-m", "pytest", "-p", "repeat", "-p", "no:cacheprovider", *arguments]
    for number in range(1, times + 1):
        print(f"round {number} of {times}", file=sys.stderr, flush=True)
        process = subprocess.Popen(argv, env=env)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # the terminal has sent it already; twice does no harm
            process.wait()  # it removes its namespaces first
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

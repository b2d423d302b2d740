#!/usr/bin/env python3
"""What a packet costs now, beside what it cost at another commit: both in the same run, by turns.

    sudo .venv/bin/python bench/versus.py COMMIT [--rounds N] [--row NAME ...]

Each round runs a row of the bench in a checkout of that commit and in this one, the other way round in the next.  Every
number of its tables is compared with its namesake; the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import ROOT, say

ROWS = ("cost", "stages_cost")
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])")
Figures = dict[tuple[str, str, int], float]  # row, column, place in its cell


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nettop-versus.") as folder:
        place = Path(folder) / "before"
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--quiet", "--detach", str(place), commit], check=True)
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


def figures(text: str) -> Figures:
    """The numbers of printed tables: columns stand two blanks apart, as ``common.Table.text`` prints them."""
    found: Figures = {}
    columns: list[str] = []
    for line in text.splitlines():
        cells = [cell for cell in re.split(r" {2,}", line.strip()) if cell]
        if len(cells) < 2:
            columns = []
        elif not columns:
            columns = cells
        else:
            for column, cell in zip(columns[1:], cells[1:], strict=False):
                bare = re.sub(r"\([^)]*\)", "", cell)  # least and most
                for place, number in enumerate(NUMBER.findall(bare)):
                    found[cells[0], column, place] = float(number)
    return found


def measured(place: Path, row: str) -> Figures:
    """One quick run of a row, by that checkout's own bench, programs and compiler flags."""
    environment = {**os.environ, "PYTHONPATH": str(place), "TMPDIR": tempfile.mkdtemp(dir=place.parent)}
    said = subprocess.run(
        [sys.executable, f"bench/{row}.py", "--quick"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if said.returncode:
        sys.exit(f"bench/{row}.py in {place}:\n{said.stderr}")
    return figures(said.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--row", action="append", choices=ROWS, help="of the bench; all")
    given = parser.parse_args()
    with checkout(given.commit) as before, tempfile.TemporaryDirectory() as folder:
        now = Path(folder) / "now"
        now.symlink_to(ROOT)
        for row in given.row or ROWS:
            runs: dict[str, list[Figures]] = {"before": [], "now": []}
            for step in range(given.rounds):
                turns = [("before", before), ("now", now)]
                for name, place in turns if step % 2 == 0 else reversed(turns):
                    say(f"{row}, round {step + 1}: {name}")
                    runs[name].append(measured(place, row))
            print(f"{row}: before, now, ratio")
            for key in runs["now"][0]:
                if all(key in each for both in runs.values() for each in both):
                    old, new = (statistics.median(r[key] for r in runs[name]) for name in ("before", "now"))
                    ratio = f"{new / old:.2f}" if old > 0 else "-"
                    print(f"  {key[0]}, {key[1]} {key[2] + 1}: {old:g}, {new:g}, {ratio}", flush=True)


if __name__ == "__main__":
    main()

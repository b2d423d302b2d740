#!/usr/bin/env python3
"""Seeking in a day's recording, 86 400 frames: from a moment on the time line to its frame.

bench/seek.py [--frames N]    needs no privileges, and room in TMPDIR: some 52 kB a frame
"""

from __future__ import annotations

import argparse
import gzip
import random
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, say

sys.path.insert(0, str(ROOT))

from nettop.record.recording import Recording

JUMPS = 200


def write(path: Path, frames: int) -> None:
    """The demo's frames over and over, a second apart."""
    header, *lines = gzip.decompress((ROOT / "nettop/demo.ndjson.gz").read_bytes()).splitlines(keepends=True)
    parts = [re.split(rb'(?<="time_ns":)\d+', line, maxsplit=1) for line in lines]
    with path.open("wb") as file:
        file.write(header)
        for number in range(frames):
            before, after = parts[number % len(parts)]
            file.write(b"%s%d%s" % (before, (1_800_000_000 + number) * 1_000_000_000, after))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--frames", type=int, default=86_400)
    with tempfile.TemporaryDirectory(prefix="nettop-seek-") as folder:
        path = Path(folder) / "day.ndjson"
        write(path, parser.parse_args().frames)
        begun = time.perf_counter()
        with Recording(str(path)) as recording:
            opened = time.perf_counter() - begun
            say(f"{len(recording)} frames, {path.stat().st_size / 1e6:.0f} MB, opened in {opened:.1f} s")
            dice = random.Random(7)
            took = []
            for _ in range(JUMPS):
                share = dice.random()
                begun = time.perf_counter()
                recording.frame(recording.at(int(share * recording.ends_ns[-1])))
                took.append((time.perf_counter() - begun) * 1e3)
            median, p99 = statistics.median(took), statistics.quantiles(took, n=100)[-1]
            say(f"{JUMPS} jumps: median {median:.1f} ms, p99 {p99:.1f} ms, longest {max(took):.1f} ms")


if __name__ == "__main__":
    main()

"""Seeking in a day's recording (86 400 frames): from a time to the frame, and to the frames that graphs show before it.

bench/seek.py [--frames N]    needs no privileges, and room in TMPDIR: some 25 kB a frame
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, say

sys.path.insert(0, str(ROOT))

from nettop.record.recording import Recording
from nettop.record.sources import Replay

DEMO = ROOT / "nettop/demo.ndjson.gz"
JUMPS = 200


def written(path: Path, frames: int) -> None:
    """The demo's frames over and over, a second apart."""
    import gzip
    import re

    header, *lines = gzip.decompress(DEMO.read_bytes()).splitlines(keepends=True)
    parts = [re.split(rb'("time_ns":)\d+', line, maxsplit=1) for line in lines]
    start = 1_800_000_000_000_000_000
    with path.open("wb") as file:
        file.write(header)
        for number in range(frames):
            before, key, after = parts[number % len(parts)]
            file.write(b"%s%s%d%s" % (before, key, start + number * 1_000_000_000, after))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=86_400)
    frames = parser.parse_args().frames
    with tempfile.TemporaryDirectory(prefix="nettop-seek-") as folder:
        path = Path(folder) / "day.ndjson"
        written(path, frames)
        begun = time.perf_counter()
        with Recording(str(path)) as recording:
            took_s = time.perf_counter() - begun
            say(f"{len(recording)} frames, {path.stat().st_size / 1e6:.0f} MB, opened in {took_s:.1f} s")
            replay = Replay(recording, hold=True)
            dice = random.Random(7)
            took = []
            for _ in range(JUMPS):
                when = dice.choice(recording.times_ns)
                begun = time.perf_counter()
                replay.seek_time(when)
                assert replay._target is not None
                recording.frame(replay._target)
                took.append((time.perf_counter() - begun) * 1e3)
            took.sort()
            say(
                f"a jump to a time: median {statistics.median(took):.1f} ms, p99 {took[int(0.99 * JUMPS)]:.1f} ms"
            )


if __name__ == "__main__":
    main()

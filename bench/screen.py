"""What the screen costs: CPU a frame, and bytes written to the terminal, by number of flows.

Runs the real application on a pseudo-terminal of 120x40, fed with made-up frames as fast as it takes them.

    python bench/screen.py [--repeats N] [--quick]
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from common import ROOT, Options, Table, Terminal, run, say, spread

sys.path[:0] = [str(ROOT / "tests" / place) for place in ("ui", "unit")]


def child(rows: int, count: int, idle: float, result: str) -> None:
    """The application, in the process that owns the pseudo-terminal."""
    import frames

    from nettop.core.frame import Frame
    from nettop.ui.app import NettopApp

    made = [frames.frame(step, extra=max(rows - len(frames.NAMED), 0)) for step in range(count + 5)]
    told: dict[str, float] = {}

    async def source() -> AsyncIterator[Frame]:
        start, written = 0.0, 0
        for step, frame in enumerate(made):
            if step == 5:
                start, written = time.process_time(), app.written.total
            yield frame
            await asyncio.sleep(0.03)
        told["ms_a_frame"] = (time.process_time() - start) / count * 1000
        told["bytes_a_frame"] = (app.written.total - written) / count
        start = time.process_time()
        await asyncio.sleep(idle)
        told["idle_percent"] = (time.process_time() - start) / idle * 100
        app.exit()

    app = NettopApp(source(), frames.PROBES)
    app.run()
    Path(result).write_text(json.dumps(told), encoding="utf-8")


def figures(rows: int, count: int, idle: float) -> dict[str, float]:
    """One run; its figures."""
    with tempfile.NamedTemporaryFile() as result:
        argv = [sys.executable, __file__, "--child", str(rows), str(count), str(idle), result.name]
        with Terminal(argv) as terminal:
            if not terminal.ended(180):
                raise TimeoutError(terminal.head[-300:])
        return dict(json.load(result))


def measure(options: Options) -> Iterable[Table]:
    """A row for each number of flows."""
    table = Table(
        "Drawing",
        "sudo .venv/bin/python bench/screen.py",
        ("flows", "CPU a frame, ms", "to the terminal a frame, kB", "between frames, percent of a core"),
        words="The real screen on a pseudo-terminal of 120x40, with made-up frames.",
    )
    for rows in (33, 1000, 10_000, 20_000):
        say(f"drawing {rows} flows")
        runs = [figures(rows, 40, 3.0) for _ in range(options.times(3))]
        table.rows.append(
            [
                str(rows),
                spread([told["ms_a_frame"] for told in runs], ".2f"),
                spread([told["bytes_a_frame"] / 1000 for told in runs], ".1f"),
                spread([told["idle_percent"] for told in runs], ".2f"),
            ]
        )
    yield table


if __name__ == "__main__":
    if "--child" in sys.argv:
        rows, count, idle, result = sys.argv[2:]
        child(int(rows), int(count), float(idle), result)
    else:
        run(__doc__, measure)

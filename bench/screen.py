"""What the screen costs: CPU a frame, and bytes written to the terminal, by number of flows.

Runs the real application on a pseudo-terminal of 120x40 (or as asked), fed with made-up frames as fast as it takes them
one at a time.  Figures: CPU time of the process a frame in ms, of which the table's ordering; bytes a frame.

    python bench/screen.py [--repeats N] [--quick]
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from common import ROOT, Options, Table, run, say, spread

sys.path.insert(0, str(ROOT / "tests" / "ui"))


def child(rows: int, count: int, idle: float, result: str) -> None:
    """The application, in the process that owns the pseudo-terminal."""
    import frames

    from nettop.core.frame import Frame
    from nettop.ui.app import NettopApp

    made = [frames.frame(step, extra=max(rows - len(frames.NAMED), 0)) for step in range(count + 5)]
    told: dict[str, float] = {}

    async def source() -> AsyncIterator[Frame]:
        start = 0.0
        for step, frame in enumerate(made):
            if step == 5:
                start = time.process_time()
                os.write(1, b"\x1b[0m<START>")
            yield frame
            await asyncio.sleep(0.03)
        told["ms_a_frame"] = (time.process_time() - start) / count * 1000
        os.write(1, b"\x1b[0m<END>")
        start = time.process_time()
        await asyncio.sleep(idle)
        told["idle_percent"] = (time.process_time() - start) / idle * 100
        app.exit()

    app = NettopApp(source(), frames.PROBES)
    app.run()
    Path(result).write_text(json.dumps(told), encoding="utf-8")


def measure(rows: int, count: int, idle: float, size: tuple[int, int]) -> dict[str, float]:
    """One run; its figures."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    result = Path(f"/tmp/nettop-screen-{os.getpid()}.json")
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", str(rows), str(count), str(idle), str(result)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    written = bytearray()

    def drain() -> None:
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                return
            if not data:
                return
            written.extend(data)

    reader = threading.Thread(target=drain)
    reader.start()
    process.wait(180)
    reader.join(5)
    begin, end = written.find(b"<START>"), written.find(b"<END>")
    told: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
    result.unlink()
    told["bytes_a_frame"] = (end - begin) / count
    return told


def report(options: Options) -> Iterable[Table]:
    """A row for each number of flows."""
    size = (120, 40)
    table = Table(
        "Drawing",
        "sudo .venv/bin/python bench/screen.py",
        ("flows", "CPU a frame, ms", "to the terminal a frame, kB", "between frames, percent of a core"),
        words=f"The real screen on a pseudo-terminal of {size[0]}x{size[1]}, with made-up frames.",
    )
    for rows in (33, 1000, 10_000, 20_000):
        say(f"drawing {rows} flows")
        runs = [measure(rows, 40, 3.0, size) for _ in range(options.times(3))]
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
        run(__doc__, report)

"""From the command to the first figures on the screen, in a pseudo-terminal of 120x40, with a warm cache.

sudo .venv/bin/python bench/start.py [--repeats N]
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import signal
import statistics
import struct
import sys
import termios
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from lab import Lab  # noqa: E402

FIRST_FIGURES = b"b/s"  # a rate: nothing on the waiting screen has one


def start(namespace: str, interface: str) -> float:
    """Seconds until the first rate is on the screen."""
    begin = time.monotonic()
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", PYTHONPATH=str(HERE.parent))
        command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "nettop", interface]
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    seen, taken = b"", 0.0
    while time.monotonic() < begin + 20:
        if select.select([terminal], [], [], 0.02)[0]:
            seen = seen[-64:] + os.read(terminal, 65536)
            if FIRST_FIGURES in seen:
                taken = time.monotonic() - begin
                break
    os.kill(pid, signal.SIGTERM)
    while select.select([terminal], [], [], 0.5)[0]:  # or it waits for room to write
        try:
            if not os.read(terminal, 65536):
                break
        except OSError:
            break
    os.waitpid(pid, 0)
    os.close(terminal)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with Lab() as lab:
        link = lab.veth()
        assert link.a.ns.name
        start(link.a.ns.name, link.a.name)  # fills the cache
        times = sorted(start(link.a.ns.name, link.a.name) for _ in range(options.repeats))
    print(
        f"first figures on the screen after {statistics.median(times):.2f} s "
        f"({times[0]:.2f} to {times[-1]:.2f}, {len(times)} starts)"
    )


if __name__ == "__main__":
    main()

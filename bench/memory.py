#!/usr/bin/env python3
"""What the screen and the loader hold after some time: MB resident of both, each minute, beside fifty flows.

    sudo .venv/bin/python bench/memory.py [--minutes 10] [--flows 50]

The flows are request and response, each ten times a second.  The history is what grows until it is full: ten minutes of
frames a second apart.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "live")]

from lab import Lab  # noqa: E402
from lab.traffic import answering  # noqa: E402
from terminal import Terminal  # noqa: E402

MB = 1e6


def talk(connections: list[socket.socket], over: threading.Event) -> None:
    while not over.wait(0.1):
        for connection in connections:
            connection.sendall(bytes(64))
        for connection in connections:
            connection.recv(64)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--flows", type=int, default=50)
    options = parser.parse_args()
    over = threading.Event()
    with Lab() as lab, ExitStack() as stack:
        link = lab.veth()
        server = stack.enter_context(answering(link.b))
        address = (link.b.v4, server.port)
        connections = [
            stack.enter_context(link.a.ns.call(lambda: socket.create_connection(address, 10)))
            for _ in range(options.flows)
        ]
        screen = stack.enter_context(Terminal(lab, link.a))
        threading.Thread(target=talk, args=(connections, over), daemon=True).start()
        stack.callback(over.set)
        began = time.monotonic()
        while time.monotonic() - began < 60 * options.minutes + 15:
            until = time.monotonic() + 15
            while time.monotonic() < until:
                screen.skip(1)
            family = [psutil.Process(screen.process.pid)]
            family += family[0].children(recursive=True)
            sizes = " ".join(f"{process.memory_info().rss / MB:.1f}" for process in family)
            print(f"{time.monotonic() - began:5.0f} s  {sizes} MB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""What the screen and the loader hold after some time: MB resident of each process, every 15 s, beside fifty flows.

    sudo .venv/bin/python bench/memory.py [--minutes 10] [--flows 50]

The flows are request and response, each ten times a second.  The history is what grows until it is full: ten minutes of
frames a second apart.
"""

from __future__ import annotations

import argparse
import time

from common import Terminal, memory_of, nettop
from lab import Lab
from workloads import questions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--flows", type=int, default=50)
    options = parser.parse_args()
    seconds = 60 * options.minutes + 15
    with Lab() as lab:
        link = lab.veth()
        with (
            questions(link, options.flows, 0.1, seconds + 60),
            Terminal(link.a.ns.argv(nettop(link.a.name))) as screen,
        ):
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                time.sleep(15)
                sizes = " ".join(f"{size / 1e6:.1f}" for size in memory_of(screen.pid))
                print(f"{time.monotonic() - began:5.0f} s  {sizes} MB", flush=True)


if __name__ == "__main__":
    main()

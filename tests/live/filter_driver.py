"""nettop's live source, driven by lines: what the screen does when the user types a filter, without the screen.

    python filter_driver.py INTERFACE SECONDS_BETWEEN_FRAMES PROBES [FILTER]

Each line on standard input is a new filter (an empty one: none); each frame goes to standard output as JSON.  The
end of the input is the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from nettop.collect import live
from nettop.collect.loader_client import LoaderHandle, start_loader
from nettop.core.errors import NettopError
from nettop.record import schema
from nettop.settings import Control, Settings


async def run(handle: LoaderHandle, settings: Settings) -> None:
    control = Control.of(settings)
    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def line() -> None:
        text = sys.stdin.readline()
        if not text:
            over.set()
            loop.remove_reader(sys.stdin.fileno())
        else:
            control.filter = text.strip()

    loop.add_reader(sys.stdin.fileno(), line)
    ticks = asyncio.create_task(tick(over))
    stream = live.frames(handle, settings, control)
    try:
        async for frame in stream:
            data = schema.frame_to_json(frame, 1000, "")
            print(json.dumps({**data, "longest_stall_ms": STALL["ms"]}, default=str), flush=True)
            STALL["ms"] = 0.0
            if over.is_set():
                break
    finally:
        await stream.aclose()
        ticks.cancel()


STALL = {"ms": 0.0}


async def tick(over: asyncio.Event) -> None:
    """How long the loop, which draws the screen, was held up."""
    loop = asyncio.get_running_loop()
    while not over.is_set():
        before = loop.time()
        await asyncio.sleep(0.01)
        STALL["ms"] = max(STALL["ms"], (loop.time() - before - 0.01) * 1e3)


def main(run: Callable[[LoaderHandle, Settings], Coroutine[Any, Any, None]] = run) -> int:
    """The command line, and what `run` does with it while the loader is there."""
    handle = start_loader()
    try:
        settings = Settings(
            interface=sys.argv[1],
            delay=float(sys.argv[2]),
            probes=tuple(sys.argv[3].split(",")),
            filter=" ".join(sys.argv[4:]),
            budget=0,  # a compiler at work on a busy machine is over any, and packets would be sampled
        )
        asyncio.run(run(handle, settings))
    except NettopError as error:
        print(error.lines(), file=sys.stderr)
        return error.code
    finally:
        handle.close()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())

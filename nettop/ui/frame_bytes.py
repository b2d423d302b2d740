"""What a frame costs on the line to the terminal, measured without one; the size of that."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence

from nettop.core.frame import Frame
from nettop.probes.base import all_probes
from nettop.ui.app import NettopApp
from nettop.ui.textual_private import NoTerminal


async def bytes_a_frame(frames: Sequence[Frame], size: tuple[int, int]) -> float:
    """What the screen would write to a terminal for each of these frames but the first, which paints everything."""
    drawn, go_on = asyncio.Event(), asyncio.Event()

    async def source() -> AsyncIterator[Frame]:
        for frame in frames:
            yield frame
            drawn.set()
            await go_on.wait()
            go_on.clear()

    app = NettopApp(source(), tuple(all_probes().values()), driver_class=NoTerminal)
    task = asyncio.create_task(app.run_async(size=size, mouse=False))
    first = 0
    try:
        for number in range(len(frames)):
            await asyncio.wait_for(drawn.wait(), 10)
            drawn.clear()
            # Until no more comes: on a busy machine painting takes longer than two of Textual's ticks.
            before = -1
            while before != app.written.total:
                before = app.written.total
                await asyncio.sleep(0.05)
            if number == 0:
                first = before
            go_on.set()
        whole = app.written.total
    finally:
        app.exit()
        await task
    return (whole - first) / max(len(frames) - 1, 1)


def terminal_size() -> tuple[int, int]:
    """Columns and rows of the terminal, or of a usual one where there is none."""
    for fd in (1, 2, 0):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(fd)
            if size.columns and size.lines:
                return size.columns, size.lines
    return 120, 40

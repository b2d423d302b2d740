"""Run inside a namespace, as root: the real screen over the running kernel, recording; what it showed, as JSON.

    screen_driver.py INTERFACE RECORDING FRAMES

The screen is stopped at the last frame, and looked at in each of VIEWS.  The test imports VIEWS to look at the
recording in the same way.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

# Keys, one after the other; each view starts from what the one before left.
VIEWS: dict[str, tuple[str, ...]] = {
    "all": (),
    "bytes": ("u",),
    "throughput": ("u", "1", "z"),
    "rtt": ("z", "2", "z"),
    "flows by RTT": ("z", "3", "s", "j", "j", "j", "enter", "z"),
    "flow": ("j", "enter"),
    "stages": ("escape", "escape", "4", "z"),
    "stage": ("z", "j", "j", "enter"),
    "irq": ("escape", "escape", "5", "z"),
}
SIZE = (120, 44)


def panes(app: Any) -> list[str]:
    """The panes as text, without the lines above and below."""
    rows = [strip.text for strip in app.screen._compositor.render_strips()]
    body = app.query_one("Body").region
    return rows[body.y : body.y + body.height]


async def look(app: Any, pilot: Any) -> dict[str, list[str]]:
    """The panes in every view."""
    seen = {}
    for name, keys in VIEWS.items():
        await pilot.press(*keys)
        for _ in range(3):
            await pilot.pause()
        seen[name] = panes(app)
    return seen


async def drive(handle: Any, interface: str, path: str, count: int) -> dict[str, Any]:
    from nettop.collect import live
    from nettop.probes.base import all_probes
    from nettop.session import Session
    from nettop.settings import Control, Settings
    from nettop.ui.app import NettopApp

    chosen = Settings(interface=interface, delay=0.5)
    control = Control.of(chosen)
    session = Session(chosen, control)
    session.start_recording(path)

    frames = session.watched(live.frames(handle, chosen, control))
    app = NettopApp(frames, tuple(all_probes().values()), session.settings, session)
    try:
        async with app.run_test(size=SIZE) as pilot:
            deadline = time.monotonic() + 60
            while len(app.state.history) < count and app.failure is None and time.monotonic() < deadline:
                await pilot.pause(0.05)
            await pilot.press("space")
            assert app.state.shown is not None, app.failure
            return {"time_ns": app.state.shown.time_ns, "views": await look(app, pilot)}
    finally:
        session.close()
        handle.close()


def main() -> None:
    os.environ.update(
        TERM="xterm-256color", COLORTERM="truecolor", LC_ALL="C.UTF-8", OPENBLAS_NUM_THREADS="1"
    )
    from nettop import broker
    from nettop.collect.loader_client import start_loader
    from nettop.record import files

    files.open_by(broker.start([sys.argv[2]]))  # root's, which the screen is no more
    handle = start_loader()  # before there is a thread: privileges belong to threads
    print(json.dumps(asyncio.run(drive(handle, sys.argv[1], sys.argv[2], int(sys.argv[3])))))


if __name__ == "__main__":
    main()

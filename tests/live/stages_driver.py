"""nettop's live source, driven by lines: focus, filter, sampling and trace, without the screen.

    python stages_driver.py INTERFACE SECONDS_BETWEEN_FRAMES PROBES [FILTER]

Each line on standard input is a request: `focus PORT` (the flow that has it, at either end), `focus` (none),
`filter TEXT`, `sample SHIFT`.  TRACE in the environment is Control's trace.  Each frame goes to standard output as
JSON; the end of the input is the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from filter_driver import main

from nettop.analysis.focus import focus_on
from nettop.collect import live
from nettop.collect.engine import Engine
from nettop.collect.loader_client import LoaderHandle
from nettop.core.frame import Frame
from nettop.probes.flows.section import Flows
from nettop.record import schema
from nettop.settings import Control, Settings

KEPT: list[live.Live] = []


class KeptLive(live.Live):
    """Live as it is, within reach."""

    async def load(self) -> Engine:
        KEPT.append(self)
        return await super().load()


def flow_of(frame: Frame, port: int) -> int:
    """The id of the flow with this port; 0: none."""
    section = frame.sections["flows"]
    assert isinstance(section, Flows)
    rows = section.rows
    found = rows[(rows["local_port"] == port) | (rows["remote_port"] == port)]
    assert len(found) < 2, f"{len(found)} flows have port {port}"
    return int(found["id"][0]) if len(found) else 0


async def run(handle: LoaderHandle, settings: Settings) -> None:
    control = Control.of(settings)
    control.trace = os.environ.get("TRACE", "")
    loop = asyncio.get_running_loop()
    requests: list[str] = []
    over = asyncio.Event()

    def line() -> None:
        text = sys.stdin.readline()
        if text:
            requests.append(text.strip())
        else:
            over.set()
            loop.remove_reader(sys.stdin.fileno())

    loop.add_reader(sys.stdin.fileno(), line)
    stream = live.frames(handle, settings, control)
    try:
        async for frame in stream:
            print(json.dumps(schema.frame_to_json(frame, 1000, ""), default=str), flush=True)
            for request in requests[:]:
                name, _, rest = request.partition(" ")
                if name == "focus":
                    control.focus = focus_on(frame, flow_of(frame, int(rest))) if rest else None
                    if rest and control.focus is None:
                        continue  # the flow is not there yet
                elif name == "filter":
                    control.filter = rest
                elif name == "sample":
                    KEPT[0].least["sample_shift"] = int(rest)
                requests.remove(request)
            if over.is_set():
                break
    finally:
        await stream.aclose()


if __name__ == "__main__":
    live.Live = KeptLive  # type: ignore[misc]
    sys.exit(main(run))

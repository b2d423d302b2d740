"""What the screen does when a flow is entered, without the screen: verdict_driver.py INTERFACE.

A line on stdin is an end of a flow: the busiest flow with that end is taken into focus, and when enough intervals were
seen its explanation is written as a line of JSON.
"""

import asyncio
import json
import sys
import threading
from queue import Empty, SimpleQueue

from nettop.live import LoaderHandle, frames, start_loader
from nettop.model import Focus, Frame
from nettop.probes.flows_layout import key_of
from nettop.probes.verdict import chosen, explain, focused_of, row_of
from nettop.settings import Control, Settings

INTERVAL_S = 0.2
ENOUGH = 6  # intervals with the flow in focus; the first began before
PATIENCE = 40  # intervals


def read(lines: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line.strip())
    lines.put("")


async def judge(handle: LoaderHandle, interface: str, lines: SimpleQueue[str]) -> None:
    settings = Settings(interface=interface, delay=INTERVAL_S)
    control = Control.of(settings)
    end, seen = "", 0
    history: list[Frame] = []
    stream = frames(handle, settings, control)
    async for frame in stream:
        if not end:
            print("ready", flush=True) if not history else None
            history = [frame]
            try:
                end = lines.get_nowait()
            except Empty:
                continue
            if not end:
                break
            control.focus, history, seen = None, [], 0
        history.append(frame)
        if control.focus is None and (flow := chosen(frame, end)):
            control.focus = Focus(flow, key_of(row_of(frame, flow)))
        flow = control.focus.id if control.focus else 0
        seen += focused_of(frame, flow) is not None
        if seen > ENOUGH or len(history) > PATIENCE:
            print(json.dumps(explain(history, flow).to_json()), flush=True)
            end, history = "", [frame]
    await stream.aclose()


# Before there is a thread: privileges belong to threads.
loader = start_loader()
asked: SimpleQueue[str] = SimpleQueue()
threading.Thread(target=read, args=(asked,), daemon=True).start()
asyncio.run(judge(loader, sys.argv[1], asked))

"""What the screen does when a flow is entered, without the screen: verdict_driver.py INTERFACE [INTERVAL_S].

A line on stdin is an end of a flow, and the word "keep" where what was seen before is to be known too: the busiest flow
with that end is taken into focus, and when enough intervals were seen its explanation is written as a line of JSON.
"""

import asyncio
import json
import sys
import threading
from queue import Empty, SimpleQueue

from nettop.analysis.verdict.explain import explain
from nettop.analysis.verdict.flow import chosen, focused_of
from nettop.collect.live import frames
from nettop.collect.loader_client import LoaderHandle, start_loader
from nettop.core.frame import Focus, Frame
from nettop.probes.flows.constants import key_of
from nettop.probes.flows.section import row_of
from nettop.settings import Control, Settings

ENOUGH = 6  # intervals with the flow in focus; the first began before
PATIENCE = 40  # intervals
KEPT = 300


def read(lines: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line.strip())
    lines.put("")


async def judge(handle: LoaderHandle, interface: str, interval_s: float, lines: SimpleQueue[str]) -> None:
    settings = Settings(interface=interface, delay=interval_s, budget=0)  # nothing is left out
    control = Control.of(settings)
    end, seen, begin = "", 0, 0
    history: list[Frame] = []
    stream = frames(handle, settings, control)
    async for frame in stream:
        if not history:
            print("ready", flush=True)
        history = [*history[-KEPT:], frame]
        begin = max(begin - (len(history) > KEPT), 0)
        if not end:
            try:
                line = lines.get_nowait()
            except Empty:
                continue
            if not line:
                break
            end, _, how = line.partition(" ")
            seen = 0
            if how != "keep":
                control.focus, begin = None, len(history)
        if control.focus is None and (flow := chosen(frame, end)):
            control.focus = Focus(flow, key_of(row_of(frame, flow)))
        flow = control.focus.id if control.focus else 0
        seen += row_of(frame, flow) is not None and focused_of(frame, flow) is not None
        asked = len(history) - begin
        if seen > ENOUGH or asked > PATIENCE:
            print(json.dumps(explain(history[begin:], flow).to_json()), flush=True)
            end = ""
    await stream.aclose()


# Before there is a thread: privileges belong to threads.
loader = start_loader()
asked: SimpleQueue[str] = SimpleQueue()
threading.Thread(target=read, args=(asked,), daemon=True).start()
asyncio.run(judge(loader, sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.2, asked))

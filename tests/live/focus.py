"""What the screen does when a flow is chosen, without the screen: focus.py INTERFACE REMOTE_PORT SECONDS.

Takes the first flow to that port into focus and prints each of its samples as a line of JSON, as it comes; last a
line with how many samples the flow's entry counted since, and what the kernel's ring lost.
"""

import asyncio
import json
import sys
import time

from nettop.analysis.focus import focus_on
from nettop.collect.live import frames
from nettop.collect.loader_client import LoaderHandle, start_loader
from nettop.probes.flows.section import Flows
from nettop.settings import Control, Settings


async def follow(handle: LoaderHandle, interface: str, port: int, seconds: float) -> None:
    settings = Settings(interface=interface, probes=("flows",), delay=0.2)
    control = Control.of(settings)
    stream = frames(handle, settings, control)
    lost, before, after, until = 0, {}, {}, None
    async for frame in stream:
        section = frame.sections["flows"]
        assert isinstance(section, Flows)
        lost += section.lost_events
        for sample in section.samples:
            print(json.dumps([sample.time_ns, sample.rtt_ns, sample.inward, sample.method]), flush=True)
        if not control.focus:
            found = section.rows[section.rows["remote_port"] == port]
            if len(found):
                control.focus = focus_on(frame, int(found["id"][0]))
                assert control.focus
                until = time.monotonic() + seconds
                print(json.dumps({"focus": control.focus.id}), flush=True)
        row = section.rows[section.rows["id"] == (control.focus.id if control.focus else 0)]
        if section.samples and not before:
            before = {n: int(row[n]["samples_total"][0]) for n in ("rtt", "internal_rtt")}
        if len(row):
            after = {n: int(row[n]["samples_total"][0]) for n in ("rtt", "internal_rtt")}
        if until and time.monotonic() > until:
            break
    await stream.aclose()
    counted = {name: after[name] - before.get(name, 0) for name in after}
    print(json.dumps({"lost": lost, "counted": counted}), flush=True)


# Before there is a thread: privileges belong to threads.
loader = start_loader()
asyncio.run(follow(loader, sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))

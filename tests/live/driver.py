"""nettop's live source, driven by lines as keys drive the screen: focus, filter, sampling and trace.

    python driver.py INTERFACE SECONDS_BETWEEN_FRAMES PROBES [FILTER]

Each line on standard input is a request: `focus PORT` (the flow that has it, at either end), `focus` (none),
`filter TEXT`, `sample SHIFT`.  TRACE in the environment is Control's trace.  Each frame goes to standard output as
JSON, with the samples of the flow in focus and how long the event loop was held up; the end of the input is the end.
"""

import asyncio
import json
import os
import sys

from nettop.analysis.focus import focus_on
from nettop.collect import live
from nettop.collect.engine import Engine
from nettop.collect.loader_client import LoaderHandle, start_loader
from nettop.core.errors import NettopError
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


class Stall:
    """The longest time (ms) for which the loop, which draws the screen, was held up since the last frame."""

    def __init__(self) -> None:
        self.longest_ms = 0.0

    async def watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0.01)
            self.longest_ms = max(self.longest_ms, (loop.time() - before - 0.01) * 1e3)

    def taken(self) -> float:
        longest, self.longest_ms = self.longest_ms, 0.0
        return longest


def flow_of(frame: Frame, port: int) -> int:
    """The id of the flow with this port; 0: none."""
    section = frame.sections["flows"]
    assert isinstance(section, Flows)
    rows = section.rows
    found = rows[(rows["local_port"] == port) | (rows["remote_port"] == port)]
    assert len(found) < 2, f"{len(found)} flows have port {port}"
    return int(found["id"][0]) if len(found) else 0


def samples_of(frame: Frame) -> list[list[object]]:
    """The round trips of the flow in focus: time, RTT (ns), whether inward, method."""
    section = frame.sections.get("flows")
    if not isinstance(section, Flows):
        return []
    return [[sample.time_ns, sample.rtt_ns, sample.inward, sample.method] for sample in section.samples]


def obeyed(request: str, frame: Frame, control: Control) -> bool:
    """Whether the request could be carried out: a flow need not be there yet."""
    name, _, rest = request.partition(" ")
    if name == "focus":
        control.focus = focus_on(frame, flow_of(frame, int(rest))) if rest else None
        return not rest or control.focus is not None
    if name == "filter":
        control.filter = rest
    elif name == "sample":
        KEPT[0].least["sample_shift"] = int(rest)
    return True


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
    stall = Stall()
    watching = asyncio.create_task(stall.watch())
    stream = live.frames(handle, settings, control)
    try:
        async for frame in stream:
            data = schema.frame_to_json(frame, 1000, "")
            data |= {"samples": samples_of(frame), "longest_stall_ms": stall.taken()}
            print(json.dumps(data, default=str), flush=True)
            requests[:] = [request for request in requests if not obeyed(request, frame, control)]
            if over.is_set():
                break
    finally:
        await stream.aclose()
        watching.cancel()


def main() -> int:
    handle = start_loader()  # before there is a thread: privileges belong to threads
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
    live.Live = KeptLive  # type: ignore[misc]
    sys.exit(main())

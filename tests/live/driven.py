"""nettop's live source beside the traffic, without the screen: `driver.py`."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from lab import narrowed
from lab.errors import LabError
from lab.namespace import Endpoint
from lab.program import REPOSITORY, Frame, interpreter
from lab.shell import Process, eventually


class Driven:
    """Runs from its making on; its block begins with the second frame, and ends it.

    `trace`: "", "focus", "all". `via`: the mechanism that the loader tries first.
    """

    def __init__(
        self, at: Endpoint, *words: str, delay: float = 0.25, probes: str = "stages", trace: str = "", via: str = ""
    ) -> None:  # fmt: skip
        self.frames: list[Frame] = []
        script = [str(narrowed.__file__)] if via else []
        script.append(str(Path(__file__).with_name("driver.py")))
        env = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "TRACE": trace,
            "NETTOP_VIA": via,
            "OPENBLAS_NUM_THREADS": "1",  # numpy's threads would keep privileges
        }
        self.process = Process(
            at.ns.argv([interpreter(), *script, at.name, str(delay), probes, *words]),
            on_line=lambda line: self.frames.append(json.loads(line)),
            env=env,
        )

    def __enter__(self) -> Self:
        self.more_frames(2)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop(signal.SIGINT)

    def wait(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        good = eventually(lambda: condition() or not self.process.running(), timeout=timeout, interval=0.02)
        if not good or not self.process.running():
            raise LabError(f"{self.process.stderr[-3000:]} after {len(self.frames)} frames")

    def more_frames(self, count: int) -> list[Frame]:
        """Wait for `count` further frames; all that have come meanwhile."""
        before = len(self.frames)
        self.wait(lambda: len(self.frames) >= before + count)
        return self.frames[before:]

    @contextmanager
    def observing(self) -> Iterator[list[Frame]]:
        """The frames from here to the third after the block."""
        frames: list[Frame] = []
        before = len(self.frames)
        yield frames
        self.more_frames(3)
        frames += self.frames[before:]

    def wait_note(self, words: str) -> None:
        """Wait until the last frame's notes have these words."""
        self.wait(lambda: any(words in note for note in self.frames[-1].get("notes", ())))

    def tell(self, request: str) -> None:
        self.process.write_line(request)

    def set_filter(self, text: str) -> float:
        """Seconds until a frame says that it is applied."""
        start = time.monotonic()
        self.tell(f"filter {text}")
        self.wait(lambda: self.frames[-1]["filter"] == text)
        return time.monotonic() - start

    def focus(self, port: int) -> int:
        """Take the flow with this port into focus; its id, once a frame has it."""
        before = len(self.frames)
        self.tell(f"focus {port}")
        seen: list[int] = []

        def there() -> bool:
            for frame in self.frames[before:]:
                focus = frame["stages"]["focus"]
                ports = {f["id"]: (f["local"], f["remote"]) for f in frame["flows"]}
                if focus and any(end.endswith(f":{port}") for end in ports.get(focus["flow"], ())):
                    seen.append(focus["flow"])
            return bool(seen)

        self.wait(there)
        return seen[0]

    def total(self, what: str, direction: str = "rx", since: int = 0) -> int:
        """The sum over frames of `throughput.rx.packets` and its like."""
        return sum(frame["throughput"][direction][what] for frame in self.frames[since:])

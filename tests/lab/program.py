"""Run nettop as a user does: a program beside the traffic, told by its command line, heard by its output."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lab.core import Lab
from lab.errors import LabError
from lab.namespace import Endpoint, Namespace
from lab.shell import Process

REPOSITORY = Path(__file__).resolve().parents[2]

# A frame as the JSON on stdout has it. Any: the tests look into all corners of it.
Frame = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a finished nettop left: frames (the lines of stdout that are JSON), output and exit code."""

    frames: list[Frame]
    stdout: str
    stderr: str
    code: int


def interpreter() -> str:
    """The Python of the virtual environment that scripts/run makes, or the one that runs the tests."""
    venv = REPOSITORY / ".venv" / "bin" / "python"
    return str(venv) if venv.exists() else sys.executable


def command(interface: str | None, *args: str, narrowed: bool = False) -> list[str]:
    """nettop's command line; `narrowed`: with the loader of narrowed.py, as the environment says."""
    start = [str(Path(__file__).with_name("narrowed.py")), "nettop"] if narrowed else ["-m", "nettop"]
    return [interpreter(), *start, *([] if interface is None else [interface]), *args]


def narrowing(env: Mapping[str, str] | None) -> bool:
    """Whether this environment is for narrowed.py."""
    return any((env or {}).get(name) for name in ("NETTOP_VIA", "NETTOP_WITHOUT"))


def run_nettop(
    lab: Lab,
    at: Endpoint | Namespace,
    *args: str,
    interface: str | None = None,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """`nettop IFACE ARGS...` to its own end, inside the namespace of `at`. Raises `LabError` after `timeout`.

    `at` is an endpoint (its interface is watched) or a namespace with `interface` named. Unlike `Nettop`,
    nothing is added to `args`. Refuses (`NotOursError`) an interface that the lab did not make.
    """
    with Nettop(lab, at, *args, interface=interface, defaults=(), env=env) as nettop:
        nettop.process.wait(timeout=timeout)
        return nettop.stop()


class Nettop:
    """A nettop in batch mode that runs while the `with` block lasts and collects its frames as they come.

    Entering returns as soon as it is started: `wait_frames(1)` before the traffic, so that all of it is seen.
    Leaving stops it by SIGINT and waits; `stop` before that gives the `Outcome`. In `env`, NETTOP_VIA is a mechanism
    that is tried first, NETTOP_WITHOUT names hooks that are left out (narrowed.py). `wrap` makes another command line
    of the whole one.
    """

    def __init__(
        self,
        lab: Lab,
        at: Endpoint | Namespace,
        *args: str,
        interface: str | None = None,
        defaults: Sequence[str] = ("-b", "--format", "ndjson", "--budget", "0"),
        env: Mapping[str, str] | None = None,
        wrap: Callable[[list[str]], list[str]] = list,
    ) -> None:
        self.lab = lab
        self.at = at
        self.args = (*defaults, *args)
        self.interface = at.name if isinstance(at, Endpoint) else interface
        self.env = env
        self.wrap = wrap
        self.frames: list[Frame] = []
        self.process: Process
        self._arrived = threading.Condition()

    @property
    def ns(self) -> Namespace:
        return self.at.ns if isinstance(self.at, Endpoint) else self.at

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> "Nettop":
        self.lab.check(self.ns, self.interface)
        self.process = Process(
            self.wrap(self.ns.argv(command(self.interface, *self.args, narrowed=narrowing(self.env)))),
            on_line=self._line,
            env={**os.environ, "NO_COLOR": "1", **(self.env or {})},
            cwd=REPOSITORY,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_frames(self, count: int, *, timeout: float = 20.0) -> list[Frame]:
        """Wait until `count` frames have come, since the start, and return all there are."""
        end = time.monotonic() + timeout
        with self._arrived:
            while len(self.frames) < count:
                remaining = end - time.monotonic()
                if remaining <= 0 or not self.process.running():
                    raise LabError(
                        f"{len(self.frames)} of {count} frames within {timeout} s, "
                        f"exit code {self.process.popen.poll()}: {self.process.stderr[-4000:]}"
                    )
                self._arrived.wait(min(remaining, 0.1))
            return list(self.frames)

    def more_frames(self, count: int, *, timeout: float = 20.0) -> list[Frame]:
        """Wait for `count` further frames and return those."""
        before = len(self.frames)
        return self.wait_frames(before + count, timeout=timeout)[before:]

    def noted(self, words: str) -> Frame:
        """The first frame from now on whose notes have these words."""
        for _ in range(40):
            for frame in self.more_frames(1):
                if any(words in note for note in frame.get("notes", ())):
                    return frame
        raise LabError(f"no note says {words!r}: {self.frames[-1].get('notes')}")

    def stop(self, number: int = signal.SIGINT, *, timeout: float = 10.0) -> Outcome:
        """End it by a signal (none if it has ended) and return what it left."""
        if self.process.running():
            code = self.process.stop(number, timeout=timeout)
        else:
            code = self.process.wait(timeout=timeout)
        return Outcome(list(self.frames), self.process.stdout, self.process.stderr, code)

    def _line(self, line: str) -> None:
        try:
            frame = json.loads(line)
        except ValueError:
            return  # Text or CSV: it stays in stdout.
        if isinstance(frame, dict):
            with self._arrived:
                self.frames.append(frame)
                self._arrived.notify_all()

#!/usr/bin/env python3
"""Writes docs/tour.md: nettop driven by tmux as a user would, and what the terminal showed at each step.

    sudo bench/tour.py [-o FILE]

The network is that of bench/demo.py, made of namespaces; nothing of it leaves this machine.  Needs tmux and iperf3.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import demo
from lab import Lab, LabError, sweep
from lab.program import interpreter
from lab.shell import eventually

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 120, 40
SOCKET = "nettop-tour"  # a tmux server of its own
HEAD = """\
# A tour

A host, `demo`, asks servers that are near and 20 ms away, and at some time an upload fills the queue of its slow
uplink. What follows was typed into a terminal of 120 columns and 40 rows, and is what that showed: `sudo
bench/tour.py` builds the network out of namespaces, drives nettop in tmux, and writes this page.

`nettop --demo` plays a recording of such a minute, without root; all of the keys below work there, but for the
filter's expressions. [keys.md](keys.md) has every key.
"""


@dataclass(frozen=True)
class Step:
    """Keys, one after the other, and what they are for; ``wait`` is in seconds, for what takes its time."""

    title: str
    text: str
    keys: tuple[str, ...] = ()
    wait: float = 2.5
    shown: str = ""  # the keys as a person reads them
    gone: str = ""  # what has to leave the screen first
    last: int = HEIGHT  # rows of the screen that the page shows


LIVE = (
    Step(
        "Start",
        "`sudo nettop uplink0`. From the top: how fast; how late, for whom; where inside this host the time "
        "goes. The download of `backup` is the largest flow. The last line has the keys that make sense "
        "now, and what was missed: nothing.",
        wait=6.0,
    ),
    Step(
        "Filter by flow",
        "The web server's port, in tcpdump's language, compiled while everything goes on. From here on the kernel "
        "counts nothing else: the throughput is that of these four flows as well, and the first line says why. "
        "Flows of before stay a while, at rest.",
        ("/", "host {far} and tcp port {port}", "Enter"),
        4.0,
        "`/`, the expression, `enter`",
        gone="applying",
    ),
    Step(
        "Sort",
        "By any column, also one for which there is no room: here by what is sent. `S` turns the order round, "
        "`<` and `>` go to the column beside. A click on a column's title does the same.",
        ("s", "j", "j"),
        1.0,
        "`s`, `j` `j`",
    ),
    Step(
        "Zoom",
        "The RTT of these flows over time, a column a frame, on the whole screen. `h` and `l` move through "
        "time: the cursor's line says what is there.",
        ("Enter", "2", "z", "h", "h", "h", "j", "j", "j", "j", "j"),
        1.5,
        "`enter`, `2`, `z`, `h` `h` `h` `j` ...",
    ),
    Step(
        "A flow's delay, explained",
        "`enter` on a flow puts it in focus: the kernel keeps its own histograms now. An upload has filled "
        "the uplink's queue meanwhile; its packets wait there, and the page says so in words, with the "
        "reasons.",
        ("Escape", "3", "Enter"),
        16.0,
        "`esc`, `3`, `enter`",
    ),
    Step(
        "Snapshot",
        "What is shown, and the history behind it, goes into a file in the current directory. The last line names it.",
        ("w",),
        1.5,
        "`w`",
        last=6,
    ),
)
REPLAYED = (
    Step(
        "Replay",
        "`nettop --replay FILE`, by anybody, on any machine: it opens as it was looked at, the flow's page "
        "in front. The line above the keys is the time line.",
        wait=4.0,
    ),
    Step(
        "Back in time",
        "`(` goes to the mark before: there the filter was switched on. `[` and `]` go a frame back and on, "
        "`space` plays, `{` and `}` change the speed, `home` and `end` go to the ends, and the mouse goes "
        "to where it points.",
        ("Escape", "("),
        3.0,
        "`esc`, `(`",
    ),
)


class Terminal:
    """A program in tmux."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self._name = name
        self._tmux(
            "new-session", "-d", "-s", name, "-x", str(WIDTH), "-y", str(HEIGHT), "-c", str(folder), *command
        )

    def _tmux(self, *args: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", SOCKET, *args], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout

    def press(self, keys: Sequence[str]) -> None:
        for key in keys:
            literal = ["-l"] if len(key) > 1 and " " in key else []
            self._tmux("send-keys", "-t", self._name, *literal, key)
            time.sleep(0.4)

    def text(self) -> list[str]:
        return [row.rstrip() for row in self._tmux("capture-pane", "-p", "-t", self._name).splitlines()]

    def wait_for(self, part: str, there: bool = True) -> None:
        """Until the screen has it, or has it no more."""
        if not eventually(lambda: any(part in row for row in self.text()) == there, timeout=60, interval=0.2):
            raise LabError(f"waiting for {part!r}:\n" + "\n".join(self.text()))

    def close(self) -> None:
        self._tmux("send-keys", "-t", self._name, "q")
        time.sleep(1)
        subprocess.run(
            ["tmux", "-L", SOCKET, "kill-session", "-t", self._name], capture_output=True, check=False
        )


def walk(terminal: Terminal, steps: Sequence[Step], words: dict[str, str]) -> list[str]:
    """The steps' part of the page."""
    page = []
    for step in steps:
        terminal.press([key.format_map(words) if len(key) > 1 else key for key in step.keys])
        if step.gone:
            time.sleep(1)
            terminal.wait_for(step.gone, there=False)
        time.sleep(step.wait)
        page += ["", f"## {step.title}", ""]
        if step.shown:
            page += [f"Keys: {step.shown}", ""]
        page += [*textwrap.wrap(step.text, 120), "", "```text", *terminal.text()[-step.last :], "```"]
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "tour.md")
    given = parser.parse_args()
    sweep()
    python = [
        "env",
        f"PYTHONPATH={ROOT}",
        "LC_ALL=C.UTF-8",
        "COLORTERM=truecolor",
        interpreter(),
        "-m",
        "nettop",
    ]
    with tempfile.TemporaryDirectory(prefix="nettop-tour-") as name, Lab() as lab:
        folder = Path(name)
        net = demo.network(lab, folder)
        port = next(p for p in demo.ports(net.far))
        words = {"far": net.far.v4, "port": str(port)}
        host = ("unshare", "--uts", "sh", "-c", f'hostname {demo.HOST} && exec "$@"', "sh")
        stop = threading.Event()
        terminal = Terminal("live", net.host.ns.argv([*host, *python, demo.NAME]), folder)
        try:
            terminal.wait_for("4 Stages")
            terminal.wait_for("web ")
            for thread in demo.tour_events(lab, net, stop):
                thread.start()
            page = walk(terminal, LIVE, words)
        finally:
            stop.set()
            terminal.close()
        (snapshot,) = folder.glob("*.snapshot.json.gz")
        terminal = Terminal("replay", [*python, "--replay", snapshot.name], folder)
        try:
            terminal.wait_for("details")
            page += walk(terminal, REPLAYED, words)
        finally:
            terminal.close()
    given.output.write_text(HEAD + "\n".join(page) + "\n", encoding="utf-8")
    print(f"{given.output}: {len(page)} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Writes docs/tour.md: `nettop --demo` driven by tmux as a user would, and what the terminal showed at each step.

    .venv/bin/python bench/tour.py [-o FILE]

Needs tmux; no root.  The recording is paused at once and stepped by keys, so the screens are the same in each run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 80, 24
SOCKET = f"nettop-tour-{os.getpid()}"  # a tmux server of its own
HEAD = f"""\
# A tour

Ten screens of `nettop --demo`, which needs no root: a recorded minute of a host that asks servers near and 20 ms away.
A download starts, an upload fills the queue of a slow uplink, a process reads too slowly, a path loses packets.
`bench/tour.py` writes this page from a terminal of {WIDTH}x{HEIGHT}. On a live interface (`sudo nettop eth0`) the
keys are the same: [keys.md](keys.md).
"""


@dataclass(frozen=True)
class Step:
    """Keys one after the other, and what they are for."""

    title: str
    keys: str  # as tmux names them; N*key: N times
    text: str
    first: int | None = None  # rows of the screen that the page shows
    last: int | None = None
    until: str = ""  # the screen has it


STEPS = (
    Step(
        "1. Start",
        "13*]",
        "Panes for throughput, RTT, flows, stages and IRQ; on a small terminal only the first three. `upload` sends "
        "15 Mb/s, and the RTT of all flows has grown from microseconds to 70 ms. The first line has nettop's own cost, "
        "the last line the keys and what was missed.",
    ),
    Step(
        "2. Sort",
        "3 s",
        "`s` lists the columns, also those without room; `enter` sorts, `S` reverses. `<` and `>` go to the next one.",
        1,
        10,
    ),
    Step(
        "3. Search",
        "Escape / u p l o a d Enter",
        "`/` with a plain word searches the rows. Live, an expression such as `tcp port 443` becomes a filter in the "
        "kernel for all panes: [filter.md](filter.md).",
        1,
        4,
    ),
    Step(
        "4. A flow's delay, explained",
        "Escape Escape g j Enter",
        "`enter` on a flow puts it in focus and opens its page: the verdict with its evidence, then the parts of a "
        "packet's way over time. Here packets wait in this host's own qdisc (tbf).",
        1,
        -2,
    ),
    Step(
        "5. RTT",
        "Escape Escape 2 z h h",
        "`2` focuses a pane, `z` zooms it. The heat map has a column a frame; `h` `j` `k` `l` move the cursor, whose "
        "cell the line below describes. By subnet: histograms and percentiles.",
        1,
        -2,
    ),
    Step(
        "6. Stages",
        "z 4 z j j j j j",
        "Where time goes inside this host. *Share* is the part of the mean whole way, *seen* the packets that the "
        "stage could follow. What is sent waits in the send buffer and in the qdisc.",
        1,
        16,
    ),
    Step(
        "7. One stage",
        "Enter",
        "`enter` on a stage shows its boundaries, the mechanism that watches them, and its distribution over time.",
        1,
        14,
    ),
    Step(
        "8. IRQ",
        "Escape 5 z",
        "Softirq wait and run, NAPI polls, and the device's interrupt lines first if it has any. A veth has none.",
        1,
        9,
    ),
    Step(
        "9. Help",
        "? 3*PageDown",
        "`?` lists the keys and explains the pane in focus. `ctrl+p` finds any action by name.",
        11,
        22,
    ),
    Step(
        "10. Time",
        "Escape Escape 8*] w",
        "A replay's time line: `space` plays, `[` and `]` step, `{` and `}` change the speed, `(` and `)` go to marks; "
        "live, `space` pauses the screen only. `w` writes what is shown, with its history, to a file for `--replay`.",
        -2,
        until="wrote",
    ),
)


class Terminal:
    """A program in tmux."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._tmux("new-session", "-d", "-x", str(WIDTH), "-y", str(HEIGHT), "-c", str(folder), *command)

    def _tmux(self, *args: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", SOCKET, *args], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout

    def press(self, keys: str) -> None:
        for key in keys.split():
            times, _, name = key.rpartition("*")
            for _ in range(int(times or 1)):
                self._tmux("send-keys", name)
                self.settle()

    def rows(self) -> list[str]:
        return [row.rstrip() for row in self._tmux("capture-pane", "-p").splitlines()]

    def settle(self) -> None:
        """Until the screen stays as it is."""
        before: list[str] = []
        for _ in range(50):
            time.sleep(0.25)
            now = self.rows()
            if now == before:
                return
            before = now
        raise TimeoutError("\n".join(before))

    def wait_for(self, part: str) -> None:
        for _ in range(240):
            if any(part in row for row in self.rows()):
                return
            time.sleep(0.25)
        raise TimeoutError(f"waiting for {part!r}:\n" + "\n".join(self.rows()))

    def close(self) -> None:
        subprocess.run(["tmux", "-L", SOCKET, "kill-server"], capture_output=True, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "tour.md")
    given = parser.parse_args()
    words = {"PYTHONPATH": ROOT, "LC_ALL": "C.UTF-8", "COLORTERM": "truecolor", "TZ": "UTC"}
    environment = [f"{name}={value}" for name, value in words.items()]
    page = []
    with tempfile.TemporaryDirectory(prefix="nettop-tour-") as name:
        terminal = Terminal(["env", *environment, sys.executable, "-m", "nettop", "--demo"], Path(name))
        try:
            terminal.wait_for("playing")
            terminal.press("Space Home")
            for step in STEPS:
                terminal.press(step.keys)
                terminal.wait_for(step.until)
                page += ["", f"## {step.title}", "", *textwrap.wrap(step.text, 120)]
                page += ["", "```text", *terminal.rows()[step.first : step.last], "```"]
        finally:
            terminal.close()
    given.output.write_text(HEAD + "\n".join(page) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

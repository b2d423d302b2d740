"""What the words on the screen's first and last line mean: losses and cost, which several probes share."""

from __future__ import annotations

#: A heading and its texts; every pane's help has them.
EDGES = (
    (
        "The first line",
        "kernel: what nettop's own programs there take of one CPU. user: what its processes take, and then their "
        "memory. Neither is the machine's.",
        "shed: what is left out while that is more than --budget allows. stages 1:16: one packet in 16 is followed; "
        "stages and irq 1 s in 4: they are attached for one second of four, and between show their last values with "
        "their age; RTT 1:4: a quarter of the probes; frames 1:2: half of the frames.",
    ),
    (
        "The last line",
        "lost: RTT samples of the flow in focus, and traced packets, that found no room on their way here. "
        "evicted: flows that left the full table before their time. "
        "untracked: packets that should have a flow and have none: a broken header, or no room. All of the interval.",
        "hooks 28/30: of the 30 places in the kernel that nettop wants to watch, it watches 28; those of this pane are "
        "listed under Measured at.",
    ),
)

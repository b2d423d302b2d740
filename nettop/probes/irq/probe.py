"""The interrupt path: handlers, softirqs, and what the device's NAPI waits for and does in a poll.

Counted by bpf_src/irq.c; /proc/net/softnet_stat adds what each CPU dropped and left for later.
"""

from __future__ import annotations

from nettop.bpf.hooks import Hook, one
from nettop.bpf.layout import Map
from nettop.netdev import interrupts
from nettop.probes.base import Probe
from nettop.probes.irq import pane as view
from nettop.probes.irq.fold import IrqFold
from nettop.probes.irq.section import Irq


def _lines(_: object) -> int:
    return interrupts.room()


def _hook(name: str, raw: str, typed: str = "", required: bool = False) -> Hook:
    """A tracepoint, with the programs for its raw and its typed form."""
    best = (one("tp_btf", typed, name),) if typed else ()
    return Hook(name, (*best, one("raw_tracepoint", raw, name)), required=required)


PROBE = Probe(
    name="irq",
    summary="interrupt handlers, softirq wait and run, interrupt to poll, poll work",
    hooks=(
        _hook("irq_handler_entry", "irq_handler_entry", "irq_handler_entry"),
        _hook("irq_handler_exit", "irq_handler_exit_raw", "irq_handler_exit"),
        _hook("softirq_raise", "irq_softirq_raise"),
        _hook("softirq_entry", "irq_softirq_entry", required=True),
        _hook("softirq_exit", "irq_softirq_exit", required=True),
        _hook("napi_poll", "irq_napi_poll_raw", "irq_napi_poll"),
    ),
    maps=(
        Map("softirqs", "percpu", "wait.sum wait.slots run.sum run.slots"),
        Map("pollers", "percpu", "run.sum run.slots work polls exhausted"),
        Map("lines", "hash", "run.sum run.slots unhandled name", entries=_lines),
        Map("waits", "hash", "to_poll.sum to_poll.slots missed", entries=_lines),
    ),
    fold=IrqFold,
    section=Irq,
    panes=view.PANES,
    system=("softnet", "interrupt_lines"),
    state=("cpus",),
    duty_cycled=True,
)

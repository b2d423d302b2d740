"""The interrupt path: handlers, softirqs, and what the device's NAPI waits for and does in a poll.

Counted by bpf_src/irq.c; /proc/net/softnet_stat adds what each CPU dropped and left for later.
"""

from __future__ import annotations

from nettop.bpf.layout import Map
from nettop.netdev import interrupts
from nettop.probes.base import Fold, Hook, Probe, Setup, one
from nettop.probes.irq import pane as view
from nettop.probes.irq.fold import IrqFold
from nettop.probes.irq.section import Irq


def _fold(setup: Setup) -> Fold:
    return IrqFold(setup)


def _lines(_: object) -> int:
    return interrupts.room()


PROBE = Probe(
    name="irq",
    summary="interrupt handlers, softirq wait and run, interrupt to poll, poll work",
    hooks=(
        Hook(
            "irq_handler_entry",
            (
                one("tp_btf", "irq_handler_entry", "irq_handler_entry"),
                one("raw_tracepoint", "irq_handler_entry", "irq_handler_entry"),
            ),
        ),
        Hook(
            "irq_handler_exit",
            (
                one("tp_btf", "irq_handler_exit", "irq_handler_exit"),
                one("raw_tracepoint", "irq_handler_exit_raw", "irq_handler_exit"),
            ),
        ),
        Hook("softirq_raise", (one("raw_tracepoint", "irq_softirq_raise", "softirq_raise"),)),
        Hook("softirq_entry", (one("raw_tracepoint", "irq_softirq_entry", "softirq_entry"),), required=True),
        Hook("softirq_exit", (one("raw_tracepoint", "irq_softirq_exit", "softirq_exit"),), required=True),
        Hook(
            "napi_poll",
            (
                one("tp_btf", "irq_napi_poll", "napi_poll"),
                one("raw_tracepoint", "irq_napi_poll_raw", "napi_poll"),
            ),
        ),
    ),
    maps=(
        Map("softirqs", "percpu", "wait.sum wait.slots run.sum run.slots"),
        Map("pollers", "percpu", "run.sum run.slots work polls exhausted"),
        Map("lines", "hash", "run.sum run.slots unhandled name", entries=_lines),
        Map("waits", "hash", "to_poll.sum to_poll.slots missed", entries=_lines),
    ),
    fold=_fold,
    section=Irq,
    panes=view.PANES,
    system=("softnet", "interrupt_lines"),
    state=("cpus",),
    duty_cycled=True,
)

"""Throughput of the interface: rates, bursts, packet sizes, protocols, drops.

The C side counts per CPU and direction (bpf_src/throughput.c); this folds two readings into one interval.
"""

from __future__ import annotations

from nettop.bpf.layout import Map
from nettop.probes.base import Probe, tc_hook
from nettop.probes.throughput import pane as view
from nettop.probes.throughput.fold import ThroughputFold
from nettop.probes.throughput.section import Throughput

PROBE = Probe(
    name="throughput",
    summary="bytes, packets, sizes, protocols, bursts and drops of the interface",
    hooks=(tc_hook("throughput", "ingress"), tc_hook("throughput", "egress")),
    maps=(
        Map("traffic", "percpu", "bytes packets segments fragments sizes protocols"),
        Map("bursts", "percpu", "bins.number bins.bytes", every_ns=400_000_000),
    ),
    fold=ThroughputFold,
    section=Throughput,
    panes=view.PANES,
    system=("interface", "qdisc"),
)

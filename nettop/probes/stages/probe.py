"""Stages: how long a packet takes from boundary to boundary inside the host, received and sent.

The C side (bpf_src/stages/stages.c) records each stage where it ends, per CPU; this takes differences and says what
each number is: between which two boundaries, watched by which mechanism, of how many packets that passed.
"""

from __future__ import annotations

from nettop.bpf.config import SAMPLE_NONE, Flag
from nettop.bpf.hook_table import hooks
from nettop.bpf.layout import Map
from nettop.core.paths import bpf_source
from nettop.probes.base import Probe, Shedding
from nettop.probes.stages import pane as view
from nettop.probes.stages.fold import TRACED, StagesFold
from nettop.probes.stages.section import Stages

HOOKS = hooks((bpf_source("stages").parent / "hooks.h").read_text(), Flag)
PROBE = Probe(
    name="stages",
    summary="delay of every stage of the network stack, received and sent",
    hooks=HOOKS,
    maps=(
        Map("config", "array", "sample_shift flags focus"),
        Map("stages", "percpu", "delay.sum delay.slots missed dropped paced"),
        Map("paths", "percpu", "of.ns of.packets"),
        Map("tracing", "percpu", "lost left_out"),
        Map("trace", "ring", " ".join(TRACED)),
    ),
    fold=StagesFold,
    section=Stages,
    panes=view.PANES,
    sheds=(
        Shedding(
            "stages_one_in",
            "packets that the stages follow",
            "stages 1:{}",
            (4, 16, 64),
            knob="sample_shift",
            suspended=SAMPLE_NONE,
        ),
    ),
    duty_cycled=True,
    traces=True,
    state=("rx_slots", "tx_slots", "rx_socks", "tx_socks", "rx_currents", "gso_parents"),
)

"""From a loaded probe to its worker: readers of its maps, system readings, programs to run."""

from __future__ import annotations

import time
from functools import partial

from nettop.bpf import syscall
from nettop.bpf.maps import open_maps
from nettop.bpf.protocol import Loaded
from nettop.bpf.syscall import possible_cpus
from nettop.collect.worker import Worker
from nettop.core.errors import NettopError
from nettop.core.frame import ProbeStatus
from nettop.netdev import counters
from nettop.probes.base import Probe, Setup
from nettop.settings import Settings

_NO_PACKET = 64  # bytes: the kernel wants a frame to run a TC program on


def open_worker(probe: Probe, answer: Loaded, settings: Settings, netns: int) -> Worker:
    """The worker of a probe that is loaded.  NettopError where its maps cannot be read."""
    info, fds = answer.probe, answer.fds
    try:
        readers, layouts = open_maps(probe.maps, info.maps, fds) if info.maps else ({}, {})
    except (ValueError, OSError) as error:
        raise NettopError(str(error)) from error
    setup = Setup(
        interface=settings.interface,
        cpus=possible_cpus(),
        max_flows=settings.max_flows,
        subnets=settings.subnets,
        hooks={h.hook: h.via for h in info.hooks},
        start_ns=time.monotonic_ns(),
        peer_is_local=counters.peer_is_local(settings.interface),
        netns=netns,
        layouts={name: layout.value for name, layout in layouts.items()},
    )
    maps = {made.name: fds[made.fd] for made in info.maps}
    targets = {hook.name: hook.candidates[0].attachments[0].target for hook in probe.hooks}
    runs = {
        hook.hook: partial(run_with, maps[targets[hook.hook]], fds[hook.links[0]])
        for hook in info.hooks
        if hook.via == "prog_run"
    }
    readings = {name: counters.READINGS[name] for name in probe.system if name in counters.READINGS}
    status = ProbeStatus(info.state, reason(answer))  # type: ignore[arg-type]
    scan_ns = round(settings.scan_interval * 1e9)
    return Worker(probe, partial(probe.fold, setup), readers, readings, status, scan_ns, runs)


def reason(answer: Loaded) -> str:
    """What the loader says of a probe's state."""
    info = answer.probe
    return info.detail + (f" ({info.hint})" if info.hint else "")


def run_with(map_fd: int, program: int, value: bytes) -> None:
    """Run a program of no packet, with this value in its map."""
    syscall.map_update(map_fd, bytes(4), value)
    syscall.test_run(program, bytes(_NO_PACKET))

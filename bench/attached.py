"""Programs attached by the loader's own code, in this process, for measuring."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import common  # noqa: F401  (the path)
from lab import Endpoint

from nettop.bpf import syscall
from nettop.bpf.config import Config
from nettop.bpf.hooks import Hook, one
from nettop.bpf.protocol import Plan
from nettop.loader import attach
from nettop.loader.compile import Object, compile_probe, compile_source
from nettop.loader.mechanisms import Target
from nettop.netdev import link

HERE = Path(__file__).parent
Change = Callable[[Config], Config]  # makes the config what it should be
CACHE = Path(tempfile.gettempdir()) / "nettop-bench"
EMPTY_HOOKS = (
    Hook("tc_ingress", (one("tcx", "empty_ingress", "ingress"),), True),
    Hook("tc_egress", (one("tcx", "empty_egress", "egress"),), True),
)


def unchanged(config: Config) -> Config:
    return config


def empty() -> Object:
    """The empty TC program, as an object like any other."""
    made = compile_source(HERE / "empty.c", CACHE)
    return Object(made.maps, made.programs, EMPTY_HOOKS)


def probe(name: str) -> Object:
    return compile_probe(name, CACHE)


@contextmanager
def attached(
    end: Endpoint, objects: Mapping[str, Object], incomplete: bool = False, change: Change = unchanged
) -> Iterator[dict[str, attach.Attached]]:
    """Each object's hooks attached at the end's interface while the block lasts."""
    result: dict[str, attach.Attached] = {}

    def inside() -> None:
        plan = Plan(end.name, (), (("flows.flows", 65_536),))
        config = change(link.describe(plan))
        target = Target(end.name, config.ifindex)
        for name, made in objects.items():
            it = attach.Attached(name, made)
            result[name] = it
            attach.make_maps(it, plan)
            attach.attach(it, target)
            attach.write_config(it, config)
            if it.missing and not incomplete:
                raise RuntimeError(f"{name}: {it.missing}")

    try:
        end.ns.call(inside)
        yield result
    finally:
        for it in result.values():
            it.close()


@contextmanager
def statistics() -> Iterator[None]:
    """Run statistics of every program while the block lasts."""
    fd = syscall.enable_stats()
    try:
        yield
    finally:
        os.close(fd)


def costs(it: attach.Attached) -> dict[str, tuple[int, int]]:
    """(runs, ns) so far by function."""
    return {
        function: (info.runs, info.run_ns)
        for (function, _), fd in it.programs.items()
        for info in (syscall.program_info(fd),)
    }

"""Every mechanism of every hook that this kernel has works, and `--check` says the same."""

import subprocess
from pathlib import Path

import ladder
import pytest
from lab.program import interpreter

# The kernel that brought a mechanism; tracing and kprobes are older than any kernel in question.
SINCE = {"tcx": (6, 6), "netfilter": (6, 4)}
Ways = dict[tuple[str, str], list[ladder.Way]]


def tracepoints() -> set[str]:
    text = Path("/sys/kernel/tracing/available_events").read_text()
    return {line.partition(":")[2] for line in text.splitlines()}


def expected(way: ladder.Way) -> bool:
    """Whether this kernel has what the way needs."""
    if way.via in SINCE:
        return ladder.version() >= SINCE[way.via]
    if way.via in ("raw_tracepoint", "tp_btf"):
        return set(way.targets) <= tracepoints()
    return True  # clsact; functions, which these kernels have under one of the names that a hook gives


def test_every_way_that_this_kernel_has_holds(ways: Ways) -> None:
    wrong = [
        f"{probe} {hook} {way.via}: "
        + (f"refused: {way.refused}" if way.refused else "holds, and should not")
        for (probe, hook), found in ways.items()
        for way in found
        if bool(way.refused) == expected(way)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_hook_has_a_way(ways: Ways) -> None:
    lost = {key: found for key, found in ways.items() if all(way.refused for way in found)}
    # A driver's transmit function has returned, a packet is done with, a packet is dropped: tracepoints alone tell.
    assert not lost


def test_check_says_the_same(ways: Ways) -> None:
    done = subprocess.run(
        [interpreter(), "-m", "nettop", ladder.INTERFACE, "--check"],
        capture_output=True,
        text=True,
        timeout=ladder.TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = {}
    for line in done.stdout.splitlines()[1:]:
        probe, hook, holds, text = line.split(None, 3)
        if probe in ladder.all_probes():  # what else it looks at is not the kernel's
            said[probe, hook] = text if holds == "yes" else ""
    best = {key: next((way.via for way in found if not way.refused), "") for key, found in ways.items()}
    assert said == best


def test_the_table_is_left_for_the_documentation(ways: Ways) -> None:
    if not ladder.tell("ladder", ladder.table(ways)):
        pytest.skip("nobody asked for it")

"""What the kernel counts of our programs, read as it says it itself in /proc."""

import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nettop import bpf
from nettop.live import LiveMeter, LoaderHandle, _Hooked
from nettop.protocol import HookInfo


def instruction(code: int, registers: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, registers, offset, value)


# bpf_trace_printk("x", 2): the kernel does it by way of a tracepoint of its own.
SPEAKS = b"".join(
    (
        instruction(0xB7, 0x1, 0, ord("x")),  # r1 = "x"
        instruction(0x7B, 0x1A, -8),  # *(u64 *)(r10 - 8) = r1
        instruction(0xBF, 0xA1),  # r1 = r10
        instruction(0x07, 0x1, 0, -8),  # r1 += -8
        instruction(0xB7, 0x2, 0, 2),  # r2 = 2
        instruction(0x85, 0, 0, 6),  # call bpf_trace_printk
        instruction(0xB7, 0x0),  # r0 = 0
        instruction(0x95),  # exit
    )
)
PACKET = bytes(60)


def said_by_proc(fd: int) -> int:
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(re.findall(r"recursion_misses:\s*(\d+)", text)[0])


@pytest.fixture
def meter() -> Iterator[LiveMeter]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, ours, subprocess.Popen(["cat"], stdin=subprocess.PIPE) as loader:
        yield LiveMeter(LoaderHandle(ours, loader))
        loader.communicate()


def test_runs_that_the_kernel_leaves_out_are_said(meter: LiveMeter) -> None:
    """A program that itself causes what it is attached to: the run within the run is left out."""
    with ExitStack() as open_:
        speaker = bpf.prog_load(bpf.ProgType.SCHED_CLS, SPEAKS, "speaker")
        hearer = bpf.prog_load(bpf.ProgType.RAW_TRACEPOINT, SPEAKS, "hearer")
        for fd in (speaker, hearer):
            open_.callback(os.close, fd)
        link = bpf.raw_tracepoint_open(hearer, "bpf_trace_printk")
        open_.callback(os.close, link)
        meter.hooked = (_Hooked("stages", HookInfo("printk", "raw_tracepoint", (0,)), (hearer,), (link,)),)
        assert [hook.recursion_misses for hook in meter.hooks("stages", 10**9)] == [0]
        for times in (3, 1):
            before = said_by_proc(hearer)
            for _ in range(times):
                bpf.test_run(speaker, PACKET)
            assert said_by_proc(hearer) - before == times
            assert [hook.recursion_misses for hook in meter.hooks("stages", 10**9)] == [times]
        assert [hook.recursion_misses for hook in meter.hooks("stages", 10**9)] == [0]


def test_where_the_kernel_says_nothing_of_it_that_is_no_zero(meter: LiveMeter) -> None:
    no_program = os.dup(0)
    meter.hooked = (_Hooked("stages", HookInfo("printk", "raw_tracepoint", (0,)), (no_program,), ()),)
    assert [hook.recursion_misses for hook in meter.hooks("stages", 10**9)] == [None]
    os.close(no_program)

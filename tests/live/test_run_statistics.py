"""What the kernel counts of our programs, read as it says it itself in /proc."""

import os
import re
import struct
from contextlib import ExitStack
from pathlib import Path

import pytest

from nettop.bpf import syscall
from nettop.collect.attachments import Attachment
from nettop.collect.meter import LiveMeter


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


async def no_switch(on: bool) -> None:
    """Run statistics are as the kernel has them."""


@pytest.fixture
def meter() -> LiveMeter:
    return LiveMeter((os.getpid(),), no_switch)


def test_runs_that_the_kernel_leaves_out_are_said(meter: LiveMeter) -> None:
    """A program that itself causes what it is attached to: the run within the run is left out."""
    with ExitStack() as open_:
        speaker = syscall.prog_load(syscall.ProgType.SCHED_CLS, SPEAKS, "speaker")
        hearer = syscall.prog_load(syscall.ProgType.RAW_TRACEPOINT, SPEAKS, "hearer")
        for fd in (speaker, hearer):
            open_.callback(os.close, fd)
        link = syscall.raw_tracepoint_open(hearer, "bpf_trace_printk")
        open_.callback(os.close, link)
        meter.attached((Attachment("stages", "printk", "raw_tracepoint", (hearer,), (link,)),))
        assert [hook.recursion_misses for hook in meter.hooks("stages", 10**9)] == [0]
        for times in (3, 1):
            before = said_by_proc(hearer)
            for _ in range(times):
                syscall.test_run(speaker, PACKET)
            assert said_by_proc(hearer) - before == times
            assert [hook.recursion_misses for hook in meter.hooks("stages", 10**9)] == [times]
        assert [hook.recursion_misses for hook in meter.hooks("stages", 10**9)] == [0]


def test_where_the_kernel_says_nothing_of_it_that_is_no_zero(meter: LiveMeter) -> None:
    no_program = os.dup(0)
    meter.attached((Attachment("stages", "printk", "raw_tracepoint", (no_program,)),))
    assert [hook.recursion_misses for hook in meter.hooks("stages", 10**9)] == [None]
    os.close(no_program)

"""What the parts of bpf_src/stages make of clocks and CPUs that no machine here has.

They are compiled for a process (stages_kernel.h), and what they record is compared with the same reckoned here in whole
numbers, which have no end.
"""

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import native

from nettop.bpf.config import SAMPLE_NONE
from nettop.core import histogram as hist

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000
YEAR = 365 * 24 * 3600 * SECOND
RX_SOCKET, RX_APPLICATION, RX_WHOLE = 5, 6, 7
HIST_SLOTS = 512
CPUS = 1024
TRACE, TRACE_ALL = 32, 64
FLOW_CPU_BITS = 13  # of a flow's id
HERE = Path(__file__).parent

HEAD = """
#include "stages_kernel.h"
#include "nettop.h"
#include "kernel.h"
#include "hist.h"
#include "load.h"
#include "fifo.h"
#include "focus.h"
#include "slot.h"
#include "record.h"
#include "rx_queue.h"

static void emitted(const void *event) {}
static struct rx_sock sock;

void start(void)
{
	memset(&sock, 0, sizeof(sock));
	memset(stages_values, 0, sizeof(stages_values[0]));
	memset(paths_values, 0, sizeof(paths_values[0]));
	memset(trace_budget_values, 0, sizeof(trace_budget_values));
	cpu_number = 0;
}
void at(u64 ns) { clock_ns = ns; }
void on_cpu(u32 number) { cpu_number = number; }

/* A segment behind a gap, whose path began so long before. */
int hold(u32 lag, u32 first, u32 end)
{
	struct arrival a = { clock_ns, NO_MARK, lag, first, end, 1 };
	return rx_hold(&sock, &a);
}
/* The gap closes: the reader is told of what is in order now, as rx_ready_stream() does it. */
void release(u32 received)
{
	struct batch b = {};
	u32 lag = 0;

	rx_release(&sock, received, clock_ns, &b);
	if (b.packets && !b.unknown)
		lag = lag_of(1, b.lags / b.packets + 1);
	if (b.packets)
		fifo_push(&sock.queue, clock_ns, lag, b.end, b.packets, b.focused, b.trace);
}
int push(u32 lag, u32 end) { return fifo_push(&sock.queue, clock_ns, lag, end, 1, 0, 0); }
void consume(u32 position) { rx_consume_upto(&sock, position); }
u64 sum(u32 stage) { return stages_values[0][stage].delay.sum; }
u64 slot(u32 stage, u32 number) { return stages_values[0][stage].delay.slots[number]; }
u64 missed(u32 stage) { return stages_values[0][stage].missed; }

void configure(u32 flags, u32 rate, u64 focus)
{
	config_values[0][0].flags = flags;
	config_values[0][0].trace_rate = rate;
	config_values[0][0].focus = focus;
}
u32 number_of_packet(void) { return mark_of(config_values[0], 0, RX_BEGIN, clock_ns, clock_ns).trace; }
u64 left_out(u32 cpu) { return tracing_values[cpu][0].left_out; }
u32 mark(void) { return focus_mark(config_values[0]); }
int follows(u32 shift)
{
	struct config c = {.sample_shift = shift};

	return sampled(&c);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    loaded = native.library("stages", HEAD, tmp_path_factory.mktemp("stages"), HERE)
    for name in ("sum", "slot", "missed", "left_out"):
        getattr(loaded, name).restype = ctypes.c_uint64
    for name in ("number_of_packet", "mark"):
        getattr(loaded, name).restype = ctypes.c_uint32
    loaded.at.argtypes = (ctypes.c_uint64,)
    loaded.configure.argtypes = (ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64)
    return loaded


@pytest.fixture
def c(library: ctypes.CDLL) -> ctypes.CDLL:
    library.start()
    library.configure(0, 0, 0)
    return library


# --- sampling --------------------------------------------------------------------------------------------------------


def test_no_packet_is_followed_where_python_says_so(c: ctypes.CDLL) -> None:
    """The stand-in's random numbers are 0, which every other sample takes."""
    assert [c.follows(shift) for shift in (0, 1, 4, SAMPLE_NONE - 1, SAMPLE_NONE)] == [1, 1, 1, 1, 0]


# --- clocks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """One stage: what was counted, and how."""

    count: int
    sum_ns: int
    missed: int
    slots: tuple[int, ...]


def shown(c: ctypes.CDLL, stage: int) -> Shown:
    slots = tuple(int(c.slot(stage, number)) for number in range(HIST_SLOTS))
    return Shown(sum(slots), int(c.sum(stage)), int(c.missed(stage)), slots)


UPTIMES = {
    "an hour": 3600 * SECOND,
    "a year": YEAR,
    "ten years": 10 * YEAR,
    "half of the clock": 1 << 63,
    "nearly all of it": (1 << 64) - 100 * SECOND,
}
HELD, APART, SIZE, LAG = 6007, 300 * US, 1000, 50 * US


def behind_a_gap(c: ctypes.CDLL, uptime: int, gaps: int) -> tuple[list[int], list[int], list[int]]:
    """Segments come behind a gap, or several; it closes, and 2 s later all is read.  The waits in each stage."""
    c.start()
    came: list[int] = []
    position = SIZE
    for number in range(HELD):
        if gaps > 1 and number % (HELD // gaps) == 0:
            position += SIZE
        came.append(uptime + number * APART)
        c.at(came[-1])
        assert c.hold(LAG, position, position + SIZE)
        position += SIZE
    closed = uptime + HELD * APART + 700 * MS
    c.at(closed)
    c.release(position)
    read = closed + 2 * SECOND
    c.at(read)
    c.consume(position)
    return [closed - at for at in came], [read - closed] * HELD, [read - at + LAG for at in came]


@pytest.mark.parametrize("uptime", UPTIMES.values(), ids=UPTIMES)
@pytest.mark.parametrize("gaps", [1, 7])
def test_held_segments_have_their_mean_after_any_uptime(c: ctypes.CDLL, uptime: int, gaps: int) -> None:
    truth = behind_a_gap(c, uptime, gaps)
    for stage, waits in zip((RX_SOCKET, RX_APPLICATION, RX_WHOLE), truth, strict=True):
        found = shown(c, stage)
        assert (found.count, found.missed) == (HELD, 0), stage
        assert found.sum_ns == pytest.approx(sum(waits), rel=0.001), stage
    assert shown(c, RX_SOCKET).sum_ns / HELD == pytest.approx(700 * MS + (HELD + 1) / 2 * APART, rel=0.001)


@pytest.mark.parametrize("uptime", UPTIMES.values(), ids=UPTIMES)
def test_a_long_queue_is_the_same_after_any_uptime(c: ctypes.CDLL, uptime: int) -> None:
    """More packets than the queue has entries, read one by one: by the bucket."""

    def played(begin: int) -> tuple[Shown, int]:
        c.start()
        waits = 0
        for number in range(HELD):
            c.at(begin + number * APART)
            assert c.push(LAG, (number + 1) * SIZE)
        for number in range(HELD):
            now = begin + HELD * APART + number * 10 * US
            c.at(now)
            c.consume((number + 1) * SIZE)
            waits += now - (begin + number * APART)
        return shown(c, RX_APPLICATION), waits

    found, waits = played(uptime)
    assert (found.count, found.missed) == (HELD, 0)
    assert found.sum_ns == pytest.approx(waits, rel=0.001)
    assert found == played(SECOND)[0]


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [1, 3, 16], ids=lambda n: f"{n} runs")
@pytest.mark.parametrize("packets", [2, 17, 128, 1500])
@pytest.mark.parametrize("after", [10 * US, 30 * MS], ids=["at once", "later"])
def test_each_packet_of_a_run_has_its_own_wait(c: ctypes.CDLL, runs: int, packets: int, after: int) -> None:
    """Not some of them the mean of many: right to an eighth of it (a bucket is a sixteenth), for all but two 64ths."""
    apart, first, position = 120 * US, 5 * SECOND, 0
    came = []
    for number in range(runs * packets):
        if number % packets == 0:
            position += SIZE
        came.append(first + number * apart)
        c.at(came[-1])
        assert c.hold(LAG, position, position + SIZE)
        position += SIZE
    closed = came[-1] + after
    c.at(closed)
    c.release(position)
    found = shown(c, RX_SOCKET)
    assert (found.count, found.missed) == (len(came), 0)
    told = sorted(
        wait for wait, count in zip(hist.bucket_lowers(), found.slots, strict=False) for _ in range(count)
    )
    truth = sorted(closed - at for at in came)
    coarse = 2 * apart * -(-len(came) // 64)
    for shown_ns, wait in zip(told, truth, strict=True):
        assert abs(shown_ns - wait) <= coarse + wait / 8


# --- CPUs ------------------------------------------------------------------------------------------------------------


def numbers(c: ctypes.CDLL, cpus: Iterable[int], packets: int) -> list[int]:
    """What so many packets on each CPU are called in the trace; those beyond the budget are not there."""
    found = []
    for _ in range(packets):
        for cpu in cpus:
            c.on_cpu(cpu)
            found.append(int(c.number_of_packet()))
    return [number for number in found if number]


def test_no_two_traced_packets_of_1024_cpus_have_one_number(c: ctypes.CDLL) -> None:
    packets = 257
    c.configure(TRACE | TRACE_ALL, 1 << 30, 0)
    found = numbers(c, range(CPUS), packets)
    assert len(found) == len(set(found)) == CPUS * packets


@pytest.mark.parametrize("flow", [1, 2, 1009, 1 << 20, (1 << 40) - 1])
def test_flow_n_of_each_cpu_has_a_mark_of_its_own(c: ctypes.CDLL, flow: int) -> None:
    """A packet's slot names the flow in focus by 31 bits of its id, whose lowest are the CPU's number."""
    marks = set()
    for cpu in range(CPUS):
        c.configure(0, 0, flow << FLOW_CPU_BITS | cpu)
        marks.add(int(c.mark()))
    assert len(marks) == CPUS
    assert all(mark >> 31 for mark in marks)  # never taken for no mark


@pytest.mark.parametrize(
    "cpus", [[0], [CPUS - 1], [3, 700], range(CPUS)], ids=["the first", "the last", "two", "all"]
)
def test_all_cpus_have_one_budget(c: ctypes.CDLL, cpus: Sequence[int]) -> None:
    """Whether one CPU has all packets or each has a few: so many are traced in a second, and the others are counted."""
    rate, seen = 2000, 4096
    c.configure(TRACE | TRACE_ALL, rate, 0)
    for second in (1, 2):
        before = sum(int(c.left_out(cpu)) for cpu in cpus)
        c.at(second << 30)
        assert len(numbers(c, cpus, seen // len(cpus))) == rate
        assert sum(int(c.left_out(cpu)) for cpu in cpus) - before == seen - rate

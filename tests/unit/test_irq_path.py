"""From the interrupt to its poll, in orders of events that a machine cannot be told to have.

bpf_src/irq.c is compiled for a process (irq_kernel.h) and given what the tracepoints of one CPU would give it; when the
kernel raises NET_RX, and when not, is from net_rx_action() and ____napi_schedule() of 6.1, 6.12 and 6.18.
"""

import ctypes
from pathlib import Path

import pytest
from lab import native

from nettop.core.paths import bpf_source

MS = 1_000_000
NET_RX = 3
BUDGET = 64
RX0, RX1, DISK = 38, 39, 24
HERE = Path(__file__).parent

TAIL = """
static struct net net = { { 1 } }, other_net = { { 2 } };
static struct net_device own = { 5, { &net } }, other = { 5, { &other_net } };
static struct napi_struct napis[8];
static struct irqaction action = { "eth0" };

void start(void)
{
	memset(cpus_values, 0, sizeof(cpus_values));
	memset(pollers_values, 0, sizeof(pollers_values));
	waits_used = lines_used = 0;
	config_values[0][0].ifindex = 5;
	config_values[0][0].netns = 1;
}
void at(u64 ns) { clock_ns = ns; }
void irq_in(u32 irq) { irq_entry(irq); }
void irq_out(u32 irq, int handled) { irq_exit(irq, &action, handled, UNTYPED); }
void raise_softirq(u32 vector) { softirq_raise(vector); }
void enter_softirq(u32 vector) { softirq_entry(vector); }
void exit_softirq(u32 vector) { softirq_exit(vector); }
/* napi 0: the backlog; 1 to 5: the device's; 6, 7: another's of the same index. */
void poll(u32 napi, int work) {
	napis[napi].dev = !napi ? 0 : napi < 6 ? &own : &other;
	napi_polled(&napis[napi], work, 64, UNTYPED);
}
u64 count(u32 irq) {
	struct wait *w = waits.lookup(&irq);
	u64 n = 0;
	for (int i = 0; w && i < HIST_SLOTS; i++)
		n += w->to_poll.slots[i];
	return n;
}
u64 sum(u32 irq) { struct wait *w = waits.lookup(&irq); return w ? w->to_poll.sum : 0; }
u64 missed(u32 irq) { struct wait *w = waits.lookup(&irq); return w ? w->missed : 0; }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    text = bpf_source("irq").read_text().partition("/* ---- the programs")[0]
    text = f'#include "irq_kernel.h"\n{text}{TAIL}'
    loaded = native.library("irq", text, tmp_path_factory.mktemp("irq"), HERE)
    for name in ("count", "sum", "missed"):
        getattr(loaded, name).restype = ctypes.c_uint64
    loaded.at.argtypes = (ctypes.c_uint64,)
    return loaded


class Cpu:
    """One CPU's events; times are given in ms."""

    def __init__(self, program: ctypes.CDLL) -> None:
        self._c = program
        self._c.start()

    def interrupt(self, ms: float, irq: int, raises: bool = True, handled: bool = True) -> None:
        """A handler that takes 1 us."""
        self._c.at(int(ms * MS))
        self._c.irq_in(irq)
        if raises:
            self._c.raise_softirq(NET_RX)
        self._c.at(int(ms * MS) + 1000)
        self._c.irq_out(irq, int(handled))

    def begin(self, ms: float) -> None:
        self._c.at(int(ms * MS))
        self._c.enter_softirq(NET_RX)

    def poll(self, ms: float, napi: int, work: int = 1) -> None:
        """A poll that is over by then."""
        self._c.at(int(ms * MS))
        self._c.poll(napi, work)

    def end(self, ms: float, more: bool = False) -> None:
        """Of the run; ``more``: net_rx_action leaves work, and raises NET_RX for it."""
        self._c.at(int(ms * MS))
        if more:
            self._c.raise_softirq(NET_RX)
        self._c.exit_softirq(NET_RX)

    def waits(self, irq: int) -> tuple[int, float]:
        """How many, and their mean in ms."""
        count = int(self._c.count(irq))
        return count, round(self._c.sum(irq) / count / MS, 3) if count else 0.0

    def missed(self, irq: int) -> int:
        return int(self._c.missed(irq))


@pytest.fixture
def cpu(program: ctypes.CDLL) -> Cpu:
    return Cpu(program)


def known(cpu: Cpu, irq: int = RX0, napi: int = 1, ms: float = 1.0) -> None:
    """A quiet interrupt, by which the line is known, and the NAPI that it asks."""
    cpu.interrupt(ms, irq)
    cpu.begin(ms + 0.1)
    cpu.poll(ms + 0.2, napi)
    cpu.end(ms + 0.3)
    assert cpu.waits(irq) == (1, 0.1)


def added(cpu: Cpu, irq: int = RX0) -> float:
    """What came after ``known``, in ms; it must be one sample."""
    count, mean = cpu.waits(irq)
    assert count == 2
    return round(2 * mean - 0.1, 3)


def test_an_idle_cpu(cpu: Cpu) -> None:
    known(cpu)
    assert cpu.missed(RX0) == 0


def test_a_run_that_ends_before_the_device_has_its_poll(cpu: Cpu) -> None:
    """The backlog takes 9 ms, which is all of the run's time; the device is polled in the next one."""
    known(cpu)
    cpu.interrupt(10, RX0)
    cpu.begin(10)
    cpu.poll(19, 0)
    cpu.end(19, more=True)
    cpu.begin(19)
    cpu.poll(19.1, 1)
    cpu.end(19.2)
    assert added(cpu) == 9.0


@pytest.mark.parametrize("raises", [True, False], ids=["6.1", "6.4"])
def test_an_interrupt_during_another_poll(cpu: Cpu, raises: bool) -> None:
    known(cpu)
    cpu.begin(10)
    cpu.interrupt(15, RX0, raises)
    cpu.poll(19, 0)
    if raises:  # 6.1 ends here, and the softirq runs once more
        cpu.end(19)
        cpu.begin(19)
    cpu.poll(19.1, 1)
    cpu.end(19.2)
    assert added(cpu) == 4.0


def test_an_interrupt_while_a_run_with_work_left_is_to_come(cpu: Cpu) -> None:
    """ksoftirqd waits for the CPU: since 6.4 nothing is raised until it has run."""
    known(cpu)
    cpu.begin(10)
    cpu.poll(12, 0, BUDGET)
    cpu.end(12, more=True)
    cpu.interrupt(13, RX0, raises=False)
    cpu.begin(20)
    cpu.poll(22, 0)
    cpu.poll(22.1, 1)
    cpu.end(22.2)
    assert added(cpu) == 9.0


def test_several_runs_without_a_poll(cpu: Cpu) -> None:
    known(cpu)
    cpu.interrupt(10, RX0)
    for ms in range(10, 50, 4):
        cpu.begin(ms)
        cpu.poll(ms + 4, 6, BUDGET)  # another device of the same index, in another namespace
        cpu.end(ms + 4, more=True)
    cpu.begin(50)
    cpu.poll(50.1, 1)
    cpu.end(50.2)
    assert added(cpu) == 40.0


def test_an_interrupt_that_asks_for_nothing_waits_for_nothing(cpu: Cpu) -> None:
    """Its NAPI was scheduled already (or it reported a link): the device's next poll, seconds later, is not its own."""
    known(cpu)
    cpu.begin(10)
    cpu.interrupt(11, RX0, raises=False)
    cpu.poll(12, 0)
    cpu.end(12)
    cpu.interrupt(5000, RX0)
    cpu.begin(5000.2)
    cpu.poll(5000.3, 1)
    cpu.end(5000.4)
    assert added(cpu) == 0.2
    assert cpu.missed(RX0) == 0


def test_a_disk_never_asks(cpu: Cpu) -> None:
    cpu.begin(10)
    cpu.interrupt(11, DISK, raises=False)
    cpu.poll(12, 1)
    cpu.end(12)
    assert cpu.waits(DISK) == (0, 0.0)


def test_not_mine(cpu: Cpu) -> None:
    """The second handler of a shared line (IRQ_NONE) asks for nothing."""
    known(cpu)
    cpu.begin(10)
    cpu.interrupt(11, RX0, raises=False, handled=False)
    cpu.poll(12, 1)
    cpu.end(12)
    assert cpu.waits(RX0) == (1, 0.1)


def test_an_interrupt_again_waits_since_the_first(cpu: Cpu) -> None:
    known(cpu)
    cpu.begin(10)
    for ms in (11, 12, 13, 14, 15, 16, 17, 18, 18.5, 18.6):
        cpu.interrupt(ms, RX0, raises=False)
    cpu.poll(19, 0)
    cpu.poll(19.1, 1)
    cpu.end(19.2)
    assert added(cpu) == 8.0
    assert cpu.missed(RX0) == 0


def test_each_queue_waits_for_its_own_poll(cpu: Cpu) -> None:
    """Two queues of a device on one CPU; the one that came later is polled first, again and again."""
    known(cpu, RX0, 1, 1)
    known(cpu, RX1, 2, 2)
    cpu.interrupt(10, RX0)
    cpu.begin(10)
    cpu.interrupt(11, RX1, raises=False)
    cpu.poll(12, 0)
    cpu.poll(13, 2, BUDGET)
    cpu.poll(14, 2, BUDGET)
    cpu.poll(15, 1)
    cpu.end(15)
    assert added(cpu, RX1) == 1.0
    assert added(cpu, RX0) == 4.0


def test_an_interrupt_in_the_middle_of_its_own_poll_waits_for_the_next(cpu: Cpu) -> None:
    """The poll has enabled interrupts again, and is reported a moment later."""
    known(cpu)
    cpu.interrupt(10, RX0)
    cpu.begin(10.1)
    cpu.interrupt(10.5, RX0, raises=False)
    cpu.poll(10.6, 1)
    cpu.interrupt(10.7, RX0, raises=False)
    cpu.poll(13, 0)
    cpu.poll(13.1, 1)
    cpu.end(13.2)
    count, mean = cpu.waits(RX0)
    assert (count, round(count * mean - 0.2, 1)) == (3, 2.3)


def test_a_poll_that_is_not_seen_is_missed(cpu: Cpu) -> None:
    """A busy poll of another CPU had it: no sample, and it is said."""
    known(cpu)
    cpu.interrupt(10, RX0)
    cpu.begin(10.1)
    cpu.end(10.2)
    assert cpu.waits(RX0) == (1, 0.1)
    assert cpu.missed(RX0) == 1


def test_a_line_of_two_napis_is_answered_by_either(cpu: Cpu) -> None:
    """One line for what is received and what has been sent: up to three polls are missed until that is known."""
    for number in range(20):
        ms = 10.0 * (number + 1)
        cpu.interrupt(ms, RX0)
        cpu.begin(ms + 1)
        cpu.poll(ms + 2, 1 + number % 2)
        cpu.end(ms + 3)
    count, mean = cpu.waits(RX0)
    assert count + cpu.missed(RX0) == 20
    assert cpu.missed(RX0) <= 3
    assert mean == 1.0


def test_more_lines_than_there_are_places(cpu: Cpu) -> None:
    lines = range(40, 51)
    for irq in lines:
        cpu.interrupt(1, irq)
    cpu.begin(2)
    for napi in (1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1):
        cpu.poll(3, napi)
    cpu.end(4)
    assert sum(cpu.waits(irq)[0] + cpu.missed(irq) for irq in lines) == len(lines)

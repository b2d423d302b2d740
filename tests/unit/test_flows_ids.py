"""The ids of flows on more CPUs, and after more flows, than a machine here has.

bpf_src/flows/table.h is compiled for a process (flows_kernel.h) and asked for new flows on one CPU or another.
"""

import ctypes
from pathlib import Path

import pytest
from lab import native

LIMIT = 1 << 53  # what JSON's readers can hold
CPUS = (0, 1, 31, 255, 1023, 8191)  # the kernel has 8192 at most (CONFIG_NR_CPUS)
DAY = 24 * 3600
SOME = 257
AFTER = {
    "the first": 0,
    "a year of a million flows a second on 32 CPUs": 1_000_000 // 32 * 365 * DAY,
    "twelve days of as many on one alone": 1_000_000 * 12 * DAY,
    "the last that docs/probes/flows.md promises": (1 << 40) - 1 - SOME,
}
HERE = Path(__file__).parent

SOURCE = """
#include "flows_kernel.h"
#include "nettop.h"
#include "hist.h"
#include "flow.h"

BPF_PERCPU_ARRAY(counters, struct counters, 1);

#include "work.h"
#include "table.h"

static struct work packet;

void given(u32 cpu, u64 ids) { counters_values[cpu][0].ids = ids; }
u64 next_id(u32 cpu)
{
	u32 zero = 0;

	cpu_number = cpu;
	return flow_new(&packet, IN, counters.lookup(&zero))->id;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    loaded = native.library("flows", SOURCE, tmp_path_factory.mktemp("flows"), HERE)
    loaded.given.argtypes = (ctypes.c_uint32, ctypes.c_uint64)
    loaded.next_id.restype = ctypes.c_uint64
    return loaded


def ids(library: ctypes.CDLL, cpu: int, after: int, count: int) -> list[int]:
    """Of the next flows on this CPU, which has had so many."""
    library.given(cpu, after)
    return [int(library.next_id(cpu)) for _ in range(count)]


@pytest.mark.parametrize("after", AFTER.values(), ids=AFTER)
@pytest.mark.parametrize("cpu", CPUS)
def test_an_id_is_below_2_to_the_53_on_every_cpu_and_after_many_flows(
    library: ctypes.CDLL, cpu: int, after: int
) -> None:
    found = ids(library, cpu, after, SOME)
    assert found[0] > 0
    assert found[-1] < LIMIT
    assert found == sorted(set(found)), "they grow"


def test_no_two_flows_of_any_cpus_have_one_id(library: ctypes.CDLL) -> None:
    """Nor as many as there are CPUs on each of two neighbours: a number does not run into the next CPU's."""
    found = [id_ for cpu in range(8192) for id_ in ids(library, cpu, 0, 5)]
    found += [id_ for cpu in (1000, 1001) for id_ in ids(library, cpu, 5, 20_011)]
    assert len(set(found)) == len(found) == 8192 * 5 + 2 * 20_011

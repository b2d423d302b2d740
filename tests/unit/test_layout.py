"""What the compiler says of the C text: constants that are written once more in Python, histogram buckets, and layouts
by BCC beside those by the machine's own compiler, which the tests of folds use (lab/layouts.py).

The C text is compiled by the loader's own way, for this kernel, with an assertion for each constant; buckets and sizes
are run. BCC wants root even to compile.
"""

import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from functools import cache
from random import Random

import numpy as np
import pytest
from lab import layouts

from nettop.bpf import c_layout, syscall
from nettop.bpf.config import Config, Counting, Flag
from nettop.bpf.layout import dtype_of, layout_of
from nettop.core import histogram as hist
from nettop.core.errors import NettopError
from nettop.core.paths import bpf_source, bpf_sources
from nettop.loader.compile import Object, compile_source, whole_text
from nettop.probes.base import all_probes
from nettop.probes.flows import constants as flows
from nettop.probes.stages import boundaries
from nettop.probes.throughput import fold as throughput_fold
from nettop.probes.throughput import section as throughput_section

pytestmark = pytest.mark.live

SOURCES = bpf_sources()

FLOWS = {
    **{f"METHOD_{name or 'none'}".upper(): number for number, name in enumerate(flows.METHODS)},
    "FLOW_FIN(IN)": flows.FLAG_FIN_RECEIVED,
    "FLOW_FIN(OUT)": flows.FLAG_FIN_SENT,
    "FLOW_OPENED_BY(IN)": flows.FLAG_OPENED_BY_REMOTE,
    "FLOW_OPENED_BY(OUT)": flows.FLAG_OPENED_BY_LOCAL,
    "FLOW_MIDWAY": flows.FLAG_MIDWAY,
    "FLOW_TCP": flows.FLAG_TCP,
    "FLOW_SYN": flows.FLAG_SYN,
    "FLOW_REPLIED": flows.FLAG_REPLIED,
    "FLOW_CLOSED": flows.FLAG_CLOSED,
    "FLOW_RESET": flows.FLAG_RESET,
    "LINGER_CLOSED": flows.LINGER_CLOSED,
    "LINGER_UNREPLIED": flows.LINGER_UNREPLIED,
    "LINGER_OTHER": flows.LINGER_OTHER,
    "LINGER_CLOSING": flows.LINGER_CLOSING,
    "LINGER_TCP": flows.LINGER_TCP,
    "LEG_EXTERNAL": flows.LEG_EXTERNAL,
    "LEG_INTERNAL": flows.LEG_INTERNAL,
    "IN": 0,
    "OUT": 1,
    "HIST_STEPS": hist.STEPS,
    "HIST_SLOTS": hist.SLOTS,
    "IPPROTO_TCP": flows.PROTOCOLS["tcp"],
    "IPPROTO_UDP": flows.PROTOCOLS["udp"],
    "IPPROTO_ICMP": flows.PROTOCOLS["icmp"],
    "IPPROTO_ICMPV6": flows.PROTOCOLS["icmpv6"],
    **{f"COUNT_{kind.name or 'SKB'}": int(kind) for kind in (Counting(0), *Counting)},
}
THROUGHPUT = {
    **{
        f"PROTO_{name}": getattr(throughput_section, f"PROTO_{name}")
        for name in ("ARP", "OTHER", "LLDP", "LLC", "PPPOE", "MPLS", "BROKEN", "SLOTS")
    },
    "SIZE_CLASSES": len(throughput_section.SIZES),
    "BIN_SHIFT": throughput_fold.BIN_SHIFT,
}

STAGES = {
    "STAGES": boundaries.ENTRIES,
    **{name: getattr(boundaries, name) for name in "RX_WHOLE TX_WHOLE RX_BEGIN TX_BEGIN TRACE_DROP".split()},
    **{f"RX_{b.stage.upper()}": b.index for b in (*boundaries.RX[1:], boundaries.FORWARD)},
    **{f"TX_{b.stage.upper()}": b.index for b in (*boundaries.TX[1:], boundaries.DONE)},
    **{flag.name or "": int(flag) for flag in Flag},
}
CONSTANTS = {"flows": FLOWS, "throughput": THROUGHPUT, "stages": STAGES}

# A function of a probe's C text, run on the number behind a frame's header.
RUN = {
    probe: f"""
int run(struct __sk_buff *skb)
{{
	{kind} value = 0;

	bpf_skb_load_bytes(skb, 14, &value, sizeof(value));
	return {function}(value);
}}
"""
    for probe, kind, function in (("flows", "u64", "hist_slot"), ("throughput", "u32", "size_class"))
}


Made = Callable[[str], Object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What a probe's C text is compiled to, once for each probe; its constants have been compared."""
    folder = tmp_path_factory.mktemp("cache")

    @cache
    def compiled(name: str) -> Object:
        source = folder / f"layout_{name}.c"
        asserted = "".join(
            f'_Static_assert({text} == {value}, "{text} is not {value}");\n'
            for text, value in CONSTANTS.get(name, {}).items()
        )
        source.write_text(whole_text(bpf_source(name)) + asserted + RUN.get(name, ""))
        try:
            return compile_source(source, folder)
        except NettopError as error:
            pytest.fail(error.hint)

    return compiled


@pytest.mark.parametrize("probe", CONSTANTS)
def test_constants_are_those_of_the_c_text(made: Made, probe: str) -> None:
    assert made(probe).programs


def test_no_constant_of_the_headers_is_left_out() -> None:
    """One that is added to the C text must be compared above."""
    text = (SOURCES / "flows" / "flow.h").read_text()
    named = set(re.findall(r"^#define (METHOD_\w+)", text, re.M))
    assert named == {name for name in FLOWS if name.startswith("METHOD_")}
    text = (SOURCES / "include" / "nettop.h").read_text()
    assert set(re.findall(r"^#define (COUNT_\w+)", text, re.M)) <= {*FLOWS}


@pytest.mark.parametrize("probe", all_probes())
def test_both_compilers_lay_the_maps_out_alike(made: Made, probe: str) -> None:
    """And BCC's description, which has sizes of its own, is of all that there is."""
    found = {spec.name: spec for spec in made(probe).maps}
    natively = layouts.made(bpf_source(probe))
    declared = all_probes()[probe].maps
    assert declared
    for each in declared:
        spec, info = found[each.name], natively[each.name]
        value, key = layout_of(spec, each)  # type: ignore[arg-type]
        assert (value, key) == (dtype_of(info.value_layout), dtype_of(info.key_layout))


def test_every_field_of_the_config_has_a_value(made: Made) -> None:
    (spec,) = (spec for spec in made("flows").maps if spec.name == "config")
    kind = c_layout.parse(spec.value_layout)
    assert isinstance(kind, c_layout.Struct)
    assert list(kind.fields) == [field.name for field in fields(Config)]
    key = {"local": bytes(range(16)), "remote_port": 443}
    config = Config(ifindex=7, count_in=Counting.CELLS, focus=2**63, focus_key=key, flags=Flag.TRACE)
    read = np.frombuffer(config.pack(spec.value_layout), dtype_of(spec.value_layout))[0]
    assert {f: read[f] for f in ("ifindex", "l2_len", "count_in", "focus", "flags")} == {
        "ifindex": 7, "l2_len": 14, "count_in": 64, "focus": 2**63, "flags": 32
    }  # fmt: skip
    assert read["focus_key"]["local"].tobytes() == key["local"]
    assert (read["focus_key"]["remote_port"], read["focus_key"]["local_port"]) == (443, 0)


def run(made: Made, probe: str, values: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Each value, and what the probe's function makes of it in the kernel."""
    program = syscall.prog_load(syscall.ProgType.SCHED_CLS, made(probe).programs["run"], "run")
    for value in sorted(values):
        yield value, syscall.test_run(program, bytes(14) + value.to_bytes(8, "little") + bytes(42))[0]
    os.close(program)


def test_buckets_are_the_same_in_the_kernel(made: Made) -> None:
    random = Random(1)
    lowers = [int(lower) for lower in hist.bucket_lowers()]
    values = {max(lower + step, 0) for lower in lowers for step in (-1, 0, 1)}
    values |= {(1 << bit) + step for bit in range(1, 64) for step in (-1, 0, 1)}
    values |= {random.getrandbits(random.randrange(1, 64)) for _ in range(2003)}
    values.add(2**64 - 1)
    for value, slot in run(made, "flows", values):
        assert slot == hist.bucket_of(value), value


def test_size_classes_are_the_same_in_the_kernel(made: Made) -> None:
    sizes = throughput_section.SIZES
    values = {bound + step for bound in sizes for step in (-1, 0, 1)} | {0, 1, 2**31, 2**32 - 1}
    for value, found in run(made, "throughput", values):
        assert found == min(bisect_left(sizes, value), len(sizes) - 1), value

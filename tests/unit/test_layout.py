"""What the compiler says of the C text: constants that are written once more in Python, histogram buckets, and layouts
by BCC beside those by the machine's own compiler, which the tests of folds use (lab/layouts.py).

The C text is compiled by the loader's own way, for this kernel. Each constant becomes a function that returns it, and
its one instruction is read; only the buckets are really run. BCC wants root even to compile.
"""

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from random import Random

import numpy as np
import pytest
from lab import layouts

from nettop.bpf import c_layout, syscall
from nettop.bpf.config import Config, Counting, Flag
from nettop.bpf.layout import dtype_of, layout_of
from nettop.core import histogram as hist
from nettop.core.paths import bpf_source, bpf_sources
from nettop.loader.compile import Object, compile_source, whole_text
from nettop.probes.base import all_probes
from nettop.probes.flows import constants as flows
from nettop.probes.stages import boundaries
from nettop.probes.throughput import fold as throughput_fold
from nettop.probes.throughput import section as throughput_section

pytestmark = pytest.mark.live

SOURCES = bpf_sources()

CONSTANTS = {
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
THROUGHPUT_CONSTANTS = {
    "PROTO_ARP": throughput_section.PROTO_ARP,
    **{
        f"PROTO_{name}": getattr(throughput_section, f"PROTO_{name}")
        for name in ("OTHER", "LLDP", "LLC", "PPPOE", "MPLS", "BROKEN")
    },
    "PROTO_SLOTS": throughput_section.PROTO_SLOTS,
    "SIZE_CLASSES": len(throughput_section.SIZES),
    "BIN_SHIFT": throughput_fold.BIN_SHIFT,
}

STAGES_CONSTANTS = {
    "STAGES": boundaries.ENTRIES,
    "RX_WHOLE": boundaries.RX_WHOLE,
    "TX_WHOLE": boundaries.TX_WHOLE,
    "RX_BEGIN": boundaries.RX_BEGIN,
    "TX_BEGIN": boundaries.TX_BEGIN,
    "TRACE_DROP": boundaries.TRACE_DROP,
    **{f"RX_{b.stage.upper()}": b.index for b in (*boundaries.RX[1:], boundaries.FORWARD)},
    **{f"TX_{b.stage.upper()}": b.index for b in (*boundaries.TX[1:], boundaries.DONE)},
    **{flag.name or "": int(flag) for flag in Flag},
}

RUN = """
int run_hist_slot(struct __sk_buff *skb)
{
	u64 value = 0;

	bpf_skb_load_bytes(skb, 14, &value, sizeof(value));
	return hist_slot(value);
}
"""
RUN_SIZE = """
int run_size_class(struct __sk_buff *skb)
{
	u32 value = 0;

	bpf_skb_load_bytes(skb, 14, &value, sizeof(value));
	return size_class(value);
}
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def compiled(cache: Path, name: str, expressions: list[str], more: str) -> tuple[dict[str, int], Object]:
    """The values of C expressions behind this probe's C text, and what it was compiled to."""
    text = whole_text(bpf_source(name)) + more
    for index, expression in enumerate(expressions):
        text += f"\nint value_{index}(struct __sk_buff *skb)\n{{\n\treturn {expression};\n}}\n"
    source = cache / f"layout_{name}.c"
    source.write_text(text)
    found = compile_source(source, cache)
    return {e: constant(found.programs[f"value_{i}"]) for i, e in enumerate(expressions)}, found


def constant(code: bytes) -> int:
    """What a function returns that is `r0 = number; exit` (BPF_ALU64 or BPF_ALU, BPF_MOV, BPF_K)."""
    assert len(code) == 16
    opcode, registers, _, number = struct.unpack_from("<BBhi", code)
    assert opcode in (0xB7, 0xB4)
    assert registers == 0
    assert code[8] == 0x95
    return int(number)


@pytest.fixture(scope="module")
def flow_object(cache: Path) -> tuple[dict[str, int], Object]:
    return compiled(cache, "flows", [*CONSTANTS], RUN)


@pytest.fixture(scope="module")
def throughput_object(cache: Path) -> tuple[dict[str, int], Object]:
    return compiled(cache, "throughput", [*THROUGHPUT_CONSTANTS], RUN_SIZE)


@pytest.fixture(scope="module")
def stages_object(cache: Path) -> tuple[dict[str, int], Object]:
    return compiled(cache, "stages", [*STAGES_CONSTANTS], "")


@pytest.fixture(scope="module")
def irq_object(cache: Path) -> tuple[dict[str, int], Object]:
    return compiled(cache, "irq", [], "")


def test_stages_constants(stages_object: tuple[dict[str, int], Object]) -> None:
    assert stages_object[0] == STAGES_CONSTANTS


def test_flow_constants(flow_object: tuple[dict[str, int], Object]) -> None:
    assert flow_object[0] == CONSTANTS


def test_throughput_constants(throughput_object: tuple[dict[str, int], Object]) -> None:
    assert throughput_object[0] == THROUGHPUT_CONSTANTS


def test_no_constant_of_the_headers_is_left_out() -> None:
    """One that is added to the C text must be compared above."""
    text = (SOURCES / "flows" / "flow.h").read_text()
    named = set(re.findall(r"^#define (METHOD_\w+)", text, re.M))
    assert named == {name for name in CONSTANTS if name.startswith("METHOD_")}
    text = (SOURCES / "include" / "nettop.h").read_text()
    assert set(re.findall(r"^#define (COUNT_\w+)", text, re.M)) <= {*CONSTANTS}


@pytest.mark.parametrize("probe", all_probes())
def test_both_compilers_lay_the_maps_out_alike(probe: str, request: pytest.FixtureRequest) -> None:
    """And BCC's description, which has sizes of its own, is of all that there is."""
    name = "flow" if probe == "flows" else probe
    found = {spec.name: spec for spec in request.getfixturevalue(f"{name}_object")[1].maps}
    natively = layouts.made(bpf_source(probe))
    declared = all_probes()[probe].maps
    assert declared
    for each in declared:
        spec, info = found[each.name], natively[each.name]
        value, key = layout_of(spec, each)  # type: ignore[arg-type]
        assert (value, key) == (dtype_of(info.value_layout), dtype_of(info.key_layout))


def test_every_field_of_the_config_has_a_value(flow_object: tuple[dict[str, int], Object]) -> None:
    (spec,) = (spec for spec in flow_object[1].maps if spec.name == "config")
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


@contextmanager
def loaded(made: Object, program: str) -> Iterator[int]:
    fd = syscall.prog_load(syscall.ProgType.SCHED_CLS, made.programs[program], program)
    try:
        yield fd
    finally:
        os.close(fd)


def test_buckets_are_the_same_in_the_kernel(flow_object: tuple[dict[str, int], Object]) -> None:
    random = Random(1)
    lowers = [int(lower) for lower in hist.bucket_lowers()]
    values = {max(lower + step, 0) for lower in lowers for step in (-1, 0, 1)}
    values |= {(1 << bit) + step for bit in range(1, 64) for step in (-1, 0, 1)}
    values |= {random.getrandbits(random.randrange(1, 64)) for _ in range(2003)}
    values.add(2**64 - 1)
    with loaded(flow_object[1], "run_hist_slot") as program:
        for value in sorted(values):
            slot, _, _ = syscall.test_run(program, bytes(14) + value.to_bytes(8, "little") + bytes(42))
            assert slot == hist.bucket_of(value), value


def test_size_classes_are_the_same_in_the_kernel(throughput_object: tuple[dict[str, int], Object]) -> None:
    values = {bound + step for bound in throughput_section.SIZES for step in (-1, 0, 1)} | {
        0,
        1,
        2**31,
        2**32 - 1,
    }
    with loaded(throughput_object[1], "run_size_class") as program:
        for value in sorted(values):
            expected = next(
                (i for i, bound in enumerate(throughput_section.SIZES) if value <= bound),
                len(throughput_section.SIZES) - 1,
            )
            found, _, _ = syscall.test_run(program, bytes(14) + value.to_bytes(4, "little") + bytes(46))
            assert found == expected, value

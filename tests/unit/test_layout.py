"""What is written in C and once more in Python, compared: struct layouts, constants, histogram buckets.

The C text is compiled by the loader's own way, for this kernel. Each size, offset and constant becomes a function
that returns it, and its one instruction is read; only the buckets are really run. BCC wants root even to compile.
"""

import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from nettop import bpf, model, stats
from nettop.control import Config, Counting, Flag
from nettop.loader.compile import Object, compile_source, whole_text
from nettop.paths import bpf_source, bpf_sources
from nettop.probes import flows_layout as flows
from nettop.probes import stages, throughput
from nettop.probes.flows import PROBE as FLOWS

pytestmark = pytest.mark.live

SOURCES = bpf_sources()

Structs = Mapping[str, np.dtype[Any]]

DUE_FLOW = flows.DUE["of"].subdtype
assert DUE_FLOW is not None
FLOW_STRUCTS: Structs = {
    "flow_key": flows.FLOW_KEY,
    "rtt_probe": flows.RTT_PROBE,
    "flow_dir": flows.FLOW_DIR,
    "rtt": flows.RTT,
    "flow": flows.FLOW,
    "event": flows.EVENT,
    "counters": flows.COUNTERS,
    "due_flow": DUE_FLOW[0],
    "due": flows.DUE,
    "subnet_key": flows.SUBNET_KEY,
    "subnet": flows.SUBNET,
    "owner": flows.OWNER,
    "focused": flows.FOCUSED,
    "hist": flows.HIST,
}
# Of no concern to the Python side.
KERNEL_ONLY = {"socket_slot", "fragment_slot", "gap", "resent", "gap_key", "gaps"}
BIN = throughput.BURSTS["bins"].subdtype
assert BIN is not None
THROUGHPUT_STRUCTS: Structs = {
    "traffic": throughput.TRAFFIC,
    "bin": BIN[0],
    "bursts": throughput.BURSTS,
}

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
    "OUTWARD": flows.OUTWARD,
    "INWARD": flows.INWARD,
    "IN": 0,
    "OUT": 1,
    "HIST_STEPS": model.STEPS,
    "HIST_SLOTS": model.SLOTS,
    "IPPROTO_TCP": flows.PROTOCOLS["tcp"],
    "IPPROTO_UDP": flows.PROTOCOLS["udp"],
    "IPPROTO_ICMP": flows.PROTOCOLS["icmp"],
    "IPPROTO_ICMPV6": flows.PROTOCOLS["icmpv6"],
    **{f"COUNT_{kind.name or 'SKB'}": int(kind) for kind in (Counting(0), *Counting)},
}
THROUGHPUT_CONSTANTS = {
    "PROTO_ARP": throughput.PROTO_ARP,
    **{
        f"PROTO_{name}": getattr(throughput, f"PROTO_{name}")
        for name in ("OTHER", "LLDP", "LLC", "PPPOE", "MPLS", "BROKEN")
    },
    "PROTO_SLOTS": throughput.PROTO_SLOTS,
    "SIZE_CLASSES": len(throughput.SIZES),
    "BIN_SHIFT": throughput.BIN_SHIFT,
    "BINS": throughput.BINS,
}

STAGES_STRUCTS: Structs = {
    "stage": stages.STAGE,
    "path": stages.PATH,
    "paths": stages.PATHS,
    "traced_event": stages.TRACE,
    "tracing": stages.TRACING,
}
STAGES_CONSTANTS = {
    "STAGES": stages.ENTRIES,
    "RX_WHOLE": stages.RX_WHOLE,
    "TX_WHOLE": stages.TX_WHOLE,
    "RX_BEGIN": stages.RX_BEGIN,
    "TX_BEGIN": stages.TX_BEGIN,
    "TRACE_DROP": stages.TRACE_DROP,
    **{f"RX_{b.stage.upper()}": b.index for b in (*stages.RX[1:], stages.FORWARD)},
    **{f"TX_{b.stage.upper()}": b.index for b in (*stages.TX[1:], stages.DONE)},
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


def places(structs: Structs) -> dict[str, int]:
    """C expression -> the value it must have, for every size and offset of these dtypes."""
    expected = {}
    for name, dtype in structs.items():
        expected[f"sizeof(struct {name})"] = dtype.itemsize
        assert dtype.fields
        for field, (kind, offset, *_) in dtype.fields.items():
            expected[f"offsetof(struct {name}, {field})"] = offset
            expected[f"sizeof(((struct {name} *)0)->{field})"] = kind.itemsize
    return expected


def config_places() -> dict[str, int]:
    """The same for struct config: where each field's own mark is in the packed bytes."""
    expected = {"sizeof(struct config)": len(Config().pack())}
    for field in fields(Config):
        values: dict[str, Any] = {f.name: bytes(40) if f.type == "bytes" else 0 for f in fields(Config)}
        zero = Config(**values)
        # 1 in the lowest byte: the field begins where that is.
        packed = Config(**{**values, field.name: b"\1" + bytes(39) if field.type == "bytes" else 1}).pack()
        changed = [i for i, (a, b) in enumerate(zip(packed, zero.pack(), strict=True)) if a != b]
        expected[f"offsetof(struct config, {field.name})"] = changed[0]
    return expected


@pytest.fixture(scope="module")
def flow_object(cache: Path) -> tuple[dict[str, int], Object]:
    return compiled(cache, "flows", [*places(FLOW_STRUCTS), *config_places(), *CONSTANTS], RUN)


@pytest.fixture(scope="module")
def throughput_object(cache: Path) -> tuple[dict[str, int], Object]:
    expressions = [*places(THROUGHPUT_STRUCTS), *THROUGHPUT_CONSTANTS]
    return compiled(cache, "throughput", expressions, RUN_SIZE)


@pytest.fixture(scope="module")
def stages_object(cache: Path) -> tuple[dict[str, int], Object]:
    return compiled(cache, "stages", [*stages_places(), *STAGES_CONSTANTS], "")


def stages_places() -> dict[str, int]:
    """`struct stage` begins with a histogram, whose fields are its own."""
    expected = places(STAGES_STRUCTS)
    for kind in ("sizeof(((struct stage *)0)->{})", "offsetof(struct stage, {})"):
        for name in ("sum", "slots"):
            expected[kind.format(f"delay.{name}")] = expected.pop(kind.format(name))
    return expected


def test_stages_structs_and_constants(stages_object: tuple[dict[str, int], Object]) -> None:
    assert stages_object[0] == {**stages_places(), **STAGES_CONSTANTS}


def test_flow_structs_and_constants(flow_object: tuple[dict[str, int], Object]) -> None:
    expected = {**places(FLOW_STRUCTS), **config_places(), **CONSTANTS}
    assert len(expected) > 150
    assert flow_object[0] == expected


def test_throughput_structs_and_constants(throughput_object: tuple[dict[str, int], Object]) -> None:
    assert throughput_object[0] == {**places(THROUGHPUT_STRUCTS), **THROUGHPUT_CONSTANTS}


def test_nothing_of_the_headers_is_left_out() -> None:
    """A struct or constant that is added to the C text must be compared above."""
    text = (SOURCES / "flows" / "flow.h").read_text()
    assert (
        set(re.findall(r"^struct (\w+) \{", text, re.M))
        == {*FLOW_STRUCTS} - {"hist", "flow_key"} | KERNEL_ONLY
    )
    named = set(re.findall(r"^#define (METHOD_\w+)", text, re.M))
    assert named == {name for name in CONSTANTS if name.startswith("METHOD_")}
    text = (SOURCES / "include" / "nettop.h").read_text()
    assert set(re.findall(r"^#define (COUNT_\w+)", text, re.M)) <= {*CONSTANTS}
    found = re.search(r"^struct config \{(.*?)^\}", text, re.M | re.S)
    assert found
    assert re.findall(r"^\t(?:u\d+|struct \w+) (\w+);", found[1], re.M) == [f.name for f in fields(Config)]


def test_fields_without_a_name_are_none() -> None:
    """No padding that nobody wrote down: the sizes of the fields add up."""
    for name, dtype in {**FLOW_STRUCTS, **THROUGHPUT_STRUCTS}.items():
        assert dtype.fields
        assert sum(kind.itemsize for kind, *_ in dtype.fields.values()) == dtype.itemsize, name


def test_maps_have_the_sizes_that_the_modules_read(
    flow_object: tuple[dict[str, int], Object],
    throughput_object: tuple[dict[str, int], Object],
    stages_object: tuple[dict[str, int], Object],
) -> None:
    made_of = (
        (FLOWS, flow_object),
        (throughput.PROBE, throughput_object),
        (stages.PROBE, stages_object),
    )
    for probe, (_, made) in made_of:
        specs = {spec.name: spec for spec in made.maps}
        for layout in probe.maps:
            if layout.read != "ring":  # a ring has no values of one size
                assert specs[layout.name].value_size == layout.value.itemsize, layout.name
            if layout.key is not None:
                assert specs[layout.name].key_size == layout.key.itemsize, layout.name


@contextmanager
def loaded(made: Object, program: str) -> Iterator[int]:
    fd = bpf.prog_load(bpf.ProgType.SCHED_CLS, made.programs[program], program)
    try:
        yield fd
    finally:
        os.close(fd)


def test_buckets_are_the_same_in_the_kernel(flow_object: tuple[dict[str, int], Object]) -> None:
    random = Random(1)
    lowers = [int(lower) for lower in stats.bucket_lowers()]
    values = {max(lower + step, 0) for lower in lowers for step in (-1, 0, 1)}
    values |= {(1 << bit) + step for bit in range(1, 64) for step in (-1, 0, 1)}
    values |= {random.getrandbits(random.randrange(1, 64)) for _ in range(2003)}
    values.add(2**64 - 1)
    with loaded(flow_object[1], "run_hist_slot") as program:
        for value in sorted(values):
            slot, _, _ = bpf.test_run(program, bytes(14) + value.to_bytes(8, "little") + bytes(42))
            assert slot == stats.bucket_of(value), value


def test_size_classes_are_the_same_in_the_kernel(throughput_object: tuple[dict[str, int], Object]) -> None:
    values = {bound + step for bound in throughput.SIZES for step in (-1, 0, 1)} | {0, 1, 2**31, 2**32 - 1}
    with loaded(throughput_object[1], "run_size_class") as program:
        for value in sorted(values):
            expected = next(
                (i for i, bound in enumerate(throughput.SIZES) if value <= bound), len(throughput.SIZES) - 1
            )
            found, _, _ = bpf.test_run(program, bytes(14) + value.to_bytes(4, "little") + bytes(46))
            assert found == expected, value

"""The filter: libpcap's language in, the same verdict on every packet out, and nothing but classic BPF between."""

from __future__ import annotations

import os
import random
import re
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from expressions import EXPRESSIONS, MIX, Native, expressions, frame, udp, v4
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nettop.bpf import filter as filters
from nettop.bpf.filter import (
    FilterError,
    Instruction,
    Program,
    check,
    compile_expression,
    compile_or_word,
    from_words,
    to_c,
)
from nettop.bpf.protocol import Filter, Plan, ProtocolError
from nettop.core.errors import ExitCode

ACCEPT, REJECT = Instruction(0x06, 0, 0, 1), Instruction(0x06, 0, 0, 0)


def cut(packets: tuple[bytes, ...], seed: int = 1) -> list[bytes]:
    """The packets, and each cut short and damaged somewhere: what no sender makes."""
    rnd = random.Random(seed)
    result = list(packets)
    for packet in packets:
        result.append(packet[: rnd.randrange(len(packet) + 1)])
        broken = bytearray(packet)
        for _ in range(3):
            broken[rnd.randrange(len(broken))] = rnd.randrange(256)
        result.append(bytes(broken))
    return result


def compiled(texts: list[str], link: int = filters.EN10MB) -> list[Program]:
    """Those that libpcap can compile."""
    programs = []
    for text in texts:
        with suppress(FilterError):
            programs.append(compile_expression(text, link))
    return programs


def assert_native_agrees(programs: list[Program], packets: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        native = Native(programs, Path(folder))
        for packet in packets:
            expected = [p.matches(packet) for p in programs]
            found = native.verdicts(packet)
            wrong = [p.text for p, a, b in zip(programs, expected, found, strict=True) if a != b]
            assert not wrong, f"{packet.hex()}: {wrong}"


def test_every_expression_parts_the_mix():
    # One that accepts all packets or none would prove nothing of the code behind it.
    for text in EXPRESSIONS:
        verdicts = {compile_expression(text).matches(packet) for packet in MIX}
        assert verdicts == {True, False}, text
    assert len(EXPRESSIONS) >= 40


def test_the_c_text_gives_the_verdicts_of_libpcap():
    assert_native_agrees([compile_expression(text) for text in EXPRESSIONS], cut(MIX))


def test_the_c_text_of_the_raw_link_type_too():
    packets = [p[14:] for p in cut(MIX)]
    programs = compiled(list(EXPRESSIONS), filters.RAW)
    assert len(programs) > 25
    assert_native_agrees(programs, packets)


def test_a_cut_packet_keeps_its_length(tmp_path):
    packet = frame(0x0800, v4("10.0.0.1", "10.0.0.2", 17, udp(1, 2, b"x" * 1000)))[:60]
    programs = compiled(["len > 1000", "len = 60", "udp port 2 and greater 1042"])
    assert [p.matches(packet, 1042) for p in programs] == [True, False, True]
    assert Native(programs, tmp_path).verdicts(packet, 1042) == [True, False, True]


# NETTOP_EXPRESSIONS=10000 takes a minute.  A tenth of it in every run.
GENERATED = int(os.environ.get("NETTOP_EXPRESSIONS", "1000"))


def test_thousands_of_generated_expressions_agree_with_libpcap():
    agreed = refused = 0

    # No shrinking: the packet and the expression are in the message.
    @settings(
        max_examples=GENERATED * 12 // 1000,  # of a hundred each, of which libpcap refuses some
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.lists(expressions(), min_size=100, max_size=100, unique=True), st.integers(0, 1 << 20))
    def batch(texts: list[str], seed: int) -> None:
        nonlocal agreed, refused
        programs = compiled(texts)
        assert_native_agrees(programs, cut(MIX, seed))
        agreed += len(programs)
        refused += len(texts) - len(programs)

    batch()
    print(f"{agreed} expressions agree on {3 * len(MIX)} packets each; libpcap refused {refused} more")
    assert agreed >= GENERATED


# --- the language, and what is none of it -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tcp port", "syntax error"),
        ("port 80 and", "syntax error"),
        ("host and port", "syntax error"),
        ("ip and arp", "expression rejects all packets"),
        ("port nosuchservice", "unknown port 'nosuchservice'"),
        ("tcp port 70000", "illegal port number 70000 > 65535"),
        ("len / 0 = 1", "division by zero"),
        ("net 1.2.3.4/33", "mask length must be <= 32"),
        ("type mgt", "802.11 link-layer types supported only on 802.11"),
        ("ip protochain 6", "protochain is a loop"),
        ("tcp\0", "cannot be printed"),
        ("tcp\x1b[31m", "cannot be printed"),
        ("x" * 100_000, "too long"),
    ],
)
def test_an_error_is_libpcaps_own_text(text, said):
    with pytest.raises(FilterError, match=said) as caught:
        compile_expression(text)
    assert caught.value.code == ExitCode.USAGE
    assert "\n" not in caught.value.message


def test_a_vlan_is_no_part_of_a_link_without_frames():
    with pytest.raises(FilterError, match="no VLAN support"):
        compile_expression("vlan", filters.RAW)
    assert filters.link_type(14) == filters.EN10MB
    assert filters.link_type(0) == filters.RAW


@pytest.mark.parametrize(
    "word", ["10.0.0.1", "443", "firefox", "10.0.0.1:443", "[fe80::1]:80", "python3.11", "päng"]
)
def test_a_plain_word_is_no_expression(word):
    assert compile_or_word(word) is None
    assert compile_or_word(f"  {word} ") is None


@pytest.mark.parametrize(
    "text", ["port", "not", "Host", "tcp and", "10.0.0.1 443", "(", "ip[0", "a&b", "tcp)", "'", '"']
)
def test_what_was_meant_to_be_one_says_what_is_wrong(text):
    with pytest.raises(FilterError):
        compile_or_word(text)


@pytest.mark.parametrize("text", ["tcp", "arp", "port 80", "ip[0]=0x45", "inbound", ""])
def test_an_expression_is_one(text):
    assert compile_or_word(text).instructions


def test_an_empty_expression_accepts_everything():
    program = compile_expression("")
    assert all(program.matches(packet) for packet in MIX)


def test_a_filter_that_is_too_long_says_so():
    text = " or ".join(f"(src net 10.{i}.0.0/16 and dst port {i + 1000})" for i in range(200))
    with pytest.raises(FilterError, match=f"more than {filters.MAX_INSTRUCTIONS}"):
        compile_expression(text)


# --- the loader's side: what it is told may be anything ---------------------------------------------------


def test_the_words_come_back_as_the_instructions():
    program = compile_expression("tcp port 443 and net 10.0.0.0/8")
    assert from_words(program.words) == program.instructions
    assert from_words(()) == ()


@pytest.mark.parametrize(
    "instructions",
    [
        (),
        (Instruction(0x28, 0, 0, 12),),  # does not end
        (Instruction(0x05, 0, 0, 0xFFFFFFFE), ACCEPT),  # back
        (Instruction(0x05, 0, 0, 1), ACCEPT),  # beyond the end
        (Instruction(0x15, 1, 0, 0), ACCEPT),
        (Instruction(0x15, 0, 1, 0), ACCEPT),
        (Instruction(0x15, 256, 0, 0), *[ACCEPT] * 300),
        (Instruction(0x15, -1, 0, 0), ACCEPT),
        (Instruction(0x02, 0, 0, 16), ACCEPT),  # M has 16
        (Instruction(0x60, 0, 0, 16), ACCEPT),
        (Instruction(0x34, 0, 0, 0), ACCEPT),  # division by zero
        (Instruction(0x94, 0, 0, 0), ACCEPT),
        (Instruction(0x64, 0, 0, 32), ACCEPT),
        (Instruction(0x74, 0, 0, 99), ACCEPT),
        (Instruction(0x28, 0, 0, 1 << 32), ACCEPT),
        (Instruction(0x28, 0, 0, -1), ACCEPT),
        (Instruction(0x85, 0, 0, 1), ACCEPT),  # eBPF's call
        (Instruction(0x95, 0, 0, 0),),  # eBPF's exit
        (Instruction(0xFFFF, 0, 0, 0), ACCEPT),
        (Instruction(0x0E, 0, 0, 0),),  # return X: libpcap's own, the kernel has none
        (ACCEPT,) * (filters.MAX_INSTRUCTIONS + 1),
    ],
)
def test_what_is_no_classic_bpf_is_refused(instructions):
    with pytest.raises((ValueError, FilterError)):
        check(instructions)
    with pytest.raises((ValueError, FilterError)):
        to_c(instructions)
    words = tuple(n for i in instructions for n in i)
    if words:
        with pytest.raises(ProtocolError):
            Filter(words)
        with pytest.raises(ProtocolError):
            Plan("eth0", (), filter=words)


_codes = sorted(filters._CODES)
_any_instruction = st.builds(
    Instruction,
    st.sampled_from(_codes),
    st.integers(0, 6),
    st.integers(0, 6),
    st.integers(0, 40)
    | st.integers(0, (1 << 32) - 1)
    | st.sampled_from([0xFFFFF004, 0xFFFFF008, 0xFFFFF02C]),
)


@settings(max_examples=400)
@given(st.lists(_any_instruction, max_size=12))
def test_the_text_of_a_checked_program_has_only_its_own_words(body):
    instructions = (*body, *[ACCEPT] * 7, REJECT)
    try:
        text = to_c(instructions)
    except ValueError:
        return
    words = set(re.findall(r"\b[A-Za-z_]\w*", text))
    own = "static __always_inline u32 u64 filter_program const struct filter_packet packet if goto return".split()
    own += "filter_load filter_length filter_packet_type filter_ifindex FILTER_STEP a x".split()
    assert not {w for w in words.difference(own) if not re.fullmatch(r"[lm]\d+", w)}
    assert "#" not in text


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(_any_instruction, max_size=16), min_size=100, max_size=100))
def test_programs_that_no_compiler_made_agree_too(bodies):
    programs = []
    for body in bodies:
        # what libpcap's interpreter leaves undefined has no verdict to agree with: M before it is set
        instructions = (*(Instruction(0x02, 0, 0, n) for n in range(16)), *body, *[ACCEPT] * 7, REJECT)
        if any(i.k >= 0xFFFFF000 and i.code in filters._LOADS for i in body):
            continue
        try:
            check(instructions)
        except ValueError:
            continue
        programs.append(Program(str(body), filters.EN10MB, instructions))
    if programs:
        assert_native_agrees(programs, cut(MIX))

"""The hook table of stages: its programs are those that the compiler makes, and what a line of it says is attached."""

import re
from pathlib import Path

import pytest

from nettop.bpf.config import Flag
from nettop.bpf.hook_table import hooks
from nettop.bpf.hooks import Attachment, Candidate, Hook
from nettop.core.paths import bpf_source
from nettop.loader.compile import TYPED_ONLY, compile_probe
from nettop.probes.stages.probe import HOOKS

BEGIN = re.compile(r"^[A-Z]+\(", re.MULTILINE)


def programs(*vias: str) -> set[str]:
    return {
        a.program for h in HOOKS for c in h.candidates if not vias or c.via in vias for a in c.attachments
    }


@pytest.mark.live
def test_every_program_is_compiled_and_every_one_is_attached_somewhere(tmp_path: Path) -> None:
    """Raw tracepoints, fentry and kprobes too, which not every kernel needs."""
    assert set(compile_probe("stages", tmp_path).programs) == programs()
    typed = set(compile_probe("stages", tmp_path, TYPED_ONLY).programs)
    assert programs("tp_btf", "netfilter") <= typed
    assert typed <= programs("tp_btf", "netfilter", "fentry")


def test_every_line_of_the_table_is_read() -> None:
    text = (bpf_source("stages").parent / "hooks.h").read_text()
    lines = BEGIN.findall(text)
    assert len(lines) > 20
    read = [hooks(part, Flag) for part in re.split(r"(?m)^(?=[A-Z]+\()", text) if BEGIN.match(part)]
    assert all(len(found) == 1 for found in read)
    assert len(read) == len(lines)


def test_a_line_says_what_is_attached() -> None:
    text = """
EITHER(read, NO_READY, stages_read, rx_read(POINTER(1), typed, INT(2)),
       "one other", "first|second third")
/* the same elsewhere */
FUNCTION(read, NO_READY, stages_read_more, rx_read(POINTER(0), typed, 0), "fourth")
NETFILTER(in, 0, stages_in, rx_in, "local_in")
"""

    def via(mechanism: str, **targets: str) -> Candidate:
        attached = (
            Attachment(program, each) for program, all_ in targets.items() for each in all_.split(", ")
        )
        return Candidate(mechanism, tuple(attached))

    read = (
        via("tp_btf", stages_read="one, other"),
        via("raw_tracepoint", stages_read_raw="one, other"),
        via("fentry", stages_read="first|second, third", stages_read_more="fourth"),
        via("kprobe", stages_read_kprobe="first|second, third", stages_read_more_kprobe="fourth"),
    )
    places = via("netfilter", stages_in="ipv4 local_in first, ipv6 local_in first")
    assert hooks(text, Flag) == (Hook("read", read, flag=Flag.NO_READY), Hook("in", (places,)))


def test_a_line_that_is_wrong_is_refused() -> None:
    with pytest.raises(KeyError, match="NO_SUCH"):
        hooks('KPROBE(a, NO_SUCH, stages_a, rx_a(POINTER(0), typed), "a")', Flag)
    with pytest.raises(ValueError, match="zip"):
        hooks('EITHER(a, 0, stages_a, rx_a(POINTER(0), typed), "a")', Flag)

"""Offset and size of each kernel field that the programs read, compiled, against BTF.

Which fields these are is taken from the C text.  The guests run this too: tests/vm/guest.
"""

import platform
import re
from dataclasses import replace
from pathlib import Path

import pytest
from kernel_fields import fields, read, refused, structures
from lab import shell
from lab.btf import KERNEL, Btf
from lab.program import interpreter

# What the C text names for older kernels only: the one from which on it is gone.
GONE = {("sk_buff", "__pkt_vlan_present_offset"): (6, 2)}


@pytest.fixture(scope="module")
def btf() -> Btf:
    if not KERNEL.exists():
        pytest.skip("the kernel has no BTF")
    return Btf()


def test_every_field_lies_where_the_kernel_has_it(btf: Btf, tmp_path: Path) -> None:
    major, minor = map(int, re.findall(r"\d+", platform.release())[:2])
    compared = fields(btf)
    there = {(name, field.path) for name, field in compared}
    gone = {field for field, since in GONE.items() if (major, minor) >= since}
    print(f"{len(compared)} fields of {', '.join(structures(btf))}")
    assert {("tcp_sock", "rcv_nxt"), ("sock", "__sk_common.skc_net.net"), ("net", "ns.inum")} <= read(btf)
    assert read(btf) - there == gone
    assert not refused(compared, tmp_path)


@pytest.mark.parametrize("wrong", [{"offset": 8}, {"size": 8}])
def test_a_field_that_lies_elsewhere_is_found(btf: Btf, tmp_path: Path, wrong: dict[str, int]) -> None:
    """The comparison can fail: one field, moved or grown by so many bytes."""
    name, field = next(
        (name, field) for name, field in fields(btf) if (name, field.path) == ("tcp_sock", "copied_seq")
    )
    moved = replace(field, **{key: getattr(field, key) + more for key, more in wrong.items()})
    assert "tcp_sock.copied_seq" in refused([(name, moved)], tmp_path)


def test_check_names_the_oldest_kernel(tmp_path: Path) -> None:
    """On a kernel that says it is 2.6 (personality(2)): what is missing, in words, and exit code 4."""
    done = shell.run(
        ["setarch", platform.machine(), "--uname-2.6", interpreter(), "-m", "nettop", "lo", "--check"],
        timeout=60,
        check=False,
    )
    assert done.returncode == 4
    told, hint = done.stderr.splitlines()
    assert re.fullmatch(r"nettop: kernel 2\.6\.\S+ is too old for nettop", told)
    assert hint == "hint: Linux 6.1 or later is needed"
    assert not done.stdout

"""Which capabilities are enough, which are kept, which kernels want one in the screen, and what the units ask for."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from nettop import privilege
from nettop.loader.compile import kernel_calls
from nettop.loader.headers import KFUNC_CALL
from nettop.privilege import BPF, NET_ADMIN, PERFMON, SYS_ADMIN, mask

ROOT = (1 << 41) - 1
UNITS = sorted((Path(__file__).parents[2] / "systemd").glob("*.service"))
assert len(UNITS) == 2


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        (mask(NET_ADMIN, BPF, PERFMON), ()),
        (mask(NET_ADMIN, SYS_ADMIN), ()),
        (ROOT, ()),
        (mask(BPF, PERFMON), ("CAP_NET_ADMIN",)),
        (mask(NET_ADMIN, PERFMON), ("CAP_BPF",)),
        (mask(NET_ADMIN, BPF), ("CAP_PERFMON",)),
        (mask(SYS_ADMIN), ("CAP_NET_ADMIN",)),
        (0, ("CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON")),
    ],
)
def test_what_is_missing_is_named(held, missing):
    assert privilege.missing(held) == missing


def test_the_loader_keeps_three_of_root_s_or_cap_sys_admin_where_that_is_what_loads():
    assert privilege.loading(ROOT) == mask(NET_ADMIN, BPF, PERFMON)
    assert privilege.loading(mask(NET_ADMIN, SYS_ADMIN)) == mask(NET_ADMIN, SYS_ADMIN)


def test_only_root_becomes_the_invoking_user():
    assert privilege.invoking_user({"SUDO_UID": "1000", "SUDO_GID": "1000"}) == (1000, 1000)
    assert privilege.invoking_user({"SUDO_UID": "0", "SUDO_GID": "0"}) is None
    assert privilege.invoking_user({"SUDO_UID": "-1", "SUDO_GID": "1"}) is None


def instruction(opcode: int, registers: int, immediate: int) -> bytes:
    return struct.pack("<BBhi", opcode, registers, 0, immediate)


def test_the_compiler_s_reads_are_of_kernel_memory():
    """bpf_probe_read, which TC programs may not call, as bpf_probe_read_kernel; nothing else is touched."""
    others = instruction(0x85, 0, 1) + instruction(0x85, 0x10, 4) + instruction(0xB7, 0, 4)
    assert kernel_calls(instruction(0x85, 0, 4) + others) == instruction(0x85, 0, 113) + others


def test_a_marked_number_is_of_a_function_of_the_kernel():
    """BPF_PSEUDO_KFUNC_CALL in the instruction's source register, which C cannot say."""
    call, others = KFUNC_CALL | 54321, instruction(0x85, 0, 181) + instruction(0xB7, 1, KFUNC_CALL | 54321)
    assert kernel_calls(instruction(0x85, 0, call) + others) == instruction(0x85, 0x20, 54321) + others


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_service_has_what_loading_needs_and_no_more(path):
    unit = dict(re.findall(r"^([^#=\n]+)=(.*)$", path.read_text(), re.MULTILINE))
    names = {"CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"}
    assert set(unit["AmbientCapabilities"].split()) == set(unit["CapabilityBoundingSet"].split()) == names
    assert unit["DynamicUser"] == unit["NoNewPrivileges"] == "yes"
    assert unit["ProtectSystem"] == "strict"
    assert unit["IPAddressDeny"] == "any"
    assert unit["CacheDirectory"] != "nettop"  # root's own
    assert "MemoryDenyWriteExecute" not in unit

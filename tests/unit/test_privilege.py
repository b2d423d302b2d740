"""Which capabilities are enough, which are kept, which kernels want one in the screen, and what the units ask for."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from nettop import privilege
from nettop.loader.compile import kernel_calls
from nettop.loader.headers import KFUNC_CALL
from nettop.privilege import BPF, DAC_READ_SEARCH, NET_ADMIN, PERFMON, SYS_ADMIN, mask

ROOT = (1 << 41) - 1
UNITS = sorted((Path(__file__).parents[2] / "systemd").glob("*.service"))


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
    assert privilege.may_load(held) == (not missing)


def test_the_loader_keeps_three_of_root_s():
    assert privilege.loading(ROOT) == mask(NET_ADMIN, BPF, PERFMON)
    assert not privilege.loading(ROOT) & mask(SYS_ADMIN, DAC_READ_SEARCH)


def test_with_cap_sys_admin_alone_that_is_what_loads():
    assert privilege.loading(mask(NET_ADMIN, SYS_ADMIN)) == mask(NET_ADMIN, SYS_ADMIN)


def test_only_root_becomes_the_invoking_user():
    assert privilege.invoking_user({"SUDO_UID": "1000", "SUDO_GID": "1000"}) == (1000, 1000)
    assert privilege.invoking_user({"SUDO_UID": "0", "SUDO_GID": "0"}) is None
    assert privilege.invoking_user({"SUDO_UID": "-1", "SUDO_GID": "1"}) is None


def test_the_compiler_s_reads_are_of_kernel_memory():
    """bpf_probe_read, which TC programs may not call, as bpf_probe_read_kernel; nothing else is touched."""
    call = struct.pack("<BBhi", 0x85, 0, 0, 4)
    others = struct.pack("<BBhi", 0x85, 0, 0, 1) + struct.pack("<BBhi", 0x85, 0x10, 0, 4)
    others += struct.pack("<BBhi", 0xB7, 0, 0, 4)
    assert kernel_calls(call + others) == struct.pack("<BBhi", 0x85, 0, 0, 113) + others


def test_a_marked_number_is_of_a_function_of_the_kernel():
    """BPF_PSEUDO_KFUNC_CALL in the instruction's source register, which C cannot say."""
    call, helper = struct.pack("<BBhi", 0x85, 0, 0, KFUNC_CALL | 54321), struct.pack("<BBhi", 0x85, 0, 0, 181)
    number = struct.pack("<BBhi", 0xB7, 1, 0, KFUNC_CALL | 54321)
    assert kernel_calls(call + helper + number) == (
        struct.pack("<BBhi", 0x85, 0x20, 0, 54321) + helper + number
    )


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_service_has_what_loading_needs_and_no_more(path):
    lines = path.read_text().splitlines()
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    unit = dict(pairs)
    names = {"CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"}
    assert set(unit["AmbientCapabilities"].split()) == set(unit["CapabilityBoundingSet"].split()) == names
    assert unit["DynamicUser"] == unit["NoNewPrivileges"] == "yes"
    assert unit["ProtectSystem"] == "strict"
    assert unit["IPAddressDeny"] == "any"
    assert unit["CacheDirectory"] != "nettop"  # root's own
    assert "MemoryDenyWriteExecute" not in unit


def test_there_are_units():
    assert len(UNITS) == 2

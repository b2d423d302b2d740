"""Which interface is meant."""

from __future__ import annotations

import pytest

from nettop.core.errors import ExitCode, NettopError
from nettop.netdev.names import apart, choose, default_route, names

HEADER = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
ETH1 = "eth1\t00000000\t0101A8C0\t0003\t0\t0\t200\t00000000\t0\t0\t0\n"
WLAN = "wlan0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
LOCAL = "eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
DOWN = "eth2\t00000000\t0101A8C0\t0002\t0\t0\t0\t00000000\t0\t0\t0\n"
REJECT = "eth3\t00000000\t0101A8C0\t0201\t0\t0\t0\t00000000\t0\t0\t0\n"
# 0.0.0.0/1 begins like a default route, and is none.
HALF = "tun0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000080\t0\t0\t0\n"

ZERO = "0" * 32
V6_LO = f"{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo\n"
V6_ETH = (
    f"{ZERO} 00 {ZERO} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth6\n"
)


def test_the_lowest_metric_wins():
    assert default_route(HEADER + LOCAL + ETH1 + WLAN, "") == "wlan0"


@pytest.mark.parametrize("row", [LOCAL, DOWN, REJECT, HALF])
def test_what_is_no_default_route(row):
    assert default_route(HEADER + row, "") is None


def test_ipv6_where_ipv4_has_none():
    assert default_route(HEADER + LOCAL, V6_LO + V6_ETH) == "eth6"
    assert default_route(HEADER + ETH1, V6_ETH) == "eth1"
    assert default_route("", V6_LO) is None, "the unreachable default that every host has"


def test_the_loopback_is_among_the_names():
    assert "lo" in names()


EXISTING = ("lo", "eth0", "tcp")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("eth0", "")),
        (["lo"], ("lo", "")),
        (["lo", "tcp", "port", "443"], ("lo", "tcp port 443")),
        (["port", "53"], ("eth0", "port 53")),
        (["port 53"], ("eth0", "port 53")),
        (["(tcp", "or", "udp)"], ("eth0", "(tcp or udp)")),
        (["tcp"], ("tcp", "")),  # an interface of that name comes first
    ],
)
def test_words_are_an_interface_and_a_filter(words, expected):
    assert choose(words, EXISTING, "eth0") == expected


@pytest.mark.parametrize("word", ["eth7", "", " ", "10.0.0.1"])
def test_what_is_neither_is_no_such_interface_and_the_hint_names_those_there_are(word):
    with pytest.raises(NettopError, match="no such interface") as caught:
        choose([word], EXISTING, "eth0")
    assert caught.value.code == ExitCode.NO_INTERFACE
    assert "lo, eth0, tcp" in caught.value.hint


def test_no_default_route_is_exit_code_5_too():
    with pytest.raises(NettopError) as caught:
        choose([], EXISTING, None)
    assert caught.value.code == ExitCode.NO_INTERFACE
    assert "eth0" in caught.value.hint


def test_a_hostile_name_does_not_reach_the_terminal():
    with pytest.raises(NettopError) as caught:
        choose(["x\x1b[2J"], ("\x1b[31mevil",), None)
    assert "\x1b" not in caught.value.lines()


@pytest.mark.parametrize(
    ("argv", "then"),
    [
        (["--snapshot", "eth0"], ["--snapshot=", "eth0"]),
        (["--snapshot", "eth0", "tcp", "port", "443"], ["--snapshot=", "eth0", "tcp", "port", "443"]),
        (["eth0", "--snapshot", "tcp", "port", "443"], ["eth0", "--snapshot=", "tcp", "port", "443"]),
        (["eth0", "--snapshot", "(tcp or udp)"], ["eth0", "--snapshot=", "(tcp or udp)"]),
        (["eth0", "--snapshot", "x.json"], ["eth0", "--snapshot", "x.json"]),
        (["--snapshot", "x.json", "eth0"], ["--snapshot", "x.json", "eth0"]),
        (["--snapshot=eth0"], ["--snapshot=eth0"]),
        (["--snapshot", "./eth0"], ["--snapshot", "./eth0"]),
        (["eth0", "--snapshot"], ["eth0", "--snapshot"]),
        (["--snapshot"], ["--snapshot"]),
        (["eth0", "--", "--snapshot", "lo"], ["eth0", "--", "--snapshot", "lo"]),
        ([], []),
    ],
)
def test_a_snapshot_takes_no_interface_and_no_filter_for_its_file(argv, then):
    assert apart(argv, ("lo", "eth0")) == then

"""The loader's socket: what is said arrives, with its descriptors, and anything else is refused."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from collections.abc import Iterator

import pytest
from fakes import json_values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nettop.bpf import protocol
from nettop.bpf.filter import MAX_INSTRUCTIONS, compile_expression
from nettop.bpf.protocol import (
    AttachInterface,
    Done,
    Filter,
    HookInfo,
    Load,
    Loaded,
    MapInfo,
    Plan,
    ProbeInfo,
    ProtocolError,
    ResumeProbes,
    RetryProbes,
    Stats,
    receive,
    send,
)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with a, b:
        yield a, b


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def say(sock: socket.socket, data: bytes, fds: tuple[int, ...] = ()) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary)


@pytest.mark.parametrize(
    "message",
    [
        Load(Plan("eth0", ("throughput", "flows"), (("flows.flows", 4096),), 16, 32)),
        AttachInterface(),
        AttachInterface("eth1"),
        ResumeProbes(("stages", "irq")),
        RetryProbes(("flows",)),
        Stats(True),
        Done("broken", "mend it", 4, "00ff", "by the way"),
        Filter(),
        Filter(compile_expression("tcp port 443 and (len > 100 or vlan)").words),
        Filter((6, 255, 255, 0xFFFFFFFF) * MAX_INSTRUCTIONS),
        Load(Plan("eth0", ("flows",), filter=compile_expression("tcp").words)),
    ],
)
def test_messages_arrive_as_they_were_sent(pair, message):
    send(pair[0], message)
    assert receive(pair[1]) == message


def test_descriptors_arrive_open_and_mean_the_same_file(pair, tmp_path):
    path = tmp_path / "x"
    path.write_text("here")
    maps, hooks = (MapInfo("flows", 1, 40, 96, 65536, 0),), (HookInfo("tc_ingress", "clsact", (1,), (-1,)),)
    info = ProbeInfo("flows", "live", maps=maps, hooks=hooks, missing=(("tc_egress", "no such thing"),))
    with path.open() as file:
        send(pair[0], Loaded(info, (file.fileno(), file.fileno())))
        answer = receive(pair[1])
    assert answer.probe == info
    try:
        assert os.pread(answer.fds[0], 10, 0) == b"here"
        assert not os.get_inheritable(answer.fds[0])
    finally:
        for fd in answer.fds:
            os.close(fd)


def test_the_other_end_gone_is_the_end(pair):
    pair[0].close()
    with pytest.raises(EOFError):
        receive(pair[1])


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"{}",
        b"[]",
        b"[1,2,3]",
        b'["Load"]',
        b'["Nothing",{}]',
        b'["AttachInterface",{"more":1}]',
        b'["AttachInterface",[]]',
        b'["Stats",{"on":1}]',
        b'["Stats",{}]',
        b'["Done",{"code":true}]',
        b'["Load",{"plan":{"interface":"eth0"}}]',
        b'["Load",{"plan":{"interface":"eth0","probes":"flows"}}]',
        b'["Load",{"plan":{"interface":"eth0","probes":["flows"],"more":1}}]',
        b'["Load",{"plan":{"interface":"../etc","probes":[]}}]',
        b'["Load",{"plan":{"interface":"eth0","probes":["../../x"]}}]',
        b'["Load",{"plan":{"interface":"eth0","probes":[],"entries":[["x.y",0]]}}]',
        b'["Load",{"plan":{"interface":"eth0","probes":[],"entries":[["x.y","9"]]}}]',
        b'["Load",{"plan":{"interface":"eth0","probes":[],"entries":[["x.y"]]}}]',
        b'["Load",{"plan":{"interface":"eth0","probes":[],"subnet4":33}}]',
        b'["Load",{"plan":{"interface":"eth0","probes":[],"via":"clsact"}}]',
        b'["Load",{"plan":{"interface":"eth0","probes":[],"without":[]}}]',
        b'["Loaded",{"probe":{"name":"x","state":"live","maps":[{"name":"m"}]}}]',
        b'["Loaded",{"probe":{"name":"x","state":"live","maps":5}}]',
        b'["Loaded",{"probe":[]}]',
        b'["Loaded",{"probe":{"name":"x","state":"live","hooks":[[]]}}]',
        b'["Load",{"plan":{"interface":"eth0","probes":[],"entries":[["x.y",1048577]]}}]',
        b'["Filter",{"instructions":[1' + b"0" * 4000 + b",0,0,0]}]",
        b'["Filter",{"instructions":[6,0,0]}]',
        b'["Filter",{"instructions":[-6,0,0,1]}]',
        b'["Filter",{"instructions":[6]}]',
        b'["Filter",{"instructions":[6,0,0,0,6]}]',
        b'["Filter",{"instructions":[133,0,0,1]}]',
        b'["Filter",{"instructions":"tcp"}]',
        b'["Filter",{"instructions":[6.0,0,0,1]}]',
        b'["Filter",{"instructions":[true,0,0,1]}]',
        b'["Filter",{"instructions":[6,0,0,1],"text":"tcp"}]',
        b'["Load",{"plan":{"interface":"eth0","probes":[],"filter":[5,0,0,4294967294,6,0,0,1]}}]',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_message_is_refused(pair, data):
    say(pair[0], data)
    with pytest.raises(ProtocolError):
        receive(pair[1])


def test_a_descriptor_that_did_not_come_is_refused(pair):
    for number in (0, 5, -2):
        spec = {"name": "m", "kind": 1, "key_size": 4, "value_size": 4, "max_entries": 1, "fd": number}
        body = {"probe": {"name": "x", "state": "live", "maps": [spec]}}
        say(pair[0], json.dumps(["Loaded", body]).encode())
        with pytest.raises(ProtocolError):
            receive(pair[1])


def test_what_comes_with_a_refused_message_is_closed(pair):
    fd = pair[0].fileno()
    before = open_descriptors()
    for data in (b"nonsense", b'["Stats",{"on":true}]', b""):
        say(pair[0], data, (fd, fd))
        with pytest.raises((ProtocolError, EOFError)):
            receive(pair[1])
    assert open_descriptors() == before


def test_a_message_that_was_cut_is_refused(pair):
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * protocol.MAX_BYTES)
    say(pair[0], b'["Done",{"error":"' + b"x" * protocol.MAX_BYTES + b'"}]')
    with pytest.raises(ProtocolError, match="cut"):
        receive(pair[1])


def test_a_message_that_is_too_large_is_not_sent(pair):
    with pytest.raises(ProtocolError):
        send(pair[0], Done("x" * protocol.MAX_BYTES))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "0123456789abcdef", "a\nb", "a\n"])
def test_a_plan_names_an_interface(name):
    with pytest.raises(ProtocolError):
        Plan(name, ())


@pytest.mark.parametrize("name", ["eth0", "eth0.100", "br-1a2b", "veth@x", "wg0", "ö"])
def test_names_that_the_kernel_allows(name):
    assert Plan(name, ("flows",)).interface == name


def test_a_plan_names_few_probes():
    with pytest.raises(ProtocolError):
        Plan("eth0", ("flows",) * 33)


names = st.sampled_from(["Load", "Loaded", "Done", "Stats", "AttachInterface", "plan", "probe"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(names, json_values) | json_values | st.binary(min_size=1, max_size=200))
def test_nothing_else_than_a_protocol_error_ever(pair, value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    say(pair[0], data)
    with contextlib.suppress(ProtocolError):
        assert isinstance(receive(pair[1]), Done | Stats | AttachInterface | Loaded)

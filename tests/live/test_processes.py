"""The process of a flow, for each kind of socket and in each namespace."""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import Lab, packets
from lab.namespace import Endpoint
from lab.shell import Process
from lab.traffic import fresh_port, listen_iperf3
from observe import Row, Station, Watch, endpoint, observing, watching

TALKER = str(Path(__file__).with_name("socket_process.py"))
KNOWN_WITHIN_NS = 2_000_000_000


@pytest.fixture(scope="module")
def container() -> Iterator[Station]:
    """A container seen from its host: `a` is watched in the machine's own namespace, `b` is in one of ours."""
    with Lab() as lab:
        link = lab.veth(host=True)
        with watching(lab, link.a) as watch:
            yield Station(lab, link, watch)


@contextmanager
def talker(
    at: Endpoint, name: str, role: str, *, bind: str = "", port: int = 0, to: tuple[str, int] = ("", 0)
) -> Iterator[Process]:
    """Such a process inside the endpoint's namespace, with its first line said; see socket_process.py."""
    ipv6 = str(int(":" in bind + to[0]))
    process = at.ns.spawn(sys.executable, TALKER, name, role, ipv6, bind, str(port), to[0], str(to[1]))
    try:
        process.wait_lines(1)
        yield process
    finally:
        process.stop()


def port_of(process: Process) -> int:
    return int(process.lines[0])


def wait_row(watch: Watch, known: Callable[[Row], bool], *, timeout: float = 10.0) -> tuple[Row, int]:
    """The first row of a flow that has a process, and the flow's age in ns then."""
    end = time.monotonic() + timeout
    seen: list[Row] = []
    while time.monotonic() < end:
        frame = watch.nettop.more_frames(1)[-1]
        rows = [row for row in frame["flows"] if known(row)]
        seen += rows
        for row in rows:
            if row["process"]:
                return row, frame["monotonic_ns"] - row["first_ns"]
    raise AssertionError(f"no process within {timeout} s: {seen[-3:]}")


def assert_known(watch: Watch, process: Process, name: str, known: Callable[[Row], bool]) -> None:
    row, age = wait_row(watch, known)
    print(f"{row['process']} known after {age / 1e9:.2f} s")
    assert row["process"] == {"pid": process.pid, "name": name}
    assert age < KNOWN_WITHIN_NS


@pytest.mark.parametrize("ipv6", [False, True], ids=["v4", "v6"])
def test_the_client_and_the_server_of_iperf3(station: Station, ipv6: bool) -> None:
    """At the client's end the client; the same program as a server when it runs there."""
    watched, other = station.link.a, station.link.b
    for server, client in ((other, watched), (watched, other)):
        port = fresh_port()
        listener = listen_iperf3(server, port, ipv6=ipv6)
        argv = ("iperf3", "-c", server.address(ipv6), "-p", str(port), "-t", "3", "-b", "5M", "-J")
        runner = client.ns.spawn(*argv)
        try:
            local = runner if client is watched else listener
            remote = endpoint(server.address(ipv6), port) if client is watched else None
            assert_known(
                station.watch,
                local,
                "iperf3",
                lambda row, remote=remote, port=port: (  # type: ignore[misc]
                    row["remote"] == remote if remote else row["local"].endswith(f":{port}")
                ),
            )
        finally:
            runner.stop()
            listener.stop()


@pytest.mark.parametrize("ipv6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize("role", ["send", "connected-send"])
def test_a_udp_client_connected_or_not(station: Station, role: str, ipv6: bool) -> None:
    local, remote = station.link.a, station.link.b
    target = (remote.address(ipv6), fresh_port())
    with talker(local, "udp-client", role, to=target) as process:
        ends = endpoint(local.address(ipv6), port_of(process)), endpoint(*target)
        assert_known(station.watch, process, "udp-client", lambda row: (row["local"], row["remote"]) == ends)


@pytest.mark.parametrize("ipv6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize("role", ["receive", "answer"])
@pytest.mark.parametrize("bound", [False, True], ids=["any-address", "one-address"])
def test_a_udp_server_bound_or_not(station: Station, role: str, bound: bool, ipv6: bool) -> None:
    local, remote = station.link.a, station.link.b
    port = fresh_port()
    bind = local.address(ipv6) if bound else "::" if ipv6 else "0.0.0.0"
    with (
        talker(local, "udp-server", role, bind=bind, port=port) as process,
        talker(remote, "elsewhere", "send", to=(local.address(ipv6), port)),
    ):
        ours = endpoint(local.address(ipv6), port)
        assert_known(station.watch, process, "udp-server", lambda row: row["local"] == ours)


def test_a_dual_stack_server_answers_ipv4(station: Station) -> None:
    """An IPv6 socket bound to :: serves IPv4 under mapped addresses."""
    local, remote = station.link.a, station.link.b
    port = fresh_port()
    with (
        talker(local, "dual", "answer", bind="::", port=port) as process,
        talker(remote, "elsewhere", "send", to=(local.v4, port)),
    ):
        assert_known(station.watch, process, "dual", lambda row: row["local"] == endpoint(local.v4, port))


def test_another_namespaces_socket_of_the_same_port_is_somebody_else(station: Station) -> None:
    """Many containers have a socket on 0.0.0.0:53. The one that is shown is of the interface's own namespace."""
    local, remote = station.link.a, station.link.b
    stranger = station.lab.veth()
    port = fresh_port()
    with (
        talker(local, "ours", "answer", bind="0.0.0.0", port=port) as process,
        talker(stranger.a, "theirs", "answer", bind="0.0.0.0", port=port),
        talker(stranger.b, "asks-them", "send", to=(stranger.a.v4, port)),
        talker(remote, "asks-us", "send", to=(local.v4, port)),
        station.watch.observing() as seen,
    ):
        time.sleep(1)
    names = {row["process"] and row["process"]["name"] for row in seen.rows(local=endpoint(local.v4, port))}
    assert names == {"ours"}
    assert process.pid in {row["process"]["pid"] for row in seen.rows(local=endpoint(local.v4, port))}


def test_the_same_loopback_connection_elsewhere_is_somebody_else(lab: Lab) -> None:
    """127.0.0.1 with the same two ports exists in every namespace."""
    here, there = (Endpoint(lab.namespace("h"), "lo", "", "127.0.0.1", "::1") for _ in range(2))
    port, source = fresh_port(2), fresh_port()

    with observing(lab, here) as seen:
        processes = []
        for at, name in ((here, "ours"), (there, "theirs")):
            with (
                talker(at, f"{name}-server", "listen", bind="127.0.0.1", port=port),
                talker(
                    at, f"{name}-client", "connect", bind="127.0.0.1", port=source, to=("127.0.0.1", port)
                ) as client,
            ):
                processes.append(client)
                time.sleep(0.6)
    rows = seen.rows(local=endpoint("127.0.0.1", source))
    assert {row["process"]["name"] for row in rows if row["process"]} == {"ours-client"}
    assert {row["process"]["pid"] for row in rows if row["process"]} == {processes[0].pid}


# A container, from its host


def test_a_udp_process_in_a_container(container: Station) -> None:
    """The host's end is a socket that nobody reads, so the only process is the one inside."""
    host, inside = container.link.a, container.link.b
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind((host.v4, 0))
        port = sink.getsockname()[1]
        for role in ("send", "connected-send"):
            with talker(inside, f"in-{role}"[:15], role, to=(host.v4, port)) as process:
                remote = endpoint(inside.v4, port_of(process))
                name = f"in-{role}"[:15]
                assert_known(container.watch, process, name, lambda row, r=remote: row["remote"] == r)  # type: ignore[misc]


@pytest.mark.parametrize("bind", ["0.0.0.0", "its own"])
def test_a_udp_server_in_a_container(container: Station, bind: str) -> None:
    host, inside = container.link.a, container.link.b
    port = fresh_port()
    with (
        talker(
            inside, "in-server", "receive", bind=inside.v4 if bind == "its own" else bind, port=port
        ) as process,
        packets_from_nobody(host, inside, port),
    ):
        ours = endpoint(inside.v4, port)
        assert_known(container.watch, process, "in-server", lambda row: row["remote"] == ours)


@contextmanager
def packets_from_nobody(host: Endpoint, inside: Endpoint, port: int) -> Iterator[None]:
    """Datagrams to the container whose sender is no socket of this machine: crafted, from a stranger's address."""
    ends = packets.stranger(host), inside.v4
    frame = packets.datagram(host, inside, (4000, port), b"hello", ends=ends)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((host.name, 0))
        for _ in range(20):
            sender.send(frame)
            time.sleep(0.01)
        yield


def test_tcp_in_a_container_and_on_the_host(container: Station) -> None:
    """Both ends are here: the local one, the host's, is shown for its own traffic."""
    host, inside = container.link.a, container.link.b
    port = fresh_port()
    with (
        talker(host, "host-server", "listen", bind=host.v4, port=port) as server,
        talker(inside, "in-client", "connect", to=(host.v4, port)),
    ):
        ours = endpoint(host.v4, port)
        row, _ = wait_row(container.watch, lambda row: row["local"] == ours and is_named(row, "host-server"))
        assert row["process"]["pid"] == server.pid


def is_named(row: Row, name: str) -> bool:
    return bool(row["process"]) and row["process"]["name"] == name


def test_of_two_containers_the_one_behind_the_interface_is_shown(lab: Lab) -> None:
    """Client - router - server, all on this machine: at the router's own interfaces the nearer end is shown."""
    router = lab.router()
    port = fresh_port()
    with (
        watching(lab, router.client_side) as near_client,
        watching(lab, router.server_side) as near_server,
        talker(router.server, "far-server", "listen", bind=router.server.v4, port=port) as server,
        talker(router.client, "far-client", "connect", to=(router.server.v4, port)) as client,
    ):
        ends = endpoint(router.client.v4, port_of(client)), endpoint(router.server.v4, port)
        assert_known(near_client, client, "far-client", lambda row: row["remote"] == ends[0])
        assert_known(near_server, server, "far-server", lambda row: row["remote"] == ends[1])

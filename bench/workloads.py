"""Traffic that several rows measure with, over a veth pair between two namespaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import common  # noqa: F401  (the path)
from lab import Link
from lab.packets import datagram_flood
from lab.shell import Process
from lab.traffic import answering, ask, asking, churn, iperf3, listen_iperf3

Workload = Callable[[Link, float], None]


def request_response(flows: int, kind: str = "tcp") -> Workload:
    def run(link: Link, seconds: float) -> None:
        with answering(link.b) as server:
            ask(link.a, server, kind=kind, flows=flows, seconds=seconds)  # type: ignore[arg-type]

    return run


def bulk(link: Link, seconds: float) -> None:
    iperf3(client=link.a, server=link.b, seconds=seconds)


def bulk_without_gso(link: Link, seconds: float) -> None:
    for end in (link.a, link.b):
        end.ns.run("ethtool", "-K", end.name, "tso", "off", "gso", "off", "gro", "off")
    bulk(link, seconds)


def connections(link: Link, seconds: float) -> None:
    with answering(link.b, ports=4) as server:
        churn(link.a, server, int(4000 * seconds))


WORKLOADS: Mapping[str, Workload] = {
    "64 request-response flows": request_response(64),
    "1000 request-response flows": request_response(1000),
    "connect, request, close": connections,
    "bulk TCP, GSO": bulk,
    "bulk TCP, no GSO": bulk_without_gso,
    "UDP, 64-byte datagrams": request_response(16, "udp"),
}


@contextmanager
def idle(link: Link) -> Iterator[None]:
    yield


@contextmanager
def questions(link: Link, flows: int = 64, interval_s: float = 0.0, seconds: float = 120.0) -> Iterator[None]:
    with answering(link.b) as server:
        client = asking(link.a, server, flows=flows, interval_s=interval_s, seconds=seconds)
        try:
            yield
        finally:
            client.stop()


@contextmanager
def bulk_running(link: Link) -> Iterator[None]:
    port = 5199
    listener = listen_iperf3(link.b, port)
    client = link.a.ns.spawn("iperf3", "-c", link.b.v4, "-p", str(port), "-t", "120")
    try:
        yield
    finally:
        client.stop()
        listener.stop()


def flood(link: Link, flows: int, per_second: int, seconds: float) -> Process:
    """Datagrams of so many flows into `a` from a raw socket at `b` (tests/lab/flood.c)."""
    return datagram_flood(link, flows, per_second, seconds)


@contextmanager
def ten_thousand(link: Link) -> Iterator[None]:
    process = flood(link, 10_000, 20_000, 120)
    try:
        yield
    finally:
        process.stop()


LOADS = {
    "idle": idle,
    "64 request-response": questions,
    "bulk": bulk_running,
    "10 000 active flows": ten_thousand,
}

#!/usr/bin/env python3
"""Records the minute that `nettop --demo` replays: nettop/demo.ndjson.gz.

    sudo bench/demo.py [-o FILE] [--seconds N]

A host asks servers near and 20 ms away all the time, and this happens to it: a download starts; an upload fills
the queue of a slow uplink (tbf), and everybody's RTT grows with it; a process reads its socket too slowly; a path
loses packets; calm.  It is watched by nettop's own screen on a terminal that nobody sees, and a flow is entered on
the way, so that the recording has what only a flow in focus has.  Nothing of it leaves this machine.  Needs iperf3,
dnsmasq, gcc and libc6-dev.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, Terminal, nettop
from lab import Direction, Endpoint, Lab, LabError, build, dns, sweep
from lab.core import route_by
from lab.shell import eventually
from lab.traffic import fresh_port, transfer, wait_listening

NAME = "uplink0"  # of the interface, instead of the lab's own
HOST = "demo"
SECONDS = 58.0
INTERVAL = 2  # seconds: histograms of every stage, of all flows and of the one in focus, are 12 kB a frame
TOP = 10  # flows in a frame
LIMIT = 400_000  # bytes of the file
# When what happens, in seconds from the start.
DOWNLOAD = (6, 16)
QUEUE = (17, 29)
SLOW_READER = (31, 41)
LOSS = (43, 53)
ENTER_FLOW, LEAVE_FLOW = 3, 56


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "nettop" / "demo.ndjson.gz")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    given = parser.parse_args()
    sweep()
    with tempfile.TemporaryDirectory(prefix="nettop-demo-") as folder:
        recording = Path(folder) / "demo.ndjson"
        with Lab() as lab:
            record(lab, Path(folder), recording, given.seconds)
        packed = gzip.compress(recording.read_bytes(), 9, mtime=0)
    given.output.write_bytes(packed)
    given.output.chmod(0o644)
    print(f"{given.output}: {len(packed)} bytes")
    if len(packed) > LIMIT:
        print(f"that is more than {LIMIT}", file=sys.stderr)
    return int(len(packed) > LIMIT)


@dataclass(frozen=True)
class Network:
    """The watched host's end of its uplink, and servers: near, 20 ms away, and behind a path that loses packets."""

    host: Endpoint
    near: Endpoint
    far: Endpoint
    lossy: Endpoint
    folder: Path

    def named(self, name: str, program: str) -> str:
        """One of the lab's programs under a name of its own, which is what the screen shows of a process."""
        path = self.folder / name
        if not path.exists():
            shutil.copy(program, path)
        return str(path)


def network(lab: Lab, folder: Path) -> Network:
    """Build it, with the traffic that never ends."""
    watched, router = lab.namespace("a"), lab.namespace("r")
    uplink = lab.veth(a=watched, b=router)
    near = lab.veth(a=router)
    far = lab.wire(Direction(delay_ms=10), a=router)
    lossy = lab.wire(Direction(delay_ms=4, loss=0.03), a=router)
    route_by(uplink.b, uplink.a)
    for link in (near, far, lossy):
        route_by(link.a, link.b)
    rename(uplink.a, uplink.b)
    net = Network(uplink.a, near.b, far.b, lossy.b, folder)
    ask(lab, net, "web", far.b, "tcp", 4, 0.05)
    ask(lab, net, "shop", near.b, "tcp", 4, 0.05, ipv6=True)
    ask(lab, net, "cron", near.b, "churn", 1, 0.5)
    lab.spawn(watched, "ping", "-q", "-i", "0.5", lossy.b.v4)
    return net


def ask(
    lab: Lab,
    net: Network,
    name: str,
    server: Endpoint,
    kind: str,
    flows: int,
    interval_s: float,
    *,
    ipv6: bool = False,
) -> None:
    """Questions of 200 bytes and answers of 1000, for ever."""
    port = fresh_port()
    lab.spawn(server.ns, build.program("server"), str(port), "1", "200", "1000")
    wait_listening(server.ns, port)
    lab.spawn(
        net.host.ns,
        *(net.named(name, build.program("client")), kind, server.address(ipv6), str(port), "1"),
        *(str(flows), "200", "1000", str(round(interval_s * 1e9)), "0", "3600"),
    )


def events(lab: Lab, net: Network, stop: threading.Event) -> list[threading.Thread]:
    """What happens, each in a thread that waits for its time."""
    return [
        happening(stop, 0, lambda: look_up(net.host, net.near, stop)),
        happening(
            stop, DOWNLOAD[0], lambda: iperf(lab, net, "backup", net.near, DOWNLOAD, "-b", "150M", "-R")
        ),
        happening(stop, QUEUE[0], lambda: fill_queue(lab, net)),
        happening(stop, SLOW_READER[0], lambda: read_slowly(net.near, net.host)),
        happening(stop, LOSS[0], lambda: iperf(lab, net, "sync", net.lossy, LOSS, "-b", "20M")),
    ]


def record(lab: Lab, folder: Path, to: Path, seconds: float) -> None:
    """Start the screen, and let things happen."""
    net = network(lab, folder)
    stop = threading.Event()
    argv = (
        *("unshare", "--uts", "sh", "-c", f'hostname {HOST} && exec "$@"', "sh"),
        *nettop(NAME, "-d", str(INTERVAL), "--top", str(TOP), "--record", str(to)),
    )
    with Terminal(net.host.ns.argv(argv), 160, 48) as screen:
        if not eventually(
            lambda: to.exists() and to.read_bytes().count(b"\n") >= 3, timeout=90, interval=0.1
        ):
            raise LabError("nettop records no frames")
        for thread in events(lab, net, stop):
            thread.start()
        time.sleep(ENTER_FLOW)
        screen.press("\r")
        time.sleep(max(min(LEAVE_FLOW, seconds) - ENTER_FLOW, 0))
        screen.press("\x1b")
        time.sleep(max(seconds - LEAVE_FLOW, 0))
        stop.set()
        screen.press("q")
        screen.ended(10)


def rename(host: Endpoint, gateway: Endpoint) -> None:
    """Give the watched interface its name; down it goes for that, and its IPv6 address and routes with it."""
    host.ns.run("ip", "link", "set", host.name, "down")
    host.ns.run("ip", "link", "set", host.name, "name", NAME)
    host.ns.run("ip", "link", "set", NAME, "up")
    host.ns.run("ip", "address", "add", f"{host.v6}/64", "dev", NAME, "nodad")
    for via in (gateway.v4, gateway.v6):
        host.ns.run("ip", *(["-6"] if ":" in via else []), "route", "replace", "default", "via", via)


def happening(stop: threading.Event, start: float, function: Callable[[], object]) -> threading.Thread:
    """A thread that waits for its time, and never keeps the program from ending."""

    def run() -> None:
        if not stop.wait(start):
            with contextlib.suppress(OSError):
                function()

    return threading.Thread(target=run, daemon=True)


def iperf(lab: Lab, net: Network, name: str, server: Endpoint, when: tuple[int, int], *args: str) -> None:
    """One transfer."""
    port = fresh_port()
    lab.spawn(server.ns, "iperf3", "-s", "-1", "-p", str(port))
    wait_listening(server.ns, port)
    program = net.named(name, shutil.which("iperf3") or "iperf3")
    seconds = str(when[1] - when[0])
    lab.spawn(net.host.ns, program, "-c", server.v4, "-p", str(port), "-i", "0", "-t", seconds, *args)


def fill_queue(lab: Lab, net: Network) -> None:
    """A slow uplink with a long queue, and an upload that fills it: 300 kB at 16 Mb/s are 150 ms."""
    tbf = ("root", "tbf", "rate", "16mbit", "burst", "16kb", "limit", "300kb")
    net.host.ns.run("tc", "qdisc", "add", "dev", NAME, *tbf)
    iperf(lab, net, "upload", net.near, QUEUE)
    time.sleep(QUEUE[1] - QUEUE[0])
    net.host.ns.run("tc", "qdisc", "del", "dev", NAME, "root")


def read_slowly(server: Endpoint, host: Endpoint) -> None:
    with transfer(server, host, receive_buffer=65536) as connection:
        seconds = SLOW_READER[1] - SLOW_READER[0]
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("importer")
        connection.send_slowly_read(int(seconds / 0.2 * 16384 * 0.9), pause_s=0.2)


def look_up(host: Endpoint, server: Endpoint, stop: threading.Event) -> None:
    with dns.dnsmasq(server):
        while not stop.is_set():
            dns.resolve(host, server, 5, interval_s=0.4, timeout_s=1.0)


if __name__ == "__main__":
    sys.exit(main())

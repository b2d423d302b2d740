"""Reverse DNS against a real server, by a process that has no privilege left."""

import json
import pwd
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import Lab, Link, dns
from lab.namespace import Endpoint
from lab.program import REPOSITORY, interpreter
from terminal import Terminal

NOBODY = pwd.getpwnam("nobody")
NAME = "web-7.lab.test"
SCRIPT = """
import ipaddress, json, sys, time
from nettop.ui.reverse_dns import ReverseDns
names, addresses = ReverseDns(), [ipaddress.ip_address(a) for a in sys.argv[1:]]
known, evil, v6 = (a.packed if a.version == 6 else b"\\0" * 10 + b"\\xff\\xff" + a.packed for a in addresses)
first = names.of(known), names.of(evil), names.of(v6)
end = time.monotonic() + 20
while names.changed < 3 and time.monotonic() < end:
    time.sleep(0.01)
print(json.dumps([first, names.of(known), names.of(evil), names.of(v6), names.changed]))
"""


def test_a_name_comes_from_the_servers_answer(lab: Lab, veth: Link, tmp_path: Path) -> None:
    """The server knows one address; to another it gives a name that no host may have."""
    evil = "198.51.100.66"
    records = (
        f"--host-record={NAME},{veth.b.v4},{veth.b.v6}",
        "--ptr-record=66.100.51.198.in-addr.arpa,10.0.0.1",
    )
    with dns.dnsmasq(veth.b, *records):
        resolv = tmp_path / "resolv.conf"
        resolv.write_text(f"nameserver {veth.b.v4}\noptions timeout:2 attempts:2\n")
        # A mount of its own: the machine's resolver stays as it is.
        inside = f'mount --bind {resolv} /etc/resolv.conf && cd {REPOSITORY} && exec "$@"'
        unprivileged = (
            f"setpriv --reuid={NOBODY.pw_uid} --clear-groups --bounding-set=-all --no-new-privs".split()
        )
        script = (*unprivileged, interpreter(), "-c", SCRIPT, veth.b.v4, evil, veth.b.v6)
        answer = veth.a.ns.run("unshare", "--mount", "sh", "-c", inside, "sh", *script)
    assert json.loads(answer.stdout) == [["", "", ""], NAME, "", NAME, 3]


@contextmanager
def unanswered(at: Endpoint, server: Endpoint) -> Iterator[None]:
    """A server that takes queries and never answers, as this namespace's resolver (ip-netns(8) puts it in place)."""
    folder = Path("/etc/netns", str(at.ns.name))
    silent = server.ns.socket(socket.SOCK_DGRAM)
    silent.bind((server.v4, 53))
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True)
    (folder / "resolv.conf").write_text(f"nameserver {server.v4}\noptions timeout:4 attempts:2\n")
    try:
        yield
    finally:
        silent.close()
        (folder / "resolv.conf").unlink()
        for path in made:
            path.rmdir()


def test_frames_and_keys_go_on_while_dns_does_not_answer(lab: Lab, veth: Link, tmp_path: Path) -> None:
    """Python 3.11 holds its lock in socket.getnameinfo: no frame and no key for as long as the server is silent."""
    recording = tmp_path / "r.ndjson"
    asking = veth.a.ns.spawn("ping", "-q", "-i", "0.2", veth.b.v4)  # an address to be asked for
    flood = veth.a.ns.spawn("ping", "-6", "-q", "-i", "0.2", veth.b.v6)
    try:
        with (
            unanswered(veth.a, veth.b),
            Terminal(
                lab, veth.a, "-d", "0.25", "-p", "throughput,flows", "--record", str(recording)
            ) as screen,
        ):
            screen.read_until(veth.b.v4, timeout=60)
            first = len(recording.read_text().splitlines())
            screen.type(b"n")
            longest = 0.0
            for _ in range(12):
                began = time.monotonic()
                screen.type(b"?")
                screen.read_until("Help", timeout=20)
                longest = max(longest, time.monotonic() - began)
                screen.type(b"\x1b")
                time.sleep(0.5)
                screen.skip(0)
            screen.type(b"q")
            screen.wait()
    finally:
        asking.stop(signal.SIGINT)
        flood.stop(signal.SIGINT)
    frames = [json.loads(line) for line in recording.read_text().splitlines()[first:]]
    print(f"longest key {longest:.2f} s, longest frame {max(f['interval_ns'] for f in frames) / 1e9:.2f} s")
    assert len(frames) > 12
    assert longest < 2
    assert max(frame["interval_ns"] for frame in frames) < 2e9

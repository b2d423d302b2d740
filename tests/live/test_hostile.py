"""A process that calls itself something that a terminal would obey."""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path

import pytest
from lab import Lab, Link, Nettop
from lab.shell import eventually

SCRIPT = """
import ctypes, socket, sys, time
name = bytes.fromhex(sys.argv[1])
ctypes.CDLL(None).prctl(15, name, 0, 0, 0)  # PR_SET_NAME
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[2], 4242))
while True:
    sock.sendto(b"x", (sys.argv[3], 4243))
    time.sleep(0.05)
"""
NAMES = {
    b"\x1b[31m[red]\xe2\x80\xae": "\ufffd[31m[red]\ufffd",
    b"\x9b1m\xffa\nb": "\ufffd1m\ufffda\ufffdb",
    b"=cmd|'/c x'!A1": "=cmd|'/c x'!A1",
}


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_process_s_name_is_data(lab: Lab, veth: Link, name: bytes) -> None:
    with Nettop(lab, veth.a, "-d", "0.3", "-p", "flows") as nettop:
        nettop.wait_frames(1, timeout=60)
        sender = veth.a.ns.spawn(sys.executable, "-c", SCRIPT, name.hex(), veth.a.v4, veth.b.v4)
        try:
            found: set[str] = set()

            def seen() -> bool:
                for flow in nettop.frames[-1].get("flows", ()):
                    if flow["local"] == f"{veth.a.v4}:4242" and flow["process"]:
                        found.add(flow["process"]["name"])
                return bool(found)

            assert eventually(seen, timeout=20, interval=0.1)
        finally:
            sender.stop()
        outcome = nettop.stop()
    assert found == {NAMES[name]}
    assert outcome.stdout.isascii()
    assert outcome.stdout.replace("\n", "").isprintable()


def test_a_redacted_recording_names_nobody(lab: Lab, veth: Link, tmp_path: Path) -> None:
    """Addresses of both ends, the process, the host, the filter: none of them in what is written, and still a flow."""
    path = tmp_path / "x.ndjson"
    word = f"net {ipaddress.ip_network(veth.a.v4 + '/24', strict=False)}"
    with Nettop(
        *(lab, veth.a, "-d", "0.3", "-p", "flows", "--redact", "--record", str(path), *word.split())
    ) as nettop:
        nettop.wait_frames(1, timeout=60)
        name = b"secretive"
        sender = veth.a.ns.spawn(sys.executable, "-c", SCRIPT, name.hex(), veth.a.v4, veth.b.v4)
        try:
            assert eventually(lambda: any(f.get("flows") for f in nettop.frames), timeout=20, interval=0.1)
            nettop.more_frames(2)
        finally:
            sender.stop()
        outcome = nettop.stop()
    for text in (outcome.stdout, path.read_text()):
        for secret in (
            f'"{veth.a.v4}',
            f'"{veth.b.v4}',
            f" {veth.a.v4}",
            f'"{socket.gethostname()}"',
            "secretive",
        ):
            assert secret not in text, secret
    flow = next(f for f in outcome.frames[-1]["flows"] if f["local"].endswith(":4242"))
    assert flow["process"]["name"].startswith("proc-")
    assert (
        flow["local"].split(".")[0] == flow["remote"].split(".")[0] == veth.a.v4.split(".")[0]
    )  # private still
    ends = [ipaddress.ip_address(flow[end].rsplit(":", 1)[0]) for end in ("local", "remote")]
    net = ipaddress.ip_network(outcome.frames[-1]["filter"].removeprefix("net "))
    assert all(end in net for end in ends)

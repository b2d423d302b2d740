"""A process that calls itself something that a terminal would obey."""

import ipaddress
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab import Lab, Link, Nettop, run_nettop
from lab.shell import eventually

SCRIPT = """
import ctypes, socket, sys, time
name = bytes.fromhex(sys.argv[1])
ctypes.CDLL(None).prctl(15, name, 0, 0, 0)  # PR_SET_NAME
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[2], int(sys.argv[3])))
while True:
    sock.sendto(b"x", (sys.argv[4], 4243))
    time.sleep(0.05)
"""
NAMES = {
    b"\x1b[31m[red]\xe2\x80\xae": "\ufffd[31m[red]\ufffd",
    b"\x9b1m\xffa\nb": "\ufffd1m\ufffda\ufffdb",
    b"=cmd|'/c x'!A1": "=cmd|'/c x'!A1",
}


@contextmanager
def sending(link: Link, name: bytes, port: int) -> Iterator[None]:
    """A process of this name that sends datagrams from this port."""
    words = (name.hex(), link.a.v4, str(port), link.b.v4)
    sender = link.a.ns.spawn(sys.executable, "-c", SCRIPT, *words)
    try:
        yield
    finally:
        sender.stop()


def test_a_process_s_name_is_data(lab: Lab, veth: Link) -> None:
    """In every format nothing is written that a terminal would obey; in JSON the names are whole."""
    with ExitStack() as stack:
        for port, name in enumerate(NAMES, 4242):
            stack.enter_context(sending(veth, name, port))
        outcomes = {
            form: run_nettop(lab, veth.a, "-b", "--format", form, "-n", "4", "-d", "0.5", "-p", "flows")
            for form in ("ndjson", "text", "csv")
        }
    for form, outcome in outcomes.items():
        assert outcome.code == 0
        assert "[red]" in outcome.stdout
        assert outcome.stdout.isascii() or form != "ndjson"
        shown = outcome.stdout.replace("\r\n", "\n")
        assert not [c for c in shown if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160], form
    rows = {row["local"]: row["process"] for row in outcomes["ndjson"].frames[-1]["flows"]}
    shown_names = [(rows[f"{veth.a.v4}:{port}"] or {}).get("name") for port in range(4242, 4242 + len(NAMES))]
    assert shown_names == list(NAMES.values())


def test_a_redacted_recording_names_nobody(lab: Lab, veth: Link, tmp_path: Path) -> None:
    """Addresses of both ends, the process, the host, the filter: none of them in what is written, and still a flow."""
    path = tmp_path / "x.ndjson"
    word = f"net {ipaddress.ip_network(veth.a.v4 + '/24', strict=False)}"
    with Nettop(
        *(lab, veth.a, "-d", "0.3", "-p", "flows", "--redact", "--record", str(path), *word.split())
    ) as nettop:
        nettop.wait_frames(1, timeout=60)
        with sending(veth, b"secretive", 4242):
            assert eventually(lambda: any(f.get("flows") for f in nettop.frames), timeout=20, interval=0.1)
            nettop.more_frames(2)
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

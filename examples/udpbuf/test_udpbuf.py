"""Whether the probe is right: beside /proc/net/udp, in namespaces of its own.

sudo python3 test_udpbuf.py, or pytest.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NETTOP = os.environ.get("NETTOP", "nettop").split()  # the command
SENT, READ, BYTES, PORT = 53, 5, 500, 40007
# This folder where nettop looks for probes, for this test alone: a copy of /etc, which is gone with the test.
PRIVATE = """
mount -t tmpfs none "$1" && cp -a /etc "$1" && mount --bind "$1/etc" /etc && ip link set lo up &&
install -d -o root -g root -m 755 /etc/nettop /etc/nettop/probes.d /etc/nettop/probes.d/udpbuf &&
install -o root -g root -m 644 "$2"/*.* /etc/nettop/probes.d/udpbuf && shift 2 && exec "$@"
"""


def test_what_waits_and_what_found_no_room_is_what_the_kernel_says() -> None:
    with tempfile.TemporaryDirectory() as place:
        inner = [sys.executable, __file__, "inside"]
        command = ["unshare", "--mount", "--net", "sh", "-c", PRIVATE, "sh", place, str(HERE), *inner]
        subprocess.run(command, check=True, timeout=120)


def inside() -> None:
    """Fill a buffer beside nettop, read a little of it, and compare."""
    command = [*NETTOP, "lo", "-b", "-p", "udpbuf", "-d", "0.5", "--format", "ndjson"]
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reader,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as writer,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as nettop,
    ):
        assert nettop.stdout
        frame = json.loads(nettop.stdout.readline())  # it is attached
        assert frame["probes"]["udpbuf"]["state"] == "live", frame["probes"]["udpbuf"]
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
        reader.bind(("127.0.0.1", PORT))
        for _ in range(SENT):
            writer.sendto(bytes(BYTES), reader.getsockname())
        filled, dropped = waiting()
        for _ in range(READ):
            reader.recv(BYTES)
        nettop.stdout.readline()  # it may have been under way
        row = next(
            row for row in json.loads(nettop.stdout.readline())["udpbuf"]["sockets"] if row["port"] == PORT
        )
        nettop.terminate()
    assert row["peak"] == filled > 0
    assert row["drops_total"] == dropped > 0
    assert (row["pid"], row["process"]) == (os.getpid(), Path("/proc/self/comm").read_text().strip())
    assert row["size"] == 40_000  # the kernel doubles what is asked for: socket(7)


def waiting() -> tuple[int, int]:
    """Bytes that wait at the port, and datagrams that it dropped, as the kernel lists them."""
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1].endswith(f":{PORT:04X}"):
            return int(words[4].split(":")[1], 16), int(words[-1])
    raise LookupError(PORT)


if __name__ == "__main__":
    if "inside" in sys.argv:
        inside()
    else:
        test_what_waits_and_what_found_no_room_is_what_the_kernel_says()
        sys.stdout.write("right\n")

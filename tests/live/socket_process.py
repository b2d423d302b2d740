"""A process with a name of its own that sends, receives or answers UDP or TCP, as told by its arguments.

    socket_process.py NAME send|connected-send|receive|answer|connect|listen IPV6 BIND PORT TO TO_PORT

BIND "" binds to no address, PORT 0 to no port. It prints its own port, and then works until its stdin ends.
"""

import contextlib
import os
import select
import socket
import sys
from pathlib import Path

name, role, ipv6, bind, port, to, to_port = sys.argv[1:8]
Path("/proc/self/comm").write_bytes(os.fsencode(name))
family = socket.AF_INET6 if ipv6 == "1" else socket.AF_INET
kind = socket.SOCK_STREAM if role in ("connect", "listen") else socket.SOCK_DGRAM
target = (to, int(to_port or 0))
sock = socket.socket(family, kind)
if bind or int(port):
    sock.bind((bind, int(port)))
if role in ("connected-send", "connect"):
    sock.connect(target)
elif role == "listen":
    sock.listen()
elif role == "send":
    sock.sendto(b"first", target)
print(sock.getsockname()[1], flush=True)
if role == "listen":
    sock = sock.accept()[0]

while not select.select([sys.stdin], [], [], 0.05)[0]:
    with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
        if role == "send":
            sock.sendto(b"x" * 100, target)
        elif role in ("connected-send", "connect"):
            sock.send(b"x" * 100)
        else:
            data, source = sock.recvfrom(2048, socket.MSG_DONTWAIT)
            if role == "answer":
                sock.sendto(data, source)

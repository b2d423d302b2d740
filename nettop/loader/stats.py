"""Run statistics on and off, which alone of all that is asked of the loader takes CAP_SYS_ADMIN.

So a process of its own does it, which has that capability and no other, and hears one byte at a time: the loader
itself can do without.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
from contextlib import suppress

from nettop import privilege
from nettop.bpf import syscall
from nettop.core.errors import NettopError

_ON, _OFF = b"1", b"0"


class Switch:
    """Turns them on and off, by that process.  They are off when it is closed, and when either process dies."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        if not privilege.effective() >> privilege.SYS_ADMIN & 1:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gc.freeze()  # the child shares our memory for as long as neither writes to it
        if os.fork() == 0:
            status = 1
            try:
                _serve(theirs)
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        self._sock = ours

    def turn(self, on: bool) -> None:
        """Statistics on or off.  Raises NettopError without CAP_SYS_ADMIN, OSError where it is refused."""
        if self._sock is None:
            raise NettopError("what the programs cost is only told to CAP_SYS_ADMIN")
        self._sock.send(_ON if on else _OFF)
        answer = self._sock.recv(1)
        if answer != b"\0":
            number = answer[0] if answer else errno.EPIPE
            raise OSError(number, f"no run statistics: {os.strerror(number)}")

    def close(self) -> None:
        """Let the other process go."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _serve(sock: socket.socket) -> None:
    """In the child: a byte, and an errno for answer, until the other end is gone."""
    fd = sock.fileno()
    os.closerange(3, fd)
    os.closerange(fd + 1, 4096)
    privilege.confine(privilege.mask(privilege.SYS_ADMIN))
    held = -1
    while byte := sock.recv(1):
        failure = 0
        if byte == _ON and held < 0:
            try:
                held = syscall.enable_stats()
            except OSError as error:
                failure = error.errno or errno.EIO
        elif byte == _OFF and held >= 0:
            os.close(held)
            held = -1
        with suppress(BrokenPipeError):
            sock.send(bytes([failure]))

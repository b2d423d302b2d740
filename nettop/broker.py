"""Root's files for a process that runs as nobody: a small process that opens them, and hands the descriptors over.

Root expects that ``-o FILE`` is root's, in root's directory; and what parses files and draws shall not be root.  So
where there is no SUDO_UID, a process is forked before privileges are given up.  It stays uid 0, without a capability,
and opens what the command line names, and new files ``nettop-...`` in the directory where it was started; nothing else.
It never reads or writes one.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterable

from nettop import privilege
from nettop.record import files

_MAX_MESSAGE = 1 << 16
_OWN = re.compile(r"nettop-[A-Za-z0-9.-]{1,200}")  # names that nettop itself gives to new files
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


class Broker:
    """This process's end."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self._sock = sock
        self.pid = pid
        self._turn = threading.Lock()

    def __call__(self, how: files.How, path: str) -> int:
        """A descriptor of the file, opened as nettop.record.files would.  OSError as the kernel has it.

        What root may not open without a capability (in somebody's home), or is not asked to, this process may itself.
        """
        try:
            return self._asked(how, path)
        except PermissionError as refused:
            try:
                return files.open_here(how, path)
            except PermissionError:
                raise refused from None

    def _asked(self, how: files.How, path: str) -> int:
        with self._turn:
            self._sock.send(json.dumps([how, path]).encode())
            data, fds, _, _ = socket.recv_fds(self._sock, _MAX_MESSAGE, 1)
        if not data:
            raise OSError(errno.EPIPE, "the process that opens root's files is gone", path)
        if not fds:
            code, reason = json.loads(data)
            raise OSError(code, reason, path)
        os.set_inheritable(fds[0], False)
        return fds[0]


def start(named: Iterable[str]) -> Broker:
    """Fork the broker, which opens these files and nettop's own.  Before the first thread, while still root."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _settle(parent)
            serve(theirs, frozenset(named))
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            os._exit(0)
    theirs.close()
    return Broker(ours, pid)


def _settle(parent: int) -> None:
    """No capability, no trace or core of it, no signal from the terminal, and no life without the parent."""
    privilege.seclude()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):  # their readers must not wait for us
        os.dup2(null, stream)
    os.close(null)
    privilege.confine(0)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, b"nettop-files", 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # also while a pipe is being opened
    if os.getppid() != parent:
        os._exit(0)


def serve(sock: socket.socket, named: frozenset[str]) -> None:
    """Open what is asked for and may be, until the other end is gone."""
    made: set[str] = set()
    while request := sock.recv(_MAX_MESSAGE):
        try:
            how, path = json.loads(request)
            if not allowed(how, path, named, made):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            fd = files.open_here(how, path)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            code = getattr(error, "errno", None) or errno.EINVAL
            sock.send(json.dumps([code, getattr(error, "strerror", None) or os.strerror(code)]).encode())
            continue
        made.add(path)
        socket.send_fds(sock, [b"opened"], [fd])
        os.close(fd)


def allowed(how: str, path: str, named: frozenset[str], made: set[str]) -> bool:
    """Whether this may be opened so: any file that the command line names; nettop's own only as new ones."""
    if path in named:
        return how in files.WAYS
    if _OWN.fullmatch(path) is None:
        return False
    return how in ("new", "look") or (how == "again" and path in made)

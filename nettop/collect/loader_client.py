"""The loader's process: started, asked, and gone."""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from nettop import privilege
from nettop.bpf import protocol
from nettop.bpf.protocol import (
    AttachInterface,
    Done,
    Filter,
    Load,
    Loaded,
    Request,
    ResumeProbes,
    RetryProbes,
    Stats,
)
from nettop.core.errors import ExitCode, NettopError
from nettop.core.paths import PACKAGE

_log = logging.getLogger(__name__)

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
# For a whole answer.  A compiler has 300 s (loader/compile.py), and those of a start run one after another.  The other
# requests take milliseconds; what they may have to wait for is the kernel's rtnl lock, and a machine that swaps.
_SECONDS: Mapping[type[Request], float] = {
    **dict.fromkeys((Load, Filter, RetryProbes), 900.0),
    **dict.fromkeys((AttachInterface, ResumeProbes), 60.0),
    Stats: 30.0,
}
LOADER = (sys.executable, "-m", "nettop.loader")


class LoaderGoneError(NettopError):
    """The loader has ended, and how."""


class LoaderHandle:
    """The other end of the loader's socket.

    Requests block.  They and ``check`` are for one thread, or for one after another; ``close`` is for any, and ends a
    request that waits for its answer.
    """

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self._sock = sock
        self._silent = ""  # it did not answer in time
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def watch_log(self) -> None:
        """Put what the loader, clang and the verifier print into the log, for as long as it runs."""
        threading.Thread(target=self._copy_log, name="loader-log", daemon=True).start()

    def _copy_log(self) -> None:
        assert self._process.stderr
        for raw in self._process.stderr:
            _log.info("loader: %s", raw.decode(errors="replace").rstrip())

    def request(self, message: Request) -> tuple[list[Loaded], Done]:
        """One request and all of its answer.  Raises NettopError with what the loader says is wrong.

        LoaderGoneError where it has ended, or does not answer in the time that this kind of request may take.
        """
        loaded: list[Loaded] = []
        seconds = _SECONDS[type(message)]
        end = time.monotonic() + seconds
        try:
            self._sock.settimeout(seconds)
            protocol.send(self._sock, message)
            while not isinstance(answer := self._receive(end), Done):
                if not isinstance(answer, Loaded):
                    raise protocol.ProtocolError(f"{type(answer).__name__} is not an answer")
                loaded.append(answer)
        except TimeoutError as error:
            # What it still says would be taken for the answer to the next request; without us it goes.
            self._silent = f"does not answer ({type(message).__name__}, {seconds:g} s)"
            self._shut()
            raise self._gone() from error
        except (OSError, EOFError, protocol.ProtocolError) as error:
            with suppress(subprocess.TimeoutExpired):  # its end of the socket goes a moment before it does
                self._process.wait(1)
            raise self._gone(f"is gone: {error}") from error
        if answer.error:
            raise NettopError(answer.error, answer.hint, ExitCode(answer.code))
        return loaded, answer

    def _receive(self, end: float) -> protocol.Message:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return protocol.receive(self._sock)

    def check(self) -> None:
        """Raises NettopError if the loader has ended: nothing could be attached again, and nothing taken away."""
        if self._silent or self._process.poll() is not None:
            raise self._gone()

    def _gone(self, otherwise: str = "is gone") -> LoaderGoneError:
        """How it ended, or what else is known."""
        code = self._process.poll()
        how = self._silent or otherwise
        if code is not None and not self._silent:
            how = "has ended " + (f"by signal {-code}" if code < 0 else f"with exit code {code}")
        return LoaderGoneError(f"the loader {how}", "start nettop again; --log FILE keeps what it said")

    def close(self) -> None:
        """Let the loader go, and wait for it: it may have filters to take away."""
        if self._sock.fileno() < 0:
            return
        self._shut()
        self._sock.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)

    def _shut(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # also for a thread that waits for an answer


def start_loader(command: Sequence[str] = LOADER) -> LoaderHandle:
    """Start the privileged loader, then give this process's privileges up for good.

    Call it as root, before any thread is started and any file of the user's is read.  ``command`` is its command line,
    which is given the number of its socket.
    """
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(PACKAGE.parent),
        "LC_ALL": "C.UTF-8",
    }
    if os.geteuid() != 0 and "CACHE_DIRECTORY" in os.environ:  # a systemd unit's: its user's alone
        environment["CACHE_DIRECTORY"] = os.environ["CACHE_DIRECTORY"]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [*command, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            cwd="/",
        )
    privilege.drop(os.environ)
    _keep_memory_flat()
    handle = LoaderHandle(ours, process)
    handle.watch_log()
    return handle


def _keep_memory_flat() -> None:
    """Large arrays come and go with each frame: have glibc give them back, and not make holes in its heaps of them.

    Without this the screen's memory creeps up by 10 % and more in a quarter of an hour (bench/soak.py); with it a
    frame of 60 000 flows takes 5 ms of CPU more.  Before the first thread, which would have a heap of its own.
    """
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):  # another C library
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 18)
        libc.mallopt(_M_ARENA_MAX, 2)

"""The privileged process.  Compiles, attaches, hands the descriptors over, answers a few fixed requests, and goes.

Started by the screen's process with the descriptor of one end of a socket pair as its argument.  It reads nothing but
that socket, and ends when the other end is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import stat
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nettop import bpf
from nettop.control import Config
from nettop.errors import ExitCode, NettopError
from nettop.filter import Instructions, from_words
from nettop.loader import attach, interface
from nettop.loader.compile import Object, compile_probe, takes_filter
from nettop.loader.hooks import TYPES, Place
from nettop.protocol import (
    Done,
    Filter,
    Load,
    Loaded,
    Plan,
    ProbeInfo,
    ProtocolError,
    Reattach,
    Stats,
    receive,
    send,
)

_CACHE = Path("/var/cache/nettop")
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


def cache_directory() -> Path:
    """A directory that only root can write; a fresh one, lost at the end, where that cannot be had."""
    try:
        _CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = _CACHE.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022:
            return _CACHE
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="nettop-"))


class Loader:
    """The state between requests: the plan, and what is in the kernel for it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._plan: Plan | None = None
        self._probes: list[attach.Attached] = []
        self._place: Place | None = None
        self._stats = -1
        self._cache = Path()
        self._filter: Instructions = ()

    def serve(self) -> None:
        """Answer requests until the other end is gone."""
        while True:
            try:
                request = receive(self._sock)
            except EOFError:
                return
            try:
                answer = self._answer(request)
            except NettopError as error:
                answer = Done(error.message, error.hint, error.code)
            except OSError as error:
                answer = Done(f"the kernel refused: {error}", "see --log FILE", ExitCode.FAILURE)
            send(self._sock, answer)

    def close(self) -> None:
        """Take away what no descriptor takes away."""
        if self._place:
            self._place.clsact.detach()
        for probe in self._probes:
            probe.close()

    def _answer(self, request: object) -> Done:
        if isinstance(request, Load) and self._plan is None:
            return self._load(request.plan)
        if isinstance(request, Reattach) and self._plan is not None:
            return self._reattach()
        if isinstance(request, Filter) and self._plan is not None:
            return self._exchange_filter(request.instructions)
        if isinstance(request, Stats):
            return self._switch_stats(request.on)
        raise ProtocolError(f"{type(request).__name__} is not a request here")

    def _load(self, plan: Plan) -> Done:
        config = interface.describe(plan)
        self._plan = plan
        self._place = Place(plan.interface, config.ifindex)
        self._cache = cache_directory()
        self._filter = from_words(plan.filter)
        for name in plan.probes:
            probe = attach.Attached(name, Object((), {}))
            try:
                probe.object = compile_probe(name, self._cache, instructions=self._filter)
                attach.make_maps(probe, plan)
                attach.attach(probe, self._place, plan)
                # Until now the programs found no interface and did nothing: a half-attached probe that sees one
                # direction before the other would take its first answers for late ones.
                attach.write_config(probe, config)
                answer = attach.report(probe)
            except NettopError as error:
                if error.code == ExitCode.UNSUPPORTED:
                    raise
                print(f"{name}: {error.message}\n{error.hint}", file=sys.stderr, flush=True)
                probe.close()
                send(
                    self._sock,
                    Loaded(ProbeInfo(name, "failed", error.message, error.hint.split("\n")[0][:200])),
                )
                continue
            self._probes.append(probe)
            send(self._sock, answer)
            attach.handed_over(probe)
        TYPES.close()
        return Done(config=config.pack().hex())

    def _reattach(self) -> Done:
        assert self._plan and self._place
        config = interface.describe(self._plan)
        self._place.clsact.detach()
        self._place.ifindex = config.ifindex
        for probe in self._probes:
            attach.write_config(probe, Config())
            attach.attach(probe, self._place, self._plan, bound_only=True)
            attach.write_config(probe, config)
            send(self._sock, attach.report(probe, bound_only=True))
            attach.handed_over(probe)
        return Done(config=config.pack().hex())

    def _exchange_filter(self, words: tuple[int, ...]) -> Done:
        """All programs or none: everything is compiled and loaded before the first is put in."""
        assert self._place
        instructions = from_words(words)
        made: list[attach.Exchange] = []
        try:
            probes = [probe for probe in self._probes if takes_filter(probe.name)]
            with ThreadPoolExecutor() as pool:  # each waits for a compiler of its own
                fresh = pool.map(lambda p: self._compiled(p.name, instructions), probes)
                made.extend(attach.prepare(probe, new) for probe, new in zip(probes, fresh, strict=True))
        except BaseException:
            for ready in made:
                ready.close()
            raise
        self._filter = instructions
        for ready in made:
            send(self._sock, attach.exchange(ready, self._place))
        return Done()

    def _compiled(self, name: str, instructions: Instructions) -> Object:
        return compile_probe(name, self._cache, instructions=instructions, background=True)

    def _switch_stats(self, on: bool) -> Done:
        if on and self._stats < 0:
            self._stats = bpf.enable_stats()
        elif not on and self._stats >= 0:
            os.close(self._stats)
            self._stats = -1
        return Done()


def harden() -> None:
    """No core dump, no ptrace, no privileges from a set-uid program, no signals from the terminal."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Kernels before 5.11 account maps against this limit; where raising it is refused, making a map says so.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.umask(0o077)
    # The screen decides when to stop; it closes the socket then.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)


def main() -> int:
    """Entry point of ``python -m nettop.loader``."""
    harden()
    try:
        sock = socket.socket(fileno=int(sys.argv[1]))
    except (OSError, ValueError, IndexError):
        print("nettop: the loader is started by nettop itself\nhint: sudo nettop eth0", file=sys.stderr)
        return ExitCode.USAGE
    loader = Loader(sock)
    try:
        loader.serve()
    except (ProtocolError, OSError) as error:
        print(f"loader: {error}", file=sys.stderr)
        return ExitCode.FAILURE
    finally:
        loader.close()
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())

"""The privileged process.  Compiles, attaches, hands the descriptors over, answers a few fixed requests, and goes.

Started by the screen's process with the descriptor of one end of a socket pair as its argument.  It reads nothing but
that socket, and ends when the other end is gone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nettop import privilege
from nettop.control import GENERATIONS, Config
from nettop.errors import ExitCode, NettopError
from nettop.filter import Instructions, from_words
from nettop.loader import allowed, attach, interface
from nettop.loader.compile import TRACING, TYPED_ONLY, Object, compile_probe, takes_filter
from nettop.loader.hooks import TYPES, Place
from nettop.loader.stats import Switch
from nettop.paths import PACKAGE, bpf_include
from nettop.protocol import (
    Again,
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
_MEMORY = Path("/run/nettop/cache")  # where /var is read-only: kept until the machine is started again
_TEMPORARY = ("/tmp", "/dev/shm", "/run")  # for one of a run's own
_LEAST_ROOM = 1 << 20  # bytes: headers and a few programs
_OLDER = ("raw_tracepoint", "fentry", "kprobe")  # mechanisms whose programs are not compiled at first


def cache_directory() -> tuple[Path, bool]:
    """A directory that only we can write, and whether it is a fresh one, to be taken away at the end.

    What lies in it is loaded into the kernel.  So never one in the home of a user whose other programs do not have
    our capabilities.
    """
    given = os.environ.get("CACHE_DIRECTORY", "")  # systemd's; see start_loader
    first = Path(given).resolve() if given.startswith("/") else _CACHE
    for path in (first, _MEMORY):
        if _usable(path):
            return path, False
    for folder in _TEMPORARY:
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix="nettop-cache-", dir=folder)), True
    raise NettopError(
        f"no place for compiled programs: neither {first} nor {', '.join(_TEMPORARY)} can be written",
        f"make room, or mount a tmpfs at {first}",
    )


def _usable(path: Path) -> bool:
    """Whether it is ours alone, or can be made so, and takes files: /var may be read-only, or full."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            return False
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(_LEAST_ROOM))
    except OSError:
        return False
    return True


class Loader:
    """The state between requests: the plan, and what is in the kernel for it."""

    def __init__(self, sock: socket.socket, switch: Switch) -> None:
        self._sock = sock
        self._switch = switch
        self._plan: Plan | None = None
        self._probes: list[attach.Attached] = []
        self._place: Place | None = None
        self._cache, self._scratch = Path(), False
        self._filter: Instructions = ()
        self._generation = 0
        self._epoch = 0  # counted up whenever packets may have passed unseen

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
        self._switch.close()
        if self._scratch:
            shutil.rmtree(self._cache, ignore_errors=True)

    def _answer(self, request: object) -> Done:
        if isinstance(request, Load) and self._plan is None:
            return self._load(request.plan)
        if isinstance(request, Reattach) and self._plan is not None:
            return self._reattach(request.interface)
        if isinstance(request, Filter) and self._plan is not None:
            return self._exchange_filter(request.instructions)
        if isinstance(request, Again) and self._plan is not None:
            return self._attach_again(request.probes)
        if isinstance(request, Stats):
            return self._switch_stats(request.on)
        raise ProtocolError(f"{type(request).__name__} is not a request here")

    def _load(self, plan: Plan) -> Done:
        allowed.check()
        config = interface.describe(plan)
        self._plan = plan
        self._place = Place(plan.interface, config.ifindex)
        note = self._sweep()
        self._cache, self._scratch = cache_directory()
        self._filter = from_words(plan.filter)
        always = TRACING if plan.trace else ()
        for name in plan.probes:
            probe = attach.Attached(name, Object((), {}))
            with self._failing(probe):
                probe.defines = always if plan.via in _OLDER else (*TYPED_ONLY, *always)
                probe.object = self._compiled(probe, self._filter)
                attach.make_maps(probe, plan)
                self._probes.append(probe)
        attach.load_first_choices(self._probes, plan)
        for probe in list(self._probes):
            with self._failing(probe):
                attach.attach(probe, self._place, plan)
                if probe.defines != always and attach.lacks_programs(probe, plan):
                    probe.defines = always
                    probe.object = self._compiled(probe, self._filter)
                    attach.attach(probe, self._place, plan, missing_only=True)
                config = replace(config, flags=config.flags | attach.flags(probe))
                config = config.filtered(self._generation, bool(self._filter))
                # Until now the programs found no interface and did nothing: a half-attached probe that sees one
                # direction before the other would take its first answers for late ones.
                attach.write_config(probe, config)
                send(self._sock, attach.report(probe))
                attach.handed_over(probe)
        TYPES.close()
        return Done(config=config.pack().hex(), note=note)

    @contextlib.contextmanager
    def _failing(self, probe: attach.Attached) -> Iterator[None]:
        """What cannot be had of one probe is said, and costs the others nothing."""
        try:
            yield
        except NettopError as error:
            if error.code == ExitCode.UNSUPPORTED:
                raise
            print(f"{probe.name}: {error.message}\n{error.hint}", file=sys.stderr, flush=True)
            probe.close()
            if probe in self._probes:
                self._probes.remove(probe)
            hint = error.hint.split("\n")[0][:200]
            send(self._sock, Loaded(ProbeInfo(probe.name, "failed", error.message, hint)))

    def _sweep(self) -> str:
        """Take away what a killed loader has left on the interface; what the user is told of it."""
        assert self._place
        try:
            count = self._place.clsact.sweep(self._place.ifindex)
        except Exception as error:  # pyroute2's own, and whatever its parsing may raise: we can run beside it
            print(f"looking for filters that were left behind: {error}", file=sys.stderr, flush=True)
            return ""
        name = self._place.interface
        return f"took {count} filters away that a killed nettop had left on {name}" if count else ""

    def _reattach(self, name: str) -> Done:
        assert self._plan and self._place
        plan = replace(self._plan, interface=name or self._plan.interface)
        self._epoch += 1
        config = replace(interface.describe(plan), epoch=self._epoch)
        self._plan, self._place.interface = plan, plan.interface
        for probe in self._probes:
            config = replace(config, flags=config.flags | attach.flags(probe))
        config = config.filtered(self._generation, bool(self._filter))
        self._place.clsact.release(config.ifindex)
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
        from concurrent.futures import ThreadPoolExecutor  # a megabyte that most runs never need

        assert self._place
        instructions = from_words(words)
        generation = (self._generation + 1) % GENERATIONS
        made: list[attach.Exchange] = []
        try:
            probes = [probe for probe in self._probes if takes_filter(probe.name)]
            with ThreadPoolExecutor() as pool:  # each waits for a compiler of its own
                fresh = pool.map(lambda p: self._compiled(p, instructions, generation, True), probes)
                for probe, new in zip(probes, fresh, strict=True):
                    made.append(attach.prepare(probe, new, self._place))
        except BaseException:
            for ready in made:
                ready.close()
            raise
        finally:
            TYPES.close()
        self._filter, self._generation = instructions, generation
        self._epoch += 1
        for ready in made:
            send(self._sock, attach.exchange(ready, self._place))
            attach.handed_over(ready.probe)
        return Done(generation=generation, epoch=self._epoch)

    def _attach_again(self, names: tuple[str, ...]) -> Done:
        assert self._place
        for probe in self._probes:
            if probe.name in names:
                attach.again(probe, self._place)
                send(self._sock, attach.report(probe, bound_only=True))
                attach.handed_over(probe)
        return Done()

    def _compiled(
        self, probe: attach.Attached, wanted: Instructions, generation: int = 0, background: bool = False
    ) -> Object:
        return compile_probe(probe.name, self._cache, probe.defines, wanted, background, generation)

    def _switch_stats(self, on: bool) -> Done:
        self._switch.turn(on)
        return Done()


def harden() -> None:
    """No core dump, no ptrace, no signals from the terminal."""
    privilege.seclude()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)


def confine() -> None:
    """Keep the capabilities that loading and attaching needs; a compiler that is started has CAP_BPF alone.

    (BCC makes a program's maps while it compiles.)  Where our own files lie in a directory that is closed to others,
    a user's home say, both also keep CAP_DAC_READ_SEARCH.
    """
    held = privilege.effective()
    keep = privilege.loading(held)
    inherited = keep & privilege.mask(privilege.BPF)
    if not privilege.readable_without_override(_ours()):
        reading = held & privilege.mask(privilege.DAC_READ_SEARCH)
        keep, inherited = keep | reading, inherited | reading
    privilege.confine(keep, inherited)


def _ours() -> Iterator[Path]:
    """Files that are read later: sources, the compiler's program, the interpreter, what clsact needs."""
    yield from (bpf_include() / "parse.h", PACKAGE / "loader" / "compile.py", Path(sys.executable))
    for name in ("bcc", "pyroute2"):
        with contextlib.suppress(ImportError, ValueError):
            found = importlib.util.find_spec(name)
            if found and found.origin:
                yield Path(found.origin)


def main() -> int:
    """Entry point of ``python -m nettop.loader``."""
    harden()
    try:
        sock = socket.socket(fileno=int(sys.argv[1]))
    except (OSError, ValueError, IndexError):
        print("nettop: the loader is started by nettop itself\nhint: sudo nettop eth0", file=sys.stderr)
        return ExitCode.USAGE
    try:
        switch = Switch()  # before we have lost what it needs
        confine()
    except NettopError as error:
        print(error.lines(), file=sys.stderr)
        return error.code
    loader = Loader(sock, switch)
    try:
        loader.serve()
    except (BrokenPipeError, ConnectionResetError):  # the screen went before it heard our answer
        pass
    except (ProtocolError, OSError) as error:
        print(f"loader: {error}", file=sys.stderr)
        return ExitCode.FAILURE
    finally:
        loader.close()
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())

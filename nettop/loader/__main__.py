"""The privileged process: compiles, attaches, passes descriptors, answers a few fixed requests.

Started by the screen's process with the descriptor of one end of a socket pair as its argument.  It reads nothing but
that socket, and ends when the other end closes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nettop import privilege
from nettop.bpf import own
from nettop.bpf.config import GENERATIONS, Config
from nettop.bpf.filter import Instructions, from_words
from nettop.bpf.protocol import (
    AttachInterface,
    Done,
    Filter,
    Load,
    Loaded,
    Plan,
    ProbeInfo,
    ProtocolError,
    Request,
    ResumeProbes,
    RetryProbes,
    Stats,
    receive,
    send,
)
from nettop.core.errors import ExitCode, NettopError
from nettop.core.paths import PACKAGE, bpf_include
from nettop.loader import allowed, attach
from nettop.loader.cache import cache_directory
from nettop.loader.compile import TRACING, TYPED_ONLY, Object, compile_probe, takes_filter
from nettop.loader.mechanisms import TYPES, Target
from nettop.loader.own import permitted
from nettop.loader.rate import Limits
from nettop.loader.stats import Switch
from nettop.netdev import link


class Loader:
    """The state between requests: the plan, and what is in the kernel for it."""

    def __init__(self, sock: socket.socket, switch: Switch) -> None:
        self._sock = sock
        self._switch = switch
        self._limits = Limits()
        self._plan: Plan | None = None
        self._probes: list[attach.Attached] = []
        self._target = Target("", 0)
        self._cache, self._scratch = Path(), False
        self._filter: Instructions = ()
        self._generation = 0
        self._epoch = 0  # counted up whenever packets may have passed unseen

    def serve(self) -> None:
        """Answer requests until the other end closes."""
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
        """Remove what closing descriptors does not."""
        self._target.clsact.detach()
        for probe in self._probes:
            probe.close()
        self._switch.close()
        if self._scratch:
            shutil.rmtree(self._cache, ignore_errors=True)

    def _answer(self, request: object) -> Done:
        if not isinstance(request, Request):
            raise ProtocolError(f"{type(request).__name__} is not a request")
        if isinstance(request, Load) == (self._plan is not None) and not isinstance(request, Stats):
            raise ProtocolError(f"{type(request).__name__} is not a request here")
        self._limits.admit(request)
        match request:
            case Load():
                return self._load(request.plan)
            case AttachInterface():
                return self._attach_interface(request.interface)
            case Filter():
                return self._exchange_filter(request.instructions)
            case ResumeProbes():
                return self._resume(request.probes)
            case RetryProbes():
                return self._retry(request.probes)
            case Stats():
                self._switch.turn(request.on)
                return Done()

    def _load(self, plan: Plan) -> Done:
        allowed.check()
        self._filter = from_words(plan.filter)
        config = self._configuration(plan)
        self._plan = plan
        self._target.interface, self._target.ifindex = plan.interface, config.ifindex
        note = self._sweep()
        self._cache, self._scratch = cache_directory()
        return Done(config=self._start(plan, plan.probes, config).to_json(), note=note)

    def _retry(self, names: tuple[str, ...]) -> Done:
        assert self._plan
        names = tuple(name for name in self._plan.probes if name in names)
        for probe in [probe for probe in self._probes if probe.name in names]:
            self._discard(probe)
        config = self._configuration(self._plan)
        self._target.ifindex = config.ifindex
        return Done(config=self._start(self._plan, names, config, background=True).to_json())

    def _configuration(self, plan: Plan) -> Config:
        """What the programs are told of the plan's interface, and of what the kernel lacks of the probes that run."""
        config = attach.flagged(replace(link.describe(plan), epoch=self._epoch), *self._probes)
        return config.filtered(self._generation, bool(self._filter))

    def _start(self, plan: Plan, names: tuple[str, ...], config: Config, background: bool = False) -> Config:
        """Compile, load and attach probes, and hand each over; the configuration, with what their programs lack."""
        always = TRACING if plan.trace else ()
        fresh: list[attach.Attached] = []
        for name in names:
            probe = attach.Attached(name, Object((), {}), defines=(*TYPED_ONLY, *always))
            with self._failing(probe):
                probe.object = self._compiled(probe, self._filter, self._generation, background)
                attach.make_maps(probe, plan)
                fresh.append(probe)
        attach.load_first_choices(fresh)
        for probe in fresh:
            with self._failing(probe):
                attach.attach(probe, self._target)
                if attach.lacks_programs(probe):
                    probe.defines = always
                    probe.object = self._compiled(probe, self._filter, self._generation, background)
                    attach.attach(probe, self._target, missing_only=True)
                attach.check(probe)
                config = attach.flagged(config, probe)
                # Until now the programs found no interface and did nothing: a half-attached probe that sees one
                # direction before the other would take its first answers for late ones.
                attach.write_config(probe, config)
                self._probes.append(probe)
                self._hand_over(probe, attach.report(probe))
        TYPES.close()
        return config

    def _hand_over(self, probe: attach.Attached, answer: Loaded) -> None:
        send(self._sock, answer)
        attach.handed_over(probe)

    @contextlib.contextmanager
    def _failing(self, probe: attach.Attached) -> Iterator[None]:
        """The failure of one probe is reported, and costs the others nothing."""
        try:
            yield
        except (NettopError, OSError) as error:
            error = error if isinstance(error, NettopError) else NettopError(str(error))
            if error.code == ExitCode.UNSUPPORTED:
                raise
            print(f"{probe.name}: {error.message}\n{error.hint}", file=sys.stderr, flush=True)
            self._discard(probe)
            hint = error.hint.split("\n")[0][:200]
            send(self._sock, Loaded(ProbeInfo(probe.name, "failed", error.message, hint)))

    def _discard(self, probe: attach.Attached) -> None:
        """Close what there is of a probe.  Its links, where they were handed over, are the screen's to close."""
        self._target.clsact.remove(probe.object.programs)
        probe.close()
        if probe in self._probes:
            self._probes.remove(probe)

    def _sweep(self) -> str:
        """Remove what a killed loader has left on the interface; what the user is told of it."""
        try:
            count = self._target.clsact.sweep(self._target.ifindex)
        except OSError as error:  # we can run beside it
            print(f"looking for filters that were left behind: {error}", file=sys.stderr, flush=True)
            return ""
        name = self._target.interface
        return f"took {count} filters away that a killed nettop had left on {name}" if count else ""

    def _attach_interface(self, name: str) -> Done:
        assert self._plan
        plan = replace(self._plan, interface=name or self._plan.interface)
        self._epoch += 1
        config = self._configuration(plan)
        self._plan, self._target.interface = plan, plan.interface
        self._target.clsact.release(config.ifindex)
        self._target.ifindex = config.ifindex
        for probe in self._probes:
            attach.write_config(probe, Config())
            attach.attach(probe, self._target, bound_only=True)
            attach.write_config(probe, config)
            self._hand_over(probe, attach.report(probe, bound_only=True))
        return Done(config=config.to_json())

    def _exchange_filter(self, words: tuple[int, ...]) -> Done:
        """All programs or none: everything is compiled and loaded before the first is put in."""
        from concurrent.futures import ThreadPoolExecutor  # a megabyte that most runs never need

        instructions = from_words(words)
        generation = (self._generation + 1) % GENERATIONS
        probes = [probe for probe in self._probes if takes_filter(probe.name)]
        made: list[tuple[attach.Attached, attach.Attached]] = []
        with contextlib.closing(TYPES), contextlib.ExitStack() as undo:
            with ThreadPoolExecutor() as pool:  # each waits for a compiler of its own
                objects = pool.map(lambda p: self._compiled(p, instructions, generation, True), probes)
                for probe, new in zip(probes, objects, strict=True):
                    fresh = attach.prepare(probe, new, self._target)
                    undo.callback(fresh.close_programs)
                    made.append((probe, fresh))
            undo.pop_all()
        self._filter, self._generation = instructions, generation
        self._epoch += 1
        for probe, fresh in made:
            self._hand_over(probe, attach.exchange(probe, fresh, self._target))
        return Done(generation=generation, epoch=self._epoch)

    def _resume(self, names: tuple[str, ...]) -> Done:
        for probe in self._probes:
            if probe.name in names:
                attach.resume(probe, self._target)
                self._hand_over(probe, attach.report(probe, bound_only=True))
        return Done()

    def _compiled(
        self, probe: attach.Attached, wanted: Instructions, generation: int, background: bool
    ) -> Object:
        users = own.is_own(probe.name)
        if users:
            own.check(probe.name)
        made = compile_probe(probe.name, self._cache, probe.defines, wanted, background, generation)
        return permitted(probe.name, made) if users else made


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
    """Files that are read later: sources, the compiler's program, the interpreter, BCC."""
    yield from (bpf_include() / "parse.h", PACKAGE / "loader" / "compile.py", Path(sys.executable))
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec("bcc")
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

"""Frames from the running kernel: the loader is started, privileges are given up, descriptors come, workers run."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from nettop import bpf, privilege, protocol
from nettop import filter as filters
from nettop.control import Config
from nettop.engine import Engine, Pace, Worker
from nettop.errors import ExitCode, NettopError
from nettop.kernel import programs, system
from nettop.kernel.maps import open_reader, possible_cpus
from nettop.loader.interface import link_header
from nettop.model import Frame, Health, HookStatus, ProbeStatus
from nettop.paths import PACKAGE
from nettop.probes.base import Probe, Setup, all_probes
from nettop.protocol import Done, Filter, HookInfo, Load, Loaded, Plan, ProbeInfo, Reattach, Stats
from nettop.settings import Control, Settings

_log = logging.getLogger(__name__)
_FIRST_SECONDS = 0.2  # until the screen's first frame: who opens it wants to see something
_STATS_SECONDS = 0.1  # of each second: statistics cost every run about 20 ns


class LoaderHandle:
    """The other end of the loader's socket.  Requests block, so they are made in a thread; one at a time."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self._sock = sock
        self._process = process
        self._turn = threading.Lock()

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

    def request(self, message: Load | Reattach | Filter | Stats) -> tuple[list[Loaded], Done]:
        """One request and all of its answer.  Raises NettopError with what the loader says is wrong."""
        loaded: list[Loaded] = []
        with self._turn:
            try:
                protocol.send(self._sock, message)
                while True:
                    answer = protocol.receive(self._sock)
                    if isinstance(answer, Done):
                        break
                    if not isinstance(answer, Loaded):
                        raise protocol.ProtocolError(f"{type(answer).__name__} is not an answer")
                    loaded.append(answer)
            except (OSError, EOFError, protocol.ProtocolError) as error:
                raise NettopError(
                    f"the loader is gone: {error}", "start nettop again; --log FILE keeps what it said"
                ) from error
        if answer.error:
            raise NettopError(answer.error, answer.hint, ExitCode(answer.code))
        return loaded, answer

    def check(self) -> None:
        """Raises NettopError if the loader has ended: nothing could be attached again, and nothing taken away."""
        code = self._process.poll()
        if code is not None:
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            raise NettopError(
                f"the loader has ended {how}", "start nettop again; --log FILE keeps what it said"
            )

    def close(self) -> None:
        """Let the loader go, and wait for it: it may have filters to take away."""
        if self._sock.fileno() < 0:
            return
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # also for a thread that waits for an answer
        self._sock.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)


def start_loader() -> LoaderHandle:
    """Start the privileged loader, then give this process's privileges up for good.

    Call it as root, before any thread is started and any file of the user's is read.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "nettop.loader", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "PYTHONPATH": str(PACKAGE.parent),
                "LC_ALL": "C.UTF-8",
            },
            start_new_session=True,
            cwd="/",
        )
    privilege.drop(os.environ)
    handle = LoaderHandle(ours, process)
    handle.watch_log()
    return handle


@dataclass
class _Hooked:
    """A hook as it is attached, with its descriptors here."""

    probe: str
    info: HookInfo
    programs: tuple[int, ...]
    links: tuple[int, ...]


class LiveMeter:
    """The programs' run statistics, by duty cycle, and the cost of both processes."""

    def __init__(self, handle: LoaderHandle) -> None:
        self._handle = handle
        self.hooked: list[_Hooked] = []
        self._cost: programs.Cost | None = None
        self._pids = (os.getpid(), handle.pid)
        self._cpu_ns = self._cpu()
        self._can = True
        self._retired: list[int] = []

    async def measure(self) -> None:
        """Statistics on for a tenth of a second; the rates found stand for the whole second."""
        self._close_retired()
        fds = tuple(sorted({fd for hook in self.hooked for fd in hook.programs}))
        if not fds or not self._can:
            return
        try:
            await asyncio.to_thread(self._handle.request, Stats(True))
            start, before = time.monotonic_ns(), programs.sample(fds)
            await asyncio.sleep(_STATS_SECONDS)
            window, after = time.monotonic_ns() - start, programs.sample(fds)
            await asyncio.to_thread(self._handle.request, Stats(False))
        except (NettopError, OSError) as error:
            _log.warning("no run statistics: %s", error)
            self._can, self._cost = False, None
            return
        self._cost = programs.cost(before, after, window)

    def exchanged(self, probe: str, info: HookInfo, fds: tuple[int, ...]) -> None:
        """Other programs run at a hook now: the same links have been given them."""
        hook = next(h for h in self.hooked if (h.probe, h.info.hook) == (probe, info.hook))
        self.retire(hook.programs)
        hook.programs = fds

    def retire(self, fds: tuple[int, ...]) -> None:
        """Programs that run no more; closed when no sample of them is being taken."""
        self._retired += fds

    def _close_retired(self) -> None:
        """Between two samples: nobody else looks at them."""
        used = {fd for hook in self.hooked for fd in hook.programs}
        retired, self._retired = set(self._retired) - used, []
        for fd in retired:
            os.close(fd)

    def hooks(self, probe: str, interval_ns: int) -> tuple[HookStatus, ...]:
        result: list[HookStatus] = []
        for hook in (h for h in self.hooked if h.probe == probe):
            # no figures, or only those of programs that a change of the filter has ended
            if self._cost is None or not self._cost.runs.keys() & set(hook.programs):
                result.append(HookStatus(hook.info.hook, hook.info.via))
                continue
            runs, ns = (
                int(sum(rates.get(fd, 0.0) for fd in hook.programs) * interval_ns)
                for rates in (self._cost.runs, self._cost.ns)
            )
            result.append(HookStatus(hook.info.hook, hook.info.via, runs, ns))
        return tuple(result)

    def health(self, interval_ns: int) -> Health:
        now = self._cpu()
        used, self._cpu_ns = max(now - self._cpu_ns, 0), now
        kernel = None if self._cost is None else int(sum(self._cost.ns.values()) * interval_ns)
        return Health(kernel_ns=kernel, user_ns=used, rss_bytes=sum(map(system.resident_bytes, self._pids)))

    def _cpu(self) -> int:
        return sum(map(system.cpu_ns, self._pids))


class Live:
    """What is attached, and whether its interface is still there."""

    def __init__(self, handle: LoaderHandle, settings: Settings, control: Control) -> None:
        self._handle = handle
        self._settings = settings
        self._control = control
        self._config = Config()
        self.infos: dict[str, ProbeInfo] = {}
        self._config_maps: list[int] = []
        self._gone = ""
        self._note = ""
        self._filter = ""  # what is applied
        self._filter_note = ""
        self._link_type = filters.EN10MB
        self.meter = LiveMeter(handle)
        self.workers: list[Worker] = []

    def load(self) -> None:
        """Have everything compiled and attached, and open what came.  Blocks; NettopError where nothing can work."""
        settings, probes = self._settings, all_probes()
        wanted = settings.probes or tuple(probes)
        v4, v6 = settings.subnets
        via = os.environ.get("NETTOP_VIA", "")
        words = self._compiled(settings.filter)
        plan = Plan(settings.interface, wanted, settings.max_flows, v4, v6, via, words)
        loaded, done = self._handle.request(Load(plan))
        self._config = Config.unpack(bytes.fromhex(done.config))
        self._filter = settings.filter
        for answer in loaded:
            self._open(probes[answer.probe.name], answer)

    def _open(self, probe: Probe, answer: Loaded) -> None:
        info, fds = answer.probe, answer.fds
        self.infos[info.name] = info
        status = ProbeStatus(info.state, info.detail + (f" ({info.hint})" if info.hint else ""))  # type: ignore[arg-type]
        setup = Setup(
            interface=self._settings.interface,
            cpus=possible_cpus(),
            max_flows=self._settings.max_flows,
            subnets=self._settings.subnets,
            hooks={h.hook: h.via for h in info.hooks},
            start_ns=time.monotonic_ns(),
            peer_is_local=system.peer_is_local(self._settings.interface),
            netns=self._config.netns,
        )
        readers = {}
        layouts = {m.name: m for m in probe.maps}
        try:
            for made in info.maps:
                if made.name == "config":
                    self._config_maps.append(fds[made.fd])
                elif made.name in layouts and layouts[made.name].read != "none":
                    readers[made.name] = open_reader(fds[made.fd], made, layouts[made.name])
        except (ValueError, OSError) as error:
            status = ProbeStatus("failed", str(error))
        readings = {
            name: partial(system.READINGS[name], self._settings.interface)
            for name in probe.system
            if name in system.READINGS
        }
        self.workers.append(Worker(probe, probe.fold(setup), readers, readings, status))
        self._hook(info, fds)

    def _hook(self, info: ProbeInfo, fds: tuple[int, ...]) -> None:
        for hook in info.hooks:
            links = tuple(fds[n] for n in hook.links if n >= 0)
            made = _Hooked(info.name, hook, tuple(fds[n] for n in hook.programs), links)
            for old in [h for h in self.meter.hooked if (h.probe, h.info.hook) == (info.name, hook.hook)]:
                for fd in old.links:
                    os.close(fd)
                self.meter.retire(old.programs)
                self.meter.hooked.remove(old)
            self.meter.hooked.append(made)

    def _compiled(self, text: str) -> tuple[int, ...]:
        """A filter as the loader takes it.  FilterError, and NettopError where the interface is not there."""
        if not text:
            return ()
        with suppress(OSError):  # gone for now, or never there: then the loader says so
            self._link_type = filters.link_type(link_header(self._settings.interface))
        return filters.compile_expression(text, self._link_type).words

    def _change_filter(self, text: str) -> None:
        """Have the programs exchanged for such as count what ``text`` says.  Blocks; on an error the old ones stay."""
        loaded, _ = self._handle.request(Filter(self._compiled(text)))
        for answer in loaded:
            for hook in answer.probe.hooks:
                self._exchange(answer.probe.name, hook, tuple(answer.fds[n] for n in hook.programs))
        self._filter = text

    def _exchange(self, probe: str, hook: HookInfo, fds: tuple[int, ...]) -> None:
        """Give the links of one hook their new programs: each packet meets the one or the other."""
        links = next(h.links for h in self.meter.hooked if (h.probe, h.info.hook) == (probe, hook.hook))
        for link, fd in zip(links, fds, strict=False):  # no links: clsact, which the loader has done
            try:
                bpf.link_update(link, fd)
            except OSError as error:
                if (
                    error.errno != errno.ENOLINK
                ):  # its interface has gone; attaching again brings the new filter
                    raise NettopError(
                        f"the filter of {hook.hook} cannot be changed: {error.strerror}"
                    ) from error
        self.meter.exchanged(probe, hook, fds)

    def _follow_filter(self) -> None:
        """Apply what the user has changed.  Blocks."""
        wanted = self._control.filter
        if wanted == self._filter:
            return
        try:
            self._change_filter(wanted)
            self._filter_note = ""
        except NettopError as error:
            shown = wanted if len(wanted) <= 60 else wanted[:59] + "…"
            self._filter_note = f"the filter {shown!r} is not applied: {error.message}"
            _log.warning("%s (%s)", self._filter_note, error.hint)
            if self._control.filter == wanted:
                self._control.filter = self._filter

    def _look_for_interface(self) -> None:
        """Notice an interface that went, and have everything attached again when it is back.  Blocks."""
        name = self._settings.interface
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            self._gone = f"{name} is gone; waiting for it to come back"
            return
        if index == self._config.ifindex and not self._gone:
            return
        try:
            loaded, done = self._handle.request(Reattach())
        except NettopError as error:
            self._gone = f"{name} is back but cannot be watched: {error.message}"
            return
        self._config = Config.unpack(bytes.fromhex(done.config))
        for answer in loaded:
            self._hook(answer.probe, answer.fds)
        self._gone = ""
        if self._filter and filters.link_type(self._config.l2_len) != self._link_type:
            try:  # the same name, but another kind of device: its frames are laid out differently
                self._change_filter(self._filter)
            except NettopError as error:
                self._filter_note = f"the filter {self._filter!r} does not fit {name}: {error.message}"
        self._note = f"{name} came back at {time.strftime('%H:%M:%S')} and is watched again"
        _log.info(self._note)

    async def watch(self) -> None:
        """Look after the interface, and pass on what the user changes, until cancelled."""
        focus = 0
        while True:
            await asyncio.sleep(0.5)
            self._handle.check()
            await asyncio.to_thread(self._look_for_interface)
            await asyncio.to_thread(self._follow_filter)
            if self._control.focus != focus:
                focus = self._control.focus
                self._configure(self._config.focused(focus, 0))

    def _configure(self, config: Config) -> None:
        """Tell the programs something new."""
        self._config = config
        for fd in self._config_maps:
            bpf.map_update(fd, bytes(4), config.pack())

    def describe(self) -> Frame:
        """A frame with everything but what the workers measure."""
        off = {
            name: ProbeStatus("off", "not asked for: --probes")
            for name in all_probes()
            if name not in self.infos
        }
        return Frame(
            time_ns=0,
            interval_ns=0,
            host=socket.gethostname(),
            interface=self._settings.interface,
            filter=self._filter,
            probes=off,
            notes=tuple(n for n in (self._gone or self._note, self._filter_note) if n),
        )


async def frames(handle: LoaderHandle, settings: Settings, control: Control) -> AsyncIterator[Frame]:
    """Frames of the running kernel, one an interval, for ever.  Closing the iterator detaches everything."""
    live = Live(handle, settings, control)
    await asyncio.to_thread(live.load)
    engine = Engine(
        live.workers,
        Pace(lambda: control.delay, None if settings.batch else _FIRST_SECONDS),
        live.meter,
        live.describe,
    )
    watcher = asyncio.create_task(live.watch())
    stream = engine.frames()
    try:
        async for frame in stream:
            if watcher.done():
                watcher.result()  # a failure there is one of ours
            yield frame
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        await stream.aclose()  # type: ignore[attr-defined]
        handle.close()


def check(handle: LoaderHandle, settings: Settings) -> Iterable[tuple[str, str, str, bool]]:
    """What this kernel offers: (probe, hook, mechanism or reason, whether it holds)."""
    live = Live(handle, replace(settings, filter=""), Control())
    live.load()
    for info in live.infos.values():
        if info.state == "failed":
            yield info.name, "-", info.detail, False
        yield from ((info.name, hook.hook, hook.via, True) for hook in info.hooks)
        yield from ((info.name, hook, reason, False) for hook, reason in info.missing)

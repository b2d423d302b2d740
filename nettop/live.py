"""Frames from the running kernel: the loader is started, privileges are given up, descriptors come, workers run."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from nettop import bpf, netlink, privilege, protocol
from nettop import filter as filters
from nettop.bpf import possible_cpus
from nettop.budget import Budget, ladder, words
from nettop.control import NOBODY, Config, Flag
from nettop.engine import Engine, Notes, Pace, Worker
from nettop.errors import ExitCode, NettopError
from nettop.kernel import interrupts, programs, system
from nettop.kernel.maps import open_reader
from nettop.loader.interface import counting, link_header, trouble
from nettop.model import Focus, Frame, Health, HookStatus, ProbeStatus
from nettop.paths import PACKAGE
from nettop.probes.base import Probe, Setup, all_probes
from nettop.protocol import Again, Done, Filter, HookInfo, Load, Loaded, Plan, ProbeInfo, Reattach, Stats
from nettop.settings import Control, Settings

_log = logging.getLogger(__name__)
_FIRST_SECONDS = 0.2  # until the screen's first frame: who opens it wants to see something
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_BOUND = ("tcx", "clsact")  # mechanisms that are bound to the interface
_JUDGED_BYTES = 100_000  # of the interface's own counting, before what we have seen of them is looked at
_JUDGED_PACKETS = 200  # the same
_JUDGED_SHARE = 0.05  # of them: from here on it is told
_JUDGED_FRAMES = 24  # that are looked at together
_TRACED = 2000  # packets a second: some ten events each
_NO_PACKET = 64  # bytes: the kernel wants a frame to run a TC program on
_LOOK_SECONDS = 0.5  # how often the interface, the loader and what the user wants are looked at
_RESTING = ("stages", "irq")  # probes that may be attached for only some of the seconds
_UNDER_WAY_SECONDS = 0.02  # until a packet that is followed has come to its end, as most have
_QUICK_SECONDS, _ANSWER_SECONDS = 30.0, 900.0  # for an answer: a switch; compilers on a slow or busy machine
_STATS_SECONDS = 0.1  # of each second: statistics cost every run about 20 ns


class LoaderGoneError(NettopError):
    """The loader has ended, and how."""


class LoaderHandle:
    """The other end of the loader's socket.  Requests block, so they are made in a thread; one at a time."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self._sock = sock
        self._silent = ""  # it did not answer in time
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

    def request(self, message: Load | Reattach | Filter | Again | Stats) -> tuple[list[Loaded], Done]:
        """One request and all of its answer.  Raises NettopError with what the loader says is wrong."""
        loaded: list[Loaded] = []
        with self._turn:
            try:
                self._sock.settimeout(_QUICK_SECONDS if isinstance(message, Stats) else _ANSWER_SECONDS)
                protocol.send(self._sock, message)
                while True:
                    answer = protocol.receive(self._sock)
                    if isinstance(answer, Done):
                        break
                    if not isinstance(answer, Loaded):
                        raise protocol.ProtocolError(f"{type(answer).__name__} is not an answer")
                    loaded.append(answer)
            except TimeoutError as error:
                # What it still says would be taken for the answer to the next request; without us it goes.
                self._silent = f"does not answer ({type(message).__name__}, {self._sock.gettimeout():g} s)"
                self._shut()
                raise self._gone() from error
            except (OSError, EOFError, protocol.ProtocolError) as error:
                with suppress(
                    subprocess.TimeoutExpired
                ):  # its end of the socket goes a moment before it does
                    self._process.wait(1)
                raise self._gone(f"is gone: {error}") from error
        if answer.error:
            raise NettopError(answer.error, answer.hint, ExitCode(answer.code))
        return loaded, answer

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


def start_loader() -> LoaderHandle:
    """Start the privileged loader, then give this process's privileges up for good.

    Call it as root, before any thread is started and any file of the user's is read.
    """
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(PACKAGE.parent),
        "LC_ALL": "C.UTF-8",
    }
    if (
        os.geteuid() != 0 and "CACHE_DIRECTORY" in os.environ
    ):  # a systemd unit's: its user's, and nobody else's
        environment["CACHE_DIRECTORY"] = os.environ["CACHE_DIRECTORY"]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "nettop.loader", str(theirs.fileno())],
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
        # Never changed in place: one thread puts another in while others go through this one.
        self.hooked: tuple[_Hooked, ...] = ()
        self._cost: programs.Cost | None = None
        self._pids = (os.getpid(), handle.pid)
        self._cpu_ns = self._cpu()
        self._can = True
        self._retired: list[int] = []
        self._retiring = threading.Lock()
        self._missed: dict[int, int] = {}  # recursion_misses so far, by program id
        self.share: dict[str, float] = {}  # of the time in which a probe is attached, where that is not all
        self.switches = 0  # how often one has been attached or detached, and odd while it is not

    async def measure(self) -> None:
        """Statistics on for a tenth of a second; the rates found stand for the whole second."""
        self._close_retired()
        fds = tuple(sorted({fd for hook in self.hooked for fd in hook.programs}))
        if not fds or not self._can:
            return
        try:
            await asyncio.to_thread(self._handle.request, Stats(True))
            start, before, switches = time.monotonic_ns(), programs.sample(fds), self.switches
            await asyncio.sleep(_STATS_SECONDS)
            window, after = time.monotonic_ns() - start, programs.sample(fds)
            await asyncio.to_thread(self._handle.request, Stats(False))
        except (NettopError, OSError) as error:
            level = logging.INFO if isinstance(error, LoaderGoneError) else logging.WARNING
            _log.log(level, "no run statistics: %s", error)
            self._can, self._cost = False, None
            return
        found = programs.cost(before, after, window)
        if self._cost and self.share and (switches != self.switches or switches & 1):
            # Not attached for all of it: what was found when they were stands, for the share of time that they are.
            resting = {fd for hook in self.hooked if hook.probe in self.share for fd in hook.programs}
            found = programs.kept(found, self._cost, resting)
        self._cost = found

    def exchanged(self, probe: str, info: HookInfo, fds: tuple[int, ...]) -> None:
        """Other programs run at a hook now: the same links have been given them."""
        hook = next(h for h in self.hooked if (h.probe, h.info.hook) == (probe, info.hook))
        before, hook.programs = hook.programs, fds
        self.retire(before)

    def retire(self, fds: tuple[int, ...]) -> None:
        """Programs that run no more; closed when no sample of them is being taken."""
        with self._retiring:
            self._retired += fds

    def _close_retired(self) -> None:
        """Between two samples: nobody else looks at them."""
        with self._retiring:
            used = {fd for hook in self.hooked for fd in hook.programs}
            retired, self._retired = set(self._retired) - used, []
        for fd in retired:
            os.close(fd)

    def hooks(self, probe: str, interval_ns: int) -> tuple[HookStatus, ...]:
        result: list[HookStatus] = []
        for hook in (h for h in self.hooked if h.probe == probe):
            missed = self._recursion_misses(hook)
            # no figures, or only those of programs that a change of the filter has ended
            if self._cost is None or not self._cost.runs.keys() & set(hook.programs):
                result.append(HookStatus(hook.info.hook, hook.info.via, recursion_misses=missed))
                continue
            attached_ns = interval_ns * self.share.get(probe, 1.0)
            runs, ns = (
                int(sum(rates.get(fd, 0.0) for fd in set(hook.programs)) * attached_ns)
                for rates in (self._cost.runs, self._cost.ns)
            )
            result.append(HookStatus(hook.info.hook, hook.info.via, runs, ns, missed))
        return tuple(result)

    def _recursion_misses(self, hook: _Hooked) -> int | None:
        """Since it was asked for last; None where the kernel does not say."""
        missed = 0
        with self._retiring:  # none is closed meanwhile
            for fd in hook.programs:
                try:
                    info = bpf.program_info(fd)
                except OSError:
                    return None
                missed += info.recursion_misses - self._missed.get(info.id, 0)
                self._missed[info.id] = info.recursion_misses
        return missed

    def health(self, interval_ns: int) -> Health:
        now = self._cpu()
        used, self._cpu_ns = max(now - self._cpu_ns, 0), now
        kernel = None if self._cost is None else int(self._kernel(self._cost) * interval_ns)
        return Health(kernel_ns=kernel, user_ns=used, rss_bytes=sum(map(system.resident_bytes, self._pids)))

    def _kernel(self, cost: programs.Cost) -> float:
        """ns of programs in each ns."""
        shares = {fd: self.share.get(hook.probe, 1.0) for hook in self.hooked for fd in hook.programs}
        return sum(rate * shares.get(fd, 1.0) for fd, rate in cost.ns.items())

    def _cpu(self) -> int:
        return sum(map(system.cpu_ns, self._pids))


@dataclass
class Compared:
    """What passed in one direction of late, in bytes or packets: by the interface, and by us.

    Its counters are read after our maps, and before the next frame's maps are.  So what it has more than we have is
    right to a frame's traffic, and as good as right in the frame that is read quickest.
    """

    def __init__(self, enough: int) -> None:
        self._enough = enough  # of the interface's own counting, before anything is told
        # Counted and seen, since the start.
        self._sums: deque[tuple[int, int]] = deque([(0, 0)], _JUDGED_FRAMES)

    def add(self, counted: int, seen: int) -> float:
        """A frame's; by which share of the interface's we have more, below 0 less: 0 where that cannot be told."""
        sums = self._sums
        sums.append((sums[-1][0] + counted, sums[-1][1] + seen))
        whole = sums[-1][0] - sums[0][0]
        if whole < self._enough:
            return 0.0
        ahead = [ours - theirs for theirs, ours in sums]
        largest = max(after[0] - before[0] for before, after in pairwise(sums))
        grown = ahead[-1] - ahead[0]
        if abs(grown) - largest > _JUDGED_SHARE * whole:
            return grown / whole
        if len(sums) < _JUDGED_FRAMES:
            return 0.0
        # The first quarter of them beside the last, each by the frame that leans most the other way.
        part = _JUDGED_FRAMES // 4
        first, last = range(part), range(_JUDGED_FRAMES - part, _JUDGED_FRAMES)
        before, after = max(first, key=ahead.__getitem__), min(last, key=ahead.__getitem__)
        more = ahead[after] - ahead[before]
        if more <= 0:
            before, after = min(first, key=ahead.__getitem__), max(last, key=ahead.__getitem__)
            more = min(ahead[after] - ahead[before], 0)
        return more / max(sums[after][0] - sums[before][0], 1)


class Live:
    """What is attached, and whether its interface is still there."""

    def __init__(self, handle: LoaderHandle, settings: Settings, control: Control) -> None:
        self._handle = handle
        self._settings = settings
        self._control = control
        self._config = Config()
        self._sampling = 0
        self._resting = False  # detached, to come back in some seconds
        self._looks = 0
        self._focus: Focus | None = None  # what the programs were told
        self._focus_changed = asyncio.Event()
        self.infos: dict[str, ProbeInfo] = {}
        self._config_maps: list[int] = []
        self._name = settings.interface  # as it is called now
        self._bound: frozenset[tuple[str, str]] = frozenset()  # (probe, hook) that the interface must have
        self._gone = ""
        self._trouble = ""
        self._settled = 0.0  # since when everything counts as it does now
        self._totals: dict[tuple[str, str], int] = {}  # by way and unit, the interface's own
        self._hidden = ""  # what is said of packets that the interface counts and we do not see
        self._judged = _unjudged()
        self._waits = 0  # bytes in the queue
        self.notes = Notes(lambda: control.delay)
        self._filter = ""  # what is applied
        self._filter_note = ""
        self._link_type = filters.EN10MB
        self.meter = LiveMeter(handle)
        self.budget = Budget(settings.budget / 100)
        self.workers: list[Worker] = []

    def load(self) -> None:
        """Have everything compiled and attached, and open what came.  Blocks; NettopError where nothing can work."""
        settings, probes = self._settings, all_probes()
        wanted = settings.probes or tuple(probes)
        v4, v6 = settings.subnets
        via = os.environ.get("NETTOP_VIA", "")
        without = tuple(os.environ.get("NETTOP_WITHOUT", "").replace(",", " ").split())
        words = self._compiled(settings.filter)
        trace = bool(self._control.trace)
        try:
            plan = Plan(
                settings.interface,
                wanted,
                settings.max_flows,
                v4,
                v6,
                via,
                words,
                without,
                trace,
                interrupts.room(),
            )
        except protocol.ProtocolError as error:  # a name that the kernel allows and nobody gives
            raise NettopError(
                str(error), "ip link set NAME name NEW gives it another one", ExitCode.USAGE
            ) from None
        loaded, done = self._handle.request(Load(plan))
        self._config = Config.unpack(bytes.fromhex(done.config))
        self._filter = settings.filter
        for answer in loaded:
            self._open(probes[answer.probe.name], answer)
        if trace:
            self._configure(self._config.tracing(_TRACED, self._control.trace == "all"))
        live = {w.probe.name for w in self.workers if w.status.state == "live"}
        steps = ladder("stages" in live, "flows" in live, "irq" in live)
        self.budget = Budget(settings.budget / 100, steps)
        self._bound = frozenset((h.probe, h.info.hook) for h in self._hooked_here())
        if done.note:
            self.notes.add(done.note)

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
                if made.name in layouts and layouts[made.name].read != "none":
                    readers[made.name] = open_reader(fds[made.fd], made, layouts[made.name])
        except (ValueError, OSError) as error:
            status = ProbeStatus("failed", str(error))
        readings = {name: partial(self._reading, name) for name in probe.system if name in system.READINGS}
        maps = {made.name: fds[made.fd] for made in info.maps}
        targets = {hook.name: hook.candidates[0].attachments[0].target for hook in probe.hooks}
        runs = {
            hook.hook: partial(_run_with, maps[targets[hook.hook]], fds[hook.links[0]])
            for hook in info.hooks
            if hook.via == "prog_run"
        }
        scan_ns = round(self._settings.scan_interval * 1e9)
        self.workers.append(
            Worker(probe, partial(probe.fold, setup), readers, readings, status, scan_ns, runs)
        )
        self._hook(info, fds)

    def _reading(self, name: str) -> object:
        return system.READINGS[name](self._name)

    def _hook(self, info: ProbeInfo, fds: tuple[int, ...]) -> None:
        for hook in info.hooks:
            links = tuple(fds[n] for n in hook.links if n >= 0)
            made = _Hooked(info.name, hook, tuple(fds[n] for n in hook.programs), links)
            before = self.meter.hooked
            replaced = [h for h in before if (h.probe, h.info.hook) == (info.name, hook.hook)]
            self.meter.hooked = (*(h for h in before if h not in replaced), made)
            for old in replaced:
                for fd in old.links:
                    os.close(fd)
                self.meter.retire(old.programs)

    def _compiled(self, text: str) -> tuple[int, ...]:
        """A filter as the loader takes it.  FilterError, and NettopError where the interface is not there."""
        if not text:
            return ()
        with suppress(OSError):  # gone for now, or never there: then the loader says so
            self._link_type = filters.link_type(link_header(self._name))
        return filters.compile_expression(text, self._link_type).words

    def _change_filter(self, text: str) -> None:
        """Have the programs exchanged for such as count what ``text`` says.  Blocks; on an error the old ones stay."""
        loaded, done = self._handle.request(Filter(self._compiled(text)))
        for answer in loaded:
            for hook in answer.probe.hooks:
                if not hook.links:
                    self._exchange(answer.probe.name, hook, tuple(answer.fds[n] for n in hook.programs))
        # What cannot be given other programs has been attached twice: this decides which of the two counts.
        self._configure(replace(self._config.filtered(done.generation, bool(text)), epoch=done.epoch))
        for answer in loaded:
            beside = tuple(hook for hook in answer.probe.hooks if hook.links)
            self._hook(replace(answer.probe, hooks=beside), answer.fds)
        if self._resting:  # what came now was attached
            self._detach()
        self._filter = text
        self._settled = time.monotonic()

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
        """Notice an interface that went, is called otherwise, or has lost what is attached, and mend that.  Blocks."""
        if not self._gone:
            name = _name_of(self._config.ifindex)
            if name and self._holds():
                if name != self._name:
                    self.notes.add(f"{self._name} is called {name} since {_now()}")
                    self._name = name
                self._follow_device()
                return
        try:
            index = socket.if_nametoindex(self._name)
        except OSError:
            if not self._gone:  # it may live on in another namespace: that is nobody's business here
                self._let_go()
            self._gone = f"{self._name} is gone; waiting for it to come back"
            return
        if index == self._config.ifindex:
            note = f"somebody took nettop's programs off {self._name}; attached again at {_now()}"
        else:
            note = f"{self._name} came back at {_now()} and is watched again"
        self._let_go()
        self._attach_again(note)

    def _hooked_here(self) -> list[_Hooked]:
        return [h for h in self.meter.hooked if h.info.via in _BOUND]

    def _holds(self) -> bool:
        """Whether everything that was attached to the interface is there still."""
        here = self._hooked_here()
        index = self._config.ifindex
        try:
            if any(bpf.link_interface(fd) != index for h in here for fd in h.links):
                return False
            by_filter = [fd for h in here if h.info.via == "clsact" for fd in h.programs]
            if not by_filter:
                return True
            there = {f.program for parent in netlink.PARENTS.values() for f in netlink.filters(index, parent)}
            return {bpf.program_info(fd).id for fd in by_filter} <= there
        except OSError as error:  # not known is not lost
            _log.debug("whether the programs are attached: %s", error)
            return True

    def _let_go(self) -> None:
        """The programs do nothing from here on, and what was attached to the interface is detached."""
        self._configure(replace(self._config, ifindex=0))
        for hook in self._hooked_here():
            for fd in hook.links:
                os.close(fd)
            hook.links = ()

    def _attach_again(self, note: str) -> None:
        """To the interface that is called so now; the note is for the user when that is done."""
        name = self._name
        try:
            loaded, done = self._handle.request(Reattach(name))
        except NettopError as error:
            self._gone = f"{name} is there but cannot be watched: {error.message}"
            return
        for answer in loaded:
            self._hook(answer.probe, answer.fds)
        if self._bound - {(a.probe.name, h.hook) for a in loaded for h in a.probe.hooks}:
            why = "; ".join(f"{hook}: {reason}" for a in loaded for hook, reason in a.probe.missing)
            self._gone = f"{name} is there but cannot be watched: {why}"
            return
        made = Config.unpack(bytes.fromhex(done.config))
        self._configure(
            replace(
                self._config,  # with the flow in focus and other things that the loader does not know
                ifindex=made.ifindex,
                netns=made.netns,
                l2_len=made.l2_len,
                count_in=made.count_in,
                count_out=made.count_out,
                cut_above=made.cut_above,
                epoch=made.epoch,
                flags=(self._config.flags & ~Flag.OF_DEVICE) | (made.flags & Flag.OF_DEVICE),
            )
        )
        self._gone = ""
        if self._filter and filters.link_type(self._config.l2_len) != self._link_type:
            try:  # the same name, but another kind of device: its frames are laid out differently
                self._change_filter(self._filter)
            except NettopError as error:
                self._filter_note = f"the filter {self._filter!r} does not fit {name}: {error.message}"
        self._hidden = ""
        self.notes.add(note)

    def _left_behind(self, error: NettopError) -> NettopError:
        """What to say when the loader has ended: clsact's filters stay, but their programs do nothing any more."""
        if not any(h.info.via == "clsact" for h in self._hooked_here()):
            return error
        self._let_go()
        return NettopError(
            f"{error.message}; its filters are still on {self._name}",
            "start nettop on it again: that takes them away; --log FILE keeps what the loader said",
            error.code,
        )

    def _follow_device(self) -> None:
        """Its state; and how it counts, which changes with a bond's port and with its queue."""
        with suppress(OSError):
            why = trouble(self._name)
            self._trouble = f"{self._name} is {why}" if why else ""
            now = counting(self._name)
            if now != (self._config.count_in, self._config.count_out, self._config.cut_above):
                received, sent, above = now
                self._configure(replace(self._config, count_in=received, count_out=sent, cut_above=above))

    def look_for_hidden(self, frame: Frame) -> None:
        """Notice what the interface counts and the programs do not see, or count otherwise, and say why that may be."""
        section = frame.sections.get("throughput")
        before, self._totals = self._totals, {}
        for way, what in self._judged:
            total = getattr(getattr(section, way, None), f"{what}_total", None)
            if total is not None:
                self._totals[way, what] = total
        # What waits in the queue has been counted by us, and will be by the interface.
        waited, self._waits = self._waits, getattr(section, "backlog_bytes", None) or 0
        if self._filter or self._gone or time.monotonic() - self._settled < 1.5 * frame.seconds:
            self._judged = _unjudged()
            return
        self._hidden = ""
        for (way, what), now in self._totals.items():
            if (way, what) in before:
                seen = getattr(getattr(section, way), what) - (self._waits - waited if way == "tx" else 0)
                share = self._judged[way, what].add(now - before[way, what], seen)
                # We have more of what is sent where the queue drops, which comes behind us.
                if not self._hidden and (share < -_JUDGED_SHARE or (share > _JUDGED_SHARE and way == "rx")):
                    self._hidden = getattr(section, "differs", None) or _apart(way, what, share)

    async def watch(self) -> None:
        """Look after the interface, and pass on what the user changes, until cancelled."""
        while True:
            await self._wait()
            try:
                self._handle.check()
            except NettopError as error:
                raise self._left_behind(error) from None
            await asyncio.to_thread(
                self._look_after
            )  # one change of thread: each costs as much as all it does
            self._follow_focus()

    async def _wait(self) -> None:
        """Until it is time for the next look; a focus that comes meanwhile does not wait for it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _LOOK_SECONDS
        while (left := end - loop.time()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._focus_changed.wait(), left)
                self._focus_changed.clear()
                self._follow_focus()

    def look_at_focus(self) -> None:
        """Have ``watch`` follow at once where the user has chosen another flow."""
        if self._control.focus != self._focus:
            self._focus_changed.set()

    def _follow_focus(self) -> None:
        """Never beside ``_look_after``, which writes the same configuration in a thread of its own."""
        if self._control.focus != self._focus:
            self._focus = self._control.focus
            self._configure(self._config.focused(self._focus))

    def _look_after(self) -> None:
        """Everything that may take its time.  Blocks."""
        self._look_for_interface()
        self._follow_filter()
        self._follow_budget()
        self._follow_rest()

    def account(self, frame: Frame) -> Frame:
        """The frame with its budget, and with what was left out in it; what it cost decides on what is from now on."""
        shed, health = self.budget.shed, frame.health
        if not self.budget.limit:
            return frame
        interval, kernel = max(frame.interval_ns, 1), health.kernel_ns or 0
        self.budget.update(kernel / interval, health.user_ns / interval, frame.seconds)
        if self.budget.shed != shed:
            now = ", ".join(words(self.budget.shed)) or "nothing"
            cost = (kernel + health.user_ns) / interval * 100
            _log.info("watching costs %.1f %% of a core; shed: %s", cost, now)
        limit = round(self.budget.limit * frame.interval_ns)
        return replace(frame, health=replace(health, budget_ns=limit, shed=shed))

    def _follow_budget(self) -> None:
        """Tell the programs how much to leave out, where that has changed."""
        shed = self.budget.shed
        stages = NOBODY if self._resting else max(self._sampling, shed.stages_one_in.bit_length() - 1)
        shifts = stages, shed.rtt_one_in.bit_length() - 1
        if shifts != (self._config.sample_shift, self._config.rtt_shift):
            self._configure(replace(self._config, sample_shift=shifts[0], rtt_shift=shifts[1]))

    def _follow_rest(self) -> None:
        """Attach what may rest, or detach it, where its time has come.  Blocks."""
        one_in = self.budget.shed.seconds_one_in
        self.meter.share = dict.fromkeys(_RESTING, 1 / one_in) if one_in > 1 else {}
        second = round(1 / _LOOK_SECONDS)
        rest = self._looks % (one_in * second) >= second
        self._looks += 1
        if rest and not self._resting:
            self._resting = True
            self._follow_budget()  # no packet is followed that could not be followed to its end
            time.sleep(_UNDER_WAY_SECONDS)
            self._detach()
            self.meter.switches += 1
        elif self._resting and not rest:
            self._come_back()

    def _detach(self) -> None:
        for hook in self.meter.hooked:
            if hook.probe in _RESTING:
                for fd in hook.links:
                    os.close(fd)
                hook.links = ()

    def _come_back(self) -> None:
        try:
            loaded, _ = self._handle.request(Again(_RESTING))
        except NettopError as error:
            _log.warning("stages and irq are not attached again: %s", error)
            return
        for answer in loaded:
            links = {hook.hook: tuple(answer.fds[n] for n in hook.links) for hook in answer.probe.hooks}
            for hook in (h for h in self.meter.hooked if h.probe == answer.probe.name):
                hook.links = links.get(hook.info.hook, ())
            for fd in set(answer.fds) - {fd for fds in links.values() for fd in fds}:
                os.close(fd)  # another descriptor of a program that is known
        self._resting = False
        self.meter.switches += 1
        self._follow_budget()

    def set_sampling(self, shift: int) -> None:
        """Follow at most one packet in 2**shift through its stages; the budget may make it fewer."""
        self._sampling = shift
        self._follow_budget()

    def _configure(self, config: Config) -> None:
        """Tell the programs something new."""
        self._config = config
        self._settled = time.monotonic()
        for fd in self._config_maps:
            bpf.map_update(fd, bytes(4), config.pack())

    def describe(self) -> Frame:
        """A frame with everything but what the workers measure."""
        off = {
            name: ProbeStatus("off", "not asked for: --probes")
            for name in all_probes()
            if name not in self.infos
        }
        states = (self._gone,) if self._gone else (self._trouble, self._hidden)
        return Frame(
            time_ns=0,
            interval_ns=0,
            host=socket.gethostname(),
            interface=self._name,
            filter=self._filter,
            probes=off,
            notes=tuple(n for n in (*states, *self.notes.current(), self._filter_note) if n),
        )


def _unjudged() -> dict[tuple[str, str], Compared]:
    """By way and unit.  Packets that wait in the queue are not known as the interface will count them."""
    return {
        ("rx", "bytes"): Compared(_JUDGED_BYTES),
        ("rx", "packets"): Compared(_JUDGED_PACKETS),
        ("tx", "bytes"): Compared(_JUDGED_BYTES),
    }


def _apart(way: str, what: str, share: float) -> str:
    """What to say where the interface counts more, or less, than comes to TC, where all programs of ours are."""
    word = "received" if way == "rx" else "sent"
    if share > 0:
        return f"{round(100 * share)} % more {what} {word} than the interface counts: how it counts is not known here"
    text = f"{round(-100 * share)} % of the {what} {word} are not seen"
    if what == "packets":  # and hardly any bytes
        return f"{text}, or are merged or cut up where that cannot be followed"
    if way == "rx":
        return f"{text}: XDP, AF_XDP, or a TC program before nettop takes them"
    return f"{text}: AF_XDP or PACKET_QDISC_BYPASS, which pass by TC, or a TC program before nettop"


def _run_with(map_fd: int, program: int, value: bytes) -> None:
    """Run a program of no packet, with this value in its map."""
    bpf.map_update(map_fd, bytes(4), value)
    bpf.test_run(program, bytes(_NO_PACKET))


def _name_of(index: int) -> str:
    """The interface of this index; empty where there is none."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def _now() -> str:
    return time.strftime("%H:%M:%S")


async def frames(handle: LoaderHandle, settings: Settings, control: Control) -> AsyncIterator[Frame]:
    """Frames of the running kernel, one an interval, for ever.  Closing the iterator detaches everything."""
    live = Live(handle, settings, control)
    await asyncio.to_thread(live.load)
    engine = Engine(
        live.workers,
        Pace(
            lambda: control.delay * live.budget.shed.frames_one_in,
            None if settings.batch else _FIRST_SECONDS,
        ),
        live.meter,
        live.describe,
        live.notes,
    )
    watcher = asyncio.create_task(live.watch())
    stream = engine.frames()
    try:
        while True:
            frame = await _next(stream, watcher)
            live.look_for_hidden(frame)
            yield live.account(frame)
            live.look_at_focus()
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        await stream.aclose()  # type: ignore[attr-defined]
        handle.close()


async def _next(stream: AsyncIterator[Frame], watcher: asyncio.Task[None]) -> Frame:
    """The next frame, or at once what has ended the watcher: that is not to wait for the end of a long interval."""
    step = asyncio.ensure_future(anext(stream))
    try:
        await asyncio.wait({step, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if watcher.done():
            watcher.result()
        return step.result()
    finally:
        if not step.done():
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)


def check(handle: LoaderHandle, settings: Settings) -> Iterable[tuple[str, str, str, bool]]:
    """What this kernel offers: (probe, hook, mechanism or reason, whether it holds)."""
    live = Live(handle, replace(settings, filter=""), Control())
    live.load()
    for info in live.infos.values():
        if info.state == "failed":
            yield info.name, "-", info.detail, False
        yield from ((info.name, hook.hook, hook.via, True) for hook in info.hooks)
        yield from ((info.name, hook, reason, False) for hook, reason in info.missing)

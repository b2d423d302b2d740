"""What runs on the control thread: the loader is asked, and attachments, interface, filter and duty cycle are followed.

The thread is the one worker of an executor of live.py's.  It alone touches what is made here; the loop calls the
methods of ``ControlThread`` there, gives them values (``Wanted``) and gets values (``State``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nettop.bpf.protocol import Loaded, Plan, ProbeInfo, ProtocolError
from nettop.collect.attachments import Attachment, Attachments
from nettop.collect.filter_exchange import FilterExchange
from nettop.collect.interface_watch import InterfaceWatch
from nettop.collect.loader_client import LoaderHandle
from nettop.collect.opening import open_worker, reason
from nettop.collect.retries import Retries
from nettop.collect.shedding import DutyCycle
from nettop.collect.worker import Worker
from nettop.core.errors import ExitCode, NettopError
from nettop.core.frame import Focus
from nettop.probes.base import Probe, all_probes
from nettop.probes.own import unusable
from nettop.settings import Settings

_TRACED = 2000  # packets a second: some ten events each


@dataclass(frozen=True)
class Wanted:
    """What the loop wants to be so from now on."""

    filter: str = ""
    shed: Mapping[str, int] = field(default_factory=dict)  # health.shed
    least: Mapping[str, int] = field(default_factory=dict)  # by field of struct config: see DutyCycle.follow


@dataclass(frozen=True)
class State:
    """What is so, after one call."""

    interface: str  # as it is called now
    gone: str = ""  # why nothing is attached to it
    trouble: str = ""  # why no packet can pass
    filter: str = ""  # what is applied
    filter_note: str = ""
    changed: float = 0.0  # time.monotonic() since when everything counts as it does now
    hooks: tuple[Attachment, ...] = ()
    share: Mapping[str, float] = field(default_factory=dict)  # of the time in which a probe is attached
    switches: int = 0  # see DutyCycle
    failed: Mapping[str, str] = field(default_factory=dict)  # probe, and why it does not run
    opened: tuple[Worker, ...] = ()  # since the last call: the loop's from here on
    notes: tuple[str, ...] = ()  # for the user, since the last call


class ControlThread:
    """Everything that may block, one call after another.  Errors are NettopError."""

    def __init__(self, handle: LoaderHandle, settings: Settings) -> None:
        self._handle = handle
        self._settings = settings
        self._attachments = Attachments(handle)
        self._interface = InterfaceWatch(self._attachments, settings.interface)
        self._filter = FilterExchange(self._attachments)
        self._duty_cycle = DutyCycle(self._attachments)
        self._retries = Retries()
        self._live: dict[str, Probe] = {}  # what runs
        self.infos: dict[str, ProbeInfo] = {}  # as they were at the start

    def load(self, trace: str) -> State:
        """Have everything compiled and attached.  NettopError where nothing can work."""
        settings = self._settings
        probes = all_probes()
        wanted = tuple(name for name in settings.probes or probes if not probes[name].problem)
        words = self._filter.compiled(settings.filter, settings.interface)
        maps = [(name, m) for name in wanted for m in probes[name].maps]
        sized = tuple((f"{name}.{m.name}", m.entries(settings)) for name, m in maps if m.entries)
        try:
            plan = Plan(settings.interface, wanted, sized, *settings.subnets, words, bool(trace))
        except ProtocolError as error:  # a name that the kernel allows and no tool gives
            hint = "ip link set NAME name NEW gives it another one"
            raise NettopError(str(error), hint, ExitCode.USAGE) from None
        loaded, note = self._attachments.load(plan)
        self._filter.applied = settings.filter
        self.infos = {answer.probe.name: answer.probe for answer in loaded}
        if trace:
            config = self._attachments.config
            self._attachments.configure(config.tracing(_TRACED, trace == "all"))
        return self._state(self._open(loaded), (note, *(() if settings.probes else unusable())))

    def look_after(self, wanted: Wanted) -> State:
        """Notice what has changed, and follow what is wanted.  LoaderGoneError where the loader has ended."""
        try:
            self._handle.check()
        except NettopError as error:
            raise self._interface.left_behind(error) from None
        note = self._interface.look()
        opened: tuple[Worker, ...] = ()
        if not self._interface.gone:
            opened = self._retry()
            if self._filter.interface_changed(self._interface.name):
                self._duty_cycle.attached()
        if self._filter.follow(wanted.filter, self._interface.name):
            self._duty_cycle.attached()
        self._duty_cycle.follow(wanted.shed, wanted.least)
        return self._state(opened, (note,))

    def set_focus(self, focus: Focus | None) -> State:
        """Tell the programs which flow is in focus."""
        self._attachments.configure(self._attachments.config.focused(focus))
        return self._state()

    def _retry(self) -> tuple[Worker, ...]:
        """Try those probes again that have failed and whose time has come."""
        due = self._retries.due()
        if not due:
            return ()
        try:
            loaded = self._attachments.retry(due)
        except NettopError as error:
            for name in due:
                self._retries.failed(name, error.message)
            return ()
        return self._open(loaded)

    def _open(self, loaded: Iterable[Loaded]) -> tuple[Worker, ...]:
        """Workers of the probes that run or never will; the others are tried again."""
        opened: list[Worker] = []
        for answer in loaded:
            name = answer.probe.name
            if answer.probe.state == "failed":
                self._retries.failed(name, reason(answer))
                continue
            try:
                netns = self._attachments.config.netns
                opened.append(open_worker(all_probes()[name], answer, self._settings, netns))
                self._retries.works(name)
            except NettopError as error:
                self._attachments.discard(answer)
                self._retries.failed(name, error.message)
        self._live |= {w.probe.name: w.probe for w in opened if w.status.state == "live"}
        self._duty_cycle.probes_changed(self._live.values())
        return tuple(opened)

    def _state(self, opened: tuple[Worker, ...] = (), notes: Iterable[str] = ()) -> State:
        return State(
            interface=self._interface.name,
            gone=self._interface.gone,
            trouble=self._interface.trouble,
            filter=self._filter.applied,
            filter_note=self._filter.note,
            changed=self._attachments.changed,
            hooks=self._attachments.hooks,
            share=self._duty_cycle.share,
            switches=self._duty_cycle.switches,
            failed=self._retries.details(),
            opened=opened,
            notes=tuple(note for note in notes if note),
        )

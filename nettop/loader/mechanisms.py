"""How each mechanism attaches a loaded program; attach.py chooses among them.

A program attached by a link lives as long as the link's descriptor is open somewhere, which is what takes everything
away when the processes die, however they die.  clsact (kernels before 6.6) is the exception: it is taken away by the
loader when the screen is gone.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nettop.bpf import syscall
from nettop.bpf.hooks import Attachment, Via
from nettop.loader.btf import FUNC, TYPEDEF, Btf
from nettop.loader.clsact import Clsact

_BPF_F_BEFORE = 1 << 3  # with no program named: before all others
_PERF_EVENT_OPEN = {"x86_64": 298, "i386": 336, "i686": 336, "armv7l": 364, "ppc64le": 319}
_PERF_EVENT_IOC_SET_BPF = 0x40042408
_PERF_EVENT_IOC_ENABLE = 0x2400
_FAMILIES = {"ipv4": 2, "ipv6": 10}  # NFPROTO_*
_NF_HOOKS = {"pre_routing": 0, "local_in": 1, "forward": 2, "local_out": 3, "post_routing": 4}
_NF_NEIGHBOURS = 64
_NF_FIRST, _NF_LAST = -(2**31) + 1, 2**31 - 2  # the extremes themselves are refused (bpf_nf_link_attach)


@dataclass
class Target:
    """The interface that TC programs attach to, and our clsact filters where there is no TCX."""

    interface: str
    ifindex: int
    clsact: Clsact = field(default_factory=Clsact)


@dataclass(frozen=True)
class Mechanism:
    """How to load a program for this mechanism, and how to attach it: the link's descriptor, -1 where none exists."""

    program: syscall.ProgType
    attach: Callable[[int, Attachment, Target], int]
    attach_type: syscall.AttachType = syscall.AttachType.NONE
    btf_id: Callable[[Attachment], int] = lambda _: 0
    bound: bool = False  # to the interface: attached again when that comes back
    swaps: bool = False  # its program can be exchanged without a packet missed


def _tcx(program: int, attachment: Attachment, target: Target) -> int:
    # Before all others: a program that lets a packet pass ends the list (tcx_run), and most of them do.  The price is
    # that what another program drops at egress has been counted as sent.
    kind = syscall.AttachType.TCX_INGRESS if attachment.target == "ingress" else syscall.AttachType.TCX_EGRESS
    return syscall.link_create(program, target.ifindex, kind, bytes(16), _BPF_F_BEFORE)


def _clsact(program: int, attachment: Attachment, target: Target) -> int:
    target.clsact.attach(target.ifindex, attachment.target, program, attachment.program)
    return -1


def _netfilter(program: int, attachment: Attachment, _: Target) -> int:
    family, hook, *order = attachment.target.split()
    first, step = (_NF_LAST, -1) if order == ["last"] else (_NF_FIRST, 1)
    # Two programs cannot have one priority: another nettop is there before us.
    for priority in range(first, first + step * _NF_NEIGHBOURS, step):
        extra = struct.pack("<IIiI", _FAMILIES[family], _NF_HOOKS[hook], priority, 0)
        try:
            return syscall.link_create(program, 0, syscall.AttachType.NETFILTER, extra)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
    raise OSError(errno.EBUSY, f"{_NF_NEIGHBOURS} programs are at {attachment.target} already")


class _Types:
    """The kernel's BTF, parsed when first asked for: 10 ms and as many megabytes, so once, and not for long."""

    def __init__(self) -> None:
        self._btf: Btf | None = None

    def find(self, name: str, attach_type: syscall.AttachType) -> int:
        """Id of a function, or of the type of a tracepoint's arguments; 0 or less: there is none."""
        self._btf = self._btf or Btf()
        if attach_type == syscall.AttachType.TRACE_RAW_TP:
            return self._btf.find(f"btf_trace_{name}", TYPEDEF)
        return self._btf.find(name, FUNC)

    def close(self) -> None:
        """Give the memory back."""
        if self._btf:
            self._btf.close()
        self._btf = None


TYPES = _Types()


def _tracing(attach_type: syscall.AttachType, what: str) -> Mechanism:
    """A program whose arguments the verifier knows by type: it reads fields by plain loads, without a helper."""

    def btf_id(attachment: Attachment) -> int:
        for name in attachment.target.split("|"):
            ident = TYPES.find(name, attach_type)
            if ident > 0:
                return ident
        raise OSError(errno.ENOENT, f"the kernel has no {what} {attachment.target}")

    def attach(program: int, _attachment: Attachment, _: Target) -> int:
        return syscall.raw_tracepoint_open(program)

    return Mechanism(syscall.ProgType.TRACING, attach, attach_type, btf_id)


_KPROBES = Path("/sys/bus/event_source/devices/kprobe")


def possible(via: Via) -> bool:
    """Whether it is worth trying: False where the kernel was built without."""
    return via != "kprobe" or _KPROBES.exists()


def _kprobe(program: int, attachment: Attachment, _: Target) -> int:
    failure = OSError(errno.ENOENT, f"no function {attachment.target}")
    for name in attachment.target.split("|"):
        try:
            event = _perf_kprobe(name)
        except OSError as error:
            failure = error
            continue
        try:
            fcntl.ioctl(event, _PERF_EVENT_IOC_SET_BPF, program)
            fcntl.ioctl(event, _PERF_EVENT_IOC_ENABLE, 0)
        except OSError:
            os.close(event)
            raise
        return event
    raise failure


def _perf_kprobe(function: str) -> int:
    """A kprobe as a perf event of its own (kernel/trace/trace_event_perf.c): gone when its descriptor is."""
    if not _KPROBES.exists():
        raise OSError(errno.EOPNOTSUPP, "this kernel has no kprobes")
    kind = int((_KPROBES / "type").read_text())
    name = ctypes.create_string_buffer(function.encode())
    # struct perf_event_attr: type, size, then zeros up to config1 (the name) and config2 (the offset)
    attr = bytearray(128)
    struct.pack_into("<II", attr, 0, kind, len(attr))
    struct.pack_into("<QQ", attr, 56, ctypes.addressof(name), 0)
    buffer = (ctypes.c_char * len(attr)).from_buffer(attr)
    libc = ctypes.CDLL(None, use_errno=True)
    number = _PERF_EVENT_OPEN.get(platform.machine(), 241)
    event = int(libc.syscall(number, buffer, -1, 0, -1, 8))  # PERF_FLAG_FD_CLOEXEC
    if event < 0:
        code = ctypes.get_errno()
        # Debian's and Ubuntu's kernels know a 3 and a 4, which keep perf events for CAP_SYS_ADMIN.
        hint = " (sysctl kernel.perf_event_paranoid=2 allows it)" if code == errno.EACCES else ""
        raise OSError(code, f"kprobe {function}: {os.strerror(code)}{hint}")
    return event


MECHANISMS: dict[Via, Mechanism] = {
    "tcx": Mechanism(syscall.ProgType.SCHED_CLS, _tcx, bound=True, swaps=True),
    "clsact": Mechanism(syscall.ProgType.SCHED_CLS, _clsact, bound=True, swaps=True),
    "raw_tracepoint": Mechanism(
        syscall.ProgType.RAW_TRACEPOINT,
        lambda program, attachment, _: syscall.raw_tracepoint_open(program, attachment.target),
    ),
    "tp_btf": _tracing(syscall.AttachType.TRACE_RAW_TP, "tracepoint"),
    "netfilter": Mechanism(syscall.ProgType.NETFILTER, _netfilter, syscall.AttachType.NETFILTER),
    "fentry": _tracing(syscall.AttachType.TRACE_FENTRY, "function"),
    "kprobe": Mechanism(syscall.ProgType.KPROBE, _kprobe),
    # Run by user space when there is something in its map: who has the descriptor runs it.
    "prog_run": Mechanism(syscall.ProgType.SCHED_CLS, lambda program, *_: os.dup(program)),
}

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
    attach_type: Callable[[Attachment], syscall.AttachType] = lambda _: syscall.AttachType.NONE
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


def _raw_tracepoint(program: int, attachment: Attachment, _: Target) -> int:
    return syscall.raw_tracepoint_open(program, attachment.target)


def _tracing(program: int, _attachment: Attachment, _: Target) -> int:
    return syscall.raw_tracepoint_open(program)


def _prog_run(program: int, _attachment: Attachment, _: Target) -> int:
    return os.dup(program)  # nothing to attach to: who has the descriptor runs it


class _Types:
    """The kernel's BTF, parsed when first asked for: 10 ms and as many megabytes, so once, and not for long."""

    _KIND_TYPEDEF, _KIND_FUNC = 8, 12

    def __init__(self) -> None:
        self._library: ctypes.CDLL | None = None
        self._btf = 0

    def find(self, name: str, attach_type: syscall.AttachType) -> int:
        """Id of a function, or of the type of a tracepoint's arguments; 0 or less: there is none."""
        library = self._open()
        traced = attach_type == syscall.AttachType.TRACE_RAW_TP
        kind, prefix = (self._KIND_TYPEDEF, "btf_trace_") if traced else (self._KIND_FUNC, "")
        return int(library.btf__find_by_name_kind(self._btf, f"{prefix}{name}".encode(), kind))

    def close(self) -> None:
        """Give the memory back."""
        if self._library and self._btf:
            self._library.btf__free(self._btf)
        self._btf = 0

    def _open(self) -> ctypes.CDLL:
        from nettop.loader.headers import libbpf

        if self._library is None:
            self._library = library = libbpf()
            library.btf__load_vmlinux_btf.restype = ctypes.c_void_p
            library.btf__find_by_name_kind.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]
            library.btf__free.argtypes = [ctypes.c_void_p]
        if not self._btf:
            self._btf = self._library.btf__load_vmlinux_btf() or 0
        if not self._btf:
            raise OSError(errno.EOPNOTSUPP, "the kernel has no type information (BTF)")
        return self._library


TYPES = _Types()


def _btf_id(attach_type: syscall.AttachType) -> Callable[[Attachment], int]:
    def find(attachment: Attachment) -> int:
        for name in attachment.target.split("|"):
            ident = TYPES.find(name, attach_type)
            if ident > 0:
                return ident
        what = "tracepoint" if attach_type == syscall.AttachType.TRACE_RAW_TP else "function"
        raise OSError(errno.ENOENT, f"the kernel has no {what} {attachment.target}")

    return find


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
    pmu = _KPROBES
    if not pmu.exists():
        raise OSError(errno.EOPNOTSUPP, "this kernel has no kprobes")
    kind = int((pmu / "type").read_text())
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
    "raw_tracepoint": Mechanism(syscall.ProgType.RAW_TRACEPOINT, _raw_tracepoint),
    # A raw tracepoint whose arguments the verifier knows by type: fields are read by plain loads, without a helper.
    "tp_btf": Mechanism(
        syscall.ProgType.TRACING,
        _tracing,
        lambda _: syscall.AttachType.TRACE_RAW_TP,
        _btf_id(syscall.AttachType.TRACE_RAW_TP),
    ),
    "netfilter": Mechanism(syscall.ProgType.NETFILTER, _netfilter, lambda _: syscall.AttachType.NETFILTER),
    "fentry": Mechanism(
        syscall.ProgType.TRACING,
        _tracing,
        lambda _: syscall.AttachType.TRACE_FENTRY,
        _btf_id(syscall.AttachType.TRACE_FENTRY),
    ),
    "kprobe": Mechanism(syscall.ProgType.KPROBE, _kprobe),
    # A program of no packet, which user space runs when there is something in its map.
    "prog_run": Mechanism(syscall.ProgType.SCHED_CLS, _prog_run),
}

"""The header tree that BCC compiles against, made from the running kernel's own type information.

BCC wants the kernel's headers, which few machines have installed.  What the programs in fact need from them is a few
dozen types, and the kernel carries those as BTF.  This module writes a small tree whose ``include/linux/kconfig.h``
(the first file that BCC includes) holds the types, dumped by libbpf's ``btf_dump``; every other header that BCC's
preamble or a program may name is there and empty, or a few defines.  Compiling against the tree is ten times faster
than against real headers, and needs nothing installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from nettop.bpf import own
from nettop.core.errors import ExitCode, NettopError
from nettop.core.paths import OWN_PROBES, bpf_sources
from nettop.loader.blake2 import blake2b

BTF = Path("/sys/kernel/btf/vmlinux")
VERSION = 22  # of the tree's layout: a cache with another number is thrown away

OLDEST = (6, 1)  # kernel that the programs are written for, and tested on

# Functions of the kernel that programs call by their number, where it has them.
KFUNCS = ("bpf_cast_to_kern_ctx", "bpf_rdonly_cast")
KFUNC_CALL = 1 << 30  # marks such a number from a helper's, until `compile.kernel_calls` has seen it

# include/linux/kconfig.h, before the types.  BCC's helpers expect these names and BTF cannot have macros.
_PREAMBLE = """\
#pragma once
#define CONFIG_BPF_SYSCALL 1
#define __KERNEL__ 1
#ifndef NULL
#define NULL ((void *)0)
#endif
#define __bitwise
#define __always_inline inline __attribute__((always_inline))
#define offsetof(type, member) __builtin_offsetof(type, member)
#define true 1
#define false 0
"""

# After the types: aliases that the kernel makes by macro.
_EPILOGUE = """\
typedef __u64 __attribute__((aligned(8))) __aligned_u64;
typedef __be64 __attribute__((aligned(8))) __aligned_be64;
typedef unsigned long uintptr_t;
"""

# Typedefs that the preamble of BCC needs even if no structure above brings them along.
_TYPEDEFS = (
    "__u8",
    "__s8",
    "__u16",
    "__s16",
    "__u32",
    "__s32",
    "__u64",
    "__s64",
    "u8",
    "s8",
    "u16",
    "s16",
    "u32",
    "s32",
    "u64",
    "s64",
    "__be16",
    "__be32",
    "__be64",
    "__le16",
    "__le32",
    "__le64",
    "__sum16",
    "__wsum",
    "size_t",
    "ssize_t",
    "bool",
    "pid_t",
)

# BCC's own bpf.h, which comes later, defines the user-visible types and constants of BPF: where the kernel's structures
# hold one by value, theirs gets a prefix.  bpf_nf_ctx is the kernel's alone.
_OWN_TYPES = re.compile(r"\b(struct|enum|union) (?!bpf_nf_ctx\b)(bpf_\w+|__sk_buff)\b")
_OWN_CONSTANTS = re.compile(r"\b(BPF_\w+)\b")

_EMPTY = (
    "linux/types.h",
    "linux/bpf.h",
    "uapi/linux/bpf.h",
    "uapi/linux/ptrace.h",
    "uapi/linux/if_ether.h",
    "uapi/linux/if_packet.h",
    "uapi/linux/types.h",
    "uapi/linux/ip.h",
    "uapi/linux/ipv6.h",
    "uapi/linux/tcp.h",
    "uapi/linux/udp.h",
    "uapi/linux/in.h",
    "uapi/linux/pkt_cls.h",
    "linux/ptrace.h",
    "linux/sched.h",
    "linux/skbuff.h",
    "linux/netdevice.h",
    "linux/tcp.h",
    "net/sock.h",
    "asm/types.h",
)

_LOG2 = """\
#pragma once
#define roundup_pow_of_two(n) (1UL << (64 - __builtin_clzl((n) - 1)))
"""

# uapi/linux/bpf_common.h: instruction classes, which BCC's helpers name and guests without libc headers lack.
_BPF_COMMON = """\
#pragma once
#define BPF_CLASS(code) ((code) & 0x07)
#define BPF_LD 0x00
#define BPF_LDX 0x01
#define BPF_ST 0x02
#define BPF_STX 0x03
#define BPF_ALU 0x04
#define BPF_JMP 0x05
#define BPF_RET 0x06
#define BPF_MISC 0x07
#define BPF_SIZE(code) ((code) & 0x18)
#define BPF_W 0x00
#define BPF_H 0x08
#define BPF_B 0x10
#define BPF_MODE(code) ((code) & 0xe0)
#define BPF_IMM 0x00
#define BPF_ABS 0x20
#define BPF_IND 0x40
#define BPF_MEM 0x60
#define BPF_LEN 0x80
#define BPF_MSH 0xa0
#define BPF_OP(code) ((code) & 0xf0)
#define BPF_ADD 0x00
#define BPF_SUB 0x10
#define BPF_MUL 0x20
#define BPF_DIV 0x30
#define BPF_OR 0x40
#define BPF_AND 0x50
#define BPF_LSH 0x60
#define BPF_RSH 0x70
#define BPF_NEG 0x80
#define BPF_MOD 0x90
#define BPF_XOR 0xa0
#define BPF_JA 0x00
#define BPF_JEQ 0x10
#define BPF_JGT 0x20
#define BPF_JGE 0x30
#define BPF_JSET 0x40
#define BPF_SRC(code) ((code) & 0x08)
#define BPF_K 0x00
#define BPF_X 0x08
#ifndef BPF_MAXINSNS
#define BPF_MAXINSNS 4096
#endif
"""


_STRUCT, _ENUM, _TYPEDEF, _FUNC = 4, 6, 8, 12  # BTF_KIND_*


class _Btf:
    """libbpf's BTF dumper over ctypes."""

    _PRINT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)

    def __init__(self) -> None:
        self._lib = libbpf()
        self._libc = ctypes.CDLL(None)
        for name in ("btf__load_vmlinux_btf", "btf_dump__new"):
            getattr(self._lib, name).restype = ctypes.c_void_p
        self._lib.btf__resolve_size.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        self._lib.btf__resolve_size.restype = ctypes.c_int64
        self._lib.btf__find_by_name_kind.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]
        self._lib.btf_dump__dump_type.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        self._lib.btf_dump__free.argtypes = [ctypes.c_void_p]
        self._lib.btf__free.argtypes = [ctypes.c_void_p]
        self._lib.btf_dump__new.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self._libc.vsnprintf.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]
        self._btf = self._lib.btf__load_vmlinux_btf()
        if not self._btf:
            raise OSError("libbpf cannot read the kernel's BTF")

    def dump(self, named: Mapping[int, tuple[str, ...]]) -> str:
        """C text of these types, by kind, and of all that they hold by value; unknown names are left out."""
        parts: list[bytes] = []
        line = ctypes.create_string_buffer(4096)

        def append(_context: int, form: bytes, arguments: int) -> None:
            # The callback is handed a va_list, which only libc can walk.
            self._libc.vsnprintf(line, len(line), form, arguments)
            parts.append(line.value)

        print_line = self._PRINT(append)

        # A null options structure is what libbpf takes for "defaults" in every release since 0.6.
        dump = self._lib.btf_dump__new(self._btf, ctypes.cast(print_line, ctypes.c_void_p), None, None)
        if not dump:
            raise OSError("libbpf cannot dump the kernel's BTF")
        try:
            for kind, names in named.items():
                for name in names:
                    ident = self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
                    if ident > 0:
                        self._lib.btf_dump__dump_type(dump, ident)
        finally:
            self._lib.btf_dump__free(dump)
        return b"".join(parts).decode()

    def idents(self, names: tuple[str, ...], kind: int) -> dict[str, int]:
        """Numbers of those that the kernel has."""
        found = {n: self._lib.btf__find_by_name_kind(self._btf, n.encode(), kind) for n in names}
        return {name: ident for name, ident in found.items() if ident > 0}

    def size(self, ident: int) -> int:
        return int(self._lib.btf__resolve_size(self._btf, ident))

    def close(self) -> None:
        self._lib.btf__free(self._btf)


def libbpf() -> ctypes.CDLL:
    """libbpf itself, else the copy of it that BCC brings along."""
    for name in ("libbpf.so.1", "libbcc_bpf.so.0", "libbpf.so.0"):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            if hasattr(library, "btf_dump__new"):
                return library
    raise NettopError(
        "libbpf is not installed", "install it: apt install libbpf1 (Debian, Ubuntu)", ExitCode.UNSUPPORTED
    )


def _renamed(text: str) -> str:
    """Move what BCC's own bpf.h will define out of its way."""
    return _OWN_CONSTANTS.sub(r"KERNEL_\1", _OWN_TYPES.sub(r"\1 kernel_\2", text))


_IN_FIELD = re.compile(r"\bFIELD\([^,()]+,[^,()]+,\s*(\w+),")  # FIELD(to, pointer, structure, field) of own.h
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


def _sources() -> Iterator[Path]:
    """All C files, those of users' own probes among them where only root could write these."""
    yield from sorted(bpf_sources().rglob("*.[ch]"))
    with contextlib.suppress(NettopError):
        for name in own.names():
            with contextlib.suppress(NettopError):
                own.check(name)
                yield from sorted((OWN_PROBES / name).glob("*.[ch]"))


def named_types() -> Mapping[int, tuple[str, ...]]:
    """The structures and enums that programs name and do not define themselves, by BTF's kind.

    What these contain by value is dumped with them; what the kernel does not have is left out.
    """
    return _named(tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in _sources()))


@lru_cache(maxsize=1)  # each probe's compilation asks, and reading takes 15 ms
def _named(sources: tuple[tuple[Path, int, int], ...]) -> Mapping[int, tuple[str, ...]]:
    text = "\n".join(_COMMENT.sub("", path.read_text(errors="replace")) for path, *_ in sources)
    result = {}
    text += "".join(f"struct {name};" for name in _IN_FIELD.findall(text))
    for kind, word in ((_STRUCT, "struct"), (_ENUM, "enum")):
        names = set(re.findall(rf"\b{word} (\w+)", text)) - set(re.findall(rf"\b{word} (\w+) *\{{", text))
        result[kind] = tuple(sorted(n for n in names if not _OWN_TYPES.fullmatch(f"{word} {n}")))
    return result


def _kernel_types() -> str:
    btf = _Btf()
    try:
        named = named_types()
        text = _renamed(btf.dump({_TYPEDEF: _TYPEDEFS, **named}))
        for name, ident in btf.idents(named[_STRUCT], _STRUCT).items():
            # So that a program can leave out what this kernel has no types for.
            text += f"#define HAVE_{name} 1\n#define BTF_{name} {ident}\n"
            # What clang reads otherwise than libbpf says it must not compile: fields would be read at wrong places.
            text += (
                f"_Static_assert(sizeof(struct {name}) == {btf.size(ident)}, "
                f'"struct {name} is not what BTF says");\n'
            )
        functions = btf.idents(KFUNCS, _FUNC)
        if functions.keys() == set(KFUNCS):
            text += f"#define KFUNC_CALL {KFUNC_CALL}\n"
            text += "".join(f"#define KFUNC_{name} {ident}\n" for name, ident in functions.items())
        if re.search(r"\bis_mptcp;", text):  # in tcp_sock: CONFIG_MPTCP
            text += "#define HAVE_is_mptcp 1\n"
        if re.search(r"\bgso_ipv4_max_size;", text):  # in net_device: since 6.3
            text += "#define HAVE_gso_ipv4_max_size 1\n"
        if btf.idents(("bpf_jmp_history_entry",), _STRUCT):  # of the verifier: since 6.8
            text += "#define HAVE_bpf_jmp_history_entry 1\n"
        if re.search(r"\bSKB_DROP_REASON_QUEUE_PURGE\b", text):  # since 6.6
            text += "#define HAVE_QUEUE_PURGE 1\n"
        if re.search(r"\b__pkt_vlan_present_offset\b", text):  # in sk_buff: before 6.2
            text += "#define HAVE_pkt_vlan_present_offset 1\n"
        return text
    finally:
        btf.close()


def kernel_version() -> tuple[int, int, int]:
    """The running kernel's: (6, 12, 107) of ``6.12.107+deb13-amd64``."""
    numbers = [int(n) for n in re.findall(r"\d+", re.split(r"[-+]", platform.release())[0])[:3]]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major, minor, patch


def check_machine() -> None:
    """Raises NettopError (exit code 4) on a machine that the programs are not written for."""
    if kernel_version() < OLDEST:
        raise NettopError(
            f"kernel {platform.release()} is too old for nettop",
            "Linux {}.{} or later is needed".format(*OLDEST),
            ExitCode.UNSUPPORTED,
        )
    if sys.byteorder != "little":
        raise NettopError(
            f"{platform.machine()} is a big-endian machine, and nettop's programs are not written for these",
            "use a little-endian one",
            ExitCode.UNSUPPORTED,
        )


def _version_header() -> str:
    major, minor, patch = kernel_version()
    return (
        "#pragma once\n#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))\n"
        f"#define LINUX_VERSION_CODE KERNEL_VERSION({major}, {minor}, {patch})\n"
    )


def _write_tree(root: Path) -> None:
    files = dict.fromkeys(_EMPTY, "")
    files |= {
        "linux/kconfig.h": _PREAMBLE + _kernel_types() + _EPILOGUE,
        "linux/version.h": _version_header(),
        "linux/log2.h": _LOG2,
        "linux/bpf_common.h": _BPF_COMMON,
        "asm/page.h": f"#pragma once\n#define PAGE_SIZE {os.sysconf('SC_PAGESIZE')}UL\n",
    }
    for name, text in files.items():
        path = root / "include" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "digest").write_text(_digest(root))


def _digest(root: Path) -> str:
    """What the tree must look like to be used: its version, the kernel's BTF size, and every file's bytes."""
    total = blake2b(f"{VERSION} {platform.version()} {BTF.stat().st_size} {named_types()}".encode())
    for path in sorted((root / "include").rglob("*.h")):
        total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def _intact(root: Path) -> bool:
    with contextlib.suppress(OSError):
        return (root / "digest").read_text() == _digest(root)
    return False


def installed_headers() -> Path | None:
    """The distribution's kernel headers for the running kernel, if they are there."""
    for name in ("build", "source"):
        path = Path("/lib/modules") / platform.release() / name
        if (path / "include/linux/kconfig.h").exists():
            return path
    return None


def header_tree(cache: Path) -> Path:
    """The directory to give to BCC as its kernel source; made, reused or, if anything is wrong with it, remade.

    ``cache`` is a directory that only root can write.  Raises NettopError (exit code 4) where there is neither BTF
    nor headers, and on a machine that the programs are not written for.
    """
    check_machine()
    if not BTF.exists():
        headers = installed_headers()
        if headers is None:
            release = platform.release()
            raise NettopError(
                f"kernel {release} has no BTF (/sys/kernel/btf/vmlinux) and its headers are not installed",
                f"install the kernel's headers: apt install linux-headers-{release} (dnf install kernel-devel)",
                ExitCode.UNSUPPORTED,
            )
        return headers
    root = cache / f"headers-{platform.release()}"
    if _intact(root):
        return root
    cache.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="headers-", dir=cache))
    try:
        _write_tree(fresh)
        if root.exists():
            shutil.rmtree(root)
        with contextlib.suppress(OSError):  # somebody else was faster: theirs is as good
            fresh.rename(root)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    if not _intact(root):
        raise NettopError(
            f"cannot write kernel headers to {cache}",
            f"make room or remove {root}, then start again",
            ExitCode.UNSUPPORTED,
        )
    return root

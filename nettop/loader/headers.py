"""The header tree that BCC compiles against, made from the running kernel's own type information.

BCC wants the kernel's headers, which few machines have installed.  What the programs in fact need from them is a few
dozen types, and the kernel carries those as BTF.  This module writes a small tree whose ``include/linux/kconfig.h``
(the first file that BCC includes) holds the types, dumped by libbpf's ``btf_dump``; every other header that BCC's
preamble or a program may name is there and empty, or a few defines.  Compiling against the tree is ten times faster
than against real headers, and needs nothing installed.
"""

from __future__ import annotations

import contextlib
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
from nettop.loader.btf import ENUM, FUNC, STRUCT, TYPEDEF, Btf

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
_TYPEDEFS = tuple(
    "__u8 __s8 __u16 __s16 __u32 __s32 __u64 __s64 u8 s8 u16 s16 u32 s32 u64 s64 __be16 __be32 __be64 "
    "__le16 __le32 __le64 __sum16 __wsum size_t ssize_t bool pid_t".split()
)

# BCC's own bpf.h, which comes later, defines the user-visible types and constants of BPF: where the kernel's structures
# hold one by value, theirs gets a prefix.  bpf_nf_ctx is the kernel's alone.
_OWN_TYPES = re.compile(r"\b(struct|enum|union) (?!bpf_nf_ctx\b)(bpf_\w+|__sk_buff)\b")
_OWN_CONSTANTS = re.compile(r"\b(BPF_\w+)\b")

_EMPTY = (
    "linux/types.h linux/bpf.h linux/bpf_common.h linux/ptrace.h linux/sched.h linux/skbuff.h linux/netdevice.h "
    "linux/tcp.h uapi/linux/bpf.h uapi/linux/ptrace.h uapi/linux/if_ether.h uapi/linux/if_packet.h uapi/linux/types.h "
    "uapi/linux/ip.h uapi/linux/ipv6.h uapi/linux/tcp.h uapi/linux/udp.h uapi/linux/in.h uapi/linux/pkt_cls.h "
    "net/sock.h asm/types.h".split()
)

_VERSION = """\
#pragma once
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#define LINUX_VERSION_CODE """

_LOG2 = """\
#pragma once
#define roundup_pow_of_two(n) (1UL << (64 - __builtin_clzl((n) - 1)))
"""

# HAVE_*: what not all kernels have, by how the types' text shows it.
_OPTIONAL = {
    "is_mptcp": r"\bis_mptcp;",  # in tcp_sock: CONFIG_MPTCP
    "gso_ipv4_max_size": r"\bgso_ipv4_max_size;",  # in net_device: since 6.3
    "QUEUE_PURGE": r"\bSKB_DROP_REASON_QUEUE_PURGE\b",  # since 6.6
    "pkt_vlan_present_offset": r"\b__pkt_vlan_present_offset\b",  # in sk_buff: before 6.2
}


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
    for kind, word in ((STRUCT, "struct"), (ENUM, "enum")):
        names = set(re.findall(rf"\b{word} (\w+)", text)) - set(re.findall(rf"\b{word} (\w+) *\{{", text))
        result[kind] = tuple(sorted(n for n in names if not _OWN_TYPES.fullmatch(f"{word} {n}")))
    return result


def _kernel_types() -> str:
    with contextlib.closing(Btf()) as btf:
        named = named_types()
        text = _renamed(btf.dump({TYPEDEF: _TYPEDEFS, **named}))
        lines = []
        for name in named[STRUCT]:
            if (ident := btf.find(name, STRUCT)) > 0:
                # For programs that do without what this kernel has no types for.
                lines += [f"#define HAVE_{name} 1", f"#define BTF_{name} {ident}"]
                # What clang reads otherwise than libbpf says it must not compile: fields would be read at wrong places.
                size = f'sizeof(struct {name}) == {btf.size(ident)}, "struct {name} is not what BTF says"'
                lines.append(f"_Static_assert({size});")
        functions = {name: btf.find(name, FUNC) for name in KFUNCS}
        if min(functions.values()) > 0:
            lines.append(f"#define KFUNC_CALL {KFUNC_CALL}")
            lines += [f"#define KFUNC_{name} {ident}" for name, ident in functions.items()]
        lines += [f"#define HAVE_{name} 1" for name, form in _OPTIONAL.items() if re.search(form, text)]
        if btf.find("bpf_jmp_history_entry", STRUCT) > 0:  # of the verifier: since 6.8
            lines.append("#define HAVE_bpf_jmp_history_entry 1")
    return text + "\n".join([*lines, ""])


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


def _write_tree(root: Path) -> None:
    files = dict.fromkeys(_EMPTY, "")
    files |= {
        "linux/kconfig.h": _PREAMBLE + _kernel_types() + _EPILOGUE,
        "linux/version.h": _VERSION + "KERNEL_VERSION({}, {}, {})\n".format(*kernel_version()),
        "linux/log2.h": _LOG2,
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


def header_tree(cache: Path) -> Path:
    """The directory to give to BCC as its kernel source; made, reused or, if anything is wrong with it, remade.

    ``cache`` is a directory that only root can write.  Raises NettopError (exit code 4) where there is neither BTF
    nor headers, and on a machine that the programs are not written for.
    """
    check_machine()
    if not BTF.exists():
        release = platform.release()
        places = (Path("/lib/modules", release, name) for name in ("build", "source"))
        headers = next((place for place in places if (place / "include/linux/kconfig.h").exists()), None)
        if headers is None:
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

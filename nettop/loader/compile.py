"""C to eBPF by BCC, in a child process that exits: clang's hundred megabytes go back to the system with it.

The child only compiles.  What it hands back is data: the maps that the program declares and the instructions of each
function, with references to maps by number.  The loader makes the maps and loads the programs itself, which is what
allows it to size a map, to keep a map while its program is replaced, to pass descriptors on, and to reuse a
compilation from an earlier run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import re
import struct
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nettop import privilege
from nettop.bpf import own
from nettop.bpf.config import CONFIG
from nettop.bpf.filter import Instructions, to_c
from nettop.bpf.hooks import Hook
from nettop.bpf.protocol import typed
from nettop.core.errors import ExitCode, NettopError
from nettop.core.paths import PACKAGE, bpf_include, bpf_source
from nettop.loader.blake2 import blake2b
from nettop.loader.headers import KFUNC_CALL, header_tree

FORMAT = 9  # of the cached objects
_FAR = 32767  # instructions that a jump can reach; clang before 17 does not say so where one cannot
_BACKGROUND = 10  # nice: the screen goes on drawing while a compiler runs beside it
_KEPT = 128  # cached objects, before the oldest go: each filter makes its own
_LD_IMM64 = 0x18
_PSEUDO_MAP_FD, _PSEUDO_KFUNC_CALL = 1, 2
# A warning is an error: what clang only doubts, a member that it takes for nothing, say, is read at the wrong place.
FLAGS = (
    "-Wall",
    "-Werror",
    "-Wno-macro-redefined",  # BCC's helpers define what the header tree or the kernel's headers did before
    "-Wno-unused-function",  # the shared headers have more than each program calls
    # BCC reads the text as the machine's own C first, and arm64's rules for assembly are not BPF's
    "-Wno-asm-operand-widths",
    # Kernels since 6.19 are built so: their structures have unnamed members with a tag (struct slock_owned in struct
    # sock), which clang takes for members by this option alone; that it is an extension is its warning.
    "-fms-extensions",
    "-Wno-microsoft-anon-tag",
    # BPF has no vectors: what clang makes one of, a long row of comparisons say, it takes apart again on the stack
    "-fno-vectorize",
    "-fno-slp-vectorize",
)
TRACING = ("-DTRACING",)
TYPED_ONLY = ("-DTYPED_ONLY",)  # without the programs for older kernels, see stages.c
_CALL = 0x85
_PROBE_READ, _PROBE_READ_KERNEL = 4, 113  # enum bpf_func_id


@dataclass(frozen=True)
class MapSpec:
    """A map as the C text declares it; sizes in bytes, layouts as BCC describes the types."""

    name: str
    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    key_layout: str = ""
    value_layout: str = ""


@dataclass(frozen=True)
class Object:
    """One compiled C file: its maps, and each function's instructions (map references by index into ``maps``).

    With it what the probe's module says of it: the hooks, which maps the plan sizes, which hold what is under way, and
    which the screen reads.  So the loader need not import the modules, which bring numpy with them.
    ``compiler``: the libraries that made it (BCC, clang, LLVM), each with its size in bytes and its mtime in ns.
    """

    maps: tuple[MapSpec, ...]
    programs: Mapping[str, bytes]
    hooks: tuple[Hook, ...] = ()
    entries: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    compiler: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def to_json(self) -> str:
        """For the cache, and from the child."""
        return json.dumps({"format": FORMAT, **asdict(self)}, default=lambda code: b64encode(code).decode())

    @classmethod
    def from_json(cls, text: str) -> Object:
        """The inverse.  ValueError or TypeError for what is none."""
        data = json.loads(text)
        if data.pop("format", 0) != FORMAT:
            raise ValueError("another format")
        result: Object = typed(cls, data)
        return result

    def linked(self, program: str, map_fds: list[int]) -> bytes:
        """Instructions of one function with its map references resolved to descriptors."""
        return rewrite_maps(self.programs[program], dict(enumerate(map_fds)))


def rewrite_maps(code: bytes, numbers: Mapping[int, int]) -> bytes:
    """Replace the number in every map reference (``ld_imm64`` with BPF_PSEUDO_MAP_FD) by the table's entry for it."""
    result = bytearray(code)
    for index, (opcode, registers, _, number) in enumerate(struct.iter_unpack("<BBhi", code)):
        if opcode == _LD_IMM64 and registers >> 4 == _PSEUDO_MAP_FD:
            struct.pack_into("<i", result, 8 * index + 4, numbers[number])
    return bytes(result)


def kernel_calls(code: bytes) -> bytes:
    """Calls as the kernel knows them.

    bpf_probe_read is bpf_probe_read_kernel for us, which TC programs may call, too.  BCC writes the former where it
    does not find the latter in /proc/kallsyms, whose addresses this process, without CAP_SYSLOG, may not see.  All
    kernels that have a ring buffer have both.  And what C cannot say: that a number is of no helper, but of a function
    of the kernel (BPF_PSEUDO_KFUNC_CALL).
    """
    result = bytearray(code)
    for index, (opcode, registers, _, number) in enumerate(struct.iter_unpack("<BBhi", code)):
        if (opcode, registers, number) == (_CALL, 0, _PROBE_READ):
            struct.pack_into("<i", result, 8 * index + 4, _PROBE_READ_KERNEL)
        elif (opcode, registers) == (_CALL, 0) and number & KFUNC_CALL:
            ident = number & ~KFUNC_CALL
            struct.pack_into("<BBhi", result, 8 * index, _CALL, _PSEUDO_KFUNC_CALL << 4, 0, ident)
    return bytes(result)


def takes_filter(name: str) -> bool:
    """Whether a probe looks at the packets that the filter accepts and at no others."""
    return re.search(r'^#include "filter\.h"', bpf_source(name).read_text(), re.MULTILINE) is not None


def compile_probe(
    name: str,
    cache: Path,
    defines: tuple[str, ...] = (),
    instructions: Instructions = (),
    background: bool = False,
    generation: int = 0,
) -> Object:
    """Compile a probe's C file, with its hooks and the filter, if it takes one; otherwise as compile_source.

    ``generation`` is that of the config which the programs obey, see stages.c.  Of a user's own probe only the C file
    is looked at here: its hooks are in the names of its functions (nettop/bpf/own.py).
    """
    try:
        source = bpf_source(name)
    except FileNotFoundError:
        raise NettopError(f"there is no probe {name}", "nettop --list-probes names all") from None
    if generation:
        defines = (*defines, f"-DGENERATION={generation}")
    text = to_c(instructions) if instructions and takes_filter(name) else ""
    module = "" if own.is_own(name) else name
    return compile_source(source, cache, defines, module, text, background)


def compile_source(
    source: Path,
    cache: Path,
    defines: tuple[str, ...] = (),
    probe: str = "",
    filter_text: str = "",
    background: bool = False,
) -> Object:
    """Compile one C file for the running kernel, or take the result of an earlier run.

    ``filter_text`` is what bpf_src/include/filter.h includes as the filter.  With ``background`` others get the CPU
    first.
    Raises NettopError with the compiler's words as hint; a broken cache entry is compiled again.
    """
    tree = header_tree(cache)
    source = source.resolve()  # BCC changes the directory while it compiles
    flags = (f"-I{bpf_include()}", *FLAGS, *defines)
    path = cache / f"{source.stem}-{_identity(source, tree, flags, probe, filter_text)}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        found = Object.from_json(path.read_text())
        if all(_stamp(library) == stamp for library, stamp in found.compiler.items()):
            os.utime(path)  # it is in use: see _store
            return found
    with contextlib.ExitStack() as stack:
        if filter_text:
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="filter-", dir=cache))
            folder = Path(made).resolve()
            (folder / "filter_generated.h").write_text(filter_text)
            flags += ("-DFILTER", f"-I{folder}")
        job = json.dumps({"source": str(source), "flags": flags, "probe": probe, "background": background})
        try:
            done = subprocess.run(
                [sys.executable, "-m", "nettop.loader.compile"],
                input=job,
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
                check=False,
                env=dict(os.environ, BCC_KERNEL_SOURCE=str(tree)),
            )
        except subprocess.TimeoutExpired as error:
            raise NettopError(
                f"{source.name} was not compiled within {_PATIENCE_S} s",
                "this machine is very slow or busy; what is compiled once is kept: start nettop again",
            ) from error
    if done.returncode == ExitCode.UNSUPPORTED:
        message, _, hint = done.stderr.strip().rpartition("\n")
        raise NettopError(message.rpartition("\n")[2], hint, ExitCode.UNSUPPORTED)
    if done.returncode != 0:
        raise NettopError(f"{source.name} does not compile on this kernel", done.stderr.strip())
    result = Object.from_json(done.stdout)
    if any(len(code) > 8 * _FAR for code in result.programs.values()):
        raise NettopError(
            f"{source.name} is too long with this filter", "fewer terms, or nets instead of hosts"
        )
    _store(path, done.stdout)
    return result


_PATIENCE_S = 300  # of the 900 that the screen waits for all probes

_PART = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)


def whole_text(source: Path) -> str:
    """The C text with the parts that lie beside it in place of their ``#include`` lines, each once.

    BCC takes map functions (``flows.lookup(&key)``) in the main file only, and a program in parts has them in all.
    """
    seen: set[Path] = set()

    def with_parts(file: Path) -> str:
        seen.add(file)
        lines = [f'#line 1 "{file.name}"']
        for number, line in enumerate(file.read_text().splitlines(), 1):
            found = _PART.fullmatch(line)
            part = file.parent / found[1] if found else None
            if part is None or not part.is_file():
                lines.append(line)
            elif part not in seen:
                lines += [with_parts(part), f'#line {number + 1} "{file.name}"']
            else:
                lines.append("")
        return "\n".join(lines)

    return with_parts(source) + "\n"


def _identity(source: Path, tree: Path, flags: tuple[str, ...], probe: str, filter_text: str) -> str:
    """What makes one result another's equal: everything that shapes it but the compiler's libraries.

    Those are named by the result itself (`Object.compiler`): which they are only who loads them knows, and the loader
    has no room for a hundred megabytes.
    """
    total = blake2b(f"{platform.release()} {platform.version()} {flags}\0{probe}\0{filter_text}\0".encode())
    total.update(whole_text(source).encode() + b"\0")
    for path in (*sorted(bpf_include().glob("*.h")), *_shaping_modules(), *_bcc_files()):
        total.update(path.read_bytes() + b"\0")
    for name in ("digest", "include/generated/autoconf.h"):
        with contextlib.suppress(OSError):
            total.update((tree / name).read_bytes())
    return total.hexdigest()[:24]


def _shaping_modules() -> list[Path]:
    """All that the child may import: this module, the probe's, and whatever these import in their turn."""
    return sorted(
        path
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("ui", "output")  # nothing below imports these
    )


def _bcc_files() -> list[Path]:
    """BCC's Python side, its version among it; not imported here, where it would stay."""
    spec = importlib.util.find_spec("bcc")
    return sorted(Path(spec.origin).parent.glob("*.py")) if spec and spec.origin else []


def _stamp(library: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = os.stat(library)
        return status.st_size, status.st_mtime_ns
    return None


def _compiler() -> dict[str, tuple[int, int]]:
    """In the child, once it has compiled: the libraries that it did it with."""
    names = re.findall(
        r"(/\S*/lib(?:bcc|bpf|clang|LLVM)[^/\s]*)$", Path("/proc/self/maps").read_text(), re.MULTILINE
    )
    return {name: stamp for name in dict.fromkeys(names) if (stamp := _stamp(name))}


def _store(path: Path, text: str) -> None:
    """Keep a result for the next start, whole or not at all; what was not used for longest goes."""
    with contextlib.suppress(OSError):
        kept = sorted(path.parent.glob("*.json"), key=lambda p: p.stat().st_mtime)
        for old in kept[: max(len(kept) - _KEPT + 1, 0)]:
            old.unlink()
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)


def _import_bcc() -> Any:
    """The real bcc: PyPI has an unrelated lattice library of that name."""
    try:
        import bcc
    except ImportError:
        raise NettopError(
            "BCC's Python module is not installed",
            "apt install python3-bpfcc (Debian, Ubuntu), dnf install python3-bcc, pacman -S python-bcc",
            ExitCode.UNSUPPORTED,
        ) from None
    if not hasattr(bcc, "BPF"):
        raise NettopError(
            f"the module bcc at {os.path.dirname(bcc.__file__ or '')} is not the BPF Compiler Collection",
            "pip uninstall bcc, then install the distribution's: apt install python3-bpfcc",
            ExitCode.UNSUPPORTED,
        )
    return bcc


def _compile(source: Path, flags: list[str], probe: str) -> Object:
    """In the child: BCC's module, taken apart, and what the probe's module says."""
    bcc = _import_bcc()
    lib = bcc.libbcc.lib
    lib.bpf_table_name.restype = bcc.libbcc.ct.c_char_p
    module = bcc.BPF(text=whole_text(source).encode(), cflags=flags)
    maps: list[MapSpec] = []
    numbers: dict[int, int] = {}
    for index in range(lib.bpf_num_tables(module.module)):
        name = lib.bpf_table_name(module.module, index)
        numbers[lib.bpf_table_fd(module.module, name)] = index
        kind, key, leaf, most, flag_bits = (
            getattr(lib, f"bpf_table_{what}_id")(module.module, index)
            for what in ("type", "key_size", "leaf_size", "max_entries", "flags")
        )
        of_key, of_leaf = (
            (describe(module.module, name) or b"").decode()
            for describe in (lib.bpf_table_key_desc, lib.bpf_table_leaf_desc)
        )
        maps.append(MapSpec(name.decode(), kind, key, leaf, most, flag_bits, of_key, of_leaf))
    programs: dict[str, bytes] = {}
    for index in range(lib.bpf_num_functions(module.module)):
        name = lib.bpf_function_name(module.module, index)
        programs[name.decode()] = kernel_calls(rewrite_maps(module.dump_func(name), numbers))
    compiler = _compiler()
    if not probe:
        return Object(tuple(maps), programs, compiler=compiler)
    module.cleanup()
    # From here on Python's modules alone run: with the capability to read what lies in a closed directory, at most.
    privilege.confine(privilege.permitted() & privilege.mask(privilege.DAC_READ_SEARCH))
    declared = importlib.import_module(f"nettop.probes.{probe}.probe").PROBE
    sized = tuple(m.name for m in declared.maps if m.entries)
    read = (CONFIG, *(m.name for m in declared.maps))
    return Object(tuple(maps), programs, declared.hooks, sized, declared.state, read, compiler)


def main() -> int:
    """The child: a job on standard input, an Object on standard output, the compiler's words on standard error."""
    job = json.load(sys.stdin)
    if job["background"]:
        os.nice(_BACKGROUND)
    # libbcc and clang print to descriptors 1 and 2 as they like: keep the way out to ourselves.
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        result = _compile(Path(job["source"]), list(job["flags"]), job["probe"])
    except NettopError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        return error.code
    except Exception as error:  # BCC raises bare Exception; the compiler has already said why on descriptor 2
        print(error, file=sys.stderr)
        return ExitCode.FAILURE
    with os.fdopen(out, "w") as file:
        file.write(result.to_json())
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())

"""Layouts of a probe's maps by the machine's own C compiler, for tests that make readings by hand.

BCC, which nettop uses, needs root. So the structures in a probe's C text and the lines with its maps are compiled for a
process, and read from the compiler's BTF; tests/unit/test_layout.py compares the two.
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lab.btf import Btf
from nettop.bpf.layout import Layout, layout_of
from nettop.bpf.protocol import MapInfo
from nettop.core.paths import bpf_include, bpf_source
from nettop.loader.compile import whole_text
from nettop.probes.base import all_probes

HEAD = """
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;
typedef signed char s8; typedef short s16; typedef int s32; typedef long long s64;
#define bool _Bool
"""
# A map as two variables of its types.
MAPS = """
#define MAP(key_type, type, name) key_type key_of_##name; type value_of_##name
#define BPF_ARRAY(name, type, ...) MAP(int, type, name)
#define BPF_PERCPU_ARRAY(name, type, ...) MAP(int, type, name)
#define BPF_HASH(name, key_type, type, ...) MAP(key_type, type, name)
#define BPF_TABLE(kind, key_type, type, name, ...) MAP(key_type, type, name)
#define BPF_F_TABLE(kind, key_type, type, name, ...) MAP(key_type, type, name)
#undef RINGBUF
#define RINGBUF(name, type, ...) MAP(int, type, name)
"""
INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.M)
DEFINITION = re.compile(r"^#define (?:.*\\\n)*.*$", re.M)
TYPE = re.compile(r"^(?:struct|union|enum) (\w+) \{[^\n]*\n.*?^\}[^;]*;", re.M | re.S)
MAP = re.compile(r"^(?:(?:BPF_\w+|RINGBUF)\([^;]*\)|CONFIG_MAP);", re.M)


def text_of(source: Path) -> str:
    """The C text with all that it includes in place, each once."""
    seen: set[str] = set()

    def included(found: re.Match[str]) -> str:
        path = bpf_include() / found[1]
        if found[1] in seen or not path.is_file():
            return ""
        seen.add(found[1])
        return INCLUDE.sub(included, path.read_text())

    return INCLUDE.sub(included, whole_text(source))


def declarations(source: Path) -> str:
    """Its constants, its maps, and the types that these consist of."""
    text = text_of(source)
    maps = [found[0] for found in MAP.finditer(text)]
    definitions = [found[0] for found in DEFINITION.finditer(text)]
    wanted, types = "\n".join(maps + [d for d in definitions if "CONFIG_MAP" in d]), []
    for found in reversed([*TYPE.finditer(text)]):
        if re.search(rf"\b(?:struct|union|enum) {found[1]}\b(?! ?\*)", wanted):
            wanted += found[0]
            types.insert(0, found[0])
    return "\n".join([HEAD, *definitions, MAPS, *types, *maps])


@cache
def made(source: Path) -> Mapping[str, MapInfo]:
    """By name: the maps of a C file, but for their kinds, which only BCC knows."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "no C compiler: install gcc and libc6-dev"
    with tempfile.TemporaryDirectory() as folder:
        text, compiled, types = (Path(folder) / name for name in ("maps.c", "maps.o", "maps.btf"))
        text.write_text(declarations(source))
        for command in (
            [compiler, "-gbtf", "-w", "-c", "-o", compiled, text],
            ["objcopy", "--dump-section", f".BTF={types}", compiled],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        btf = Btf(types)
    result = {}
    for name, value in btf.variables.items():
        if name.startswith("value_of_"):
            name, key = (
                name.removeprefix("value_of_"),
                btf.variables[f"key_of_{name.removeprefix('value_of_')}"],
            )
            descriptions = (json.dumps(btf.described(kind)) for kind in (key, value))
            result[name] = MapInfo(name, 0, btf.size_of(key), btf.size_of(value), 1, 0, *descriptions)
    return result


@cache
def of(probe: str) -> Mapping[str, Layout]:
    """By name: the maps that a probe's module declares, with the fields that it names and no others."""
    declared = all_probes()[probe].maps
    whole = {m.name: layout_of(made(bpf_source(probe))[m.name], m) for m in declared}
    return {
        m.name: Layout(part(whole[m.name].value, m.fields), part(whole[m.name].key, m.keys)) for m in declared
    }


def values(probe: str) -> Mapping[str, np.dtype[Any]]:
    """What a fold is told of them (`Setup.layouts`)."""
    return {name: layout.value for name, layout in of(probe).items()}


def part(dtype: np.dtype[Any], fields: str) -> np.dtype[Any]:
    """These fields at their offsets, and no others."""
    if not fields:
        return dtype
    inner: dict[str, list[str]] = {}
    for name, *more in (field.split(".", 1) for field in fields.split()):
        inner.setdefault(name, []).extend(more)
    assert dtype.fields
    return np.dtype(
        {
            "names": list(inner),
            "formats": [shaped(dtype.fields[name][0], " ".join(more)) for name, more in inner.items()],
            "offsets": [dtype.fields[name][1] for name in inner],
            "itemsize": dtype.itemsize,
        }
    )


def shaped(dtype: np.dtype[Any], fields: str) -> np.dtype[Any]:
    return np.dtype((part(dtype.base, fields), dtype.shape))

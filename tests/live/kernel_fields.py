"""The kernel's structures as the programs see them, compiled by BCC, beside what BTF says of the same."""

import re
from collections.abc import Iterable
from pathlib import Path

from lab.btf import Btf, Field

from nettop.core.errors import NettopError
from nettop.core.paths import bpf_sources
from nettop.loader.compile import compile_source

_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_DEFINED = re.compile(r"^struct (\w+) \{", re.MULTILINE)
_NAMED = re.compile(r"\bstruct (\w+)\b")
_READ = re.compile(r"\bstruct (\w+), ([A-Za-z_][\w.]*)\)")  # LOAD, READ_FIELD, offsetof


# What the C text reads of a field that not every kernel has: headers.py defines the name where there is one.
_NEWER = re.compile(r"^#ifdef HAVE_(gso_ipv4_max_size).*?\n(.*?)^#(?:else|endif)", re.DOTALL | re.MULTILINE)


def _text(btf: Btf) -> str:
    """All C text, without what is for kernels newer than the running one."""
    there = {field.path for field in btf.fields("net_device")}
    paths = sorted(bpf_sources().rglob("*.[ch]"))
    whole = "\n".join(_COMMENT.sub("", path.read_text()) for path in paths)
    return _NEWER.sub(lambda m: m[2] if m[1] in there else "", whole)


def structures(btf: Btf) -> list[str]:
    """The kernel's structures that the C text names: all that it reads is in these, or held by them by value."""
    text = _text(btf)
    named = set(_NAMED.findall(text)) - set(_DEFINED.findall(text))
    return sorted(named & set(btf.structs))


def read(btf: Btf) -> set[tuple[str, str]]:
    """The fields that the C text names: (structure, path)."""
    known = set(structures(btf))
    return {(name, path) for name, path in _READ.findall(_text(btf)) if name in known}


def fields(btf: Btf) -> list[tuple[str, Field]]:
    """Every field of these structures and of what they hold by value."""
    return [(name, field) for name in structures(btf) for field in btf.fields(name)]


def refused(claims: Iterable[tuple[str, Field]], cache: Path) -> str:
    """The compiler's words where a field does not lie where the claim says; nothing where all do."""
    source = cache / "fields.c"
    text = [_assertion(name, field) for name, field in claims]
    source.write_text("\n".join(text) + "\nint nothing(struct __sk_buff *skb)\n{\n\treturn 0;\n}\n")
    try:
        compile_source(source, cache)
    except NettopError as error:
        return f"{error.message}\n{error.hint}"
    return ""


def _assertion(name: str, field: Field) -> str:
    said = f"_Static_assert(__builtin_offsetof(struct {name}, {field.path}) == {field.offset}"
    if field.size:
        said += f" && sizeof(((struct {name} *)0)->{field.path}) == {field.size}"
    return f'{said}, "{name}.{field.path} at {field.offset}, {field.size} bytes");'

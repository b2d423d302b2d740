"""A C type as the compiler describes it: its size, the places of its fields, and its values by their names.

BCC gives the description with each map, as JSON: ``"unsigned int"``, or ``["flow", [["id", "unsigned long long"],
["local", "unsigned int", [4]]], "struct_packed"]``, in which padding has fields of its own.  Both processes use this,
so nothing heavy is imported; nettop.bpf.layout makes numpy's types of the same.

Source: src/cc/frontends/clang/b_frontend_action.cc (BMapDeclVisitor) and BPF._decode_table_type of BCC.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_SCALARS = {"char": "c", "_Bool": "?", "signed char": "b", "unsigned char": "B"}
for _name, _code in (("short", "h"), ("int", "i"), ("long", "q"), ("long long", "q")):
    _SCALARS |= {_name: _code, f"unsigned {_name}": _code.upper()}
_PADDING = "__pad_"


@dataclass(frozen=True)
class Scalar:
    """A number, or a character (``c``), by its letter in the module struct."""

    code: str

    @property
    def size(self) -> int:
        return struct.calcsize(f"={self.code}")

    align = size  # BPF's, as that of all 64-bit machines


@dataclass(frozen=True)
class Field:
    """A member of a structure; ``count`` is None where it is no array."""

    offset: int
    type: Scalar | Struct
    count: int | None = None

    @property
    def size(self) -> int:
        return self.type.size * (1 if self.count is None else self.count)


@dataclass(frozen=True)
class Struct:
    """A structure or union, in bytes; what has no name is laid out and left out."""

    name: str
    size: int
    align: int
    fields: Mapping[str, Field]


Type = Scalar | Struct


@lru_cache(maxsize=256)
def parse(description: str) -> Type:
    """The type of a description.  Raises ValueError where there is none, or what it has is unknown here: bit fields.

    BCC leaves all but the first dimension of an array out: such a type has fewer bytes than the map's value or key, by
    which it is found out (`nettop.bpf.layout`).
    """
    try:
        return _type(json.loads(description))
    except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
        raise ValueError(f"not a description of a C type: {description[:80]!r}") from error


def _type(found: Any) -> Type:
    if isinstance(found, str):
        return Scalar(_SCALARS[found])
    if len(found) != 3:
        raise TypeError(found)
    name, members, kind = found
    fields: dict[str, Field] = {}
    end, align = 0, 1
    for member in members:
        field = _member(member)
        at = 0 if kind == "union" else end
        if kind == "struct":  # with bit fields or an open end: not padded
            at = _up(at, field.type.align)
        end = max(end, at + field.size)
        align = max(align, field.type.align)
        if member[0]:
            if not member[0].startswith(_PADDING):
                fields[member[0]] = Field(at, field.type, field.count)
        elif isinstance(field.type, Struct):  # without a name: its fields are its owner's
            for inner, place in field.type.fields.items():
                fields[inner] = Field(at + place.offset, place.type, place.count)
    return Struct(name, end if kind == "struct_packed" else _up(end, align), align, fields)


def _member(member: Any) -> Field:
    """A field at no place yet: [name, type], [name, type, [count]], or an unnamed structure itself."""
    if len(member) == 2:
        return Field(0, _type(member[1]))
    if isinstance(member[2], list):
        return Field(0, _type(member[1]), int(member[2][0]))
    if isinstance(member[2], int):
        raise ValueError(f"{member[0]} is a bit field, which nettop does not read")
    return Field(0, _type(member))


def _up(size: int, align: int) -> int:
    return -(-size // align) * align


def pack(kind: Type, value: Any) -> bytes:
    """The bytes of a value: a number, or of a structure a mapping by field name; what it does not name is zeros.

    An array is a sequence, or bytes as they lie in memory.  Raises ValueError for a field that is not there.
    """
    into = bytearray(kind.size)
    _put(into, 0, kind, value)
    return bytes(into)


def _put(into: bytearray, at: int, kind: Type, value: Any) -> None:
    if isinstance(kind, Scalar):
        struct.pack_into(f"={kind.code}", into, at, value)
        return
    for name, part in value.items():
        field = kind.fields.get(name)
        if field is None:
            raise ValueError(f"struct {kind.name} has no {name}: program and module do not belong together")
        begin = at + field.offset
        if field.count is None:
            _put(into, begin, field.type, part)
        elif len(part) > (field.size if isinstance(part, bytes) else field.count):
            raise ValueError(f"struct {kind.name}: {name} has no room for {len(part)}")
        elif isinstance(part, bytes):
            into[begin : begin + len(part)] = part
        else:
            for index, each in enumerate(part):
                _put(into, begin + index * field.type.size, field.type, each)

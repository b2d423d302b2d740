"""The kernel's types as BTF has them, read from the bytes: a witness for what libbpf and clang make of them.

Format: Documentation/bpf/btf.rst.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KERNEL = Path("/sys/kernel/btf/vmlinux")
INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(9, 20)
ALIASES = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)
# Bytes that follow a type: once, and for each of its members.
ONCE = {INT: 4, ARRAY: 12, VAR: 4, DECL_TAG: 4}
EACH = {STRUCT: 12, UNION: 12, ENUM: 8, FUNC_PROTO: 8, DATASEC: 12, ENUM64: 12}


@dataclass(frozen=True)
class Field:
    """A member by its path from a structure's beginning, through what has no name; bytes. No bit field."""

    path: str
    offset: int
    size: int  # 0: an array without an end


class Btf:
    """`structs`, `variables`: the ids of structures and of variables' types by name."""

    def __init__(self, path: Path = KERNEL) -> None:
        self._data = data = path.read_bytes()
        magic, _, _, header, types, types_length, strings, _ = struct.unpack_from("<HBBIIIII", data)
        assert magic == 0xEB9F
        self._strings = header + strings
        self._places = [0]  # of each type in the data, by id; 0 is void
        self.structs: dict[str, int] = {}
        self.variables: dict[str, int] = {}
        at, end = header + types, header + types + types_length
        unpack = struct.Struct("<III").unpack_from
        while at < end:
            name, info, last = unpack(data, at)
            kind, members = info >> 24 & 31, info & 0xFFFF
            if kind == STRUCT and name:
                self.structs.setdefault(self._text(name), len(self._places))
            if kind == VAR:
                self.variables[self._text(name)] = last
            self._places.append(at)
            at += 12 + ONCE.get(kind, 0) + members * EACH.get(kind, 0)

    def size(self, name: str) -> int:
        return self._size(self.structs[name])

    def size_of(self, ident: int) -> int:
        return self._size(ident)

    def described(self, ident: int) -> Any:
        """A type as BCC describes it to Python (nettop.bpf.c_layout): no unions and no arrays of arrays."""
        kind, at, members, size = self._type(ident)
        if kind == INT:
            if self._text(struct.unpack_from("<I", self._data, at)[0]) == "char":
                return "char"
            signed = struct.unpack_from("<I", self._data, at + 12)[0] >> 24 & 1
            return ("" if signed else "unsigned ") + {1: "char", 2: "short", 4: "int", 8: "long long"}[size]
        if kind == PTR:
            return "unsigned long long"
        assert kind == STRUCT, kind
        assert not struct.unpack_from("<I", self._data, at + 4)[0] >> 31, "bit fields"
        fields: list[Any] = []
        end = 0
        for number in range(members):
            name, of, bits = struct.unpack_from("<III", self._data, at + 12 + 12 * number)
            if bits // 8 > end:
                fields.append([f"__pad_{number}", "char", [bits // 8 - end]])
            end = bits // 8 + self._size(of)
            inner = self._type(of)
            if inner[0] == ARRAY:
                element, _, count = struct.unpack_from("<III", self._data, inner[1] + 12)
                fields.append([self._text(name), self.described(element), [count]])
            else:
                fields.append([self._text(name), self.described(of)])
        if size > end:
            fields.append(["__pad_end", "char", [size - end]])
        return [self._text(struct.unpack_from("<I", self._data, at)[0]), fields, "struct_packed"]

    def fields(self, name: str) -> Iterator[Field]:
        """Of a structure and of all that it holds by value."""
        return self._fields(self.structs[name], "", 0)

    def _text(self, offset: int) -> str:
        start = self._strings + offset
        return self._data[start : self._data.index(0, start)].decode()

    def _type(self, ident: int) -> tuple[int, int, int, int]:
        """Kind, place, number of members, size or the type that it stands for; without aliases."""
        while True:
            at = self._places[ident]
            _, info, last = struct.unpack_from("<III", self._data, at)
            kind = info >> 24 & 31
            if kind not in ALIASES or not last:
                return (kind, at, info & 0xFFFF, last) if ident else (0, 0, 0, 0)
            ident = last

    def _size(self, ident: int) -> int:
        kind, at, _, last = self._type(ident)
        if kind == PTR:
            return 8
        if kind == ARRAY:
            element, _, count = struct.unpack_from("<III", self._data, at + 12)
            return self._size(element) * count
        return last

    def _fields(self, ident: int, before: str, base: int) -> Iterator[Field]:
        _, at, members, _ = self._type(ident)
        flagged = struct.unpack_from("<I", self._data, at + 4)[0] >> 31
        for number in range(members):
            name, kind_of, where = struct.unpack_from("<III", self._data, at + 12 + 12 * number)
            bits = where & 0xFFFFFF if flagged else where
            if flagged and where >> 24:
                continue
            path, offset = before + self._text(name), base + bits // 8
            if name:
                yield Field(path, offset, self._size(kind_of))
            if self._type(kind_of)[0] in (STRUCT, UNION):
                yield from self._fields(kind_of, path + "." * bool(name), offset)

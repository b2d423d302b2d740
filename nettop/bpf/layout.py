"""Which maps a probe reads, and how numpy reads them: as the compiler has laid them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from nettop.bpf import c_layout
from nettop.bpf.protocol import MapInfo


@dataclass(frozen=True)
class Map:
    """A map that is read, and what of it.

    ``read`` says how: ``percpu`` gives value[entries, cpus]; ``array`` value[entries]; ``hash`` the pair
    (key[n], value[n]); ``ring`` the events since the last reading, value[n]; ``none`` is never read as a whole.
    ``fields``, ``keys``: the fields of its values and keys that the fold uses, with spaces between them (``id
    dir.bytes``).  A program that lacks one of them is refused before anything is read.
    ``every_ns`` asks for a reading more often than once a frame: the readings then come as a list of (time in ns,
    value), oldest first (rings are drained ten times a second in any case and come joined).
    ``scan`` marks what is large: with --scan-interval it is read only so often, and is missing from the readings of
    the frames between.
    ``entries`` gives its size by the settings; as declared in C where it is None.
    """

    name: str
    read: Literal["percpu", "array", "hash", "ring", "none"]
    fields: str = ""
    keys: str = ""
    entries: Callable[[Any], int] | None = None
    every_ns: int = 0
    scan: bool = False


class Layout(NamedTuple):
    """Of a map's values and keys."""

    value: np.dtype[Any]
    key: np.dtype[Any]


def layout_of(info: MapInfo, declared: Map) -> Layout:
    """The layout of a map as it was made.  Raises ValueError where that is not what the module has declared."""
    ring = declared.read == "ring"  # for the kernel its events have no size
    found: list[np.dtype[Any]] = []
    for what, description, size, fields in (
        ("value", info.value_layout, info.value_size, declared.fields.split()),
        ("key", info.key_layout, info.key_size, declared.keys.split()),
    ):
        dtype = dtype_of(description)
        if ring and fields and dtype.names is None:
            raise ValueError(
                f"the ring {info.name} does not say what its events are: declare it by RINGBUF of nettop.h"
            )
        if not ring and size != dtype.itemsize:
            raise ValueError(
                f"a {what} of the map {info.name} has {size} bytes, and {dtype.itemsize} by its description"
            )
        if lacking := [field for field in fields if not _has(dtype, field)]:
            raise ValueError(
                f"a {what} of the map {info.name} has no {', '.join(lacking)}: "
                "program and module do not belong together"
            )
        found.append(dtype)
    return Layout(*found)


def _has(dtype: np.dtype[Any], field: str) -> bool:
    for name in field.split("."):
        if name not in (dtype.base.names or ()):
            return False
        dtype = dtype.base[name]
    return True


@lru_cache(maxsize=256)
def dtype_of(description: str) -> np.dtype[Any]:
    """numpy's type of a C type as the compiler describes it: structures as records, characters as bytes (S16)."""
    return _dtype(c_layout.parse(description))


def _dtype(kind: c_layout.Type) -> np.dtype[Any]:
    if isinstance(kind, c_layout.Scalar):
        return np.dtype({"c": "S1", "?": "?"}.get(kind.code, f"{'iu'[kind.code.isupper()]}{kind.size}"))
    return np.dtype(
        {
            "names": list(kind.fields),
            "formats": [_of_field(field) for field in kind.fields.values()],
            "offsets": [field.offset for field in kind.fields.values()],
            "itemsize": kind.size,
        }
    )


def _of_field(field: c_layout.Field) -> np.dtype[Any]:
    base = _dtype(field.type)
    if field.count is None:
        return base
    if base.char == "S":  # a text
        return np.dtype(f"S{field.count}")
    return np.dtype((base, (field.count,)))

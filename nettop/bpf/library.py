"""Shared libraries by ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any


def load(names: Sequence[str], functions: Mapping[str, tuple[Any, ...]]) -> ctypes.CDLL | None:
    """The first of these libraries that has all of these functions, each declared by its result and its arguments."""
    for name in names:
        try:
            library = ctypes.CDLL(name)
            for function, (result, *arguments) in functions.items():
                getattr(library, function).restype = result
                getattr(library, function).argtypes = arguments
        except (OSError, AttributeError):
            continue
        return library
    return None

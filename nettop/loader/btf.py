"""The kernel's own type information (BTF), as libbpf reads it: by ctypes."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Mapping
from functools import cache

from nettop.bpf import library
from nettop.core.errors import ExitCode, NettopError

STRUCT, ENUM, TYPEDEF, FUNC = 4, 6, 8, 12  # BTF_KIND_*

_POINTER, _U32, _TEXT = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_char_p
_PRINT = ctypes.CFUNCTYPE(None, _POINTER, _TEXT, _POINTER)
_FUNCTIONS = {  # what each returns, and its arguments
    "btf__load_vmlinux_btf": (_POINTER,),
    "btf__find_by_name_kind": (ctypes.c_int32, _POINTER, _TEXT, _U32),
    "btf__resolve_size": (ctypes.c_int64, _POINTER, _U32),
    "btf__free": (None, _POINTER),
    "btf_dump__new": (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
    "btf_dump__dump_type": (ctypes.c_int, _POINTER, _U32),
    "btf_dump__free": (None, _POINTER),
}


@cache
def _libbpf() -> ctypes.CDLL:
    """libbpf itself, else the copy of it that BCC brings along."""
    if found := library.load(("libbpf.so.1", "libbcc_bpf.so.0", "libbpf.so.0"), _FUNCTIONS):
        return found
    raise NettopError(
        "libbpf is not installed", "install it: apt install libbpf1 (Debian, Ubuntu)", ExitCode.UNSUPPORTED
    )


class Btf:
    """The running kernel's.  Raises OSError where there is none, or libbpf does not understand it."""

    def __init__(self) -> None:
        self._lib = _libbpf()
        self._btf = self._lib.btf__load_vmlinux_btf()
        if not self._btf:
            raise OSError(errno.EOPNOTSUPP, "libbpf finds no type information (BTF) of the kernel")

    def find(self, name: str, kind: int) -> int:
        """A type's number; 0 or less where there is none."""
        return int(self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind))

    def size(self, ident: int) -> int:
        """Bytes of a type."""
        return int(self._lib.btf__resolve_size(self._btf, ident))

    def dump(self, named: Mapping[int, tuple[str, ...]]) -> str:
        """C text of these types, by kind, and of all that they hold by value; unknown names are left out."""
        parts: list[bytes] = []
        line = ctypes.create_string_buffer(4096)
        vsnprintf = ctypes.CDLL(None).vsnprintf
        vsnprintf.argtypes = [_TEXT, ctypes.c_size_t, _TEXT, _POINTER]

        def append(_context: int, form: bytes, arguments: int) -> None:
            # The callback is handed a va_list, which only libc can walk.
            vsnprintf(line, len(line), form, arguments)
            parts.append(line.value)

        print_line = _PRINT(append)
        # A null options structure is what libbpf takes for "defaults" in every release since 0.6.
        dump = self._lib.btf_dump__new(self._btf, ctypes.cast(print_line, _POINTER), None, None)
        if not dump:
            raise OSError("libbpf cannot dump the kernel's BTF")
        try:
            for kind, names in named.items():
                for ident in (self.find(name, kind) for name in names):
                    if ident > 0:
                        self._lib.btf_dump__dump_type(dump, ident)
        finally:
            self._lib.btf_dump__free(dump)
        return b"".join(parts).decode()

    def close(self) -> None:
        """Give the memory back."""
        self._lib.btf__free(self._btf)

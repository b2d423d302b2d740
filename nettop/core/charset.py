"""Whether what is drawn may be more than ASCII: what the locale says, and not what Python makes of it.

In the C locale Python takes UTF-8 all the same (PEP 538, PEP 540), so its own encodings say nothing.
"""

from __future__ import annotations

import locale
import os
from collections.abc import Mapping
from pathlib import Path

CHARSETS = ("auto", "ascii", "unicode")


def draws_unicode(charset: str, environment: Mapping[str, str] | None = None) -> bool:
    """Whether block graphics and the like may be drawn; ``charset`` is one of CHARSETS.

    ``auto``: where the locale is one of UTF-8, but on the Linux console, whose font has too few of them.
    """
    if charset != "auto":
        return charset == "unicode"
    environment = _started_with() if environment is None else environment
    if environment.get("TERM") == "linux":
        return False
    name = next((v for k in ("LC_ALL", "LC_CTYPE", "LANG") if (v := environment.get(k))), "")
    base, _, codeset = name.partition("@")[0].partition(".")
    if codeset:  # by its name: over ssh it is often one that this machine does not have
        return _is_utf8(codeset)
    return base not in ("", "C", "POSIX") and _is_utf8(_codeset())


def _is_utf8(codeset: str) -> bool:
    return codeset.lower().replace("-", "") == "utf8"


def _codeset() -> str:
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "")
        return locale.nl_langinfo(locale.CODESET)
    except locale.Error:  # this machine does not have it
        return ""
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def _first() -> Mapping[str, str] | None:
    try:
        pairs = (part.partition(b"=") for part in Path("/proc/self/environ").read_bytes().split(b"\0"))
    except OSError:
        return None
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


# Now, at the import: who becomes another user may not read it any more.
_FIRST = _first()


def _started_with() -> Mapping[str, str]:
    """The environment that this process was started with: Python may have put another LC_CTYPE into its own."""
    now, first = dict(os.environ), _FIRST
    if first is None:
        return now
    if "LC_CTYPE" not in first and now.get("LC_CTYPE") in ("C.UTF-8", "C.utf8", "UTF-8"):
        del now["LC_CTYPE"]
    elif first.get("LC_CTYPE") in ("C", "POSIX", ""):
        now["LC_CTYPE"] = first["LC_CTYPE"]
    return now

"""Where the program's own files are."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def bpf_sources() -> Path:
    """The folder bpf_src/: beside the package in a checkout, inside it when installed."""
    inside = PACKAGE / "bpf_src"
    return inside if inside.exists() else PACKAGE.parent / "bpf_src"


def bpf_include() -> Path:
    """The headers that probes share."""
    return bpf_sources() / "include"


def bpf_source(probe: str) -> Path:
    """A probe's C file: ``probe.c``, or ``probe/probe.c`` with its parts beside it.

    Raises FileNotFoundError where there is none.
    """
    for place in (bpf_sources() / f"{probe}.c", bpf_sources() / probe / f"{probe}.c"):
        if place.exists():
            return place
    raise FileNotFoundError(f"{probe}.c")

"""The installed program: where its files are, and its version."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
OWN_PROBES = Path("/etc/nettop/probes.d")  # a folder for each probe of a user's own, see nettop/bpf/own.py


def _carried(name: str) -> Path:
    """A folder that is beside the package in a checkout, and inside it when installed."""
    inside = PACKAGE / name
    return inside if inside.exists() else PACKAGE.parent / name


def bpf_sources() -> Path:
    """The programs of the built-in probes."""
    return _carried("bpf_src")


def examples() -> Path:
    """Probes as users may write them."""
    return _carried("examples")


def bpf_include() -> Path:
    """The headers that probes share."""
    return bpf_sources() / "include"


def bpf_source(probe: str) -> Path:
    """A probe's C file: ``probe.c``, or ``probe/probe.c`` with its parts beside it; or else that of a user's own.

    Raises FileNotFoundError where there is none.
    """
    for place in (
        bpf_sources() / f"{probe}.c",
        bpf_sources() / probe / f"{probe}.c",
        OWN_PROBES / probe / f"{probe}.c",
    ):
        if place.exists():
            return place
    raise FileNotFoundError(f"{probe}.c")


def version() -> str:
    """The version of the installed program."""
    try:
        return metadata.version("nettop")
    except metadata.PackageNotFoundError:
        return "unknown"

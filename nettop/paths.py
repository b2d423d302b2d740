"""Where the program's own files are."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def bpf_source(name: str) -> Path:
    """A C file of bpf_src/: beside the package in a checkout, inside it when installed."""
    for folder in (PACKAGE / "bpf_src", PACKAGE.parent / "bpf_src"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(name)

"""The version of the installed program."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it brings numpy, whose threads would keep privileges
    pass


def version() -> str:
    """The version of the installed program."""
    try:
        return metadata.version("nettop")
    except metadata.PackageNotFoundError:
        return "unknown"

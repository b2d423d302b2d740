"""The lab's own C programs, compiled with gcc when first used (packages gcc and libc6-dev)."""

import hashlib
import os
import shutil
from pathlib import Path

from lab.errors import LabError
from lab.shell import run

SOURCES = Path(__file__).parent
CACHE = Path("/var/cache/nettop-lab")
OBJECTS = CACHE / "objects"  # BPF objects that tests compile: made anew only where a source has changed
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")


def program(name: str) -> str:
    """Path of the compiled `<name>.c`, kept by a hash of its text. Raises `LabError` without a compiler."""
    source = SOURCES / f"{name}.c"
    text = source.read_bytes() + (SOURCES / "lab.h").read_bytes()
    digest = hashlib.sha256(" ".join(FLAGS).encode() + text).hexdigest()[:16]
    binary = CACHE / f"{name}-{digest}"
    if binary.exists():
        return str(binary)
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise LabError("no C compiler: install gcc and libc6-dev")
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    unfinished = CACHE / f"{binary.name}.{os.getpid()}"
    run([compiler, *FLAGS, "-o", str(unfinished), str(source)], timeout=60)
    unfinished.rename(binary)  # Two runs may compile at once: each rename leaves a whole program.
    return str(binary)

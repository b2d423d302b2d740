"""Parts of bpf_src that need no kernel, compiled as a shared library."""

import ctypes
import shutil
import subprocess
from pathlib import Path

from nettop.core.paths import bpf_include, bpf_source


def library(probe: str, text: str, folder: Path, *headers: Path) -> ctypes.CDLL:
    """This C text, which includes the probe's parts and those of ``headers``; built in ``folder``."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "no C compiler: install gcc and libc6-dev"
    source, built = folder / f"{probe}.c", folder / f"{probe}.so"
    source.write_text(text)
    places = [f"-I{place}" for place in (*headers, bpf_include(), bpf_source(probe).parent)]
    command = [compiler, "-O2", "-shared", "-fPIC", "-w", *places, "-o", built, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(built))

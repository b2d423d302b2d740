"""Run nettop with a loader that has fewer mechanisms to choose from, as on another kernel.

    NETTOP_VIA=clsact NETTOP_WITHOUT=hook,hook python narrowed.py nettop ARGS ...
    NETTOP_VIA=clsact                          python narrowed.py DRIVER.py ARGS ...

The environment is the tests' own (program.py); nettop does not read it.
"""

import os
import runpy
import sys
from functools import partial
from pathlib import Path

LOADER = Path(__file__).with_name("narrowed_loader.py")


def main() -> None:
    """Start the program of the command line, with another command for its loader."""
    from nettop.collect import loader_client

    # -P: the lab's own modules are not importable there.
    command = (
        sys.executable,
        "-P",
        str(LOADER),
        os.environ.get("NETTOP_VIA", ""),
        os.environ.get("NETTOP_WITHOUT", ""),
    )
    loader_client.start_loader = partial(loader_client.start_loader, command)
    del sys.argv[0]
    if sys.argv[0].endswith(".py"):
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    main()

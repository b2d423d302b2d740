"""``--new-probe``: a probe of a user's own that works, to be changed: the example under another name."""

from __future__ import annotations

import shlex
from pathlib import Path

from nettop.bpf.protocol import NAME
from nettop.core import paths
from nettop.core.errors import ExitCode, NettopError

EXAMPLE = "udpbuf"
_NEXT = """\
{folder} has a probe that works: how full the receive buffers of UDP sockets are. Change it to yours:
  {name}.c       the programs, each hook in the name of a function
  probe.py       its columns, as the C structure has them
  {name}.md      what it shows, for its users
  test_{name}.py what is right by another witness: sudo python3 {quoted}/test_{name}.py
It is compiled by root, so it is used where only root can write:
  sudo install -d -o root -g root -m 755 {place}
  sudo install -o root -g root -m 644 {quoted}/* {place}
  sudo nettop -p {name}"""


def write(name: str, where: Path) -> str:
    """Write the folder NAME into ``where``, which must not have it; what to do next.

    Raises NettopError (2) where that cannot be.
    """
    if not NAME.match(name):
        raise NettopError(
            f"{name!r} is no name for a probe",
            "small letters, figures and _, a letter first; 32 at most",
            ExitCode.USAGE,
        )
    from nettop.probes.own import taken  # brings all probes

    if name in taken():
        raise NettopError(f"the name {name} is taken", "take another one", ExitCode.USAGE)
    folder = where / name
    try:
        folder.mkdir()
        for path in sorted(p for p in (paths.examples() / EXAMPLE).iterdir() if p.is_file()):
            text = path.read_text(encoding="utf-8").replace(EXAMPLE, name)
            with (folder / path.name.replace(EXAMPLE, name)).open("x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError as error:
        raise NettopError(f"{error.filename} is there already", "take another name", ExitCode.USAGE) from None
    except OSError as error:
        raise NettopError(
            f"{error.filename}: {error.strerror}", "go where you may write", ExitCode.USAGE
        ) from None
    return _NEXT.format(
        folder=folder, name=name, quoted=shlex.quote(f"./{name}"), place=paths.OWN_PROBES / name
    )

"""Each mechanism of each hook, tried on this kernel by the loader's own code; and what a guest reports of itself."""

import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from nettop.bpf.hooks import Candidate
from nettop.bpf.protocol import Plan
from nettop.loader import attach
from nettop.loader.cache import cache_directory
from nettop.loader.clsact import Clsact
from nettop.loader.compile import compile_probe
from nettop.loader.mechanisms import Target
from nettop.probes.base import all_probes

INTERFACE = "lo"
TIME_LIMIT_S = float(
    os.environ.get("NETTOP_VM_TEST_LIMIT", "400")
)  # more, where the host has other things to do


@dataclass(frozen=True)
class Way:
    """One candidate of a hook; `refused` is empty where it holds."""

    via: str
    targets: tuple[str, ...]
    refused: str


def version() -> tuple[int, int]:
    """The kernel's: (6, 12)."""
    major, minor = re.findall(r"\d+", platform.release())[:2]
    return int(major), int(minor)


def climb() -> dict[tuple[str, str], list[Way]]:
    """Attach each candidate by itself, to an idle loopback, and detach it."""
    found: dict[tuple[str, str], list[Way]] = {}
    target = Target(INTERFACE, 1, Clsact())
    cache, _ = cache_directory()  # nettop's own: later runs find everything compiled
    for name in all_probes():
        plan = Plan(INTERFACE, (name,), (("flows.flows", 1024),))
        probe = attach.Attached(name, compile_probe(name, cache))
        attach.make_maps(probe, plan)
        for hook in probe.object.hooks:
            ways = found.setdefault((name, hook.name), [])
            for candidate in hook.candidates:
                refused = ""
                try:
                    _has_programs(probe, candidate)
                    attach._try(probe, hook, candidate, target)
                except Exception as error:  # whatever it is, it is the kernel's answer
                    refused = str(getattr(error, "strerror", None) or error)
                finally:
                    target.clsact.detach()
                    attach.handed_over(probe)
                targets = tuple(a.target for a in candidate.attachments)
                ways.append(Way(candidate.via, targets, refused))
        probe.close()
    return found


def _has_programs(probe: attach.Attached, candidate: Candidate) -> None:
    """The C side leaves out what this kernel's types do not allow."""
    if not all(a.program in probe.object.programs for a in candidate.attachments):
        raise LookupError("the kernel's types (BTF) have nothing of it")


def bcc_version() -> str:
    import bcc

    return str(bcc.__version__)


def llvm_version() -> str:
    """Of the LLVM that Debian's BCC is linked with: 14, 19."""
    names = " ".join(path.name for path in Path("/usr/lib").glob("*-linux-gnu/libLLVM*"))
    return ", ".join(sorted(set(re.findall(r"libLLVM(?:-|\.so\.)(\d+)", names))))


def machine() -> dict[str, object]:
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "bcc": bcc_version(),
        "llvm": llvm_version(),
    }


def tell(name: str, what: dict[str, object]) -> bool:
    """Leave it for docs/kernels.md (tests/vm/vm_guests.py); whether anybody asked for it."""
    out = os.environ.get("NETTOP_VM_OUT")
    if out:
        Path(out, f"told-{name}.json").write_text(json.dumps(machine() | what))
    return bool(out)


def table(ways: dict[tuple[str, str], list[Way]]) -> dict[str, object]:
    return {
        "hooks": [
            {"probe": probe, "hook": hook, "ways": [asdict(way) for way in found]}
            for (probe, hook), found in ways.items()
        ]
    }

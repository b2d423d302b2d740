"""nettop's loader, with each hook's mechanisms in another order, and without some hooks.

    python -P narrowed_loader.py VIA WITHOUT SOCKET

VIA comes first where a hook has it; the hooks of WITHOUT (hook,hook) have no mechanism at all.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nettop.bpf.hooks import Hook
from nettop.loader import __main__ as loader
from nettop.loader.compile import TYPED_ONLY, Object

OLDER = ("raw_tracepoint", "fentry", "kprobe")  # whose programs are not compiled at first


def narrowed(compiler: Callable[..., Object], via: str, without: frozenset[str]) -> Callable[..., Object]:
    """The compiler, whose objects have fewer mechanisms."""

    def hook(whole: Hook) -> Hook:
        chosen = () if whole.name in without else whole.candidates
        return replace(whole, candidates=tuple(sorted(chosen, key=lambda c: c.via != via)))

    def compiled(name: str, cache: Path, defines: tuple[str, ...] = (), *others: object) -> Object:
        if via in OLDER:
            defines = tuple(word for word in defines if word not in TYPED_ONLY)
        made = compiler(name, cache, defines, *others)
        return replace(made, hooks=tuple(map(hook, made.hooks)))

    return compiled


if __name__ == "__main__":
    mechanism, hooks = sys.argv[1:3]
    del sys.argv[1:3]
    loader.compile_probe = narrowed(loader.compile_probe, mechanism, frozenset(hooks.split(",")) - {""})
    sys.exit(loader.main())

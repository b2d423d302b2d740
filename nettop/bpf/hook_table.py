"""Hook tables: lines of a probe's C text that make its programs (bpf_src/include/hook.h), read as what to attach."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import IntFlag

from nettop.bpf.hooks import Attachment, Candidate, Hook, Via

_LINE = re.compile(
    r"^(TRACEPOINT|FUNCTION|EITHER|KPROBE|NETFILTER|FALLBACK)\((\w+), (\w+), (\w+),(.*?)\)$", re.M | re.S
)
_TARGETS = re.compile(r'"([^"]*)"')
_TRACEPOINT: tuple[tuple[Via, str], ...] = (("tp_btf", ""), ("raw_tracepoint", "_raw"))
_FUNCTION: tuple[tuple[Via, str], ...] = (("fentry", ""), ("kprobe", "_kprobe"))
# For each string of a line: the mechanisms that watch its targets, with the ending of the program's name.
_MECHANISMS: Mapping[str, tuple[tuple[tuple[Via, str], ...], ...]] = {
    "TRACEPOINT": (_TRACEPOINT,),
    "FUNCTION": (_FUNCTION,),
    "FALLBACK": (_FUNCTION,),
    "EITHER": (_TRACEPOINT, _FUNCTION),
    "KPROBE": ((("kprobe", ""),),),
    "NETFILTER": ((("netfilter", ""),),),
}


def hooks(text: str, flags: type[IntFlag]) -> tuple[Hook, ...]:
    """The hooks of this C text, in its order.

    Raises ValueError where a line has not the strings that its kind has, KeyError for a flag that is none of ``flags``.
    """
    found: dict[str, dict[Via, list[Attachment]]] = {}
    missing: dict[str, int] = {}
    for kind, hook, flag, program, rest in _LINE.findall(text):
        missing[hook] = missing.get(hook, 0) | (0 if flag == "0" else flags[flag])
        for mechanisms, targets in zip(_MECHANISMS[kind], _TARGETS.findall(rest), strict=True):
            for via, ending in mechanisms:
                attached = found.setdefault(hook, {}).setdefault(via, [])
                attached += (Attachment(program + ending, t) for t in _places(via, targets))
    return tuple(
        Hook(name, tuple(Candidate(via, tuple(a)) for via, a in vias.items()), flag=missing[name])
        for name, vias in found.items()
    )


def _places(via: Via, targets: str) -> tuple[str, ...]:
    if via == "netfilter":
        return tuple(f"{family} {targets} first" for family in ("ipv4", "ipv6"))
    return tuple(targets.split())

"""Where each stage is watched: the hook table of bpf_src/stages/hooks.h."""

from __future__ import annotations

from nettop.bpf.config import Flag
from nettop.bpf.hook_table import hooks
from nettop.core.paths import bpf_source

HOOKS = hooks((bpf_source("stages").parent / "hooks.h").read_text(), Flag)

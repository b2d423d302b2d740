"""Who may import what, proven in processes of their own: import-linter reads lines, this sees what is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fakes import record, traffic

ROOT = Path(__file__).parents[2]
PROBES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "nettop/probes").rglob("*.py")
    if path.stem != "__init__"
]
SAY = "\nimport sys; print(*sys.modules, file=sys.stderr)"
SCREEN, HOST = {"textual", "rich"}, {"pyroute2", "psutil"}


def loaded(code: str) -> set[str]:
    """All modules that are there after running the code."""
    done = subprocess.run(
        [sys.executable, "-c", code + SAY], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_this_test_can_see_an_import():
    assert {"textual", "numpy"} <= loaded("import textual, numpy")


@pytest.mark.parametrize("form", ["text", "ndjson", "csv"])
def test_a_headless_replay_needs_neither_textual_nor_bcc_nor_the_kernel_side(tmp_path, form):
    path = record(tmp_path / "x", [traffic()])
    code = f"from nettop import cli; assert cli.main(['-b', '--replay', {str(path)!r}, '--format', {form!r}]) == 0"
    ours = {"nettop.collect", "nettop.loader", "nettop.ui"}
    assert not loaded(code) & {*SCREEN, *HOST, "bcc", *ours}


@pytest.mark.parametrize(
    ("modules", "never"),
    [
        (["nettop.record.recording"], {"textual", "bcc", *HOST}),
        (["nettop.cli", "nettop.batch", "nettop.output", "nettop.collect.live"], {*SCREEN, "bcc"}),
        (PROBES, {*SCREEN, *HOST, "bcc"}),
        (["nettop.loader.__main__"], {*SCREEN, "numpy", "pyroute2"}),
        (["nettop.cli"], {"numpy", "textual", "bcc", "psutil", "asyncio", "jsonschema"}),
        (["nettop.session"], {*SCREEN, "bcc"}),
    ],
    ids=[
        "a replay's source",
        "headless live runs",
        "probes",
        "the loader",
        "the command line",
        "the session",
    ],
)
def test_what_is_never_imported(modules, never):
    assert not loaded(f"import {', '.join(modules)}") & never

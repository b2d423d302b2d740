"""Who may import what, proven in processes of their own: import-linter reads lines, this sees what is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import traffic

from nettop.record.recording import Header, Recorder

ROOT = Path(__file__).parents[2]
PROBES = sorted(
    ".".join(path.relative_to(ROOT / "nettop" / "probes").with_suffix("").parts)
    for path in (ROOT / "nettop" / "probes").rglob("*.py")
    if path.stem != "__init__"
)
SAY = "\nimport json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})), file=sys.stderr)"


def loaded(code: str) -> set[str]:
    """Top-level modules that are there after running the code."""
    done = subprocess.run(
        [sys.executable, "-c", code + SAY], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_this_test_can_see_an_import():
    assert {"textual", "numpy"} <= loaded("import textual, numpy")


@pytest.mark.parametrize("form", ["text", "ndjson", "csv"])
def test_a_headless_replay_needs_neither_textual_nor_bcc_nor_the_kernel_side(tmp_path, form):
    path = tmp_path / "x"
    with Recorder(str(path), Header(), 10, "") as recorder:
        recorder.write(traffic())
    code = f"from nettop import cli; assert cli.main(['-b', '--replay', {str(path)!r}, '--format', {form!r}]) == 0"
    assert not loaded(code) & {"textual", "rich", "bcc", "pyroute2", "psutil"}
    inside = (
        "\nimport sys; assert not [m for m in sys.modules if m.startswith(('nettop.collect', 'nettop.loader',"
    )
    loaded(code + inside + " 'nettop.collect.live', 'nettop.ui'))]")


def test_the_source_of_a_replay_alone_needs_no_kernel():
    modules = loaded("import nettop.record.sources, nettop.record.recording")
    assert not modules & {"textual", "bcc", "pyroute2", "psutil"}


def test_headless_live_runs_import_no_textual():
    assert not loaded("import nettop.cli, nettop.batch, nettop.output, nettop.collect.live") & {
        "textual",
        "rich",
        "bcc",
    }


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_imports_neither_bcc_nor_textual(name):
    assert not loaded(f"import nettop.probes.{name}") & {"bcc", "textual", "rich", "pyroute2", "psutil"}


def test_the_loader_imports_neither_textual_nor_numpy():
    modules = loaded("import nettop.loader.__main__")
    assert not modules & {"textual", "rich", "numpy", "pyroute2"}


def test_parsing_the_command_line_is_light():
    assert not loaded("import nettop.cli") & {"numpy", "textual", "bcc", "psutil", "asyncio", "jsonschema"}


def test_the_session_of_the_screen_has_no_toolkit():
    assert not loaded("import nettop.session") & {"textual", "rich", "bcc"}

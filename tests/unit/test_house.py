"""How the code is laid out: what is declared once, what names no probe, and how long a file may be."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from nettop.output import reference
from nettop.probes.base import all_probes

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nettop"
MOST_LINES, MOST_OF_A_FUNCTION = 600, 80
C_FILES = sorted((ROOT / "bpf_src").rglob("*.[ch]"))
MAY_NAME_PROBES = ("probes", "analysis")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def outside() -> list[Path]:
    return [path for path in modules() if path.relative_to(PACKAGE).parts[0] not in MAY_NAME_PROBES]


# --- names of probes -------------------------------------------------------------------------------------------------


def words_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each name and each string that is no docstring."""
    docstrings = {
        node.body[0].lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME or (
            token.type == tokenize.STRING and token.start[0] not in docstrings
        ):
            yield token.start[0], token.string


# The sysfs file of a device's interrupt line.
ALLOWED = {"netdev/interrupts.py": {'"irq"'}}
OPTION = re.compile(r"max[_-]flows")  # which sizes a table
PARTS = re.compile(rf"(?<![a-z])({'|'.join(all_probes())})(?![a-z])")


def named(path: Path) -> list[str]:
    allowed = ALLOWED.get(str(path.relative_to(PACKAGE)), set())
    return [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for line, text in words_of(path.read_text(encoding="utf-8"))
        if text not in allowed and PARTS.search(OPTION.sub("", text))
    ]


def test_no_module_outside_probes_and_analysis_names_a_probe():
    assert [found for path in outside() for found in named(path)] == []


def test_a_name_would_be_found():
    source = (PACKAGE / "core" / "units.py").read_text(encoding="utf-8")
    for line in ("import nettop.probes.flows.rows", 'x = "stages"', "stages_one_in = 1", 'f"irq {1}"'):
        assert any(PARTS.search(text) for _, text in words_of(f"{source}\n{line}\n")), line


# --- lengths ---------------------------------------------------------------------------------------------------------


def reasoned(text: str) -> bool:
    """Whether the first lines say why the file, or its longest function, is that long."""
    return "long because" in " ".join(text.split()[:120]).lower()


@pytest.mark.parametrize("path", [*modules(), *C_FILES], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_too_long(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES or reasoned(text)


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def c_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Functions begin at the margin and end with the first brace there, as clang-format lays them out."""
    name, start = "", 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if found := re.match(r"^[a-z].*?(\w+)\(", line):
            name, start = found[1], number
        elif line == "}" and name:
            yield name, number - start + 1
            name = ""


def test_no_function_is_too_long():
    lengths = [(path, *each) for path in modules() for each in python_functions(path)]
    lengths += [
        (path, *each) for path in C_FILES for each in c_functions(path) if not reasoned(path.read_text())
    ]
    assert [each for each in lengths if each[2] > MOST_OF_A_FUNCTION] == []


# --- the reference ---------------------------------------------------------------------------------------------------


def test_the_schema_and_the_page_are_what_is_declared(tmp_path):
    """``python -m nettop.output.reference docs`` writes them."""
    texts = {
        name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("frame.md", "frame.schema.json")
    }
    shutil.copy(ROOT / "docs/frame.md", tmp_path)  # whose tables are written anew
    reference.write(tmp_path)
    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in texts} == texts


# --- a field ---------------------------------------------------------------------------------------------------------

ONE_LINE = '    column("remark", "S16", "what somebody says of it", kind=TEXT),\n'
EVERYWHERE = """
import json, sys
from dataclasses import replace
from pathlib import Path
from nettop import cli, settings
from nettop.output import WRITERS, Style, reference
from nettop.record.recording import Recording, Recorder, Header
from nettop.record.redact import this_run

with Recording(sys.argv[1]) as recording:
    frame = recording.frame(20)
flows = frame.sections["flows"]
rows = flows.rows.copy()
rows["remark"] = [b"b", b"a"] * (len(rows) // 2) + [b"c"] * (len(rows) % 2)
frame = replace(frame, sections={**frame.sections, "flows": replace(flows, rows=rows)})

def written(kind, frame, **style):
    texts = []
    WRITERS[kind](texts.append, Style(**style)).write(frame)
    return "".join(texts)

asked = settings.build(settings.parse(["lo", "-b", "--sort", "remark"]), Path("/nonexistent"))
recorder = Recorder(sys.argv[2], Header(), 1000, "")
recorder.record(frame)
recorder.close()
with Recording(sys.argv[2]) as again:
    replayed = again.frame(0).sections["flows"].rows["remark"].tolist()
print(json.dumps({
    "ndjson": json.loads(written("ndjson", frame))["flows"][0]["remark"],
    "csv": written("csv", frame).splitlines()[0].split(",")[-1],
    "sorted": [row["remark"] for row in json.loads(written("ndjson", frame, sort=cli.checked(asked).sort))["flows"]],
    "hidden": json.loads(written("ndjson", this_run().frame(frame)))["flows"][0]["remark"],
    "replayed": sorted({each.decode() for each in replayed}),
    "schema": reference.frame_schema()["properties"]["flows"]["items"]["properties"]["remark"],
    "page": "| `remark` |  | what somebody says of it |" in reference.tables("flows"),
}))
"""


def test_a_field_of_a_flow_is_one_line(tmp_path):
    """A column that a copy of the package declares is in the frame, the schema, the page, CSV, --sort, and redacted."""
    copy = tmp_path / "nettop"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "bpf_src", tmp_path / "bpf_src")
    rows = copy / "probes" / "flows" / "rows.py"
    text = rows.read_text(encoding="utf-8")
    end = text.index(")  # fmt: skip\nROW = ")
    rows.write_text(text[:end] + ONE_LINE + text[end:], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", EVERYWHERE, str(PACKAGE / "demo.ndjson.gz"), str(tmp_path / "x.ndjson")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ndjson"] in ("a", "b", "c")
    assert found["csv"] == "remark"
    assert found["sorted"] == sorted(found["sorted"])
    assert len(set(found["sorted"])) > 1
    assert found["hidden"] not in ("a", "b", "c")
    assert found["replayed"] == ["a", "b", "c"][: len(found["replayed"])]
    assert found["schema"] == {"description": "what somebody says of it", "type": ["string", "null"]}
    assert found["page"]

"""What the documents name is there."""

import re
from pathlib import Path

import pytest

from nettop import settings
from nettop.loader.hooks import MECHANISMS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
# `tests/unit/test_x.py::test_y`, `test_x.py`, `::test_y`
NAMED = re.compile(r"`((?:[\w/]+/)?test_\w+\.py)?(?:::(test_\w+))?`")
TESTS = {
    path.relative_to(ROOT).as_posix(): set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.M))
    for path in ROOT.glob("tests/**/test_*.py")
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_tests_that_a_document_names_are_there(document: Path) -> None:
    missing = []
    for path, name in NAMED.findall(document.read_text(encoding="utf-8")):
        files = [file for file in TESTS if not path or f"/{file}".endswith(f"/{path}")]
        if not files or (name and not any(name in TESTS[file] for file in files)):
            missing.append(f"{path}::{name}")
    assert missing == []


# `example` and `test_x` stand for any name; `nettop/1` is a schema.
PLACE = re.compile(r"(?<![\w/.~-])((?:tests|docs|nettop|bpf_src|scripts|bench|systemd|\.ci)/[\w./-]*\w)")
FOR_INSTANCE = re.compile(r"/example\b|/test_x\.py$|^nettop/\d$")
CODE = re.compile(r"`([^`\n]+)`|^ {4,}(.*)$", re.M)
OURS = re.compile(r".*(?:\bnettop |\bscripts/\w+ )")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]+")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_a_document_names_are_there(document: Path) -> None:
    named = {
        place
        for place in PLACE.findall(document.read_text(encoding="utf-8"))
        if not FOR_INSTANCE.search(place)
    }
    assert sorted(place for place in named if not [*ROOT.glob(f"{place}*")]) == []


def options() -> set[str]:
    """Of nettop, by its help; and of the scripts, tests and benchmarks, by what they say."""
    said = [settings.parser().format_help()]
    for place in ("scripts/*", "bench/*.py", "tests/*.py", "tests/vm/*.py"):
        said += [path.read_text(encoding="utf-8") for path in ROOT.glob(place) if path.is_file()]
    return set(OPTION.findall("\n".join(said)))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_options_that_a_document_names_are_there(document: Path) -> None:
    """In code: `--like this`, or behind the name of nettop or of a script (before it are others' options)."""
    text = document.read_text(encoding="utf-8")
    pieces = [quoted or line for quoted, line in CODE.findall(text)]
    code = " ".join(OURS.sub("", piece) for piece in pieces if OURS.match(piece) or piece.startswith("--"))
    assert sorted(set(OPTION.findall(code)) - options()) == []


def test_the_ways_of_watching_are_those_that_there_are() -> None:
    row = next(
        line
        for line in (ROOT / "docs/frame.md").read_text(encoding="utf-8").splitlines()
        if "`hooks[].via`" in line
    )
    assert set(re.findall(r"`(\w+)`", row)) == set(MECHANISMS)

"""What the pages name exists; every page is linked; all of them together are short enough to be read."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from textual.keys import Keys

from nettop import settings
from nettop.loader.mechanisms import MECHANISMS
from nettop.probes.base import built_in
from nettop.ui import keys

ROOT = Path(__file__).parents[2]
PAGES = {path: path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]}
SCHEMA = json.loads((ROOT / "docs/frame.schema.json").read_text(encoding="utf-8"))
MOST_WORDS = 18_000  # of docs/

# `tests/unit/test_x.py::test_y`, `test_x.py`, `::test_y`
TEST = re.compile(r"`((?:[\w/]+/)?test_\w+\.py)?(?:::(test_\w+))?`")
TESTS = {
    path.relative_to(ROOT).as_posix(): set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.M))
    for path in ROOT.glob("tests/**/test_*.py")
}
# `example` and `test_x` stand for any name; `nettop/1` is a schema.
PLACE = re.compile(r"(?<![\w/.~@-])((?:tests|docs|nettop|bpf_src|scripts|bench|systemd|\.ci)/[\w./@-]*\w)")
FOR_INSTANCE = re.compile(r"/example\b|/test_x\.py$|^nettop/\d$")
LINK = re.compile(r"\]\(([^)#\s]+)")
CODE = re.compile(r"`([^`\n]+)`|^ {4,}(.*)$", re.M)
OURS = re.compile(r".*(?:\bnettop |\b(?:scripts|bench|tests)/\S+ )")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]+")
SHORT = re.compile(r"(?<!\S)-[a-zA-Z](?!\S)")
# A code span that can only be a key: a letter, a digit, a bracket; with a modifier; by name.
KEY = re.compile(r"[a-zA-Z0-9/?<>()\[\]{}]|(?:ctrl|shift|alt)\+\S+|[fF]\d+")
NAMED_KEYS = {key.value for key in Keys} | {"esc", "pgup", "pgdn", "del", "return"}
FIELD = re.compile(r"[a-z_]+(?:\[\])?(?:\.[a-z_]+(?:\[\])?)+")
CAPTURE = re.compile(r"^```text\n.*?^```$", re.M | re.S)


def missing_tests(text: str) -> list[str]:
    missing = []
    for path, name in TEST.findall(text):
        files = [file for file in TESTS if not path or f"/{file}".endswith(f"/{path}")]
        if not files or (name and not any(name in TESTS[file] for file in files)):
            missing.append(f"{path}::{name}")
    return missing


def missing_places(text: str) -> list[str]:
    named = {place for place in PLACE.findall(text) if not FOR_INSTANCE.search(place)}
    return sorted(place for place in named if not (ROOT / place).exists())


def code(text: str) -> list[str]:
    return [quoted or line for quoted, line in CODE.findall(CAPTURE.sub("", text))]


@cache
def long_options() -> set[str]:
    """Of nettop, by its help; and of the scripts, tests and benchmarks, by what they say."""
    said = [settings.parser().format_help()]
    for place in ("scripts/*", "bench/*.py", "tests/*.py", "tests/vm/*.py", "tests/live/*.py"):
        said += [path.read_text(encoding="utf-8") for path in ROOT.glob(place) if path.is_file()]
    return set(OPTION.findall("\n".join(said)))


def missing_options(text: str) -> list[str]:
    """In code: `--like this`, or behind the name of nettop or of a script (before it are others' options)."""
    short = set(SHORT.findall(re.sub(r"[,\[\]]", " ", settings.parser().format_help())))
    missing = set()
    for piece in code(text):
        if OURS.match(piece) or piece.startswith("--"):
            ours = OURS.sub("", piece)
            missing |= set(OPTION.findall(ours)) - long_options()
            if "nettop " in piece and not re.search(r"(?:scripts|bench|tests)/", piece):
                missing |= set(SHORT.findall(ours)) - short
    return sorted(missing)


def missing_keys(text: str) -> list[str]:
    bound = {name for action in keys.ACTIONS for key in action.keys for name in (key, keys.shown(key))}
    named = {piece for piece in code(text) if KEY.fullmatch(piece) or piece in NAMED_KEYS}
    return sorted(named - bound)


def missing_fields(text: str) -> list[str]:
    """Fields of the frame by their path, `health.shed`: each part of it is a property in the schema."""
    known = properties(SCHEMA) | set(built_in())
    paths = {piece.replace("[]", "") for piece in code(text) if FIELD.fullmatch(piece)}
    ours = {path: path.split(".") for path in paths if path.split(".")[0] in SCHEMA["properties"]}
    return sorted(path for path, parts in ours.items() if not known.issuperset(parts))


def properties(node: Any) -> set[str]:
    """The names of all fields in a schema."""
    if isinstance(node, list):
        return set().union(*map(properties, node))
    if not isinstance(node, dict):
        return set()
    own = set(node["properties"]) if isinstance(node.get("properties"), dict) else set()
    return own.union(*(properties(value) for value in node.values()))


def test_every_field_is_explained() -> None:
    page = PAGES[ROOT / "docs/frame.md"]
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`]+`", page)))) | set(
        re.findall(r"(?m)^## (\w+)$", page)
    )
    assert properties(SCHEMA) - words == set()


def missing_links(page: Path, text: str) -> list[str]:
    targets = [target for target in LINK.findall(text) if "://" not in target]
    return [target for target in targets if not (page.parent / target).exists()]


def unlinked(pages: dict[Path, str]) -> list[str]:
    """Pages in docs/ that neither the README nor another page of docs/ links."""
    found = {
        (page.parent / target).resolve()
        for page, text in pages.items()
        for target in LINK.findall(text)
        if page.name == "README.md" or page.parent != ROOT
    }
    return sorted(path.name for path in pages if path.parent != ROOT and path not in found)


def words(text: str) -> int:
    """Without the captures of the screen, which are pictures, and the rules of tables."""
    return sum(any(letter.isalnum() for letter in word) for word in CAPTURE.sub("", text).split())


Check = Callable[[str], list[str]]
# Each with a text in which it finds something, and one in which it finds nothing.
CHECKS: dict[Check, tuple[str, str]] = {
    missing_tests: (
        "`test_docs.py::test_nothing_like_it`",
        "`tests/unit/test_docs.py::test_pages_are_linked`",
    ),
    missing_places: ("docs/nowhere.md and nettop/cl", "docs/faults.md, `systemd/nettop-record@.service`"),
    missing_options: (
        "`nettop -b --no-such-option`, `nettop -Z`",
        "`nettop -b --focus END`, `scripts/test --vm`",
    ),
    missing_keys: ("`ctrl+y`, `Q`, `insert`", "`ctrl+p`, `q`, `enter`, `esc`, `ip`"),
    missing_fields: ("`health.sheds`", "`health.shed`, `probes.stages.hooks`, `net.ipv4.tcp_early_demux`"),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_exists(page: Path, check: Check) -> None:
    assert check(PAGES[page]) == []


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_check_finds_what_does_not_exist(check: Check) -> None:
    wrong, right = CHECKS[check]
    assert check(wrong) != []
    assert check(right) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert missing_links(page, PAGES[page]) == []
    assert missing_links(page, "[a](nowhere.md)") == ["nowhere.md"]


def test_pages_are_linked() -> None:
    assert unlinked(PAGES) == []
    alone = ROOT / "docs" / "alone.md"
    assert unlinked({**PAGES, alone: "[itself not](tour.md)"}) == [alone.name]


def test_the_pages_are_short() -> None:
    count = sum(words(text) for page, text in PAGES.items() if page.parent != ROOT)
    assert count <= MOST_WORDS
    assert words("| a word | 2 |\n|---|---|\n```text\nno words here\n```\n") == 3


def test_the_mechanisms_are_those_that_there_are() -> None:
    page = PAGES[ROOT / "docs/frame.md"]
    row = next(line for line in page.splitlines() if "the mechanism that was chosen" in line)
    assert set(re.findall(r"`(\w+)`", row)) - {"via"} == set(MECHANISMS)

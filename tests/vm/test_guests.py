"""nettop in the stock kernels of Debian 12 and 13, each with the other's BCC too; and the table in docs/kernels.md.

A guest runs tests/vm/guest as one; what fails there is shown here.  The first run builds the images, a minute each.
"""

import json
import os
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from lab import build

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "kernels.md"
LIMIT_S = int(
    os.environ.get("NETTOP_VM_LIMIT", "1500")
)  # a run takes seven minutes; a busy machine needs more
NUMBERS = {"bookworm": 12, "trixie": 13}
Table = dict[str, Any]

# In a guest. A few that fail run once more, by themselves, and count then: an emulated machine has moments in which it
# stands still. tests/failed.py names them.
COMMAND = """\
export NETTOP_VM_OUT=/out
NETTOP_FAILED_TO=/out/failed python3 -m pytest tests/vm/guest --junitxml=/out/junit.xml {chosen}
status=$?
if [ -e /out/failed ] && [ "$(wc -l </out/failed)" -le 5 ]; then
	cd tests/vm/guest  # which the names are relative to
	xargs -d '\\n' python3 -m pytest --junitxml=/out/again.xml </out/failed
	status=$?
fi
exit $status
"""

HEAD = """\
# Kernels

Written by `scripts/test --vm`, in the stock kernels of Debian 12 and 13 with the BCC of either: which way watches each
hook there. It is what nettop takes by itself, and what `--check` says in the same guest. Every probe is live in all of
them.
"""
EACH = """\
*Holds* are the ways of the hook's ladder that the kernel has, best first: each was attached by itself. Those of them
that can be forced count the same beside the same traffic (`tests/vm/guest/test_ways.py`). *Not there* are those that
the kernel lacks, and below the table is what it says to them.

Kprobes hold where `kernel.perf_event_paranoid` is at most 2. Debian sets 3, by which they need CAP_SYS_ADMIN, and that
the loader gives up: the guests set 2.
"""


@dataclass(frozen=True)
class Pair:
    """A guest: the Debian release whose kernel it runs, and the one whose Python and BCC."""

    kernel: str
    system: str

    @property
    def name(self) -> str:
        return self.kernel if self.kernel == self.system else f"crossed-{self.kernel}-{self.system}"

    @property
    def title(self) -> str:
        return f"The kernel of Debian {NUMBERS[self.kernel]} with the BCC of Debian {NUMBERS[self.system]}"


PAIRS = [Pair(kernel, system) for kernel in NUMBERS for system in NUMBERS]
PAIRS.sort(key=lambda pair: pair.kernel != pair.system)


def rows(header: list[str], body: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def short(table: Table) -> str:
    """A pair in a table's head: the kernel's version without what changes with each security update."""
    return f"{'.'.join(table['kernel'].split('.')[:2])}, BCC {table['bcc'].removesuffix('.0')}"


def ladder(table: Table) -> list[list[str]]:
    """Of each hook: what holds, and what does not."""
    return [
        [
            hook["probe"],
            hook["hook"],
            ", ".join(way["via"] for way in hook["ways"] if not way["refused"]) or "nothing",
            ", ".join(way["via"] for way in hook["ways"] if way["refused"]),
        ]
        for hook in table["hooks"]
    ]


def reasons(table: Table) -> list[str]:
    """What the kernel said to the ways that it lacks, each once; which hook's it was matters to nobody."""
    found = set()
    for way in (way for hook in table["hooks"] for way in hook["ways"] if way["refused"]):
        reason = way["refused"]
        for name in way["targets"]:
            reason = reason.replace(f" {name}", "")
        found.add(f"- {way['via']}: {reason}\n")
    return sorted(found)


def details(table: Table) -> str:
    """The part of the document that is about one kernel."""
    body = rows(["probe", "hook", "holds", "not there"], ladder(table))
    return "\n".join([body, "".join(reasons(table))])


def document(tables: dict[Pair, Table]) -> str:
    """docs/kernels.md, from what the guests of all pairs said of themselves."""
    pairs = [pair for pair in PAIRS if pair in tables]
    guests = [
        [
            f"Debian {NUMBERS[pair.kernel]}: {tables[pair]['kernel']}",
            f"Debian {NUMBERS[pair.system]}: {tables[pair]['bcc']}",
            tables[pair]["llvm"],
        ]
        for pair in pairs
    ]
    found = {
        pair: {(row[0], row[1]): row[2].split(", ")[0] for row in ladder(tables[pair])} for pair in pairs
    }
    hooks = dict.fromkeys(key for pair in pairs for key in found[pair])
    summary = [[*key, *(found[pair].get(key, "-") for pair in pairs)] for key in hooks]
    parts = [
        HEAD,
        rows(["kernel", "BCC", "LLVM"], guests),
        "## In use\n",
        rows(["probe", "hook", *(short(tables[pair]) for pair in pairs)], summary),
        "## Every way\n",
        EACH,
    ]
    same: dict[str, list[str]] = {}
    for pair in pairs:
        same.setdefault(details(tables[pair]), []).append(short(tables[pair]))
    for text, names in same.items():
        parts += [f"### Linux {'; '.join(names)}\n", text]
    return "\n".join(parts)


@pytest.fixture(scope="module")
def tables() -> dict[Pair, Table]:
    """Filled by the guests that ran to their end."""
    return {}


def failures(report: Path) -> list[str]:
    """The failed tests of a JUnit report, with what they said."""
    if not report.exists():
        return []
    return [
        f"{case.get('classname')}.{case.get('name')}\n{bad.text or bad.get('message')}"
        for case in ElementTree.parse(report).iter("testcase")
        for bad in (*case.findall("failure"), *case.findall("error"), *case.findall("skipped"))
    ]


@pytest.mark.vm
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_nettop_in_a_guest(pair: Pair, tables: dict[Pair, Table], tmp_path: Path) -> None:
    for name in ("client", "server"):
        build.program(name)  # run.sh takes it along
    # What a guest of a crossed pair could show besides is what its kernel does, and seen with the other BCC.
    chosen = os.environ.get("NETTOP_VM_ARGS", "" if pair.kernel == pair.system else "-k 'ladder or ways'")
    done = subprocess.run(
        [str(HERE / "run.sh"), pair.kernel, pair.system, COMMAND.format(chosen=chosen)],
        env={**os.environ, "OUT": str(tmp_path), "NIC": "cards", "LIMIT": str(LIMIT_S)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIMIT_S + 600,  # and the images
        check=False,
    )
    print(done.stderr[-4000:])
    print(done.stdout[-20000:])
    bad = failures(tmp_path / "junit.xml")
    if (tmp_path / "again.xml").exists():
        names = (tmp_path / "failed").read_text().splitlines()
        warnings.warn(f"{pair.name}: {len(names)} failed, run again: {', '.join(names)}", stacklevel=1)
        if len(names) == len(bad):  # else some were skipped, which is wrong here too
            bad = failures(tmp_path / "again.xml")
    assert not bad, "\n\n".join(bad)
    assert done.returncode == 0
    tables[pair] = json.loads((tmp_path / "ways.json").read_text())


@pytest.mark.vm
def test_the_document_is_true(tables: dict[Pair, Table]) -> None:
    """With all pairs it is written; with some of them, what they said must stand in it."""
    assert tables, "no guest ran to its end"
    if len(tables) == len(PAIRS):
        DOCUMENT.write_text(document(tables))
    text = DOCUMENT.read_text()
    wrong = [pair.name for pair, table in tables.items() if details(table) not in text]
    assert not wrong, "docs/kernels.md is of other hooks or kernels: scripts/test --vm writes it (without -k)"

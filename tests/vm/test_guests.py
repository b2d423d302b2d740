"""nettop in the stock kernels of Debian 12 and 13, each with the other's BCC too; and the table in docs/kernels.md.

A guest runs tests/vm/guest as one; what fails there is shown here.  The first run builds the images, a minute each.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from lab import build

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "kernels.md"
LIMIT_S = 1500  # a run takes three minutes; five and more on a busy machine
NUMBERS = {"bookworm": 12, "trixie": 13}
Table = dict[str, Any]

HEAD = """\
# Kernels

Written by `scripts/test --vm`: each way of watching each hook, tried in the stock kernels of Debian 12 and 13 with the
BCC of either. *In use* is what nettop takes by itself; *holds too* are the other ways of the hook's ladder that the
kernel has, and that count the same in the tests (`tests/vm/guest`); *not there* are those that it lacks.
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


@pytest.fixture(scope="module")
def tables() -> Iterator[dict[Pair, Table]]:
    """Filled by the runs; in the end the document's sections of their pairs are replaced."""
    found: dict[Pair, Table] = {}
    yield found
    if not found:
        return
    old = DOCUMENT.read_text() if DOCUMENT.exists() else ""
    sections = dict(part.split("\n", 1) for part in old.split("\n## ")[1:])
    sections |= {pair.title: section(table) for pair, table in found.items()}
    text = HEAD + "".join(
        f"\n## {pair.title}\n{sections[pair.title].rstrip()}\n" for pair in PAIRS if pair.title in sections
    )
    if text != old:
        DOCUMENT.write_text(text)


def section(table: Table) -> str:
    """One pair's part of the document."""
    lines = [
        "",
        f"Linux {table['kernel']}, BCC {table['bcc']}, LLVM {table['llvm']}.",
        "",
        "| probe | hook | in use | holds too | not there |",
        "|---|---|---|---|---|",
    ]
    for hook in table["hooks"]:
        holds = [way["via"] for way in hook["ways"] if not way["refused"]]
        lacks = [way["via"] for way in hook["ways"] if way["refused"]]
        used, others = (holds[0] if holds else "nothing"), ", ".join(holds[1:])
        lines.append(f"| {hook['probe']} | {hook['hook']} | {used} | {others} | {', '.join(lacks)} |")
    return "\n".join(lines)


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
    command = "export NETTOP_VM_OUT=/out; python3 -m pytest tests/vm/guest --junitxml=/out/junit.xml"
    done = subprocess.run(
        [str(HERE / "run.sh"), pair.kernel, pair.system, command],
        env={**os.environ, "OUT": str(tmp_path), "NIC": "hub", "LIMIT": str(LIMIT_S)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIMIT_S + 600,  # and the images
        check=False,
    )
    print(done.stderr[-4000:])
    print(done.stdout[-8000:])
    bad = failures(tmp_path / "junit.xml")
    assert not bad, "\n\n".join(bad)
    assert done.returncode == 0
    tables[pair] = json.loads((tmp_path / "ways.json").read_text())

"""nettop in other kernels: Debian's, in QEMU, with the BCC of several releases; many CPUs; another machine.

A guest runs tests/vm/guest as one; what fails there is shown here.  The first run builds the images, a minute each.
Those marked `once` are for a change to what they are about: CI leaves them out.  What they all showed stands in
docs/kernels.md, and with NETTOP_VM_WRITE=1 each guest that runs writes its part of it.
"""

import json
import os
import subprocess
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest
import timing
import vm_guests
from lab import build
from vm_guests import Guest, Table

HERE = Path(__file__).parent
LIMIT_S = int(
    os.environ.get("NETTOP_VM_LIMIT", "1500")
)  # a run takes seven minutes; a busy machine needs more
GUESTS = vm_guests.GUESTS

# In a guest. Those that are marked `timing` may run twice there (tests/timing.py), and its report says which did.
COMMAND = """\
export NETTOP_VM_OUT=/out NETTOP_VM_CONNECTIONS={connections} NETTOP_VM_TEST_LIMIT={limit}
python3 -m pytest {folder} --junitxml=/out/junit.xml {chosen}
"""


@pytest.fixture(scope="module")
def tables() -> dict[Guest, Table]:
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


def second_time(report: Path) -> list[str]:
    """The tests of a JUnit report that measure time and passed at the second time, with what the first one said."""
    cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
    found = []
    for case in cases:
        said = {p.get("name"): p.get("value") for p in case.iter("property")}
        if said.get(timing.PROPERTY) == timing.SECOND:
            found.append(f"{case.get('name')} {timing.SECOND}: {said.get(timing.SAID)}")
    return found


def told(out: Path) -> Table:
    """What a guest left of itself, a file a subject, and how many tests it passed."""
    found: Table = {}
    for file in sorted(out.glob("told-*.json")):
        for key, value in json.loads(file.read_text()).items():
            found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) else value
    return found | {"tests": len(list(ElementTree.parse(out / "junit.xml").iter("testcase")))}


@pytest.mark.vm
@pytest.mark.parametrize(
    "guest",
    [pytest.param(guest, id=guest.name, marks=[pytest.mark.once] if guest.once else []) for guest in GUESTS],
)
def test_nettop_in_a_guest(guest: Guest, tables: dict[Guest, Table], tmp_path: Path) -> None:
    for name in ("client", "server", "closeboth"):
        build.program(name)  # run.sh takes it along
    chosen = os.environ.get("NETTOP_VM_ARGS", f"-k '{guest.tests}'" if guest.tests else "")
    limit = int(os.environ.get("NETTOP_VM_TEST_LIMIT", guest.test_limit_s))
    whole = max(LIMIT_S, 3 * limit)
    command = COMMAND.format(chosen=chosen, folder=guest.folder, connections=guest.connections, limit=limit)
    done = subprocess.run(
        [str(HERE / "run.sh"), guest.kernel, guest.system, command],
        env={**os.environ, **guest.options, "OUT": str(tmp_path), "LIMIT": str(whole)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=whole + 600,  # and the images
        check=False,
    )
    print(done.stderr[-4000:])
    print(done.stdout[-20000:])
    bad = failures(tmp_path / "junit.xml")
    if late := second_time(tmp_path / "junit.xml"):
        warnings.warn(f"{guest.name}: {'; '.join(late)}", stacklevel=1)
    assert not bad, "\n\n".join(bad)
    assert done.returncode == 0
    tables[guest] = told(tmp_path)


@pytest.mark.vm
def test_the_document_is_true(tables: dict[Guest, Table]) -> None:
    """What the guests of this run said of their hooks stands in it; with NETTOP_VM_WRITE=1 it is written there."""
    assert tables, "no guest ran to its end"
    results = vm_guests.load()
    if os.environ.get("NETTOP_VM_WRITE"):
        results |= {guest.name: vm_guests.summary(table) for guest, table in tables.items()}
        vm_guests.store(results)
        results = vm_guests.load()
    hint = "NETTOP_VM_WRITE=1 scripts/test --vm writes it"
    for guest, table in tables.items():
        kept = results.get(guest.name, {})
        for key in ("ladder", "reasons"):
            assert vm_guests.summary(table).get(key) == kept.get(key), (
                f"docs/kernels.md, {guest.name}: {hint}"
            )
    assert vm_guests.DOCUMENT.read_text() == vm_guests.document(results), hint

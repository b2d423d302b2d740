"""Which guests there are, and the documents that say what they showed: kernels.json, and docs/kernels.md from it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "kernels.md"
RESULTS = HERE / "kernels.json"
RELEASES = {
    "bookworm": "Debian 12",
    "trixie": "Debian 13",
    "trixie-backports": "Debian 13's backports",
    "sid": "Debian unstable",
}
Table = dict[str, Any]

LADDER = "ladder or ways or fields"
# Besides what the kernel offers: counts beside iperf3's and a veth's own.  Round trips are in the whole list alone.
SHORT = "ladder or fields or bytes_and_packets"


@dataclass(frozen=True)
class Guest:
    """The Debian release whose kernel runs, the one whose Python and BCC, and which tests (pytest's -k; all)."""

    kernel: str
    system: str
    tests: str = ""
    arch: str = "amd64"
    cpus: str = "2"
    append: str = ""  # to the kernel's command line
    connections: int = 0  # the tests in guest/cpus, with so many
    once: bool = True  # CI leaves it out

    @property
    def name(self) -> str:
        if self.connections:
            count = f"-{self.connections}" if self.once and self.connections > 1 else ""
            return f"{self.cpus.rpartition('=')[2]}-cpus{count}"
        own = self.kernel.removesuffix("-backports") == self.system
        words = [self.arch] if self.arch != "amd64" else []
        return "-".join([*words, self.kernel] if own else [*words, "crossed", self.kernel, self.system])

    @property
    def folder(self) -> str:
        """What of tests/vm/guest runs there, as arguments of pytest."""
        return "tests/vm/guest/cpus" if self.connections else "tests/vm/guest --ignore tests/vm/guest/cpus"

    @property
    def options(self) -> dict[str, str]:
        """For run.sh, in its environment."""
        cards = "queues" if self.connections > 1 else "cards"
        if self.arch != "amd64" or self.connections == 1:
            cards = "none"
        memory = "4096" if self.connections > 10_000 else "1536"  # every frame is kept until the end
        return {"NIC": cards, "ARCH": self.arch, "CPUS": self.cpus, "APPEND": self.append, "MEMORY": memory}

    @property
    def test_limit_s(self) -> int:
        """For one test, on a machine that has other things to do; three times that is enough for all."""
        return 500 + self.connections // 50


GUESTS = [
    # With NETTOP_VM_ARGS= (empty) all of the tests run in these two, which takes 25 minutes each.
    Guest("bookworm", "bookworm", SHORT, once=False),
    Guest("trixie", "trixie", f"{SHORT} or below_a_tunnel or above_another or irq_waits", once=False),
    Guest("trixie-backports", "trixie", f"{SHORT} or merged"),
    Guest("trixie", "trixie", cpus="8", connections=2003),
    Guest("bookworm", "trixie", LADDER),
    Guest("trixie", "bookworm", LADDER),
    Guest("bookworm", "sid", LADDER),
    Guest("trixie", "sid", LADDER),
    Guest("trixie-backports", "bookworm", SHORT),
    Guest("trixie-backports", "sid", SHORT),
    Guest("trixie", "trixie", f"{SHORT} or rtt", arch="arm64"),
    Guest("trixie", "trixie", cpus="8", connections=100_003),
    Guest("bookworm", "bookworm", "reading", cpus="2,maxcpus=255", append="possible_cpus=256", connections=1),
]

HEAD = """\
# Kernels

Debian's stock kernels in QEMU, with the BCC of one release or another. The oldest supported kernel is Linux 6.1.
Written by `scripts/test --vm` with NETTOP_VM_WRITE=1.

*Tests* passed, none failed; guests that CI leaves out ran once. *Fields*: members of kernel structures whose place and
size BCC's compilation and the kernel's BTF agree on: all that the programs name.
"""
EACH = """\
Mechanisms of each hook in order of preference, each attached by itself; nettop and `--check` take the first. Those that
can be forced count the same traffic alike (`tests/vm/guest/test_ways.py`). What is missing the kernel lacks, with these
errors. All probes are live in all of these guests, with each BCC.

Kprobes need `kernel.perf_event_paranoid` of at most 2, as in these guests; Debian sets 3.
"""
CPUS = """\
Connections whose two ends close at once on different CPUs (`tests/vm/guest/cpus`): each opened and closed once, ids
unique, bytes and packets equal to the interface's. *Interrupts*: multi-queue virtio NICs. *RPS*: a veth.
"""
READING = """\
Per-CPU maps have a value for each *possible* CPU, all read every frame. Four probes, idle veth, CPU time a frame under
emulation (about ten times slower than hardware): compare the rows.
"""


def rows(header: list[str], body: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def release(table: Table) -> str:
    """The kernel's version without what changes with each security update."""
    number = ".".join(table["kernel"].split(".")[:2])
    return f"{number} {table['machine']}" if table["machine"] != "x86_64" else number


def short(table: Table) -> str:
    """A guest in a table."""
    return f"{release(table)}, BCC {table['bcc'].removesuffix('.0')}"


def grouped(body: list[list[str]]) -> list[list[str]]:
    """Rows of probe, hook and what is said of it: hooks of which the same is said share a row."""
    found: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for probe, hook, *said in body:
        found.setdefault(tuple(said), {}).setdefault(probe, []).append(hook)
    return [
        ["; ".join(f"{probe}: {', '.join(hooks)}" for probe, hooks in probes.items()), *said]
        for said, probes in found.items()
    ]


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


def summary(table: Table) -> Table:
    """What is kept of a guest that told its hooks."""
    said = {key: value for key, value in table.items() if key != "hooks"}
    if "hooks" not in table:
        return said
    return said | {"ladder": ladder(table), "reasons": reasons(table)}


def document(results: dict[str, Table]) -> str:
    """docs/kernels.md, from what all guests said of themselves."""
    parts = [HEAD, _guests(results)]
    if _known(results, "connections"):
        parts += ["## Many CPUs\n", CPUS, _cpus(results)]
    if _known(results, "reading"):
        parts += ["## Reading per-CPU maps\n", READING, _reading(results)]
    parts += ["## Mechanisms\n", EACH]
    return "\n".join([*parts, _mechanisms(results)])


def _mechanisms(results: dict[str, Table]) -> str:
    """What works for each hook, a column for kernels that are alike; and what the others are refused with."""
    works: dict[str, list[str]] = {}
    alike: dict[tuple[str, ...], list[Table]] = {}
    refused: dict[str, None] = {}
    tables = [table for table in results.values() if "ladder" in table]
    hooks = list(dict.fromkeys((row[0], row[1]) for table in tables for row in table["ladder"]))
    for table in tables:
        found = {(row[0], row[1]): row[2] for row in table["ladder"]}
        alike.setdefault(tuple(found.get(hook, "") for hook in hooks), []).append(table)
        refused |= dict.fromkeys(table["reasons"])
    for column, guests in alike.items():
        head = "; ".join(dict.fromkeys(map(release, guests)))
        works["; ".join(map(short, guests)) if head in works else head] = list(column)
    body = [[*hook, *(column[i] for column in works.values())] for i, hook in enumerate(hooks)]
    return rows(["hooks", *works], grouped(body)) + "\n" + "".join(sorted(refused))


def _known(results: dict[str, Table], key: str) -> list[tuple[Guest, Table]]:
    return [(g, results[g.name]) for g in GUESTS if g.name in results and key in results[g.name]]


def _guests(results: dict[str, Table]) -> str:
    body = [
        [
            table["kernel"],
            guest.cpus.replace("maxcpus=", "") if guest.connections else guest.cpus,
            table["bcc"],
            table["llvm"],
            str(table["tests"]),
            str(table.get("fields", "")),
            "once" if guest.once else "yes",
        ]
        for guest, table in _known(results, "kernel")
    ]
    guests = [guest for guest, _ in _known(results, "kernel")]
    of = {RELEASES[guest.kernel]: row[0].partition("-")[0] for guest, row in zip(guests, body, strict=True)}
    by = {RELEASES[guest.system]: row[2] for guest, row in zip(guests, body, strict=True)}
    names = [
        f"{what}: {', '.join(f'{version} of {release}' for release, version in found.items())}."
        for what, found in (("Kernels", of), ("BCC", by))
    ]
    table = rows(["kernel", "CPUs", "BCC", "LLVM", "tests", "fields", "in CI"], body)
    return "\n".join([table, *names, ""])


def _cpus(results: dict[str, Table]) -> str:
    body = [
        [short(table), str(table["online"]), way, *map(str, (said["count"], said["opened"], said["closed"]))]
        for _, table in _known(results, "connections")
        for way, said in table["connections"].items()
    ]
    return rows(["kernel", "CPUs", "packets come in by", "connections", "opened", "closed"], body)


def _reading(results: dict[str, Table]) -> str:
    body = [
        [short(table), *(f"{table['reading'][key]:.0f}" for key in ("online", "possible", "ms", "megabytes"))]
        for _, table in _known(results, "reading")
    ]
    return rows(["kernel", "CPUs", "possible", "ms a frame", "memory, MB"], body)


def in_order(results: dict[str, Table]) -> dict[str, Table]:
    return {guest.name: results[guest.name] for guest in GUESTS if guest.name in results}


def load() -> dict[str, Table]:
    return in_order(json.loads(RESULTS.read_text()))


def store(results: dict[str, Table]) -> None:
    results = in_order(results)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    DOCUMENT.write_text(document(results))

"""A user's own probe, on the running kernel: the example and others, in mount and network namespaces of their own.

/etc/nettop/probes.d is there only inside: the machine's own /etc stays as it is.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from lab import faults
from lab.program import REPOSITORY, command, interpreter
from lab.shell import Process, eventually, run

from nettop.output import reference

EXAMPLE = REPOSITORY / "examples" / "udpbuf"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"}
NETTOP = f"{interpreter()} -m nettop"
# A copy of /etc in a tmpfs, with the folders of $2 as users' own probes: gone with the last process in the namespace.
CLOSED = """
mount -t tmpfs none "$1" && cp -a /etc "$1" && mount --bind "$1/etc" /etc && ip link set lo up &&
install -d -m 755 /etc/nettop && cp -a "$2" /etc/nettop/probes.d && echo ready && exec cat
"""
# A socket with a small buffer that nobody reads, and datagrams to it, so many for each line that is heard.
FILLER = """
import socket, sys
reader, writer = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in "rw")
reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
reader.bind(("127.0.0.1", 0))
print(reader.getsockname()[1], flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        writer.sendto(bytes(500), reader.getsockname())
    reader.recv(500)
    print("sent", flush=True)
"""
SENT = 53

C_TC = """
#include "nettop.h"
int in__tcx__ingress(struct __sk_buff *skb)
{
	return 2; /* drops everything */
}
"""
C_WRITES = """
#include "own.h"
int sk_data_ready__tp_btf(struct bpf_raw_tracepoint_args *ctx)
{
	u64 value = 0;

	bpf_probe_write_user((void *)ctx->args[0], &value, sizeof(value));
	return 0;
}
"""
# Says in a file who it is imported by.
WITNESS = """
import os
with open({path!r}, "a") as file:
    words = dict(line.split(":", 1) for line in open("/proc/self/status"))
    file.write(f"{{os.getuid()}} {{words['CapEff'].strip()}}\\n")
"""


class Closed:
    """Namespaces in which these folders are users' own probes; what is started in them runs there."""

    def __init__(self, folder: Path, place: str) -> None:
        argv = ["unshare", "--mount", "--net", "sh", "-c", CLOSED, "sh", place, str(folder)]
        self.keeper = Process(argv)
        self.keeper.wait_lines(1)

    def argv(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", "--target", str(self.keeper.pid), "--mount", "--net", "--wd=/", *argv]

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(self.argv(argv), env=ENVIRONMENT, timeout=60, check=check)

    def nettop(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(*command(None, *args), check=check)

    def filler(self) -> tuple[Process, int]:
        process = Process(self.argv([sys.executable, "-c", FILLER]))
        process.wait_lines(1)
        return process, int(process.lines[0])


def folder_of(place: Path, name: str, source: str = "", module: str = "") -> Path:
    """A probe's folder; the example's texts where none are given."""
    folder = place / name
    folder.mkdir(parents=True)
    for file, text in ((f"{name}.c", source), ("probe.py", module)):
        given = text or (EXAMPLE / file.replace(name, "udpbuf")).read_text().replace("udpbuf", name)
        (folder / file).write_text(given)
        (folder / file).chmod(0o644)
    for path in (place, folder):
        path.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def walkable_module() -> Iterator[Path]:
    with faults.folder() as path:
        path.chmod(0o755)
        yield path


@pytest.fixture(scope="module")
def closed(walkable_module: Path) -> Iterator[Closed]:
    """With the example, one whose module tells who imports it, and some that must not be loaded."""
    folders, place = walkable_module / "folders", walkable_module / "etc"
    place.mkdir()
    folder_of(folders, "udpbuf")
    seen = walkable_module / "imported"
    seen.touch()
    seen.chmod(0o666)
    module = (EXAMPLE / "probe.py").read_text().replace("udpbuf", "witness")
    folder_of(folders, "witness", module=module + WITNESS.format(path=str(seen)))
    folder_of(folders, "tc", C_TC)
    folder_of(folders, "writes", C_WRITES)
    folder_of(folders, "unclear", "int x__tp_btf(void *ctx) { return nothing; }\n")
    (folder_of(folders, "open") / "probe.py").chmod(0o666)
    made = Closed(folders, str(place))
    yield made
    made.keeper.stop()


def frames(done: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def recorded(closed: Closed, walkable_module: Path) -> tuple[list[dict], str, int, str]:
    """Frames in which a buffer was overrun, their recording, the socket's port, and what ss says of it then."""
    path = str(walkable_module / "udpbuf.ndjson")
    (walkable_module / "udpbuf.ndjson").touch()
    os.unlink(path)
    walkable_module.chmod(0o777)  # the screen, which is nobody here, makes the file
    filler, port = closed.filler()
    seen: list[dict] = []
    argv = command("lo", "-b", "-p", "udpbuf", "-d", "0.3", "--format", "ndjson", "--record", path)
    nettop = Process(closed.argv(argv), on_line=lambda line: seen.append(json.loads(line)), env=ENVIRONMENT)
    try:
        nettop.wait_lines(1, timeout=60)
        filler.write_line(str(SENT))
        filler.wait_lines(2)
        heard = len(nettop.lines)
        said = closed.run("ss", "-uamp", f"sport = :{port}").stdout
        nettop.wait_lines(heard + 2)
    finally:
        nettop.stop(2)
        filler.stop()
    return seen, path, port, said


def row_of(frame: dict, port: int) -> dict:
    return next(row for row in frame["udpbuf"]["sockets"] if row["port"] == port)


def test_it_is_listed_with_its_hooks(closed: Closed) -> None:
    lines = closed.nettop("--list-probes").stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("udpbuf "))
    assert lines[at].split(maxsplit=1)[1].startswith("how full the receive buffers of UDP sockets are")
    assert lines[at + 1].split() == [
        "hooks:",
        "sk_data_ready,",
        "sock_recv_length,",
        "udp_fail_queue_rcv_skb",
    ]
    (said,) = (line for line in lines if line.startswith("open "))
    wanted = "others than root can write /etc/nettop/probes.d/open/probe.py (0666)"
    assert wanted in said
    assert "sudo chmod go-w /etc/nettop/probes.d/open/probe.py" in said


def test_it_says_what_ss_says(recorded: tuple[list[dict], str, int, str]) -> None:
    seen, _, port, said = recorded
    row = row_of(seen[-1], port)
    skmem = dict(re.findall(r"\b(rb|r|d)(\d+)", re.search(r"skmem:\((.*?)\)", said)[1]))  # type: ignore[index]
    assert (row["used"], row["size"], row["drops_total"]) == tuple(int(skmem[n]) for n in ("r", "rb", "d"))
    assert row["fill"] == pytest.approx(row["used"] / row["size"], abs=1e-4)
    assert row["drops_total"] > 0
    assert sum(row_of(f, port)["drops"] for f in seen if f["udpbuf"]["sockets"]) == row["drops_total"]
    name, pid = re.search(r'\("(.*?)",pid=(\d+)', said).groups()  # type: ignore[union-attr]
    assert (row["process"], row["pid"]) == (name, int(pid))
    hooks = {hook["hook"]: hook["via"] for hook in seen[-1]["probes"]["udpbuf"]["hooks"]}
    assert hooks == dict.fromkeys(("sk_data_ready", "sock_recv_length", "udp_fail_queue_rcv_skb"), "tp_btf")
    assert seen[-1]["health"]["shed"].keys() >= {"seconds_one_in"}


def test_its_recording_is_replayed_as_text_and_csv_and_redacted(
    closed: Closed, recorded: tuple[list[dict], str, int, str]
) -> None:
    seen, path, port, _ = recorded
    row = row_of(seen[-1], port)
    replayed = frames(closed.nettop("--replay", path, "-b", "--format", "ndjson"))
    assert [frame["udpbuf"] for frame in replayed] == [frame["udpbuf"] for frame in seen[: len(replayed)]]
    assert any(frame["udpbuf"]["sockets"] for frame in replayed)
    text = closed.nettop("--replay", path, "-b").stdout.split("\n\n")[-2].splitlines()
    at = text.index("UDP buffers")
    titles, cells = text[at + 1].split(), text[at + 2].split()
    shown = dict(zip(titles, cells, strict=True))
    assert (shown["port"], shown["process"], shown["pid"]) == (str(port), row["process"], str(row["pid"]))
    lines = list(csv.DictReader(io.StringIO(closed.nettop("--replay", path, "-b", "--format", "csv").stdout)))
    assert {key: lines[-1][key] for key in ("port", "used", "drops_total", "process")} == {
        "port": str(port),
        "used": str(row["used"]),
        "drops_total": str(row["drops_total"]),
        "process": row["process"],
    }
    hidden = closed.nettop("--replay", path, "-b", "--format", "ndjson", "--redact").stdout
    assert row["process"] not in hidden.replace("udpbuf", "")
    assert re.search(r'"process":"proc-[0-9a-f]+"', hidden)


def test_rows_are_sorted_by_its_columns(closed: Closed) -> None:
    fillers = [closed.filler() for _ in range(2)]
    argv = command("lo", "-b", "-p", "udpbuf", "-d", "0.3", "--format", "csv", "--sort", "drops_total")
    nettop = Process(closed.argv(argv), env=ENVIRONMENT)
    try:
        nettop.wait_lines(1, timeout=60)
        for (filler, _), count in zip(fillers, (SENT, 2 * SENT), strict=True):
            filler.write_line(str(count))
            filler.wait_lines(2)
        heard = len(nettop.lines)
        nettop.wait_lines(heard + 6)
    finally:
        nettop.stop(2)
        for filler, _ in fillers:
            filler.stop()
    rows = list(csv.DictReader(io.StringIO("\n".join(nettop.lines))))
    last = [int(row["port"]) for row in rows if row["time_ns"] == rows[-1]["time_ns"]]
    assert last == [fillers[1][1], fillers[0][1]]
    done = closed.nettop("lo", "-b", "-p", "udpbuf", "--sort", "nothing", check=False)
    assert done.returncode == 2
    assert "unknown column: nothing" in done.stderr


def sends(filler: Process) -> bool:
    filler.write_line("1")
    return True


def test_the_budget_has_it_attached_in_some_seconds_only(closed: Closed) -> None:
    seen: list[dict] = []
    argv = command("lo", "-b", "-p", "udpbuf", "-d", "0.5", "--format", "ndjson", "--budget", "0.001")
    nettop = Process(closed.argv(argv), on_line=lambda line: seen.append(json.loads(line)), env=ENVIRONMENT)
    filler, port = closed.filler()
    try:
        while not seen or seen[-1]["health"]["shed"]["seconds_one_in"] == 1:
            nettop.wait_lines(len(seen) + 1)
        # One of every 4 or 8 seconds, and then it counts as before.
        assert eventually(lambda: sends(filler) and any(r["port"] == port for r in seen[-1]["udpbuf"]["sockets"]),
                          timeout=40, interval=0.2)  # fmt: skip
    finally:
        nettop.stop(2)
        filler.stop()
    assert seen[-1]["probes"]["udpbuf"]["state"] == "live"
    assert row_of(seen[-1], port)["size"] == 40_000


ASK = """
import json, sys
from nettop.bpf.protocol import Load, Plan
from nettop.collect.loader_client import start_loader
handle = start_loader()
loaded, done = handle.request(Load(Plan("lo", tuple(sys.argv[1:]))))
print(json.dumps({x.probe.name: [x.probe.state, x.probe.detail, x.probe.hint] for x in loaded}))
handle.close()
"""


def test_the_loader_refuses_by_itself_and_loads_the_others(closed: Closed) -> None:
    """Asked by a process that has looked at nothing."""
    names = ("open", "tc", "writes", "unclear", "absent", "udpbuf", "throughput")
    done = closed.run(interpreter(), "-c", ASK, *names)
    said = json.loads(done.stdout.splitlines()[-1])
    assert {name: state for name, (state, _, _) in said.items()} == {
        **dict.fromkeys(names, "failed"),
        "udpbuf": "live",
        "throughput": "live",
    }
    path = "/etc/nettop/probes.d/open/probe.py"
    assert said["open"][1:] == [f"others than root can write {path} (0666)", f"sudo chmod go-w {path}"]
    assert said["tc"][1].startswith("in__tcx__ingress: a program of tcx could change traffic")
    assert said["writes"][1].startswith("sk_data_ready__tp_btf calls bpf_probe_write_user")
    assert said["unclear"][1] == "unclear.c does not compile on this kernel"


def test_broken_ones_are_said_in_the_frame_and_cost_the_others_nothing(closed: Closed) -> None:
    frame = frames(closed.nettop("lo", "-b", "-n", "1", "-d", "0.3", "--format", "ndjson"))[0]
    states = {name: status["state"] for name, status in frame["probes"].items()}
    assert states["open"] == states["tc"] == states["writes"] == states["unclear"] == "failed"
    assert states["udpbuf"] == states["throughput"] == states["flows"] == "live"
    assert "chmod go-w" in frame["probes"]["open"]["detail"]
    assert "could change traffic" in frame["probes"]["tc"]["detail"]
    assert any("probe open cannot be used: others than root can write" in note for note in frame["notes"])
    alone = closed.nettop("lo", "-b", "-n", "1", "-p", "open", check=False)
    assert alone.returncode == 1
    assert "no probe works: open failed: others than root can write" in alone.stderr


def test_its_module_is_never_imported_with_privileges(closed: Closed, walkable_module: Path) -> None:
    seen = walkable_module / "imported"
    before = len(seen.read_text().splitlines())
    for args in (("lo", "-b", "-n", "1", "-d", "0.3", "-p", "witness"), ("--list-probes",)):
        closed.nettop(*args)
    lines = seen.read_text().splitlines()
    assert len(lines) >= before + 2
    assert [line for line in lines if line.startswith("0 ") or int(line.split()[1], 16)] == []


def test_its_schema_is_for_who_has_it(closed: Closed) -> None:
    code = "import json; from nettop.output.reference import frame_schema; print(json.dumps(frame_schema()))"
    assert "udpbuf" in json.loads(closed.run(interpreter(), "-c", code).stdout)["properties"]
    assert "udpbuf" not in json.dumps(reference.frame_schema())


def test_a_new_probe_is_right_by_its_own_test(walkable: Path) -> None:
    """As its user has it: written, and tested beside /proc/net/udp."""
    walkable.chmod(0o777)
    run([*NETTOP.split(), "--new-probe", "mine"], cwd=walkable, env=ENVIRONMENT)
    test = str(walkable / "mine" / "test_mine.py")
    done = run([sys.executable, test], env={**ENVIRONMENT, "NETTOP": NETTOP}, timeout=90)
    assert done.stdout == "right\n"

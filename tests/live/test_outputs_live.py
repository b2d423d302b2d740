"""What nettop writes of a running kernel: every format, files, recordings; to whom it belongs, and how soon."""

import csv
import io
import json
import os
import stat
import threading
import time
from pathlib import Path

import jsonschema
import pytest
from lab import Direction, Lab, Link, Nettop, run_nettop
from lab.program import REPOSITORY, Outcome, command
from lab.shell import run
from lab.traffic import answering, asking, transfer
from observe import PROBES, endpoint
from processes import NOBODY, SUDO

from nettop.probes.base import all_probes

ARGS = ("-d", "0.25", "-p", PROBES)


@pytest.fixture
def folder(walkable: Path) -> Path:
    """A directory of the user behind sudo, on a path that he can walk."""
    os.chown(walkable, NOBODY.pw_uid, NOBODY.pw_gid)
    return walkable


def beside_traffic(
    lab: Lab, link: Link, *args: str, env: dict[str, str] | None = None
) -> tuple[Outcome, int]:
    """`nettop IFACE ARGS` to its end, beside three connections that talk all the while; and the server's port."""
    with answering(link.b) as server:
        client = asking(link.a, server, flows=3, interval_s=0.02, seconds=30)
        try:
            return run_nettop(lab, link.a, *args, env=env), server.port
        finally:
            client.stop()


def test_ndjson_of_all_probes_is_what_the_schema_says(lab: Lab, veth: Link) -> None:
    """Without --probes: all there are, and all of them work wherever the live tests do."""
    outcome, port = beside_traffic(lab, veth, "-b", "--format", "ndjson", "-n", "3", "-d", "0.5")
    assert (outcome.code, outcome.stderr, len(outcome.frames)) == (0, "", 3)
    schema = json.loads((REPOSITORY / "docs" / "frame.schema.json").read_text())
    for frame in outcome.frames:
        jsonschema.validate(frame, schema)
        states = {name: (probe["state"], probe["detail"]) for name, probe in frame["probes"].items()}
        assert states == dict.fromkeys(all_probes(), ("live", ""))
    last = outcome.frames[-1]
    rows = [row for row in last["flows"] if row["remote"] == endpoint(veth.b.v4, port)]
    assert len(rows) == 3
    assert last["flows_total"] == len(last["flows"])
    assert {hook["via"] for hook in last["probes"]["flows"]["hooks"]} == {"tcx", "tp_btf", "prog_run"}
    assert last["health"]["rss_bytes"] > 10 << 20


def test_a_running_download_shows_the_kernels_round_trip_in_brackets(lab: Lab) -> None:
    """Older than nettop, and this end sends nothing but ACKs: the wire takes 20 ms each way, and its socket knows."""
    link = lab.wire(Direction(delay_ms=20))
    with transfer(link.b, link.a) as pair:
        over, port = threading.Event(), pair.local[1]

        def send() -> None:
            while not over.wait(0.01):
                pair.sender.sendall(b"." * 5000)
                pair.receiver.recv(1 << 20)

        sending = threading.Thread(target=send)
        sending.start()
        try:
            outcome = run_nettop(lab, link.a, "-b", "-n", "3", "-d", "0.5", "-p", "flows")
        finally:
            over.set()
            sending.join()
    titles = next(text.split() for text in outcome.stdout.splitlines() if text.startswith("protocol "))
    rows = [text.split() for text in outcome.stdout.splitlines() if f":{port} " in text]
    last = dict(zip(titles, rows[-1], strict=True))
    assert (last["method"], last["min"]) == ("kernel", "-")
    assert last["rtt"].startswith("(")
    # The handshake's, whose SYN-ACK is this end's: 40 ms and what the forwarder takes.
    assert float(last["rtt"].removeprefix("(").removesuffix("ms)")) == pytest.approx(44, abs=5)


def test_csv_has_a_row_for_each_flow(lab: Lab, veth: Link) -> None:
    outcome, port = beside_traffic(lab, veth, "-b", "--format", "csv", "-n", "3", *ARGS)
    assert (outcome.code, outcome.stderr) == (0, "")
    rows = list(csv.DictReader(io.StringIO(outcome.stdout)))
    assert len({row["time_ns"] for row in rows}) >= 2
    last = [row for row in rows if row["time_ns"] == rows[-1]["time_ns"]]
    ours = [row for row in last if row["remote"] == endpoint(veth.b.v4, port)]
    assert len(ours) == 3
    for row in ours:
        assert row["protocol"] == "tcp"
        assert row["process"].startswith("client")
        assert int(row["rx_bytes_total"]) > 0


def test_text_in_a_pipe_is_for_people_and_for_awk(lab: Lab, veth: Link) -> None:
    outcome, port = beside_traffic(lab, veth, "-b", "-n", "2", *ARGS)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert endpoint(veth.b.v4, port) in outcome.stdout
    assert "\x1b" not in outcome.stdout
    assert outcome.stdout.count(veth.a.name) == 2
    lines = outcome.stdout.splitlines()
    titles = next(line for line in lines if line.startswith("protocol ")).split()
    rows = [line.split() for line in lines if line.startswith(("tcp ", "udp ", "icmp"))]
    assert rows
    assert {len(row) for row in rows} == {len(titles)}  # nothing cut, nothing of two words
    assert endpoint(veth.b.v4, port) in {row[titles.index("remote")] for row in rows}


def test_files_belong_to_the_invoking_user(lab: Lab, veth: Link, folder: Path) -> None:
    written = {
        "snapshot": ("--snapshot", str(folder / "snapshot.ndjson"), *ARGS),
        "output": ("-b", "--format", "ndjson", "-n", "2", "-o", str(folder / "output.ndjson"), *ARGS),
        "record": ("-b", "-n", "2", "--record", str(folder / "record.ndjson.gz"), *ARGS),
        "log": ("-b", "-n", "1", "--log", str(folder / "log"), *ARGS),
    }
    for args in written.values():
        outcome = run_nettop(lab, veth.a, *args, env=SUDO)
        assert (outcome.code, outcome.stderr) == (0, "")
    names = {path.name for path in folder.iterdir()}
    assert names == {"snapshot.ndjson", "output.ndjson", "record.ndjson.gz", "log"}
    for path in folder.iterdir():
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (NOBODY.pw_uid, NOBODY.pw_gid), path
        assert stat.S_IMODE(found.st_mode) == 0o600, path
    (folder / "log").unlink()  # there may be nothing to log
    assert all(path.stat().st_size > 0 for path in folder.iterdir())
    lines = (folder / "output.ndjson").read_text().splitlines()
    assert [json.loads(line)["interface"] for line in lines] == [veth.a.name] * 2


def test_a_file_where_only_root_may_write_is_refused(lab: Lab, veth: Link, folder: Path) -> None:
    os.chown(folder, 0, 0)
    folder.chmod(0o755)
    for args in (("--snapshot", str(folder / "snapshot")), ("-b", "-n", "1", "-o", str(folder / "output"))):
        outcome = run_nettop(lab, veth.a, *args, *ARGS, env=SUDO)
        assert (outcome.code, outcome.stdout) == (2, "")
        assert outcome.stderr.count("\n") == 2
        assert "Permission denied" in outcome.stderr
    assert not list(folder.iterdir())


def test_a_recording_plays_without_root(lab: Lab, veth: Link, folder: Path) -> None:
    path = folder / "recording.ndjson"
    live = ("-b", "--format", "ndjson", "-n", "3", "--record", str(path), *ARGS)
    outcome, _ = beside_traffic(lab, veth, *live, env=SUDO)
    assert outcome.code == 0, outcome.stderr
    unprivileged = ["setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups"]
    replay = run(
        [*unprivileged, *command(None, "-b", "--format", "ndjson", "--replay", str(path))], cwd=REPOSITORY
    )
    frames = [json.loads(line) for line in replay.stdout.splitlines()]
    assert len(frames) == 3
    for played, seen in zip(frames, outcome.frames, strict=True):
        assert played["time_ns"] == seen["time_ns"]
        assert played["throughput"] == seen["throughput"]
        assert [row["id"] for row in played["flows"]] == [row["id"] for row in seen["flows"]]


def test_check_says_what_holds(lab: Lab, veth: Link) -> None:
    outcome = run_nettop(lab, veth.a, "--check")
    assert (outcome.code, outcome.stderr) == (0, "")
    lines = [line.split(None, 3) for line in outcome.stdout.splitlines()[1:]]
    found = {(probe, hook): (holds, text) for probe, hook, holds, text in lines}
    for probe in PROBES.split(","):
        for hook in ("tc_ingress", "tc_egress"):
            assert found[probe, hook] == ("yes", "tcx")


@pytest.mark.timing
def test_the_first_frame_comes_soon(lab: Lab, veth: Link) -> None:
    """With a warm cache. About a second on an idle machine; the bound is for one with other things to do."""
    run_nettop(lab, veth.a, "-b", "-n", "1", "-d", "0.1", "-p", PROBES)
    start = time.monotonic()
    with Nettop(lab, veth.a, "-d", "0.1", "-p", PROBES) as nettop:
        nettop.wait_frames(1)
        taken = time.monotonic() - start
    print(f"first frame after {taken:.2f} s, 0.1 s of it the interval")
    assert taken < 5

"""Files that are rotated while a run without a screen writes them: moved away and SIGHUP, or cut (copytruncate)."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import gzip
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from fakes import KINDS, frame
from lab.shell import eventually

from nettop import batch
from nettop.core.errors import ExitCode, NettopError
from nettop.core.frame import ProbeStatus
from nettop.output import Style
from nettop.output.csv import CsvWriter, paths
from nettop.probes.flows.rows import TABLE
from nettop.record.files import Sink
from nettop.record.recording import Header, Recorder, Recording

ROOT = Path(__file__).parents[2]
SUFFIXES = pytest.mark.parametrize("suffix", ["", ".gz"])

# A run whose frames come every 5 ms for ever.
CHILD = """
import asyncio, sys
sys.path[:0] = [{root!r}, {tests!r}]
from fakes import frame
from nettop import batch
from nettop.cli import _print_error
from nettop.output import WRITERS, Style
from nettop.record.files import Sink
from nettop.record.recording import Header, Recorder

async def frames():
    index = 0
    while True:
        yield frame(index)
        index += 1
        await asyncio.sleep(0.005)

sink = Sink({output!r}) if {output!r} else None
output = batch.Output(WRITERS["ndjson"](sink.write if sink else batch.to_stdout, Style()), sink)
hangup = asyncio.Event() if sink else None
sys.exit(batch.until_signal(batch.run(frames(), output, None, None, _print_error, hangup), hangup))
"""


def text_of(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.name.endswith(".gz") else data).decode()


def indexes(path: Path) -> list[int]:
    return [json.loads(line)["numbers"][0] for line in text_of(path).splitlines()]


@contextlib.contextmanager
def running(output: Path | None, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    code = CHILD.format(root=str(ROOT), tests=str(Path(__file__).parent), output=str(output or ""))
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stderr=subprocess.PIPE, **options) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def grown(path: Path, size: int = 2000) -> None:
    assert eventually(lambda: path.exists() and path.stat().st_size > size, timeout=20)


@SUFFIXES
def test_a_file_that_was_moved_away_is_whole_and_the_run_goes_on_in_a_new_one(tmp_path, suffix):
    path, old = tmp_path / f"out{suffix}", tmp_path / f"out.1{suffix}"
    with running(path) as process:
        grown(path)
        path.rename(old)
        process.send_signal(signal.SIGHUP)
        grown(path)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    seen = indexes(old) + indexes(path)
    assert len(seen) > 3
    assert seen == list(range(len(seen)))  # nothing lost, nothing twice
    assert path.stat().st_mode & 0o777 == 0o600


@SUFFIXES
def test_a_file_that_was_cut_begins_anew_without_a_hole(tmp_path, suffix):
    """As logrotate's copytruncate does it; what comes between the copy and the cut is lost with any program."""
    path, old = tmp_path / f"out{suffix}", tmp_path / f"copy{suffix}"
    with running(path) as process:
        grown(path)
        shutil.copy(path, old)
        os.truncate(path, 0)
        grown(path, 1000)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert b"\0\0\0\0" not in path.read_bytes()[:4]
    seen = indexes(path)
    assert seen == list(range(seen[0], seen[0] + len(seen)))
    assert seen[0] >= 3


def test_without_a_file_a_hang_up_ends_it_and_says_so(tmp_path):
    with running(None, stdout=subprocess.PIPE, start_new_session=True) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        assert process.wait(20) == ExitCode.HANGUP


def test_nohup_is_obeyed(tmp_path):
    """Whoever starts us with SIGHUP ignored does not want us to end by it."""
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    with running(None, stdout=subprocess.PIPE, **ignored) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        for _ in range(10):
            assert process.stdout.readline()


def test_a_terminal_that_goes_ends_it_even_with_a_file(tmp_path):
    """Nobody would ever find it again."""
    path = tmp_path / "out"
    pid, terminal = pty.fork()
    if pid == 0:
        code = CHILD.format(root=str(ROOT), tests=str(Path(__file__).parent), output=str(path))
        os.execv(sys.executable, [sys.executable, "-c", code])
    try:
        grown(path)
    finally:
        os.close(terminal)
    ended = os.WEXITED | os.WNOWAIT | os.WNOHANG
    if not eventually(lambda: os.waitid(os.P_PID, pid, ended) is not None, timeout=20):
        os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == ExitCode.HANGUP


def test_somebody_elses_file_under_the_name_is_left_alone(tmp_path):
    path = tmp_path / "out"
    sink = Sink(str(path))
    sink.write("one\n")
    path.rename(tmp_path / "old")
    (tmp_path / "victim").write_text("precious")
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(NettopError, match="going on in the file that was open"):
        sink.reopen()
    sink.write("two\n")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "old").read_text() == "one\ntwo\n"


def test_a_file_that_logrotate_has_made_is_taken(tmp_path):
    path = tmp_path / "out"
    sink = Sink(str(path))
    sink.write("one\n")
    path.rename(tmp_path / "old")
    path.touch()
    sink.reopen()
    sink.write("two\n")
    assert path.read_text() == "two\n"


@SUFFIXES
def test_without_a_move_it_is_the_same_file(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    sink = Sink(str(path))
    sink.write("one\n")
    sink.reopen()
    sink.write("two\n")
    sink.close()
    assert text_of(path) == "one\ntwo\n"


@pytest.mark.parametrize("cut", [False, True])
def test_each_file_of_csv_has_its_titles(tmp_path, cut):
    path = tmp_path / "x.csv"
    sink = Sink(str(path))
    output = batch.Output(CsvWriter(sink.write, Style()), sink)
    output.write(frame(1))
    if cut:
        os.truncate(path, 0)
    else:
        path.rename(tmp_path / "old.csv")
        output.reopen()
    output.write(frame(2))
    output.write(frame(3))
    assert next(csv.reader(io.StringIO(path.read_text()))) == [*paths(TABLE)]
    assert path.read_text().count("protocol,") == 1


def test_each_file_of_a_recording_has_its_header(tmp_path):
    path = tmp_path / "x.ndjson.gz"
    recorder = Recorder(str(path), Header(host="db-3"), 1000, "")
    recorder.record(frame(1))
    path.rename(tmp_path / "old.gz")
    recorder.reopen()
    recorder.record(frame(2))
    recorder.close()
    for name, index in (("old.gz", 1), ("x.ndjson.gz", 2)):
        with Recording(str(tmp_path / name), KINDS) as recording:
            assert recording.header.host == "db-3"
            assert list(recording.frames()) == [frame(index)]


# --- exit codes -----------------------------------------------------------------------------------------------


def finished(*states: str, live: bool = True, unmet: NettopError | None = None) -> tuple[int, str]:
    async def frames():
        yield frame(1)
        yield frame(2, probes={f"p{i}": ProbeStatus(state, "no\nBTF") for i, state in enumerate(states)})

    said: list[str] = []
    nowhere = Mock(unmet=lambda: unmet)
    work = batch.run(frames(), nowhere, None, None, said.append, None, live)
    return asyncio.run(work), "\n".join(said)


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (("failed", "failed"), ExitCode.FAILURE),
        (("failed", "unavailable", "off"), ExitCode.FAILURE),
        (("unavailable", "off"), ExitCode.UNSUPPORTED),
        (("failed", "live"), ExitCode.OK),
    ],
)
def test_a_run_in_which_nothing_works_does_not_end_with_0(states, code):
    found, said = finished(*states)
    assert found == code
    assert ("no probe works" in said) is (code != 0)
    assert len(said.splitlines()) == (2 if code else 0)


def test_a_recording_of_a_failure_is_no_failure():
    assert finished("failed", live=False) == (0, "")


def test_what_was_asked_for_and_never_came_is_a_failure():
    error = NettopError("no packet was traced", "wait")
    assert finished("live", unmet=error) == (ExitCode.FAILURE, error.lines())

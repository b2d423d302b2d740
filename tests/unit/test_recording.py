"""Recordings and snapshots: what was written is read, and what is damaged is named by line."""

from __future__ import annotations

import gzip
import json
import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fakes
import pytest
from fakes import KINDS, frame, record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nettop.core.errors import ExitCode, NettopError
from nettop.record import schema
from nettop.record.files import Sink
from nettop.record.recording import Header, Recorder, Recording, View, file_name, write_snapshot

HEADER = Header("recording", "0.1.0", 5, "db-3", "eth0", View("rtt", True, "tcp", "tcp a b", "flows"))
SUFFIXES = pytest.mark.parametrize("name", ["x.ndjson", "x.ndjson.gz"])


def opened(path: Path) -> Recording:
    return Recording(str(path), KINDS)


def text_of(*frames) -> str:
    return "".join(schema.dumps(schema.frame_to_json(f, 1000, "")) + "\n" for f in frames)


@SUFFIXES
def test_what_was_recorded_is_read(tmp_path, name):
    made = [frame(i, i, i * i) for i in range(7)]
    with opened(record(tmp_path / name, made, HEADER)) as recording:
        assert list(recording.frames()) == made
        assert recording.header == HEADER
        assert recording.problem is None
        assert recording.times_ns == tuple(f.time_ns for f in made)
        assert recording.frame(3) == made[3]
        assert recording.frame(1) == made[1]
        assert recording.interval_ns(2) == 10**9


@SUFFIXES
@pytest.mark.parametrize("kind", ["recording", "snapshot"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(made=st.lists(fakes.frames, min_size=1, max_size=4))
def test_any_frames_survive(tmp_path, name, kind, made):
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if kind == "recording":
        record(path, made, HEADER)
    else:
        write_snapshot(str(path), made, View(pane="rtt"), 1000)
    with opened(path) as recording:
        assert list(recording.frames()) == made
        header, last = recording.header, made[-1]
    if kind == "recording":
        assert header == HEADER
    else:
        assert (header.kind, header.host, header.interface) == ("snapshot", last.host, last.interface)
        assert header.view == View(pane="rtt")


def test_gzip_is_by_name_and_a_snapshot_is_for_people(tmp_path):
    record(tmp_path / "a.gz", [frame()])
    write_snapshot(str(tmp_path / "b.json"), [frame(0, 1, 2)], View(), 1000)
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()).startswith(b'{"schema":"nettop/1","kind"')
    text = (tmp_path / "b.json").read_text()
    assert ' "interface": "eth0",\n' in text
    assert max(map(len, text.splitlines())) < 220  # the health's line is the longest


def test_gzip_is_known_by_content(tmp_path):
    path = tmp_path / "renamed"
    path.write_bytes(gzip.compress(text_of(frame(1)).encode()) + gzip.compress(text_of(frame(2)).encode()))
    with opened(path) as recording:
        assert list(recording.frames()) == [frame(1), frame(2)]


def test_the_output_of_batch_has_no_header_and_opens(tmp_path):
    path = tmp_path / "x"
    path.write_text(text_of(frame(1), frame(2)))
    with opened(path) as recording:
        assert list(recording.frames()) == [frame(1), frame(2)]
        assert recording.header == Header()


def test_a_pipe_opens(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(text_of(frame(1), frame(2)),))
    writer.start()
    with opened(path) as recording:
        writer.join()
        assert list(recording.frames()) == [frame(1), frame(2)]


@pytest.mark.parametrize(
    ("data", "line", "why"),
    [
        (b"", 1, "empty"),
        (b"hello\nthere\n", 1, "not a recording"),
        (b"\x7fELF\x02\x01\x01\x00" + bytes(100), 1, "not a recording"),
        (b'{"a": 1}\n', 1, "not a frame of nettop"),
        (b"[]\n", 1, "not a frame of nettop"),
        (b'{"schema": "nettop/99", "kind": "recording"}\n', 1, "newer"),
        (b'\n\n{"schema": "nettop/1"\n', 3, "not a recording"),
        (b'{\n "schema": "nettop/1"\n', 1, "not a recording"),
        (b'{"schema": "nettop/1", "kind": "recording"}\n', 2, "no frame"),
        (b'{"schema": "nettop/1", "kind": "recording"}\nnonsense\n', 2, "not a frame"),
        (b"\x1f\x8b\x08\x00nonsense and more of it", 1, "gzip"),
        (b"\x1f\x8b", 1, "gzip"),
    ],
)
def test_a_foreign_file_says_at_which_line_and_why(tmp_path, data, line, why):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(NettopError, match=why) as caught:
        opened(path)
    assert f"line {line}:" in caught.value.message
    assert caught.value.code == ExitCode.FAILURE
    assert caught.value.hint


def test_no_such_file(tmp_path):
    with pytest.raises(NettopError, match="No such file") as caught:
        opened(tmp_path / "none")
    assert caught.value.code == ExitCode.USAGE


def test_a_directory_is_no_recording(tmp_path):
    with pytest.raises(NettopError, match="directory"):
        opened(tmp_path)


@pytest.mark.parametrize("keep", [1, 40, 200, 300])
def test_a_recording_that_was_cut_gives_what_is_whole_and_says_where_it_ends(tmp_path, keep):
    path = record(tmp_path / "x", [frame(i) for i in range(3)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:keep])
    with opened(path) as recording:
        assert len(recording) == 2
        with pytest.raises(NettopError, match="line 4") as caught:
            list(recording.frames())
        assert recording.problem is caught.value


def test_a_whole_last_line_without_its_end_is_whole(tmp_path):
    path = tmp_path / "x"
    path.write_text(text_of(frame(1), frame(2)).rstrip("\n"))
    with opened(path) as recording:
        assert recording.problem is None
        assert len(recording) == 2


def test_a_cut_snapshot_says_where(tmp_path):
    path = tmp_path / "x"
    write_snapshot(str(path), [frame(1), frame(2)], View(), 1000)
    path.write_text(path.read_text()[:-3])
    with opened(path) as recording:
        assert len(recording) == 1
        assert "ends too early" in recording.problem.message


@pytest.mark.parametrize("cut", [1, 8, 30])
def test_a_cut_gzip_gives_what_is_whole(tmp_path, cut):
    path = record(tmp_path / "x.gz", [frame(i, *range(i * 50)) for i in range(20)])
    path.write_bytes(path.read_bytes()[:-cut])
    with opened(path) as recording:
        assert len(recording) >= 18
        assert recording.frame(17) == frame(17, *range(17 * 50))
        assert "the gzip file ends too early" in recording.problem.message


def test_damage_in_the_middle_is_named_and_what_is_before_is_shown(tmp_path):
    path = tmp_path / "x"
    path.write_text(text_of(frame(1)) + "garbage\n" + text_of(frame(2)))
    with opened(path) as recording:
        assert list(recording.times_ns) == [frame(1).time_ns]
        assert "line 2" in recording.problem.message


def test_a_frame_that_makes_no_sense_is_named_when_it_is_reached(tmp_path):
    path = tmp_path / "x"
    path.write_text(text_of(frame(1)) + text_of(frame(2)).replace('"host":"db-3"', '"host":3'))
    with opened(path) as recording, pytest.raises(NettopError, match="line 2: host"):
        list(recording.frames())


def test_a_name_inside_the_data_cannot_pass_for_a_time(tmp_path):
    made = frame(1, host='x","time_ns":7,"interval_ns":9,"')
    with opened(record(tmp_path / "x", [made])) as recording:
        assert recording.times_ns == (made.time_ns,)


@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_file_raises_anything_else(tmp_path, data):
    path = tmp_path / "x"
    for prefix in (b"", b"\x1f\x8b\x08\x00", text_of(frame(1)).encode()):
        path.write_bytes(prefix + data)
        try:
            with opened(path) as recording:
                list(recording.frames())
        except NettopError as error:
            said = error.message
            assert "line " in said


def test_a_header_with_strange_values_is_read_as_far_as_it_makes_sense():
    view = {"sort": "rtt", "reverse": "no"}
    data = {"kind": "else", "version": 3, "created_ns": True, "host": "h", "view": view}
    assert Header.from_json(data) == Header(host="h", view=View(sort="rtt"))
    assert Header.from_json({"view": 7}) == Header()


# --- files --------------------------------------------------------------------------------------------------


@SUFFIXES
def test_files_are_the_owners_alone(tmp_path, name):
    old = os.umask(0)
    try:
        path = record(tmp_path / name, [frame()])
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_never_over_an_existing_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("precious")
    with pytest.raises(NettopError, match="already") as caught:
        record(path, [])
    assert caught.value.code == ExitCode.USAGE
    with pytest.raises(NettopError):
        write_snapshot(str(path), [frame()], View(), 1)
    assert path.read_text() == "precious"


def test_never_through_a_symbolic_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(NettopError, match="already"):
        record(tmp_path / "link", [])
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", ["no/such/folder", "nul\0l"])
def test_where_no_file_can_be(tmp_path, name):
    with pytest.raises(NettopError) as caught:
        Sink(str(tmp_path / name))
    assert caught.value.code == ExitCode.USAGE


@contextmanager
def small_disk() -> Iterator[int]:
    """No file grows beyond this: the kernel refuses, as it does on a full disk.

    Within a test only: pytest's own output may be a file, too.
    """
    limit = 4000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_to_unpack_is_said_as_it_is(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(text_of(*(frame(i) for i in range(100))).encode()))
    with small_disk(), pytest.raises(NettopError, match="no room to unpack"):
        opened(path)


@SUFFIXES
def test_a_full_disk_stops_the_recording_and_keeps_what_is_whole(tmp_path, name):
    path = tmp_path / name
    made = [frame(i, *(hash((i, j)) % 2**60 for j in range(9))) for i in range(500)]
    with small_disk() as limit:
        recorder = Recorder(str(path), HEADER, 1000, "")
        with pytest.raises(NettopError, match="stopped") as caught:  # noqa: PT012
            for written, each in enumerate(made):  # noqa: B007
                recorder.record(each)
    assert caught.value.hint
    assert recorder.closed
    assert written > 3
    assert path.stat().st_size <= limit
    with opened(path) as recording:
        assert list(recording.frames()) == made[:written]
        assert recording.problem is None
    with pytest.raises(NettopError, match="closed"):
        recorder.record(made[0])


@SUFFIXES
def test_a_frame_is_in_the_file_as_soon_as_it_is_written(tmp_path, name):
    recorder = Recorder(str(tmp_path / name), HEADER, 1000, "")
    recorder.record(frame(1))
    with opened(tmp_path / name) as recording:
        assert recording.frame(0) == frame(1)
    recorder.close()
    recorder.close()


def test_what_is_recorded_is_the_top(tmp_path):
    with Recorder(str(tmp_path / "x"), HEADER, 2, "ascending") as recorder:
        recorder.record(frame(0, 9, 8, 7))
    assert json.loads((tmp_path / "x").read_text().splitlines()[1])["numbers"] == [7, 8]


def test_names_of_new_files():
    assert file_name(frame(1), "snapshot") == "nettop-db-3-eth0-20250101-000001.snapshot.json.gz"
    hostile = frame(1, host="../../etc/\x1b", interface="")
    assert file_name(hostile, "recording") == "nettop-etc-20250101-000001.ndjson.gz"

"""The recording that comes with nettop: small, whole, eventful, and played by anybody."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import written
from jsonschema import Draft202012Validator

from nettop.analysis.verdict.explain import explain
from nettop.analysis.verdict.rules import HEALTHY
from nettop.cli import DEMO
from nettop.core import units
from nettop.core.frame import Frame
from nettop.probes.base import all_probes
from nettop.record.recording import Recording

ROOT = Path(__file__).parents[2]
LIMIT = 400_000  # bytes


@pytest.fixture(scope="module")
def frames() -> Iterator[list[Frame]]:
    with Recording(str(DEMO)) as recording:
        assert recording.problem is None
        yield list(recording.frames())


def test_it_is_small():
    assert DEMO.stat().st_size < LIMIT


def test_it_is_about_a_minute_with_every_probe(frames):
    seconds = sum(frame.seconds for frame in frames)
    assert 55 < seconds < 90
    for frame in frames:
        assert {name for name, status in frame.probes.items() if status.state == "live"} == set(all_probes())


def test_it_says_nothing_of_where_it_was_made(frames):
    assert {(frame.host, frame.interface) for frame in frames} == {("demo", "uplink0")}
    addresses = {row["remote"].tobytes() for frame in frames for row in frame.sections["flows"].rows}
    private = (b"\0" * 10 + b"\xff\xff" + bytes([10, 77]), bytes.fromhex("fd77"), bytes.fromhex("ff02"))
    assert all(address.startswith(private) for address in addresses)


def test_a_download_starts(frames):
    rates = [frame.sections["throughput"].rx.bytes * 8 / frame.seconds for frame in frames]
    assert max(rates) > 100e6
    assert min(rates) < 10e6


def test_a_queue_fills_and_every_flow_waits_in_it(frames):
    queued = [f.sections for f in frames if (f.sections["throughput"].qdisc.backlog_bytes or 0) > 50_000]
    assert len(queued) >= 4
    assert {sections["throughput"].qdisc.kind for sections in queued} == {"tbf"}
    rows = queued[len(queued) // 2]["flows"].rows
    measured = rows[rows["rtt"]["samples"] > 0]
    waiting = measured["rtt"]["last"] > measured["rtt"]["min"] + 20_000_000
    assert waiting.sum() >= 5


def test_a_path_loses_packets(frames):
    assert max(int(frame.sections["flows"].rows["tx_retransmits"].max(initial=0)) for frame in frames) > 20


def test_of_a_reader_that_was_not_in_focus_it_is_said_what_was_not_seen(frames):
    """Another flow was in focus while it was recorded: what it takes to call this one healthy is not there."""
    rows = np.concatenate([frame.sections["flows"].rows for frame in frames])
    (row,) = np.unique(rows[rows["process"]["name"] == b"importer"][["remote", "remote_port"]])
    end = units.endpoint(row["remote"].tobytes(), row["remote_port"])
    said = written("ndjson", *frames, focus=end).splitlines()
    first, *found = filter(None, (json.loads(line)["verdict"] for line in said))
    assert (first["verdict"], first["headline"]) == (None, "too little of this flow was seen yet")
    assert [each["verdict"] for each in found] == ["nothing found"] * 4
    for each in (first, *found):
        dark = {part["part"] for part in each["parts"] if part["ns"] is None}
        assert dark == {"buffer", "send", "qdisc", "receive", "reader"}
        assert "not in focus: windows, answers, the socket" in each["unseen"]
        for words in ("send stack", "qdisc", "receive stack", "wait for reader"):
            assert f"{words}: not timed" in each["unseen"]
    for each in found:
        assert each["reasons"][: len(each["unseen"])] == [f"not seen: {text}" for text in each["unseen"]]


def test_the_flow_in_focus_alone_is_healthy_and_only_while_all_of_it_was_seen(frames):
    sections = [frame.sections["stages"] for frame in frames]
    in_focus = {section.focus.flow for section in sections if section.focus}
    healthy = set()
    for flow in {int(flow) for frame in frames for flow in frame.sections["flows"].rows["id"]}:
        for count in range(1, len(frames) + 1):
            found = explain(frames[:count], flow)
            if found.verdict == HEALTHY:
                healthy.add(flow)
                assert found.unseen == ()
                assert [part.name for part in found.parts if part.ns is None] == []
    assert healthy == in_focus
    assert len(in_focus) == 1


def test_it_is_what_the_schema_says(frames):
    validator = Draft202012Validator(
        json.loads((ROOT / "docs/frame.schema.json").read_text(encoding="utf-8"))
    )
    with Recording(str(DEMO)) as recording:
        for index in range(0, len(recording), 8):
            validator.validate(json.loads(recording._text(recording._place(index))))


def test_anybody_can_play_it():
    """Without a privilege, and without bcc."""
    code = (
        "import sys; sys.modules['bcc'] = None; from nettop.cli import main; "
        "sys.exit(main(['--demo', '-b', '--format', 'ndjson', '-n', '3']))"
    )
    user = {"user": pwd.getpwnam("nobody").pw_uid, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        **user,  # type: ignore[arg-type]
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["interface"] for line in done.stdout.splitlines()] == ["uplink0"] * 3

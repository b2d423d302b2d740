"""Strings that somebody else has chosen: shown as data, wherever they come from and wherever they go."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from fakes import HOSTILE, NEVER, written
from hypothesis import given
from hypothesis import strategies as st

from nettop import cli
from nettop.core import units
from nettop.core.errors import NettopError
from nettop.core.frame import Frame, ProbeStatus
from nettop.core.histogram import Histogram
from nettop.output import WRITERS
from nettop.probes.flows.rows import ROW
from nettop.probes.flows.section import Flows, Rtts, Subnet
from nettop.probes.flows.table import process as process_of
from nettop.probes.irq.section import Irq, Line
from nettop.record import schema
from nettop.record.recording import Recording


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_more_than_data_becomes_a_replacement_character(name):
    found = units.clean(HOSTILE[name])
    assert len(found) <= 256
    assert not set(found) & NEVER


def test_markup_is_data():
    assert units.clean(HOSTILE["markup"]) == HOSTILE["markup"]


@pytest.mark.parametrize(
    "text",
    ["nginx", "eth0.100", "größe", "Việt Nam", "ếộữ", "漢字", "שלום", "नमस्ते", "naïve e\u0301", "(sd-pam)"],
)
def test_names_of_people_s_languages_stay(text):
    assert units.clean(text) == text


@given(st.text(max_size=300))
def test_of_any_text(text):
    found = units.clean(text)
    assert len(found) == min(len(text), 256)
    assert units.clean(found) == found
    found.encode("utf-8")
    marks = 0
    for c in found:
        kind = unicodedata.category(c)
        assert kind[0] != "C"
        assert kind not in ("Zl", "Zp")
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        assert marks <= 2


def hostile_frame(text: str, name: bytes) -> Frame:
    rows = np.zeros(2, ROW)
    rows["id"] = (1, 2)
    rows["protocol"] = 6
    rows["process"]["pid"] = 7
    rows["process"]["name"] = name
    return Frame(
        1_750_000_000_000_000_000,
        10**9,
        text,
        text[:15],
        text,
        probes={
            **dict.fromkeys(("flows", "irq"), ProbeStatus("live")),
            "stages": ProbeStatus("failed", text),
        },
        sections={
            "flows": Flows(rows=rows, total=2, rtt=Rtts(subnets=(Subnet(text, Histogram.empty()),))),
            "irq": Irq(hard=(Line(3, text, Histogram.empty()),)),
        },
        notes=(text,),
    )


def assert_lines_of_data(output: str) -> None:
    for line in output.replace("\r\n", "\n").split("\n"):
        assert not set(line) & NEVER, ascii(line)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", WRITERS)
def test_no_output_can_do_anything_to_a_terminal(form, name):
    text = HOSTILE[name]
    made = hostile_frame(text, text.encode("utf-8", "replace")[:15])
    output = written(form, made, width=100)
    assert_lines_of_data(output)
    if form == "ndjson":
        assert output.isascii()
        assert len(output.splitlines()) == 1
        characters = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a pair is none
        assert json.loads(output)["host"] == characters
    else:
        assert all(len(line) < 5000 for line in output.splitlines())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_replayed_file_is_data(name, tmp_path):
    path = tmp_path / "x.ndjson"
    made = hostile_frame(HOSTILE[name], b"proc")
    text = schema.dumps(schema.frame_to_json(made, 10, ""))
    data = json.loads(text)
    for flow in data["flows"]:
        flow["process"]["name"] = HOSTILE[name]
    path.write_text(json.dumps(data) + "\n")
    with Recording(str(path)) as recording:
        frame = recording.frame(0)
    for word in (frame.host, frame.interface, frame.filter, *frame.notes, frame.probes["stages"].detail):
        assert not set(word) & NEVER
    rows = frame.sections["flows"].rows  # type: ignore[attr-defined]
    assert not set(process_of(rows[0])) & NEVER
    assert_lines_of_data(written("text", frame))


def test_a_file_of_escapes_is_refused_in_plain_words(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(cli.privilege, "effective", lambda: 0)
    monkeypatch.setattr(cli.os, "geteuid", lambda: 1000)
    path = tmp_path / "x\x1b[31m\u202e.ndjson"
    path.write_text("\x1b[2J\x1b]0;owned\x07" * 3)
    assert cli.main(["-b", "--replay", str(path)]) == 1
    error = capfd.readouterr().err
    assert_lines_of_data(error)
    assert len(error.splitlines()) == 2


def test_an_error_s_words_are_data(capfd, monkeypatch):
    def fail(argv: object) -> None:
        raise NettopError("no interface \x1b[31m\u202e" + "x" * 10_000, "there are: \x9b1m")

    monkeypatch.setattr(cli.settings, "parse", fail)
    assert cli.main(["eth0"]) == 1
    error = capfd.readouterr().err
    assert_lines_of_data(error)
    assert len(error) < 10_000


@pytest.mark.parametrize("name", ["=1+1", "+1", "-bash", "@SUM(A1)", "=cmd|'/c x'!A1"])
def test_a_spreadsheet_takes_no_name_for_a_formula(name):
    made = replace(hostile_frame("host", name.encode()[:15]), host=name, interface=name[:15])
    header, *rows = csv.reader(io.StringIO(written("csv", made), newline=""))
    assert rows
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        assert cells["host"] == "'" + name
        assert cells["process"] == "'" + name[:15]
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row)

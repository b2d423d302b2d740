"""A frame as JSON and back; the schema in docs/ describes exactly what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from fakes import KINDS, frame, histogram, json_values, traffic
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError

from nettop.core.frame import SCHEMA, Frame
from nettop.core.histogram import histogram_json
from nettop.probes.base import all_probes
from nettop.record import schema
from nettop.record.schema import SchemaError, dumps, frame_from_json, frame_to_json, loads, readable

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA_FILE = json.loads((DOCS / "frame.schema.json").read_text(encoding="utf-8"))


def strict(node: Any) -> Any:
    """The schema with no field allowed that it does not name: readers ignore those, we must not write them."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = {key: strict(value) for key, value in node.items()}
    if "properties" in node:
        closed["additionalProperties"] = False
    return closed


STRICT = Draft202012Validator(strict(SCHEMA_FILE))
OPEN = Draft202012Validator(SCHEMA_FILE)


def as_written(made: Frame) -> Any:
    return json.loads(dumps(frame_to_json(made, 1000, "")))


def test_a_frame_is_what_the_schema_says():
    Draft202012Validator.check_schema(SCHEMA_FILE)
    made = traffic(notes=("eth0 is gone",))
    STRICT.validate(as_written(made))
    assert frame_from_json(as_written(made)) == made


@pytest.mark.parametrize("name", all_probes())
def test_every_probe_writes_what_the_schema_says(name):
    STRICT.validate(as_written(traffic(sections={name: all_probes()[name].section.from_frame({})})))


FULL_FLOW = {
    "protocol": "tcp", "local": "10.0.0.1:5201", "remote": "[2001:db8::2]:40000",
    "process": {"pid": 7, "name": "nginx"},
    "rx_bytes": 1, "tx_bytes": 2, "rx_packets": 3, "tx_packets": 4, "rx_bytes_total": 5, "tx_bytes_total": 6,
    "first_ns": 7, "last_ns": 8, "state": "open", "retransmits_total": 9,
    "rtt": {"last_ns": 1, "min_ns": 1, "smoothed_ns": 1, "jitter_ns": 1, "samples": 1, "samples_total": 1,
            "method": "timestamp"},
    "internal_rtt": None,
}  # fmt: skip


def test_a_full_flow_is_read_and_written_as_the_schema_says():
    data = {**as_written(traffic()), "flows_total": 1, "flows": [FULL_FLOW]}
    OPEN.validate(data)
    section = all_probes()["flows"].section.from_frame(data)
    written = json.loads(dumps(section.in_frame(10, "")))
    STRICT.validate({**as_written(traffic()), **written})
    flow = written["flows"][0]
    for key in ("protocol", "local", "remote", "process", "rx_bytes", "tx_bytes_total", "state"):
        assert flow[key] == FULL_FLOW[key]
    assert flow["rtt"]["method"] == "timestamp"


def test_histograms_are_what_the_schema_says():
    hist = Draft202012Validator(strict({"$ref": "#/$defs/histogram", "$defs": SCHEMA_FILE["$defs"]}))
    hist.validate(histogram_json(histogram(3, 20_000, 10**15, count=5)))
    hist.validate(histogram_json(histogram()))


@pytest.mark.parametrize("damage", "schema time_ns interval_ns host interface filter probes health".split())
def test_the_schema_misses_what_is_missing(damage):
    data = as_written(traffic())
    del data[damage]
    with pytest.raises(ValidationError):
        OPEN.validate(data)


def test_the_schema_lets_new_fields_in_and_the_strict_one_does_not():
    data = {**as_written(traffic()), "later": 1}
    OPEN.validate(data)
    with pytest.raises(ValidationError):
        STRICT.validate(data)


# --- round trips --------------------------------------------------------------------------------------------


@given(fakes.frames)
def test_a_frame_is_read_back_as_it_was(made):
    assert frame_from_json(loads(dumps(frame_to_json(made, 1000, ""))), KINDS) == made


@given(fakes.frames)
def test_the_form_for_people_holds_the_same(made):
    data = frame_to_json(made, 1000, "")
    text = readable(data)
    assert json.loads(text) == json.loads(dumps(data))
    lines = text.split("\n")
    assert (lines[0], lines[-1]) == ("{", "}")
    assert not {"{", "}"} & {line.rstrip() for line in lines[1:-1]}


def test_top_and_sort_reach_the_section():
    data = frame_to_json(frame(0, 3, 1, 2), 2, "ascending")
    assert data["numbers"] == [1, 2]
    assert data["numbers_total"] == 3


def test_numbers_of_numpy_are_numbers_and_what_is_none_is_not_written():
    made = frame(0, np.uint64(2**63), np.int32(7))
    assert as_written(made)["numbers"] == [2**63, 7]
    with pytest.raises(ValueError, match="JSON"):
        dumps({"x": float("nan")})
    with pytest.raises(TypeError):
        dumps({"x": {1, 2}})


def test_notes_are_left_out_where_there_are_none():
    assert "notes" not in frame_to_json(frame(), 1, "")


def test_the_output_is_ascii():
    assert dumps({"host": "h\x9b2J\u202e漢"}).isascii()


# --- strange data -------------------------------------------------------------------------------------------


def test_strings_from_a_file_are_data():
    text = dumps(frame_to_json(frame(0, host="a\x1b[2Jb", notes=("\u202eevil\ud800",)), 1, ""))
    read = frame_from_json(loads(text), KINDS)
    assert read.host == "a�[2Jb"
    assert read.notes == ("�evil�",)


def test_fields_that_are_not_known_are_ignored_and_missing_ones_are_unknown():
    data = as_written(frame())
    data |= {"later": {"x": 1}}
    del data["health"], data["host"], data["filter"]
    read = frame_from_json(data, KINDS)
    assert (read.host, read.filter) == ("", "")
    assert read.health.kernel_ns is None


def test_a_probe_that_is_not_live_has_no_section():
    data = as_written(frame())
    data["probes"]["numbers"]["state"] = "failed"
    assert frame_from_json(data, KINDS).sections == {}


def test_a_probe_that_we_do_not_have_is_left_alone():
    data = as_written(frame())
    assert frame_from_json(data, {}).probes["numbers"].state == "live"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schema": "nettop/2"}, "newer"),
        ({"schema": "other/1"}, "not a frame"),
        ({"schema": 1}, "not a frame"),
        ({"time_ns": "soon"}, "time_ns"),
        ({"time_ns": -1}, "time_ns"),
        ({"time_ns": 2**63}, "time_ns"),
        ({"interval_ns": True}, "interval_ns"),
        ({"interval_ns": None}, "interval_ns"),
        ({"host": 5}, "host"),
        ({"probes": []}, "probes"),
        ({"probes": {"numbers": {"state": "dead"}}}, "dead"),
        ({"probes": {"numbers": {}}}, "state"),
        ({"probes": {"numbers": 3}}, None),
        ({"probes": {"numbers": {"state": "live", "hooks": [1]}}}, None),
        ({"health": {"user_ns": "x"}}, "user_ns"),
        ({"numbers": ["x"]}, "numbers"),
        ({"numbers": 5}, "numbers"),
        ({"notes": 5}, None),
    ],
)
def test_malformed_data_says_what_is_wrong(change, why):
    with pytest.raises(SchemaError, match=why) as caught:
        frame_from_json({**as_written(frame()), **change}, KINDS)
    assert str(caught.value)


def test_a_count_of_what_was_missed_that_makes_no_sense_is_named():
    data = as_written(traffic())
    data["health"]["lost_events"] = "x"
    data["probes"]["flows"] = {"state": "live", "detail": "", "hooks": []}
    with pytest.raises(SchemaError, match="flows: health: lost_events: not a whole number"):
        frame_from_json(data)


def test_an_older_schema_is_read():
    assert frame_from_json({**as_written(frame()), "schema": "nettop/0"}, KINDS).host == "db-3"
    assert f"nettop/{schema.VERSION}" == SCHEMA


@pytest.mark.parametrize(
    "text", ["", "{", "nope", "[" * 100_000, '{"x": NaN}', '{"x": 1e999', b"\xff\xfe\x00x", "1" * 5000]
)
def test_what_is_no_json_is_a_schema_error(text):
    with pytest.raises(SchemaError):
        loads(text)


keys = st.sampled_from(
    [*frame_to_json(frame(), 1, ""), "notes", "throughput", "flows", "rtt", "samples", "flows_total"]
)


@given(st.dictionaries(keys, json_values, max_size=4))
def test_no_data_raises_anything_else_than_a_schema_error(changes):
    """Whatever stands where: real probes read it, or refuse it in one way."""
    live = {"state": "live", "detail": "", "hooks": []}
    data = {**as_written(frame()), "probes": dict.fromkeys(all_probes(), live), **changes}
    try:
        frame_from_json(loads(json.dumps(data)))
    except SchemaError as error:
        assert str(error).isprintable()  # noqa: PT017

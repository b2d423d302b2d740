"""What --batch writes: JSON, CSV and text from the same frames."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Numbers, frame, traffic, written

from nettop.cli import DEMO
from nettop.core.frame import Frame, ProbeStatus
from nettop.core.table import order
from nettop.core.table import rows_of as table_rows
from nettop.output import text as text_module
from nettop.output.csv import paths
from nettop.output.text import plain_lines, table_lines
from nettop.probes.base import Probe, all_probes
from nettop.probes.flows import table as flows_table
from nettop.probes.flows.rows import TABLE as TABLE_OF_FLOWS
from nettop.record.recording import Recording
from nettop.render.canvas import Canvas, Column, Line, Pane, Span, Table, line, place_columns

COLUMNS = (*paths(TABLE_OF_FLOWS),)
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "frame.schema.json").read_text(encoding="utf-8"))


def test_json_is_one_frame_a_line():
    text = written("ndjson", frame(1, 5), frame(2, 6))
    assert text.endswith("\n")
    assert [json.loads(one)["numbers"] for one in text.splitlines()] == [[5], [6]]


def test_json_takes_top_and_sort():
    text = written("ndjson", frame(1, 5, 3), top=1, sort="ascending")
    assert json.loads(text)["numbers"] == [3]


# --- CSV ----------------------------------------------------------------------------------------------------


def flows(index: int, *numbers: int) -> Frame:
    """A frame with a flow for each number of bytes, and one of which little is known."""
    listed = [
        {"id": n, "protocol": "tcp", "local": "10.0.0.1:1", "remote": "[::1]:2", "process": {"pid": 7, "name": "x"},
         "rx_bytes": n, "rtt": {"min_ns": 9, "samples_total": 1, "method": "timestamp"}, "internal_rtt": None,
         "vlan": None, "kernel_rtt": {"smoothed_ns": 5, "cwnd": 10}}
        for n in numbers
    ]  # fmt: skip
    rows = table_rows(TABLE_OF_FLOWS.columns, [*listed, {"id": 1, "protocol": "udp", "rx_bytes": 0}])
    rows["process"]["name"][:-1] = b'a "b",\nc\x1b[2J'
    section = all_probes()["flows"].section.from_frame({})
    probes = {"flows": ProbeStatus("live")}
    return frame(index, probes=probes, sections={"flows": replace(section, rows=rows)})


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def test_csv_has_a_header_once_and_a_row_a_flow():
    rows = rows_of(written("csv", flows(1, 10, 11), flows(2, 12)))
    assert [r["rx_bytes"] for r in rows] == ["11", "10", "0", "12", "0"]  # the busiest first
    assert rows[0]["time"] == "2025-01-01T00:00:01.000Z"
    assert rows[3]["time_ns"] == str(flows(2).time_ns)
    assert {r["interval_ns"] for r in rows} == {"1000000000"}
    assert tuple(rows[0]) == COLUMNS


def test_csv_reaches_into_what_json_nests_and_leaves_the_unknown_empty():
    known, unknown = rows_of(written("csv", flows(1, 10)))
    named = {"pid": "7", "rtt_min_ns": "9", "rtt_method": "timestamp", "kernel_rtt_ns": "5"}
    assert {name: known[name] for name in named} == named
    assert known["internal_rtt_min_ns"] == known["vlan"] == ""
    assert unknown["pid"] == unknown["process"] == unknown["rtt_last_ns"] == unknown["state"] == ""


def test_csv_is_rfc_4180_whatever_a_process_calls_itself():
    text = written("csv", flows(1, 10))
    assert text.count("\r\n") == text.count("\n") == 3
    assert "\x1b" not in text
    assert rows_of(text)[0]["process"] == 'a "b",�c�[2J'


def test_a_frame_without_flows_has_a_header_and_no_rows():
    assert written("csv", frame(1)) == ",".join(COLUMNS) + "\r\n"


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of a schema's values."""
    if "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].rpartition("/")[2]]
    for part in node.get("anyOf", ()):
        yield from leaves(part, path)
    if "properties" in node:
        for name, part in node["properties"].items():
            yield from leaves(part, (*path, name))
    elif "anyOf" not in node and node.get("type") != "null":
        yield path


def test_csv_has_every_field_of_a_flow():
    fields = set(leaves(SCHEMA["properties"]["flows"]["items"]))
    assert len(fields) > 40
    assert len(set(COLUMNS)) == len(COLUMNS)
    assert fields - set(paths(TABLE_OF_FLOWS).values()) == set()


def test_columns_that_readers_know_by_place_keep_it():
    assert COLUMNS[:8] == (*"time time_ns interval_ns host interface protocol local remote".split(),)
    assert COLUMNS[COLUMNS.index("age_ns") - 1] == "kernel_rtt_ns"


# --- text ---------------------------------------------------------------------------------------------------

ROW = np.dtype([("id", "u8"), ("size", "u8"), ("name", "U20")])


def rows(shown: Frame) -> Any:
    numbers = shown.sections["numbers"].numbers  # type: ignore[attr-defined]
    return np.array([(i, n, f"flow {i}") for i, n in enumerate(numbers)], ROW)


def drawn(history: list[Frame], canvas: Canvas) -> list[Line]:
    return [line("drawn")]


TABLE = Table(
    columns=(
        Column("name", "name", 8, lambda r, c, f: Span(str(r["name"])), lambda r: r["name"], "left", ascending=True,
               stretch=True),
        Column("size", "size", 6, lambda r, c, f: Span(str(r["size"])), lambda r: r["size"]),
        Column("share", "share", 6, lambda r, c, f: Span(f"{r['size'] / 100:.0%}"), lambda r: r["size"], priority=2),
        Column("wide", "wide", 9, lambda r, c, f: Span("w" * c.width), lambda r: r["size"], priority=1),
    ),
    rows=rows,
    identity="id",
    default_sort="size",
)  # fmt: skip
PANES = (
    Pane("graph", "Graph", 1, "top", draw=drawn, compact=lambda h, c: [line(("compact µ", "rx"))]),
    Pane("numbers", "Numbers", 2, "middle", table=TABLE, subtitle=lambda h, c: "3 rows · by size"),
)


@pytest.fixture
def panes(monkeypatch) -> Callable[..., None]:
    """Gives the only probe other panes."""

    def of(*panes: Pane) -> None:
        probe = Probe("numbers", "", (), (), lambda s: None, Numbers, panes)  # type: ignore[arg-type, return-value]
        monkeypatch.setattr(text_module, "all_probes", lambda: {"numbers": probe})

    return of


@pytest.fixture
def numbers(panes) -> None:
    """The only probe that there is has a graph and a table."""
    panes(*PANES)


def test_text_says_everything_a_person_wants(numbers):
    text = written("text", frame(1, 5, 70, 6, filter="tcp port 443"), width=34)
    assert text.splitlines() == [
        "2025-01-01T00:00:01.000Z  eth0  db-3  1.00 s  filter: tcp port 443",
        "compact µ",
        "Numbers  3 rows · by size",
        "name               size       wide",
        "flow 1               70  wwwwwwwww",
        "flow 2                6  wwwwwwwww",
        "flow 0                5  wwwwwwwww",
        "lost events 1  evicted flows 2  untracked packets 3  kernel -  user 0.0 %  5 B",
        "",
    ]


def test_a_graph_over_time_gives_its_subtitle_or_else_itself(panes):
    heat = Pane("a", "Heat", 1, "top", draw=drawn, subtitle=lambda h, c: "p50 21 ms")
    panes(heat, Pane("b", "Plain", 2, "top", draw=drawn))
    assert written("text", frame(1)).splitlines()[1:4] == ["Heat  p50 21 ms", "Plain", "drawn"]


def test_without_unicode_text_is_ascii(numbers):
    text = written("text", frame(1, 5), unicode=False)
    assert text.isascii()
    assert "compact u" in text


def test_notes_are_shown_and_harmless(numbers):
    text = written("text", frame(1, notes=("eth0 is gone\x1b[2J",)))
    assert "! eth0 is gone�[2J" in text


def test_a_probe_that_failed_says_why_and_one_that_is_off_is_silent(numbers):
    failed = frame(1, probes={"numbers": ProbeStatus("failed", "no BTF\x07")}, sections={})
    text = written("text", failed)
    assert "Numbers: failed: no BTF�" in text
    failed = replace(failed, probes={"numbers": ProbeStatus("failed", "word " * 100)})
    assert max(map(len, written("text", failed, width=60).splitlines()[1:-2])) <= 60
    off = frame(1, probes={"numbers": ProbeStatus("off", "")}, sections={})
    assert "Numbers" not in written("text", off)


def table(shown: Frame, width: int = 60, top: int = 1000, sort: str = "") -> list[str]:
    return table_lines(TABLE, shown, Canvas(width, 10), top, sort)


@pytest.mark.parametrize(
    ("sizes", "sort", "order"),
    [((5, 70, 6), "name", "012"), ((5, 70, 6), "nosuch", "120"), ((5, 5, 9, 5), "", "2013")],
    ids=["the column asked for", "none of that name", "rows that tie keep their order"],
)
def test_the_table_is_sorted(sizes, sort, order):
    assert "".join(t.split()[1] for t in table(frame(0, *sizes), sort=sort)[1:]) == order


def test_what_is_left_out_is_counted():
    lines = table(frame(0, *range(10)), top=4)
    assert len(lines) == 6
    assert lines[-1] == "and 6 more"


@pytest.mark.parametrize("width", [16, 24, 33, 60, 200])
def test_lines_fit_and_columns_of_high_priority_number_leave_first(width):
    kept = [p.column.key for p in place_columns(TABLE.columns, width, gap=2)]
    assert kept[:2] == ["name", "size"]
    if "share" in kept:
        assert "wide" in kept
    assert all(len(t) <= width for t in table(frame(0, 5, 10**12), width))


def test_a_cell_that_is_too_long_does_not_push_the_others():
    lines = table(frame(0, 5, 10**12), 60)
    assert len({len(t) for t in lines}) == 1


def test_a_table_for_awk_is_whole_and_each_cell_is_one_word():
    """Where the output is no terminal: no column left out, nothing cut, and an empty cell is a dash."""
    table = replace(
        TABLE,
        columns=(
            *TABLE.columns[:3],
            Column(
                "rate",
                "rate",
                3,
                lambda r, c, f: Span(f"{r['size']} Mb/s".rjust(c.width)),
                lambda r: r["size"],
            ),
            Column("none", "none", 3, lambda r, c, f: Span(" " * c.width), lambda r: r["size"], priority=9),
            Column("last", "the last", 3, lambda r, c, f: Span("x" * 70), lambda r: r["size"], priority=9),
        ),
    )
    header, *lines = plain_lines(table, frame(0, 5, 70, 6), Canvas(40, 10), 2, "")
    assert header.split() == ["name", "size", "share", "rate", "none", "last"]
    assert [line.split() for line in lines[:-1]] == [
        ["flow_1", "70", "70%", "70Mb/s", "-", "x" * 70],
        ["flow_2", "6", "6%", "6Mb/s", "-", "x" * 70],
    ]
    assert lines[-1] == "and 1 more"
    assert len({len(line) for line in lines[:-1]}) == 1


@pytest.fixture(scope="module")
def shown() -> Frame:
    """A frame of the demo."""
    with Recording(str(DEMO)) as recording:
        return recording.frame(20)


def test_the_flows_of_the_demo_into_awk(shown):
    """Addresses of 39 characters, names of two words, a figure and its unit."""
    text = written("text", shown, plain=True, width=80)
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("protocol "))
    titles = lines[start].split()
    rows = [line.split() for line in lines[start + 1 : start + 9]]
    assert {len(row) for row in rows} == {len(titles)} == {16}
    at = {name: titles.index(name) for name in ("local", "remote", "process")}
    flows = json.loads(written("ndjson", shown))["flows"][:8]
    for row, flow in zip(rows, flows, strict=True):
        assert (row[at["local"]], row[at["remote"]]) == (flow["local"], flow["remote"])
        owner = flow["process"]
        assert row[at["process"]] == (f"{owner['name']}_{owner['pid']}" if owner else "-")


@pytest.mark.parametrize("column", flows_table.TABLE.sorts)
def test_every_output_has_the_order_of_the_screen(shown, column):
    """--sort means one thing: the same flows first on the screen, in text, ndjson and csv."""
    rows = np.sort(flows_table.rows(shown), order="id")  # as they tie
    sort = flows_table.TABLE.sorts[column]
    expected = rows[order(rows, "id", sort, False)]["id"].tolist()
    assert len(expected) > 8
    found = json.loads(written("ndjson", shown, sort=column))["flows"]
    assert [flow["id"] for flow in found] == expected
    assert [int(r["id"]) for r in rows_of(written("csv", shown, sort=column))] == expected
    text = written("text", shown, plain=True, sort=column).splitlines()
    start = next(i for i, line in enumerate(text) if line.startswith("protocol ")) + 1
    assert [line.split()[1:3] for line in text[start : start + len(found)]] == [
        [flow["local"], flow["remote"]] for flow in found
    ]


def test_the_real_throughput_pane_prints():
    text = written("text", traffic(1, rx_bytes=125_000))
    assert "1.00 Mb/s" in text
    assert "2.00 Mb/s" in text  # the peak

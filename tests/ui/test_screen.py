"""The application: every key, pause and history, the cursor, filters, failures, sizes."""

import asyncio
import gc
import os
import re
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import frames
import pytest
from app_driver import Driven, Heard, Refusing, running
from textual import events
from textual.command import CommandPalette
from textual.theme import BUILTIN_THEMES

from nettop.analysis.verdict import explain
from nettop.core.errors import ExitCode, NettopError
from nettop.core.frame import FRAMES, SECONDS, Frame, Health, ProbeStatus
from nettop.output.text import plain_lines, table_lines
from nettop.probes.base import shed_words
from nettop.probes.flows import table as flows_table
from nettop.probes.flows.constants import FLAG_OPENED_BY_LOCAL, STATE_OPEN, STATE_RESET, STATE_SYN, TUNNELS
from nettop.render.canvas import Canvas, Pane, text_of
from nettop.render.columns import place_columns
from nettop.settings import build, parse
from nettop.ui.app import NettopApp
from nettop.ui.commands import Commands, Look, Options
from nettop.ui.header import Header
from nettop.ui.keys import ACTIONS
from nettop.ui.panes import PaneWidget
from nettop.ui.screens import HelpPage, HelpScreen, SortScreen
from nettop.ui.table import TablePane
from nettop.ui.theme import NETTOP, Palette


def flows_of(driven: Driven) -> TablePane:
    return next(pane for pane in driven.main.body.panes if isinstance(pane, TablePane))


def remote_under_cursor(driven: Driven) -> str:
    return driven.line("▸ ").split("▸")[1].split()[2]


# --- every key -------------------------------------------------------------------------------------------------------


async def _help(d: Driven) -> None:
    await d.press("?")
    assert isinstance(d.app.screen, HelpScreen)
    text = d.text()
    assert "3 Flows" in text
    assert "Every connection" in text
    await d.press("j", "pagedown", "k", "G")
    assert "98 ns a run" in d.text()
    await d.press("escape")
    assert not isinstance(d.app.screen, HelpScreen)
    await d.press("f1")
    assert isinstance(d.app.screen, HelpScreen)
    await d.press("q")
    assert d.app.is_running


async def all_of_help(d: Driven) -> str:
    """The text of the whole help page, its lines joined, without the keys beside it."""
    page = d.app.screen.query_one(HelpPage)
    return " ".join(text_of(row).strip() for row in page.rows(80))


async def test_the_help_of_a_flows_page_is_about_that_page():
    async with running() as d:
        await d.press("enter", "?")
        assert "3 Flows › details" in d.text()
        text = await all_of_help(d)
        assert "Every connection that had packets" not in text
        for kind in explain.KINDS:
            assert f"{kind.words}: " in text
        for word in (
            *explain.VERDICTS,
            "also",
            "cwnd",
            "in flight",
            "again",
            "late",
            "buffered",
            "the kernel's",
            "not in focus",
        ):
            assert f"{word}: " in text, word
        await d.press("escape", "escape", "?")
        assert "Every connection that had packets" in await all_of_help(d)


@pytest.mark.parametrize("pane", ["1", "2", "3", "4", "5"])
async def test_the_words_at_the_edges_are_explained_in_every_panes_help(pane):
    shed = {"stages_one_in": 16, "rtt_one_in": 4, FRAMES: 2, SECONDS: 2}
    missed = {"lost_events": 12, "evicted_flows": 3, "untracked_packets": 7}
    health = Health(missed, 5_000_000, 0, 0, shed=shed)
    async with running(160, 50, frames=[frames.frame(0, health=health)]) as d:
        edges = d.rows()[0] + d.rows()[-1]
        await d.press(pane, "?")
        text = await all_of_help(d)
    assert "Neither is the machine's" in text
    for word in ("kernel", "user", "shed", "lost", "evicted", "untracked", "hooks"):
        assert f"{word} " in edges
        assert re.search(rf"\b{word}( 28/30)?: ", text), word
    for what in shed_words(shed):  # as the budget names it
        assert what.rstrip("0123456789") in text, what
        assert what.rstrip("0123456789") in edges


async def _pause(d: Driven) -> None:
    await d.press("space")
    before = d.rows()[1:]
    await d.give(frames.frame(5), frames.frame(6))
    assert d.rows()[1:] == before
    assert "paused 2 s ago" in d.rows()[0]
    assert len(d.app.state.history) == 7  # collection goes on
    await d.press("space")
    assert "paused" not in d.rows()[0]
    assert d.rows()[1:] != before


async def _history(d: Driven) -> None:
    newest = d.line("rx ")
    await d.press("[")
    assert "paused 1 s ago" in d.rows()[0]
    earlier = d.line("rx ")
    assert earlier != newest
    await d.press("[", "]")
    assert d.line("rx ") == earlier
    await d.press("]", "]", "]")
    assert d.line("rx ") == newest
    await d.press(*"[" * 20)
    assert "paused 4 s ago" in d.rows()[0]


async def _interval(d: Driven) -> None:
    await d.press("+", "+", "-", "-", "-")
    assert d.heard.calls == [("interval", s) for s in (2.0, 5.0, 2.0, 1.0, 0.5)]
    assert "0.5 s" in d.rows()[0]


async def _panes(d: Driven) -> None:
    await d.press("2")
    assert d.app.state.focused == "rtt"
    await d.press("2")
    assert d.app.state.zoomed
    await d.press("1")  # another one, and the zoom stays
    assert (d.app.state.focused, d.app.state.zoomed) == ("throughput", True)
    await d.press("escape", "9")
    assert (d.app.state.focused, d.app.state.zoomed) == ("throughput", False)


async def _tab(d: Driven) -> None:
    order = []
    for _ in range(5):
        await d.press("tab")
        order.append(d.app.state.focused)
    assert order == ["stages", "irq", "throughput", "rtt", "flows"]
    await d.press("shift+tab")
    assert d.app.state.focused == "rtt"


async def _zoom(d: Driven) -> None:
    await d.press("z")
    assert "Throughput" not in d.text()
    await d.press("z")
    assert "Throughput" in d.text()


async def _enter(d: Driven) -> None:
    await d.press("j", "enter")
    assert "Flows › details" in d.text()
    assert "198.51.100.4:40110" in d.text()
    assert d.heard.calls == [("focus", (1 << 40) + 1)]
    await d.press("j", "G", "k")  # nothing to move over
    await d.press("escape")
    assert "Throughput" in d.text()
    assert d.heard.calls[-1] == ("focus", 0)
    await d.press("4", "j", "enter")
    assert "Stages › rx ip" in d.text()
    await d.press("escape")
    assert d.main.body.current is not None
    assert d.main.body.current.cursor == (0, 1)


async def _moving(d: Driven) -> None:
    first = remote_under_cursor(d)
    await d.press("j", "down")
    assert remote_under_cursor(d) not in (first,)
    await d.press("k", "up")
    assert remote_under_cursor(d) == first
    await d.press("G")
    assert flows_of(d).at == 32
    await d.press("pageup")
    assert flows_of(d).at < 20
    await d.press("pagedown", "g")
    assert (flows_of(d).at, flows_of(d).pinned) == (0, None)
    await d.press("h", "l")  # a table has no left and right
    assert remote_under_cursor(d) == first
    await d.press("2", "z", "h", "h", "j")
    assert "2 s ago" in d.text()
    await d.press("l")
    assert "1 s ago" in d.text()


async def _sort(d: Driven) -> None:
    await d.press("s")
    assert isinstance(d.app.screen, SortScreen)
    await d.press("j", "j", "j", "enter")
    assert flows_of(d).column.key == "rtt"
    assert "RTT▾" in d.text()
    assert remote_under_cursor(d) == "198.51.100.4:40110"
    await d.press("s", "escape")
    assert flows_of(d).column.key == "rtt"


async def _reverse(d: Driven) -> None:
    await d.press("S")
    assert "by rate, reversed" in d.text()
    assert "0 b/s" in d.line("▸ ")


async def _neighbours(d: Driven) -> None:
    flows_of(d).sort_by(next(c for c in flows_table.COLUMNS if c.key == "rx"))
    await d.press(">")
    assert "tx/s▾" in d.text()
    await d.press("<", "<")
    assert "process▴" in d.text()


async def _copy(d: Driven) -> None:
    await d.press("c")
    assert d.app.clipboard.startswith("tcp 10.1.0.5:443 203.0.113.7:51122 nginx 812")
    assert "copied" in d.rows()[-1]


async def _filter(d: Driven) -> None:
    await d.press("/", *"nginx")
    assert "2 match nginx" in d.text()
    await d.press("enter")
    assert d.heard.calls == [("filter", "nginx")]
    assert "filter nginx" in d.rows()[0]
    await d.press("/", *["backspace"] * 5, *"tcp port 443", "enter")
    assert d.heard.calls[-1] == ("filter", "tcp port 443")
    assert "match" not in d.text()
    await d.press("escape")
    assert d.heard.calls[-1] == ("filter", "")


async def _units(d: Driven) -> None:
    await d.press("u")
    assert "b/s" not in "\n".join(d.rows()[1:])  # a link's speed is in bits
    await d.press("u")
    assert "Mb/s" in d.text()


async def _names(d: Driven) -> None:
    await d.press("n")
    assert "web.example:51122" in d.text()
    await d.press("n")
    assert "web.example" not in d.text()


async def _reset(d: Driven) -> None:
    await d.press("r")
    assert d.heard.calls == [("reset",)]
    assert "waiting for the first frame" in d.text()
    await d.give(frames.frame(9))
    assert "00:01" in d.rows()[0]


async def _snapshot(d: Driven) -> None:
    await d.press("w")
    assert d.heard.calls == [("snapshot", frames.frame(4).time_ns)]
    assert "wrote nettop.json" in d.rows()[-1]
    await d.press("S", "j", "enter", "w")
    table = flows_of(d)
    assert table.entered is not None
    assert d.heard.look == Look("rate", True, "", table.entered, "flows", zoomed=True)


async def _record(d: Driven) -> None:
    await d.press("R")
    assert "recording" in d.rows()[0]
    await d.press("R")
    assert "recording" not in d.rows()[0]
    assert d.heard.calls == [("record", True), ("record", False)]


def text_in(name: str) -> str:
    return Path(name).read_text(encoding="utf-8")


def text_to(name: str, text: str) -> None:
    Path(name).write_text(text, encoding="utf-8")


async def _screenshot(d: Driven) -> None:
    first, other = "nettop-20260709-101112.svg", "nettop-20260709-101113.svg"
    text_to(other, "a file of the user's")
    with pytest.MonkeyPatch.context() as patch:
        for time, said in (
            ("101112", f"wrote {first}"),
            ("101113", f"no screenshot: {other} is there already"),
        ):
            stamp = f"20260709-{time}"
            patch.setattr("time.strftime", lambda form, now=stamp: form.replace("%Y%m%d-%H%M%S", now))
            await d.press("ctrl+s")
            assert said in d.rows()[-1]
    assert sorted(os.listdir()) == [first, other]
    assert text_in(other) == "a file of the user's"
    assert stat.S_IMODE(os.stat(first).st_mode) == 0o600
    picture = text_in(first)
    assert "203.0.113.7" in picture
    assert "font-family: Fira Code, monospace" in picture
    # The name of the format is an address that nobody asks; nothing else of a server is in it.
    assert re.findall(r"[a-z]+://[^\s\"]+", picture) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"url\((?!#)|@import|@font-face", picture)


async def _palette(d: Driven) -> None:
    await d.press("ctrl+p")
    assert isinstance(d.app.screen, CommandPalette)
    commands = [command.title for command in d.app.get_system_commands(d.app.screen)]
    assert {"Pause", "Sort", "Theme", "Pane: Flows"} <= set(commands)


async def test_the_palette_does_what_a_key_does():
    async with running(heard=Refusing()) as d:
        for words, seen in (
            ("zoom", lambda: d.app.state.zoomed),
            ("reverse", lambda: flows_of(d).reversed),
            ("snapshot", lambda: "is the disk full?" in d.rows()[-1]),
            ("Pane: RTT", lambda: d.app.state.focused == "rtt"),
        ):
            await d.press("ctrl+p", *words)
            await d.pilot.pause(0.3)
            await d.press("enter")
            await d.pilot.pause(0.3)
            await d.settle()
            assert seen(), words


async def test_what_the_foot_shows_can_be_clicked():
    async with running() as d:
        for word in ("pause", "go on", "details", "sort"):
            await d.pilot.click(offset=(d.rows()[-1].index(word), 39))
            await d.settle()
            if word == "pause":
                assert "paused" in d.rows()[0]
            elif word == "go on":
                assert "paused" not in d.rows()[0]
        assert "details" in d.text()
        assert isinstance(d.app.screen, SortScreen)


async def _suspend(d: Driven) -> None:
    called: list[bool] = []
    d.app.action_suspend_process = lambda: called.append(True)  # type: ignore[method-assign]
    await d.press("ctrl+z")
    assert called == [True]


async def _replay(d: Driven) -> None:
    """Without a recording they are not there; test_timeline.py has them with one."""
    before = d.rows()[1:]
    await d.press("{", "}", "(", ")")
    assert d.rows()[1:] == before
    assert "slower" not in {action.id for action in d.app.actions}


async def _quit(d: Driven) -> None:
    await d.press("q")
    assert d.app.return_value == ExitCode.OK


CASES: dict[Callable[[Driven], Awaitable[None]], str] = {
    _help: "help",
    _pause: "pause resume",
    _history: "earlier later",
    _interval: "longer shorter",
    _panes: "pane",
    _tab: "next_pane previous_pane",
    _zoom: "zoom",
    _enter: "enter back",
    _moving: "down up left right top bottom page_down page_up",
    _sort: "sort",
    _reverse: "reverse",
    _neighbours: "sort_left sort_right",
    _copy: "copy",
    _filter: "filter",
    _units: "units",
    _names: "names",
    _reset: "reset",
    _snapshot: "snapshot",
    _record: "record",
    _screenshot: "screenshot",
    _palette: "palette",
    _suspend: "suspend",
    _replay: "slower faster start end last_mark next_mark",
    _quit: "quit",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__[1:])
async def test_key(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with running() as driven:
        await case(driven)


def test_no_key_is_left_out():
    assert sorted(" ".join(CASES.values()).split()) == sorted(action.id for action in ACTIONS)


async def test_ctrl_c_leaves_even_from_the_filter():
    async with running() as d:
        await d.press("/", "q", "ctrl+c")
        assert d.app.return_value == ExitCode.OK


async def test_keys_can_be_rebound_and_the_screen_says_so():
    async with running(options=Options(keys={"zoom": ("x",)})) as d:
        assert "x zoom" in d.rows()[-1]
        await d.press("z")
        assert not d.app.state.zoomed
        await d.press("x")
        assert d.app.state.zoomed


@pytest.mark.parametrize("key", ["q", "x"])
async def test_a_list_in_the_settings_file_gives_each_of_its_keys(tmp_path, key):
    """As docs/nettop.toml has it; the keys that the action had before do nothing."""
    path = tmp_path / "nettop.toml"
    path.write_text('[keys]\nquit = "q, x"\nzoom = "a,b"\n', encoding="utf-8")
    options = Options.of(build(parse(["-c", str(path)]), tmp_path))
    assert options.keys == {"quit": ("q", "x"), "zoom": ("a", "b")}
    async with running(options=options) as d:
        assert "a zoom" in d.rows()[-1]
        for other in ("a", "b"):
            before = d.app.state.zoomed
            await d.press("z")
            assert d.app.state.zoomed is before
            await d.press(other)
            assert d.app.state.zoomed is not before
        await d.press(key)
        assert d.app.return_value == ExitCode.OK


# --- filter ----------------------------------------------------------------------------------------------------------


async def test_an_error_is_shown_under_the_bar_and_nothing_changes():
    async with running() as d:
        await d.press("/", *"prot tcp", "enter")
        assert "syntax error in filter expression" in d.text()
        assert "java 2044" in d.text()
        assert d.main.filter_bar.is_open
        await d.press(*["backspace"] * 8, "enter")
        assert not d.main.filter_bar.is_open
        assert "filter" not in d.rows()[0]


class Applying(Heard):
    """Takes its time to apply a filter, and may fail to."""

    wanted: str | None = None

    @property
    def filter_wanted(self) -> str | None:
        return self.wanted


async def test_a_filter_is_said_to_hold_when_it_does():
    heard = Applying()
    async with running(heard=heard) as d:
        await d.press("/", *"tcp port 443", "enter")
        heard.wanted = "tcp port 443"
        await d.give(frames.frame(5))
        assert "applying tcp port 443" in d.rows()[0]
        await d.give(frames.frame(6, filter="tcp port 443"))
        assert "filter tcp port 443" in d.rows()[0]
        await d.press("[")  # to before it held
        assert "tcp port 443" not in d.rows()[0]


async def test_a_filter_that_could_not_be_applied_is_not_said_to_hold():
    heard = Applying()
    async with running(heard=heard) as d:
        await d.press("/", *"tcp port 443", "enter")
        heard.wanted = ""
        await d.give(frames.frame(5, notes=("the filter 'tcp port 443' is not applied",)))
        assert "applying" not in d.rows()[0]
        assert "is not applied" in d.rows()[0]


async def test_escape_in_the_bar_clears():
    async with running() as d:
        await d.press("/", *"nginx", "escape")
        assert "match" not in d.text()
        assert "java 2044" in d.text()


async def test_letters_in_the_bar_are_letters():
    async with running() as d:
        await d.press("/", *"zqs1")
        assert d.app.is_running
        assert not d.app.state.zoomed
        assert "nothing matches zqs1" in d.text()


async def test_a_long_filter_leaves_cost_and_losses_on_the_screen():
    text = "tcp port 443 and (net 10.0.0.0/8 or net 192.168.0.0/16) and not host 10.1.2.3"
    async with running(80, 24, frames=[frames.frame(0, filter=text)]) as d:
        assert "filter tcp port" in d.rows()[0]
        assert "0.4 %" in d.rows()[0]
        assert "58.0 MB" in d.rows()[0]
        assert "lost" in d.rows()[-1]


# --- the cursor and the order ----------------------------------------------------------------------------------------


async def test_the_cursor_stays_on_its_flow_while_rows_move():
    async with running() as d:
        await d.press("j", "j")
        there = remote_under_cursor(d)
        table = frames.flow_rows(5)
        index = next(i for i, row in enumerate(table) if flows_table._endpoint(row, "remote") == there)
        table["rx_bytes"][index] = 10**10
        moved = frames.frame(5)
        await d.give(
            replace(moved, sections={**moved.sections, "flows": replace(frames.flows(5), rows=table)})
        )
        assert remote_under_cursor(d) == there
        assert flows_of(d).at == 0


async def test_before_it_is_moved_the_cursor_stays_on_top():
    async with running() as d:
        table = frames.flow_rows(5)
        table["rx_bytes"][4] = 10**10
        moved = frames.frame(5)
        await d.give(
            replace(moved, sections={**moved.sections, "flows": replace(frames.flows(5), rows=table)})
        )
        assert remote_under_cursor(d) == "192.0.2.61:60022"


async def test_when_its_flow_ends_the_cursor_stays_where_it_was():
    async with running() as d:
        await d.press("j", "j", "j")
        rows = frames.flow_rows(5)
        gone = rows[rows["id"] != np_id(flows_of(d))]
        moved = frames.frame(5)
        await d.give(
            replace(moved, sections={**moved.sections, "flows": replace(frames.flows(5), rows=gone)})
        )
        assert flows_of(d).at == 3
        assert flows_of(d).under is not None


def silenced(step: int, identity: int) -> Frame:
    """A frame in which a flow has fallen silent and thirty others have not, so that it is the last of all."""
    table = frames.flow_rows(step)
    table["rx_bytes"] += 1000
    table["rx_bytes"][table["id"] == identity] = 0
    table["tx_bytes"][table["id"] == identity] = 0
    made = frames.frame(step)
    return replace(made, sections={**made.sections, "flows": replace(frames.flows(step), rows=table)})


async def test_another_order_shows_its_first_rows_and_the_cursors_row():
    """`j j`, then another column: the largest is in view, and so is the row that the cursor is on."""
    async with running(120, 24) as d:
        await d.press("G")
        mine, table = remote_under_cursor(d), flows_of(d)
        assert table.first > 0
        for _ in range(4):
            await d.press(">")
            assert table.first == 0
            assert table._shown[:3] == [0, 1, 2]
            assert table.at in table._shown
            assert remote_under_cursor(d) == mine
        below = table.at
        await d.press("k")  # and from there it goes on, with its neighbours in view
        assert table.at == below - 1
        assert table._shown == list(range(table._shown[0], table.at + 1))


async def test_a_flow_that_falls_silent_does_not_take_the_view_with_it():
    async with running(120, 24) as d:
        await d.press("j", "j")
        table, mine = flows_of(d), remote_under_cursor(d)
        identity, room = np_id(table), len(flows_of(d)._shown)
        await d.give(silenced(6, identity), silenced(7, identity))
        assert table.at == len(table._ids) - 1
        assert remote_under_cursor(d) == mine
        assert table._shown == [*range(room - 1), table.at]
        await d.press("g")
        assert (table.at, table.first, table.pinned) == (0, 0, None)


async def test_when_it_ends_out_of_view_the_cursor_is_on_top_again():
    async with running(120, 24) as d:
        await d.press("j", "j")
        identity = np_id(flows_of(d))
        await d.give(silenced(6, identity))
        rows = frames.flow_rows(7)
        made = frames.frame(7)
        gone = replace(frames.flows(7), rows=rows[rows["id"] != identity])
        await d.give(replace(made, sections={**made.sections, "flows": gone}))
        assert (flows_of(d).at, flows_of(d).pinned) == (0, None)


async def test_a_page_that_was_opened_from_the_top_leaves_the_cursor_there():
    async with running() as d:
        await d.press("enter", "escape")
        assert (flows_of(d).at, flows_of(d).pinned) == (0, None)
        await d.press("j", "enter", "escape")
        assert flows_of(d).pinned is not None


def np_id(table: TablePane) -> int:
    assert table.under is not None
    return table.under


async def test_no_flows_at_all():
    async with running(frames=[frames.frame(0, sections={"flows": frames.Flows()})]) as d:
        assert "none yet" in d.text()
        await d.press("j", "k", "G", "g", "enter", "c", "s", "escape", "S", ">", "pagedown")
        assert d.app.is_running


async def test_a_field_that_is_no_column_orders_the_rows_too():
    async with running(160, 50, options=Options(sort="rx_bytes_total")) as d:
        assert "Flows by rx_bytes_total" in "\n".join(d.rows())
        rows = flows_of(d)._rows[flows_of(d)._order]["rx_bytes_total"].tolist()
        assert rows == sorted(rows, reverse=True)
        assert len(set(rows)) > 2
        await d.press("3", ">")
        assert "Flows by" not in "\n".join(d.rows())


async def test_a_click_on_a_title_sorts_and_on_a_row_moves_the_cursor():
    async with running() as d:
        table = flows_of(d)
        titles = table.region.y + 1
        x = d.rows()[titles].index("tx/s")
        await d.pilot.click(offset=(x + 1, titles))
        await d.settle()
        assert table.column.key == "tx"
        await d.pilot.click(offset=(x, titles + 3))
        await d.settle()
        assert (table.at, table.entered) == (2, None)
        await d.pilot.click(offset=(x, titles + 3))
        await d.settle()
        assert table.entered is not None


async def test_a_click_focuses_a_pane_and_the_foot_can_be_clicked():
    async with running() as d:
        await d.pilot.click(offset=(90, 4))
        await d.settle()
        assert d.app.state.focused == "rtt"
        await d.pilot.click(offset=(d.rows()[-1].index("zoom"), 39))
        await d.settle()
        assert d.app.state.zoomed


def test_columns_leave_by_priority_and_the_sorted_one_stays():
    wide = [p.column.key for p in place_columns(flows_table.COLUMNS, 200)]
    assert wide == [c.key for c in flows_table.COLUMNS]
    usual = tuple(c for c in flows_table.COLUMNS if c.wanted is None)
    narrow = [p.column.key for p in place_columns(usual, 74)]
    assert narrow == ["protocol", "local", "remote", "process", "rx", "tx", "rtt"]
    assert "state" in [p.column.key for p in place_columns(usual, 74, keep="state")]
    narrow = [p.column.key for p in place_columns(flows_table.COLUMNS, 74)]
    assert narrow == ["protocol", "tunnel", "remote", "rx", "tx", "rtt"]


OPENED_HERE = FLAG_OPENED_BY_LOCAL
STATES_SHOWN = {
    # state, flags, received, sent, received again, sent again, round trips: what the row says
    "refused": (STATE_RESET, OPENED_HERE, 1, 1, 0, 0, 0),
    "reset": (STATE_RESET, OPENED_HERE, 40, 40, 0, 0, 30),
    "syn": (STATE_SYN, OPENED_HERE, 0, 1, 0, 0, 0),
    "syn×4": (STATE_SYN, OPENED_HERE, 0, 4, 0, 3, 0),
    "synack×3": (STATE_OPEN, OPENED_HERE, 3, 2, 2, 0, 1),
}


def with_states() -> Frame:
    """A flow in each of these states, by its remote port, and one that is as it should be."""
    table = frames.flow_rows(5, extra=0)
    for at, (state, flags, received, sent, again_in, again_out, trips) in enumerate(STATES_SHOWN.values()):
        row = table[at : at + 1]
        row["protocol"], row["remote_port"], row["state"], row["flags"] = 6, 7001 + at, state, flags
        row["rx_packets_total"], row["tx_packets_total"] = received, sent
        row["rx_bytes_total"], row["tx_bytes_total"] = 60 * received, 60 * sent
        row["rx_retransmits"], row["tx_retransmits"] = again_in, again_out
        row["rtt"]["samples_total"] = trips
    made = frames.frame(5)
    return replace(made, sections={**made.sections, "flows": replace(frames.flows(5), rows=table)})


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (180, 50)])
async def test_a_connection_that_failed_says_so_at_every_width(width, height):
    async with running(width, height, frames=[with_states()]) as d:
        for at, word in enumerate(STATES_SHOWN):
            text = d.line(f":{7001 + at} ")
            # Where there is no room for the count, the word alone.
            word = word if "state" in d.line("proto") else word.replace("synack×3", "synack")
            assert f" {word} " in text
            assert text.count(word.split("×")[0]) == 1
        assert " ms" in d.line(":6443 "), "the others keep their RTT"


async def test_what_failed_is_found_by_the_word_that_the_row_shows():
    async with running(80, 24, frames=[with_states()]) as d:
        await d.press("slash", *"refused", "enter")
        assert "1 match refused" in d.text()
        assert d.line(":7001 ")


def test_text_without_room_for_the_state_says_it_in_the_place_of_the_rtt():
    made = with_states()
    for width in (80, 120):
        lines = table_lines(flows_table.TABLE, made, Canvas(width, 40), 20, "")
        assert "state" not in lines[0]
        assert "refused" in next(text for text in lines if ":7001 " in text)
    plain = plain_lines(flows_table.TABLE, made, Canvas(80, 40), 20, "")
    assert "state" in plain[0]
    row = dict(zip(plain[0].split(), next(text for text in plain if ":7001 " in text).split(), strict=True))
    assert (row["state"], row["rtt"]) == ("refused", "-"), "there the state has a column"
    assert all(len(text.split()) == len(plain[0].split()) for text in plain)


async def test_the_tunnel_has_a_column_from_the_first_flow_in_one_on():
    table = frames.flow_rows(5)
    table["tunnel"][0], table["tunnel_id"][0] = TUNNELS.index("vxlan"), 4096
    table["tunnel"][1] = TUNNELS.index("pppoe")
    made = frames.frame(5)
    async with running() as d:
        assert "tunnel" not in d.line("proto")
        await d.give(replace(made, sections={**made.sections, "flows": replace(frames.flows(5), rows=table)}))
        assert "tunnel" in d.line("proto")
        assert " vxlan 4096 " in d.line("203.0.113.7")
        assert " pppoe " in d.line("198.51.100.4")
        await d.press("slash", *"vxlan", "enter")
        assert "1 match vxlan" in d.text()
        await d.press("enter")
        assert "in vxlan 4096" in d.text()
        await d.press("escape")
        await d.give(frames.frame(6))
        assert "tunnel" in d.line("proto"), "nothing jumps when the last of them goes"


@pytest.mark.parametrize("width", range(1, 201))
def test_columns_never_reach_beyond_the_width(width):
    placed = place_columns(flows_table.COLUMNS, width)
    assert all(column.x + column.width <= width for column in placed if column.width)
    assert all(a.x + a.width < b.x for a, b in pairwise(placed) if b.width)


# --- what is always there --------------------------------------------------------------------------------------------


async def test_losses_are_warm_and_counted():
    health = Health({"lost_events": 12, "evicted_flows": 3, "untracked_packets": 0}, None, 0, 0)
    async with running(frames=[frames.frame(0, health=health)]) as d:
        assert "12 lost · 3 evicted · hooks 21/21" in d.rows()[-1]
        assert "kernel - · user 0 % · -" in d.rows()[0]


async def test_a_pane_that_cannot_work_says_why_and_the_others_go_on():
    probes = dict(frames.frame(0).probes)
    probes["flows"] = ProbeStatus("failed", "the verifier refused flows_ingress\nhint: try --via clsact")
    async with running(frames=[frames.frame(0, probes=probes)]) as d:
        text = d.text()
        assert "Flows has stopped" in text
        assert "the verifier refused flows_ingress" in text
        assert "try --via clsact" in text
        assert "rx " in text


async def test_a_pane_that_cannot_draw_says_so_and_the_others_go_on():
    def broken(history, canvas):
        raise ValueError("no such thing")

    probe = frames.PROBES[0]
    bad = replace(probe, panes=(Pane("throughput", "Throughput", 1, "top", draw=broken, height=7),))
    async with running(probes=(bad, *frames.PROBES[1:])) as d:
        assert "it can't be drawn: ValueError('no such thing')" in d.text()
        assert "203.0.113.7" in d.text()


async def test_notes_and_a_filter_share_the_top_of_a_narrow_terminal():
    notes = ("eth0 is gone; waiting for it to come back",)
    async with running(80, 24, frames=[frames.frame(0, notes=notes, filter="tcp port 443 or udp")]) as d:
        assert "eth0 is gone" in d.rows()[0]
        assert "filter tcp" in d.rows()[0]
        assert "58.0 MB" in d.rows()[0]


async def test_notes_are_at_the_top():
    async with running(frames=[frames.frame(0, notes=("eth0 is gone; waiting for it to come back",))]) as d:
        assert "eth0 is gone; waiting for it to come back" in d.rows()[0]


async def test_before_the_first_frame_it_waits_calmly():
    async with running(frames=[]) as d:
        assert "waiting for the first frame" in d.text()
        for key in (
            "space",
            "[",
            "]",
            "z",
            "z",
            "enter",
            "w",
            "c",
            "S",
            "u",
            "tab",
            "s",
            "escape",
            "/",
            "escape",
        ):
            await d.press(key)
        assert d.app.is_running


async def test_hostile_strings_are_shown_as_data():
    host = "\x1b]0;evil\x07[red]x[/red]\u202e"
    async with running(frames=[frames.frame(0, host=host, interface="[b]e\x1b0")]) as d:
        assert "[red]x[/red]" in d.rows()[0]
        assert not any(ord(c) < 32 or c == "\u202e" for row in d.rows() for c in row)


async def test_a_new_probes_pane_appears_by_itself():
    pane = Pane("drops", "Drops", 6, "bottom", draw=lambda h, c: [], height=8)
    probe = replace(frames.PROBES[3], name="drops", panes=(pane,))
    async with running(probes=(*frames.PROBES, probe)) as d:
        assert "6 Drops" in d.text()
        await d.press("6")
        assert d.app.state.focused == "drops"


# --- sources ---------------------------------------------------------------------------------------------------------


async def test_the_end_of_a_replay_is_said():
    async with running() as d:
        d.feed.give(None)
        await d.settle()
        assert "end 00:05" in d.rows()[0]
        assert d.app.is_running


async def test_a_source_that_fails_ends_the_screen_with_its_error():
    async with running() as d:
        d.feed.give(NettopError("the loader is gone", "start nettop again"))
        await d.settle()
        assert d.app.return_value == ExitCode.FAILURE
        assert d.app.failure is not None


async def test_a_crash_in_the_source_is_two_lines_and_not_a_traceback():
    async with running(frames=[]) as d:
        d.feed.give(ValueError("kaput"))
        await d.settle()
        assert d.app.return_value == ExitCode.FAILURE
        assert d.app.failure is not None
        assert d.app.failure.message == "ValueError: kaput"


async def test_a_replay_that_goes_back_forgets_what_comes_later():
    async with running(frames=frames.frames(8)) as d:
        await d.give(frames.frame(3))
        assert [f.time_ns for f in d.app.state.history] == [frames.frame(n).time_ns for n in range(4)]


async def test_what_cannot_be_done_is_said():
    async with running(heard=Refusing()) as d:
        await d.press("w")
        assert "can't write nettop.json; is the disk full?" in d.rows()[-1]


async def test_history_is_bounded_by_time_and_trimmed():
    many = [frames.frame(n, extra=300, interval=10.0) for n in range(80)]
    async with running(frames=many) as d:
        history = d.app.state.history
        assert history[-1].time_ns - history[0].time_ns == 600 * frames.SECOND
        assert len(flows_table.rows(history[-2])) == 100
        assert len(flows_table.rows(history[-1])) == 309


async def test_frames_that_come_at_once_are_drawn_once():
    drawn: list[int] = []
    async with running(frames=[]) as d:
        original = d.main.redraw
        d.main.redraw = lambda: (drawn.append(1), original())[1]  # type: ignore[method-assign]
        await d.give(*frames.frames(40))
        assert len(d.app.state.history) == 40
        assert len(drawn) < 10


async def test_only_what_changed_is_painted():
    async with running() as d:
        painted: list[str] = []
        for widget in d.app.query(PaneWidget):
            original = widget.refresh
            widget.refresh = lambda *a, w=widget, o=original, **k: (painted.append(w.pane.name), o(*a, **k))[
                1
            ]  # type: ignore[method-assign]
        d.main.redraw()
        await d.settle()
        assert painted == []
        # The same flows again: their pane stays as it is.
        again = frames.frame(4)
        await d.give(replace(again, sections={**again.sections, "throughput": frames.throughput(5)}))
        assert "throughput" in painted
        assert "flows" not in painted


# --- terminals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (39, 40), (120, 9)])
async def test_a_terminal_that_is_too_small_is_told_so(size):
    async with running(*size) as d:
        assert d.app.is_running
        if size[0] >= 20 and size[1] > 4:
            assert "room" in d.text()
        await d.press("j", "z", "enter", "escape", "?", "escape")
        assert d.app.is_running


async def test_a_key_works_though_the_terminal_said_that_it_lost_the_focus():
    async with running() as d:
        d.app.post_message(events.AppBlur())
        await d.settle()
        await d.give(frames.frame(5))
        assert "▸" in d.text()
        await d.press("j")
        assert flows_of(d).at == 1


async def test_with_room_again_the_pane_has_its_keys_back():
    async with running(frames=frames.frames(8)) as d:
        await d.press("4")
        await d.pilot.resize_terminal(30, 8)
        await d.settle()
        await d.press("j", "z", "z")
        await d.pilot.resize_terminal(120, 40)
        await d.settle()
        assert d.main.body.current is d.main.focused
        await d.press("j", "enter")
        assert "Stages › " in d.text()


@pytest.mark.parametrize(
    "size", [(40, 10), (60, 16), (80, 24), (99, 30), (100, 20), (120, 40), (200, 60), (300, 12)]
)
async def test_every_line_has_the_width_of_the_terminal(size):
    async with running(*size) as d:
        rows = d.rows()
        assert len(rows) == size[1]
        assert all(len(row) == size[0] for row in rows)


async def test_resizing_redraws():
    async with running() as d:
        await d.pilot.resize_terminal(80, 24)
        await d.settle()
        assert len(d.rows()[0]) == 80
        assert "▎" not in d.text()
        await d.press("1")
        assert "▎rx" in d.text()
        await d.pilot.resize_terminal(120, 40)
        await d.settle()
        assert "1 Throughput" in d.text()


async def test_without_colour_nothing_is_coloured(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    async with running() as d:
        assert d.app.depth == "none"
        assert set("░▒▓█") & set(d.text())
        for strip in d.app.screen._compositor.render_strips():
            for segment in strip:
                style = segment.style
                assert style is None or all(
                    c is None or c.is_default for c in (style.color, style.bgcolor)
                ), segment


async def test_sixteen_colours_are_the_terminals_own(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLORTERM")
    async with running() as d:
        assert d.app.depth == "sixteen"
        colours = {
            c.type.name
            for strip in d.app.screen._compositor.render_strips()
            for segment in strip
            if segment.style
            for c in (segment.style.color, segment.style.bgcolor)
            if c is not None
        }
        assert colours <= {"DEFAULT", "STANDARD"}


async def test_with_256_colours_every_one_is_among_them(monkeypatch):
    monkeypatch.delenv("COLORTERM")
    async with running() as d:
        assert d.app.depth == "256"
        heats = [d.app.state.palette.style(f"heat:{n}").color for n in range(10)]
        assert [c.type.name for c in heats] == ["EIGHT_BIT"] * 10
        assert len({c.number for c in heats}) >= 8


def test_heats_grow_brighter_in_every_theme():
    for name, theme in {**BUILTIN_THEMES, "nettop": NETTOP}.items():
        if theme.ansi:
            continue
        palette = Palette(theme.to_color_system().generate(), "full", name)
        ground = palette.style("plain").bgcolor.get_truecolor()
        distances = [
            sum(
                abs(a - b)
                for a, b in zip(palette.style(f"heat:{n}").color.get_truecolor(), ground, strict=True)
            )
            for n in range(10)
        ]
        assert distances == sorted(distances), name
        assert len(set(distances)) == 10, name


@pytest.mark.parametrize("theme", ["nettop", "textual-light", "nord", "ansi-dark", "solarized-light"])
async def test_every_theme_can_be_worn(theme):
    async with running(options=Options(theme=theme)) as d:
        assert d.app.theme == theme
        assert "203.0.113.7" in d.text()


async def test_a_snapshot_can_be_looked_at_as_it_was():
    async with running(options=Options(sort="rtt", reverse=True, pane="rtt")) as d:
        assert d.main.look() == Look("rtt", True, "", 0, "rtt")
        assert "by RTT, reversed" in d.text()


async def test_escape_takes_the_cursor_off_a_map():
    async with running() as d:
        await d.press("2", "h", "h")
        assert "2 s ago" in d.text()
        await d.press("escape")
        assert " ago " not in d.text()


async def test_an_unknown_theme_is_said():
    async with running(options=Options(theme="plaid")) as d:
        assert "no theme is called plaid" in d.rows()[-1]


async def test_ascii_terminals_get_ascii(monkeypatch):
    monkeypatch.setattr("nettop.ui.app.draws_unicode", lambda charset: False)
    async with running() as d:
        assert d.text().isascii()


# --- idle ------------------------------------------------------------------------------------------------------------


async def test_back_from_the_shell_everything_is_painted():
    async with running() as d:
        painted: list[object] = []
        original = d.app._display
        d.app._display = lambda screen, update: (painted.append(update), original(screen, update))[1]  # type: ignore[method-assign]
        d.app.app_resume_signal.publish(d.app)
        await d.settle()
        assert any("LayoutUpdate" in type(update).__name__ for update in painted)


class Resolving(Heard):
    """Names come late."""

    late = ""

    @property
    def names_changed(self) -> int:
        return len(self.late)

    def name_of(self, address: bytes) -> str:
        return self.late


async def test_names_that_come_between_two_frames_are_drawn():
    heard = Resolving()
    async with running(heard=heard, options=Options(names=True)) as d:
        assert "203.0.113.7" in d.text()
        heard.late = "late.example"
        await asyncio.sleep(0.7)
        await d.settle()
        assert "late.example:51122" in d.text()
        assert "203.0.113.7" not in d.text()


async def test_nothing_ticks_when_nothing_happens():
    async with running() as d:
        painted: list[int] = []
        for widget in d.app.screen.query("*"):
            widget.refresh = lambda *a, **k: painted.append(1)  # type: ignore[method-assign]
        await asyncio.sleep(0.6)
        assert painted == []


async def test_while_paused_only_the_header_follows():
    async with running() as d:
        await d.press("space")
        header = d.app.query_one(Header)
        before = d.app.query_one(Header)._lines
        await d.give(frames.frame(5))
        assert header._lines != before


async def test_the_plain_commands_offer_nothing_that_needs_another_end():
    feed = frames.source(frames.frames(1))
    app = NettopApp(feed, frames.PROBES, None, Commands())
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        assert "record" not in str(app.screen._compositor)
        await pilot.press("w", "R", "+", "n", "r")
        assert app.is_running


async def test_pages_that_were_closed_take_no_memory():
    def strips() -> int:
        gc.collect()
        return sum(type(o).__name__ == "Strip" for o in gc.get_objects())

    async with running(120, 40, frames=frames.frames(3)) as d:
        counts = []
        for _ in range(2):
            for _ in range(4):
                await d.press("?", "escape", "s", "escape")
            counts.append(strips())
        assert counts[1] < counts[0] + 100

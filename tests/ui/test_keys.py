"""The table of actions, what is bound of it and what each key does, and the page that is made from the table."""

import os
import re
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import frames
import pytest
from app_driver import Driven, Heard, Refusing, running
from textual.command import CommandPalette

from nettop.analysis.verdict.evidence import KINDS
from nettop.analysis.verdict.rules import VERDICTS
from nettop.core.errors import ExitCode, NettopError
from nettop.core.frame import FRAMES, SECONDS, Health
from nettop.probes.base import shed_words
from nettop.probes.flows import table as flows_table
from nettop.record.recording import View
from nettop.render.canvas import text_of
from nettop.settings import Settings, build, parse
from nettop.ui import keys
from nettop.ui.body import Body
from nettop.ui.commands import Commands
from nettop.ui.filter_bar import FilterBar
from nettop.ui.keys import ACTIONS, keymap, rebound
from nettop.ui.panes import PaneWidget
from nettop.ui.screens import HelpPage, HelpScreen, SortScreen
from nettop.ui.table import TablePane

DOCS = Path(__file__).resolve().parents[2] / "docs" / "keys.md"


def test_the_page_is_what_the_table_says():
    assert DOCS.read_text(encoding="utf-8") == keys.page(), "run: python -m nettop.ui.keys > docs/keys.md"


def test_in_the_filters_field_the_keys_of_panes_are_the_same():
    there = {b.id for owner in (Body, PaneWidget, TablePane) for b in owner.__dict__["BINDINGS"]}
    assert {b.id for b in FilterBar.BINDINGS} == there - {"back"}


def test_no_key_means_two_things_and_the_help_has_all():
    rebound({})
    assert {a.group for a in ACTIONS} == set(keys.GROUPS)


def test_keys_can_be_changed():
    changed = {a.id: a for a in rebound({"pause": ("p",)})}
    assert changed["pause"].keys == changed["resume"].keys == ("p",)
    assert keymap(changed.values()) == {"pause": "p", "resume": "p"}


def test_the_keymap_has_what_is_not_as_usual():
    assert keymap(ACTIONS) == {}
    assert keymap(rebound({"pane": ("1", "2")})) == {f"pane-{n}": "unbound" for n in range(3, 10)}
    replay = keymap(rebound({"top": ("home",)}, {"replay"}))
    assert (replay["top"], replay["bottom"]) == ("unbound", "G")


@pytest.mark.parametrize("overrides", [{"paws": ("p",)}, {"pause": ("q",)}, {"pause": ("p", "q")}])
def test_a_wrong_key_is_refused_with_a_hint(overrides):
    with pytest.raises(NettopError) as caught:
        rebound(overrides)
    assert caught.value.code is ExitCode.USAGE
    assert caught.value.hint


async def test_keys_can_be_swapped():
    async with running(options=Settings(keys={"down": "k", "up": "j", "pause": "z", "zoom": "space"})) as d:
        table = d.main.body.current
        await d.press("k", "k", "j")
        assert table.at == 1
        await d.press("z")
        assert d.app.state.paused
        await d.press("space")
        assert d.app.state.zoomed


class Less(Heard):
    offers = frozenset({"names"})


async def test_what_is_not_offered_does_nothing():
    ids = {a.id for a in rebound({}, offers=())}
    assert "record" not in ids
    assert "filter" in ids
    async with running(heard=Less()) as d:
        await d.press("w", "R", "+", "r")
        assert d.heard.calls == []
        assert not d.main.check_action("snapshot", ())
        await d.press("n")
        assert d.app.state.names is not None
    async with running(heard=Commands()) as d:  # which offers nothing
        await d.press("w", "R", "+", "n", "r")
        assert d.app.is_running


async def test_while_a_filter_is_written_the_panes_keys_work_and_letters_stay_letters():
    async with running() as d:
        table = d.main.body.current
        await d.press("/", *"java", "down", "down")
        assert table.at == 2
        await d.press("pageup")
        assert table.at == 0
        await d.press("tab", "q")  # the next pane, and a letter
        assert d.app.state.focused == "stages"
        assert "nothing matches javaq" in d.text()
        await d.press("backspace", "enter")
        assert not d.main.filter_bar.is_open
        assert d.main.focused is d.main.body.current
        await d.press("z")
        assert "4 Stages" in d.text()
        assert "3 Flows" not in d.text()


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
        for kind in KINDS:
            assert f"{kind.words}: " in text
        more = (
            "also",
            "cwnd",
            "in flight",
            "retr",
            "reordered",
            "buffered",
            "kernel srtt and min",
            "not in focus",
        )
        for word in (*VERDICTS, *more):
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
    assert d.main.body.current.cursor == (0, 1)


async def _moving(d: Driven) -> None:
    first = d.under_cursor()
    await d.press("j", "down")
    assert d.under_cursor() not in (first,)
    await d.press("k", "up")
    assert d.under_cursor() == first
    await d.press("G")
    assert d.flows.at == 32
    await d.press("pageup")
    assert d.flows.at < 20
    await d.press("pagedown", "g")
    assert (d.flows.at, d.flows.pinned) == (0, None)
    await d.press("h", "l")  # a table has no left and right
    assert d.under_cursor() == first
    await d.press("2", "z", "h", "h", "j")
    assert "2 s ago" in d.text()
    await d.press("l")
    assert "1 s ago" in d.text()


async def _sort(d: Driven) -> None:
    await d.press("s")
    assert isinstance(d.app.screen, SortScreen)
    await d.press("j", "j", "j", "enter")
    assert d.flows.column.key == "rtt"
    assert "RTT▾" in d.text()
    assert d.under_cursor() == "198.51.100.4:40110"
    await d.press("s", "escape")
    assert d.flows.column.key == "rtt"


async def _reverse(d: Driven) -> None:
    await d.press("S")
    assert "by rate, reversed" in d.text()
    assert "0 b/s" in d.line("▸ ")


async def _neighbours(d: Driven) -> None:
    d.flows.sort_by(next(c for c in flows_table.COLUMNS if c.key == "rx"))
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
    table = d.flows
    assert table.entered is not None
    assert d.heard.look == View("rate", True, "", str(table.entered), "flows", zoomed=True)


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
        for time, said in (("12", f"wrote {first}"), ("13", f"no screenshot: {other} is there already")):
            stamp = f"20260709-1011{time}"
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
        for word, seen in (
            ("pause", lambda: "paused" in d.rows()[0]),
            ("resume", lambda: "paused" not in d.rows()[0]),
            ("zoom", lambda: d.app.state.zoomed),
            ("details", lambda: "› details" in d.text()),
            ("sort", lambda: isinstance(d.app.screen, SortScreen)),
        ):
            await d.pilot.click(offset=(d.rows()[-1].index(word), 39))
            await d.settle()
            assert seen(), word


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


@pytest.mark.parametrize("key", ["q", "x"])
async def test_a_list_in_the_settings_file_gives_each_of_its_keys(tmp_path, key):
    """As docs/nettop.toml has it; the keys that the action had before do nothing."""
    path = tmp_path / "nettop.toml"
    path.write_text('[keys]\nquit = "q, x"\nzoom = "a,b"\n', encoding="utf-8")
    async with running(options=build(parse(["-c", str(path)]), tmp_path)) as d:
        assert "a zoom" in d.rows()[-1]
        for other in ("a", "b"):
            before = d.app.state.zoomed
            await d.press("z")
            assert d.app.state.zoomed is before
            await d.press(other)
            assert d.app.state.zoomed is not before
        await d.press(key)
        assert d.app.return_value == ExitCode.OK

"""The table of actions, what is bound of it, and the page that is made from it."""

from pathlib import Path

import pytest
from app_driver import Heard, running

from nettop.core.errors import ExitCode, NettopError
from nettop.ui import keys
from nettop.ui.app import NettopApp
from nettop.ui.body import Body
from nettop.ui.commands import Options
from nettop.ui.filter_bar import FilterBar
from nettop.ui.keys import ACTIONS, keymap, rebound
from nettop.ui.main_screen import MainScreen
from nettop.ui.panes import PaneWidget
from nettop.ui.replay_screen import ReplayScreen
from nettop.ui.table import TablePane

DOCS = Path(__file__).resolve().parents[2] / "docs" / "keys.md"
OWNERS = (NettopApp, MainScreen, ReplayScreen, Body, PaneWidget, TablePane)


def test_the_page_is_what_the_table_says():
    assert DOCS.read_text(encoding="utf-8") == keys.page(), "run: python -m nettop.ui.keys > docs/keys.md"


def test_every_action_is_bound_where_it_is_done():
    bound: dict[str, list[type]] = {}
    for owner in OWNERS:
        for name in {(b.id or "").split("-")[0] for b in owner.__dict__["BINDINGS"]} - {""}:
            bound.setdefault(name, []).append(owner)
            done = NettopApp if name == "quit" else owner  # q is a key of the screen, not of pages over it
            assert hasattr(done, f"action_{name}"), (owner, name)
    assert set(bound) == {a.id for a in ACTIONS} - {"resume"}  # it shares a key with pause
    assert [name for name, owners in bound.items() if len(owners) > 1] == ["back"]
    assert {a.group for a in ACTIONS} == set(keys.GROUPS)


def test_in_the_filters_field_the_keys_of_panes_are_the_same():
    there = {b.id for owner in (Body, PaneWidget, TablePane) for b in owner.__dict__["BINDINGS"]}
    assert {b.id for b in FilterBar.BINDINGS} == there - {"back"}


def test_no_key_means_two_things():
    rebound({})


def test_the_contract_holds():
    wanted = {
        "q": "quit", "ctrl+c": "quit", "?": "help", "f1": "help", "/": "filter", "escape": "back",
        "space": "pause", "tab": "next_pane", "1": "pane", "9": "pane", "z": "zoom", "enter": "enter", "s": "sort",
        "S": "reverse", "<": "sort_left", ">": "sort_right", "j": "down", "k": "up", "g": "top", "G": "bottom",
        "+": "longer", "-": "shorter", "u": "units", "n": "names", "r": "reset", "w": "snapshot", "R": "record",
        "[": "earlier", "]": "later", "c": "copy", "ctrl+s": "screenshot", "ctrl+p": "palette", "ctrl+z": "suspend",
    }  # fmt: skip
    found = {key: action.id for action in ACTIONS if action.id != "resume" for key in action.keys}
    assert {key: found.get(key) for key in wanted} == wanted


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
    async with running(
        options=Options(keys={"down": ("k",), "up": ("j",), "pause": ("z",), "zoom": ("space",)})
    ) as d:
        table = d.main.body.current
        assert isinstance(table, TablePane)
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


async def test_while_a_filter_is_written_the_panes_keys_work_and_letters_stay_letters():
    async with running() as d:
        table = d.main.body.current
        assert isinstance(table, TablePane)
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

"""The table of actions, and the page that is made from it."""

from pathlib import Path

import pytest
from textual.binding import Binding

from nettop.errors import ExitCode, NettopError
from nettop.ui import keys
from nettop.ui.app import NettopApp, bindings
from nettop.ui.keys import ACTIONS, rebound

DOCS = Path(__file__).resolve().parents[2] / "docs" / "keys.md"


def test_the_page_is_what_the_table_says():
    assert DOCS.read_text(encoding="utf-8") == keys.page(), "run: python -m nettop.ui.keys > docs/keys.md"


def test_every_action_is_there_to_be_done():
    for action in ACTIONS:
        if action.id != "resume":
            assert hasattr(NettopApp, f"do_{action.id}"), action.id
        assert action.group in keys.GROUPS


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


@pytest.mark.parametrize("overrides", [{"paws": ("p",)}, {"pause": ("q",)}, {"pause": ("p", "q")}])
def test_a_wrong_key_is_refused_with_a_hint(overrides):
    with pytest.raises(NettopError) as caught:
        rebound(overrides)
    assert caught.value.code is ExitCode.USAGE
    assert caught.value.hint


def test_what_nobody_serves_is_not_bound():
    ids = {a.id for a in rebound({}, offers=())}
    assert "record" not in ids
    assert "filter" in ids
    actions = {b.action for b in bindings(rebound({}, offers=())) if isinstance(b, Binding)}
    assert "app.do('snapshot')" not in actions

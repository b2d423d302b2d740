"""The one table of what the user can do: bindings, footer, help page, palette and docs/keys.md come from it.

Which widget or screen an action belongs to is written there: in its BINDINGS, and as its ``action_ID`` method.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from textual.binding import Binding, BindingType

from nettop.core.errors import ExitCode, NettopError

# Where an action is worth a place at the foot of the screen: anywhere, on a pane with a table, on one with rows to
# enter, while paused, where there is a page or a zoom to leave.
Scope = Literal["always", "table", "rows", "paused", "inside"]


@dataclass(frozen=True)
class Action:
    """Something that the user can do.

    ``keys`` are Textual's names, or single characters.  ``footer`` ranks the action among those shown at the foot
    of the screen (0: not shown; the highest leave first where there is little room).  ``needs`` names what the rest of
    the program must offer (see commands.py): without it, the action is not shown and its keys do nothing.  The keys of
    an action that needs a replay are taken, in a replay, from those that have them otherwise.
    """

    id: str
    keys: tuple[str, ...]
    label: str
    help: str
    group: str
    scope: Scope = "always"
    footer: int = 0
    needs: str = ""


ACTIONS: tuple[Action, ...] = (
    Action("help", ("?", "f1"), "help", "keys, and what the pane in focus shows", "session", footer=1),
    Action(
        "pause", ("space",), "pause", "pause the screen, or a replay; collection goes on", "time", footer=3
    ),
    Action(
        "resume",
        ("space",),
        "resume",
        "resume; at a recording's end, play from its start",
        "time",
        "paused",
        footer=2,
    ),
    Action("earlier", ("[",), "earlier", "one frame back; pauses", "time"),
    Action("later", ("]",), "later", "one frame forward", "time", "paused", footer=3),
    Action("slower", ("{",), "slower", "play slower", "replay", needs="replay"),
    Action("faster", ("}",), "faster", "play faster", "replay", footer=4, needs="replay"),
    Action("start", ("home",), "start", "the recording's first frame", "replay", needs="replay"),
    Action("end", ("end",), "end", "the recording's last frame", "replay", needs="replay"),
    Action(
        "last_mark", ("(",), "mark before", "the mark before: another filter, a gap", "replay", needs="replay"
    ),
    Action("next_mark", (")",), "next mark", "the next mark", "replay", needs="replay"),
    Action("longer", ("+", "="), "longer", "a longer interval between frames", "time", needs="interval"),
    Action("shorter", ("-",), "shorter", "a shorter interval between frames", "time", needs="interval"),
    Action("pane", tuple("123456789"), "pane", "focus the pane of this number; again: zoom it", "panes"),
    Action("next_pane", ("tab",), "next pane", "focus the next pane", "panes"),
    Action("previous_pane", ("shift+tab",), "previous pane", "focus the pane before", "panes"),
    Action("zoom", ("z",), "zoom", "the pane in focus alone on the screen, and back", "panes", footer=4),
    Action("enter", ("enter",), "details", "the page of the row under the cursor", "panes", "rows", footer=5),
    Action(
        "back",
        ("escape",),
        "back",
        "leave a page, then the zoom, then the filter",
        "panes",
        "inside",
        footer=2,
    ),
    Action("down", ("j", "down"), "down", "cursor down", "moving"),
    Action("up", ("k", "up"), "up", "cursor up", "moving"),
    Action("left", ("h", "left"), "left", "cursor left: earlier, in a zoomed heat map", "moving"),
    Action("right", ("l", "right"), "right", "cursor right", "moving"),
    Action("top", ("g", "home"), "top", "first row; the cursor then stays on top", "moving"),
    Action("bottom", ("G", "end"), "bottom", "last row", "moving"),
    Action("page_down", ("pagedown", "ctrl+f"), "page down", "a page of rows down", "moving"),
    Action("page_up", ("pageup", "ctrl+b"), "page up", "a page of rows up", "moving"),
    Action("sort", ("s",), "sort", "choose the column to sort by", "table", "table", footer=6),
    Action("reverse", ("S",), "reverse", "reverse the order", "table", "table"),
    Action("sort_left", ("<",), "sort left", "sort by the column on the left", "table", "table"),
    Action("sort_right", (">",), "sort right", "sort by the column on the right", "table", "table"),
    Action("copy", ("c",), "copy", "copy the row to the clipboard (OSC 52)", "table", "table"),
    Action("filter", ("/",), "filter", "filter by expression or plain word; esc clears", "view", footer=2),
    Action("units", ("u",), "bits/bytes", "rates in bits or in bytes", "view"),
    Action("names", ("n",), "names", "host names instead of addresses, and back", "view", needs="names"),
    Action("reset", ("r",), "reset", "clear the history and reset totals", "view", needs="reset"),
    Action(
        "snapshot", ("w",), "snapshot", "write what is shown to a file", "files", footer=7, needs="snapshot"
    ),
    Action(
        "record",
        ("R",),
        "record",
        "record every frame to a file, and stop",
        "files",
        footer=9,
        needs="record",
    ),
    Action("screenshot", ("ctrl+s",), "screenshot", "save the screen as a picture (SVG)", "files"),
    Action("palette", ("ctrl+p",), "palette", "find any of these by name; themes", "session"),
    Action("suspend", ("ctrl+z",), "suspend", "back to the shell; `fg` returns", "session"),
    Action("quit", ("q", "ctrl+c"), "quit", "leave", "session", footer=8),
)

GROUPS = ("session", "panes", "table", "view", "time", "replay", "files", "moving")

_PANE = "pane"  # the action of nine keys, each with a number to go with it
_UNBOUND = "unbound"  # no terminal sends it; an empty entry of a keymap leaves an action its default keys


def bindings(*ids: str, action: str = "{}") -> list[BindingType]:
    """These actions for the BINDINGS of what has their methods; ``action`` is what Textual runs, with the id in it."""
    made: list[BindingType] = []
    for each in (a for a in ACTIONS if a.id in ids):
        if each.id == _PANE:
            made += [Binding(k, action.format(f"pane({k})"), id=f"pane-{k}", show=False) for k in each.keys]
        else:
            made.append(
                Binding(",".join(each.keys), action.format(each.id), each.label, show=False, id=each.id)
            )
    return made


def keymap(actions: Iterable[Action]) -> dict[str, str]:
    """Textual's keymap: the keys, by id, of those actions that have not their default keys."""
    default = {a.id: a.keys for a in ACTIONS}
    changed = {a.id: ",".join(a.keys) or _UNBOUND for a in actions if a.keys != default[a.id]}
    if changed.pop(_PANE, None):
        kept = next(a.keys for a in actions if a.id == _PANE)
        changed |= {f"pane-{k}": _UNBOUND for k in default[_PANE] if k not in kept}
    return changed


_SHOWN = {
    "escape": "esc",
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
    "pagedown": "pgdn",
    "pageup": "pgup",
    "f1": "F1",
}


def shown(key: str) -> str:
    """A key as the user reads it."""
    return _SHOWN.get(key, key)


def shown_keys(action: Action, quote: str = "") -> str:
    """All keys of an action, each between quotes; a run of digits as a range."""
    keys = [f"{quote}{shown(k)}{quote}" for k in action.keys]
    if len(keys) > 2 and all(k.isdigit() for k in action.keys):
        return f"{keys[0]}-{keys[-1]}"
    return " ".join(keys)


def rebound(
    overrides: Mapping[str, Sequence[str]], offers: Collection[str] | None = None
) -> tuple[Action, ...]:
    """The table with the user's own keys, without the actions that need what is not in ``offers`` (None: all is).

    Raises NettopError for an action that does not exist and for a key that would mean two things.
    """
    if "pause" in overrides:
        overrides = {**overrides, "resume": overrides["pause"]}
    known = sorted(action.id for action in ACTIONS)
    for name in set(overrides) - set(known):
        hint = f"the actions are {', '.join(known)}"
        raise NettopError(f"no action is called {name!r}", hint, ExitCode.USAGE)
    actions = tuple(replace(a, keys=tuple(overrides.get(a.id, a.keys))) for a in ACTIONS)
    owners: dict[str, Action] = {}
    for action in actions:
        for key in action.keys:
            owner = owners.setdefault(key, action)
            beside = {owner.id, action.id} == {"pause", "resume"} or (owner.needs == "replay") != (
                action.needs == "replay"
            )
            if owner is not action and not beside:
                raise NettopError(
                    f"the key {key!r} would mean both {owner.id} and {action.id}",
                    "give one of them another key under [keys]",
                    ExitCode.USAGE,
                )
    if offers is None:
        return actions
    actions = tuple(a for a in actions if not a.needs or a.needs in offers)
    taken = {key for a in actions if a.needs == "replay" for key in a.keys}
    return tuple(
        a if a.needs == "replay" else replace(a, keys=tuple(k for k in a.keys if k not in taken))
        for a in actions
    )


def page() -> str:
    """docs/keys.md."""
    rows = [
        "# Keys",
        "",
        "Written by `python -m nettop.ui.keys` from the table in `nettop/ui/keys.py`; a test keeps it true.",
        'Each action can have other keys: in the settings file, `[keys]` takes `action = "key,key"`.',
    ]
    for group in GROUPS:
        rows += ["", f"## {group.capitalize()}", "", "| keys | action | what it does |", "|---|---|---|"]
        rows += [f"| {shown_keys(a, '`')} | {a.id} | {a.help} |" for a in ACTIONS if a.group == group]
    rows += [
        "",
        "## Mouse",
        "",
        "A click focuses a pane, puts the cursor on a row, and sorts by the column whose title it hits; a second one",
        "on the same row opens its page. The wheel moves the cursor. Keys at the foot of the screen can be clicked. A",
        "click on a replay's time line goes to that moment, and the line follows the mouse while its button is held.",
        "",
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.stdout.write(page())

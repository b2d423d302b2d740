"""The line in which a filter is written."""

from __future__ import annotations

import re
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Container
from textual.message import Message
from textual.widgets import Input, Static

from nettop.core.units import clean
from nettop.ui.keys import ACTIONS, bindings

_OF_PANES = tuple(a.id for a in ACTIONS if a.group in ("panes", "moving", "table") and a.id != "back")
_MOST = 4096  # characters of a filter


class FilterField(Input, inherit_bindings=False):
    """Textual's, without its parents' keys: up, down and pages move the cursor of the pane meanwhile."""

    BINDINGS = Input.BINDINGS


class FilterBar(Container):
    """A prompt, the text, what is wrong with it.  Keys that write nothing go to the pane that had the focus."""

    BINDINGS = bindings(*_OF_PANES, action="app.perform('{}')")

    @dataclass
    class Tried(Message):
        """The filter is being written; ``word``: it is a plain word so far, or "" for none, None for an expression."""

        word: str | None

    @dataclass
    class Wanted(Message):
        """The filter was entered."""

        text: str

    def compose(self) -> ComposeResult:
        yield Static("filter /", id="prompt", markup=False)
        yield FilterField(placeholder="tcp port 443, or a word", compact=True, select_on_focus=False)
        yield Static("", id="problem", markup=False)

    @property
    def is_open(self) -> bool:
        return self.has_class("open")

    def open(self, text: str) -> None:
        field = self.query_one(Input)
        field.value = clean(text, _MOST)
        field.cursor_position = len(field.value)
        self.add_class("open")
        field.focus()

    def close(self) -> None:
        self.remove_class("open", "wrong")

    def complain(self, text: str) -> None:
        self.query_one("#problem", Static).update(clean(text))
        self.add_class("wrong")

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        if self.is_open:
            self.remove_class("wrong")
            word = event.value.strip()
            self.post_message(self.Tried(None if re.search(r"\s", word) else word))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.post_message(self.Wanted(event.value.strip()))

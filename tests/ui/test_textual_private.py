"""What nettop uses of Textual beyond its public API is there in the version that is installed; elsewhere nothing is."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from textual.app import App
from textual.screen import Screen

from nettop.ui import textual_private
from nettop.ui.textual_private import NEEDED

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "nettop" / "ui").glob("*.py"))


@pytest.mark.parametrize(
    ("of", "name", "what_for"), NEEDED, ids=lambda value: getattr(value, "__name__", value)
)
async def test_it_is_there(of, name, what_for, monkeypatch):
    app = App()
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the driver's, for ctrl+z
    made = of() if issubclass(of, Screen) else of(app)
    assert hasattr(made, name), (
        f"Textual {version('textual')} has no {of.__name__}.{name} any more ({what_for}): "
        "change nettop/ui/textual_private.py and the range in pyproject.toml"
    )


def test_the_drivers_take_the_app_and_what_it_says_of_itself():
    """Terminal and NoTerminal are made by Textual with the app as their first argument."""
    assert textual_private.Terminal.__mro__[1].__init__.__code__.co_varnames[:2] == ("self", "app")


def test_the_installed_version_is_in_the_declared_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = next(d for d in project["dependencies"] if d.startswith("textual"))
    low, high = re.fullmatch(r"textual>=([\d.]+),<(\d+)", wanted).groups()
    installed = [int(part) for part in version("textual").split(".")]
    assert [int(part) for part in low.split(".")] <= installed
    assert installed[0] < int(high)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_else_reaches_into_textual(path):
    """An underscore behind anything but ``self`` and ``cls`` is a private of another's; modules of Textual likewise."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(from|import) textual\S*\._", text)
    if path.name != "textual_private.py":
        assert "textual.drivers" not in text
        own = set(re.findall(r"(?:def |self\.|cls\.)(_[a-z]\w*)", "".join(p.read_text() for p in SOURCES)))
        reached = set(re.findall(r"(?<!self)(?<!cls)(?<!\))\.(_[a-z]\w*)", text))
        assert reached <= own
        assert not reached & {name for _, name, _ in NEEDED}

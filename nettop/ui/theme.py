"""Colours: what each role of a pane's text looks like, in every theme and on every terminal.

One hue carries heat, one stands for sending; warm colours are kept for what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from rich.color import Color as RichColor
from rich.style import Style
from textual.color import Color
from textual.theme import Theme

from nettop.render.canvas import Role

Depth = Literal["full", "256", "sixteen", "none"]

NETTOP = Theme(
    name="nettop",
    primary="#45b0bd",
    secondary="#8c9be6",
    accent="#63cdd4",
    warning="#e5a84f",
    error="#ee6c60",
    success="#84b97c",
    foreground="#c3ccd6",
    background="#0d1117",
    surface="#12171e",
    panel="#1a212b",
    dark=True,
    variables={
        "block-cursor-background": "#24303d",
        "block-cursor-foreground": "#eef3f8",
        "input-cursor-background": "#63cdd4",
        "input-selection-background": "#45b0bd 35%",
        "footer-key-foreground": "#63cdd4",
    },
)

SIXTEEN = Theme(
    name="nettop-16",
    ansi=True,
    primary="ansi_cyan",
    secondary="ansi_blue",
    accent="ansi_bright_cyan",
    warning="ansi_yellow",
    error="ansi_red",
    success="ansi_green",
    foreground="ansi_default",
    background="ansi_default",
    surface="ansi_default",
    panel="ansi_default",
    boost="ansi_default",
    dark=True,
    variables={
        "ansi-background": "ansi_black",
        "ansi-foreground": "ansi_white",
        "border-blurred": "ansi_black",
        "block-cursor-foreground": "ansi_black",
        "block-cursor-background": "ansi_white",
        "input-cursor-background": "ansi_white",
        "input-cursor-foreground": "ansi_black",
        "input-cursor-text-style": "none",
        "input-selection-background": "ansi_blue",
        "input-selection-foreground": "ansi_white",
    },
)

_ROW = "+row"


def depth_of(no_color: bool, system: str | None) -> Depth:
    """How many colours there are to work with: ``system`` is what Rich found of the terminal, None for no colours."""
    if no_color or system is None:
        return "none"
    return "full" if system == "truecolor" else "256" if system == "256" else "sixteen"


# Our own theme in the colours of 256-colour terminals: the nearest ones, taken singly, are of other hues.
_INDEXED = {
    "plain": 252,
    "title": 255,
    "label": 246,
    "value": 255,
    "dim": 240,
    "good": 108,
    "warn": 179,
    "bad": 203,
    "rx": 73,
    "tx": 104,
    "accent": 80,
    "border": 238,
    "border-focus": 66,
    "key": 80,
}
_INDEXED |= {f"heat:{n}": c for n, c in enumerate((23, 23, 30, 30, 37, 73, 80, 116, 152, 195))}


class Palette:
    """Styles by role.  ``shades`` says whether heats differ by colour at all."""

    def __init__(self, variables: Mapping[str, str], depth: Depth, theme: str = NETTOP.name) -> None:
        self.depth = depth
        self.shades = depth in ("full", "256")
        self._styles = _full(variables) if self.shades else _sixteen() if depth == "sixteen" else _none()
        if depth == "256" and theme == NETTOP.name:
            for role, number in _INDEXED.items():
                self._styles[role] += Style(color=RichColor.from_ansi(number))
            self._styles["row"] = Style(bgcolor=RichColor.from_ansi(236), bold=True)
        self._row = self._styles.pop("row")

    def style(self, role: Role) -> Style:
        """The style of a role; an unknown one is plain.  ``role+row`` is the same under the table's cursor."""
        found = self._styles.get(role)
        if found is None:
            found = self._styles[role] = self._make(role)
        return found

    def _make(self, role: Role) -> Style:
        if role.endswith(_ROW):
            return self.style(role.removesuffix(_ROW)) + self._row
        if role.endswith("-fill"):
            edge = self.style(role.removesuffix("-fill"))
            return edge if not self.shades else edge + Style(color=_between(edge, 0.5))
        if role.startswith("heat:"):
            shade, _, ground = role.removeprefix("heat:").partition(":")
            if ground and f"heat:{ground}" in self._styles and f"heat:{shade}" in self._styles:
                return self._styles[f"heat:{shade}"] + Style(bgcolor=self._styles[f"heat:{ground}"].color)
        return self._styles["plain"]


def _between(style: Style, share: float) -> RichColor:
    """A colour on the way from a style's ground to its text."""
    assert style.color is not None
    assert style.bgcolor is not None
    ground, text = (Color(*c.get_truecolor()) for c in (style.bgcolor, style.color))
    return RichColor.from_rgb(*ground.blend(text, share).rgb)


def _full(variables: Mapping[str, str]) -> dict[Role, Style]:
    """Shades made from a theme's own colours."""

    def colour(name: str) -> Color:
        return Color.parse(variables[name])

    ground, text, hue = colour("background"), colour("foreground"), colour("primary")
    far = Color(255, 255, 255) if ground.brightness < 0.5 else Color(0, 0, 0)  # stands out from the ground
    bright = text.blend(far, 0.55)
    accent = hue.blend(bright, 0.25)  # not the theme's own: that is warm in many, and warm means wrong here

    def on_ground(fore: Color, **more: bool) -> Style:
        return Style(
            color=RichColor.from_rgb(*fore.rgb),
            bgcolor=RichColor.from_rgb(*ground.rgb),
            **more,  # type: ignore[arg-type]
        )

    styles = {
        "plain": on_ground(text),
        "title": on_ground(bright, bold=True),
        "label": on_ground(ground.blend(text, 0.66)),
        "value": on_ground(bright),
        "dim": on_ground(ground.blend(text, 0.42)),
        "good": on_ground(colour("success")),
        "warn": on_ground(colour("warning")),
        "bad": on_ground(colour("error"), bold=True),
        "rx": on_ground(hue),
        "tx": on_ground(colour("secondary")),
        "accent": on_ground(accent),
        "cursor": on_ground(bright, reverse=True),
        "border": on_ground(ground.blend(text, 0.22)),
        "border-focus": on_ground(ground.blend(accent, 0.7)),
        "key": on_ground(accent, bold=True),
        "row": Style(bgcolor=RichColor.from_rgb(*ground.blend(hue, 0.2).rgb), bold=True),
    }
    # Even steps of brightness: from the ground through the hue to nearly the text's bright end.
    for heat in range(10):
        share = 0.16 + 0.84 * heat / 9
        shade = (
            ground.blend(hue, share / 0.7) if share < 0.7 else hue.blend(bright, (share - 0.7) / 0.3 * 0.8)
        )
        styles[f"heat:{heat}"] = on_ground(shade)
    return styles


def _sixteen() -> dict[Role, Style]:
    """The terminal's own colours: whatever the user made of them."""
    styles = {
        "plain": "",
        "title": "bold",
        "label": "",
        "value": "bold",
        "dim": "bright_black",
        "good": "green",
        "warn": "yellow",
        "bad": "bold red",
        "rx": "cyan",
        "tx": "blue",
        "accent": "bright_cyan",
        "cursor": "reverse",
        "border": "bright_black",
        "border-focus": "cyan",
        "key": "bold cyan",
        "row": "bold white on blue",
    }
    for heat in range(10):
        styles[f"heat:{heat}"] = "cyan" if heat < 6 else "bright_cyan" if heat < 8 else "bright_white"
    return {role: Style.parse(text) for role, text in styles.items()}


def _none() -> dict[Role, Style]:
    """No colour at all: weight and reversal."""
    styles = dict.fromkeys(_sixteen(), Style())
    styles |= {role: Style(bold=True) for role in ("title", "bad", "warn", "key", "border-focus")}
    styles |= {"dim": Style(dim=True), "cursor": Style(reverse=True), "row": Style(reverse=True)}
    return styles

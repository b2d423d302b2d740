"""An exported screen (SVG) as PNG, glyph by glyph in its cell: for looking at, and for the README.

The renderer ignores textLength, drops blanks at the ends and takes only one x, so every character gets an element of
its own.  Block glyphs become rectangles: fonts leave gaps between them that terminals do not.
"""

from __future__ import annotations

import html
import re
import subprocess
from pathlib import Path

_TEXT = re.compile(r'<text([^>]*?) x="([\d.]+)" y="([\d.]+)" textLength="([\d.]+)"([^>]*)>([^<]*)</text>')
_LINE, _BASELINE = 24.4, 18.5
# Part of the cell by glyph: x, y, width, height.
_BLOCKS = {chr(0x2580 + n): (0.0, 1 - n / 8, 1.0, n / 8) for n in range(1, 9)}
_BLOCKS |= {chr(0x2590 - n): (0.0, 0.0, n / 8, 1.0) for n in range(1, 8)}
_BLOCKS["\N{UPPER HALF BLOCK}"] = (0.0, 0.0, 1.0, 0.5)


def placed(svg: str) -> str:
    """The picture with an element for every character."""

    def each(match: re.Match[str]) -> str:
        before, x, y, length, after, text = match.groups()
        glyphs = html.unescape(text)
        top = float(y) - _BASELINE
        step = float(length) / max(len(glyphs), 1)
        parts = []
        for i, c in enumerate(glyphs):
            left = float(x) + i * step
            if c in _BLOCKS:
                across, down, width, height = _BLOCKS[c]
                parts.append(
                    f'<rect{before} x="{left + across * step:.2f}" y="{top + down * _LINE:.2f}" '
                    f'width="{width * step + 0.2:.2f}" height="{height * _LINE + 0.2:.2f}"{after}/>'
                )
            elif not c.isspace():
                parts.append(f'<text{before} x="{left:.1f}" y="{y}"{after}>{html.escape(c)}</text>')
        return "".join(parts)

    return _TEXT.sub(each, svg)


def png(svg: str, to: Path) -> None:
    """Write the picture."""
    subprocess.run(["rsvg-convert", "-o", str(to)], input=placed(svg).encode(), check=True)

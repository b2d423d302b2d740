"""The interface between the screen and the rest of the program: what the screen is given, and what it may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from nettop.core.frame import Frame
from nettop.record.recording import Replay, View
from nettop.ui.reverse_dns import ReverseDns


@dataclass(frozen=True)
class Filtered:
    """The result of setting a filter: ``word`` is what the screen itself is to look for in the rows it shows.

    With an ``error`` nothing has changed.  Both empty: it holds where packets are counted (or there is none);
    ``shown`` is then what the screen is to show of it, where that is not what was typed.
    """

    word: str = ""
    error: str = ""
    shown: str = ""


class Commands:
    """What the screen can ask for.  A subclass implements what it can and names it in ``offers``.

    The screen shows and binds only what is offered.  Every method may raise NettopError: the screen shows its message.
    """

    #: of interval, focus, filter, names, reset, snapshot, record, replay
    offers: frozenset[str] = frozenset()
    #: the recording that is played, where ``replay`` is offered: the screen seeks in it
    replay: Replay | None = None
    #: host names of addresses, where ``names`` is offered
    names: ReverseDns
    #: how it is to be looked at, from the start; kept by the screen: how it was when ``snapshot`` was called
    look: View = View()

    @property
    def recording(self) -> str:
        """Where frames are being recorded to; "" for nowhere."""
        return ""

    def set_interval(self, seconds: float) -> None:
        """Frames every so many seconds from now on."""

    def set_focus(self, flow: int) -> None:
        """Keep this flow's own histograms and samples; 0 for none."""

    async def set_filter(self, text: str) -> Filtered:
        """Count only what matches; an empty text clears.  Here: a plain word, for the screen to look for."""
        return Filtered(word=text)

    @property
    def filter_wanted(self) -> str | None:
        """The expression that packets are to match from now on; frames say which they did.  None: not known here."""
        return None

    async def reset(self) -> None:
        """Start totals again from zero."""

    async def snapshot(self, frames: list[Frame]) -> str:
        """Write the newest of the frames, with what is needed to show it again; where it was written."""
        return ""

    async def record(self, on: bool) -> str:
        """Start or stop recording; where to."""
        return ""

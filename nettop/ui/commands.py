"""The interface between the screen and the rest of the program: what the screen is given, and what it may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from nettop.core.frame import Frame
from nettop.record.sources import Replay
from nettop.settings import Settings


@dataclass(frozen=True)
class Options:
    """What the screen takes from the settings.  ``panes`` names the probes to show (empty: all).

    Times are in seconds.
    """

    interval: float = 1.0
    sort: str = ""
    panes: tuple[str, ...] = ()
    theme: str = ""
    charset: str = "auto"
    bits: bool = True
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    names: bool = False
    history: float = 600.0
    reverse: bool = False
    pane: str = ""  # the one in focus at the start
    focus: int = 0  # the row whose page is open at the start; 0 for none
    zoomed: bool = False
    word: str = ""  # what the rows are searched for at the start

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What the settings say of it.  A key may be several, with commas between them."""
        return cls(
            interval=settings.delay,
            sort=settings.sort,
            panes=settings.probes,
            theme=settings.theme,
            charset=settings.charset,
            bits=settings.bits,
            keys={
                action: tuple(name.strip() for name in names.split(","))
                for action, names in settings.keys.items()
            },
            names=settings.names,
            history=settings.history,
            word=settings.word,
        )


@dataclass(frozen=True)
class Filtered:
    """The result of setting a filter: ``word`` is what the screen itself is to look for in the rows it shows.

    With an ``error`` nothing has changed.  Both empty: it holds where packets are counted (or there is none);
    ``shown`` is then what the screen is to show of it, where that is not what was typed.
    """

    word: str = ""
    error: str = ""
    shown: str = ""


@dataclass(frozen=True)
class Look:
    """How the screen is being looked at: what a snapshot needs to show the same again.

    ``focus`` is the identity of the row whose page is open, 0 for none; ``pane`` the name of the one in focus.
    """

    sort: str = ""
    reverse: bool = False
    filter: str = ""
    focus: int = 0
    pane: str = ""
    zoomed: bool = False


class Commands:
    """What the screen can ask for.  A subclass implements what it can and names it in ``offers``.

    The screen shows and binds only what is offered.  Every method may raise NettopError: the screen shows its message.
    """

    #: of interval, focus, filter, names, reset, snapshot, record, replay
    offers: frozenset[str] = frozenset()
    #: the recording that is played, where ``replay`` is offered: the screen seeks in it
    replay: Replay | None = None
    #: kept by the screen: how it was being looked at when ``snapshot`` was called
    look: Look = Look()

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

    def name_of(self, address: bytes) -> str:
        """The host name of a 16-byte address; "" where it is not known, or not yet.  Never blocks."""
        return ""

    @property
    def names_changed(self) -> int:
        """Grows whenever ``name_of`` knows something new."""
        return 0

    async def reset(self) -> None:
        """Start totals again from zero."""

    async def snapshot(self, frames: list[Frame]) -> str:
        """Write the newest of the frames, with what is needed to show it again; where it was written."""
        return ""

    async def record(self, on: bool) -> str:
        """Start or stop recording; where to."""
        return ""

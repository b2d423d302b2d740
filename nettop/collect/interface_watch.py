"""Whether the watched interface is still there, under which name, with what was attached to it, and how it counts.

Owned by the control thread, as are the attachments that it is given.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import replace

from nettop.collect.attachments import Attachments
from nettop.core.errors import NettopError
from nettop.netdev.link import counting, trouble


class InterfaceWatch:
    """Notices an interface that goes, comes back, is renamed, or has lost what was attached; attaches again.

    ``name`` is what it is called now.  ``gone``: why nothing is attached to it.  ``trouble``: why no packet can pass.
    """

    def __init__(self, attachments: Attachments, name: str) -> None:
        self._attachments = attachments
        self.name = name
        self.gone = ""
        self.trouble = ""

    def look(self) -> str:
        """Look, and mend what has changed; what the user is to know of it.  Blocks."""
        index = self._attachments.config.ifindex
        if not self.gone:
            name = _name_of(index)
            if name and self._attachments.intact():
                return self._look_closer(name)
        try:
            found = socket.if_nametoindex(self.name)
        except OSError:
            if not self.gone:  # it may live on in another namespace, where it is not watched
                self._attachments.detach_interface()
            self.gone = f"{self.name} is gone; waiting for it to come back"
            return ""
        if found == index:
            note = f"somebody took nettop's programs off {self.name}; attached again at {_now()}"
        else:
            note = f"{self.name} came back at {_now()} and is watched again"
        self._attachments.detach_interface()
        try:
            self._attachments.attach_interface(self.name)
        except NettopError as error:
            self.gone = f"{self.name} is there but cannot be watched: {error.message}"
            return ""
        self.gone = ""
        return note

    def _look_closer(self, name: str) -> str:
        """Its name; its state; and how it counts, which changes with a bond's port and with its queue."""
        note = f"{self.name} is called {name} since {_now()}" if name != self.name else ""
        self.name = name
        config = self._attachments.config
        with suppress(OSError):
            why = trouble(name)
            self.trouble = f"{name} is {why}" if why else ""
            received, sent, above = counting(name)
            changed = replace(config, count_in=received, count_out=sent, cut_above=above)
            self._attachments.configure(changed)
        return note

    def left_behind(self, error: NettopError) -> NettopError:
        """What to say when the loader has ended: clsact's filters stay, but their programs do nothing any more."""
        if not any(hook.via == "clsact" for hook in self._attachments.hooks):
            return error
        self._attachments.detach_interface()
        return NettopError(
            f"{error.message}; its filters are still on {self.name}",
            "start nettop on it again: that takes them away; --log FILE keeps what the loader said",
            error.code,
        )


def _name_of(index: int) -> str:
    """The interface of this index; empty where there is none."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def _now() -> str:
    return time.strftime("%H:%M:%S")

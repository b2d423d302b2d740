"""Which packets the programs count: the user's expression, compiled here to classic BPF, applied by the loader.

Owned by the control thread, as are the attachments that it is given.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from nettop.bpf import filter as filters
from nettop.collect.attachments import Attachments
from nettop.core.errors import NettopError
from nettop.netdev.link import link_header

_log = logging.getLogger(__name__)


class FilterExchange:
    """``applied`` is the expression that the programs go by; ``note`` says why another one was not applied."""

    def __init__(self, attachments: Attachments) -> None:
        self._attachments = attachments
        self._link_type = filters.EN10MB
        self.applied = ""
        self.note = ""

    def compiled(self, text: str, interface: str) -> tuple[int, ...]:
        """A filter as the loader takes it.  FilterError where it is none."""
        if not text:
            return ()
        with suppress(OSError):  # gone for now, or never there: then the loader says so
            self._link_type = filters.link_type(link_header(interface))
        return filters.compile_expression(text, self._link_type).words

    def follow(self, wanted: str, interface: str) -> bool:
        """Apply what the user wants; whether programs were exchanged.  Blocks while they are compiled."""
        shown = wanted if len(wanted) <= 60 else wanted[:59] + "…"
        if wanted == self.applied or not self._exchange(wanted, interface, f"{shown!r} is not applied"):
            return False
        self.note = ""
        return True

    def interface_changed(self, interface: str) -> bool:
        """Fit the filter to another kind of device, whose frames are laid out differently; whether it had to be."""
        if not self.applied or filters.link_type(self._attachments.config.l2_len) == self._link_type:
            return False
        return self._exchange(self.applied, interface, f"{self.applied!r} does not fit {interface}")

    def _exchange(self, text: str, interface: str, complaint: str) -> bool:
        try:
            self._attachments.exchange_filter(self.compiled(text, interface))
        except NettopError as error:
            self.note = f"the filter {complaint}: {error.message}"
            _log.warning("%s (%s)", self.note, error.hint)
            return False
        self.applied = text
        return True

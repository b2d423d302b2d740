"""Which flow a verdict is about, and what a frame says of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from nettop.core import units
from nettop.core.frame import Frame
from nettop.probes.flows.focus import Focused
from nettop.probes.flows.section import Flows, Sample, row_of
from nettop.probes.stages.section import FocusedStages, Stages


def focused_of(frame: Frame, flow: int) -> Focused | None:
    """What is known of the flow because it was in focus."""
    section = Flows.find(frame)
    focused = section.focused if section is not None else None
    return focused if focused is not None and focused.flow == flow else None


def stages_of(frame: Frame, flow: int) -> FocusedStages | None:
    """The flow's own stages, where it was in focus."""
    section = Stages.find(frame)
    focused = section.focus if section is not None else None
    return focused if focused is not None and focused.flow == flow else None


def rows_of(frames: Iterable[Frame], flow: int) -> list[Any]:
    """The flow's rows of those frames that have it."""
    return [row for frame in frames if (row := row_of(frame, flow)) is not None]


def outward(frame: Frame, flow: int) -> list[Sample]:
    """Every outward RTT sample of an interval in which the flow was in focus."""
    focused = focused_of(frame, flow) is not None
    return [sample for sample in Flows.of(frame).samples if not sample.inward] if focused else []


def round_trips(frame: Frame, flow: int) -> list[int]:
    """Outward round trips of the interval in ns: every sample of the flow in focus, else the newest one."""
    row = row_of(frame, flow)
    if row is None or not row["rtt"]["samples"]:
        return []
    return [sample.rtt_ns for sample in outward(frame, flow)] or [int(row["rtt"]["last"])]


# --- which flow ---------------------------------------------------------------------------------------------------


def _end(word: str) -> tuple[bytes, int | None]:
    """``ADDRESS:PORT``, ``ADDRESS`` or ``:PORT``: address (empty: any) and port (None: any)."""
    host, colon, port = word.rpartition(":")
    if (word.startswith("[") and word.endswith("]")) or not colon or (":" in host and not host.endswith("]")):
        host, port = word, ""
    host = host.strip("[]")
    if port and not port.isdecimal():
        raise ValueError(f"{word!r} is no ADDRESS:PORT")
    if not host and not port:
        raise ValueError("neither an address nor a port")
    address = units.parse_endpoint(f"{host}:1")[0] if host else b""
    if host and not any(address) and host not in ("0.0.0.0", "::"):
        raise ValueError(f"{host!r} is no address")
    return address, int(port) if port else None


def _ends(text: str) -> tuple[tuple[bytes, int | None], ...]:
    """One end, or two of them with ``-`` between."""
    ends = tuple(_end(word.strip()) for word in text.split("-"))
    if len(ends) > 2:
        raise ValueError("more than two ends")
    return ends


def check_end(text: str) -> None:
    """ValueError where ``chosen`` could make nothing of it."""
    _ends(text)


def chosen(frame: Frame, text: str) -> int:
    """The id of the flow with the most traffic that has this end (or these two, local first; empty: of all flows).

    0 where there is none.
    """
    section = Flows.find(frame)
    if section is None:
        return 0
    rows = section.rows

    def has(which: str, end: tuple[bytes, int | None]) -> Any:
        address, port = end
        found = np.ones(len(rows), bool)
        if port is not None:
            found &= rows[f"{which}_port"] == port
        if address:
            found &= (rows[which] == np.frombuffer(address, np.uint8)).all(axis=1)
        return found

    ends = _ends(text) if text else ((b"", None),)
    local, remote = has("local", ends[0]), has("remote", ends[-1])
    rows = rows[local & remote if len(ends) == 2 else local | remote]
    if not len(rows):
        return 0
    return int(rows["id"][np.argmax(rows["rx_bytes_total"] + rows["tx_bytes_total"])])

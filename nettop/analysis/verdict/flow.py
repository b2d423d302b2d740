"""Which flow a verdict is about, and what a frame says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nettop.core import units
from nettop.core.frame import Frame
from nettop.probes.flows.section import row_of

if TYPE_CHECKING:
    from nettop.probes.flows.focus import Focused
    from nettop.probes.flows.section import Flows
    from nettop.probes.stages.section import FocusedStages


def focused_of(frame: Frame, flow: int) -> Focused | None:
    """What is known of the flow because it was in focus."""
    section: Flows | None = frame.sections.get("flows")  # type: ignore[assignment]
    focused = section.focused if section is not None else None
    return focused if focused is not None and focused.flow == flow else None


def stages_of(frame: Frame, flow: int) -> FocusedStages | None:
    """The flow's own stages, where it was in focus."""
    focused: FocusedStages | None = getattr(frame.sections.get("stages"), "focus", None)
    return focused if focused is not None and focused.flow == flow else None


def round_trips(frame: Frame, flow: int) -> list[int]:
    """Outward round trips of the interval in ns: every sample of the flow in focus, else the newest one."""
    row = row_of(frame, flow)
    if row is None or not row["rtt"]["samples"]:
        return []
    if focused_of(frame, flow) is not None:
        section: Flows = frame.sections["flows"]  # type: ignore[assignment]
        samples = [s.rtt_ns for s in section.samples if not s.inward]
        if samples:
            return samples
    return [int(row["rtt"]["last"])]


# --- which flow ---------------------------------------------------------------------------------------------------


def _ends(text: str) -> tuple[tuple[str, int | None], ...]:
    """``ADDRESS:PORT``, ``ADDRESS``, ``:PORT`` or two of them with ``-`` between: (address or "", port or None)."""
    ends: list[tuple[str, int | None]] = []
    for word in text.split("-"):
        word = word.strip()
        host, colon, port = word.rpartition(":")
        if word.startswith("[") and word.endswith("]"):
            host, colon, port = word, "", ""
        elif not colon or (":" in host and not host.endswith("]")):  # an address alone
            host, port = word, ""
        host = host.strip("[]")
        if port and not port.isdecimal():
            raise ValueError(f"{word!r} is no ADDRESS:PORT")
        raw, _ = units.parse_endpoint(f"[{host}]:1" if ":" in host else f"{host}:1") if host else (b"", 0)
        if host and not any(raw) and host not in ("0.0.0.0", "::"):
            raise ValueError(f"{host!r} is no address")
        if not host and not port:
            raise ValueError("neither an address nor a port")
        ends.append((units.address(raw) if host else "", int(port) if port else None))
    if len(ends) > 2:
        raise ValueError("more than two ends")
    return tuple(ends)


def check_end(text: str) -> None:
    """ValueError where ``chosen`` could make nothing of it."""
    _ends(text)


def chosen(frame: Frame, text: str) -> int:
    """The id of the flow with the most traffic that has this end (or these two, local first; empty: of all flows).

    0 where there is none.
    """
    section: Flows | None = frame.sections.get("flows")  # type: ignore[assignment]
    if section is None or not len(section.rows):
        return 0
    rows = section.rows

    def has(which: str, end: tuple[str, int | None]) -> Any:
        address, port = end
        found = np.ones(len(rows), bool)
        if port is not None:
            found &= rows[f"{which}_port"] == port
        if address:
            raw = np.frombuffer(
                units.parse_endpoint(f"[{address}]:1" if ":" in address else f"{address}:1")[0], "u1"
            )
            found &= (rows[which] == raw).all(axis=1)
        return found

    ends = _ends(text) if text else ()
    if not ends:
        found = np.ones(len(rows), bool)
    elif len(ends) == 2:
        found = has("local", ends[0]) & has("remote", ends[1])
    else:
        found = has("local", ends[0]) | has("remote", ends[0])
    where = np.flatnonzero(found)
    if not len(where):
        return 0
    traffic = rows["rx_bytes_total"][where] + rows["tx_bytes_total"][where]
    return int(rows["id"][where[int(np.argmax(traffic))]])

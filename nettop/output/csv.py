"""A row for each flow of each frame, as CSV after RFC 4180: a header, CRLF, what is not known is empty."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from nettop import units
from nettop.model import Frame
from nettop.output.base import Emit, Style, Writer
from nettop.schema import frame_to_json

_RTT = ("last_ns", "min_ns", "smoothed_ns", "jitter_ns", "samples", "samples_total", "method")
# Column -> path into a row of the frame's "flows".  The order is a contract: new ones go to the end.
FLOW_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "protocol": ("protocol",),
    "local": ("local",),
    "remote": ("remote",),
    "pid": ("process", "pid"),
    "process": ("process", "name"),
    **{
        name: (name,)
        for name in (
            "rx_bytes",
            "tx_bytes",
            "rx_packets",
            "tx_packets",
            "rx_bytes_total",
            "tx_bytes_total",
            "first_ns",
            "last_ns",
            "state",
            "retransmits_total",
        )
    },
    **{f"rtt_{name}": ("rtt", name) for name in _RTT},
    **{f"internal_rtt_{name}": ("internal_rtt", name) for name in _RTT},
    **{
        name: (name,)
        for name in (
            "vlan",
            "rx_packets_total",
            "tx_packets_total",
            "rx_retransmits_total",
            "tx_retransmits_total",
            "out_of_order_total",
        )
    },
    "kernel_rtt_ns": ("kernel_rtt", "smoothed_ns"),
    "id": ("id",),
    "vlan_inner": ("vlan_inner",),
    "opened_by": ("opened_by",),
    "rx_out_of_order_total": ("rx_out_of_order_total",),
    "tx_out_of_order_total": ("tx_out_of_order_total",),
    "kernel_rtt_cwnd": ("kernel_rtt", "cwnd"),
    "spinning": ("spinning",),
    "rtt_last_sample_ns": ("rtt", "last_sample_ns"),
    "internal_rtt_last_sample_ns": ("internal_rtt", "last_sample_ns"),
    "rtt_min_bare_ns": ("rtt", "min_bare_ns"),
    "internal_rtt_min_bare_ns": ("internal_rtt", "min_bare_ns"),
    **{
        f"{way}_{what}_total": (f"{way}_{what}_total",)
        for what in ("duplicates", "probes", "unneeded", "uncertain")
        for way in ("rx", "tx")
    },
    **{
        f"loss_{what}{total}": ("loss", f"{what}{total}")
        for what in ("duplicate", "probe", "unneeded", "uncertain")
        for total in ("", "_total")
    },
    "tunnel": ("tunnel",),
    "tunnel_id": ("tunnel_id",),
}
_FIRST = 36  # columns that there were when age_ns came
_NAMES = (*FLOW_COLUMNS,)
COLUMNS = (
    "time",
    "time_ns",
    "interval_ns",
    "host",
    "interface",
    *_NAMES[:_FIRST],
    "age_ns",
    *_NAMES[_FIRST:],
)


class CsvWriter(Writer):
    """CSV; a frame without flows has no rows."""

    def __init__(self, emit: Emit, style: Style) -> None:
        super().__init__(emit, style)
        self._begun = False

    def begin(self) -> None:
        """The titles are due."""
        self._begun = False

    def format(self, frame: Frame) -> str:
        """The frame's flows, after the header where this is the first frame."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\r\n")
        if not self._begun:
            writer.writerow(COLUMNS)
            self._begun = True
        data = frame_to_json(frame, self.style.top, self.style.sort)
        time = units.timestamp(frame.time_ns)
        interval = data.get("flows_interval_ns") or frame.interval_ns  # longer with --scan-interval
        start = [time, frame.time_ns, interval, _cell(frame.host), _cell(frame.interface)]
        age = data.get("flows_age_ns", 0)
        for flow in data.get("flows") or ():
            cells = [_cell(_at(flow, path)) for path in FLOW_COLUMNS.values()]
            writer.writerow([*start, *cells[:_FIRST], age, *cells[_FIRST:]])
        return text.getvalue()


def _at(row: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        row = row.get(name) if isinstance(row, Mapping) else None
    return row


def _cell(value: Any) -> Any:
    """A text as data for spreadsheets, too: what they would take for a formula begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    text = units.clean(value)
    return "'" + text if text.startswith(("=", "+", "-", "@")) else text

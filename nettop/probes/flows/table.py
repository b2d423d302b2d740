"""How flows are shown: a table of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nettop.core import units
from nettop.core.frame import Frame
from nettop.probes.flows import rtt_pane as flows_rtt_pane
from nettop.probes.flows.constants import (
    METHODS,
    PROTOCOLS,
    STATE_OPEN,
    STATE_RESET,
    STATE_SYN,
    STATES,
    TUNNELS,
    both_ways,
)
from nettop.probes.flows.handshake import no_connection, state_words
from nettop.probes.flows.rows import SORTS
from nettop.probes.flows.section import Flows
from nettop.render import draw
from nettop.render.canvas import (
    BAD,
    DIM,
    LABEL,
    PLAIN,
    VALUE,
    WARN,
    Canvas,
    Column,
    History,
    Pane,
    Role,
    Span,
    Table,
)

Cell = Callable[[Any, Canvas, Frame], Span]
_NARROW = {"icmpv6": "icmp6"}
_SHORT = {"timestamp": "ts", "sequence": "seq", "handshake": "syn"}  # others are short as they are
_STALE_NS = 10_000_000_000  # an RTT this old is a memory

HELP = """\
Every connection that had packets on the interface, both directions in one row. local is this host's end (for \
forwarded traffic the end behind the host), remote the other; process is who holds the socket.

rx/s, tx/s: bytes on the wire, received and sent, in the interval. rate is their sum.

RTT: the newest round trip to the remote end, measured from packets that pass: nothing is sent. min: the smallest \
ever; an RTT is coloured when it is far above it: that much is waiting in queues. jitter: its variation (RFC 6298). \
via: how it was measured: ts TCP timestamps, seq sequence and ACK, syn handshake, echo ICMP, dns query and response, \
spin QUIC's bit. In brackets, via kern: no packet gave a round trip, as where this host sends no data (a download); \
it is the kernel's own estimate, smoothed, and takes no part in the order.

state: syn is a SYN without an answer, syn×3 three of them; refused: a RST came back to it; synack×3: a SYN-ACK was \
sent three times, and the connection has not come about; unreplied: one direction alone was seen. In a narrow table \
what went wrong (syn, refused, reset) stands in the place of the RTT.

retr: segments sent again, both directions, since the flow was first seen. age: since then.

tunnel: what the row's packets came wrapped in, and its number; there when a flow is.

The cursor stays on its flow while rows move; g lets it go to the top again. enter opens the flow's own page: \
its whole delay in parts, and what is wrong with it.
"""


# --- values of rows ----------------------------------------------------------------------------------------------


def rows(frame: Frame) -> NDArray[np.void]:
    """The frame's flows, of dtype ROW."""
    return Flows.of(frame).rows


def since(frame: Frame, time_ns: Any) -> int:
    """How long ago something of a row was, in ns."""
    return max(Flows.of(frame).now_ns - int(time_ns), 0)


_address = lru_cache(maxsize=65536)(units.address)
_endpoint_text = lru_cache(maxsize=65536)(units.endpoint)
_name = lru_cache(maxsize=4096)(units.name)


def _endpoint(row: Any, end: str) -> str:
    return _endpoint_text(bytes(row[end]), int(row[f"{end}_port"]))


def ends(row: Any) -> tuple[str, str, str]:
    """Its protocol and both ends, local first."""
    return units.protocol(int(row["protocol"])), _endpoint(row, "local"), _endpoint(row, "remote")


def named(row: Any, end: str, canvas: Canvas) -> str:
    """The endpoint, with its host name where names are on and it has one."""
    name = canvas.names(bytes(row[end])) if canvas.names is not None else ""
    return f"{units.clean(name)}:{int(row[f'{end}_port'])}" if name else _endpoint(row, end)


def process(row: Any) -> str:
    """Name and pid of the process, empty where it is not known."""
    pid = int(row["process"]["pid"])
    return f"{_name(bytes(row['process']['name']))} {pid}" if pid else ""


# --- cells -------------------------------------------------------------------------------------------------------


def _protocol_cell(row: Any, canvas: Canvas, frame: Frame) -> Span:
    name = units.protocol(int(row["protocol"]))
    return Span(_NARROW.get(name, name), _alive(row, LABEL))


def tunnel_of(row: Any) -> str:
    """What its packets are wrapped in, with its number where it has one; empty: nothing."""
    kind = int(row["tunnel"])
    return f"{TUNNELS[kind]} {int(row['tunnel_id'])}" if row["tunnel_id"] else TUNNELS[kind]


def _shown(row: Any, canvas: Canvas, role: Role, text: str, shorter: str = "") -> Span:
    """A text, or the shorter one where it has no room: neither a number nor a port is cut; a dash where it is empty."""
    if shorter and draw.cells(text) > canvas.width:
        text = shorter
    return Span(draw.fit(text or units.NONE, canvas.width), _alive(row, role if text else DIM))


def _tunnel_cell(row: Any, canvas: Canvas, frame: Frame) -> Span:
    return _shown(row, canvas, LABEL, tunnel_of(row), str(row["tunnel_id"]))


def _local_cell(row: Any, canvas: Canvas, frame: Frame) -> Span:
    return _shown(row, canvas, PLAIN, named(row, "local", canvas), f":{int(row['local_port'])}")


def _remote_cell(row: Any, canvas: Canvas, frame: Frame) -> Span:
    return _shown(row, canvas, PLAIN, draw.endpoint(named(row, "remote", canvas), canvas.width))


def _process_cell(row: Any, canvas: Canvas, frame: Frame) -> Span:
    return _shown(row, canvas, PLAIN, process(row), _name(bytes(row["process"]["name"])))


def _alive(row: Any, role: Role) -> Role:
    """Nothing in the interval: the row steps back."""
    return role if row["rx_packets"] or row["tx_packets"] else DIM


def _rate_cell(*fields: str) -> Cell:
    def cell(row: Any, canvas: Canvas, frame: Frame) -> Span:
        value = sum(int(row[field]) for field in fields)
        # The interval of the rows is longer than the frame's with --scan-interval.
        seconds = (Flows.of(frame).interval_ns or max(frame.interval_ns, 1)) / 1e9
        text = draw.quantity(units.rate(value / seconds, canvas.bits), canvas.width, 4)
        return Span(text, VALUE if value else DIM)

    return cell


def _total_cell(row: Any, canvas: Canvas, frame: Frame) -> Span:
    total = units.size(sum(both_ways(row, "bytes_total")))
    return Span(draw.quantity(total, canvas.width, 2), _alive(row, PLAIN))


def _rtt_cell(field: str) -> Cell:
    def cell(row: Any, canvas: Canvas, frame: Frame) -> Span:
        rtt = row["rtt"]
        if not rtt["samples_total"]:
            text = _kernels(row) if field == "last" else ""
            shown = draw.fit(text or units.NONE, canvas.width, "right")
            return Span(shown, _alive(row, LABEL if text else DIM))
        text = draw.quantity(units.duration(int(rtt[field])), canvas.width, 2)
        return Span(text, _rtt_role(rtt, frame) if field == "last" else _alive(row, PLAIN))

    return cell


def _kernels(row: Any) -> str:
    """What the kernel has where no packet gave a round trip, as in a download: in brackets, in at most 7 cells."""
    if not row["kernel_rtt"]["smoothed"]:
        return ""
    figure, _, unit = units.duration(int(row["kernel_rtt"]["smoothed"])).partition(" ")
    return f"({float(figure):.{0 if float(figure) >= 9.95 else 1}f}{unit})"


def _rtt_role(rtt: Any, frame: Frame) -> Role:
    """Warm where the round trip is far above the flow's own smallest; dim where it is old."""
    least, newest = int(rtt["min"]), int(rtt["last"])
    if since(frame, rtt["time"]) > _STALE_NS:
        return DIM
    if newest > 4 * least + 5_000_000:
        return BAD
    return WARN if newest > 2 * least + 1_000_000 else VALUE


def _method_cell(row: Any, canvas: Canvas, frame: Frame) -> Span:
    name = METHODS[int(row["rtt"]["method"])] if row["rtt"]["samples_total"] else ""
    if not name and row["kernel_rtt"]["smoothed"]:
        return Span("kernel" if canvas.width > 5 else "kern", _alive(row, LABEL))
    return Span(_SHORT.get(name, name) or units.NONE, _alive(row, LABEL) if name else DIM)


def _retransmits_cell(row: Any, canvas: Canvas, frame: Frame) -> Span:
    if int(row["protocol"]) != PROTOCOLS["tcp"]:
        return Span(units.NONE, DIM)
    value = sum(both_ways(row, "retransmits"))
    return Span(units.count(value), PLAIN if value else DIM)


def _state_cell(row: Any, canvas: Canvas, frame: Frame) -> Span:
    text, count = state_words(row)
    role = WARN if count > 1 or text in ("refused", "reset") else LABEL
    if count > 1:
        counted = f"{text}{'×' if canvas.unicode else '*'}{count}"
        text = counted if draw.cells(counted) <= canvas.width else text
    return Span(text or units.NONE, role)


def _unusual(row: Any) -> bool:
    """Whether the state has to be said where its column has no room: no connection, or none any more."""
    state = row["state"]
    return state in (STATE_SYN, STATE_RESET) or (state == STATE_OPEN and no_connection(row) is not None)


def _age_cell(row: Any, canvas: Canvas, frame: Frame) -> Span:
    return Span(draw.quantity(units.age(since(frame, row["first"])), canvas.width, 1), LABEL)


def _column(
    key: str,
    title: str,
    width: int,
    cell: Cell,
    align: Literal["left", "right"] = "right",
    priority: int = 0,
    **more: Any,
) -> Column:
    by = SORTS[key]
    return Column(key, title, width, cell, by.sort, align, priority, by.ascending, **more)


COLUMNS = (
    _column("protocol", "proto", 5, _protocol_cell, "left", 0),
    _column(
        "tunnel", "tunnel", 12, _tunnel_cell, "left", priority=2, wanted=lambda t: bool(t["tunnel"].any())
    ),
    _column("local", "local", 7, _local_cell, "left", 2, stretch=True),
    _column("remote", "remote", 21, _remote_cell, "left", 0, stretch=True),
    _column("process", "process", 10, _process_cell, "left", 3, stretch=True),
    _column("rate", "rate", 9, _rate_cell("rx_bytes", "tx_bytes"), priority=9),
    _column("rx", "rx/s", 9, _rate_cell("rx_bytes"), priority=0),
    _column("tx", "tx/s", 9, _rate_cell("tx_bytes"), priority=0),
    _column("rtt", "RTT", 7, _rtt_cell("last"), priority=1),
    _column("min", "min", 7, _rtt_cell("min"), priority=4),
    _column("jitter", "jitter", 7, _rtt_cell("variance"), priority=6),
    _column("method", "via", 5, _method_cell, "left", priority=7),
    _column("retransmits", "retr", 5, _retransmits_cell, priority=5),
    _column("state", "state", 9, _state_cell, "left", priority=10, instead="rtt", needed=_unusual),
    _column("total", "total", 7, _total_cell, priority=11),
    _column("age", "age", 4, _age_cell, priority=8),
)


def matches(table: NDArray[np.void], word: str) -> NDArray[np.bool_]:
    """Rows in which a plain word occurs: in an address, as a port, in a process's name, as pid, protocol or state."""
    word = word.lower()
    raw = word.encode("utf-8", "replace")
    found = np.char.find(np.char.lower(table["process"]["name"]), raw) >= 0
    for end in ("local", "remote"):
        found |= _has_address(table[end], word)
    if (number := word.removeprefix(":")).isdigit():
        found |= (table["local_port"] == int(number)) | (table["remote_port"] == int(number))
    if word.isdigit():
        found |= table["process"]["pid"] == int(word)
    protocols = [n for n in np.unique(table["protocol"]) if units.protocol(int(n)) == word]
    found |= np.isin(table["protocol"], protocols)
    if word in TUNNELS[1:]:
        found |= table["tunnel"] == TUNNELS.index(word)
    if word in STATES[1:]:
        found |= table["state"] == STATES.index(word)
    if word == "refused":
        for index in np.flatnonzero(table["state"] == STATE_RESET):
            found[index] |= state_words(table[index])[0] == word
    return np.asarray(found)


def _has_address(addresses: NDArray[Any], word: str) -> NDArray[np.bool_]:
    if not any(c in word for c in ".:") and not word.isdigit():
        return np.zeros(len(addresses), bool)
    raw = np.ascontiguousarray(addresses).view("V16").reshape(-1)
    each, where = np.unique(raw, return_inverse=True)
    hits = np.array([word in _address(bytes(a)) for a in each], bool)
    return hits[where.reshape(-1)]


def copy(row: Any) -> str:
    """One flow as a line of text, whole."""
    words = [*ends(row)]
    if row["tunnel"]:
        words.append(f"in {tunnel_of(row)}")
    if process(row):
        words.append(process(row))
    words.append(f"rx {units.size(int(row['rx_bytes_total']))} tx {units.size(int(row['tx_bytes_total']))}")
    rtt = row["rtt"]
    if rtt["samples_total"]:
        words.append(f"rtt {units.duration(int(rtt['last']))} min {units.duration(int(rtt['min']))}")
    return " ".join(words)


def subtitle(history: History, canvas: Canvas) -> str:
    """How many flows there are, and how many had to go."""
    section = Flows.of(history[-1])
    evicted = section.evicted
    text = f"{units.count(section.total)} flows"
    if section.age_ns:  # --scan-interval: the table was not read for this frame
        text += f" · {units.age(section.age_ns)} ago"
    return f"{text} · {units.count(evicted)} evicted" if evicted else text


TABLE = Table(
    columns=COLUMNS, rows=rows, identity="id", default_sort="rate", copy=copy, matches=matches, fields=SORTS
)
PANES = (
    Pane(name="flows", title="Flows", number=3, band="middle", table=TABLE, subtitle=subtitle, help=HELP),
    flows_rtt_pane.PANE,
)

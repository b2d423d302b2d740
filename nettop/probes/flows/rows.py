"""A row of the frame's flow table: every column, declared once.

Times are CLOCK_MONOTONIC ns; counts are of the interval, ``_total`` since the start.  ``source`` is where a value
stands in the kernel's entry (struct flow); what has none is put in by the fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from nettop.core import units
from nettop.core.fields import Json
from nettop.core.table import (
    NUMBER,
    NUMBER_OR_NULL,
    TEXT,
    Array,
    Column,
    Kind,
    Rows,
    Sorting,
    column,
    group,
    inner,
    layout,
    made,
    number_where,
    one_of,
    sortings,
)
from nettop.probes.flows.constants import (
    FLAG_OPENED_BY_LOCAL,
    FLAG_OPENED_BY_REMOTE,
    LEG_EXTERNAL,
    LEG_INTERNAL,
    METHODS,
    PROTOCOLS,
    SPIN_PACKETS,
    STATES,
    TUNNEL_GRE,
    TUNNELS,
)

FLAG_STAMPED_BY_REMOTE = 1 << 15  # of a row alone: the remote end sends TCP timestamps
_OPENERS = {"local": FLAG_OPENED_BY_LOCAL, "remote": FLAG_OPENED_BY_REMOTE}


# --- how some columns are written ------------------------------------------------------------------------------------


def _is_tcp(rows: Array, _: str = "") -> Array:
    return np.asarray(rows["protocol"] == PROTOCOLS["tcp"])


def _sampled(rows: Array, name: str) -> Array:
    return np.asarray(rows[name]["samples_total"] > 0)


def _read_protocols(rows: Array, name: str, values: list[Json]) -> None:
    rows["protocol"] = [units.protocol_number(str(value or "")) for value in values]


def _ends(end: str) -> Kind:
    """Address and port of one end as one text."""

    def write(rows: Array, _: str) -> list[Json]:
        ports = rows[f"{end}_port"].tolist()
        return [units.endpoint(raw.tobytes(), port) for raw, port in zip(rows[end], ports, strict=True)]

    def read(rows: Array, _: str, values: list[Json]) -> None:
        for index, value in enumerate(values):
            address, port = units.parse_endpoint(str(value or ""))
            rows[end][index] = np.frombuffer(address, np.uint8)
            rows[f"{end}_port"][index] = port

    def order(rows: Array, _: str) -> Array:
        return np.ascontiguousarray(rows[end]).view("S16").reshape(-1)

    return Kind(write, read, lambda: {"type": "string"}, order)


def _read_openers(rows: Array, _: str, values: list[Json]) -> None:
    rows["flags"] |= np.array([_OPENERS.get(value, 0) for value in values], np.uint16)


def _both(what: str, rows: Array, _: str = "") -> Array:
    return np.asarray(rows[f"rx_{what}"] + rows[f"tx_{what}"])


def _sum(what: str, there: Callable[[Array], Array]) -> Kind:
    return Kind(
        lambda rows, _: [
            n if t else None for n, t in zip(_both(what, rows).tolist(), there(rows).tolist(), strict=True)
        ],
        None,
        OF_TCP.schema,
        partial(_both, what),
    )


def _by_chance(count: int, total: int) -> bool:
    """Whether ``count`` of ``total`` is what tossing a coin gives, within four standard deviations."""
    return (2 * count - total) ** 2 <= 16 * total


def spinning(row: Any) -> bool | None:
    """Whether a QUIC flow's spin bit spins (RFC 9000, 17.4); None where that is not known or it is no QUIC flow.

    A constant bit has no edges.  A random one has them in half of the packets, and half of its runs have one packet.
    """
    packets, edges, singles = int(row["spin_packets"]), int(row["spin_edges"]), int(row["spin_singles"])
    if row["protocol"] != PROTOCOLS["udp"]:
        return None
    if edges > 1 and not (_by_chance(edges, packets) and _by_chance(singles, edges)):
        return True
    return None if packets < SPIN_PACKETS else False


def _read_spinning(rows: Array, _: str, values: list[Json]) -> None:
    rows["spin_packets"] = [0 if value is None else SPIN_PACKETS for value in values]
    rows["spin_edges"] = [SPIN_PACKETS if value else 0 for value in values]


PROTOCOL = Kind(
    lambda rows, _: [units.protocol(number) for number in rows["protocol"].tolist()],
    _read_protocols,
    lambda: {"type": "string"},
    NUMBER.order,
)
OPENED_BY = Kind(
    lambda rows, _: [
        next((name for name, flag in _OPENERS.items() if flags & flag), None)
        for flags in rows["flags"].tolist()
    ],
    _read_openers,
    lambda: {"enum": ["local", "remote", None]},
)
SPINNING = Kind(
    lambda rows, _: [spinning(row) for row in rows], _read_spinning, lambda: {"type": ["boolean", "null"]}
)
OF_TCP = number_where(_is_tcp)
TUNNEL_ID = number_where(lambda rows, _: np.asarray(rows["tunnel"] >= TUNNEL_GRE))


# --- columns ---------------------------------------------------------------------------------------------------------


def _ways(
    what: str, dtype: str, text: str, unit: str, *, key: str = "", counter: str = "", **more: Any
) -> Iterator[Column]:
    for way, name in enumerate(("rx", "tx")):
        source = ("dir", counter, (slice(None), way)) if counter else ()
        yield column(f"{name}_{what}", dtype, text, unit, key=f"{name}_{key or what}", source=source, **more)


def _segments(what: str, text: str, counter: str = "", kind: Kind = OF_TCP) -> Iterator[Column]:
    """TCP segments since the start, one column a direction."""
    return _ways(what, "u4", text, "segments", key=f"{what}_total", counter=counter or what, kind=kind)


def _rtt(leg: int) -> tuple[Column, ...]:
    def of(what: str) -> tuple[Any, ...]:
        return "rtt", what, (slice(None), leg)

    return (
        column("last", "u8", "the last sample", "ns", key="last_ns", source=of("last")),
        column("min", "u8", "the smallest since the start", "ns", key="min_ns", source=of("min")),
        column(
            "min_bare", "u8",
            "the smallest that a kernel answered by itself (a bare ACK, a handshake, an echo): no application's time "
            "is in it; `null`: none",
            "ns", key="min_bare_ns", kind=NUMBER_OR_NULL, source=of("min_bare"),
        ),
        column("smoothed", "u8", "smoothed RTT as in RFC 6298", "ns", key="smoothed_ns", source=of("srtt")),
        column("variance", "u8", "mean deviation as in RFC 6298", "ns", key="jitter_ns", source=of("rttvar")),
        column(
            "time", "u8", "when the last sample was taken, CLOCK_MONOTONIC", "ns",
            key="last_sample_ns", source=of("time"),
        ),
        column("samples", "u4", "in the interval", "samples"),
        column("samples_total", "u4", "since the start", "samples", source=of("samples")),
        column(
            "method", "u4",
            "what was matched: `timestamp`, `sequence`, `handshake`, `echo`, `dns`, `spin`",
            kind=one_of(METHODS), privacy="harmless", source=of("method"),
        ),
    )  # fmt: skip


LOSS = tuple(
    column(name, "u4", text, "segments")
    for what, said in (
        ("duplicate", "copies that the network made"),
        ("probe", "keep-alives and window probes"),
        ("unneeded", "sent again for nothing, by DSACK"),
        ("uncertain", "late, and nothing tells why"),
    )
    for name, text in ((what, said), (f"{what}_total", "the same since the start"))
)
PROCESS = (
    column("pid", "u4", "of who reads or writes the socket, from the kernel's socket hooks", csv="pid"),
    column("name", "S16", "its name (comm)", kind=TEXT, privacy="name", csv="process"),
)
KERNEL_RTT = (
    column("smoothed", "u8", "srtt of tcp_sock", "ns", key="smoothed_ns", csv="kernel_rtt_ns"),
    column("cwnd", "u4", "congestion window", "segments"),
)
COLUMNS = (
    column("id", "u8", "number of the flow while it lasts, ever growing, below 2^53", source=("id",)),
    column("protocol", "u1", "`tcp`, `udp`, `icmp`, `icmpv6`, or `ip-N`", kind=PROTOCOL),
    inner("local", ("u1", (16,)), privacy="address"),
    inner("local_port", "u2"),
    inner("remote", ("u1", (16,)), privacy="address"),
    inner("remote_port", "u2"),
    made(
        "local",
        "`address:port`, `[address]:port` for IPv6; ICMP has its id for a port. The host's own end; of forwarded "
        "traffic the end before the interface",
        _ends("local"), privacy="endpoint",
    ),
    made("remote", "the end behind the interface", _ends("remote"), privacy="endpoint"),
    column("vlan", "u2", "VLAN tag (802.1Q), of QinQ the outer one; `null`: none", kind=NUMBER_OR_NULL),
    column("vlan_inner", "u2", "the inner tag of QinQ; `null`: none", kind=NUMBER_OR_NULL),
    column(
        "tunnel", "u1",
        "what the packets are wrapped in: `pppoe`, `mpls`, `ipip` (either version in either), `gre`, `vxlan`, "
        "`geneve`; addresses and all else are of the packets inside, bytes of the whole. `null`: nothing",
        kind=one_of(TUNNELS), privacy="harmless",
    ),
    column("tunnel_id", "u4", "its VNI, or GRE's key (0: none); `null`: other tunnels, or none", kind=TUNNEL_ID),
    group(
        "process", PROCESS, "who reads or writes the socket; `null`: not known, or not on this host",
        present=lambda rows, name: np.asarray(rows[name]["pid"] > 0),
    ),
    *_ways("bytes", "u8", "in `flows_interval_ns`, counted as in `throughput`", "bytes"),
    *_ways("packets", "u8", "in `flows_interval_ns`, counted as in `throughput`", "packets"),
    *_ways("bytes_total", "u8", "since the start", "bytes", counter="bytes"),
    *_ways("packets_total", "u8", "since the start", "packets", counter="packets"),
    column("first", "u8", "first packet, CLOCK_MONOTONIC", "ns", key="first_ns", source=("first",)),
    column("last", "u8", "last packet, CLOCK_MONOTONIC", "ns", key="last_ns", source=("last",)),
    column(
        "state", "u1",
        "`syn`, `open`, `closing`, `closed`, `reset`; `unreplied`: one end alone is seen, and it did not begin with a "
        "SYN or has gone on after it",
        kind=one_of(STATES), privacy="harmless",
    ),
    inner("flags", "u2"),
    made("opened_by", "`local` or `remote`: which end sent the SYN; `null` where that was not seen", OPENED_BY),
    made(
        "retransmits_total", "retransmitted TCP segments, both directions", _sum("retransmits", _is_tcp), "segments",
    ),
    *_segments("retransmits", "retransmitted TCP segments"),
    made(
        "out_of_order_total", "TCP segments that were overtaken on the way and sent once, both directions",
        _sum("out_of_order", lambda rows: np.ones(len(rows), bool)), "segments",
    ),
    *_segments("out_of_order", "TCP segments that were overtaken on the way and sent once", kind=NUMBER),
    *_segments("duplicates", "copies of TCP segments that the network made"),
    *_segments("probes", "keep-alives and window probes", "tcp_probes"),
    *_segments(
        "unneeded",
        "segments that their receiver says to have had already, by DSACK (RFC 2883): sent again for nothing, or copied "
        "by the network",
        "dsacks",
    ),
    *_segments(
        "uncertain", "late, and nothing tells whether overtaken, copied or sent again: in none of the other counts"
    ),
    group("loss", LOSS, "of both directions in the interval, and since the start", present=_is_tcp),
    inner("rx_window", "u2", source=("dir", "window", (slice(None), 0))),
    inner("tx_window", "u2", source=("dir", "window", (slice(None), 1))),
    inner("spin_packets", "u4"),
    inner("spin_edges", "u4"),
    inner("spin_singles", "u4"),
    group("rtt", _rtt(LEG_EXTERNAL), "RTT from the interface outward; `null` without a sample", present=_sampled),
    group(
        "internal_rtt", _rtt(LEG_INTERNAL), "RTT from the interface inward; `null` without a sample", present=_sampled,
    ),
    group(
        "kernel_rtt", KERNEL_RTT, "of the local TCP socket; `null` without one",
        present=lambda rows, name: np.asarray(rows[name]["smoothed"] > 0),
    ),
    made("spinning", "whether a QUIC connection turns its spin bit (RFC 9000, 17.4)", SPINNING),
)  # fmt: skip
ROW = layout(COLUMNS)
ROW_RTT = layout(_rtt(LEG_EXTERNAL))


def _sources(columns: tuple[Column, ...]) -> Iterator[str]:
    for c in columns:
        yield from _sources(c.columns)
        if c.source:
            yield ".".join(name for name in c.source if isinstance(name, str))


SOURCES = " ".join(dict.fromkeys(_sources(COLUMNS)))  # fields of struct flow that are read here


def fill(rows: Array, entries: Array, columns: tuple[Column, ...] = COLUMNS) -> None:
    """Put in what the kernel's entries (struct flow) have for each row."""
    for c in columns:
        if c.columns:
            fill(rows[c.name], entries, c.columns)
        elif c.source:
            *names, last = c.source if isinstance(c.source[-1], tuple) else (*c.source, ...)
            value = entries
            for name in names:
                value = value[name]
            rows[c.name] = value[last]


# --- order -------------------------------------------------------------------------------------------------------


def _by_end(end: str) -> Callable[[Array], Array]:
    def key(rows: Array) -> Array:
        raw = np.zeros((len(rows), 18), np.uint8)
        raw[:, :16] = rows[end]
        raw[:, 16:] = rows[f"{end}_port"].astype(">u2").view(np.uint8).reshape(-1, 2)
        return np.asarray(raw.view("V18").reshape(-1))

    return key


def _known(field: str) -> Callable[[Array], Array]:
    """Delays as floats, NaN where there is no sample."""
    return lambda rows: np.where(_sampled(rows, "rtt"), rows["rtt"][field].astype(np.float64), np.nan)


# What the columns of the screen's table sort by; any field of a row does, too, by its name (see SORTS).
_SORTS = {
    "protocol": Sorting(lambda rows: np.asarray(rows["protocol"]), ascending=True),
    "tunnel": Sorting(lambda rows: rows["tunnel"].astype(np.uint64) << np.uint64(32) | rows["tunnel_id"]),
    "local": Sorting(_by_end("local"), ascending=True),
    "remote": Sorting(_by_end("remote"), ascending=True),
    "process": Sorting(lambda rows: np.asarray(rows["process"]["name"]), ascending=True),
    "rate": Sorting(partial(_both, "bytes")),
    "rx": Sorting(lambda rows: np.asarray(rows["rx_bytes"])),
    "tx": Sorting(lambda rows: np.asarray(rows["tx_bytes"])),
    "rtt": Sorting(_known("last")),
    "min": Sorting(_known("min")),
    "jitter": Sorting(_known("variance")),
    "method": Sorting(lambda rows: np.asarray(rows["rtt"]["method"]), ascending=True),
    "retransmits": Sorting(partial(_both, "retransmits")),
    "state": Sorting(lambda rows: np.asarray(rows["state"]), ascending=True),
    "total": Sorting(partial(_both, "bytes_total")),
    "age": Sorting(lambda rows: np.uint64(2**63) - rows["first"]),
}
SORTS: Mapping[str, Sorting] = {**sortings(COLUMNS), **_SORTS}
# The order is a contract: these came first, whatever is declared later goes to the end.
_CSV = (
    "time time_ns interval_ns host interface protocol local remote pid process rx_bytes tx_bytes "
    "rx_packets tx_packets rx_bytes_total tx_bytes_total first_ns last_ns state retransmits_total "
    "rtt_last_ns rtt_min_ns rtt_smoothed_ns rtt_jitter_ns rtt_samples rtt_samples_total rtt_method "
    "internal_rtt_last_ns internal_rtt_min_ns internal_rtt_smoothed_ns internal_rtt_jitter_ns "
    "internal_rtt_samples internal_rtt_samples_total internal_rtt_method vlan rx_packets_total "
    "tx_packets_total rx_retransmits_total tx_retransmits_total out_of_order_total kernel_rtt_ns age_ns "
    "id vlan_inner opened_by rx_out_of_order_total tx_out_of_order_total kernel_rtt_cwnd spinning "
    "rtt_last_sample_ns internal_rtt_last_sample_ns rtt_min_bare_ns internal_rtt_min_bare_ns "
    "rx_duplicates_total tx_duplicates_total rx_probes_total tx_probes_total rx_unneeded_total "
    "tx_unneeded_total rx_uncertain_total tx_uncertain_total loss_duplicate loss_duplicate_total "
    "loss_probe loss_probe_total loss_unneeded loss_unneeded_total loss_uncertain loss_uncertain_total "
    "tunnel tunnel_id "
).split()
TABLE = Rows(COLUMNS, "id", SORTS, "rate", csv=tuple(_CSV))

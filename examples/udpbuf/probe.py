"""How full the receive buffers of UDP sockets are, by process."""

from nettop.probes.simple import count, number, share, table_probe, text

PROBE = table_probe(
    "udpbuf",
    "how full the receive buffers of UDP sockets are, by process, and what found no room",
    map="sockets",
    key=[number("cookie", "u8", "the socket, as `ss -e` has it")],
    value=[
        share("fill", "used of size", lambda rows: rows["used"] / rows["size"]),
        number("used", "u4", "memory of the datagrams that wait (`ss -m`: r)", "bytes"),
        number("size", "u4", "the most that may wait (`ss -m`: rb)", "bytes"),
        number("peak", "u4", "the most that has waited", "bytes"),
        number("pid", "u4", "the process that read last; 0: none has"),
        count("drops", "u8", "datagrams that found no room (`ss -m`: d)", "packets"),
        number("port", "u2", "the local port"),
        text("process", 16, "name of that process", privacy="name"),
    ],
    sort="fill",
    title="UDP buffers",
)

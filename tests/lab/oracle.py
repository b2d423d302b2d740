"""Independent measurements of the same traffic: the kernel's counters and its own tools."""

import functools
import json
import re
import signal
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lab import bpf
from lab.errors import LabError
from lab.namespace import Endpoint, Namespace
from lab.shell import Process, eventually


def sysfs(end: Endpoint) -> dict[str, int]:
    """/sys/class/net/IFACE/statistics as seen inside the namespace: `rx_bytes`, `tx_packets`, ..."""
    directory = f"/sys/class/net/{end.name}/statistics"
    lines = end.ns.run("grep", "-r", "", directory).stdout.splitlines()
    return {path.rpartition("/")[2]: int(value) for path, value in (line.split(":") for line in lines)}


def difference(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """Per counter, `after` minus `before`."""
    return {key: value - before.get(key, 0) for key, value in after.items()}


@dataclass(frozen=True)
class Socket:
    """One TCP socket as `ss -tino` shows it.

    Times in ns; None where ss says nothing. `info` has the words `key:value`, `options` the others (`ts`).
    """

    state: str
    local: str
    remote: str
    rtt_ns: int | None
    rttvar_ns: int | None
    minrtt_ns: int | None
    rcv_rtt_ns: int | None
    bytes_sent: int
    bytes_acked: int
    bytes_received: int
    segs_out: int
    segs_in: int
    retransmits: int
    info: dict[str, str]
    options: frozenset[str]


def sockets(ns: Namespace, *expression: str) -> list[Socket]:
    """TCP sockets inside, by an `ss` filter such as `"dport", "=", ":5201"`."""
    lines = ns.run("ss", "-tinoHO", *expression).stdout.splitlines()
    return [_socket(line) for line in lines if line.strip()]


def _socket(line: str) -> Socket:
    words = line.split()
    info = dict(word.split(":", 1) for word in words[5:] if ":" in word)
    rtt, _, variance = info.get("rtt", "").partition("/")
    return Socket(
        state=words[0],
        local=words[3],
        remote=words[4],
        rtt_ns=_milliseconds(rtt),
        rttvar_ns=_milliseconds(variance),
        minrtt_ns=_milliseconds(info.get("minrtt", "")),
        rcv_rtt_ns=_milliseconds(info.get("rcv_rtt", "")),
        bytes_sent=int(info.get("bytes_sent", 0)),
        bytes_acked=int(info.get("bytes_acked", 0)),
        bytes_received=int(info.get("bytes_received", 0)),
        segs_out=int(info.get("segs_out", 0)),
        segs_in=int(info.get("segs_in", 0)),
        # In flight now, and ever since the start.
        retransmits=int(info.get("retrans", "0/0").rpartition("/")[2]),
        info=info,
        options=frozenset(word for word in words[5:] if ":" not in word),
    )


def _milliseconds(text: str) -> int | None:
    return round(float(text) * 1e6) if text else None


@contextmanager
def tcpdump(end: Endpoint, *words: str) -> Iterator[Process]:
    """Run tcpdump at an endpoint, in a `with`, which begins when it listens."""
    process = end.ns.spawn("tcpdump", "-i", end.name, "-nn", "--immediate-mode", *words)
    try:
        if not eventually(lambda: "listening on" in process.stderr):
            raise LabError(f"tcpdump: {process.stderr}")
        yield process
    finally:
        process.stop(signal.SIGINT)


@contextmanager
def capture(end: Endpoint, *expression: str) -> Iterator[list[str]]:
    """tcpdump's lines (link header, checksums, no names), which come live."""
    # Immediate mode reserves a slot of the snapshot length for each frame: at 256 kB, ten would fill its ring.
    with tcpdump(end, "-s", "2048", "-e", "-vv", "-l", *expression) as process:
        yield process.lines


@contextmanager
def captured(end: Endpoint, *expression: str, size: int = 128) -> Iterator[list[tuple[int, bytes]]]:
    """The packets that pass meanwhile, there when the block has ended: time (CLOCK_REALTIME, ns) and their first bytes.

    Raises `LabError` if any was lost.
    """
    found: list[tuple[int, bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "packets"
        words = ("-s", str(size), "-B", "16384", "-Z", "root", "--time-stamp-precision=nano", "-w", str(file))
        with tcpdump(end, *words, *expression) as process:
            yield found
            time.sleep(0.3)
        if "\n0 packets dropped by kernel" not in process.stderr:
            raise LabError(f"tcpdump: {process.stderr}")
        found += read_pcap(file.read_bytes())


def read_pcap(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The packets of a capture file of this machine's, with their times in ns."""
    unit = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}[struct.unpack_from("=I", data)[0]]
    at = 24
    while at < len(data):
        seconds, part, caught, _ = struct.unpack_from("=IIII", data, at)
        yield seconds * 10**9 + part * unit, data[at + 16 : at + 16 + caught]
        at += 16 + caught


def netstat(ns: Namespace) -> dict[str, int]:
    """SNMP and extended counters of a namespace, `TcpRetransSegs`, `IpReasmOKs`, `TcpExtTCPTimeouts`, ..."""
    counters: dict[str, int] = {}
    for path in ("/proc/thread-self/net/snmp", "/proc/thread-self/net/netstat"):
        lines = ns.read(path).splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            group, _, keys = names.partition(":")
            numbers = values.partition(":")[2].split()
            counters |= {group + key: int(value) for key, value in zip(keys.split(), numbers, strict=True)}
    for line in ns.read("/proc/thread-self/net/snmp6").splitlines():
        key, value = line.split()
        counters[key] = int(value)
    return counters


def softirqs() -> dict[str, list[int]]:
    """/proc/softirqs: runs of each vector, one number a CPU."""
    lines = Path("/proc/softirqs").read_text().splitlines()[1:]
    return {line.split(":")[0].strip(): [int(word) for word in line.split(":")[1].split()] for line in lines}


@dataclass(frozen=True)
class Interrupt:
    """One line of /proc/interrupts: the count on each CPU, and the words after it (chip, pin, device)."""

    counts: list[int]
    name: str


def interrupts() -> dict[str, Interrupt]:
    """/proc/interrupts by its first column: `24`, `LOC`, ..."""
    lines = Path("/proc/interrupts").read_text().splitlines()
    cpus = len(lines[0].split())
    table = {}
    for line in lines[1:]:
        number, _, rest = line.partition(":")
        words = rest.split()
        counts = [int(word) for word in words[:cpus] if word.isdigit()]
        table[number.strip()] = Interrupt(counts, " ".join(words[len(counts) :]))
    return table


class Watch:
    """A kernel counter, read a hundred times a second while its block lasts.

    So its growth between two frames is known within bounds, even if the machine stalls: nettop reads its maps at most
    ``slack_ns`` before the frame's time.
    """

    def __init__(self, counter: Callable[[], int], slack_ns: int = 50_000_000) -> None:
        self._counter = counter
        self._slack_ns = slack_ns
        self._readings: list[tuple[int, int, int]] = []  # begun, ended (CLOCK_REALTIME), count
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        while not self._over.wait(0.01):
            begun = time.time_ns()
            count = self._counter()
            self._readings.append((begun, time.time_ns(), count))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _at(self, time_ns: int) -> tuple[int, int]:
        """Bounds of the count when the frame of this time was read."""
        least = [count for _, ended, count in self._readings if ended <= time_ns - self._slack_ns]
        most = [count for begun, _, count in self._readings if begun >= time_ns]
        if not least or not most:
            raise LabError("the frames are not all from the time that was watched")
        return least[-1], most[0]

    def growth(self, after: Mapping[str, Any], until: Mapping[str, Any]) -> tuple[int, int]:
        """Bounds of its growth from one frame to a later one."""
        (first_least, first_most), (last_least, last_most) = (
            self._at(after["time_ns"]),
            self._at(until["time_ns"]),
        )
        return last_least - first_most, last_most - first_least


@dataclass(frozen=True)
class Softnet:
    """One CPU's line of /proc/net/softnet_stat."""

    cpu: int
    processed: int
    dropped: int
    time_squeeze: int


def softnet() -> list[Softnet]:
    """/proc/net/softnet_stat, one entry a CPU."""
    entries = []
    for index, line in enumerate(Path("/proc/net/softnet_stat").read_text().splitlines()):
        fields = [int(word, 16) for word in line.split()]
        # Since 5.10 the 13th column says which CPU it is: offline ones have no line.
        entries.append(Softnet(fields[12] if len(fields) > 12 else index, *fields[:3]))
    return entries


def qdiscs(end: Endpoint) -> list[dict[str, Any]]:
    """`tc -s -j qdisc` of an interface: `kind`, `bytes`, `packets`, `drops`, `backlog`, `qlen`, ..."""
    output = end.ns.run("tc", "-s", "-j", "qdisc", "show", "dev", end.name).stdout
    return [dict(entry) for entry in json.loads(output or "[]")]


def filters(end: Endpoint) -> list[dict[str, Any]]:
    """Every tc filter on an interface's clsact hooks. Empty where there is no clsact."""
    found: list[dict[str, Any]] = []
    for hook in ("ingress", "egress"):
        result = end.ns.run("tc", "-j", "filter", "show", "dev", end.name, hook, check=False)
        # tc 6.1 writes some filters' JSON with a stray line before it; one that shows nothing prints nothing.
        start = result.stdout.find("[")
        if start >= 0:
            found += [{"hook": hook, **entry} for entry in json.loads(result.stdout[start:])]
    return found


@dataclass(frozen=True)
class Attached:
    """What is attached to an interface: qdiscs and tc filters as text, TCX and XDP programs by id."""

    qdiscs: frozenset[str]
    filters: frozenset[str]
    programs: frozenset[tuple[str, int]]


def attached(end: Endpoint) -> Attached:
    """Everything attached to an interface. Compare before and after: the two must be equal."""
    qdisc_lines = end.ns.run("tc", "qdisc", "show", "dev", end.name).stdout.splitlines()
    link = json.loads(end.ns.run("ip", "-j", "link", "show", "dev", end.name).stdout)[0]
    programs = {("xdp", int(link["xdp"]["prog"]["id"]))} if "xdp" in link else set()
    index = int(link["ifindex"])
    for hook, kind in bpf.TCX_HOOKS.items():
        # By bpf(2) itself: Debian 12's bpftool is older than TCX.
        programs |= {(hook, program) for program in end.ns.call(functools.partial(bpf.query, index, kind))}
    return Attached(
        frozenset(re.sub(r" refcnt \d+", "", line.strip()) for line in qdisc_lines),
        frozenset(json.dumps(entry, sort_keys=True) for entry in filters(end)),
        frozenset(programs),
    )

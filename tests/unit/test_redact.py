"""--redact: nothing of the addresses and names is left, the same ones stay the same, and subnets stay subnets."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from dataclasses import field as plain_field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import packed, record, written
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from nettop import cli
from nettop.core.fields import Codec, field
from nettop.core.frame import Frame, Health, ProbeStatus, Section
from nettop.core.histogram import Histogram
from nettop.core.table import TEXT, column, group, inner, layout
from nettop.output import WRITERS
from nettop.probes.flows.rows import ROW
from nettop.probes.flows.section import Flows, Rtts, Subnet
from nettop.probes.irq.section import Irq, Line
from nettop.record import recording, redact, schema
from nettop.record.recording import Header, Recording, View, start_recorder, write_snapshot
from nettop.record.redact import NOTE, Redactor
from nettop.session import Session
from nettop.settings import Control, Settings

hide = Redactor(b"a secret of the tests")
v4 = st.ip_addresses(v=4)
v6 = st.one_of(
    st.ip_addresses(v=6),
    st.integers(0, 2**125 - 1).map(lambda n: ipaddress.IPv6Address(1 << 125 | n)),  # 2000::/3
    st.integers(0, 2**64 - 1).map(lambda n: ipaddress.IPv6Address(0xFE80 << 112 | n)),
    st.integers(0, 2**120 - 1).map(lambda n: ipaddress.IPv6Address(0xFD << 120 | n)),
)
public4 = st.tuples(st.sampled_from([*range(1, 127), *range(128, 224)]), st.integers(0, 2**24 - 1)).map(
    lambda n: ipaddress.IPv4Address(n[0] << 24 | n[1])
)
names = st.from_regex(r"[g-z][a-z0-9_-]{2,12}[g-z]", fullmatch=True)


def shared(a: ipaddress.IPv4Address | ipaddress.IPv6Address, b: object) -> int:
    """How many leading bits two addresses have in common."""
    return a.max_prefixlen - (int(a) ^ int(b)).bit_length()  # type: ignore[call-overload]


def pseudonym(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address:
    return ipaddress.ip_address(hide.address(str(address)))  # type: ignore[return-value]


# --- addresses ----------------------------------------------------------------------------------------------


@given(v4 | v6)
def test_an_address_has_one_pseudonym_in_all_its_forms(address):
    hidden = pseudonym(address)
    assert hidden.version == address.version
    assert pseudonym(address) == hidden
    assert hide.packed(packed(address)) == packed(hidden)
    port = f"[{address}]:80" if address.version == 6 else f"{address}:80"
    assert hide.endpoint(port) == (f"[{hidden}]:80" if address.version == 6 else f"{hidden}:80")


@given(st.sets(v4, min_size=2, max_size=20) | st.sets(v6, min_size=2, max_size=20))
def test_no_two_addresses_have_the_same(addresses):
    assert len({pseudonym(address) for address in addresses}) == len(addresses)


@given(v4, st.integers(16, 32), st.integers(0, 2**32 - 1))
def test_what_was_one_ipv4_subnet_still_is(address, length, other):
    network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    neighbour = ipaddress.IPv4Address(int(network.network_address) | other & int(network.hostmask))
    # These stay what they are.
    assume(not address.is_loopback and int(address) >> 24)
    assume("255.255.255.255" not in (str(address), str(neighbour)))
    assert shared(pseudonym(address), pseudonym(neighbour)) >= length
    assert pseudonym(neighbour) in ipaddress.ip_network(hide.address(str(network)))
    assert hide.address(str(network)).endswith(f"/{length}")


@given(v6, st.integers(16, 128), st.integers(0, 2**128 - 1))
def test_what_was_one_ipv6_subnet_still_is(address, length, other):
    network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    neighbour = ipaddress.IPv6Address(int(network.network_address) | other & int(network.hostmask))
    assume(not {str(address), str(neighbour), str(network.network_address)} & {"::", "::1"})
    assume(not any(a.ipv4_mapped for a in (address, neighbour)))
    assert shared(pseudonym(address), pseudonym(neighbour)) == shared(address, neighbour)
    assert pseudonym(neighbour) in ipaddress.ip_network(hide.address(str(network)))


KINDS = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10", "224.0.0.0/4",
         "127.0.0.0/8", "0.0.0.0/8", "240.0.0.0/4"]  # fmt: skip


@given(v4)
@example(ipaddress.IPv4Address("172.32.0.1"))
@example(ipaddress.IPv4Address("192.169.0.1"))
@example(ipaddress.IPv4Address("11.0.0.1"))
def test_private_stays_private_and_public_public(address):
    for text in KINDS:
        network = ipaddress.ip_network(text)
        assert (address in network) == (pseudonym(address) in network)


@pytest.mark.parametrize("text", ["0.0.0.0", "255.255.255.255", "127.0.0.1", "::", "::1"])
def test_what_says_nothing_of_anybody_stays(text):
    assert hide.address(text) == text


def test_public_addresses_do_not_stay():
    """By chance one may; of two thousand hardly any keeps even its first two bytes."""
    found = [ipaddress.IPv4Address(n * 2_000_003 % 2**32) for n in range(2000)]
    public = [a for a in found if a.is_global]
    same = sum(shared(a, pseudonym(a)) >= 16 for a in public)
    assert len(public) > 1500
    assert same < 40
    private = [ipaddress.IPv4Address(0x0A000000 | n * 7919) for n in range(2000)]
    assert sum(a == pseudonym(a) for a in private) < 5


@settings(max_examples=20)
@given(public4)
def test_another_run_has_other_pseudonyms(address):
    runs = {Redactor(bytes([n]) * 32).address(str(address)) for n in range(8)}
    assert len(runs) > 1


@given(v4 | v6)
def test_what_is_typed_from_the_screen_finds_the_real_one(address):
    assume(address.version == 4 or not address.ipv4_mapped)
    assert hide.real(f"host {pseudonym(address)} and port 80") == f"host {address} and port 80"


def test_a_busy_table_is_hidden():
    """Each of many flows with a host of its own: once, and from then on from memory."""
    rows = np.zeros(8192, ROW)
    rows["remote"][:, 10:12] = 255
    rows["remote"][:, 12:] = np.random.default_rng(3).integers(128, 223, (8192, 4))
    quick = Redactor(b"x")
    first = quick.part(Flows(rows=rows)).rows
    assert (first["remote"] != rows["remote"]).any(axis=1).mean() > 0.999  # by chance, one may be itself
    assert (quick.part(Flows(rows=rows)).rows["remote"] == first["remote"]).all()


# --- names, filters, messages -------------------------------------------------------------------------------


@given(names)
def test_a_name_is_gone_and_has_one_pseudonym(name):
    hidden = hide.name(name, "host")
    assert name not in hidden
    assert hide.name(name, "host") == hidden == hide.name(hidden, "host")


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("host 10.1.2.3 and port 443", r"host 10\.\d+\.\d+\.\d+ and port 443"),
        ("src net 10.1.0.0/16 or dst net 10.2", r"src net 10\.\d+\.0\.0/16 or dst net 10\.\d+"),
        ("tcp and (host db.example.com or udp)", r"tcp and \(host name-[0-9a-f]{8} or udp\)"),
        ("ether host 00:11:22:33:44:55", r"ether host 02(:[0-9a-f]{2}){5}"),
        ("ip6 host 2001:db8::1", r"ip6 host [23][0-9a-f]*:[0-9a-f:]+"),
        ("not port ssh and less 100", r"not port name-[0-9a-f]{8} and less 100"),
        ("ip[16:4] = 0x0a010203", r"\(hidden\)"),
        ("portrange 80-90", "portrange 80-90"),
        ("host 167838211", r"host name-[0-9a-f]{8}"),  # an address as a number
        ("", ""),
    ],
)
def test_a_filter_keeps_its_form(text, shape):
    assert re.fullmatch(shape, hide.filter(text))


@given(v4 | v6, names, st.integers(0, 65535))
def test_nothing_of_a_filter_is_left(address, name, port):
    assume(str(address) not in ("0.0.0.0", "255.255.255.255", "::", "::1") and not address.is_loopback)
    assume(pseudonym(address) != address)
    assume(name.lower() not in redact._WORDS and not name.isdigit())
    hidden = hide.filter(f"host {address} or dst host {name} and port {port}")
    assert str(address) not in hidden.split()
    assert name not in hidden.split()
    assert hidden.endswith(f"and port {port}")


@pytest.mark.parametrize(
    ("message", "secret"),
    [
        ("the filter 'host alpha' is not applied: unknown host 'alpha'", "alpha"),
        ("cannot reach 10.1.2.3 (db3.example.com)", "db3"),
        ("from fe80::211:22ff:fe33:4455 on eth0", "3344"),
        ("enx001122334455 is gone; waiting for it to come back", "001122334455"),
        ("00:11:22:33:44:55 has moved", "22:33"),
        ("10.1.2.0/24, 10.1.2.3, [2001:db8:7::1]:80", "db8:7"),
    ],
)
def test_a_message_tells_nothing(message, secret):
    assert secret not in hide.text(message)


@pytest.mark.parametrize(
    "message",
    ["flows.c does not compile on this kernel", "eth0 came back at 12:01:30 and is watched again",
     "needs Linux 6.6.1 or newer", "tcx: bpf prog_load: Operation not permitted", "1.5 GB at 100 %"],
)  # fmt: skip
def test_a_message_without_secrets_stays_as_it_is(message):
    assert hide.text(message) == message


# --- frames and files ---------------------------------------------------------------------------------------


@st.composite
def frames(draw: st.DrawFn) -> tuple[Frame, set[str]]:
    """A frame, and all that must not be found of it."""
    hosts = draw(st.lists(public4 | v6, min_size=2, max_size=8, unique=True))
    hosts = [h for h in hosts if str(h) not in ("::", "::1") and not h.is_loopback and pseudonym(h) != h]
    hosts = [h for h in hosts if h.version == 4 or int(h) >> 80]  # ::/48 is nobody's
    assume(len(hosts) >= 2)
    processes = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    host = draw(names.map(lambda n: f"srv-{n}"))
    assume(not any(n in ("name", "hook", "host", "proc", "flow", "flows") for n in (*processes, host)))
    rows = np.zeros(len(hosts), ROW)
    for n, address in enumerate(hosts):
        rows[n]["id"] = n + 1
        rows[n]["protocol"] = 6
        rows[n]["local"] = np.frombuffer(packed(hosts[0]), np.uint8)
        rows[n]["remote"] = np.frombuffer(packed(address), np.uint8)
        rows[n]["local_port"], rows[n]["remote_port"] = 1000 + n, 2000 + n
        rows[n]["process"]["name"] = processes[n % len(processes)].encode()
        rows[n]["rx_bytes"] = 1000 - n
        rows[n]["process"]["pid"] = 5
    lengths = [24 if h.version == 4 else 48 for h in hosts]
    nets = {str(ipaddress.ip_network(f"{h}/{n}", strict=False)) for h, n in zip(hosts, lengths, strict=True)}
    subnets = tuple(Subnet(net, Histogram.empty()) for net in sorted(nets))
    filter_text = f"host {hosts[-1]} or host {processes[0]}"
    made = Frame(
        1_750_000_000_000_000_000,
        10**9,
        host,
        "enx001122334455",
        filter_text,
        probes={
            "flows": ProbeStatus("live", f"reached {hosts[0]}"),
            "irq": ProbeStatus("live"),
            "stages": ProbeStatus("failed", f"the filter {filter_text!r} of {host}"),
        },
        sections={
            "flows": Flows(rows=rows, total=len(rows), rtt=Rtts(subnets=subnets)),
            "irq": Irq(hard=(Line(9, "enx001122334455-rx-0", Histogram.empty()),)),
        },
        notes=(f"{host} lost {hosts[1]}", f"the filter {filter_text!r} does not fit enx001122334455"),
    )
    return made, {*map(str, hosts), *processes, host, "001122334455"}


def assert_nothing_of(text: str, secrets: set[str], frame: Frame) -> None:
    """None of them as a word of its own; what is a pseudonym by chance does not count."""
    given_out = set(re.findall(r"[\w:.-]+", " ".join(hide._given)))
    for secret in secrets:
        pattern = rf"(?<![\w:.-]){re.escape(secret)}(?![\w:-]|\.\w)"
        found = re.findall(pattern, text)
        assert not found or secret in given_out or re.fullmatch(r"[\d-]+|[a-f\d-]+", secret), (secret, text)


@settings(max_examples=60)
@given(frames())
def test_no_address_and_no_name_is_in_any_output(made):
    frame, secrets = made
    hidden = hide.frame(frame)
    text = schema.dumps(schema.frame_to_json(hidden, 1000, ""))
    texts = [text, *(written(form, hidden, width=300) for form in WRITERS)]
    for output in texts:
        assert_nothing_of(output, secrets, hidden)
    assert NOTE in hidden.notes
    replayed = schema.frame_from_json(json.loads(text))
    for name in ("local", "remote", "process"):
        before, after = (f.sections["flows"].rows[name] for f in (hidden, replayed))  # type: ignore[attr-defined]
        assert sorted(map(bytes, before)) == sorted(map(bytes, after))
    assert replayed.notes == hidden.notes


@settings(max_examples=40)
@given(frames())
def test_the_subnets_are_those_of_the_rows(made):
    frame, _ = made
    hidden = hide.frame(frame)
    before, after = frame.sections["flows"], hidden.sections["flows"]
    nets = [ipaddress.ip_network(s.prefix) for s in after.rtt.subnets]
    assert len(set(nets)) == len(nets) == len(before.rtt.subnets)
    for row in after.rows:
        address = ipaddress.ip_address(row["remote"].tobytes())
        address = address.ipv4_mapped or address
        assert any(address.version == net.version and address in net for net in nets)
    for name in ROW.names or ():
        if name not in ("local", "remote", "process"):
            assert (before.rows[name] == after.rows[name]).all()
    same, still = (
        [[(a == b).all() for b in rows["local"]] for a in rows["remote"]]
        for rows in (before.rows, after.rows)
    )
    assert same == still


def test_the_frame_that_was_hidden_is_untouched():
    rows = np.zeros(1, ROW)
    rows["remote"] = 7
    rows["process"]["name"] = b"secret"
    frame = Frame(0, 1, "here", "eth0", sections={"flows": Flows(rows=rows)})
    hide.frame(frame)
    assert (rows["remote"] == 7).all()
    assert rows["process"]["name"][0] == b"secret"


def test_the_names_of_counters_are_not_hidden():
    health = Health({"lost_events": 3}, shed={"frames_one_in": 2})
    assert hide.frame(Frame(0, 1, health=health)).health == health


FRAME = Frame(
    1_750_000_000_000_000_000,
    10**9,
    "db3.example.com",
    "eth0",
    "host 192.0.2.7",
    probes={"flows": ProbeStatus("live")},
    sections={"flows": Flows(rows=np.zeros(0, ROW))},
    notes=("db3.example.com was not reached",),
)
SECRETS = ("db3", "192.0.2.7", "example.com")


def test_recordings_and_snapshots_are_hidden_with_their_headers(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(recording.platform, "node", lambda: "db3.example.com")
    run = redact.this_run()
    path = tmp_path / "x.ndjson"
    with start_recorder(str(path), "eth0", View(filter="host 192.0.2.7"), 1000, redact=True) as recorder:
        recorder.record(run.frame(FRAME))
    snapshot = tmp_path / "x.json"
    write_snapshot(str(snapshot), [run.frame(FRAME)], View(filter=run.filter(FRAME.filter)), 1000)
    for file in (path, snapshot):
        assert not any(secret in file.read_text() for secret in SECRETS)
    with Recording(str(path)) as again:
        assert again.header.host == again.frame(0).host
        assert again.header.view.filter == again.frame(0).filter


@pytest.mark.parametrize("extra", [("--format", "ndjson"), ("--format", "csv"), ()])
def test_a_recording_is_hidden_when_it_is_replayed(tmp_path: Path, monkeypatch, capfd, extra):
    path = tmp_path / "x.ndjson"
    made = [
        replace(FRAME, time_ns=FRAME.time_ns + n * 10**9, filter="" if n else FRAME.filter) for n in range(3)
    ]
    record(path, made, Header(host="db3.example.com", view=View(filter="host 192.0.2.7")))
    assert any(secret in path.read_text() for secret in SECRETS)
    monkeypatch.setattr(cli.privilege, "effective", lambda: 0)
    monkeypatch.setattr(cli.os, "geteuid", lambda: 1000)
    copy = tmp_path / "copy.ndjson"
    assert cli.main(["--replay", str(path), "-b", *extra, "--redact", "--record", str(copy)]) == 0
    out = capfd.readouterr().out + copy.read_text()
    assert "db3" not in path.name
    assert not any(secret in out for secret in SECRETS)
    with Recording(str(path), hide=redact.this_run()) as opened:
        assert not any(secret in str((opened.header, opened.marks)) for secret in SECRETS)


async def one_frame() -> AsyncIterator[Frame]:
    yield FRAME


async def test_the_screen_gets_pseudonyms_and_understands_them(monkeypatch, tmp_path: Path):
    control = Control()
    session = Session(Settings(interface="lo", redact=True), control, folder=tmp_path)
    (shown,) = [frame async for frame in session.watched(one_frame())]
    assert not any(secret in str((shown.host, shown.filter, shown.notes)) for secret in SECRETS)
    assert "names" not in session.offers
    monkeypatch.setattr("nettop.session.link_header", lambda name: 14)
    answer = await session.set_filter(shown.filter)
    assert control.filter == "host 192.0.2.7"
    assert answer.shown == shown.filter
    session.look = View(filter="host 192.0.2.7")
    path = await session.snapshot([shown])
    assert not any(secret in path for secret in SECRETS)
    with Recording(path) as written:
        assert written.header.view.filter == shown.filter
        assert not any(secret in str((written.header, written.frame(0))) for secret in SECRETS)


# --- it fails closed ----------------------------------------------------------------------------------------------


LATER = (
    column("id", "u8", "its number"),
    inner("mac", ("u1", (6,))),
    inner("at", ("u1", (16,)), privacy="address"),
    group("inner", (column("sni", "S16", "a name", kind=TEXT), column("n", "u4", "a number")), "more"),
)


@dataclass(frozen=True)
class Tomorrow(Section):
    """A section with fields whose author said nothing of what is in them, or did not declare them at all."""

    server_name: str = field("a name", default="shop.example.org")
    unit: str | None = field("another", default="payroll.service")
    peers: tuple[str, ...] = field("more", default=("db3", "db4"))
    rows: Any = field("a table", default=None, codec=Codec(list, tuple, dict, LATER))
    count: int = field("a number", default=5)
    more: list[str] = plain_field(default_factory=lambda: ["db5"])
    by_name: Mapping[str, int] = plain_field(default_factory=lambda: {"db6": 7})
    raw: bytes = b"db7.example.org"
    parsed: Any = plain_field(default_factory=lambda: ipaddress.ip_address("192.0.2.7"))
    other_rows: Any = plain_field(default_factory=lambda: np.array([(b"db9",)], [("name", "S8")]))


def test_what_is_not_declared_harmless_is_hidden():
    rows = np.zeros(1, layout(LATER))
    rows["id"], rows["mac"] = 3, [[1, 2, 3, 4, 5, 6]]
    rows["inner"]["sni"], rows["inner"]["n"] = b"db8.example", 9
    rows["at"] = list(ipaddress.ip_address("2001:db8::77").packed)
    made = Redactor(b"x" * 32).part(Tomorrow(rows=rows))
    said = repr(made)
    for word in ("shop", "payroll", "db3", "db4", "db5", "db6", "db7", "db8", "db9", "192.0.2.7"):
        assert word not in said, word
    assert made.count == 5
    assert (int(made.rows["id"][0]), int(made.rows["inner"]["n"][0])) == (3, 9)
    assert not made.rows["mac"].any()
    assert bytes(made.rows["at"][0]) != bytes(rows["at"][0])
    assert rows["inner"]["sni"][0] == b"db8.example"  # and what was given is as it was

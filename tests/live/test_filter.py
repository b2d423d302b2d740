"""The filter in the kernel: tcpdump's verdict on every packet, changed while packets pass, cheaper than counting.

Witnesses: tcpdump on a capture of the same packets, libpcap's own interpreter, /sys/class/net, and what was sent.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from driven import Driven
from filter_kernel import (
    attached,
    compile_filters,
    compile_for_memory,
    counts,
    loaded,
    number_of,
    numbered,
    trailer,
    write_capture,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab import Lab, Link, oracle, packets, shell
from lab.program import REPOSITORY, interpreter
from lab.shell import Process

from nettop.bpf import filter as filters
from nettop.bpf import syscall
from nettop.bpf.filter import FilterError, Program, compile_expression
from nettop.bpf.protocol import Plan
from nettop.loader import attach
from nettop.loader.compile import TYPED_ONLY, compile_probe, takes_filter

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from expressions import EXPRESSIONS, MIX, expressions

ETHERNET, IP = 1, 101  # LINKTYPE_*
FLOOD_PORT, OTHER_PORT = 7001, 7002


def cut(seed: int = 1) -> list[bytes]:
    """The mix, each packet again cut short (not into the link header or its tag), and again damaged; all numbered."""
    rnd = random.Random(seed)
    result = list(MIX)
    for packet in MIX:
        result.append(packet[: rnd.randrange(min(18, len(packet)), len(packet) + 1)])
        broken = bytearray(packet)
        for _ in range(3):
            broken[rnd.randrange(12, len(broken))] = rnd.randrange(256)
        result.append(bytes(broken))
    return numbered(result)


def runnable(packets_: list[bytes]) -> list[bytes]:
    """Those that BPF_PROG_TEST_RUN takes: an IP header must be whole.  The wire takes all of them."""
    least = {b"\x08\x00": 34, b"\x86\xdd": 54}
    return [p for p in packets_ if len(p) >= least.get(p[12:14], 14)]


def packets_of(capture: bytes) -> list[bytes]:
    return [packet for _, packet in oracle.read_pcap(capture)]


def tcpdump(capture: Path, text: str) -> list[int]:
    """Numbers of the packets in a capture file that tcpdump's own filter lets through."""
    done = subprocess.run(
        ["tcpdump", "-r", str(capture), "-w", "-", text], capture_output=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr.decode()
    return sorted(n for n in map(number_of, packets_of(done.stdout)) if n is not None)


def assert_same(
    programs: list[Program], expected: list[list[int]], found: list[list[int]], sent: list[bytes]
) -> None:
    for program, wanted, got in zip(programs, expected, found, strict=True):
        odd = sorted(set(wanted) ^ set(got))
        assert not odd, f"{program.text}: {[(n, n in wanted, sent[n].hex()) for n in odd[:3]]}"


# --- the same verdicts as tcpdump -------------------------------------------------------------------------


def test_tcpdump_and_the_kernel_agree_on_every_packet(cache, tmp_path):
    sent = runnable(cut())
    write_capture(tmp_path / "mix", sent, ETHERNET)
    programs = [compile_expression(text) for text in EXPRESSIONS]
    expected = [tcpdump(tmp_path / "mix", p.text) for p in programs]
    with loaded(compile_filters(programs, cache, live=False), "test_") as (_, fds):
        found = [[number_of(packet) for packet in sent if syscall.test_run(fd, packet)[0]] for fd in fds]
    assert_same(programs, expected, found, cut())
    assert len(programs) >= 40
    assert 500 < sum(map(len, found)) < 0.7 * len(programs) * len(sent)


def test_tcpdump_and_the_kernel_agree_on_the_wire(lab: Lab, veth: Link, cache, tmp_path):
    # What a packet socket sends has its tags in the frame; what is received has the outer one lifted out of it by the
    # kernel, and tcpdump puts it back.
    sent = cut(2)
    programs = [compile_expression(text) for text in EXPRESSIONS]
    made = compile_filters(programs, cache, live=True)
    with loaded(made, "ingress_") as (seen_in, ingress), loaded(made, "egress_") as (seen_out, egress):
        with (
            oracle.captured(veth.a, size=4096) as sent_there,
            oracle.captured(veth.b, size=4096) as received_here,
            attached(veth.b, ingress, syscall.AttachType.TCX_INGRESS),
            attached(veth.a, egress, syscall.AttachType.TCX_EGRESS),
        ):
            packets.send(lab, veth.a, sent)
            time.sleep(0.3)
        for seen, frames in ((seen_in, received_here), (seen_out, sent_there)):
            write_capture(tmp_path / "capture", [frame for _, frame in frames], ETHERNET)
            found = [[n for n, count in enumerate(row) if count] for row in counts(seen, len(programs))]
            expected = [tcpdump(tmp_path / "capture", p.text) for p in programs]
            assert max(map(len, expected)) > 30
            assert_same(programs, expected, found, sent)
            once = {count for row in counts(seen, len(programs)) for count in row}
            assert once == {0, 1}


def test_inbound_and_outbound_are_what_tcpdump_says(lab: Lab, veth: Link, cache, tmp_path):
    texts = ["inbound", "outbound", "inbound and tcp", "outbound and not tcp", "inbound or arp"]
    programs = [compile_expression(text) for text in texts]
    frames = numbered([*MIX, *MIX])
    there, back = frames[: len(MIX)], frames[len(MIX) :]
    made = compile_filters(programs, cache, live=True)
    with loaded(made, "ingress_") as (seen_in, ingress), loaded(made, "egress_") as (seen_out, egress):
        with (
            attached(veth.a, ingress, syscall.AttachType.TCX_INGRESS),
            attached(veth.a, egress, syscall.AttachType.TCX_EGRESS),
        ):
            caught = []
            for text in texts:
                # tcpdump decides by what the kernel tells a packet socket, so it has to be there
                with oracle.captured(veth.a, text, size=4096) as frames_of_text:
                    # and the first block of its ring libpcap looks at again itself, without being told
                    for end in (veth.a, veth.b):
                        packets.send(lab, end, MIX)
                    time.sleep(0.2)
                    packets.send(lab, veth.a, there)
                    packets.send(lab, veth.b, back)
                caught.append(sorted(n for _, p in frames_of_text if (n := number_of(p)) is not None))
        received, gone = counts(seen_in, len(texts)), counts(seen_out, len(texts))
    for number, (text, captured) in enumerate(zip(texts, caught, strict=True)):
        found = [n for n in range(len(frames)) if received[number][n] + gone[number][n]]
        # A live filter does not see a lifted tag: of tagged frames it knows the direction alone.
        plain = {n for n, frame in enumerate(frames) if frame[12:14] not in (b"\x81\x00", b"\x88\xa8")}
        assert [n for n in found if n in plain] == [n for n in captured if n in plain], text
        assert captured


def test_bytes_that_lie_in_pages_are_read(lab: Lab, veth: Link, cache, tmp_path):
    # A datagram larger than a page's worth of linear part: what is sent with scatter-gather lies in fragments.
    for end in (veth.a, veth.b):
        end.ns.run("ip", "link", "set", end.name, "mtu", "9000")
    texts = [
        "udp[3000:4] = 0x41424344",
        "udp[7000] = 0x45",
        "ether[7040:2] != 0",
        "udp[8:4] = 0x61616161 and udp[2999] = 98",
    ]
    programs = [compile_expression(text) for text in texts]
    payload = bytearray(b"a" * 7000)
    payload[2991:2997] = b"bABCDE"
    payload[6992] = 0x45
    made = compile_filters(programs, cache, live=True)
    with loaded(made, "egress_") as (seen, fds):
        with (
            oracle.captured(veth.a, size=4096) as frames,
            attached(veth.a, fds, syscall.AttachType.TCX_EGRESS),
            veth.a.ns.socket(socket.SOCK_DGRAM) as sock,
        ):
            for number in range(4):
                part = payload if number % 2 else bytes(len(payload))
                sock.sendto(bytes(part) + trailer(number), (veth.b.v4, 9))
        found = [[n for n, count in enumerate(row) if count] for row in counts(seen, len(programs))]
    assert len(frames) >= 4
    assert found == [[1, 3]] * 4


def test_an_interface_without_a_link_header(cache, tmp_path):
    sent = [p[14:] for p in cut() if len(p) > 34 and p[12:14] in (b"\x08\x00", b"\x86\xdd")]
    texts = [t for t in EXPRESSIONS if not any(w in t for w in ("ether", "vlan", "arp", "mpls"))]
    write_capture(tmp_path / "raw", sent, IP)
    programs = [compile_expression(text, filters.RAW) for text in texts]
    with loaded(compile_filters(programs, cache, live=False, l2_len=0), "test_") as (_, fds):
        for program, fd in zip(programs, fds, strict=True):
            # the test run wants a link header and shows it: the verdicts are of what is behind, as on a tun
            found = [number_of(p) for p in sent if syscall.test_run(fd, p)[0]]
            assert sorted(found) == tcpdump(tmp_path / "raw", program.text), program.text


@pytest.mark.parametrize(
    ("where", "tracepoint"), [("AT_NETWORK", "netif_receive_skb"), ("AT_LINK", "net_dev_queue")]
)
def test_the_same_filter_over_the_kernels_own_sk_buff(
    lab: Lab, veth: Link, cache, tmp_path, where, tracepoint
):
    # Without TC's help: what the stages' raw tracepoints have.
    sent = cut(3)
    programs = [compile_expression(text) for text in EXPRESSIONS]
    made = compile_for_memory(programs, cache, where)
    with loaded(made, "memory_", syscall.ProgType.RAW_TRACEPOINT) as (seen, fds):
        links = [syscall.raw_tracepoint_open(fd, tracepoint) for fd in fds]
        try:
            with oracle.captured(veth.b, size=4096) as frames:
                packets.send(lab, veth.a, sent)
        finally:
            for link in links:
                os.close(link)
        found = [[n for n, count in enumerate(row) if count] for row in counts(seen, len(programs))]
    write_capture(tmp_path / "b", [frame for _, frame in frames], ETHERNET)
    assert_same(programs, [tcpdump(tmp_path / "b", p.text) for p in programs], found, sent)


# --- the verifier never refuses ---------------------------------------------------------------------------


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(texts=st.lists(expressions(), min_size=60, max_size=60, unique=True))
def test_generated_filters_load_and_agree(cache, texts):
    programs = []
    for text in texts:
        try:
            programs.append(compile_expression(text))
        except FilterError:
            continue
    sent = runnable(cut(len(programs)))
    with loaded(compile_filters(programs, cache, live=False), "test_") as (_, fds):
        for program, fd in zip(programs, fds, strict=True):
            for packet in sent:
                assert bool(syscall.test_run(fd, packet)[0]) == program.matches(packet), (
                    program.text,
                    packet.hex(),
                )


LONG = {
    "ports": " or ".join(f"port {n}" for n in range(1000, 1100)),
    "hosts": " or ".join(f"host 10.{n}.{n}.1" for n in range(100)),
    "pairs": " or ".join(f"(src net 10.{n}.0.0/16 and dst port {n + 1000})" for n in range(50)),
    "deep": "not (" * 12 + "tcp port 443 and (len > 100 or ip[0] & 0xf > 5)" + " or vlan)" * 12,
    "nested": "".join(f"(ip[{n}] + tcp[{n}] * " for n in range(5)) + "len" + ")" * 5 + " = 7",
    "sums": " or ".join(f"ip[{n}] + tcp[{n}] * udp[{n}] = len" for n in range(20)),
    "tags": "vlan 100 and vlan 200 and ip6",
}


# The filter is the same in both programs, and flows has more beside it.
@pytest.mark.parametrize(
    ("name", "of"), [*(("flows", of) for of in LONG), *(("throughput", of) for of in ("sums", "tags"))]
)
def test_probes_load_with_long_filters(cache, name, of):
    made = compile_probe(name, cache, instructions=compile_expression(LONG[of]).instructions)
    probe = attach.Attached(name, made)
    try:
        attach.make_maps(probe, Plan("lo", (name,)))
        for direction in ("ingress", "egress"):
            code = made.linked(f"{name}_{direction}", probe.maps)
            os.close(syscall.prog_load(syscall.ProgType.SCHED_CLS, code, name))
    finally:
        probe.close()


@pytest.mark.parametrize(
    "text",
    [LONG["hosts"], LONG["sums"], "tcp port 443 and net 10.0.0.0/8 or ip6 host 2001:db8::1 and not vlan"],
    ids=["hosts", "sums", "usual"],
)
def test_stages_load_with_long_filters(cache, text):
    """Every program that this kernel attaches: a filter there reads kernel memory by way of the stack."""
    made = compile_probe("stages", cache, TYPED_ONLY, compile_expression(text).instructions)
    probe = attach.Attached("stages", made)
    try:
        attach.make_maps(probe, Plan("lo", ("stages",)))
        loaded = [
            attach.load(probe, candidate.via, attachment)
            for hook in made.hooks
            for candidate in hook.candidates
            if candidate.via in ("tp_btf", "netfilter")
            for attachment in candidate.attachments
        ]
        assert len(set(loaded)) > 12
    finally:
        probe.close()


def test_the_filter_is_part_of_the_cached_objects_identity(cache):
    plain = compile_probe("throughput", cache)
    some = compile_probe("throughput", cache, instructions=compile_expression("tcp").instructions)
    again = compile_probe("throughput", cache, instructions=compile_expression("tcp").instructions)
    other = compile_probe("throughput", cache, instructions=compile_expression("udp").instructions)
    codes = [o.programs["throughput_ingress"] for o in (plain, some, other)]
    assert len(set(codes)) == 3
    assert again.programs == some.programs
    assert plain.maps == some.maps == other.maps
    assert takes_filter("throughput")
    assert takes_filter("flows")


# --- nettop with a filter ---------------------------------------------------------------------------------


driven = partial(Driven, probes="throughput,flows")


def two_ports(lab: Lab, link: Link, count: int) -> None:
    """`count` datagrams to one port and five times as many to another, 2000 flows each; and their sizes differ."""
    for port, number, size in ((FLOOD_PORT, count, 100), (OTHER_PORT, 5 * count, 200)):
        frames = [
            packets.datagram(link.b, link.a, (n % 2000 + 1024, port), bytes(size)) for n in range(number)
        ]
        packets.send(lab, link.b, frames)


def counted(lab: Lab, link: Link, nettop: Driven) -> int:
    """How many of 606 such datagrams nettop counts."""
    start = len(nettop.frames)
    two_ports(lab, link, 101)
    nettop.more_frames(3)
    return nettop.total("packets", since=start)


@pytest.mark.parametrize("via", ["", "clsact"])
def test_only_what_matches_is_counted_and_kept(lab: Lab, veth: Link, via):
    count = 1009
    with driven(veth.a, f"dst port {FLOOD_PORT}", via=via) as nettop:
        assert {f["filter"] for f in nettop.frames} == {f"dst port {FLOOD_PORT}"}
        two_ports(lab, veth, count)
        nettop.more_frames(3)
        rows = {row["local"] for frame in nettop.frames for row in frame["flows"]}
        assert nettop.total("packets") == count
        assert nettop.total("bytes") == count * (100 + 42)
        assert rows == {f"{veth.a.v4}:{FLOOD_PORT}"}
        assert nettop.frames[-1]["flows_total"] == count
        hooks = {
            h["via"]
            for p in nettop.frames[-1]["probes"].values()
            for h in p["hooks"]
            if h["hook"].startswith("tc")
        }
        assert hooks == {via or "tcx"}


def test_a_filter_that_is_none_ends_the_start_with_libpcaps_words(veth: Link):
    nettop = driven(veth.a, "tcp port")
    assert nettop.process.wait(timeout=20) == 2
    assert "syntax error" in nettop.process.stderr


@pytest.mark.parametrize("via", ["", "clsact"])
def test_a_filter_is_changed_taken_away_and_kept_where_the_new_one_is_wrong(lab: Lab, veth: Link, via):
    with driven(veth.a, via=via) as nettop:
        assert counted(lab, veth, nettop) == 606
        for text, expected in ((f"dst port {OTHER_PORT}", 505), ("arp", 0), ("", 606)):
            nettop.set_filter(text)
            assert counted(lab, veth, nettop) == expected, text
        nettop.set_filter(f"dst port {FLOOD_PORT}")
        nettop.tell("filter dst port 70000")
        nettop.wait_note("70000")
        assert nettop.frames[-1]["filter"] == f"dst port {FLOOD_PORT}"
        assert any("illegal port number" in n for n in nettop.frames[-1]["notes"])
        assert counted(lab, veth, nettop) == 101
        nettop.set_filter("")
        assert not nettop.frames[-1].get("notes")


def test_the_filter_holds_when_the_interface_comes_back(lab: Lab, veth: Link):
    with driven(veth.a) as nettop:
        nettop.set_filter(f"dst port {FLOOD_PORT}")
        lab.delete_interface(veth.a)
        nettop.wait_note("gone")
        lab.recreate(veth)
        nettop.wait_note("came back")
        assert counted(lab, veth, nettop) == 101
        nettop.set_filter(f"dst port {OTHER_PORT}")
        assert counted(lab, veth, nettop) == 505


def flooding(link: Link, port: int, per_second: int) -> Process:
    """Datagrams of 64 flows to one port, at an even pace; a and b are as in two_ports."""
    sources = range(3000, 3064)
    frames = [packets.datagram(link.b, link.a, (source, port), bytes(18)) for source in sources]
    return packets.flood(link.b, frames, per_second=per_second)


def sent_by(flood: Process) -> packets.Flood:
    """End it, after all that the test wants of it; what it has sent."""
    flood.send(signal.SIGTERM)
    return packets.flooded(flood)


@pytest.mark.alone
@pytest.mark.timing
@pytest.mark.parametrize("via", ["", "clsact"])
def test_no_packet_is_uncounted_while_the_filter_changes(veth: Link, via: str) -> None:
    # Filters that accept everything: so the sum over the changes must be what the interface counted.
    with driven(veth.a, via=via) as nettop:
        before = oracle.sysfs(veth.a)
        start = len(nettop.frames)
        flood = flooding(veth, FLOOD_PORT, 100_000)
        nettop.more_frames(8)
        usual = max(frame["longest_stall_ms"] for frame in nettop.frames[start:])
        seconds = [nettop.set_filter(text) for text in ("ip or ip6 or arp", "")]
        said = sent_by(flood)
        nettop.more_frames(4)
        counters = oracle.difference(oracle.sysfs(veth.a), before)
        counted = {f"rx_{what}": nettop.total(what, since=start) for what in ("packets", "bytes")}
        stall = max(frame["longest_stall_ms"] for frame in nettop.frames[start:])
    print(
        f"{said.per_second:.0f} packets/s; applied after {seconds} s; counted {counted}; interface {counters}; "
        f"longest stall {stall:.0f} ms, {usual:.0f} before"
    )
    assert counters["rx_packets"] > 0.95 * said.sent
    for what, value in counted.items():
        assert abs(value - counters[what]) <= 0.005 * counters[what]
    # Where others keep the CPUs from us, the loop waits without any change, too.
    assert stall < max(200, 2 * usual)


@pytest.mark.alone
def test_what_matches_is_counted_whole_while_the_filter_changes(veth: Link):
    with driven(veth.a, f"dst port {FLOOD_PORT}") as nettop:
        start = len(nettop.frames)
        matching, other = (flooding(veth, port, 50_000) for port in (FLOOD_PORT, OTHER_PORT))
        for text in (f"udp and port {FLOOD_PORT} and not ip6", f"dst port {FLOOD_PORT}"):
            nettop.set_filter(text)
        said, others = sent_by(matching), sent_by(other)
        nettop.more_frames(4)
        counted = nettop.total("packets", since=start)
    print(f"counted {counted} of {said.sent} that match, beside {others.sent} that do not")
    assert abs(counted - said.sent) <= 0.005 * said.sent


@pytest.mark.alone
@pytest.mark.timing
def test_a_packet_that_does_not_match_costs_less_than_a_third():
    """By the filter that costs most."""
    cost = str(REPOSITORY / "bench" / "filter_cost.py")
    done = shell.run([interpreter(), cost, "--json", "20 ports"], timeout=110)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["probe"] for row in rows} == {"throughput", "flows"}
    # A packet passes both: throughput alone is so cheap that no filter can be a third of it.
    known = {"probe", "filter", "empty_ns", "no_filter_ns", "matching_ns", "worst_share"}
    matching = sum(row["matching_ns"] for row in rows)
    for kind in rows[0].keys() - known:
        assert sum(row[kind] for row in rows) < matching / 3, (kind, rows)

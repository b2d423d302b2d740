"""The same claims as on a real machine, with smaller traffic, by each mechanism that this kernel has."""

import statistics
import subprocess
import time
from collections.abc import Callable

import ladder
import pytest
from lab import Lab, Link, Nettop, bpf, witness
from lab.program import interpreter
from lab.shell import eventually
from lab.traffic import answering, ask, churn, iperf3, ping
from observed import endpoint, observing
from stagelab import stages
from test_ladder import Ways, tracepoints

TCX = ladder.version() >= (6, 6)
DELAY_MS = 20
CONNECTIONS = 211
TRANSACTIONS = 307
TCP_HEADERS = 66  # Ethernet, IPv4, TCP with time stamps


@pytest.mark.parametrize("via", ["tcx", "clsact"] if TCX else ["clsact"])
def test_bytes_and_packets_beside_iperf3(lab: Lab, veth: Link, via: str) -> None:
    before = witness.netstat(veth.a.ns)
    with observing(lab, veth.a, env={"NETTOP_VIA": via}) as seen:
        result = iperf3(veth.a, veth.b, payload_bytes=20_000_003)
    sent = witness.difference(witness.netstat(veth.a.ns), before)
    seen.agrees()
    for probe in ("throughput", "flows"):
        hooks = {h["hook"]: h["via"] for h in seen.frames[-1]["probes"][probe]["hooks"]}
        assert {hooks["tc_ingress"], hooks["tc_egress"]} == {via}
    (flow,) = result.flows
    row = seen.flow(
        protocol="tcp",
        local=endpoint(flow.local, flow.local_port),
        remote=endpoint(flow.remote, flow.remote_port),
    )
    most = result.sent_bytes + TCP_HEADERS * sent["TcpOutSegs"] + sent["TcpRetransSegs"] * 1514
    assert result.received_bytes <= row["tx_bytes_total"] <= most
    assert seen.total("tx", "segments") == pytest.approx(sent["TcpOutSegs"], rel=0.005)
    assert row["process"]["name"] == "iperf3"
    assert seen.health("lost_events") == seen.health("evicted_flows") == 0


def test_rtt_is_what_netem_delays(lab: Lab, veth: Link) -> None:
    for end in (veth.a, veth.b):
        end.ns.run("tc", "qdisc", "add", "dev", end.name, "root", "netem", "delay", f"{DELAY_MS}ms")
    with observing(lab, veth.a) as seen, answering(veth.b) as server:
        pings = ping(veth.a, veth.b, 31, interval_s=0.02, args=("-e", "4711"))
        ask(veth.a, server, count=43)
    assert pings.received == 31
    rows = (
        seen.rows(protocol="icmp", local=endpoint(veth.a.v4, 4711)),
        seen.rows(protocol="tcp", remote=endpoint(veth.b.v4, server.port)),
    )
    for found, method in zip(rows, ("echo", "timestamp"), strict=True):
        rtt = found[-1]["rtt"]
        assert rtt["method"] == method
        assert rtt["samples_total"] >= 20
        # Never below: what netem holds back is held back.  Above by what the emulated CPU takes.
        assert rtt["min_ns"] >= 2 * DELAY_MS * 1_000_000
        medians = [f["rtt"]["smoothed_ns"] for f in found if f["rtt"]]
        assert statistics.median(medians) < (2 * DELAY_MS + 20) * 1_000_000
    assert pings.min_ns - 5_000_000 < rows[0][-1]["rtt"]["min_ns"] <= pings.max_ns


@pytest.mark.parametrize("via", ["raw_tracepoint", "fentry", "kprobe"])
def test_connections_and_their_processes(lab: Lab, veth: Link, via: str) -> None:
    """Opened, closed, and owned: by tracepoint where the kernel has it, and by function."""
    with observing(lab, veth.a, env={"NETTOP_VIA": via}) as seen, answering(veth.b) as server:
        churn(veth.a, server, CONNECTIONS, at_once=8)
    assert seen.sum("flows_opened") == seen.sum("flows_closed") == CONNECTIONS
    rows = {row["id"]: row for row in seen.rows(protocol="tcp")}
    assert len(rows) == CONNECTIONS
    hooks = {h["hook"]: h["via"] for h in seen.frames[-1]["probes"]["flows"]["hooks"]}
    used = via if via != "raw_tracepoint" or "sock_send_length" in tracepoints() else "fentry"
    assert hooks["sock_send_length"] == hooks["sock_recv_length"] == used
    # Sockets follow one another at the same addresses: each has its own owner all the same.
    assert {(row["process"] or {}).get("name", "")[:6] for row in rows.values()} == {"client"}


@pytest.mark.parametrize("via", ["raw_tracepoint", "tp_btf", "fentry", "kprobe"])
def test_stages_count_the_same_by_each_way(lab: Lab, veth: Link, ways: Ways, via: str) -> None:
    with Nettop(lab, veth.a, "-p", "stages", "-d", "0.5", env={"NETTOP_VIA": via}) as nettop:
        first = len(nettop.wait_frames(1))
        with answering(veth.b) as server:
            assert ask(veth.a, server, count=TRANSACTIONS).transactions == TRANSACTIONS
        nettop.more_frames(3)
        frames = nettop.frames[first:]
    used = {hook["hook"]: hook["via"] for hook in frames[-1]["probes"]["stages"]["hooks"]}
    there = {
        hook: [w.via for w in found if not w.refused]
        for (probe, hook), found in ways.items()
        if probe == "stages"
    }
    assert used == {hook: via if via in vias else vias[0] for hook, vias in there.items()}
    totals = stages(frames)
    for key, total in totals.items():
        print(key, total.count, total.missed, total.via, total.begin, total.end)
    for key in (
        *(("rx", stage) for stage in ("stack", "ip", "local", "transport", "socket", "application")),
        *(("tx", stage) for stage in ("application", "ip", "qdisc", "driver")),
    ):
        # One segment a question and one an answer; the hand-shake and a few ACKs besides.
        assert TRANSACTIONS <= totals[key].count <= TRANSACTIONS + 15, key
        assert totals[key].missed <= 2, key


def leave_clsact(end_run: Callable[..., object], name: str) -> None:
    """Somebody else's clsact and filter, before ours."""
    end_run("tc", "qdisc", "add", "dev", name, "clsact")
    end_run("tc", "filter", "add", "dev", name, "ingress", "prio", "7", "matchall", "action", "continue")


@pytest.mark.parametrize(
    ("via", "foreign"),
    [("", False), ("clsact", True), ("clsact", False), ("fentry", True), ("kprobe", False)],
)
def test_nothing_is_left(lab: Lab, veth: Link, via: str, foreign: bool) -> None:
    if foreign:
        leave_clsact(veth.a.ns.run, veth.a.name)
    before = witness.attached(veth.a)
    with Nettop(lab, veth.a, "-d", "0.5", env={"NETTOP_VIA": via}) as nettop:
        nettop.wait_frames(1)
        during = bpf.held(nettop.pid)
        assert during.programs
        assert witness.attached(veth.a) != before
        outcome = nettop.stop()
    assert (outcome.code, outcome.stderr) == (130, "")
    assert not bpf.remaining(during, timeout=30)
    assert witness.attached(veth.a) == before


def test_nothing_is_left_of_one_that_is_killed(lab: Lab, veth: Link) -> None:
    """The screen's process by SIGKILL: links go with it, and the loader takes its clsact away."""
    before = witness.attached(veth.a)
    with Nettop(lab, veth.a, "-d", "0.5", env={"NETTOP_VIA": "clsact"}) as nettop:
        nettop.wait_frames(1)
        during = bpf.held(nettop.pid)
        nettop.process.popen.kill()
        assert eventually(lambda: witness.attached(veth.a) == before, timeout=30)
    assert not bpf.remaining(during, timeout=30)


def test_start_up_is_quick_the_second_time() -> None:
    """What was compiled is kept: nothing but Python's start and the verifier is left of it."""
    started = time.monotonic()
    done = subprocess.run(
        [interpreter(), "-m", "nettop", "lo", "-b", "--format", "ndjson", "-n", "1", "-d", "0.1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - started < 60

"""The same claims as on a real machine, with smaller traffic: what is counted, and that nothing is left."""

import subprocess
import time
from collections.abc import Callable

import ladder
import pytest
from lab import Lab, Link, Nettop, bpf, oracle
from lab.program import interpreter
from lab.shell import eventually
from lab.traffic import iperf3
from observe import endpoint, observing

TCX = ladder.version() >= (6, 6)
TCP_HEADERS = 66  # Ethernet, IPv4, TCP with time stamps


@pytest.mark.parametrize("via", ["tcx", "clsact"] if TCX else ["clsact"])
def test_bytes_and_packets_beside_iperf3(lab: Lab, veth: Link, via: str) -> None:
    before = oracle.netstat(veth.a.ns)
    with observing(lab, veth.a, env={"NETTOP_VIA": via}) as seen:
        result = iperf3(veth.a, veth.b, payload_bytes=20_000_003)
    sent = oracle.difference(oracle.netstat(veth.a.ns), before)
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


def leave_clsact(end_run: Callable[..., object], name: str) -> None:
    """Somebody else's clsact and filter, before ours."""
    end_run("tc", "qdisc", "add", "dev", name, "clsact")
    end_run("tc", "filter", "add", "dev", name, "ingress", "prio", "7", "matchall", "action", "continue")


@pytest.mark.parametrize(("via", "foreign"), [("", False), ("clsact", True), ("kprobe", False)])
def test_nothing_is_left(lab: Lab, veth: Link, via: str, foreign: bool) -> None:
    if foreign:
        leave_clsact(veth.a.ns.run, veth.a.name)
    before = oracle.attached(veth.a)
    with Nettop(lab, veth.a, "-d", "0.5", env={"NETTOP_VIA": via}) as nettop:
        nettop.wait_frames(1)
        during = bpf.held(nettop.pid)
        assert during.programs
        assert oracle.attached(veth.a) != before
        outcome = nettop.stop()
    assert (outcome.code, outcome.stderr) == (130, "")
    assert not bpf.remaining(during, timeout=30)
    assert oracle.attached(veth.a) == before


def test_nothing_is_left_of_one_that_is_killed(lab: Lab, veth: Link) -> None:
    """The screen's process by SIGKILL: links go with it, and the loader takes its clsact away."""
    before = oracle.attached(veth.a)
    with Nettop(lab, veth.a, "-d", "0.5", env={"NETTOP_VIA": "clsact"}) as nettop:
        nettop.wait_frames(1)
        during = bpf.held(nettop.pid)
        nettop.process.popen.kill()
        assert eventually(lambda: oracle.attached(veth.a) == before, timeout=30)
    assert not bpf.remaining(during, timeout=30)


@pytest.mark.timing
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

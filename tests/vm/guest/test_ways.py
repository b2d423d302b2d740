"""Each mechanism, forced, beside the same traffic: the counts are the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ladder
import pytest
from lab import Lab, Link, Nettop, oracle
from lab.traffic import answering, ask, churn
from observe import Watch
from stagelab import BOTH, softirqs, stages
from test_ladder import Ways

TRANSACTIONS = 307
CONNECTIONS = 101
# By nothing, each hook takes its best way: netfilter and tcx where the kernel has them are tried by all of these.
VIAS = ["tp_btf", "raw_tracepoint", "fentry", "kprobe", "clsact"]


def in_use(ways: Ways, via: str) -> dict[tuple[str, str], str]:
    """By probe and hook: the way that is asked for where it holds, else the best."""
    holding = {key: [way.via for way in found if not way.refused] for key, found in ways.items()}
    return {key: via if via in vias else vias[0] for key, vias in holding.items() if vias}


def said(frame: dict[str, Any]) -> dict[tuple[str, str], str]:
    """The same, as a frame says it."""
    return {
        (name, hook["hook"]): hook["via"]
        for name, probe in frame["probes"].items()
        for hook in probe["hooks"]
    }


@contextmanager
def everything(lab: Lab, link: Link, via: str) -> Iterator[Watch]:
    """nettop with all of its probes at the link's end a."""
    with Nettop(lab, link.a, "-d", "0.5", env={"NETTOP_VIA": via}) as nettop:
        nettop.wait_frames(1)
        yield Watch(nettop, link.a)
        outcome = nettop.stop()
    assert (outcome.code, outcome.stderr) == (130, "")


@pytest.mark.parametrize("via", VIAS)
def test_each_way_counts_the_same(lab: Lab, veth: Link, ways: Ways, via: str) -> None:
    with everything(lab, veth, via) as watch:
        with answering(veth.b) as server:
            with watch.observing() as asked:
                before = oracle.softirqs()
                assert ask(veth.a, server, count=TRANSACTIONS).transactions == TRANSACTIONS
                after = oracle.softirqs()
            with watch.observing() as churned:
                churn(veth.a, server, CONNECTIONS, at_once=8)
        last = watch.nettop.frames[-1]
    assert {name: probe["state"] for name, probe in last["probes"].items()} == dict.fromkeys(
        ladder.all_probes(), "live"
    )
    assert said(last) == in_use(ways, via)

    for seen in (asked, churned):
        seen.agrees(tolerance=0)
        assert seen.health("lost_events") == seen.health("evicted_flows") == 0

    totals = stages(asked.frames)
    for key, total in totals.items():
        print(key, total.count, total.missed, total.via, total.begin, total.end)
    for key in BOTH:
        # One segment a question and one an answer; the hand-shake and a few ACKs besides.
        assert TRANSACTIONS <= totals[key].count <= TRANSACTIONS + 15, key
        assert totals[key].missed <= 2, key

    expected = sum(after["NET_RX"]) - sum(before["NET_RX"])
    wait, run = softirqs(asked.frames, "NET_RX")
    assert expected >= TRANSACTIONS
    # The frames begin a little before the witness looks, and end after it.
    assert expected <= run.count <= 1.1 * expected + 30
    assert wait.count == pytest.approx(run.count, rel=0.02, abs=3)

    assert churned.sum("flows_opened") == churned.sum("flows_closed") == CONNECTIONS
    rows = {
        row["id"]: row for row in churned.rows(protocol="tcp") if row["first_ns"] >= first_ns(churned.frames)
    }
    assert len(rows) == CONNECTIONS
    # Sockets follow one another at the same addresses: each has its own owner all the same.
    assert {(row["process"] or {}).get("name", "")[:6] for row in rows.values()} == {"client"}


def first_ns(frames: list[dict[str, Any]]) -> int:
    """When the first of these frames began, CLOCK_MONOTONIC."""
    return int(frames[0]["monotonic_ns"] - frames[0]["interval_ns"])

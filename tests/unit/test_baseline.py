"""After a reset, totals are those since then; what is of the interval stays as it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from fakes import changed, frame, histogram, traffic

from nettop.analysis.baseline import Baseline
from nettop.core import histogram as hist
from nettop.core.frame import Frame
from nettop.core.histogram import Histogram
from nettop.probes.flows.rows import ROW
from nettop.probes.flows.section import Flows, Rtts, Subnet


def rows(*flows: tuple[int, int, int]) -> np.ndarray:
    """Flows by id, bytes received in all, RTT samples in all."""
    made = np.zeros(len(flows), ROW)
    for row, (identity, received, samples) in zip(made, flows, strict=True):
        row["id"], row["rx_bytes_total"], row["rx_bytes"] = identity, received, 11
        row["rx_retransmits"], row["tx_out_of_order"] = received // 10, received // 5
        row["rtt"]["samples_total"], row["rtt"]["min"], row["rtt"]["samples"] = samples, 77, 3
    return made


def with_flows(section: Flows) -> Frame:
    return replace(frame(), sections={"flows": section})


def flows_of(shown: Frame) -> Flows:
    return shown.sections["flows"]  # type: ignore[return-value]


def test_totals_of_throughput_are_since_then():
    def at(received: int) -> Frame:
        made = traffic(0, received)
        rx = replace(made.sections["throughput"].rx, drops_total=None, errors_total=received // 100, bytes=9)
        return changed(made, "throughput", rx=rx)

    since = Baseline(at(5000))
    section = since(at(7300)).sections["throughput"]
    assert (section.rx.bytes_total, section.rx.errors_total, section.rx.drops_total) == (2300, 23, None)
    assert (section.rx.bytes, section.tx.bytes_total) == (9, 0)
    assert since(at(40)).sections["throughput"].rx.bytes_total == 40, "it started anew"


def test_totals_of_flows_are_since_then_by_id():
    since = Baseline(with_flows(Flows(rows=rows((5, 1000, 10), (3, 200, 4)), opened_total=9, opened=2)))
    now = rows((3, 260, 4), (8, 50, 1), (5, 3000, 17))
    section = flows_of(since(with_flows(Flows(rows=now, opened_total=12, opened=1))))
    assert section.rows["rx_bytes_total"].tolist() == [60, 50, 2000]
    assert section.rows["rx_retransmits"].tolist() == [6, 5, 200]
    assert section.rows["tx_out_of_order"].tolist() == [12, 10, 400]
    assert section.rows["rtt"]["samples_total"].tolist() == [0, 1, 7]
    assert section.rows["rtt"]["samples"].tolist() == [3, 3, 3]
    assert section.rows["rtt"]["min"].tolist() == [77, 77, 77]
    assert section.rows["rx_bytes"].tolist() == [11, 11, 11]
    assert (section.opened_total, section.opened) == (3, 1)
    assert now["rx_bytes_total"].tolist() == [260, 50, 3000]  # what was measured is left alone


def test_no_flows_then_or_now():
    some = with_flows(Flows(rows=rows((5, 1000, 10))))
    none = with_flows(Flows())
    assert flows_of(Baseline(none)(some)).rows["rx_bytes_total"].tolist() == [1000]
    assert len(flows_of(Baseline(some)(none)).rows) == 0


def test_the_least_rtt_of_a_subnet_is_that_of_the_samples_since_then():
    def subnet(rtt: Histogram, overall: int) -> Frame:
        return with_flows(Flows(rtt=Rtts(subnets=(Subnet("10.0.0.0/24", rtt, overall),))))

    since = Baseline(subnet(histogram(900), 500))

    def least(rtt: Histogram, overall: int) -> int | None:
        return flows_of(since(subnet(rtt, overall))).rtt.subnets[0].min_ns

    assert least(histogram(), 500) is None
    bucket = hist.smallest(histogram(4000))
    assert least(histogram(4000, 9000), 500) == bucket
    assert least(histogram(9000), 500) == bucket
    assert least(histogram(400), 401) == 401  # below all before: the kernel's own, exact
    assert least(histogram(4000), 401) == 401
    since = Baseline(with_flows(Flows()))  # a subnet that is new has its own
    assert least(histogram(900), 876) == 876


def test_a_probe_that_comes_later_is_shown_as_it_is():
    assert Baseline(frame())(traffic(0, 77)) == traffic(0, 77)

"""Filters of clsact that somebody deletes under us: on a kernel that has nothing else, and beside TCX, too."""

import signal

from lab import Lab, Link, Nettop, oracle
from observe import counts_pings
from processes import nothing_left

ARGS = ("-d", "1", "-p", "throughput")


def test_filters_that_somebody_deletes_are_put_back(lab: Lab, veth: Link) -> None:
    before = oracle.attached(veth.a)
    with Nettop(lab, veth.a, *ARGS, env={"NETTOP_VIA": "clsact"}) as nettop:
        nettop.wait_frames(1)
        veth.a.ns.run("tc", "qdisc", "del", "dev", veth.a.name, "clsact")
        nettop.noted("somebody took nettop's programs off")
        counts_pings(nettop, veth.a, veth.b)
        with nothing_left(nettop):
            nettop.stop(signal.SIGTERM)
    assert oracle.attached(veth.a) == before

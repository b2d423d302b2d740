"""The lab: networks of known behaviour, made of namespaces, for tests, benchmarks and the demonstration.

    with Lab() as lab:
        link = lab.veth()                                   # two namespaces joined by a veth pair
        with Nettop(lab, link.a) as nettop:                 # watches link.a from inside its namespace
            nettop.wait_frames(1)
            result = iperf3(client=link.a, server=link.b, seconds=2)

Nothing here imports nettop: it is run as a program, as a user runs it. Every resource carries the name of the
run that made it (see `names`), goes when the `Lab` closes, and is swept by the next run if this one was
killed. The lab touches no interface that it did not make: see `Lab.check`.
"""

from lab.core import Lab, Link, Router
from lab.errors import LabError, NotOursError
from lab.names import sweep
from lab.namespace import Endpoint, Namespace
from lab.program import Nettop, Outcome, run_nettop
from lab.wire import Direction, Wire

__all__ = [
    "Direction",
    "Endpoint",
    "Lab",
    "LabError",
    "Link",
    "Namespace",
    "Nettop",
    "NotOursError",
    "Outcome",
    "Router",
    "Wire",
    "run_nettop",
    "sweep",
]

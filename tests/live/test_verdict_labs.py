"""Each verdict where it is the truth, for what needs a lab of its own; once each.

The labs are those of verdict_labs.py, of which verdict_matrix.py judges each twenty times.
"""

import re

import pytest
from verdict_labs import HEALTHY, LATE, TROUBLES, Kind, Verdict, scene

pytestmark = pytest.mark.timing  # delays by the wall clock, on a machine that others use

TROUBLED = (
    "answers after 30 ms, there; connection older than nettop",
    "download through 10 Mb/s at the far end",
    "download over 20 ms each way",
    "UDP receive buffer full here",
    "refused",
    "accept queue full",
)
WELL = (
    "typing, delayed ACKs",
    "jitter of a radio",
    "reordered, not lost",
    "a small window by choice",
    "half closed",
)


def the(name: str) -> Kind:
    return next(kind for kind in (*TROUBLES, *LATE, *HEALTHY) if kind.name == name)


def judged(kind: Kind) -> Verdict:
    """The verdict on it, asked once; it is one of those that are right."""
    with scene(kind) as judge:
        found = judge()
    print(found["verdict"], found["headline"], *found["reasons"], sep="\n  ")
    assert found["verdict"] in kind.right
    return found


@pytest.mark.parametrize("name", TROUBLED)
def test_trouble(name: str) -> None:
    judged(the(name))


def test_a_syn_that_icmp_rejects_is_sent_once_and_icmp_is_said_to_be_unseen() -> None:
    """The wire takes 5 ms: at once, within connect(), the kernel would let the error pass and send a second SYN."""
    found = judged(the("rejected by ICMP"))
    assert "did not answer one SYN, and this host sent no other" in found["headline"]
    assert any("ICMP error" in reason and "would not show" in reason for reason in found["reasons"])


@pytest.mark.parametrize(
    ("name", "who"),
    [("first SYN lost, from here", "this host"), ("first SYN lost, from there", "the far end")],
)
def test_a_syn_that_was_lost_is_said_of_the_connection_that_came_about(name: str, who: str) -> None:
    """The second SYN comes after 1 s (RFC 6298), and frames every 0.2 s: the last one before it has that age."""
    found = judged(the(name))
    assert found["also"] == []
    (said,) = (reason for reason in found["reasons"] if "handshake" in reason)
    late = re.fullmatch(
        rf"a late handshake: after ([\d.]+) (ms|s) {who} had sent 1 SYN, and nothing had come back", said
    )
    assert late is not None, said
    assert 0.7 < float(late[1]) / (1000 if late[2] == "ms" else 1) < 1.1


def test_a_wire_that_becomes_longer_by_the_far_ends_clock() -> None:
    """Of 40 ms more, 20 are on the way back; the wire was told so."""
    found = judged(the("echo, and the wire goes from 2 to 22 ms each way"))
    back = next(r for r in found["reasons"] if "way back alone" in r)
    milliseconds = re.search(r"alone is ([\d.]+) ms", back)
    assert milliseconds is not None
    assert float(milliseconds[1]) == pytest.approx(20, abs=4)


@pytest.mark.parametrize("name", WELL)
def test_nothing_is_wrong(name: str) -> None:
    found = judged(the(name))
    assert found["also"] == []

"""A flow goes on while nettop does not see it: what comes next may answer what was sent meanwhile."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from driven import Driven
from lab import Lab, Link
from rtts import MS, Talk, play_all

APART = 30  # ms, as test_rtt_methods.py has it
ROUND_TRIP = 20
HIDDEN = ("udp", "udp port 9", "udp port 10")


def filters(count: int) -> Callable[[Lab, Link, Driven], None]:
    """So many filters, one after the other, that leave TCP out; then none."""

    def change(lab: Lab, link: Link, nettop: Driven) -> None:
        for text in (*HIDDEN[:count], ""):
            nettop.set_filter(text)

    return change


def come_back(lab: Lab, link: Link, nettop: Driven) -> None:
    """The interface goes, and comes again under its name."""
    lab.delete_interface(link.a)
    nettop.wait_note("gone")
    lab.recreate(link)
    nettop.wait_note("came back")


# Filters have one of four numbers: after three that leave the flow out, no filter has that of the beginning again.
CHANGES = {"one filter": filters(1), "three filters": filters(3), "another interface": come_back}


def before(talk: Talk) -> Talk:
    """A conversation whose round trip takes 20 ms; it was there already, so that is measured once."""
    return (
        talk.near(seq=1, ack=1, length=100, stamp=5, echo=0)
        .far(ROUND_TRIP, seq=1, ack=101, stamp=40, echo=5)
        .near(APART, seq=101, ack=1, length=100, stamp=45, echo=40)
        .far(ROUND_TRIP, seq=1, ack=201, stamp=70, echo=45)
    )


def after(talk: Talk, stamp: int) -> Talk:
    """The same later.  What is seen first was sent 18 ms ago already, and its answer is to that; the next is timed."""
    return (
        talk.near(seq=201, ack=1, length=100, stamp=stamp, echo=70)
        .far(ROUND_TRIP - 18, seq=1, ack=301, stamp=stamp + 2, echo=stamp)
        .near(APART, seq=301, ack=1, length=100, stamp=stamp + 32, echo=stamp + 2)
        .far(ROUND_TRIP, seq=1, ack=401, stamp=stamp + 50, echo=stamp + 32)
    )


@pytest.fixture(scope="module")
def station() -> Iterator[tuple[Lab, Link, Driven]]:
    with Lab() as lab:
        link = lab.veth()
        with Driven(link.a, probes="flows") as nettop:
            yield lab, link, nettop


_numbers = iter(range(60))


@pytest.mark.parametrize("how", CHANGES)
def test_what_was_sent_unseen_makes_no_round_trip_too_short(
    station: tuple[Lab, Link, Driven], how: str
) -> None:
    """With timestamps, and without: by sequence numbers the first segment that is seen was sent again."""
    lab, link, nettop = station
    kinds = [(next(_numbers), stamps) for _ in range(5) for stamps in (True, False)]
    pairs = [[Talk(link, number).with_(stamps=stamps) for _ in range(2)] for number, stamps in kinds]
    first = play_all(lab, [before(one) for one, _ in pairs])
    nettop.more_frames(2)
    assert all(row_of(nettop, one)["rtt"]["samples_total"] == 1 for one, _ in pairs)
    CHANGES[how](lab, link, nettop)
    second = play_all(lab, [after(two, 5000) for _, two in pairs])
    nettop.more_frames(2)
    for (one, _), early, late in zip(pairs, first, second, strict=True):
        rtt = row_of(nettop, one)["rtt"]
        truth = (early[3] - early[2], late[3] - late[2])
        assert rtt["samples_total"] == len(truth), (rtt, truth)
        assert abs(rtt["min_ns"] - min(truth)) < MS / 2, (rtt, truth)
        assert abs(rtt["last_ns"] - truth[-1]) < MS / 2, (rtt, truth)


def row_of(nettop: Driven, talk: Talk) -> dict[str, Any]:
    (row,) = (r for r in nettop.frames[-1]["flows"] if r["remote"].startswith(f"{talk.far_address}:"))
    return row

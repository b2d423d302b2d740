"""What came of a connection, judged by its row alone: its state and its packets, however few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nettop.core import units
from nettop.probes.flows.constants import (
    FLAG_MIDWAY,
    FLAG_OPENED_BY_LOCAL,
    PROTOCOLS,
    STATE_OPEN,
    STATE_RESET,
    STATE_SYN,
    STATES,
    both_ways,
)

REFUSED, UNANSWERED, NOT_ACCEPTED = "refused", "unanswered", "not accepted"
SYNS = 2  # asked again, and still no answer
GAVE_UP_NS = 3_000_000_000  # a second SYN comes after 1 s (RFC 6298), with older stacks after 3 s
BARE = 90  # bytes a packet at most: SYNs, ACKs and RSTs alone
UNSEEN_ICMP = "an ICMP error (rejected, unreachable) would not show: it is no packet of this flow"


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that holds: its verdict, the sentence, the figures behind it, and the parts that it speaks of."""

    verdict: str
    headline: str
    reasons: tuple[str, ...]
    culprits: tuple[str, ...] = ()


def times(count: int) -> str:
    """How often, in words."""
    return "once" if count == 1 else f"{units.count(count)} times"


def _packets(row: Any) -> tuple[bool, int, int]:
    """Whether this host asked, as far as is known; packets of who asked, and of who answered."""
    ours = bool(int(row["flags"]) & FLAG_OPENED_BY_LOCAL)
    received, sent = both_ways(row, "packets_total")
    return (True, sent, received) if ours else (False, received, sent)


def no_connection(row: Any, now_ns: int = 0) -> Finding | None:
    """No connection has come about, or it was refused: judged by state and packets, however few.

    ``now_ns``: CLOCK_MONOTONIC, for a SYN that is not sent again; 0 where it is not known.  A flow holds TCP's packets
    alone: an ICMP error that rejects a SYN is not among them, and silence may be one.
    """
    if row["protocol"] != PROTOCOLS["tcp"]:
        return None
    state, flags = int(row["state"]), int(row["flags"])
    ours, asked, answered = _packets(row)
    who, other = ("this host", "the far end") if ours else ("the far end", "this host")
    if state == STATE_SYN and asked >= SYNS and not answered:
        sent = f"{who} sent a SYN {times(asked)}; no SYN-ACK and no RST came back"
        return Finding(UNANSWERED, f"{other} does not answer: no connection", (sent, UNSEEN_ICMP))
    silent = now_ns - int(row["last"])
    if state == STATE_SYN and asked and not answered and now_ns and silent > GAVE_UP_NS:
        return Finding(
            UNANSWERED,
            f"{other} did not answer one SYN, and {who} sent no other: no connection",
            (
                f"it is {units.duration(silent)} ago, and TCP sends the second after 1 s: it was given up",
                UNSEEN_ICMP,
            ),
        )
    if flags & FLAG_MIDWAY:
        return None  # how it began was not seen
    # A SYN-ACK would have given a round trip: then what was reset is a connection.
    if state == STATE_RESET and answered == 1 and not row["rtt" if ours else "internal_rtt"]["samples_total"]:
        reset = f"{who} sent a SYN, and a RST came back"
        return Finding(REFUSED, f"{other} refuses the connection", (reset,))
    again = int(row["rx_retransmits" if ours else "tx_retransmits"])
    size = int(row["rx_bytes_total" if ours else "tx_bytes_total"])
    if again < SYNS or size > BARE * answered or answered > 2 * (again + 1):
        return None
    if state == STATE_SYN:
        return Finding(
            UNANSWERED,
            f"{who} does not complete the handshake: no connection",
            (f"{other} sent its SYN-ACK again {times(again)}, and no ACK came",),
        )
    if state == STATE_OPEN:
        return Finding(
            NOT_ACCEPTED,
            f"{other} does not accept the connection: it goes on with its SYN-ACK",
            (
                f"{times(again)} sent again, and not one packet with data: its accept queue is full, or the last ACK "
                "of the handshake does not reach it",
            ),
        )
    return None


def state_words(row: Any) -> tuple[str, int]:
    """A flow's state in a word for the table, and how many times what it names was sent, where that says more."""
    state = STATES[int(row["state"])]
    ours, asked, answered = _packets(row)
    if row["state"] == STATE_SYN and not answered:
        return state, asked
    found = no_connection(row)
    if found is None:
        return state, 1
    if found.verdict == REFUSED:
        return found.verdict, 1
    return "synack", int(row["rx_retransmits" if ours else "tx_retransmits"]) + 1

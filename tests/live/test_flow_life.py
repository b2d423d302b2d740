"""How flows begin and end: by what both ends say, mirrored, reset by strangers, expired."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flow_table import FlowMaps
from lab import Lab, Nettop, packets
from lab.packets import ACK, FIN, RST, SYN
from lab.traffic import answering, ask
from observe import Station, watching
from rtts import MS, Lookups, Row, Script, Talk, play_all

from nettop.bpf import syscall
from nettop.bpf.layout import dtype_of
from nettop.collect.opening import run_with
from nettop.loader.mechanisms import MECHANISMS
from nettop.probes.flows.constants import FLAG_CLOSED, FLAG_FIN_SENT, FLAG_MIDWAY, FLAG_REPLIED, FLAG_TCP
from nettop.probes.flows.fold import _due, _expiring
from nettop.probes.flows.probe import PROBE


@pytest.fixture(scope="module")
def station() -> Iterator[Station]:
    with Lab() as lab:
        link = lab.veth()
        with watching(lab, link.a, probes="flows") as watch:
            yield Station(lab, link, watch)


_numbers = iter(range(200))


def played(station: Station, *scripts: Script) -> tuple[list[Row], Any, list[list[int]]]:
    """The flows that these scripts made, one row each as last seen, what was observed, and the times."""
    with station.watch.observing() as seen:
        times = play_all(station.lab, scripts)
    addresses = [f"{script.far_address}:" for script in scripts]
    rows = {row["id"]: row for row in seen.rows() if row["remote"].startswith(tuple(addresses))}
    return list(rows.values()), seen, times


def talk(station: Station) -> Talk:
    return Talk(station.link, next(_numbers))


def established(station: Station) -> Talk:
    return (
        talk(station)
        .open()
        .near(5, seq=1, ack=1, length=100, stamp=9, echo=0)
        .far(5, seq=1, ack=101, stamp=9)
    )


# RST


def test_a_rst_within_the_window_ends_a_flow(station: Station) -> None:
    (row,), seen, _ = played(station, established(station).far(5, seq=1, flags=RST))
    assert (row["state"], seen.sum("flows_opened"), seen.sum("flows_closed")) == ("reset", 1, 1)


@pytest.mark.parametrize("seq", [-2_000_000_000, -1, 200_000], ids=["far", "below", "beyond"])
def test_a_rst_outside_the_window_ends_nothing(station: Station, seq: int) -> None:
    script = (
        established(station).far(5, seq=seq, flags=RST).near(5, seq=101, ack=1, length=7, stamp=20, echo=9)
    )
    (row,), seen, _ = played(station, script)
    assert (row["state"], seen.sum("flows_opened"), seen.sum("flows_closed")) == ("open", 1, 0)
    assert row["retransmits_total"] == row["loss"]["uncertain_total"] == 0


def test_a_connection_that_goes_on_after_a_rst_is_no_closed_one(station: Station) -> None:
    script = (
        established(station).far(5, seq=1, flags=RST).near(5, seq=101, ack=1, length=10, stamp=20, echo=9)
    )
    # What the other end says proves nothing: it may not have heard. The one that seemed to have sent it goes on.
    (row,), _, _ = played(station, script)
    assert row["state"] == "reset"
    script = established(station).far(5, seq=1, flags=RST).far(5, seq=1, ack=101, length=10, stamp=30, echo=9)
    (row,), seen, _ = played(station, script)
    assert (row["state"], seen.frames[-1]["flows_closed_total"] - seen.frames[0]["flows_closed_total"]) == (
        "open",
        0,
    )


def test_a_refused_connection_is_reset(station: Station) -> None:
    script = talk(station).near(seq=0, flags=SYN).far(5, seq=-5000, ack=1, flags=RST | ACK)
    (row,), seen, _ = played(station, script)
    assert (row["state"], seen.sum("flows_closed")) == ("reset", 1)


# SYN


def test_a_syn_into_a_live_flow_that_is_challenged_changes_nothing(station: Station) -> None:
    script = established(station).near(5, seq=900_000, flags=SYN).far(5, seq=1, ack=101, stamp=30, echo=9)
    script.near(5, seq=101, ack=1, length=50, stamp=40, echo=30).far(5, seq=1, ack=151, stamp=45, echo=40)
    (row,), seen, _ = played(station, script)
    assert (row["state"], seen.sum("flows_opened"), seen.sum("flows_closed")) == ("open", 1, 0)
    assert row["tx_packets_total"] == 5
    assert row["retransmits_total"] == row["loss"]["uncertain_total"] == row["out_of_order_total"] == 0


def test_a_syn_into_a_live_flow_that_is_answered_begins_another(station: Station) -> None:
    script = established(station).near(5, seq=900_000, flags=SYN)
    script.far(20, seq=700_000, ack=900_001, flags=SYN | ACK).near(5, seq=900_001, ack=700_001)
    rows, seen, (times,) = played(station, script)
    last = max(rows, key=lambda row: row["id"])
    assert len(rows) <= 2
    assert (last["state"], seen.sum("flows_opened"), seen.sum("flows_closed")) == ("open", 2, 1)
    assert (last["tx_packets_total"], last["rx_packets_total"], last["opened_by"]) == (2, 1, "local")
    assert abs(last["rtt"]["last_ns"] - (times[6] - times[5])) < MS / 2
    assert last["rtt"]["samples_total"] == 1


# Strays


@pytest.mark.parametrize(
    "flags", [SYN | ACK, ACK, RST, FIN | ACK, RST | ACK], ids=["syn-ack", "ack", "rst", "fin", "rst-ack"]
)
def test_what_nobody_answers_is_never_open(station: Station, flags: int) -> None:
    scripts = [talk(station) for _ in range(7)]
    for script in scripts:
        script.far(seq=77, ack=99, flags=flags).far(5, seq=77, ack=99, flags=flags)
    rows, seen, _ = played(station, *scripts)
    assert len(rows) == 7
    assert {row["state"] for row in rows} == {"unreplied"}
    assert seen.sum("flows_closed") == 0


def test_a_stray_that_is_answered_by_a_rst_is_reset(station: Station) -> None:
    script = talk(station).far(seq=77, ack=99, flags=ACK).near(1, seq=99, flags=RST)
    (row,), seen, _ = played(station, script)
    assert (row["state"], seen.sum("flows_opened"), seen.sum("flows_closed")) == ("reset", 1, 1)


def test_a_connection_from_before_is_open_when_both_ends_have_spoken(station: Station) -> None:
    script = talk(station).far(seq=77, ack=99, length=10)
    (row,), _, _ = played(station, script)
    assert row["state"] == "unreplied"
    script = talk(station).far(seq=77, ack=99, length=10).near(5, seq=99, ack=87)
    (row,), _, _ = played(station, script)
    assert row["state"] == "open"


# Mirrors


def test_both_directions_on_one_hook_are_one_flow(station: Station) -> None:
    """As a port mirror gives them: all of it comes in."""
    script, lookups = established(station), Lookups(station.link, next(_numbers)).ask(7).answer(7, 20)
    script.near(40, seq=101, ack=1, length=10, stamp=60, echo=9).far(20, seq=1, ack=111, stamp=80, echo=60)
    mirrored = []
    for one in (script, lookups):
        one.steps = [packets.Step(station.link.b, step.frame, step.wait_s) for step in one.steps]
        mirrored.append(one)
    _, seen, times = played(station, *mirrored)
    assert seen.sum("flows_opened") == 2
    # The first packet says who is remote: it came in.
    tcp, udp = (
        next(row for row in reversed(seen.rows()) if row["local"].startswith(f"{one.far_address}:"))
        for one in mirrored
    )
    assert (tcp["rx_packets_total"], tcp["tx_packets_total"]) == (4, 3)
    assert (udp["rx_packets_total"], udp["tx_packets_total"]) == (1, 1)
    assert tcp["state"] == "open"
    assert abs(tcp["internal_rtt"]["last_ns"] - (times[0][6] - times[0][5])) < MS / 2
    assert abs(udp["internal_rtt"]["last_ns"] - (times[1][1] - times[1][0])) < MS / 2


def test_loopback_has_each_connection_from_both_ends(lab: Lab) -> None:
    link = lab.veth()
    link.a.ns.run("ip", "link", "set", "lo", "up")
    port_rows: dict[str, set[int]] = {}
    with (
        Nettop(lab, link.a.ns, "-d", "0.25", "-p", "flows", interface="lo") as nettop,
        answering(link.a) as server,
    ):
        nettop.wait_frames(2, timeout=60)
        ask(link.a, server, flows=3, count=301)
        nettop.more_frames(3)
    for row in (row for frame in nettop.frames for row in frame["flows"]):
        for end in ("local", "remote"):
            if row[end].endswith(f":{server.port}"):
                port_rows.setdefault(end, set()).add(row["id"])
                assert abs(row["tx_packets_total"] - row["rx_packets_total"]) < 220
    assert {end: len(ids) for end, ids in port_rows.items()} == {"local": 3, "remote": 3}


# Expiry, in the kernel


class Table(FlowMaps):
    """The flow table, with room so that none is evicted, and what takes flows out of it."""

    def __init__(self, cache: Path) -> None:
        super().__init__(cache, 65536)
        self.key = next(dtype_of(m.key_layout) for m in self.made.maps if m.name == "flows")
        (attachment,) = next(h for h in PROBE.hooks if h.name == "expire").candidates[0].attachments
        self.program = self.load(MECHANISMS["prog_run"].program, attachment.program)

    def put(self, number: int, flags: int, age_s: float, now: int, flow: int = 0) -> None:
        """A flow, whose id is its number where none is given."""
        value = np.zeros(1, self.layouts["flows"])
        value["id"], value["flags"], value["last"] = flow or number, flags, now - int(age_s * 1e9)
        syscall.map_update(self.fds["flows"], self.keys([number]).tobytes(), value.tobytes())

    def expire(self, numbers: Iterable[int], read_at: int) -> None:
        """What nettop does where it has found these due in its reading of that time."""
        found = np.array(list(numbers), np.uint64)
        for value in _expiring(self.keys(found), found, read_at, self.layouts["due"]):
            run_with(self.fds["due"], self.program, value)

    def has(self, number: int) -> bool:
        return self.flow(self.keys([number]).tobytes()) is not None

    def counters(self) -> dict[str, int]:
        return {name: self.count(name) for name in ("expired", "idle")}

    def keys(self, numbers: Any) -> Any:
        made = np.zeros(len(numbers), self.key)
        made["local_port"], made["protocol"] = numbers, 6
        return made


@pytest.fixture
def table(cache: Path) -> Iterator[Table]:
    made = Table(cache)
    yield made
    made.close()


OPEN = FLAG_TCP | FLAG_REPLIED
LIVES = {
    1: (OPEN | FLAG_CLOSED, 5.1, False),
    2: (OPEN | FLAG_CLOSED, 4.0, True),
    3: (FLAG_TCP | FLAG_MIDWAY, 30.1, False),
    4: (FLAG_TCP | FLAG_MIDWAY, 29.0, True),
    5: (OPEN, 3600.1, False),
    6: (OPEN, 3590.0, True),
    7: (OPEN | FLAG_FIN_SENT, 120.1, False),
    8: (0, 120.1, False),
    9: (0, 119.0, True),
}


def test_the_kernel_expires_what_the_screen_thinks_is_due(table: Table) -> None:
    now = int(5000e9)  # whatever the clock says: the reading's time decides
    for number, (flags, age, _) in LIVES.items():
        table.put(number, flags, age, now)
    table.expire(LIVES, now)  # all of them: it decides
    assert {number: table.has(number) for number in LIVES} == {n: stays for n, (*_, stays) in LIVES.items()}
    assert table.counters() == {"expired": 5, "idle": 4}
    values = np.zeros(len(LIVES), table.layouts["flows"])
    for place, (flags, age, _) in enumerate(LIVES.values()):
        values["flags"][place], values["last"][place] = flags, now - int(age * 1e9)
    assert [int(n) + 1 for n in _due(values, now)] == [n for n, (*_, stays) in LIVES.items() if not stays]


def test_a_flow_that_came_back_after_it_was_read_stays(table: Table) -> None:
    """The ports are used again between the reading of the table and the expiry: what is deleted is what is due then."""
    now = time.monotonic_ns()
    for number in range(1, 1000):
        table.put(number, OPEN | FLAG_CLOSED, 5.5, now)
    for number in range(1, 1000, 2):  # after the screen has seen all of them due
        table.put(number, OPEN, 0.0, time.monotonic_ns())
    table.put(500, OPEN | FLAG_CLOSED, 5.5, now, flow=5000)  # another one, which no frame has shown
    table.expire(range(1, 1000), now)
    assert [number for number in range(1, 1000) if table.has(number)] == sorted([*range(1, 1000, 2), 500])
    assert table.counters() == {"expired": 498, "idle": 0}


def test_a_flow_that_closed_after_the_reading_stays_until_it_is_read(table: Table) -> None:
    """A machine that stood still for ten seconds between the two: what no frame has shown is not thrown away."""
    now = time.monotonic_ns()
    read_at = now - int(10e9)
    table.put(1, OPEN | FLAG_CLOSED, 15.1, now)  # and read as it is
    table.put(2, OPEN | FLAG_CLOSED, 14.9, now)  # read too, and not due then
    table.put(3, OPEN | FLAG_CLOSED, 9.0, now)
    table.expire((1, 2, 3), read_at)
    assert [table.has(number) for number in (1, 2, 3)] == [False, True, True]
    table.expire((1, 2, 3), now)
    assert [table.has(number) for number in (1, 2, 3)] == [False, False, False]

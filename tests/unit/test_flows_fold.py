"""The fold of flows, on readings made by hand: differences between scans, RTT, histograms, what is deleted."""

from typing import Any

import numpy as np
import pytest
from fakes import packed
from lab import layouts

from nettop.core import histogram as hist
from nettop.core.histogram import SLOTS
from nettop.probes.base import Array, Folded, Reads, Setup
from nettop.probes.flows import constants
from nettop.probes.flows.constants import (
    FLAG_CLOSED,
    FLAG_FIN_SENT,
    FLAG_MIDWAY,
    FLAG_OPENED_BY_LOCAL,
    FLAG_REPLIED,
    FLAG_RESET,
    FLAG_SYN,
    FLAG_TCP,
    LEG_EXTERNAL,
    LEG_INTERNAL,
    METHODS,
    STATES,
    states,
)
from nettop.probes.flows.fold import MAX_SAMPLES, FlowsFold
from nettop.probes.flows.rows import spinning
from nettop.probes.flows.scan import MAX_ROWS
from nettop.probes.flows.section import OTHERS, Flows

LAYOUTS = layouts.of("flows")
FLOW, FLOW_KEY = LAYOUTS["flows"]
SUBNET, SUBNET_KEY = LAYOUTS["subnets"]
OWNER, COUNTERS, HIST, EVENT, CONFIG, FOCUSED, DUE = (
    LAYOUTS[name].value for name in ("owners", "counters", "rtts", "events", "config", "focused", "due")
)
DUE_FLOWS = DUE["of"].shape[0]
S = 1_000_000_000
MS = 1_000_000
CPUS = 2


def words(address: str) -> Array:
    """An address as keys have it."""
    return np.frombuffer(packed(address), np.uint32)


OPEN = FLAG_TCP | FLAG_REPLIED


class Kernel:
    """The maps of flows.c, as a test fills them."""

    def __init__(self) -> None:
        self.now_ns = 1000 * S
        self.keys = np.zeros(0, FLOW_KEY)
        self.values = np.zeros(0, FLOW)
        self.counters = np.zeros((1, CPUS), COUNTERS)
        self.rtts = np.zeros((3, CPUS), HIST)
        self.subnet_keys = np.zeros(0, SUBNET_KEY)
        self.subnets = np.zeros(0, SUBNET)
        self.events = np.zeros(0, EVENT)
        self.focus = 0  # the flow in focus, by its id
        self.fold = FlowsFold(
            Setup("eth0", CPUS, hooks={"expire": "prog_run"}, layouts=layouts.values("flows"))
        )

    def flow(self, number: int, protocol: int = 6, remote_port: int = 80) -> Array:
        """A new flow, open and just used; its id is its number."""
        key, value = np.zeros(1, FLOW_KEY), np.zeros(1, FLOW)
        key["local"], key["remote"] = words("10.0.0.1"), words(f"10.0.{number >> 8}.{number & 255}")
        key["local_port"], key["remote_port"], key["protocol"] = 40_000, remote_port, protocol
        value["id"], value["first"], value["last"] = number, self.now_ns, self.now_ns
        value["flags"] = OPEN if protocol == 6 else 0
        self.keys, self.values = np.concatenate([self.keys, key]), np.concatenate([self.values, value])
        self.counters["created"][0, number % CPUS] += 1
        return self.of(number)

    def of(self, number: int) -> Array:
        """A flow's entry, to be changed in place."""
        (place,) = np.flatnonzero(self.values["id"] == number)
        return self.values[place : place + 1]

    def subnet(self, prefix: str, length: int, version: int = 4) -> Array:
        """A new subnet's entry, to be changed in place until the next one is made."""
        key = np.zeros(1, SUBNET_KEY)
        key["prefix"], key["length"], key["version"] = words(prefix), length, version
        self.subnet_keys = np.concatenate([self.subnet_keys, key])
        self.subnets = np.concatenate([self.subnets, np.zeros(1, SUBNET)])
        return self.subnets[-1:]

    def scan(self, seconds: float = 1.0, without: tuple[str, ...] = ()) -> Folded:
        """What a reading gives, so long after the one before; what the fold has expire goes from the table."""
        self.now_ns += int(seconds * S)
        config = np.zeros(1, CONFIG)
        config["focus"] = self.focus
        maps = {
            "counters": self.counters,
            "flows": (self.keys, self.values),
            "owners": (np.zeros(0, FLOW_KEY), np.zeros(0, OWNER)),
            "rtts": self.rtts,
            "subnets": (self.subnet_keys, self.subnets),
            "events": self.events,
            "config": config,
            "focused": np.zeros(1, FOCUSED),
        }
        maps = {name: value for name, value in maps.items() if name not in without}
        folded = self.fold(Reads(self.now_ns, int(seconds * S), maps, {}))
        for value in folded.run.get("expire", ()):
            self.expire(np.frombuffer(value, DUE)[0])
        self.events = np.zeros(0, EVENT)
        return folded

    def expire(self, due: Array) -> None:
        """What flows_expire does, where none has come back."""
        assert int(due["read_at"]) == self.now_ns
        listed = due["of"][: int(due["count"])]
        kept = ~np.isin(self.values["id"], listed["id"])
        assert listed["key"].tobytes() == self.keys[~kept].tobytes()
        gone = self.values[~kept]
        self.counters["expired"][0, 0] += len(gone)
        self.counters["idle"][0, 0] += np.count_nonzero(gone["flags"] & np.uint64(FLAG_CLOSED) == 0)
        self.keys, self.values = self.keys[kept], self.values[kept]

    def section(self, seconds: float = 1.0) -> Flows:
        return self.scan(seconds).section  # type: ignore[return-value]

    def between(self, seconds: float = 1.0) -> Flows:
        """The section of a frame for which the table was not read (--scan-interval)."""
        return self.scan(seconds, ("flows", "owners")).section  # type: ignore[return-value]

    def row(self) -> dict[str, Any]:
        """The only flow of another scan as JSON has it."""
        (found,) = self.section().in_frame(10, "rate")["flows"]
        return found  # type: ignore[no-any-return]


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def row(section: Flows, number: int) -> Any:
    (found,) = section.rows[section.rows["id"] == number]
    return found


# Two scans


def test_counts_are_of_the_interval_and_totals_of_the_flow(kernel: Kernel) -> None:
    value = kernel.flow(7)
    value["dir"]["bytes"] = [1000, 200]
    value["dir"]["packets"] = [10, 2]
    kernel.section()
    value = kernel.of(7)
    value["dir"]["bytes"] += np.array([[37, 11]], np.uint64)
    value["dir"]["packets"] += np.array([[3, 1]], np.uint64)
    found = row(kernel.section(), 7)

    assert (found["rx_bytes"], found["tx_bytes"], found["rx_packets"], found["tx_packets"]) == (37, 11, 3, 1)
    assert (found["rx_bytes_total"], found["tx_bytes_total"]) == (1037, 211)


def test_frames_between_two_scans_carry_the_rows_of_the_last_and_say_so(kernel: Kernel) -> None:
    kernel.flow(7)
    kernel.section()
    kernel.of(7)["dir"]["bytes"] = [[600, 0]]
    first = kernel.section(seconds=3)
    kernel.of(7)["dir"]["bytes"] = [[1500, 0]]
    carried = [kernel.between(0.5) for _ in range(5)]
    last = kernel.section(0.5)

    assert (first.interval_ns, first.age_ns, row(first, 7)["rx_bytes"]) == (3 * S, 0, 600)
    for number, section in enumerate(carried, 1):
        assert (section.age_ns, section.interval_ns) == (number * S // 2, 3 * S)
        assert row(section, 7)["rx_bytes"] == 600
        assert section.total == 1
    # Over all of the three seconds, not over the half of one since the frame before.
    assert (last.interval_ns, last.age_ns, row(last, 7)["rx_bytes"]) == (3 * S, 0, 900)


def test_counters_histograms_and_samples_go_on_between_two_scans(kernel: Kernel) -> None:
    kernel.flow(7)
    kernel.section()
    kernel.counters["opened"][0] = [5, 6]
    kernel.counters["created"][0] += np.array([5, 6], np.uint64)
    kernel.rtts["slots"][LEG_EXTERNAL, 0, 100] = 17
    section = kernel.between()

    assert (section.opened, section.rtt.outward.count, section.total) == (11, 17, 1)
    # Created and not read yet is not evicted.
    assert section.evicted == 0
    assert kernel.between().opened == 0


def test_what_the_kernel_has_expired_is_told_once(kernel: Kernel) -> None:
    kernel.flow(7, protocol=17)
    kernel.section()
    assert list(kernel.scan(200).run) == ["expire"]
    between = kernel.scan(1, ("flows", "owners"))
    assert (between.section.expired, between.run) == (1, {})  # type: ignore[attr-defined]
    assert (kernel.section().expired, kernel.section().evicted) == (0, 0)


def test_joining_a_hundred_thousand_flows_agrees_with_a_dictionary(kernel: Kernel) -> None:
    """In any order; a new flow counts from nothing."""
    random = np.random.default_rng(11)
    table: dict[int, int] = {}
    ids = random.permutation(150_000)[:100_000].astype(np.uint64) + np.uint64(1)
    for _ in range(3):
        keys, values = np.zeros(len(ids), FLOW_KEY), np.zeros(len(ids), FLOW)
        values["id"], values["last"] = ids, kernel.now_ns
        values["dir"]["bytes"][:, 0] = [table.get(int(n), 0) + int(n) % 1009 for n in ids]
        kernel.keys, kernel.values = keys, values
        section = kernel.section()
        assert section.total == len(ids)
        assert MAX_ROWS // 5 <= len(section.rows) <= MAX_ROWS
        assert (section.rows["rx_bytes"] == section.rows["id"] % 1009).all()
        # The largest is among them, wherever it was.
        assert section.rows["rx_bytes"].max() == 1008
        table = dict(zip(map(int, ids), map(int, values["dir"]["bytes"][:, 0]), strict=True))
        random.shuffle(ids)
        ids = np.concatenate([ids[:60_000], np.arange(40_000, dtype=np.uint64) + ids.max() + np.uint64(1)])


def test_another_connection_with_the_same_ports_starts_anew(kernel: Kernel) -> None:
    value = kernel.flow(5)
    value["dir"]["bytes"], value["rtt"]["samples"] = [[1000, 1000]], [[20, 0]]
    kernel.section()
    value = kernel.of(5)
    value["id"], value["dir"]["bytes"], value["rtt"]["samples"] = 6, [[11, 0]], [[2, 0]]
    kernel.counters["created"][0, 0] += 1
    kernel.counters["replaced"][0, 0] += 1
    section = kernel.section()

    assert section.evicted == 0
    assert row(section, 6)["rx_bytes"] == 11
    assert row(section, 6)["rtt"]["samples"] == 2


# RTT


def test_both_sides_of_a_flow_have_their_own_rtt(kernel: Kernel) -> None:
    value = kernel.flow(7)
    names = ("last", "min", "srtt", "rttvar", "time", "samples", "method")
    for side, base in ((LEG_EXTERNAL, 20 * MS), (LEG_INTERNAL, 3 * MS)):
        numbers = (base, base - 5, base + 7, base // 8, kernel.now_ns, 4, 1 + side)
        for name, number in zip(names, numbers, strict=True):
            value["rtt"][name][:, side] = number
    kernel.section()
    kernel.of(7)["rtt"]["samples"] += np.array([[3, 5]], np.uint32)
    section = kernel.section()
    found = section.in_frame(10, "rate")["flows"][0]

    assert found["rtt"] == {
        "last_ns": 20 * MS, "min_ns": 20 * MS - 5, "min_bare_ns": None, "smoothed_ns": 20 * MS + 7,
        "jitter_ns": 20 * MS // 8, "samples": 3, "samples_total": 7, "method": "timestamp", "last_sample_ns": 1000 * S,
    }  # fmt: skip
    assert (found["internal_rtt"]["last_ns"], found["internal_rtt"]["samples"]) == (3 * MS, 5)
    assert found["internal_rtt"]["method"] == "sequence"
    again = Flows.from_frame(section.in_frame(10, "rate"))
    assert again.in_frame(10, "rate")["flows"][0] == found


def test_a_side_that_was_never_measured_is_null(kernel: Kernel) -> None:
    kernel.flow(7)
    found = kernel.row()
    assert found["rtt"] is found["internal_rtt"] is None


def test_histograms_are_of_the_interval_and_summed_over_cpus(kernel: Kernel) -> None:
    kernel.rtts["slots"][LEG_EXTERNAL, 0, 100], kernel.rtts["sum"][LEG_EXTERNAL, 0] = 5, 500
    kernel.section()
    kernel.rtts["slots"][LEG_EXTERNAL, 0, 100] += 2
    kernel.rtts["slots"][LEG_EXTERNAL, 1, 101] += 3
    kernel.rtts["slots"][LEG_INTERNAL, 1, 40] += 1
    kernel.rtts["sum"][LEG_EXTERNAL] += np.array([30, 12], np.uint64)
    section = kernel.section()

    assert section.rtt.outward.counts[100:102].tolist() == [2, 3]
    assert (section.rtt.outward.count, section.rtt.outward.sum_ns, section.rtt.inward.count) == (5, 42, 1)


def test_subnets_are_differences_largest_first_and_named(kernel: Kernel) -> None:
    for prefix, length, version in (("10.1.2.0", 24, 4), ("0.0.0.0", 0, 4), ("fd77::", 48, 6), ("::", 0, 6)):
        value = kernel.subnet(prefix, length, version)
        value["slots"][:, 50], value["sum"], value["min"] = 10, 1000, 77
    kernel.section()
    for place, grown in enumerate((1, 7, 3, 0)):
        kernel.subnets["slots"][place, 50] += grown
        kernel.subnets["sum"][place] += grown * 100
    kernel.subnets["min"][3] = 0
    section = kernel.section()

    assert [(s.prefix, s.rtt.count, s.rtt.sum_ns, s.min_ns) for s in section.rtt.subnets] == [
        ("0.0.0.0/0", 7, 700, 77),
        ("fd77::/48", 3, 300, 77),
        ("10.1.2.0/24", 1, 100, 77),
        ("::/0", 0, 0, None),
    ]


def test_a_subnet_keeps_its_place_when_others_come_between(kernel: Kernel) -> None:
    kernel.subnet("10.1.2.0", 24)["slots"][:, 9] = 4
    kernel.section()
    kernel.subnet("10.1.3.0", 24)["slots"][:, 9] = 6
    kernel.subnet_keys, kernel.subnets = kernel.subnet_keys[::-1].copy(), kernel.subnets[::-1].copy()
    section = kernel.section()

    assert {s.prefix: s.rtt.count for s in section.rtt.subnets} == {"10.1.3.0/24": 6, "10.1.2.0/24": 0}


def test_what_finds_no_room_among_the_subnets_is_shown_as_others(kernel: Kernel) -> None:
    slot = hist.bucket_of(5 * MS)
    kernel.subnet("10.1.2.0", 24)["slots"][:, slot] = 4
    kernel.rtts["slots"][LEG_EXTERNAL, 0, slot] = 4
    assert [s.prefix for s in kernel.section().rtt.subnets] == ["10.1.2.0/24"]
    kernel.rtts["slots"][LEG_EXTERNAL, 1, slot] += 3
    kernel.rtts["slots"][2, 1, slot] += 3
    kernel.rtts["sum"][2, 1] += 15 * MS
    section = kernel.section()
    others = section.rtt.subnets[-1]

    assert (others.prefix, others.rtt.count, others.rtt.sum_ns) == (OTHERS, 3, 15 * MS)
    assert 5 * MS / 1.0625 <= others.min_ns <= 5 * MS
    assert sum(s.rtt.count for s in section.rtt.subnets) == section.rtt.outward.count
    # It stays, as any other subnet does, when a second brings no more.
    assert kernel.section().rtt.subnets[-1].prefix == OTHERS


def test_samples_are_those_of_the_focused_flow_the_newest_if_there_are_too_many(kernel: Kernel) -> None:
    events = np.zeros(MAX_SAMPLES + 30, EVENT)
    events["time"], events["rtt"] = np.arange(len(events)), 5 * MS
    events["method"], events["leg"] = METHODS.index("spin"), LEG_EXTERNAL
    events["leg"][-1] = LEG_INTERNAL
    events["id"] = kernel.focus = 8193
    kernel.events = events
    samples = kernel.section().samples

    assert len(samples) == MAX_SAMPLES
    assert samples[-1].time_ns == MAX_SAMPLES + 29
    assert (samples[-1].inward, samples[-2].inward) == (True, False)
    assert {(s.rtt_ns, s.method) for s in samples} == {(5 * MS, "spin")}
    assert kernel.section().samples == ()


def test_a_sample_of_the_flow_that_was_in_focus_before_is_nobodys(kernel: Kernel) -> None:
    """It was on its way when the focus changed."""
    events = np.zeros(3, EVENT)
    events["id"], events["rtt"] = (8192, 8193, 8192), (MS // 50, 40 * MS, MS // 50)
    kernel.focus, kernel.events = 8193, events
    assert [s.rtt_ns for s in kernel.section().samples] == [40 * MS]


# The spin bit


@pytest.mark.parametrize(
    ("packets", "edges", "singles", "verdict"),
    [
        (63, 0, 0, None),  # too few to tell
        (64, 0, 0, False),  # constant
        (64, 1, 0, False),  # turned once
        (1000, 500, 250, False),  # chance
        (1000, 470, 260, False),
        (40, 10, 0, None),  # four a round, too early
        (80, 20, 0, True),  # four a round
        (60, 30, 0, True),  # two a round: half are edges, but no run has one packet
        (40, 40, 40, True),  # one a round
        (180, 120, 60, True),  # one and two by turns
        (300, 9, 0, True),  # thirty a round
    ],
)
def test_a_bit_spins_unless_chance_would_do_the_same(
    kernel: Kernel, packets: int, edges: int, singles: int, verdict: bool | None
) -> None:
    value = kernel.flow(7, protocol=17, remote_port=443)
    value["dir"]["rtt_probes"]["value"][:, 1, 1] = packets
    value["dir"]["rtt_probes"]["method"][:, 1, 1] = edges
    value["dir"]["tsval"][:, 1] = singles
    section = kernel.section()

    assert spinning(row(section, 7)) is verdict
    again = Flows.from_frame(section.in_frame(10, "rate"))
    assert spinning(again.rows[0]) is verdict


@pytest.mark.parametrize(("protocol", "port"), [(6, 443), (17, 53), (17, 4433), (1, 443)])
def test_only_quic_spins(kernel: Kernel, protocol: int, port: int) -> None:
    value = kernel.flow(7, protocol=protocol, remote_port=port)
    value["dir"]["rtt_probes"]["value"][:, 1, 1] = 4711  # the id of a query, say
    value["dir"]["rtt_probes"]["method"][:, 1, 1] = 5
    assert spinning(row(kernel.section(), 7)) is None


# What the table loses, and what is taken out of it


def test_evictions_are_what_was_created_and_is_neither_there_nor_deleted(kernel: Kernel) -> None:
    for number in range(1, 11):
        kernel.flow(number)
    assert kernel.section().evicted == 0
    kernel.keys, kernel.values = kernel.keys[4:], kernel.values[4:]
    # As many as there are CPUs are believed when they are not there the next time either.
    assert [kernel.section().evicted for _ in range(3)] == [4 - CPUS, CPUS, 0]
    kernel.of(9)["flags"] = OPEN | FLAG_CLOSED
    assert list(kernel.scan(6.0).run) == ["expire"]
    assert kernel.section().evicted == 0
    kernel.keys, kernel.values = kernel.keys[1:], kernel.values[1:]
    assert [kernel.section().evicted for _ in range(2)] == [0, 1]


def test_a_flow_that_is_just_being_put_back_is_not_evicted(kernel: Kernel) -> None:
    for number in range(1, 11):
        kernel.flow(number)
    assert kernel.section().evicted == 0
    whole = kernel.keys, kernel.values
    kernel.keys, kernel.values = whole[0][1:], whole[1][1:]
    assert kernel.section().evicted == 0
    kernel.keys, kernel.values = whole
    assert [kernel.section().evicted for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(
    ("bits", "protocol", "seconds"),
    [
        (OPEN | FLAG_CLOSED, 6, constants.LINGER_CLOSED),
        (FLAG_TCP | FLAG_SYN, 6, constants.LINGER_UNREPLIED),
        (FLAG_TCP | FLAG_MIDWAY, 6, constants.LINGER_UNREPLIED),
        (0, 17, constants.LINGER_OTHER),
        (OPEN | FLAG_FIN_SENT, 6, constants.LINGER_CLOSING),
        (OPEN, 6, constants.LINGER_TCP),
    ],
)
def test_a_quiet_flow_expires_when_its_time_is_over(bits: int, protocol: int, seconds: int) -> None:
    kernel = Kernel()
    kernel.flow(7, protocol=protocol)["flags"] = bits
    key = kernel.keys.tobytes()
    assert kernel.scan(seconds - 0.5).run == {}
    (value,) = kernel.scan(1.0).run["expire"]
    due = np.frombuffer(value, DUE)[0]
    assert (due["count"], due["of"]["id"][0]) == (1, 7)
    assert due["of"]["key"][0].tobytes() == key
    assert len(kernel.values) == 0
    section = kernel.section()
    assert (section.expired, section.evicted) == (0 if bits & FLAG_CLOSED else 1, 0)


def test_more_flows_are_due_than_one_run_takes(kernel: Kernel) -> None:
    for number in range(1, 2 * DUE_FLOWS + 8):
        kernel.flow(number)["flags"] = OPEN | FLAG_CLOSED
    runs = kernel.scan(6.0).run["expire"]
    assert [int(np.frombuffer(value, DUE)[0]["count"]) for value in runs] == [DUE_FLOWS, DUE_FLOWS, 7]
    assert len(kernel.values) == 0
    assert kernel.section().evicted == 0


@pytest.mark.parametrize(
    ("bits", "state"),
    [
        (0, ""),
        (FLAG_TCP | FLAG_SYN | FLAG_OPENED_BY_LOCAL, "syn"),
        (FLAG_TCP | FLAG_MIDWAY, "unreplied"),
        (FLAG_TCP | FLAG_OPENED_BY_LOCAL, "unreplied"),  # a lone SYN-ACK, or a SYN and more of the same end
        (OPEN | FLAG_MIDWAY, "open"),
        (OPEN | FLAG_FIN_SENT, "closing"),
        (FLAG_TCP | FLAG_MIDWAY | FLAG_FIN_SENT, "unreplied"),
        (OPEN | 3 | FLAG_CLOSED, "closed"),
        (FLAG_TCP | FLAG_SYN | FLAG_CLOSED | FLAG_RESET, "reset"),
        (OPEN | FLAG_CLOSED | FLAG_RESET | 2048 | 4096, "reset"),
    ],
)
def test_the_state_follows_from_what_both_ends_have_said(bits: int, state: str) -> None:
    assert STATES[int(states(np.array([bits], np.uint64))[0])] == state


def test_a_reset_that_is_taken_back_is_not_told_as_closed_twice(kernel: Kernel) -> None:
    kernel.counters["closed"] = [[4, 1]]
    first = kernel.section()
    kernel.counters["revived"] = [[0, 2]]
    second = kernel.section()
    kernel.counters["closed"] = [[6, 2]]
    third = kernel.section()

    assert [(s.closed, s.closed_total) for s in (first, second, third)] == [(5, 5), (0, 3), (1, 6)]


def test_what_came_late_is_told_by_what_it_was(kernel: Kernel) -> None:
    value = kernel.flow(7)
    names = ("retransmits", "out_of_order", "duplicates", "tcp_probes", "dsacks", "uncertain")
    for number, name in enumerate(names, 1):
        value["dir"][name] = [[number, 10 * number]]
    kernel.section()
    kernel.of(7)["dir"]["dsacks"] += np.array([[3, 4]], np.uint32)
    found = kernel.row()

    totals = {
        "retransmits": (1, 10),
        "duplicates": (3, 30),
        "probes": (4, 40),
        "unneeded": (8, 54),
        "uncertain": (6, 60),
    }
    assert {n: (found[f"rx_{n}_total"], found[f"tx_{n}_total"]) for n in totals} == totals
    assert found["retransmits_total"] == 11
    assert found["loss"] == {
        "duplicate": 0, "duplicate_total": 33, "probe": 0, "probe_total": 44,
        "unneeded": 7, "unneeded_total": 62, "uncertain": 0, "uncertain_total": 66,
    }  # fmt: skip
    again = Flows.from_frame(kernel.section().in_frame(10, "rate"))
    assert again.in_frame(10, "rate")["flows"][0]["loss"]["unneeded_total"] == 62


def test_counters_grow_over_all_cpus(kernel: Kernel) -> None:
    kernel.counters["opened"] = [[5, 6]]
    kernel.counters["lost_events"] = [[1, 0]]
    kernel.section()
    kernel.counters["opened"] = [[7, 9]]
    kernel.counters["closed"] = [[0, 2]]
    kernel.counters["lost_events"] = [[1, 3]]
    kernel.counters["untracked"] = [[1, 1]]
    section = kernel.section()

    assert (section.opened, section.closed, section.opened_total) == (5, 2, 16)
    assert section.health() == {"lost_events": 3, "evicted_flows": 0, "untracked_packets": 2}


def test_a_table_too_large_for_a_frame_keeps_the_extremes_of_every_measure(kernel: Kernel) -> None:
    count = MAX_ROWS + 5000
    kernel.keys, kernel.values = np.zeros(count, FLOW_KEY), np.zeros(count, FLOW)
    kernel.values["id"] = np.arange(1, count + 1)
    kernel.values["flags"], kernel.values["last"] = OPEN, kernel.now_ns
    kernel.values["first"] = kernel.now_ns - 1
    kernel.counters["created"][0, 0] = count
    kernel.section()
    kernel.values["rtt"]["last"][17, LEG_EXTERNAL] = 900 * MS
    kernel.values["rtt"]["samples"][17, LEG_EXTERNAL] = 1
    kernel.values["dir"]["bytes"][18, 1] = 10_000
    kernel.values["dir"]["retransmits"][19, 0] = 3
    section = kernel.section()

    assert section.total == count
    assert len(section.rows) <= MAX_ROWS
    assert section.shown(1, "rtt").rows["id"] == [18]
    assert section.shown(1, "rate").rows["id"] == [19]
    assert section.shown(1, "retransmits").rows["id"] == [20]


def test_histogram_slots_are_those_of_the_kernel() -> None:
    assert HIST["slots"].shape == SUBNET["slots"].shape == (SLOTS,)

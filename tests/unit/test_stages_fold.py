"""The fold of stages: differences of per-CPU counters, rows that this kernel has, and what a pane makes of them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from fakes import assert_fits
from lab import layouts

from nettop.bpf.config import Flag
from nettop.core.frame import SECONDS, Frame, Health
from nettop.core.histogram import bucket_of, mean
from nettop.probes.base import Reads, Setup
from nettop.probes.stages import pane as stages_pane
from nettop.probes.stages.boundaries import ENTRIES, RX_BEGIN, TRACE_DROP, TX_BEGIN
from nettop.probes.stages.fold import StagesFold
from nettop.probes.stages.probe import HOOKS, PROBE
from nettop.probes.stages.section import Stages, TraceEvent
from nettop.render.canvas import Canvas, text_of

CONFIG, STAGE, PATHS, TRACING, TRACE = (
    layouts.of("stages")[name].value for name in ("config", "stages", "paths", "tracing", "trace")
)
SECOND = 1_000_000_000
ALL = {hook.name: "tp_btf" for hook in HOOKS}
CPUS = 3
SETUP = Setup("eth0", CPUS, hooks=ALL)
RX = {"stack": 0, "ip": 1, "local": 2, "forward": 3, "transport": 4, "socket": 5, "application": 6}
RX_WHOLE = 7


class Kernel:
    """Maps as the programs leave them."""

    def __init__(self) -> None:
        self.stages = np.zeros((2 * ENTRIES, CPUS), STAGE)
        self.paths = np.zeros((2, CPUS), PATHS)
        self.config = np.zeros(1, CONFIG)
        self.tracing = np.zeros((1, CPUS), TRACING)
        self.events: list[tuple[int, ...]] = []

    def record(
        self, index: int, cpu: int, ns: int, count: int = 1, path: bool = True, focused: bool = False
    ) -> None:
        """Packets of no particular flow; ``focused``: of the flow in focus, counted twice as the programs do."""
        if focused:
            self.record(index, cpu, ns, count, path)
        entry = self.stages[index + ENTRIES * focused, cpu]
        entry["delay"]["sum"] += ns * count
        entry["delay"]["slots"][bucket_of(ns)] += count
        if path:
            self.paths[int(focused), cpu]["of"]["ns"][index] += ns * count
            self.paths[int(focused), cpu]["of"]["packets"][index] += count

    def reads(self) -> Reads:
        events, self.events = np.array(self.events, TRACE), []
        maps = {
            "config": self.config,
            "stages": self.stages,
            "paths": self.paths,
            "tracing": self.tracing,
            "trace": events,
        }
        return Reads(0, SECOND, maps, {})


def folded(fold: StagesFold, kernel: Kernel) -> Stages:
    return fold(kernel.reads()).section  # type: ignore[return-value]


def nothing(*missing: str) -> Stages:
    """The section without a packet, where these hooks are missing."""
    hooks = {name: via for name, via in ALL.items() if name not in missing}
    return folded(StagesFold(Setup("eth0", CPUS, hooks=hooks)), Kernel())


def shown(history: list[Frame], canvas: Canvas) -> list[str]:
    return [text_of(row) for row in stages_pane.pane(history, canvas)]


def one_frame(section: Stages, name: str = "eth0") -> list[Frame]:
    return [Frame(SECOND, SECOND, "h", name, sections={"stages": section})]


def row(section: Stages, stage: str, direction: str = "rx"):
    return next(s for s in getattr(section, direction) if s.stage == stage)


def test_an_interval_is_what_was_added_on_all_cpus():
    kernel, fold = Kernel(), StagesFold(SETUP)
    for cpu in range(CPUS):
        kernel.record(RX["ip"], cpu, 1000, 7)
    kernel.stages[RX["ip"], 1]["missed"] = 5
    assert row(folded(fold, kernel), "ip").matched == 7 * CPUS
    kernel.record(RX["ip"], 2, 3000, 11)
    kernel.stages[RX["ip"], 0]["missed"] += 2
    section = folded(fold, kernel)
    ip = row(section, "ip")
    assert (ip.matched, ip.missed, ip.latency.sum_ns) == (11, 2, 33_000)
    assert ip.coverage == pytest.approx(11 / 13)
    # A miss is in its own stage's figures, not among packets without a flow.
    assert section.health() == {"lost_events": 0}
    assert row(folded(fold, kernel), "ip").matched == 0


def test_rows_stand_in_the_packets_order():
    section = nothing()
    assert [s.stage for s in section.rx] == "stack ip local transport socket application forward".split()
    assert [s.stage for s in section.tx] == "application ip qdisc driver done".split()
    for rows in (section.rx[:-1], section.tx[:-1]):
        for before, after in itertools.pairwise(rows):
            assert before.end == after.begin


def test_pacing_is_said_of_the_qdisc_alone():
    kernel, fold = Kernel(), StagesFold(SETUP)
    folded(fold, kernel)
    kernel.stages[10, 1]["paced"] = 7_000  # TX_QDISC
    section = folded(fold, kernel)
    assert row(section, "qdisc", "tx").paced_ns == 7_000
    assert {s.paced_ns for s in (*section.rx, *section.tx) if s.stage != "qdisc"} == {None}
    assert row(Stages.from_frame(section.in_frame(50, "")), "qdisc", "tx").paced_ns == 7_000


@pytest.mark.parametrize(
    ("missing", "gone", "heir", "begin"),
    [
        (("ip_rcv",), "ip", "local", "netif_receive_skb"),
        (("tcp_rcv_established", "udp_queue_rcv_skb"), "transport", "socket", "ip_local_deliver"),
    ],
)
def test_a_boundary_that_is_missing_is_merged_and_said(missing, gone, heir, begin):
    section = nothing(*missing)
    assert gone not in [s.stage for s in section.rx]
    merged = row(section, heir)
    assert merged.begin == begin
    assert merged.merged == (gone,)


def test_a_way_without_its_beginning_begins_later():
    section = nothing("driver", "tcp_sendmsg_locked", "udp_sendmsg")
    assert section.rx[0].stage == "ip"
    assert section.tx[0].stage == "ip"


def test_nothing_is_called_zero_that_is_not_known():
    section = nothing("kfree_skb")
    assert row(section, "ip").dropped is None
    assert row(section, "done", "tx").missed is None
    assert row(section, "ip").coverage is None


def test_json_there_and_back():
    kernel = Kernel()
    kernel.record(RX["application"], 0, 123_456, 3)
    kernel.record(RX_WHOLE, 0, 130_000, 3)
    kernel.stages[RX["application"], 1]["missed"] = 1
    section = folded(StagesFold(SETUP), kernel)
    data = section.in_frame(10, "")
    again = PROBE.section.from_frame(data)
    assert again.in_frame(10, "") == data
    assert mean(again.rx_whole) == 130_000
    assert PROBE.section.from_frame({}).in_frame(1, "")["stages"]["rx"] == []


def test_the_flow_in_focus_has_rows_of_its_own():
    kernel, fold = Kernel(), StagesFold(SETUP)
    assert folded(fold, kernel).focus is None
    kernel.config["focus"] = 7
    assert folded(fold, kernel).focus.flow == 7
    kernel.record(RX["application"], 0, 1000, 5)
    for cpu in range(CPUS):
        kernel.record(RX["application"], cpu, 20_000, 3, focused=True)
    kernel.record(RX_WHOLE, 0, 21_000, 9, path=False, focused=True)
    kernel.stages[ENTRIES + RX["ip"], 1]["missed"] = 2
    section = folded(fold, kernel)
    assert row(section, "application").matched == 5 + 3 * CPUS
    mine = row(section.focus, "application")
    assert (mine.matched, mine.latency.sum_ns, mine.path_packets) == (9, 180_000, 9)
    assert section.focus.rx_whole.count == 9
    assert (row(section, "ip").missed, row(section.focus, "ip").missed) == (0, 2)
    data = section.in_frame(10, "")
    assert data["stages"]["focus"]["flow"] == 7
    assert PROBE.section.from_frame(data).in_frame(10, "") == data


def test_sampling_is_said():
    kernel, fold = Kernel(), StagesFold(SETUP)
    assert folded(fold, kernel).in_frame(1, "")["stages"]["sampled_one_in"] == 1
    kernel.config["sample_shift"] = 4
    section = folded(fold, kernel)
    assert section.sample == 16
    assert PROBE.section.from_frame(section.in_frame(1, "")).sample == 16
    assert PROBE.section.from_frame({}).sample == 1


def test_a_packets_way_is_a_list_of_events_by_time():
    kernel, fold = Kernel(), StagesFold(SETUP)
    kernel.events = [(1, 0, 0, 1, RX_BEGIN, 0)]  # of an earlier run: nobody asks for it
    assert folded(fold, kernel).trace is None
    kernel.config["flags"] = Flag.TRACE
    kernel.events = [
        (30, 7, 20, 1 << 24 | 5, RX["stack"], 1),
        (10, 7, 0, 1 << 24 | 5, RX_BEGIN, 1),
        (40, 0, 0, 6, TX_BEGIN, 0),
        (70, 0, 0, 6, TRACE_DROP | 10, 0),
    ]
    kernel.tracing["lost"][0] = 1, 2, 0
    kernel.tracing["left_out"][0] = 5, 0, 0
    section = folded(fold, kernel)
    assert section.trace == (
        TraceEvent(10, 7, 1 << 24 | 5, "rx", "", None, 1),
        TraceEvent(30, 7, 1 << 24 | 5, "rx", "stack", 20, 1),
        TraceEvent(40, 0, 6, "tx", "", None, 0),
        TraceEvent(70, 0, 6, "tx", "qdisc", None, 0, dropped=True),
    )
    assert (section.trace_lost, section.trace_left_out) == (3, 5)
    assert section.health()["lost_events"] == 3
    again = PROBE.section.from_frame(section.in_frame(1, ""))
    assert (again.trace, again.trace_lost, again.trace_left_out) == (section.trace, 3, 5)
    after = folded(fold, kernel)
    assert (after.trace, after.trace_lost, after.trace_left_out) == ((), 0, 0)


def test_another_focus_starts_anew():
    kernel, fold = Kernel(), StagesFold(SETUP)
    folded(fold, kernel)
    for flow, counted in ((7, 0), (7, 4), (8, 0), (8, 4), (0, None), (8, 0)):
        kernel.config["focus"] = flow
        kernel.record(RX["ip"], 0, 1000, 4, focused=True)
        section = folded(fold, kernel)
        assert (section.focus and row(section.focus, "ip").matched) == counted
        assert row(section, "ip").matched == 4  # nothing of it is lost to all packets' counts


def frames(*stages_ns: dict[str, int], count: int = 100) -> list[Frame]:
    """One frame for each dictionary of received stages' delays."""
    kernel, fold = Kernel(), StagesFold(SETUP)
    result = []
    for number, delays_ns in enumerate(stages_ns):
        for stage, ns in delays_ns.items():
            kernel.record(RX[stage], 0, ns, count)
        if delays_ns:
            kernel.record(RX_WHOLE, 0, sum(delays_ns.values()), count, path=False)
        section = folded(fold, kernel)
        result.append(Frame(number * SECOND, SECOND, "h", "eth0", sections={"stages": section}))
    return result


USUAL = {**dict.fromkeys(("stack", "ip", "local", "transport", "socket"), 1_000), "application": 95_000}


def test_the_last_line_says_where_a_mean_microsecond_goes():
    text = text_of(stages_pane.where(frames(*[USUAL] * 3), Canvas(120, 1)))
    assert "100 µs" in text
    assert "95 % waiting for its reader" in text


def resting(one_in: int, silent: int) -> list[Frame]:
    """Frames a second apart; in the last ones the hooks were not attached."""
    forwarding = {**USUAL, "forward": 5_000}
    health = Health(shed={SECONDS: one_in})
    return [replace(frame, health=health) for frame in frames(*[forwarding] * 3, *[{}] * silent)]


def test_while_it_rests_every_column_and_the_last_line_keep_their_values_with_their_age():
    canvas = Canvas(130, 24)
    was, held = (shown(resting(8, silent), canvas) for silent in (0, 6))
    assert len(held) == len(was)
    for name in ("driver→stack", "application", "forward"):
        then = next(text for text in was if name in text)
        now = next(text for text in held if name in text)
        assert now.startswith(f" {name} 6 s ")
        assert now[-38:] == then[-38:], "p50, p99, max, share and seen"
        assert now.endswith("100 %")
    last = next(text for text in held if "mean" in text)
    assert "105 µs: 90 % waiting for its reader" in last
    assert "6 s ago" in last
    assert stages_pane.names(resting(8, 6)) == stages_pane.names(resting(8, 0))
    assert "rx forward" in stages_pane.names(resting(8, 6))
    assert stages_pane.subtitle(resting(8, 6), canvas).endswith(" · 6 s ago")
    assert "6 s ago" in text_of(stages_pane.compact(resting(8, 6), Canvas(120, 2))[0])


@pytest.mark.parametrize(("one_in", "silent"), [(1, 1), (1, 6), (8, 17)])
def test_what_is_no_rest_or_too_old_is_nothing(one_in, silent):
    """Attached all the time, silence is the figure; and nothing stays longer than twice the rest."""
    history = resting(one_in, silent)
    lines = shown(history, Canvas(130, 24))
    assert next(text for text in lines if "application" in text).split()[-5:] == ["-"] * 5
    assert not any(" ago" in text for text in lines)
    assert stages_pane.subtitle(history, Canvas(130, 1)) == "no packets"
    if silent > 5:  # which the last line is of
        assert text_of(stages_pane.where(history, Canvas(120, 1))) == "no packet has gone the whole way yet"


@pytest.mark.parametrize(("part", "said"), [(0.9, "paced: not to leave"), (0.1, "in the qdisc")])
def test_pacing_is_not_called_a_queue(part, said):
    kernel, fold = Kernel(), StagesFold(SETUP)
    kernel.record(10, 0, 1_000_000, 100)
    kernel.record(13, 0, 1_000_000, 100, path=False)  # TX_WHOLE
    kernel.stages[10, 1]["paced"] = int(part * 100_000_000)
    history = one_frame(folded(fold, kernel))
    assert said in text_of(stages_pane.where(history, Canvas(120, 1)))
    page = shown(history, Canvas(160, 20, selected="tx qdisc"))
    assert any(f"{part * 100:.0f} % of its time is pacing" in text for text in page)


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("unicode", [False, True])
def test_what_is_seen_at_the_device_below_is_said_in_words(below, unicode):
    kernel, fold = Kernel(), StagesFold(SETUP)
    kernel.config["flags"] = Flag.NO_STACK if below else 0
    kernel.record(RX["local"], 0, 1_000)
    lines = shown(one_frame(folded(fold, kernel), "bond0"), Canvas(120, 24, unicode=unicode))
    assert any("seen at the device below" in text for text in lines) == below
    assert any("driver" in text for text in lines)
    assert any("→" in text for text in lines) is unicode


def test_what_changed_most_in_the_last_minute():
    history = frames(*[USUAL] * 20, *[{**USUAL, "ip": 40_000, "socket": 9_000}] * 5)
    assert stages_pane.changed(history) == ("rx", "ip", pytest.approx(1_000), pytest.approx(40_000))
    assert "stack→ip 1.00 µs → 40.0 µs" in text_of(stages_pane.where(history, Canvas(120, 1)))
    assert stages_pane.changed(frames(*[USUAL] * 30)) is None


def test_rows_show_the_newest_interval_and_all_of_it():
    history = frames(*[USUAL] * 12, {**USUAL, "application": 20_000_000})
    lines = shown(history, Canvas(100, 16))
    application = next(text for text in lines if "application" in text)
    assert "20." in application
    assert "ms" in application
    assert "100 %" in application  # nearly all of the way, and every packet seen


def test_the_cursor_names_the_cell_of_an_entered_stage():
    history = frames(*[USUAL] * 30)
    canvas = Canvas(100, 30, zoomed=True, selected="rx application")
    plain = shown(history, canvas)
    bright = next(y for y, text in enumerate(plain[2:]) if any(c in text for c in "█▀▄"))
    text = shown(history, replace(canvas, cursor=(2, bright)))[-1]
    assert text.strip().startswith("2 s ago")
    assert "100 samples" in text
    assert "from sk_data_ready" in plain[1]
    axis = [row.partition("┊")[0].strip() for row in plain if "┊" in row]
    assert [label for label in axis if label] == ["1 ms", "100 µs", "10 µs"]  # around 95 µs


@pytest.mark.parametrize("width", [1, 2, 7, 20, 40, 63, 80, 120, 200])
@pytest.mark.parametrize("zoomed", [False, True])
@pytest.mark.parametrize("selected", ["", "rx ip", "tx qdisc"])
def test_no_line_is_wider_or_more_than_the_canvas(width, zoomed, selected):
    for history in (frames(*[USUAL] * 9), frames({})):
        for height, cursor in itertools.product((1, 2, 3, 8, 16, 40), (None, (0, 0), (300, 90))):
            canvas = Canvas(width, height, zoomed, cursor, selected, unicode=width % 2 == 0)
            assert_fits(stages_pane.pane(history, canvas), width, height)


def test_names_that_can_be_entered_are_the_rows_in_order():
    history = frames(USUAL)
    names = stages_pane.names(history)
    assert names[0] == "rx stack"
    assert "rx forward" not in names  # nothing was forwarded
    lines = shown(history, Canvas(120, 40, cursor=(0, 2)))
    assert sum(row.startswith("▸") for row in lines) == 1
    assert lines[3].startswith("▸ip→local")

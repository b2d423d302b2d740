"""The application: filters, what is always there, failures, terminals of every kind."""

import asyncio
import gc
from dataclasses import replace
from unittest.mock import Mock

import frames
import pytest
from app_driver import Heard, running
from textual import events
from textual.theme import BUILTIN_THEMES

from nettop.core.errors import ExitCode, NettopError
from nettop.core.frame import Health, ProbeStatus
from nettop.probes.flows import table as flows_table
from nettop.record.recording import View
from nettop.render.canvas import Pane
from nettop.settings import Settings
from nettop.ui.edges import Header
from nettop.ui.panes import PaneWidget
from nettop.ui.theme import NETTOP, Palette

# --- filter ----------------------------------------------------------------------------------------------------------


async def test_an_error_is_shown_under_the_bar_and_nothing_changes():
    async with running() as d:
        await d.press("/", *"prot tcp", "enter")
        assert "syntax error in filter expression" in d.text()
        assert "java 2044" in d.text()
        assert d.main.filter_bar.is_open
        await d.press(*["backspace"] * 8, "enter")
        assert not d.main.filter_bar.is_open
        assert "filter" not in d.rows()[0]
        await d.press("/", *"nginx", "escape")  # which clears it
        assert "match" not in d.text()
        assert "java 2044" in d.text()


class Applying(Heard):
    """Takes its time to apply a filter, and may fail to."""

    wanted: str | None = None

    @property
    def filter_wanted(self) -> str | None:
        return self.wanted


async def test_a_filter_is_said_to_hold_when_it_does():
    heard = Applying()
    async with running(heard=heard) as d:
        await d.press("/", *"tcp port 443", "enter")
        heard.wanted = "tcp port 443"
        await d.give(frames.frame(5))
        assert "applying tcp port 443" in d.rows()[0]
        await d.give(frames.frame(6, filter="tcp port 443"))
        assert "filter tcp port 443" in d.rows()[0]
        await d.press("[")  # to before it held
        assert "tcp port 443" not in d.rows()[0]


async def test_a_filter_that_could_not_be_applied_is_not_said_to_hold():
    heard = Applying()
    async with running(heard=heard) as d:
        await d.press("/", *"tcp port 443", "enter")
        heard.wanted = ""
        await d.give(frames.frame(5, notes=("the filter 'tcp port 443' is not applied",)))
        assert "applying" not in d.rows()[0]
        assert "is not applied" in d.rows()[0]


async def test_a_long_filter_leaves_cost_and_losses_on_the_screen():
    text = "tcp port 443 and (net 10.0.0.0/8 or net 192.168.0.0/16) and not host 10.1.2.3"
    async with running(80, 24, frames=[frames.frame(0, filter=text)]) as d:
        assert "filter tcp port" in d.rows()[0]
        assert "0.4 %" in d.rows()[0]
        assert "58.0 MB" in d.rows()[0]
        assert "lost" in d.rows()[-1]


# --- what is always there --------------------------------------------------------------------------------------------


async def test_losses_are_warm_and_counted():
    health = Health({"lost_events": 12, "evicted_flows": 3, "untracked_packets": 0}, None, 0, 0)
    async with running(frames=[frames.frame(0, health=health)]) as d:
        assert "12 lost · 3 evicted · 21 of 21 hooks" in d.rows()[-1]
        assert "kernel - · user 0 % · -" in d.rows()[0]


async def test_what_is_not_measured_is_not_called_lost():
    health = Health({}, None, 0, 0)
    off = {name: ProbeStatus("off") for name in frames.frame(0).probes}
    kept = frames.frame(0).probes["throughput"]
    for probes, said in (
        (off, ""),
        ({**off, "throughput": kept}, f"{len(kept.hooks)} of {len(kept.hooks)} hooks"),
    ):
        async with running(frames=[frames.frame(0, probes=probes, health=health)]) as d:
            assert "lost" not in d.rows()[-1]
            assert said in d.rows()[-1]
            assert ("hooks" in d.rows()[-1]) == bool(said)


async def test_a_pane_that_cannot_work_says_why_and_the_others_go_on():
    probes = dict(frames.frame(0).probes)
    probes["flows"] = ProbeStatus("failed", "the verifier refused flows_ingress\nhint: try --via clsact")
    async with running(frames=[frames.frame(0, probes=probes)]) as d:
        text = d.text()
        assert "Flows has stopped" in text
        assert "the verifier refused flows_ingress" in text
        assert "try --via clsact" in text
        assert "rx " in text


async def test_a_pane_that_cannot_draw_says_so_and_the_others_go_on():
    def broken(history, canvas):
        raise ValueError("no such thing")

    probe = frames.PROBES[0]
    bad = replace(probe, panes=(Pane("throughput", "Throughput", 1, "top", draw=broken, height=7),))
    async with running(probes=(bad, *frames.PROBES[1:])) as d:
        assert "drawing failed: ValueError('no such thing')" in d.text()
        assert "203.0.113.7" in d.text()


async def test_notes_and_a_filter_share_the_top_of_a_narrow_terminal():
    notes = ("eth0 is gone; waiting for it to come back",)
    async with running(80, 24, frames=[frames.frame(0, notes=notes, filter="tcp port 443 or udp")]) as d:
        assert "eth0 is gone" in d.rows()[0]
        assert "filter tcp" in d.rows()[0]
        assert "58.0 MB" in d.rows()[0]


async def test_before_the_first_frame_it_waits_calmly():
    async with running(frames=[]) as d:
        assert "waiting for the first frame" in d.text()
        for key in "space [ ] z z enter w c S u tab s escape / escape".split():
            await d.press(key)
        assert d.app.is_running


async def test_a_new_probes_pane_appears_by_itself():
    pane = Pane("drops", "Drops", 6, "bottom", draw=lambda h, c: [], height=8)
    probe = replace(frames.PROBES[3], name="drops", panes=(pane,))
    async with running(probes=(*frames.PROBES, probe)) as d:
        assert "6 Drops" in d.text()
        await d.press("6")
        assert d.app.state.focused == "drops"


# --- sources ---------------------------------------------------------------------------------------------------------


async def test_the_end_of_a_replay_is_said():
    async with running() as d:
        await d.give(None)
        assert "end 00:05" in d.rows()[0]
        assert d.app.is_running


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NettopError("the loader is gone", "start nettop again"), "the loader is gone"),
        (ValueError("kaput"), "ValueError: kaput"),
    ],
)
async def test_a_source_that_fails_ends_the_screen_with_its_error(error, said):
    async with running() as d:
        await d.give(error)
        assert d.app.return_value == ExitCode.FAILURE
        assert d.app.failure.message == said


async def test_a_replay_that_goes_back_forgets_what_comes_later():
    async with running(frames=frames.frames(8)) as d:
        await d.give(frames.frame(3))
        assert [f.time_ns for f in d.app.state.history] == [frames.frame(n).time_ns for n in range(4)]


async def test_history_is_bounded_by_time_and_trimmed():
    many = [frames.frame(n, extra=300, interval=10.0) for n in range(80)]
    async with running(frames=many) as d:
        history = d.app.state.history
        assert history[-1].time_ns - history[0].time_ns == 600 * frames.SECOND
        assert len(flows_table.rows(history[-2])) == 100
        assert len(flows_table.rows(history[-1])) == 309


async def test_frames_that_come_at_once_are_drawn_once():
    drawn: list[int] = []
    async with running(frames=[]) as d:
        original = d.main.redraw
        d.main.redraw = lambda: (drawn.append(1), original())[1]  # type: ignore[method-assign]
        await d.give(*frames.frames(40))
        assert len(d.app.state.history) == 40
        assert len(drawn) < 10


async def test_only_what_changed_is_painted():
    async with running() as d:
        painted: list[str] = []
        for widget in d.app.query(PaneWidget):
            original = widget.refresh
            widget.refresh = lambda *a, w=widget, o=original, **k: (painted.append(w.pane.name), o(*a, **k))[
                1
            ]  # type: ignore[method-assign]
        d.main.redraw()
        await d.settle()
        assert painted == []
        # The same flows again: their pane stays as it is.
        again = frames.frame(4)
        await d.give(replace(again, sections={**again.sections, "throughput": frames.throughput(5)}))
        assert "throughput" in painted
        assert "flows" not in painted


# --- terminals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (39, 40), (120, 9)])
async def test_a_terminal_that_is_too_small_is_told_so(size):
    async with running(*size) as d:
        assert d.app.is_running
        if size[0] >= 20 and size[1] > 4:
            assert "room" in d.text()
        await d.press("j", "z", "enter", "escape", "?", "escape")
        assert d.app.is_running


async def test_a_key_works_though_the_terminal_said_that_it_lost_the_focus():
    async with running() as d:
        d.app.post_message(events.AppBlur())
        await d.settle()
        await d.give(frames.frame(5))
        assert "▸" in d.text()
        await d.press("j")
        assert d.flows.at == 1


async def test_with_room_again_the_pane_has_its_keys_back():
    async with running(frames=frames.frames(8)) as d:
        await d.press("4")
        await d.pilot.resize_terminal(30, 8)
        await d.settle()
        await d.press("j", "z", "z")
        await d.pilot.resize_terminal(120, 40)
        await d.settle()
        assert d.main.body.current is d.main.focused
        await d.press("j", "enter")
        assert "Stages › " in d.text()


@pytest.mark.parametrize(
    "size", [(40, 10), (60, 16), (80, 24), (99, 30), (100, 20), (120, 40), (200, 60), (300, 12)]
)
async def test_every_line_has_the_width_of_the_terminal(size):
    async with running(*size) as d:
        rows = d.rows()
        assert len(rows) == size[1]
        assert all(len(row) == size[0] for row in rows)


async def test_resizing_redraws():
    async with running() as d:
        await d.pilot.resize_terminal(80, 24)
        await d.settle()
        assert len(d.rows()[0]) == 80
        assert "▎" not in d.text()
        await d.press("1")
        assert "▎rx" in d.text()
        await d.pilot.resize_terminal(120, 40)
        await d.settle()
        assert "1 Throughput" in d.text()


async def test_without_colour_nothing_is_coloured(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    async with running() as d:
        assert d.app.depth == "none"
        assert set("░▒▓█") & set(d.text())
        styles = [s.style for strip in d.app.screen._compositor.render_strips() for s in strip if s.style]
        assert all(c is None or c.is_default for style in styles for c in (style.color, style.bgcolor))


async def test_with_256_colours_every_one_is_among_them(monkeypatch):
    monkeypatch.delenv("COLORTERM")
    async with running() as d:
        assert d.app.depth == "256"
        heats = [d.app.state.palette.style(f"heat:{n}").color for n in range(10)]
        assert [c.type.name for c in heats] == ["EIGHT_BIT"] * 10
        assert len({c.number for c in heats}) >= 8


def test_heats_grow_brighter_in_every_theme():
    for name, theme in {**BUILTIN_THEMES, "nettop": NETTOP}.items():
        if theme.ansi:
            continue
        palette = Palette(theme.to_color_system().generate(), "full", name)
        ground = palette.style("plain").bgcolor.get_truecolor()
        heats = [palette.style(f"heat:{n}").color.get_truecolor() for n in range(10)]
        distances = [sum(abs(a - b) for a, b in zip(heat, ground, strict=True)) for heat in heats]
        assert distances == sorted(distances), name
        assert len(set(distances)) == 10, name


@pytest.mark.parametrize(
    "theme", ["nettop", "textual-light", "nord", "ansi-dark", "solarized-light", "plaid"]
)
async def test_every_theme_can_be_worn(theme):
    async with running(options=Settings(theme=theme)) as d:
        assert d.app.theme == theme or theme == "plaid"
        assert ("no theme is called plaid" in d.rows()[-1]) is (theme == "plaid")
        assert "203.0.113.7" in d.text()


async def test_a_snapshot_can_be_looked_at_as_it_was():
    heard = Heard()
    heard.look = View(reverse=True, pane="rtt")
    async with running(heard=heard, options=Settings(sort="rtt")) as d:
        assert d.main.look() == View("rtt", True, "", "", "rtt")
        assert "by RTT, reversed" in d.text()


async def test_escape_takes_the_cursor_off_a_map():
    async with running() as d:
        await d.press("2", "h", "h")
        assert "2 s ago" in d.text()
        await d.press("escape")
        assert " ago " not in d.text()


async def test_ascii_terminals_get_ascii(monkeypatch):
    monkeypatch.setattr("nettop.ui.app.draws_unicode", lambda charset: False)
    async with running() as d:
        assert d.text().isascii()


# --- idle ------------------------------------------------------------------------------------------------------------


async def test_names_that_come_between_two_frames_are_drawn():
    heard, late = Heard(), [""]
    heard.names = Mock(of=lambda address: late[-1], changed=0)
    async with running(heard=heard, options=Settings(names=True)) as d:
        assert "203.0.113.7" in d.text()
        late.append("late.example")
        heard.names.changed += 1
        await d.until(lambda: "late.example:51122" in d.text())
        assert "203.0.113.7" not in d.text()


async def test_nothing_ticks_when_nothing_happens():
    async with running() as d:
        painted: list[int] = []
        for widget in d.app.screen.query("*"):
            widget.refresh = lambda *a, **k: painted.append(1)  # type: ignore[method-assign]
        await asyncio.sleep(0.6)
        assert painted == []


async def test_while_paused_only_the_header_follows():
    async with running() as d:
        await d.press("space")
        header = d.app.query_one(Header)
        before = d.app.query_one(Header)._lines
        await d.give(frames.frame(5))
        assert header._lines != before


async def test_pages_that_were_closed_take_no_memory():
    def strips() -> int:
        gc.collect()
        return sum(type(o).__name__ == "Strip" for o in gc.get_objects())

    async with running(120, 40, frames=frames.frames(3)) as d:
        counts = []
        for _ in range(2):
            for _ in range(4):
                await d.press("?", "escape", "s", "escape")
            counts.append(strips())
        assert counts[1] < counts[0] + 100

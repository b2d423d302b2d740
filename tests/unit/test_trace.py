"""The lines of --trace: what each says, and what is said of what is not there."""

from dataclasses import replace

import frames
import numpy as np
import pytest
from fakes import changed

from nettop import cli
from nettop.core import units
from nettop.core.errors import NettopError
from nettop.core.frame import ProbeStatus
from nettop.output import Style
from nettop.output.text import TraceWriter
from nettop.probes.stages.section import FocusedStages, TraceEvent
from nettop.settings import Control, build, parse

MS = 1_000_000


def written(*made):
    lines: list[str] = []
    writer = TraceWriter(lines.append, Style())
    for frame in made:
        writer.write(frame)
    return "".join(lines).splitlines()


def traced(*events, flow=0, **changes):
    focus = FocusedStages(flow=flow) if flow else None
    return changed(frames.frame(3), "stages", trace=events, focus=focus, **changes)


WAY = (
    TraceEvent(5_000 * MS, 7, 0x2A, "rx", "", None, 1),
    TraceEvent(5_000 * MS + 310, 7, 0x2A, "rx", "stack", 310, 1),
    TraceEvent(5_003 * MS, 7, 0x2A, "rx", "ip", None, 0, dropped=True),
)


def test_a_line_says_when_which_packet_where_and_how_long():
    assert [" ".join(line.split()) for line in written(traced(*WAY))[-3:]] == [
        "5.000000000 2a rx (begin) 1 driver",
        "5.000000310 2a rx stack 310 ns 1 netif_receive_skb (tp_btf)",
        "5.003000000 2a rx ip dropped 0 ip_rcv (netfilter)",
    ]


def test_the_flow_is_named_once_and_again_when_it_is_another():
    rows = frames.frame(3).sections["flows"].rows
    one, other = (int(i) for i in rows["id"][:2])
    lines = written(traced(*WAY, flow=one), traced(*WAY, flow=one), traced(*WAY, flow=other))
    named = [line for line in lines if line.startswith("# 20")]
    assert len(named) == 2
    assert "tcp 10.1.0.5:443 203.0.113.7:51122" in named[0]
    assert "tcp 10.1.0.5:443 198.51.100.4:40110" in named[1]
    assert len(lines) == 9 + 4


def test_until_a_flow_is_in_focus_it_waits_and_without_flows_it_takes_all():
    waiting = traced()
    assert "no flow yet" in written(waiting)[0]
    alone = replace(waiting, probes={**waiting.probes, "flows": ProbeStatus("off", "")})
    assert "every packet that the filter accepts" in written(alone)[0]


def test_what_is_missing_is_said():
    lines = written(traced(*WAY, trace_left_out=1200, trace_lost=3))
    assert lines[-1] == f"# {units.count(1200)} packets were beyond the budget, 3 events found no room"
    failed = frames.frame(3)
    sections = {name: s for name, s in failed.sections.items() if name != "stages"}
    failed = replace(failed, sections=sections, probes={"stages": ProbeStatus("failed", "the reason")})
    assert written(failed) == ["# stages are not traced: the reason"]


def test_it_needs_a_run_without_a_screen_lines_and_the_stages(tmp_path):
    for wrong in (["--trace"], ["-b", "--trace", "--format", "csv"]):
        with pytest.raises(NettopError, match="--trace needs"):
            parse([*wrong, "lo"])
    for words, focuses, mode in (
        (["-b", "--trace"], True, "focus"),
        (["-b", "--trace", "-p", "stages"], False, "all"),
        (["-b"], True, ""),
    ):
        settings = build(parse([*words, "lo"]), tmp_path)
        assert cli.focuses(settings) is focuses
        assert Control.of(settings, focuses).trace == mode
    with pytest.raises(NettopError, match="--trace needs the probe stages"):
        cli.checked(build(parse(["-b", "--trace", "-p", "flows", "lo"]), tmp_path))


def test_events_come_back_from_json():
    section = traced(*WAY, flow=int(np.uint64(2**63 + 5)), trace_lost=2).sections["stages"]
    again = type(section).from_frame(section.in_frame(10, ""))
    assert again.trace == WAY
    assert (again.trace_lost, again.focus.flow) == (2, 2**63 + 5)

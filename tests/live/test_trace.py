"""--trace as a user runs it: every packet of one flow, whole ways, and nobody else's."""

import re

import pytest
from lab import Lab, Link, run_nettop
from lab.traffic import answering, asking
from stagelab import RECEIVE, SEND

LINE = re.compile(
    r"^ *(\d+)\.(\d{9})  +([0-9a-f]+)  (rx|tx)   (\S+) +(?:([\d.]+) (ns|µs|ms|s)|dropped)? +\d+  (.*)$"
)
UNITS = {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9}


@pytest.mark.timing
def test_every_packet_of_a_flow_in_lines(lab: Lab, veth: Link) -> None:
    with answering(veth.b, port=5301) as server, answering(veth.b, port=5302) as other:
        questions = asking(veth.a, server, flows=1, seconds=60, interval_s=0.02)
        beside = asking(veth.a, other, flows=4, seconds=60, interval_s=0.005)
        done = run_nettop(lab, veth.a, "-b", "--trace", "--focus", ":5301", "-d", "0.5", "-n", "6")
        for process in (questions, beside):
            process.stop()
    assert done.code == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("# 20") and "tcp" in line]
    assert len(said) == 1
    assert said[0].endswith(f"{veth.b.v4}:5301")
    packets: dict[str, list[tuple[int, str, str, float, str]]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("#"):
            continue
        found = LINE.match(line)
        assert found, line
        seconds, ns, packet, direction, stage, delay, unit, at = found.groups()
        event = (int(seconds + ns), direction, stage, float(delay) * UNITS[unit] if delay else 0.0, at)
        packets.setdefault(packet, []).append(event)
    # Fifty questions a second, each with its answer and, perhaps, an ACK.  The last may not have come to their end.
    ways = list(packets.values())[:-3]
    received = [way for way in ways if way[0][1] == "rx"]
    asked = [way for way in ways if way[0][1] == "tx" and way[1][2] == "application"]
    assert len(received) > 20
    assert len(asked) > 20
    whole = ["(begin)", *RECEIVE]
    assert sum([event[2] for event in way] == whole for way in received) >= 0.95 * len(received)
    sent = ["(begin)", *SEND]  # and "done", where the driver is the last to have it
    assert sum([event[2] for event in way[: len(sent)]] == sent for way in asked) >= 0.95 * len(asked)
    # The delays of a way add up to the time from its first line to its last, but for what it cost to write them down.
    for way in received:
        delays = sum(event[3] for event in way)
        assert abs(way[-1][0] - way[0][0] - delays) < 0.05 * delays + 20_000 * len(way)
        assert [event[0] for event in way] == sorted(event[0] for event in way)


def test_without_flows_it_takes_what_the_filter_accepts(lab: Lab, veth: Link) -> None:
    with answering(veth.b, port=5301) as server, answering(veth.b, port=5302) as other:
        questions = asking(veth.a, server, flows=1, seconds=60, interval_s=0.02)
        beside = asking(veth.a, other, flows=1, seconds=60, interval_s=0.02)
        words = "port 5302 -b --trace -p stages,throughput -d 0.5 -n 3 --format ndjson"
        done = run_nettop(lab, veth.a, *words.split())
        for process in (questions, beside):
            process.stop()
    assert done.code == 0, done.stderr
    events = [event for frame in done.frames for event in frame["stages"]["trace"]]
    packets = {event["packet"] for event in events}
    # As many as throughput counts behind the same filter, but for those on their way where frames begin and end.
    crossed = sum(frame["throughput"][way]["packets"] for frame in done.frames for way in ("rx", "tx"))
    assert crossed > 50
    assert abs(len(packets) - crossed) <= 6
    assert {event["flow"] for event in events} == {0}

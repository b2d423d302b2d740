"""``--trace``: packets one by one, a line for every boundary that each of them passes."""

from __future__ import annotations

from nettop.core import units
from nettop.core.frame import Frame
from nettop.probes.flows.section import row_of
from nettop.probes.flows.table import ends
from nettop.probes.stages.section import Stages, TraceEvent

_TITLE = f"{'time':>17}  {'packet':>8}  dir  {'stage':<12} {'delay':>8}  {'cpu':>3}  at"


def traced(frame: Frame) -> bool:
    """Whether there are packets one by one in the frame."""
    section = Stages.find(frame)
    return section is not None and bool(section.trace)


class Trace:
    """The text of one frame after another: a line an event, in the order of time.

    A line that begins with ``#`` says which flow it is and what is missing.  Times are CLOCK_MONOTONIC in seconds, as
    in dmesg and bpftrace.
    """

    def __init__(self) -> None:
        self._flow: int | None = None
        self._name = ""

    def text(self, frame: Frame) -> str:
        """The frame's events; nothing where there are none and nothing was lost."""
        section = Stages.find(frame)
        status = frame.probes.get("stages")
        lines = [f"# {units.clean(note)}" for note in frame.notes]
        if section is None or section.trace is None:
            detail = f": {units.clean(status.detail, 1000)}" if status and status.detail else ""
            return "\n".join([*lines, f"# stages are not traced{detail}"]) + "\n"
        flow = section.focus.flow if section.focus else 0
        row = row_of(frame, flow)
        name = "" if row is None else " ".join(ends(row))
        if flow != self._flow or (name and name != self._name):
            self._flow, self._name = flow, name
            flows = frame.probes.get("flows")
            any_flow = (
                "every packet that the filter accepts" if not flows or flows.state == "off" else "no flow yet"
            )
            which = name or (f"flow {flow}" if flow else any_flow)
            lines += [f"# {units.timestamp(frame.time_ns)}  {frame.interface}  {which}", f"# {_TITLE[2:]}"]
        places: dict[tuple[str, str], str] = {
            (way, stage.stage): f"{stage.end} ({stage.via})" for way, stage in section.rows()
        }
        places |= {(way, ""): stage.begin for way, stage in reversed(section.rows())}
        written = {e.packet for e in section.trace if (e.direction, e.stage) == ("tx", "application")}
        for event in section.trace:
            place: tuple[str, str] = event.direction, event.stage
            if place == ("tx", "") and event.packet not in written:  # an ACK: no process wrote it
                place = "tx", "application"
            lines.append(_line(event, places.get(place, "")))
        if section.trace_left_out or section.trace_lost:
            lines.append(
                f"# {units.count(section.trace_left_out)} packets were beyond the budget, "
                f"{units.count(section.trace_lost)} events found no room"
            )
        return "".join(f"{line}\n" for line in lines)


def _line(event: TraceEvent, at: str) -> str:
    delay = "dropped" if event.dropped else units.duration(event.delay_ns) if event.stage else ""
    return (
        f"{event.time_ns // 1_000_000_000:>7}.{event.time_ns % 1_000_000_000:09}  {event.packet:>8x}  "
        f"{event.direction}   {event.stage or '(begin)':<12} {delay:>8}  {event.cpu:>3}  {at}".rstrip()
    )

"""``--trace``: packets one by one, a line for every boundary that each of them passes."""

from __future__ import annotations

from nettop.core import units
from nettop.core.frame import Frame
from nettop.probes.flows.section import Flows
from nettop.probes.stages.section import Stages, TraceEvent

_TITLE = f"{'time':>17}  {'packet':>8}  dir  {'stage':<12} {'delay':>8}  {'cpu':>3}  at"


def traced(frame: Frame) -> bool:
    """Whether there are packets one by one in the frame."""
    section = frame.sections.get("stages")
    return isinstance(section, Stages) and bool(section.trace)


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
        section = frame.sections.get("stages")
        status = frame.probes.get("stages")
        lines = [f"# {units.clean(note)}" for note in frame.notes]
        if not isinstance(section, Stages) or section.trace is None:
            detail = f": {units.clean(status.detail, 1000)}" if status and status.detail else ""
            return "\n".join([*lines, f"# stages are not traced{detail}"]) + "\n"
        flow = section.focus.flow if section.focus else 0
        name = _flow_name(frame, flow)
        if flow != self._flow or (name and name != self._name):
            self._flow, self._name = flow, name
            flows = frame.probes.get("flows")
            any_flow = (
                "every packet that the filter accepts" if not flows or flows.state == "off" else "no flow yet"
            )
            which = name or (f"flow {flow}" if flow else any_flow)
            lines += [f"# {units.timestamp(frame.time_ns)}  {frame.interface}  {which}", f"# {_TITLE[2:]}"]
        ends = {
            (direction, row.stage): f"{row.end} ({row.via})"
            for direction, row in section.rows()
        }  # fmt: skip
        first = {direction: row.begin for direction, row in reversed(section.rows())}
        written = {e.packet for e in section.trace if (e.direction, e.stage) == ("tx", "application")}
        for event in section.trace:
            if event.stage:
                at = ends.get((event.direction, event.stage), "")
            elif event.direction == "tx" and event.packet not in written:  # an ACK: no process wrote it
                at = ends.get(("tx", "application"), "")
            else:
                at = first.get(event.direction, "")
            lines.append(_line(event, at))
        if section.trace_left_out or section.trace_lost:
            lines.append(
                f"# {units.count(section.trace_left_out)} packets were beyond the budget, "
                f"{units.count(section.trace_lost)} events found no room"
            )
        return "".join(f"{line}\n" for line in lines)


def _flow_name(frame: Frame, flow: int) -> str:
    """Its protocol and both ends, local first; "" where it is not in the table."""
    section = frame.sections.get("flows")
    if not flow or not isinstance(section, Flows):
        return ""
    for row in section.rows[section.rows["id"] == flow]:
        ends = (units.endpoint(row[end].tobytes(), int(row[f"{end}_port"])) for end in ("local", "remote"))
        return f"{units.protocol(int(row['protocol']))} {' '.join(ends)}"
    return ""


def _line(event: TraceEvent, at: str) -> str:
    delay = "dropped" if event.dropped else units.duration(event.delay_ns) if event.stage else ""
    return (
        f"{event.time_ns // 1_000_000_000:>7}.{event.time_ns % 1_000_000_000:09}  {event.packet:>8x}  "
        f"{event.direction}   {event.stage or '(begin)':<12} {delay:>8}  {event.cpu:>3}  {at}".rstrip()
    )

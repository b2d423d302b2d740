"""Frames as JSON: docs/frame.md.  One a line, or laid out for people."""

from __future__ import annotations

from nettop.core.frame import Frame
from nettop.output.base import Writer
from nettop.record.recording import View, snapshot_text
from nettop.record.schema import dumps, frame_to_json


class NdjsonWriter(Writer):
    """Newline-delimited JSON."""

    def format(self, frame: Frame) -> str:
        data = frame_to_json(frame, self.style.top, self.style.sort)
        if self.explainer is not None:
            found = self.explainer.add(frame)
            data["verdict"] = None if found is None else found.to_json()
        return dumps(data) + "\n"


class SnapshotWriter(Writer):
    """A frame as ``--snapshot`` writes it, with its header."""

    def format(self, frame: Frame) -> str:
        view = View(sort=self.style.sort, filter=self.style.filter)
        return "".join(snapshot_text([frame], view, self.style.top))

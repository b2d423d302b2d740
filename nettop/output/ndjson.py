"""One frame a line, as JSON: docs/frame.md."""

from __future__ import annotations

from nettop.core.frame import Frame
from nettop.output.base import Writer
from nettop.record.schema import dumps, frame_to_json


class NdjsonWriter(Writer):
    """Newline-delimited JSON."""

    def format(self, frame: Frame) -> str:
        """The frame in one line."""
        data = frame_to_json(frame, self.style.top, self.style.sort)
        if self.explainer is not None:
            found = self.explainer.add(frame)
            data["verdict"] = None if found is None else found.to_json()
        return dumps(data) + "\n"

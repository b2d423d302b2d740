"""Frames as text for other programs and for people without a screen: one writer for each ``--format``."""

from __future__ import annotations

from nettop.output.base import Emit, Style, Writer
from nettop.output.csv import CsvWriter
from nettop.output.ndjson import NdjsonWriter, SnapshotWriter
from nettop.output.text import TextWriter, TraceWriter

WRITERS: dict[str, type[Writer]] = {"text": TextWriter, "ndjson": NdjsonWriter, "csv": CsvWriter}

__all__ = ["WRITERS", "Emit", "SnapshotWriter", "Style", "TraceWriter", "Writer"]

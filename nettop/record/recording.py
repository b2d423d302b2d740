"""Recordings and snapshots: a header and then frames, as JSON documents one after another; docs/frame.md.

A recording has a line for each.  A snapshot has them laid out for people.  The reader takes both, and the
output of ``--format ndjson``, which has no header; gzip it knows by content.  Files are read where they lie,
a frame at a time: an hour of a busy host does not fit in memory.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import tempfile
import time
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import TracebackType
from typing import IO, Any, Literal, Self

import humanize

from nettop.core.errors import ExitCode, NettopError
from nettop.core.fields import Part, described, field
from nettop.core.frame import SCHEMA, Frame, Section
from nettop.core.version import version
from nettop.record import files, schema
from nettop.record.files import Sink
from nettop.record.redact import Redactor, this_run

MAX_DOCUMENT = 1 << 29
MAX_UNPACKED = 1 << 33
_CHUNK = 1 << 16
_TIME = re.compile(rb'"time_ns":\s*(\d{1,19})\b')
_INTERVAL = re.compile(rb'"interval_ns":\s*(\d{1,19})\b')
_FILTER = re.compile(rb'"filter":\s*("(?:[^"\\]|\\.)*")')
_NOTES = re.compile(rb'"notes":\s*\[\s*"')
_BASE = 1 << 16  # bytes of a frame in which its base is, before the long sections
_GAP_NS = 500_000_000  # beside half an interval: what between two frames is more than a late one


@dataclass(frozen=True)
class View(Part):
    """How the frames were looked at: enough to show the same again."""

    sort: str = field("the column that orders the table's rows", default="")
    reverse: bool = field("whether in reverse", default=False)
    filter: str = field("the plain word or expression that was typed", default="")
    focus: str = field("`id` of the flow whose page was open", default="")
    pane: str = field("the pane that had the focus", default="")
    zoomed: bool = field("whether it had the whole screen", default=False)


@dataclass(frozen=True)
class Header(Part):
    """What a file says of itself, before its frames."""

    kind: Literal["recording", "snapshot"] = field("`recording` or `snapshot`", default="recording")
    version: str = field("of the nettop that wrote it", default="")
    created_ns: int = field("when, CLOCK_REALTIME", "ns", default=0)
    host: str = field("as in the frames", default="")
    interface: str = field("as in the frames", default="")
    view: View = field("how it was looked at", factory=View)

    def to_json(self) -> dict[str, Any]:
        """The first document of a file."""
        return {"schema": SCHEMA, **super().to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse; what is missing or has another type is as if it had not been said."""
        return cls(**{**_known(cls, data), "view": View(**_known(View, data.get("view")))})


def _known(kind: Any, data: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for f in described(kind):
        with contextlib.suppress(ValueError, TypeError):
            if isinstance(data, dict) and f.name in data:
                result[f.attribute] = f.codec.read(data[f.name])
    return result


def file_name(frame: Frame, kind: str) -> str:
    """A name for a new file: ``nettop-db3-eth0-20250102-030405.snapshot.json.gz``; times are UTC."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(frame.time_ns // 1_000_000_000))
    words = [re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-.") for word in (frame.host, frame.interface)]
    suffix = "snapshot.json.gz" if kind == "snapshot" else "ndjson.gz"
    return "-".join(["nettop", *filter(None, words), stamp]) + f".{suffix}"


def now() -> int:
    """CLOCK_REALTIME in ns."""
    return time.time_ns()


def header_of(frame: Frame, kind: Literal["recording", "snapshot"], view: View) -> Header:
    """The header for a file that begins with this frame."""
    return Header(kind, version(), now(), frame.host, frame.interface, view)


def hidden(header: Header, hide: Redactor | None = None) -> Header:
    """The same header with pseudonyms: those of this run by default."""
    hide = hide or this_run()
    view = replace(header.view, filter=hide.filter(hide.real(header.view.filter)))  # it may be hidden already
    return replace(
        header, host=hide.name(header.host, "host"), interface=hide.interface(header.interface), view=view
    )


class Recorder:
    """Writes a recording, frame by frame; each is on its way to the disk when ``write`` returns.

    NettopError on a full disk: the file is whole up to the frame before, and closed; go on without it.
    """

    def __init__(self, path: str, header: Header, top: int, sort: str) -> None:
        self._sink = Sink(path)
        self._header = header
        self._top = top
        self._sort = sort
        self.frames = 0
        self._sink.write(schema.dumps(header.to_json()) + "\n")

    @property
    def path(self) -> str:
        """Where the file is."""
        return self._sink.path

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._sink.size

    @property
    def closed(self) -> bool:
        """Whether recording has ended."""
        return self._sink.closed

    def write(self, frame: Frame) -> None:
        """Append a frame."""
        if self._sink.fresh():  # opened anew, or cut
            self._sink.write(schema.dumps(replace(self._header, created_ns=now()).to_json()) + "\n")
        self._sink.write(schema.dumps(schema.frame_to_json(frame, self._top, self._sort)) + "\n")
        self.frames += 1

    def reopen(self) -> None:
        """Go on in a new file of the same name."""
        self._sink.reopen()

    def unmet(self) -> NettopError | None:
        """Whatever comes is recorded."""

    def close(self) -> None:
        """End the file properly."""
        self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start_recorder(path: str, interface: str, view: View, top: int, redact: bool) -> Recorder:
    """A recording of what is to come: frames with ``top`` rows of a long table each, in the view's order."""
    header = Header("recording", version(), now(), platform.node(), interface, view)
    if redact:
        header = hidden(header)
    return Recorder(path, header, top, view.sort)


def write_snapshot(path: str, frames: Sequence[Frame], header: Header, top: int, sort: str) -> None:
    """The last frames, oldest first, with how they were looked at, into a new file."""
    with Sink(path) as sink:
        for text in snapshot_text(frames, header, top, sort):
            sink.write(text)


def snapshot_text(frames: Sequence[Frame], header: Header, top: int, sort: str) -> Iterator[str]:
    """What a snapshot's file has in it, piece by piece."""
    yield schema.readable(header.to_json()) + "\n"
    for frame in frames:
        yield schema.readable(schema.frame_to_json(frame, top, sort)) + "\n"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a frame is in the file, and the times that a time line needs."""

    offset: int
    length: int
    line: int
    time_ns: int
    interval_ns: int


@dataclass(frozen=True, slots=True)
class Mark:
    """A frame at which something happened that a time line shows: another filter, a note, a gap before it."""

    index: int
    kind: Literal["filter", "note", "gap"]
    text: str


class Recording:
    """A file of frames, opened: its header, the time of each frame, and any frame by number.

    ``problem`` says where the file ends too early, or stops making sense; the frames before that are good.
    """

    def __init__(
        self, path: str, kinds: Mapping[str, type[Section]] | None = None, hide: Redactor | None = None
    ) -> None:
        """NettopError where there is no such file, and where it is none of ours, with the line and why.

        With ``hide`` its addresses and names are replaced by pseudonyms.
        """
        self.path = path
        self.header = Header()
        self.problem: NettopError | None = None
        self._kinds = kinds
        self._hide = hide
        self._places: list[_Place] = []
        self._marks: list[Mark] = []
        self._ends_ns: list[int] = []
        self._times_ns: tuple[int, ...] = ()  # asked for again and again; a day has 86 400
        try:
            self._file, cut = _open(path)
        except OSError as error:
            reason = error.strerror or "cannot be read"
            raise NettopError(f"{path}: {reason}", "name a recording or a snapshot", ExitCode.USAGE) from None
        try:
            self._scan(cut)
        except BaseException:
            self._file.close()
            raise
        if hide:
            self.header = hidden(self.header, hide)
            for index, mark in enumerate(self._marks):
                text = hide.filter(mark.text) if mark.kind == "filter" else hide.text(mark.text)
                self._marks[index] = replace(mark, text=text)

    def _scan(self, cut: str) -> None:
        line = 0
        first = True
        before = b"", False
        for offset, line, text, why in _documents(self._file):
            time_ns, interval_ns = _TIME.search(text, 0, 4096), _INTERVAL.search(text, 0, 4096)
            if first:
                data = self._parse(text, line)
                if "kind" in data:
                    self.header = Header.from_json(data)
                    first = False
                    continue
            first = False
            if why or not time_ns or not interval_ns:
                self.problem = self._bad(line, why or "not a frame")
                break
            self._places.append(_Place(offset, len(text), line, int(time_ns[1]), int(interval_ns[1])))
            before = self._mark(text, before)
        if first:
            raise self._bad(1, cut or "the file is empty")
        if self.problem is None and cut:
            self.problem = self._bad(line, cut)
        if self.problem is None and self._places:
            try:  # the last line is where a file was cut
                schema.loads(self._text(self._places[-1]))
            except schema.SchemaError as error:
                self.problem = self._bad(self._places.pop().line, f"the file ends too early ({error})")
        if not self._places:
            raise self.problem or self._bad(line + 1, "there is no frame")
        self._ends_ns = list(accumulate(p.interval_ns for p in self._places))
        self._marks = [mark for mark in self._marks if mark.index < len(self._places)]

    def _mark(self, text: bytes, before: tuple[bytes, bool]) -> tuple[bytes, bool]:
        """Note what sets the newest frame apart from the one before; ``before`` is that one's filter and notes."""
        index = len(self._places) - 1
        found = _FILTER.search(text, 0, _BASE)
        now = found[1] if found else b"", bool(_NOTES.search(text, 0, _BASE))
        if index == 0:
            return now
        here, last = self._places[index], self._places[index - 1]
        missing = here.time_ns - last.time_ns - here.interval_ns
        if abs(missing) > here.interval_ns // 2 + _GAP_NS:
            said = f"a gap of {_span(missing)}" if missing > 0 else "the clock was set back"
            self._marks.append(Mark(index, "gap", said))
        if now[0] != before[0]:
            filter_text = ""
            with contextlib.suppress(schema.SchemaError):
                filter_text = str(schema.loads(now[0]))
            self._marks.append(Mark(index, "filter", f"filter {filter_text}" if filter_text else "no filter"))
        if now[1] and not before[1]:
            self._marks.append(Mark(index, "note", "a note"))
        return now

    def _parse(self, text: bytes, line: int) -> dict[str, Any]:
        try:
            data = schema.loads(text)
            schema.check_version(data)
        except schema.SchemaError as error:
            raise self._bad(line, f"not a recording: {error}") from None
        assert isinstance(data, dict)
        return data

    def _bad(self, line: int, why: str) -> NettopError:
        return NettopError(
            f"{self.path}: line {line}: {why}",
            "recordings are written by --record, --snapshot FILE and -b --format ndjson",
        )

    def _text(self, place: _Place) -> bytes:
        # Not seek and read: a replay reads ahead in another thread.
        return os.pread(self._file.fileno(), place.length, place.offset)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def times_ns(self) -> tuple[int, ...]:
        """The end of each frame's interval, CLOCK_REALTIME."""
        if len(self._times_ns) != len(self._places):
            self._times_ns = tuple(p.time_ns for p in self._places)
        return self._times_ns

    def interval_ns(self, index: int) -> int:
        """The interval of a frame: how long after the one before it came."""
        return self._places[index].interval_ns

    @property
    def marks(self) -> Sequence[Mark]:
        """What happened, in order."""
        return self._marks

    def elapsed_ns(self, index: int) -> int:
        """The time that playing up to the end of a frame takes: the intervals, without gaps between them."""
        return self._ends_ns[index]

    @property
    def length_ns(self) -> int:
        """The time that playing all of it takes."""
        return self._ends_ns[-1]

    def at(self, elapsed_ns: int) -> int:
        """The number of the frame that is shown after playing for so long."""
        return min(bisect_left(self._ends_ns, elapsed_ns), len(self) - 1)

    def frame(self, index: int) -> Frame:
        """A frame by number.  Raises NettopError with the line where it makes no sense."""
        place = self._places[index]
        try:
            frame = schema.frame_from_json(schema.loads(self._text(place)), self._kinds)
        except schema.SchemaError as error:
            raise self._bad(place.line, str(error)) from None
        return self._hide.frame(frame) if self._hide else frame

    def frames(self) -> Iterator[Frame]:
        """All of them in order; then ``problem`` is raised, where there is one."""
        for index in range(len(self)):
            yield self.frame(index)
        if self.problem:
            raise self.problem

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _span(ns: int) -> str:
    """``3 minutes and 12 seconds``."""
    return humanize.precisedelta(ns / 1e9, format="%0.0f")


def _documents(stream: IO[bytes]) -> Iterator[tuple[int, int, bytes, str]]:
    """Offset, line and text of each JSON document, and what is wrong with it where it is not whole.

    A document is a line, or the lines from one that is ``{`` to the next that is ``}``.
    """
    stream.seek(0)
    line, offset = 0, 0
    while text := stream.readline(MAX_DOCUMENT):
        line += 1
        start, first = offset, line
        offset += len(text)
        if text.strip() == b"{":
            parts = [text]
            while (more := stream.readline(MAX_DOCUMENT)) and offset - start < MAX_DOCUMENT:
                line += 1
                offset += len(more)
                parts.append(more)
                if more.rstrip() == b"}":
                    break
            text = b"".join(parts)
            if parts[-1].rstrip() != b"}":
                yield start, first, text, "the file ends too early" if not more else "too long"
                return
        if len(text) >= MAX_DOCUMENT:
            yield start, first, b"", "too long"
            return
        if text.strip():
            yield start, first, text, ""


def _open(path: str) -> tuple[IO[bytes], str]:
    """The file, or an unnamed copy, unpacked, where it is gzip or a pipe; and why it ends too early."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open(files.reading(path), "rb"))
        packed = source.peek(2)[:2] == b"\x1f\x8b"
        if source.seekable() and not packed:
            stack.pop_all()
            return source, ""
        copy = stack.enter_context(tempfile.TemporaryFile())
        cut = _copy(source, copy, packed)
        stack.pop_all()
        source.close()
        return copy, cut


def _copy(source: IO[bytes], target: IO[bytes], packed: bool) -> str:
    """Unpack by hand: the gzip module throws away what it had when it meets a file that ends too early."""
    unpack = zlib.decompressobj(16 + zlib.MAX_WBITS) if packed else None
    size = 0
    while chunk := source.read(_CHUNK):
        while chunk:
            if unpack is None:
                data, chunk = chunk, b""
            else:
                if unpack.eof:  # another member follows
                    unpack = zlib.decompressobj(16 + zlib.MAX_WBITS)
                try:
                    data = unpack.decompress(chunk, 1 << 20)
                except zlib.error as error:
                    return f"the gzip file is damaged ({error})"
                chunk = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
            size += len(data)
            if size > MAX_UNPACKED:
                return "the file is too large"
            try:
                target.write(data)
            except OSError as error:
                raise NettopError(
                    f"no room to unpack the recording: {error.strerror}",
                    "TMPDIR names a folder with more room",
                ) from None
    return "" if unpack is None or unpack.eof else "the gzip file ends too early"

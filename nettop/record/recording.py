"""Recordings and snapshots: a header and then frames, as JSON documents one after another; docs/frame.md.

A recording has a line for each.  A snapshot has them laid out for people.  The reader takes both, and the
output of ``--format ndjson``, which has no header; gzip it knows by content.  Files are read where they lie,
a frame at a time: an hour of a busy host does not fit in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import tempfile
import time
import zlib
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import IO, Any, Literal, NamedTuple, Self

import humanize

from nettop.core.errors import ExitCode, NettopError
from nettop.core.fields import Part, described, field
from nettop.core.frame import SCHEMA, Frame, Section
from nettop.core.paths import version
from nettop.record import files, schema
from nettop.record.files import Closing, Sink
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

    sort: str = field("the column that orders the table's rows", default="", privacy="harmless")
    reverse: bool = field("whether in reverse", default=False)
    filter: str = field("the plain word or expression that was typed", default="", privacy="filter")
    focus: str = field("`id` of the flow whose page was open", default="", privacy="harmless")
    pane: str = field("the pane that had the focus", default="", privacy="harmless")
    zoomed: bool = field("whether it had the whole screen", default=False)


@dataclass(frozen=True)
class Header(Part):
    """What a file says of itself, before its frames."""

    kind: Literal["recording", "snapshot"] = field("`recording` or `snapshot`", default="recording")
    version: str = field("of the nettop that wrote it", default="", privacy="harmless")
    created_ns: int = field("when, CLOCK_REALTIME", "ns", default=0)
    host: str = field("as in the frames", default="", privacy="name")
    interface: str = field("as in the frames", default="", privacy="interface")
    view: View = field("how it was looked at", factory=View)

    def to_json(self) -> dict[str, Any]:
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


def hidden(header: Header, hide: Redactor | None = None) -> Header:
    """The same header with pseudonyms: those of this run by default."""
    hide = hide or this_run()
    view = replace(header.view, filter=hide.real(header.view.filter))  # it may be hidden already
    result: Header = hide.part(replace(header, view=view))
    return result


class Recorder(Sink):
    """Writes a recording, frame by frame; each is on its way to the disk when ``record`` returns.

    NettopError on a full disk: the file is whole up to the frame before, and closed; go on without it.
    """

    def __init__(self, path: str, header: Header, top: int, sort: str) -> None:
        super().__init__(path)
        self._header = header
        self._top = top
        self._sort = sort
        self.write(schema.dumps(header.to_json()) + "\n")

    def record(self, frame: Frame) -> None:
        if self.fresh():  # opened anew, or cut
            self.write(schema.dumps(replace(self._header, created_ns=time.time_ns()).to_json()) + "\n")
        self.write(schema.dumps(schema.frame_to_json(frame, self._top, self._sort)) + "\n")


def start_recorder(path: str, interface: str, view: View, top: int, redact: bool) -> Recorder:
    """A recording of what is to come: frames with ``top`` rows of a long table each, in the view's order."""
    header = Header("recording", version(), time.time_ns(), platform.node(), interface, view)
    if redact:
        header = hidden(header)
    return Recorder(path, header, top, view.sort)


def write_snapshot(path: str, frames: Sequence[Frame], view: View, top: int) -> None:
    """The last frames, oldest first, with how they were looked at, into a new file."""
    with Sink(path) as sink:
        for text in snapshot_text(frames, view, top):
            sink.write(text)


def snapshot_text(frames: Sequence[Frame], view: View, top: int) -> Iterator[str]:
    """The documents of a snapshot's file."""
    last = frames[-1]
    header = Header("snapshot", version(), time.time_ns(), last.host, last.interface, view)
    yield schema.readable(header.to_json()) + "\n"
    for frame in frames:
        yield schema.readable(schema.frame_to_json(frame, top, view.sort)) + "\n"


class _Place(NamedTuple):
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


class Recording(Closing):
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
        # As plain tuples, which the garbage collector leaves alone: a day has 86 400, and each jump would wait for it.
        self._places: list[tuple[int, int, int, int, int]] = []
        self.marks: list[Mark] = []  # in order
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
            self.marks = [
                replace(mark, text=hide.filter(mark.text) if mark.kind == "filter" else hide.text(mark.text))
                for mark in self.marks
            ]
        # Of each frame the end of its interval, CLOCK_REALTIME; and how long playing up to there takes, without gaps.
        self.times_ns = tuple(self._place(index).time_ns for index in range(len(self)))
        self.ends_ns = list(accumulate(map(self.interval_ns, range(len(self)))))

    def _scan(self, cut: str) -> None:
        line = 0
        before = b"", False
        for number, (offset, line, text, why) in enumerate(_documents(self._file)):
            if number == 0 and "kind" in (data := self._parse(text, line)):
                self.header = Header.from_json(data)
                continue
            time_ns, interval_ns = _TIME.search(text, 0, 4096), _INTERVAL.search(text, 0, 4096)
            if why or not time_ns or not interval_ns:
                self.problem = self._bad(line, why or "not a frame")
                break
            self._places.append((offset, len(text), line, int(time_ns[1]), int(interval_ns[1])))
            before = self._mark(text, before)
        if not line:
            raise self._bad(1, cut or "the file is empty")
        if self.problem is None and cut:
            self.problem = self._bad(line, cut)
        if self.problem is None and self._places:
            try:  # the last line is where a file was cut
                schema.loads(self._text(self._place(-1)))
            except schema.SchemaError as error:
                self.problem = self._bad(self._place(-1).line, f"the file ends too early ({error})")
                self._places.pop()
        if not self._places:
            raise self.problem or self._bad(line + 1, "there is no frame")
        self.marks = [mark for mark in self.marks if mark.index < len(self._places)]

    def _mark(self, text: bytes, before: tuple[bytes, bool]) -> tuple[bytes, bool]:
        """Note what sets the newest frame apart from the one before; ``before`` is that one's filter and notes."""
        index = len(self._places) - 1
        found = _FILTER.search(text, 0, _BASE)
        now = found[1] if found else b"", bool(_NOTES.search(text, 0, _BASE))
        if index == 0:
            return now
        here, last = self._place(index), self._place(index - 1)
        missing = here.time_ns - last.time_ns - here.interval_ns
        if abs(missing) > here.interval_ns // 2 + _GAP_NS:
            said = "the clock was set back"
            if missing > 0:
                said = f"a gap of {humanize.precisedelta(missing / 1e9, format='%0.0f')}"
            self.marks.append(Mark(index, "gap", said))
        if now[0] != before[0]:
            filter_text = ""
            with contextlib.suppress(schema.SchemaError):
                filter_text = str(schema.loads(now[0]))
            self.marks.append(Mark(index, "filter", f"filter {filter_text}" if filter_text else "no filter"))
        if now[1] and not before[1]:
            self.marks.append(Mark(index, "note", "a note"))
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

    def _place(self, index: int) -> _Place:
        return _Place._make(self._places[index])

    def _text(self, place: _Place) -> bytes:
        # Not seek and read: a replay reads ahead in another thread.
        return os.pread(self._file.fileno(), place.length, place.offset)

    def __len__(self) -> int:
        return len(self._places)

    def interval_ns(self, index: int) -> int:
        """The interval of a frame: how long after the one before it came."""
        return self._place(index).interval_ns

    def at(self, elapsed_ns: int) -> int:
        """The number of the frame that is shown after playing for so long."""
        return min(bisect_left(self.ends_ns, elapsed_ns), len(self) - 1)

    def frame(self, index: int) -> Frame:
        """A frame by number.  Raises NettopError with the line where it makes no sense."""
        place = self._place(index)
        try:
            frame = schema.frame_from_json(schema.loads(self._text(place)), self._kinds)
        except schema.SchemaError as error:
            raise self._bad(place.line, str(error)) from None
        return self._hide.frame(frame) if self._hide else frame

    def frames(self) -> Iterator[Frame]:
        for index in range(len(self)):
            yield self.frame(index)
        if self.problem:
            raise self.problem

    def close(self) -> None:
        self._file.close()


class Replay:
    """A recording, played: the same frames with the same time between them, and a hand on it.

    ``speed`` 2.0 plays twice as fast; infinity without waiting.  With ``hold`` it stays at the last frame, to
    go back from; without, the frames end, and a file that was cut raises its problem then.
    """

    def __init__(self, recording: Recording, speed: float = 1.0, hold: bool = False) -> None:
        self.recording = recording
        self.hold = hold
        self._position = 0
        self.shown = -1  # number of the frame that came last
        self._target: int | None = None
        self._speed = 1.0
        self._paused = False
        self._changed = asyncio.Event()
        self.speed = speed

    @property
    def position(self) -> int:
        """Number of the frame that is shown, or is about to be."""
        return self._position if self._target is None else self._target

    @property
    def at_end(self) -> bool:
        return self._target is None and self.shown == len(self.recording) - 1

    @property
    def speed(self) -> float:
        return self._speed

    @speed.setter
    def speed(self, value: float) -> None:
        if not value > 0:
            raise ValueError("speed must be above 0")
        self._speed = value
        self._changed.set()

    @property
    def paused(self) -> bool:
        return self._paused

    @paused.setter
    def paused(self, value: bool) -> None:
        self._paused = value
        self._changed.set()

    def seek(self, index: int) -> None:
        """Show this frame next, at once; numbers outside go to the nearest end."""
        self._target = min(max(index, 0), len(self.recording) - 1)
        self._changed.set()

    def step(self, frames: int) -> None:
        """Pause, and go this many frames on (or back, below 0)."""
        self._paused = True
        self.seek(self.position + frames)

    async def frames(self) -> AsyncIterator[Frame]:
        """The frames from the present position on."""
        due = asyncio.get_running_loop().time()
        while True:
            # Parsing takes a while where there are many flows: not on the loop that draws the screen.
            position = self._position
            frame = await asyncio.to_thread(self.recording.frame, position)
            self.shown = position
            yield frame
            next_due = await self._advance(due)
            if next_due is None:
                return
            due = next_due

    async def _advance(self, due: float) -> float | None:
        """Wait for the next frame's time, or a command; the time it was due, None at the end."""
        loop = asyncio.get_running_loop()
        while True:
            if self._target is not None:
                self._position, self._target = self._target, None
                return loop.time()
            following = self._position + 1
            at_end = following >= len(self.recording)
            if at_end and not self.hold:
                if self.recording.problem:
                    raise self.recording.problem
                return None
            wait: float | None = None
            if not at_end and not self._paused:
                next_due = due + self.recording.interval_ns(following) / 1e9 / self._speed
                wait = next_due - loop.time()
                if wait <= 0:
                    self._position = following
                    # Who fell far behind does not catch up in a burst.
                    return next_due if wait > -1 else loop.time()
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
                due = loop.time()  # something changed: the wait starts again
            except TimeoutError:
                pass


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
        source = stack.enter_context(open(files.opened("read", path), "rb"))
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

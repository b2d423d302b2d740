"""Opening and writing the user's files: never over an existing one, and never with half a record in them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import zlib
from collections.abc import Callable, Mapping
from typing import Literal, Self

from nettop.core.errors import ExitCode, NettopError

How = Literal["read", "log", "new", "again", "look"]

_GZIP = 16 + zlib.MAX_WBITS
# Appending: a file that is cut while it is written (logrotate's copytruncate) would begin with a hole otherwise.
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND
WAYS: Mapping[str, int] = {
    "read": os.O_RDONLY,
    "log": _APPEND | os.O_NOFOLLOW,
    "new": _APPEND | os.O_EXCL,  # and so never where a symbolic link points
    "again": _APPEND | os.O_NOFOLLOW | os.O_NONBLOCK,  # what has this name now, or a new one
    "look": os.O_PATH | os.O_NOFOLLOW,
}


def open_here(how: str, path: str) -> int:
    """A descriptor of the file.  OSError, also where `again` finds what is not our own plain file."""
    fd = os.open(path, WAYS[how] | os.O_CLOEXEC, 0o600)
    if how == "again":
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            os.close(fd)
            raise PermissionError(errno.EPERM, "somebody else's file, or none")
    return fd


_opener: Callable[[How, str], int] = open_here


def open_by(opener: Callable[[How, str], int]) -> None:
    """Open files by another process from here on: see nettop.broker."""
    global _opener
    _opener = opener


def opened(how: How, path: str) -> int:
    """Descriptor of a file.  OSError."""
    return _opener(how, path)


def exists(path: str) -> bool:
    """Whether there is something of this name, if only a symbolic link that leads nowhere."""
    try:
        os.close(_opener("look", path))
    except (OSError, ValueError):
        return False
    return True


def create(path: str) -> int:
    """Descriptor of a new file, 0600.  Never an existing one, and never where a symbolic link points."""
    hint = "name a file that is not there, where you may write"
    try:
        return _opener("new", path)
    except FileExistsError:
        raise NettopError(f"{path} is there already", hint, ExitCode.USAGE) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NettopError(f"{path}: {reason}", hint, ExitCode.USAGE) from None


def write_new(path: str, text: str) -> None:
    """A new file of one text.  NettopError."""
    with Sink(path) as sink:
        sink.write(text)


class Closing:
    """What is closed when its ``with`` block ends."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sink(Closing):
    """A new file of whole texts; gzip where its name ends in .gz.

    A write that fails (a full disk) leaves what was there before, whole: the file is cut back and closed.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = create(path)
        self._size = 0
        self._packer = self._new_packer()

    def _new_packer(self) -> zlib._Compress | None:
        return zlib.compressobj(6, zlib.DEFLATED, _GZIP) if self.path.endswith(".gz") else None

    @property
    def closed(self) -> bool:
        """Whether nothing more can be written."""
        return self._fd < 0

    def fresh(self) -> bool:
        """Whether the file is empty, new or truncated by somebody: its first lines are due."""
        if self.closed:
            return False
        size = os.fstat(self._fd).st_size
        if size < self._size:  # half a gzip stream is of no use to anybody
            self._packer = self._new_packer()
        self._size = size
        return size == 0

    def reopen(self) -> None:
        """Go on in the file that has the name now: a new one where the old one was moved away, which is then whole.

        NettopError where that cannot be; the old file goes on then.
        """
        if self.closed:
            return
        try:
            fd = _opener("again", self.path)
        except OSError as error:
            raise NettopError(
                f"{self.path}: {error.strerror}; going on in the file that was open",
                "check who may write there",
            ) from None
        if os.path.samestat(os.fstat(fd), os.fstat(self._fd)):
            os.close(fd)
            return
        try:
            self.close()
        finally:
            self._fd, self._packer = fd, self._new_packer()
            self._size = os.fstat(fd).st_size

    def write(self, text: str) -> None:
        """Append a text, down to the operating system.  NettopError, and a closed file, if it can't."""
        if self.closed:
            raise NettopError(f"{self.path} is closed")
        self.fresh()
        data = text.encode("utf-8", "replace")
        before = self._packer.copy() if self._packer else None  # state of the stream to fall back to
        size = self._size
        try:
            if self._packer:
                data = self._packer.compress(data) + self._packer.flush(zlib.Z_SYNC_FLUSH)
            self._append(data)
        except OSError as error:
            self._packer = before
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, min(size, os.fstat(self._fd).st_size))
            self._size = size
            with contextlib.suppress(NettopError):
                self.close()
            raise self._failed(error) from None

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._size += len(data)

    def close(self) -> None:
        """End the file properly.  Raises NettopError when the disk refuses even that."""
        if self.closed:
            return
        try:
            if self._packer:
                self._append(self._packer.flush(zlib.Z_FINISH))
            os.close(self._fd)
        except OSError as error:
            raise self._failed(error) from None
        finally:
            self._fd = -1

    def _failed(self, error: OSError) -> NettopError:
        return NettopError(
            f"{self.path}: {error.strerror}; writing has stopped",
            "what was written before is whole; make room and name another file",
        )

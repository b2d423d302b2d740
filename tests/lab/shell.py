"""Commands with a time-out, and background processes that end with the lab."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from lab.errors import LabError

TIMEOUT = 30.0


def run(
    argv: Sequence[str],
    *,
    timeout: float = TIMEOUT,
    check: bool = True,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Raises `LabError` after `timeout` seconds, or on a bad exit code if `check`.
    """
    try:
        result = subprocess.run(
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=None if env is None else dict(env),
            cwd=cwd,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"no end after {timeout} s: {' '.join(argv)}") from error
    if check and result.returncode != 0:
        said = f"{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
        raise LabError(f"exit code {result.returncode}: {' '.join(argv)}\n{said}")
    return result


def eventually(condition: Callable[[], bool], *, timeout: float = 10.0, interval: float = 0.01) -> bool:
    """Ask until it is true. False when it was not within `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        if condition():
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(interval)


class Process:
    """A background process whose output is read as it comes, so that it never blocks on a full pipe.

    `on_line` gets each line of stdout (in a thread of its own); stdin is a pipe that stays open until `stop`,
    so a helper can take its end of file for the end of the run.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        on_line: Callable[[str], None] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> None:
        self.argv = list(argv)
        self.lines: list[str] = []
        self.error_lines: list[str] = []
        self._on_line = on_line
        self._changed = threading.Condition()
        self.popen = subprocess.Popen(
            self.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=None if env is None else dict(env),
            cwd=cwd,
        )
        assert self.popen.stdout
        assert self.popen.stderr
        self._readers = [
            threading.Thread(target=self._read, args=(self.popen.stdout, self.lines, True), daemon=True),
            threading.Thread(
                target=self._read, args=(self.popen.stderr, self.error_lines, False), daemon=True
            ),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def stdout(self) -> str:
        return "".join(self.lines)

    @property
    def stderr(self) -> str:
        return "".join(self.error_lines)

    def running(self) -> bool:
        return self.popen.poll() is None

    def wait_lines(self, count: int, *, timeout: float = 10.0) -> list[str]:
        """Wait until stdout has `count` lines.

        Raises `LabError` if the process ends before, or takes too long.
        """
        end = time.monotonic() + timeout
        with self._changed:
            while len(self.lines) < count:
                if not any(reader.is_alive() for reader in self._readers):
                    raise LabError(f"ended with {len(self.lines)} of {count} lines: {self._described()}")
                if time.monotonic() >= end:
                    raise LabError(f"{len(self.lines)} of {count} lines in {timeout} s: {self._described()}")
                self._changed.wait(0.05)
            return self.lines[:count]

    def write_line(self, line: str) -> None:
        assert self.popen.stdin
        try:
            self.popen.stdin.write(line + "\n")
            self.popen.stdin.flush()
        except BrokenPipeError as error:
            raise LabError(f"it is gone: {self._described()}") from error

    def ask(self, line: str, *, timeout: float = 10.0) -> str:
        """Write one line to its stdin and return the line that it answers on stdout."""
        before = len(self.lines)
        self.write_line(line)
        return self.wait_lines(before + 1, timeout=timeout)[-1]

    def send(self, number: int) -> None:
        if self.running():
            self.popen.send_signal(number)

    def wait(self, *, timeout: float = TIMEOUT) -> int:
        """Wait for its end and return the exit code (negative: the signal). Raises `LabError` on time-out."""
        try:
            code = self.popen.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"still running after {timeout} s: {self._described()}") from error
        self.close_stdin()
        for reader in self._readers:
            reader.join(2.0)  # A grandchild may hold the pipe open: what it says later is nobody's.
        return code

    def close_stdin(self) -> None:
        if self.popen.stdin and not self.popen.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.popen.stdin.close()

    def stop(self, number: int = signal.SIGTERM, *, timeout: float = 5.0) -> int:
        """End it: end of file on stdin and a signal, then SIGKILL after `timeout` seconds.

        Returns the exit code.
        """
        self.close_stdin()
        self.send(number)
        try:
            self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.popen.kill()
        return self.wait()

    def _read(self, stream: IO[str], into: list[str], is_stdout: bool) -> None:
        for line in stream:
            if is_stdout and self._on_line:
                self._on_line(line)
            with self._changed:
                into.append(line)
                self._changed.notify_all()
        stream.close()

    def _described(self) -> str:
        return f"{' '.join(self.argv)}\nstdout: {self.stdout[-2000:]}\nstderr: {self.stderr[-2000:]}"

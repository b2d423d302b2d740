"""A network namespace of the lab, and one end of a link in it."""

import ctypes
import os
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lab.errors import LabError, NotOursError
from lab.shell import TIMEOUT, Process, run

CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Namespace:
    """A network namespace that the lab made, or (`name` None) the one that this process runs in.

    Commands run through `ip netns exec`, which also shows them the namespace's own /sys/class/net.
    """

    name: str | None

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside."""
        return [*argv] if self.name is None else ["ip", "netns", "exec", self.name, *argv]

    def run(
        self,
        *argv: str,
        timeout: float = TIMEOUT,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, to its end. Raises `LabError`."""
        return run(self.argv(argv), timeout=timeout, check=check, stdin=stdin, env=env)

    def spawn(self, *argv: str, on_line: Callable[[str], None] | None = None) -> Process:
        """Start a command inside and leave it running.

        Whoever starts it stops it (`Lab.spawn` sees to that).
        """
        return Process(self.argv(argv), on_line=on_line)

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Call a function from inside, in a thread of its own."""
        if self.name is None:
            return function()

        def inside() -> _Result:
            self._enter()
            return function()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(inside).result()

    def socket(self, kind: int, family: int = socket.AF_INET) -> socket.socket:
        """A socket that is inside for good."""
        return self.call(lambda: socket.socket(family, kind))

    def sysctl(self, key: str, value: str | int) -> None:
        """Set `net.<key>` inside, for example `ipv4.tcp_timestamps`. Never in the machine's own namespace."""
        if self.name is None:
            raise NotOursError(f"net.{key} belongs to the machine")
        path = Path("/proc/sys/net") / key.replace(".", "/")
        self.call(lambda: path.write_text(str(value)))

    def read(self, path: str) -> str:
        """The text of a file of /proc as seen inside: `/proc/thread-self/net/...`. For /sys use `run`."""
        return self.call(lambda: Path(path).read_text())

    def _enter(self) -> None:
        fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(fd, CLONE_NEWNET) != 0:
                raise LabError(f"setns to {self.name}: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(fd)


@dataclass(frozen=True)
class Endpoint:
    """One end of a link: an interface of the lab, its namespace and its addresses (without prefix length)."""

    ns: Namespace
    name: str
    mac: str
    v4: str
    v6: str

    def address(self, ipv6: bool = False) -> str:
        return self.v6 if ipv6 else self.v4

"""The loader and a screen that is not honest; and probes that fail for a time."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import Lab, Link, Nettop, bpf, faults, oracle
from lab.namespace import Namespace
from lab.program import REPOSITORY, Frame
from lab.shell import eventually
from lab.traffic import ping

from nettop.bpf.protocol import Filter, Load, Plan, Request, Stats
from nettop.collect.loader_client import LOADER, LoaderHandle
from nettop.core.errors import NettopError
from nettop.probes.base import all_probes

TOO_MANY = "too many requests in a short time; the next is served in "
ACCEPT = (6, 0, 0, 262144)  # classic BPF: return 262144


@contextmanager
def loader(ns: Namespace) -> Iterator[LoaderHandle]:
    """A loader in this namespace, and a screen's end of its socket, without the screen."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            ns.argv([*LOADER, str(theirs.fileno())]),
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    handle = LoaderHandle(ours, process)
    handle.watch_log()
    try:
        yield handle
    finally:
        handle.close()
        process.kill()
        process.wait()
        assert process.stderr
        process.stderr.close()


def served(handle: LoaderHandle, requests: list[Request]) -> tuple[int, float]:
    """How many of these were served, and how long it took; the others were refused in words."""
    refused: list[str] = []
    began = time.monotonic()
    for request in requests:
        try:
            for answer in handle.request(request)[0]:
                for fd in answer.fds:
                    os.close(fd)
        except NettopError as error:
            refused.append(error.message)
    assert not {message for message in refused if not message.startswith(TOO_MANY)}
    return len(requests) - len(refused), time.monotonic() - began


def test_a_screen_that_floods_its_loader_is_refused(veth: Link) -> None:
    """Filters, each of which is compiled, 20 at once and 4 a minute; what is quick, 100 at once and 10 a second."""
    with loader(veth.a.ns) as handle:
        handle.request(Load(Plan(veth.a.name, ("throughput",))))
        count, seconds = served(handle, [Filter(ACCEPT if n % 2 else ()) for n in range(60)])
        print(f"{count} of 60 filters in {seconds:.1f} s")
        assert 19 <= count <= 20 + seconds / 15
        count, seconds = served(handle, [Stats(n % 2 == 0) for n in range(1000)])
        print(f"{count} of 1000 switches in {seconds:.1f} s")
        assert 100 <= count <= 101 + seconds * 10
        time.sleep(0.5)  # and an honest one goes on
        handle.request(Stats(False))


def test_the_screen_gets_no_map_but_those_that_it_reads(veth: Link) -> None:
    """The others hold the kernel's addresses of packets and sockets."""
    built_in = all_probes()
    with loader(veth.a.ns) as handle:
        for answer in handle.request(Load(Plan(veth.a.name, tuple(built_in))))[0]:
            given = {made.name: made.fd for made in answer.probe.maps}
            assert given.keys() == {"config", *(m.name for m in built_in[answer.probe.name].maps)}
            others = {fd for hook in answer.probe.hooks for fd in (*hook.programs, *hook.links)}
            assert len(answer.fds) == len({*given.values(), *others} - {-1})
            for fd in answer.fds:
                os.close(fd)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_loader_that_hangs_keeps_nobody(veth: Link, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from nettop.collect import loader_client

    with loader(veth.a.ns) as handle:
        handle.request(Stats(True))
        monkeypatch.setitem(loader_client._SECONDS, Stats, 1.0)  # type: ignore[arg-type]
        os.kill(handle.pid, number)
        began = time.monotonic()
        with pytest.raises(NettopError, match=r"does not answer .Stats, 1 s|has ended by signal 9"):
            handle.request(Stats(False))
        assert time.monotonic() - began < 5


@pytest.mark.slow
def test_a_probe_that_found_no_memory_is_tried_again(lab: Lab, veth: Link) -> None:
    """The flow table's memory is refused by a cgroup; its pane says so; then there is some, and it runs."""
    before = oracle.attached(veth.a)
    words = ("-d", "0.5", "-p", "throughput,flows", "--max-flows", "1048576")
    with faults.little_memory(160) as limited:
        with Nettop(lab, veth.a, *words, wrap=lambda argv: [*limited, *argv]) as nettop:
            nettop.wait_frames(2, timeout=60)
            first = nettop.frames[-1]["probes"]["flows"]
            assert first["state"] == "failed"
            for part in ("cannot make the map", "1048576 entries", "--max-flows makes the largest smaller"):
                assert part in first["detail"]
            assert re.search(r"Cannot allocate memory.*; next try at \d\d:\d\d:\d\d$", first["detail"])
            assert nettop.frames[-1]["probes"]["throughput"]["state"] == "live"
            group = Path(re.findall(r">(\S+)/cgroup.procs", limited[2])[0])
            limit = next(
                file for name in ("memory.max", "memory.limit_in_bytes") if (file := group / name).exists()
            )
            limit.write_text(str(2 << 30))
            assert until(nettop, lambda frame: frame["probes"]["flows"]["state"] == "live")
            ping(veth.a, veth.b, 31, args=("-e", "77"))
            assert until(nettop, lambda frame: counted(frame, f"{veth.a.v4}:77") == 31)
            # What was there of the first try is gone, and the other probe knew nothing of it.
            assert all(frame["probes"]["throughput"]["state"] == "live" for frame in nettop.frames)
            held = bpf.held(nettop.pid)
        assert eventually(lambda: not bpf.remaining(held))
    assert eventually(lambda: oracle.attached(veth.a) == before)


def until(nettop: Nettop, true: Callable[[Frame], bool]) -> bool:
    return eventually(lambda: true(nettop.frames[-1]), timeout=60)


def counted(frame: Frame, local: str) -> int:
    return sum(row["tx_packets_total"] for row in frame.get("flows", ()) if row["local"] == local)

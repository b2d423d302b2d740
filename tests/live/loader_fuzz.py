"""A loader for each of many hostile screens: forked from one that is imported already, so that hundreds take seconds.

    python loader_fuzz.py CASES SEED        as root, in a network namespace that has nothing but lo

Each line on standard output is one case as JSON: what was sent, the exit code, what the loader said.
"""

from __future__ import annotations

import array
import json
import os
import random
import resource
import select
import signal
import socket
import sys
import time

from nettop.bpf import protocol
from nettop.bpf.protocol import (
    AttachInterface,
    Done,
    Filter,
    Load,
    Loaded,
    Plan,
    ProbeInfo,
    ResumeProbes,
    RetryProbes,
    Stats,
)
from nettop.loader import __main__ as loader

PATIENCE = 20.0


def packed(message: protocol.Message) -> bytes:
    """A message's datagram."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        protocol.send(ours, message)
        return theirs.recv(protocol.MAX_BYTES)


ACCEPT = (6, 0, 0, 262144)  # classic BPF: return 262144
LOAD = packed(Load(Plan("lo", ("throughput",))))
VALID = [
    packed(message)
    for message in (
        Stats(True),
        Stats(False),
        AttachInterface(),
        ResumeProbes(("throughput", "nosuch")),
        RetryProbes(("throughput", "nosuch")),
        Filter(ACCEPT),
        Filter(),
        Load(Plan("nosuch0", ("throughput",))),
        Load(Plan("lo", ("throughput",))),
        Load(Plan("lo", ("nosuch",))),
        Load(Plan("lo", ("throughput", "throughput"), filter=ACCEPT)),
        Done("x"),
        Loaded(ProbeInfo("throughput", "live")),
    )
]
WORDS = [
    b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b'""', b"[]", b"{}", b"9" * 30, b'"\\ud800"', b'"\\u0000"',
    b'"../../etc"', b'"lo"', b'"throughput"', b"[[[[]]]]", b'{"plan":{}}', b'"Load"', b'"Filter"', b"\xff\xfe", b"\0",
]  # fmt: skip


def mutated(numbers: random.Random, data: bytes) -> bytes:
    """Another datagram, made of a valid one."""
    text = bytearray(data)
    for _ in range(numbers.randint(1, 4)):
        at = numbers.randrange(len(text) + 1)
        kind = numbers.randrange(5)
        if kind == 0:
            del text[at:]
        elif kind == 1:
            text[at:at] = numbers.choice(WORDS)
        elif kind == 2 and text:
            text[at % len(text)] = numbers.randrange(256)
        elif kind == 3:
            word = numbers.choice(WORDS)
            text[at : at + len(word)] = word
        else:
            del text[at : at + numbers.randint(1, 12)]
    return bytes(text)


def datagram(numbers: random.Random) -> bytes:
    """Anything that a screen may send."""
    kind = numbers.randrange(10)
    if kind < 4:
        return numbers.choice(VALID)
    if kind < 8:
        return mutated(numbers, numbers.choice(VALID))
    if kind == 8:
        return numbers.randbytes(numbers.randint(0, 300))
    return b'["Done",{"error":"' + b"x" * numbers.choice((100, 70_000, protocol.MAX_BYTES)) + b'"}]'


def serve(theirs: socket.socket, ours: socket.socket, error: int) -> int:
    """In the child: the loader as it is started, but for the start of Python."""
    ours.close()
    os.dup2(error, 2)
    sys.argv = ["nettop.loader", str(theirs.fileno())]
    return loader.main()


def play(numbers: random.Random, ours: socket.socket) -> list[str]:
    """Say things until the loader has heard enough; what was said."""
    said = []
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * protocol.MAX_BYTES)
    ours.settimeout(PATIENCE)
    flood = numbers.randrange(8) == 0
    if numbers.randrange(3) == 0:  # from here on it has something to lose
        ours.send(LOAD)
        said.append("a plan")
        if not answered(ours):
            return said
    for _ in range(400 if flood else numbers.randint(1, 6)):
        data = numbers.choice(VALID[:2]) if flood else datagram(numbers)
        pipes = [os.pipe() for _ in range(numbers.choice((0, 0, 0, 1, 3)))] if not flood else []
        fds = [fd for pipe in pipes for fd in pipe]
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        said.append(f"{data[:80]!r} {len(data)} bytes, {len(fds)} descriptors")
        try:
            ours.sendmsg([data], ancillary)
        except OSError:
            break
        finally:
            for fd in fds:
                os.close(fd)
        if numbers.randrange(3) and not flood and not answered(ours):
            break
    return said if not flood else said[:1]


def answered(ours: socket.socket) -> bool:
    """Hear the answer out; False where the loader has gone."""
    while True:
        try:
            answer = protocol.receive(ours)
        except (EOFError, OSError):
            return False
        if isinstance(answer, Loaded):
            for fd in answer.fds:
                os.close(fd)
        elif isinstance(answer, Done):
            return True
        else:
            raise AssertionError(f"{answer} is not an answer")


def case(number: int, seed: int) -> dict[str, object]:
    """One loader from its start to its end."""
    numbers = random.Random(seed * 100_003 + number)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        code = 99
        try:
            code = serve(theirs, ours, writing)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    theirs.close()
    os.close(writing)
    said = play(numbers, ours)
    ours.close()
    ended = time.monotonic()
    text = b""
    while select.select([reading], [], [], PATIENCE)[0]:
        part = os.read(reading, 65536)
        if not part:
            break
        text += part
    else:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    os.close(reading)
    return {
        "case": number,
        "said": said,
        "code": os.waitstatus_to_exitcode(status),
        "stderr": text.decode(errors="replace"),
        "seconds": time.monotonic() - ended,
    }


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(int(sys.argv[1])):
        print(json.dumps(case(number, int(sys.argv[2]))), flush=True)
    print(json.dumps({"descriptors": len(os.listdir("/proc/self/fd"))}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

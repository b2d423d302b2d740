"""Filters as programs of their own in the kernel, many in one object, to ask each about the same packets.

What is compiled is what nettop compiles: the text of nettop.bpf.filter.to_c behind bpf_src/include/filter.h, by BCC,
for the running kernel.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.namespace import Endpoint

from nettop.bpf import syscall
from nettop.bpf.filter import Program, to_c
from nettop.loader.compile import Object, compile_source

# The verdict of filter N on a packet with the number P at its end is counted in seen[N * PACKETS + P].
PACKETS = 256
_MARK = 0x6E657474  # before the number: other packets are not ours
_COUNT = """
BPF_ARRAY(seen, u64, FILTERS * PACKETS);

static __always_inline void count(int filter, u32 packet)
{
	int key = filter * PACKETS + packet;
	u64 *counted = seen.lookup(&key);

	if (counted)
		ADD(*counted, 1);
}
"""
_TEST = """
int test_{n}(struct __sk_buff *skb)
{{
	return FILTER_ACCEPTS(filter_{n}, skb, L2_LEN, IN);
}}
"""
_LIVE = """
static __always_inline int live_{n}(struct __sk_buff *skb, int direction)
{{
	u32 packet = number(skb);

	if (packet < PACKETS && FILTER_ACCEPTS(filter_{n}, skb, L2_LEN, direction))
		count({n}, packet);
	return TC_ACT_UNSPEC;
}}

int ingress_{n}(struct __sk_buff *skb)
{{
	return live_{n}(skb, IN);
}}

int egress_{n}(struct __sk_buff *skb)
{{
	return live_{n}(skb, OUT);
}}
"""
_HEAD = """
#include "nettop.h"
#include "parse.h"
#include "filter.h"

static __always_inline u32 number(struct __sk_buff *skb)
{
	u32 trailer[2];

	if (skb->len < 8 || bpf_skb_load_bytes(skb, skb->len - 8, trailer, 8) < 0 || trailer[0] != swap32(MARK))
		return PACKETS;
	return swap32(trailer[1]);
}
"""


# The same over the kernel's own sk_buff, as a raw tracepoint has it.
_MEMORY_HEAD = """
#include "nettop.h"
#include "load.h"
#define FILTER
#define FILTER_SK_BUFF
#include "filter.h"

static __always_inline u32 number(const struct filter_packet *packet)
{
	u32 trailer[2] = {};

	bpf_probe_read_kernel(trailer, 8, packet->frame + packet->readable - 8);
	return trailer[0] == swap32(MARK) ? swap32(trailer[1]) : PACKETS;
}
"""
_MEMORY = """
int memory_{n}(struct bpf_raw_tracepoint_args *ctx)
{{
	struct filter_packet packet;

	filter_look(&packet, (void *)ctx->args[0], UNTYPED, L2_LEN, WHERE == AT_LINK ? OUT : IN, WHERE);
	if (number(&packet) < PACKETS && filter_{n}(&packet))
		count({n}, number(&packet));
	return 0;
}}
"""


def numbered(packets: Sequence[bytes]) -> list[bytes]:
    """The packets with a mark and their number behind them, as padding."""
    return [packet + trailer(n) for n, packet in enumerate(packets)]


def trailer(number: int) -> bytes:
    return struct.pack("!II", _MARK, number)


def number_of(packet: bytes) -> int | None:
    mark, number = struct.unpack("!II", packet[-8:]) if len(packet) >= 8 else (0, 0)
    return number if mark == _MARK else None


def compile_for_memory(programs: Sequence[Program], cache: Path, where: str) -> Object:
    """One object with memory_N for each filter: for a raw tracepoint whose skb's data is at `where` (filter.h)."""
    # filter.h wants a filter of its own name as well
    own = to_c(programs[0].instructions)
    return _compiled(_MEMORY_HEAD, _MEMORY, programs, cache, f"-DWHERE={where}", filter_text=own)


def compile_filters(programs: Sequence[Program], cache: Path, *, live: bool, l2_len: int = 14) -> Object:
    """One object with ingress_N and egress_N for each filter (`live`), or test_N, which returns its verdict."""
    return _compiled(_HEAD, _LIVE if live else _TEST, programs, cache, l2_len=l2_len)


def _compiled(
    head: str,
    each: str,
    programs: Sequence[Program],
    cache: Path,
    *flags: str,
    l2_len: int = 14,
    filter_text: str = "",
) -> Object:
    texts = [to_c(p.instructions, f"filter_{n}") + each.format(n=n) for n, p in enumerate(programs)]
    defines = {"FILTERS": len(programs), "PACKETS": PACKETS, "MARK": hex(_MARK), "L2_LEN": l2_len}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "filters.c")
        source.write_text(head + _COUNT + "".join(texts))
        all_flags = (*(f"-D{name}={value}" for name, value in defines.items()), *flags)
        return compile_source(source, cache, all_flags, filter_text=filter_text)


@contextmanager
def loaded(
    made: Object, prefix: str, kind: syscall.ProgType = syscall.ProgType.SCHED_CLS
) -> Iterator[tuple[int, list[int]]]:
    """The map and the programs whose names begin so, in order of their numbers.  OSError if one is refused."""
    spec = made.maps[0]
    seen = syscall.map_create(
        spec.kind, spec.key_size, spec.value_size, spec.max_entries, spec.flags, spec.name
    )
    fds: list[int] = []
    try:
        count = sum(name.startswith(prefix) for name in made.programs)
        for n in range(count):
            code = made.linked(f"{prefix}{n}", [seen])
            fds.append(syscall.prog_load(kind, code, f"{prefix}{n}"))
        yield seen, fds
    finally:
        for fd in (seen, *fds):
            os.close(fd)


@contextmanager
def attached(end: Endpoint, fds: Sequence[int], kind: syscall.AttachType) -> Iterator[None]:
    """The programs on one side of an interface, all of them on each packet (the kernel takes 64)."""
    index = end.ns.call(lambda: socket.if_nametoindex(end.name))
    links: list[int] = []
    try:
        for fd in fds:
            links.append(end.ns.call(lambda fd=fd: syscall.link_create(fd, index, kind, bytes(16))))
        yield
    finally:
        for link in links:
            os.close(link)


def counts(seen: int, filters: int) -> list[list[int]]:
    """What was counted: a list for each filter, by the number of the packet."""
    value = ctypes.c_uint64()
    rows = []
    for n in range(filters):
        row = []
        for packet in range(PACKETS):
            syscall.map_lookup(seen, struct.pack("=I", n * PACKETS + packet), ctypes.addressof(value))
            row.append(value.value)
        rows.append(row)
    return rows


# --- tcpdump, to compare with ---------------------------------------------------------------------------------


def write_capture(path: Path, packets: Sequence[bytes], link: int) -> None:
    """A capture file of these packets, whole (link types: 1 Ethernet, 101 IP)."""
    parts = [struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, link)]
    for n, packet in enumerate(packets):
        parts += [struct.pack("=IIII", n, 0, len(packet), len(packet)), packet]
    path.write_bytes(b"".join(parts))

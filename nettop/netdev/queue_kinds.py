"""Which queues cut large packets up before the driver sees them, and what else they do to its counts: one table.

The programs see what is sent before its queue (qdisc).  A queue that shapes may want small packets: then it cuts a GSO
packet up, whatever the device's offloads, and the driver counts each segment.  Others send twice or cut up what a
random number says, which is not known beforehand.

Source: net/sched/sch_*.c, where skb_gso_segment is called; include/uapi/linux/pkt_sched.h.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nettop.netdev.netlink import Qdisc, attributes, u32

NOTHING, ALL = 0, 1  # Cut.above

_ROOT = 0xFFFFFFFF  # TC_H_ROOT
_NEVER = 1 << 32
_TCA_TBF_PARMS, _TCA_TBF_RATE64, _TCA_TBF_PRATE64 = 1, 4, 5
_TCA_NETEM_CORRUPT, _TCA_CAKE_SPLIT_GSO, _TCA_DUALPI2_SPLIT_GSO = 4, 17, 15
_NETEM = struct.Struct("=6I")  # struct tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter
_RATE = struct.Struct("=BBHhHI")  # struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate
_TBF = struct.Struct("=12s12s3I")  # struct tc_tbf_qopt: rate, peakrate, limit, buffer, mtu
_TICK_NS = 64  # PSCHED_TICKS2NS
_ATM = 2  # TC_LINKLAYER_ATM


@dataclass(frozen=True)
class Cut:
    """Of GSO packets, those whose segments make more bytes than ``above`` together are cut up (0: none are).

    ``differs`` says why the driver counts otherwise, where that cannot be followed.
    """

    above: int = NOTHING
    differs: str = ""


@dataclass(frozen=True)
class _Own:
    """What one queue does: the packets that it cuts up; why that is not known; whether it sends some of them twice."""

    above: int = _NEVER
    pieces: str = ""
    twice: bool = False


def _cake(qdisc: Qdisc) -> _Own:
    return _Own(ALL if u32(attributes(qdisc.options), _TCA_CAKE_SPLIT_GSO, 1) else _NEVER)


def _dualpi2(qdisc: Qdisc) -> _Own:
    return _Own(ALL if u32(attributes(qdisc.options), _TCA_DUALPI2_SPLIT_GSO) else _NEVER)


def _netem(qdisc: Qdisc) -> _Own:
    options = qdisc.options.ljust(_NETEM.size, b"\0")
    duplicate = _NETEM.unpack_from(options)[4]
    pieces = "netem cuts up the large packets that it corrupts, and the device counts the pieces"
    corrupt = u32(attributes(options[_NETEM.size :]), _TCA_NETEM_CORRUPT)
    return _Own(pieces=pieces if corrupt else "", twice=bool(duplicate))


def _tbf(qdisc: Qdisc) -> _Own:
    """Its ``max_size``, of which the kernel tells the time that so much takes, in ticks (tbf_change, tbf_dump)."""
    if qdisc.sized:  # tc-stab(8): the queue takes them to be larger than they are
        return _Own(pieces="tbf cuts up what its size table makes larger than its burst")
    found = attributes(qdisc.options)
    parms = found.get(_TCA_TBF_PARMS, b"")
    if len(parms) < _TBF.size:
        return _Own()
    rate, peak, _, buffer, mtu = _TBF.unpack_from(parms)
    above = _bytes(rate, found.get(_TCA_TBF_RATE64, b""), buffer)
    if _RATE.unpack(peak)[5] or _TCA_TBF_PRATE64 in found:
        above = min(above, _bytes(peak, found.get(_TCA_TBF_PRATE64, b""), mtu))
    return _Own(max(above, ALL))


def _bytes(rate: bytes, rate64: bytes, ticks: int) -> int:
    """psched_ns_t2l: the bytes that so many ticks stand for, up to the next one."""
    _, layer, overhead, _, _, slow = map(int, _RATE.unpack(rate))
    fast = int(struct.unpack("=Q", rate64)[0]) if len(rate64) == 8 else slow
    size = ((ticks + 1) * _TICK_NS - 1) * fast // 1_000_000_000
    if layer & 0xF == _ATM:
        size = size // 53 * 48
    return max(size - overhead, 0)


def _taprio(_: Qdisc) -> _Own:
    if _kernel() < (6, 3):
        return _Own(ALL)
    return _Own(pieces="taprio cuts up what is too large for its gates, and the device counts the pieces")


def _kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])


_OWN: Mapping[str, Callable[[Qdisc], _Own]] = {
    "cake": _cake,
    "cake_mq": _cake,
    "dualpi2": _dualpi2,
    "netem": _netem,
    "tbf": _tbf,
    "taprio": _taprio,
}
# These have a child for each of the device's queues, and netlink lists them all.
_COMPLETE = ("mq", "mqprio", "taprio", "cake_mq")
# And these one alone, for all that they let through.
_ONE_CHILD = ("tbf", "netem")
# These cut nothing up, and have no children that do.
_LEAVES = frozenset(
    "noqueue noop pfifo_fast pfifo bfifo pfifo_head_drop fq fq_codel fq_pie codel pie sfq hhf etf".split()
)


def may_cut(root: str) -> bool:
    """Whether the queues of an interface need to be asked for, by the kind of its root."""
    return bool(root) and root not in _LEAVES


def cut(qdiscs: Sequence[Qdisc], whole: bool = True) -> Cut:
    """What all the queues of an interface do together.  ``whole``: its driver counts a large packet as one."""
    for root in qdiscs:
        if root.parent == _ROOT:
            found = _below(root, qdiscs, 0)
            said = [found.pieces] if found.pieces and whole else []
            said += ["netem sends packets twice, and the device counts both"] if found.twice else []
            return Cut(NOTHING if found.above >= _NEVER else found.above, "; ".join(said))
    return Cut()


def _below(qdisc: Qdisc, qdiscs: Sequence[Qdisc], depth: int) -> _Own:
    own = _OWN[qdisc.kind](qdisc) if qdisc.kind in _OWN else _Own()
    if depth > 8:  # TC_H_MAJ is 16 bits, and a tree that is being changed may be read as a circle
        return own
    children = [(child, _below(child, qdiscs, depth + 1)) for child in _children(qdisc, qdiscs)]
    said = [text for text in (own.pieces, *(found.pieces for _, found in children)) if text]
    pieces = said[0] if said else ""
    twice = own.twice or any(found.twice for _, found in children)
    levels = {found.above for _, found in children}
    if qdisc.kind in _COMPLETE + _ONE_CHILD and len(levels) == 1:
        return _Own(min(own.above, *levels), pieces, twice)
    for child, found in children:
        if found.above < own.above and not pieces:
            pieces = (
                f"{child.kind} below {qdisc.kind} cuts up the large packets that go through it, and the device counts "
                "the pieces"
            )
    return _Own(own.above, pieces, twice)


def _children(parent: Qdisc, qdiscs: Sequence[Qdisc]) -> Iterator[Qdisc]:
    # Without a handle: made by the kernel, below one that may have no handle either.
    if not parent.handle and parent.parent != _ROOT:
        return
    for qdisc in qdiscs:
        if qdisc.parent >> 16 == parent.handle >> 16 and qdisc.parent != _ROOT and qdisc is not parent:
            yield qdisc

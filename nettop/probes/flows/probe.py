"""Flows: one row a connection, its traffic, its RTT by passive methods, its process; RTT histograms by subnet.

The C side (bpf_src/flows/flows.c, layouts in flow.h) keeps one entry a flow; this joins two scans of the table by flow
id, without a Python loop over flows anywhere.
"""

from __future__ import annotations

from typing import Any

from nettop.bpf.hooks import Attachment, Candidate, Hook, one
from nettop.bpf.layout import Map
from nettop.probes.base import Probe, Shedding, tc_hook
from nettop.probes.flows import table as view
from nettop.probes.flows.fold import EXPIRE, FlowsFold
from nettop.probes.flows.rows import SOURCES
from nettop.probes.flows.section import Flows


def _owner(name: str, functions: tuple[str, ...]) -> Hook:
    """Reading from or writing to a socket, in the process that does it; by function where there is no tracepoint."""

    def by(via: Any, program: str) -> Candidate:
        return Candidate(via, tuple(Attachment(program, function) for function in functions))

    return Hook(
        name,
        (
            one("tp_btf", "flows_owner_typed", name),
            one("raw_tracepoint", "flows_owner", name),
            by("fentry", "flows_owner"),
            by("kprobe", "flows_owner_kprobe"),
        ),
    )


_KEY = "local remote local_port remote_port protocol tunnel tunnel_id"
PROBE = Probe(
    name="flows",
    summary="every connection with its traffic, passive RTT, retransmits and process; RTT by subnet",
    hooks=(
        tc_hook("flows", "ingress"),
        tc_hook("flows", "egress"),
        _owner("sock_send_length", ("tcp_sendmsg", "udp_sendmsg", "udpv6_sendmsg")),
        _owner("sock_recv_length", ("tcp_recvmsg", "udp_recvmsg", "udpv6_recvmsg")),
        Hook(EXPIRE, (one("prog_run", "flows_expire", "due"),)),
    ),
    maps=(
        # Counters before flows: what is created between the two readings must not count as evicted.
        Map(
            "counters",
            "percpu",
            "created replaced opened closed revived expired idle untracked fragments fragment_bytes lost_events",
        ),
        Map(
            "flows",
            "hash",
            f"{SOURCES} flags dir.known dir.tsval dir.rtt_probes.value dir.rtt_probes.method",
            _KEY,
            entries=lambda settings: int(settings.max_flows),
            scan=True,
        ),
        Map("owners", "hash", "pid comm srtt_us cwnd", _KEY, scan=True),
        Map("rtts", "percpu", "sum slots"),
        Map("subnets", "hash", "sum min slots", "prefix length version"),
        Map("events", "ring", "time id rtt leg method payload tsval"),
        Map("config", "array", "focus"),
        Map(
            "focused",
            "array",
            "id time jiffies answers answer_ns data zero_windows unasked cwnd ssthresh mss send_window receive_window "
            "in_flight unsent unread chrono chrono_start srtt rtt_min rcv_rtt total_retrans dsack_dups",
        ),
        Map("due", "none", "read_at count of.key of.id"),
    ),
    fold=FlowsFold,
    section=Flows,
    focuses=True,
    panes=view.PANES,
    sheds=(
        # At most: an RTT probe in 268 ms instead of one in 17 ms.
        Shedding(
            "rtt_one_in",
            "RTT probes of a TCP flow",
            "RTT 1:{}",
            (2, 4, 8, 16),
            knob="rtt_shift",
            weight=0.1,
            last=True,
        ),
    ),
)

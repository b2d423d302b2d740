/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * A flow: both directions of a connection, in one entry. docs/flows-data.md has who writes what;
 * tests/unit/test_layout.py compares the constants with nettop/probes/flows/constants.py.
 */
#ifndef FLOW_H
#define FLOW_H

/* Where an RTT sample comes from. docs/probes/flows.md has each one's error. */
#define METHOD_NONE 0
#define METHOD_TIMESTAMP 1 /* TSval and its first echo, RFC 7323 */
#define METHOD_SEQUENCE 2 /* a segment and the ACK that covers it */
#define METHOD_HANDSHAKE 3 /* SYN and SYN-ACK, SYN-ACK and ACK */
#define METHOD_ECHO 4 /* ICMP echo and reply */
#define METHOD_DNS 5 /* query and response */
#define METHOD_SPIN 6 /* QUIC's spin bit, RFC 9000, 17.4 */

/*
 * What a flow has come to. Both directions write here, perhaps on two CPUs: bits are set and cleared atomically. The
 * state that is shown follows from them (constants.py).
 */
#define FLOW_FIN(direction) (1ULL << (direction)) /* bits 0 and 1 */
#define FLOW_FINS 3ULL /* of both */
#define FLOW_OPENED_BY(direction) (4ULL << (direction)) /* bits 2 and 3: who sent the SYN */
#define FLOW_MIDWAY 16ULL /* first seen when it was already there */
#define FLOW_TCP 32ULL
#define FLOW_SYN 64ULL /* a SYN, and nothing else of that direction yet */
#define FLOW_REPLIED 128ULL /* both ends have spoken: the connection is there */
#define FLOW_CLOSED 256ULL /* counted as closed */
#define FLOW_RESET 512ULL /* that was by a RST */
#define FLOW_RESET_BY(direction) (1024ULL << (direction)) /* bits 10 and 11: who sent it */
#define FLOW_EGRESS 4096ULL /* seen at TC egress: not a port mirror's */
#define FLOW_SYN_PENDING(direction) (8192ULL << (direction)) /* bits 13, 14: a SYN into the live connection */

/* The two legs of a path, with the interface between them. */
#define LEG_EXTERNAL 0 /* from the interface to the remote end and back */
#define LEG_INTERNAL 1 /* from the interface to the local end and back */

/* Something that was sent and whose answer will give a round trip. */
struct rtt_probe {
	u64 time; /* 0: none */
	u32 value; /* TSval, sequence number, echo sequence, DNS id */
	u32 method;
};

#define DIR_SEQ 1 /* `seq` is known */
#define DIR_ACK 2 /* `ack` is known */
#define DIR_TSVAL 4 /* `tsval` is known */
#define DIR_STAMPED 8 /* the last segment carried timestamps */
#define DIR_RESENT 16 /* since the newest data, older data came that may have been sent after it */

/*
 * One direction. Its own packets write it; those of the other one, perhaps on another CPU, only take
 * `rtt_probes[].time` and count `dsacks`. What each packet writes comes first; what the other direction reads comes
 * last.
 */
struct flow_dir {
	u64 bytes;
	u64 packets; /* on the wire: a GSO packet is its segments */
	u32 seq; /* the highest end of a segment so far */
	u32 tsval; /* the newest so far */
	u32 ack; /* the highest that it has acknowledged */
	u16 window; /* as in the last segment, not scaled */
	u16 ip_id; /* of the newest data segment */
	u32 data_time; /* of the last data, coarse clock in 2^20 ns */
	u8 ip_id_score; /* how often in a row it went up by a little */
	u8 probe_slot; /* of the coarse clock, when the last probe was sent */
	u16 mss; /* the largest segment, bytes of data */
	u32 syn_bytes; /* of a SYN that is pending */
	u32 retransmits; /* segments, as are the following */
	u32 out_of_order; /* overtaken on the way, and sent once */
	u32 duplicates; /* copies that the network made */
	u32 tcp_probes; /* keep-alives and window probes */
	u32 uncertain; /* one of the first three */
	u32 dsacks; /* that the receiver says to have had before, RFC 2883 */
	u8 known; /* DIR_* */
	u8 window_scale; /* 1 + the shift; 0: not seen */
	u8 gaps; /* whether there are entries in the map `gaps` */
	u8 epoch; /* of the configuration, when its last packet was seen */
	struct rtt_probe rtt_probes[2];
};

/* RFC 6298 */
struct rtt {
	u64 last;
	u64 min;
	u64 min_bare; /* of those that a kernel answered: bare ACK, handshake, echo. 0: none */
	u64 srtt;
	u64 rttvar;
	u64 time; /* of the last sample */
	u32 samples;
	u32 method;
};

struct flow { /* docs/flows-data.md has who writes what */
	u64 id;
	u64 first;
	u64 last; /* by the coarse clock: a tick at most behind */
	u64 flags; /* FLOW_* */
	struct flow_dir dir[2];
	struct rtt rtt[2];
};

/* Sequence numbers of a direction, and of the segment that showed them what tells when it was sent: see order.h. */
struct seq_range {
	u32 start;
	u32 end; /* equal: free */
	u32 tsval;
	u16 ip_id;
	u8 stamped;
	u8 unsure; /* of a gap: what it lacks may have been sent again before it was seen to be a gap */
};

#define GAPS 8

struct gap_key {
	u64 flow;
	u64 direction;
};

struct gaps {
	struct seq_range gap[GAPS]; /* jumped over, by the first segment beyond */
	u64 gap_time[GAPS];
	struct seq_range resent[GAPS]; /* sent again into a gap: what was there first may only be late */
	u64 next; /* of `resent`, to be written over */
};

/*
 * The flow in focus, one entry. Its socket is found by a packet that it sends, and read when one comes in: then TCP
 * is at rest. The kernel's account of what limited the sender (tcp_info's busy and rwnd_limited) is in jiffies.
 */
struct focused {
	u64 id; /* of the flow that all this is about */
	u64 time; /* of the last reading; 0: no socket on this host */
	u64 jiffies;
	u64 socket;
	u64 spoke[2]; /* when each end last sent data */
	u64 answer_ns[2]; /* from the other end's last data to this one's first, summed */
	u32 answers[2];
	u32 data[2]; /* packets with data, a GSO packet as one */
	u32 zero_windows[2]; /* segments that announce a window of 0 */
	u32 cwnd; /* segments */
	u32 ssthresh;
	u32 mss;
	u32 send_window; /* bytes, as the remote end has last announced, scaled */
	u32 receive_window; /* our own */
	u32 in_flight; /* bytes sent and not acknowledged */
	u32 unsent; /* bytes written and not sent */
	u32 unread; /* bytes received in order and not read */
	u32 chrono_start; /* of what keeps it now, jiffies */
	u32 chrono[3]; /* busy, limited by the receiver's window, by the send buffer: what is over of each */
	u32 last; /* 1 + the direction of the last data; 0: none yet */
	u32 unasked[2]; /* data after a pause, of an end that spoke last itself */
	u32 srtt; /* of the kernel, us: smoothed; 0: none yet */
	u32 rtt_min; /* the least of five minutes, us; ~0: none yet */
	u32 rcv_rtt; /* as a receiver sees it: from its ACK to the data that echoes it, us */
	u32 total_retrans; /* segments, as the kernel itself counts what it sends again */
	u32 dsack_dups; /* of these, what the remote end says it had already */
};

/* An RTT sample of the flow in focus. */
struct event {
	u64 time;
	u64 id;
	u64 rtt;
	u32 leg; /* LEG_* */
	u32 method;
	u32 payload; /* bytes of data in what answered; 0: a bare ACK */
	u32 tsval; /* of what answered; 0: no timestamp */
};

/* Per CPU, and only ever growing. */
struct counters {
	u64 ids; /* that were given out */
	u64 created; /* entries of the flow table */
	u64 replaced; /* of these, over an earlier connection with the same ports */
	u64 opened; /* connections: a SYN, or the first packet of anything else */
	u64 closed; /* by FINs or RST */
	u64 revived; /* of these, the connection went on after the RST */
	u64 expired; /* taken out of the table: closed or idle */
	u64 idle; /* of these, not closed */
	u64 untracked; /* packets that should be in a flow: a broken IP header, or no room in the table */
	u64 fragments; /* that came without their first one */
	u64 fragment_bytes;
	u64 lost_events;
};

/* Flows whose time was over when user space last read the table: for flows_expire. */
#define DUE_FLOWS 256

struct due_flow {
	struct flow_key key;
	u64 id;
};

struct due {
	u64 read_at; /* when the table was read, ns */
	u64 count;
	struct due_flow of[DUE_FLOWS];
};

/* Histogram of a subnet's round trips: shared by all CPUs, since samples are rare. */
struct subnet_key {
	u32 prefix[4];
	u32 length; /* in the address family's own terms */
	u32 version;
};

struct subnet {
	u64 sum;
	u64 min;
	u32 slots[HIST_SLOTS];
};

/* The process that uses a socket, and what the kernel thinks of the socket's RTT. */
struct owner {
	u32 pid;
	u32 srtt_us; /* 0: not TCP, or no sample yet */
	u32 cwnd;
	char comm[16];
};

struct socket_slot {
	u64 sk;
	u64 jiffies;
	u32 pid;
	u32 ports; /* the next socket at this address has others */
};

struct fragment_slot {
	u64 hash; /* of addresses, protocol and id */
	u16 local_port;
	u16 remote_port;
	u32 spare;
};

#endif

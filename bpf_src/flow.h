/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * A flow: both directions of a connection, in one entry. nettop/probes/flows.py
 * mirrors the layouts; tests/unit/test_layout.py compiles and compares.
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

#define STATE_NONE 0 /* not TCP */
#define STATE_SYN 1
#define STATE_OPEN 2
#define STATE_CLOSING 3 /* one side has sent its FIN */
#define STATE_CLOSED 4
#define STATE_RESET 5

#define FLOW_FIN(direction) (1 << (direction)) /* bits 0 and 1 */
#define FLOW_OPENED_BY(direction) (4 << (direction)) /* bits 2 and 3: who sent the SYN */
#define FLOW_MIDWAY 16 /* first seen when it was already there */
#define FLOW_STAMPED(direction) (32 << (direction)) /* bits 5 and 6: carries TCP timestamps */

#define OUTWARD 0 /* from the interface to the remote end and back */
#define INWARD 1 /* from the interface to the local end and back */

/* Something that was sent and whose answer will give a round trip. */
struct outstanding {
	u64 time; /* 0: none */
	u32 value; /* TSval, sequence number, echo sequence, DNS id */
	u32 method;
};

struct flow_dir {
	u64 bytes;
	u64 packets; /* on the wire: a GSO packet is its segments */
	u32 retransmits;
	u32 out_of_order;
	u32 sequence; /* the highest end of a segment so far */
	u32 stamp; /* the newest TSval so far */
	struct outstanding sent[2];
};

/* RFC 6298 */
struct rtt {
	u64 last;
	u64 min;
	u64 smoothed;
	u64 variance;
	u64 time; /* of the last sample */
	u32 samples;
	u32 method;
};

struct flow {
	u64 id;
	u64 first;
	u64 last; /* by the coarse clock: a tick at most behind */
	u8 state;
	u8 flags;
	u16 window[2]; /* as in the last segment, not scaled */
	u8 tick[2]; /* of the coarse clock, when this direction's last probe was sent */
	struct flow_dir dir[2];
	struct rtt rtt[2];
};

/*
 * The flow in focus, one entry. Its socket is found by a packet that it sends, and read when one comes in:
 * then TCP is at rest. The times of the kernel's own account of what kept the sender (tcp_info's busy and
 * rwnd_limited) are in jiffies.
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
	u32 spare;
};

#define EVENT_OPEN 1
#define EVENT_CLOSE 2
#define EVENT_SAMPLE 3

struct event {
	u64 time;
	u64 id;
	struct flow_key key;
	u64 bytes[2];
	u64 packets[2];
	u64 rtt;
	u8 kind;
	u8 state;
	u8 side;
	u8 method;
	u32 spare;
};

/* Per CPU, and only ever growing. */
struct counters {
	u64 created; /* entries of the flow table */
	u64 replaced; /* of these, over an earlier connection with the same ports */
	u64 opened; /* connections: a SYN, or the first packet of anything else */
	u64 closed; /* by FINs or RST */
	u64 untracked; /* packets that belong to no flow: neither IP nor ARP, or no room */
	u64 fragments; /* that came without their first one */
	u64 lost_events;
	u64 samples;
	u64 subnet_overflow; /* samples of subnets beyond the table */
	/* no counters: the coarse clock as it was read last, and when that was */
	u64 tick; /* jiffies */
	u64 tick_ns;
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
	u64 time;
	u32 pid;
	u32 uid;
	u32 srtt_us; /* 0: not TCP, or no sample yet */
	u32 cwnd;
	u32 netns;
	u32 spare;
	char comm[16];
};

struct socket_slot {
	u64 sk;
	u64 jiffies;
	u32 pid;
	u32 ports; /* the next socket at this address has others */
};

#endif

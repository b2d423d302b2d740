/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What is known of the packet in hand. It lies in a map and not on the stack: there is
 * more of it than a stack holds, and what the verifier reads from a map is any number to
 * it, so that it need not follow every combination of what a packet may turn out to be.
 * A CPU has one packet at a time here; nothing that is called sends another.
 */
#ifndef WORK_H
#define WORK_H

/* A TCP segment, or what of another protocol plays the same part. */
struct segment {
	u32 seq;
	u32 ack;
	u32 payload;
	u32 tsval;
	u32 tsecr;
	u32 dsack; /* bytes that the sender of this ACK had before */
	u16 window;
	u8 flags; /* TCPHDR_* */
	u8 stamped;
	u8 window_scale; /* 1 + the shift; 0: none */
	u8 has_ip_id;
	u16 ip_id;
};

/* A round trip that has ended. */
struct rtt_sample {
	u64 sent; /* 0: none */
	u32 method;
	u32 bare; /* a kernel answered, and no application was waited for */
};

struct marks {
	u8 epoch; /* of the configuration */
	u8 probe_slot; /* of the time */
	u8 fresh; /* its TSval was not seen before */
	u8 foreign; /* a SYN of no connection yet: its sequence numbers say nothing here */
	u8 put; /* the flow is in `flow` below, and goes into the table */
	u8 over; /* in the place of another of the same key */
	u8 opened; /* it is a new one */
	u8 first_ack; /* its direction has acknowledged nothing before */
};

struct work {
	struct flow_key key;
	struct packet packet; /* in a tunnel the one inside, but `size` is of all of it */
	struct packet inside;
	struct size size;
	struct segment s;
	struct rtt_sample sample;
	u64 coarse; /* the time by the coarse clock */
	u32 method; /* by which it may be timed */
	u32 direction; /* within the flow */
	u32 newest; /* TSval of this direction before this packet */
	u32 index; /* of a gap */
	struct marks marks;
	struct gap gap; /* that it fills */
	struct flow flow; /* a new one until it is put into the table */
	u8 options[96]; /* forty, and room for what a mask lets through */
};

BPF_PERCPU_ARRAY(work, struct work, 1);

#endif

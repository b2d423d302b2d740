/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What is known of the packet in hand. In a map: it is more than a stack holds, and what the verifier reads from a
 * map is any number to it, so it need not follow every combination. A CPU has one packet at a time here.
 */
#ifndef WORK_H
#define WORK_H

#ifndef GENERATION
#define GENERATION 0 /* of the filter: counted up when the programs are exchanged */
#endif
/* At most one probe in 2^24 ns = 16.8 ms: sixty samples a second and direction are plenty. */
#define PROBE_SLOT_SHIFT 24

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
	u8 tsval_new; /* its TSval was not seen before */
	u8 foreign; /* a SYN of no connection yet: its sequence numbers say nothing here */
	u8 put; /* the flow is in `flow` below, and goes into the table */
	u8 over; /* in the place of another of the same key */
	u8 opened; /* it is a new one */
	u8 first_ack; /* its direction has acknowledged nothing before */
};

/* The coarse clock as it was read last, and when that was. */
struct coarse_clock {
	u64 jiffies;
	u64 ns;
};

struct work {
	struct flow_key key;
	struct packet packet; /* in a tunnel the one inside, but `size` is of all of it */
	struct packet inside;
	struct size size;
	struct segment s;
	struct rtt_sample sample;
	struct coarse_clock clock;
	u64 coarse; /* the time by the coarse clock */
	u32 method; /* by which it may be timed */
	u32 direction; /* within the flow */
	u32 newest; /* TSval of this direction before this packet */
	u32 index; /* of a gap, or of what was sent again */
	struct marks marks;
	struct seq_range gap; /* that it fills */
	u64 gap_time;
	struct flow flow; /* a new one until it is put into the table */
	u8 options[96]; /* forty, and room for what a mask lets through */
};

BPF_PERCPU_ARRAY(work, struct work, 1);

/* TCP whose header could be read: nothing else is timed so. */
static __always_inline bool is_tcp(const struct work *w)
{
	return w->method == METHOD_TIMESTAMP;
}

static __always_inline bool in_focus(const struct config *c, const struct flow *flow)
{
	return c->focus && c->focus == flow->id;
}

/*
 * The coarse clock goes on with jiffies, which are one load where asking for it is a call: so it is kept for a tick.
 */
static __always_inline u64 coarse_now(struct coarse_clock *clock)
{
	u64 jiffies = bpf_jiffies64();

	if (clock->jiffies != jiffies) {
		clock->jiffies = jiffies;
		clock->ns = bpf_ktime_get_coarse_ns();
	}
	return clock->ns;
}

static __always_inline void work_begin(struct work *w, const struct config *c, int hook)
{
	__builtin_memset(&w->s, 0, sizeof(w->s));
	__builtin_memset(&w->marks, 0, sizeof(w->marks)); /* one store for all of them */
	w->sample.sent = 0;
	w->sample.method = METHOD_NONE;
	w->coarse = coarse_now(&w->clock);
	w->direction = hook;
	w->key.tunnel_id = 0;
	w->marks.epoch = c->epoch << 2 | GENERATION;
	w->marks.probe_slot = w->coarse >> (PROBE_SLOT_SHIFT + (c->rtt_shift & 7));
}

#endif

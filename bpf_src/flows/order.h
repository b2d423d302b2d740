/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Data out of order: overtaken on the way, copied by the network, or sent again?  The evidence, strongest first:
 *
 * - TSval (RFC 7323): older than that of the segment that overtook it, sent before it; newer, sent again; equal says
 *   nothing.
 * - The sender: data of a local socket has crossed no network that might have reordered or copied it.
 * - The IPv4 ID, where this direction's increase: Linux counts them for each connection, with DF too, others for each
 *   host.
 * - Time: a sender repeats itself for ACKs, a round trip later, or by a timer, of which the shortest in use is 30 ms.
 *
 * What none of these can tell is counted as uncertain.
 */
#ifndef ORDER_H
#define ORDER_H

#define IP_ID_TRUSTED 4 /* increases in a row: by chance once in 16 million */
#define IP_ID_STEP 1024 /* of which none is larger: other connections of that host may count too */
#define TIMER_MIN_NS (20 * NSEC_PER_MSEC) /* no retransmission timer is as short */
#define SYN_TIMER_NS (100 * NSEC_PER_MSEC) /* nor as that one before an RTT is known (1 s, RFC 6298) */
#define KEEPALIVE_IDLE_NS (900 * NSEC_PER_MSEC) /* no keep-alive comes sooner after data */
#define DATA_TIME_SHIFT 20
#define TICK_MAX_NS (12 * NSEC_PER_MSEC) /* of the coarse clock, and of what is kept of it */

BPF_TABLE("lru_hash", struct gap_key, struct gaps, gaps, 4096);
BPF_PERCPU_ARRAY(no_gaps, struct gaps, 1); /* zeros */

/* What a segment that did not come in order is. */
#define LATE_REORDERED 1
#define LATE_DUPLICATE 2
#define LATE_RETRANSMIT 3
#define LATE_UNCERTAIN 4

static __always_inline u32 data_time(u64 coarse)
{
	return coarse >> DATA_TIME_SHIFT;
}

/* How long ago this direction's last data was, at least so long and a tick at most. */
static __always_inline u64 data_age(const struct flow_dir *dir, u64 coarse)
{
	return (u64)(data_time(coarse) - dir->data_time) << DATA_TIME_SHIFT;
}

/* IPv4 IDs of data in order: do they increase?  A GSO packet takes one for each of its segments. */
static __always_inline void track_ip_id(struct flow_dir *dir, const struct work *w)
{
	u16 step = w->s.ip_id - dir->ip_id;

	if (step && step < IP_ID_STEP)
		dir->ip_id_score += dir->ip_id_score < IP_ID_TRUSTED;
	else
		dir->ip_id_score = 0;
	dir->ip_id = w->s.ip_id + w->size.segments - 1;
}

#define SENDER_ELSEWHERE 0 /* behind a network, or unknown */
#define SENDER_LOCAL 1 /* a packet socket here: a stack in user space mostly */
#define SENDER_TCP 2 /* a TCP socket here */

/* What sends this. */
static __always_inline int local_sender(struct __sk_buff *skb, int hook)
{
	struct bpf_sock *sk;

	if (hook != OUT)
		return SENDER_ELSEWHERE;
	sk = skb->sk;
	if (!sk)
		return SENDER_ELSEWHERE;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return SENDER_ELSEWHERE;
	if (sk->protocol == IPPROTO_TCP)
		return SENDER_TCP;
	return sk->family == AF_PACKET ? SENDER_LOCAL : SENDER_ELSEWHERE;
}

/* What is kept of this direction's gaps; NULL where there are none. */
static __always_inline struct gaps *gaps_of(const struct flow *flow, const struct work *w)
{
	struct gap_key key = {.flow = flow->id, .direction = w->direction};

	return gaps.lookup(&key);
}

/* These sequence numbers, and what this segment tells of when it was sent. */
static __always_inline void range_set(struct seq_range *r, u32 start, u32 end, const struct segment *s,
				      bool unsure)
{
	r->start = start;
	r->end = end;
	r->tsval = s->tsval;
	r->stamped = s->stamped;
	r->ip_id = s->ip_id;
	r->unsure = unsure;
}

/* Into w->index: the last of GAPS ranges that [start, end) overlaps, or, `whole`, lies in. False: there is none. */
static __always_inline bool range_find(const struct seq_range *ranges, u32 start, u32 end, bool whole,
				       struct work *w)
{
	int i;

	w->index = GAPS;
#pragma unroll
	for (i = 0; i < GAPS; i++) {
		const struct seq_range *r = &ranges[i];

		if (r->start != r->end && (whole ? !before(start, r->start) && !before(r->end, end)
						 : before(start, r->end) && before(r->start, end)))
			w->index = i;
	}
	return w->index < GAPS;
}

/* [start, end) has come. From the middle: the lower part is kept, since what is sent again mostly goes on upwards. */
static __always_inline void range_take(struct seq_range *r, u32 start, u32 end)
{
	if (!before(r->start, start))
		r->start = before(end, r->end) ? end : r->end;
	else
		r->end = start;
}

/* [start, end) was jumped over by this segment. */
static __always_inline void gap_open(struct flow *flow, struct flow_dir *dir, u32 start, u32 end,
				     struct work *w)
{
	struct gap_key key = {.flow = flow->id, .direction = w->direction};
	struct gaps *all = gaps.lookup(&key);
	u64 oldest = ~0ULL;
	int i, zero = 0;

	if (!all) {
		struct gaps *none = no_gaps.lookup(&zero);

		if (none)
			gaps.insert(&key, none);
		all = gaps.lookup(&key);
		if (!all)
			return;
	}
	/* too many: the one that has been open for longest has been given up by its sender, or will be */
#pragma unroll
	for (i = 0; i < GAPS; i++) {
		u64 time = all->gap[i].start == all->gap[i].end ? 0 : all->gap_time[i];

		if (time < oldest) {
			oldest = time;
			w->index = i;
		}
	}
	/*
	 * An ACK for what was sent after it, or a timer that ran in a pause, needs no gap to have the sender repeat
	 * it.
	 */
	range_set(&all->gap[w->index & (GAPS - 1)], start, end, &w->s,
		  dir->known & DIR_RESENT || data_age(dir, w->coarse) > TIMER_MIN_NS - TICK_MAX_NS);
	all->gap_time[w->index & (GAPS - 1)] = bpf_ktime_get_ns();
	dir->gaps = 1;
}

#define SENT_UNKNOWN 0
#define SENT_EARLIER 1
#define SENT_LATER 2

/* When this segment was sent, by what a range has of another one. */
static __always_inline int sent_order(const struct segment *s, const struct seq_range *than, bool ip_ids)
{
	if (s->stamped && than->stamped && s->tsval != than->tsval)
		return before(s->tsval, than->tsval) ? SENT_EARLIER : SENT_LATER;
	if (ip_ids && s->has_ip_id)
		return before16(s->ip_id, than->ip_id) ? SENT_EARLIER : SENT_LATER;
	return SENT_UNKNOWN;
}

/* Half of the least round trip that was seen from end to end: the path's own may be shorter. 0: not known. */
static __always_inline u64 half_rtt(const struct flow *flow)
{
	if (!flow->rtt[LEG_EXTERNAL].samples || !flow->rtt[LEG_INTERNAL].samples)
		return 0;
	return (flow->rtt[LEG_EXTERNAL].min + flow->rtt[LEG_INTERNAL].min) / 2;
}

/* Of data that fills a gap. */
static __always_inline int judge_filling(const struct flow *flow, const struct flow_dir *dir,
					 const struct work *w, int sender)
{
	const struct seq_range *gap = &w->gap;
	const struct segment *s = &w->s;
	int order = sent_order(s, gap, sender != SENDER_TCP && dir->ip_id_score >= IP_ID_TRUSTED);

	if (order != SENT_UNKNOWN)
		return order == SENT_EARLIER ? LATE_REORDERED : LATE_RETRANSMIT;
	if (sender != SENDER_ELSEWHERE)
		return LATE_RETRANSMIT;
	/* too soon: nothing can have made the sender repeat what is missing yet, neither ACKs nor a timer */
	if (!gap->unsure && bpf_ktime_get_ns() - w->gap_time < half_rtt(flow))
		return LATE_REORDERED;
	return LATE_UNCERTAIN;
}

/* Of data that was seen before. */
static __always_inline int judge_seen(const struct flow *flow, const struct flow_dir *dir, u32 end,
				      const struct work *w, int sender)
{
	const struct segment *s = &w->s;

	if (sender == SENDER_TCP)
		return LATE_RETRANSMIT;
	if (s->flags & TCPHDR_SYN && data_age(dir, w->coarse) > SYN_TIMER_NS)
		return LATE_RETRANSMIT;
	if (s->stamped && dir->known & DIR_TSVAL && s->tsval != w->newest)
		return before(s->tsval, w->newest) ? LATE_DUPLICATE : LATE_RETRANSMIT;
	if (s->has_ip_id && dir->ip_id_score >= IP_ID_TRUSTED)
		return before16(dir->ip_id, s->ip_id) ? LATE_RETRANSMIT : LATE_DUPLICATE;
	if (sender == SENDER_LOCAL)
		return LATE_RETRANSMIT;
	/* a copy of the newest data, of which the time is known */
	if (end == dir->seq && data_age(dir, w->coarse) + TICK_MAX_NS < half_rtt(flow))
		return LATE_DUPLICATE;
	return LATE_UNCERTAIN;
}

/* How many segments of this packet carry so many bytes of it. */
static __always_inline u32 segments_of(u32 bytes, u32 each, u32 segments)
{
	u32 count;

	if (segments <= 1 || !each)
		return segments;
	count = DIV_ROUND_UP(bytes, each);
	return count < segments ? count : segments;
}

/* The gap that [start, end) lies in, at least in part, into w->gap; what is filled of it is taken off. */
static __always_inline bool gap_fill(const struct flow *flow, u32 start, u32 end, struct work *w)
{
	struct gaps *all = gaps_of(flow, w);
	struct seq_range *gap;

	if (!all || !range_find(all->gap, start, end, false, w))
		return false;
	gap = &all->gap[w->index & (GAPS - 1)];
	w->gap = *gap;
	w->gap_time = all->gap_time[w->index & (GAPS - 1)];
	range_take(gap, start, end);
	return true;
}

/* [start, end) was sent again, and came first: what had been sent there before may come yet. */
static __always_inline void resent_note(const struct flow *flow, u32 start, u32 end, struct work *w)
{
	struct gaps *all = gaps_of(flow, w);

	if (all)
		range_set(&all->resent[all->next++ & (GAPS - 1)], start, end, &w->s, false);
}

/* Whether this was sent before what was sent again in its place: no copy, but late. Another one is its copy. */
static __always_inline bool resent_match(const struct flow *flow, const struct flow_dir *dir, u32 start,
					 u32 end, struct work *w)
{
	struct gaps *all = gaps_of(flow, w);
	struct seq_range *r;

	if (!all || !range_find(all->resent, start, end, true, w))
		return false;
	r = &all->resent[w->index & (GAPS - 1)];
	if (sent_order(&w->s, r, dir->ip_id_score >= IP_ID_TRUSTED) != SENT_EARLIER)
		return false;
	range_take(r, start, end);
	return true;
}

/* A segment of which a part lies below what was seen already. */
static __always_inline void count_late(struct __sk_buff *skb, int hook, struct flow *flow,
				       struct flow_dir *dir, u32 end, struct work *w)
{
	u32 below = before(dir->seq, end) ? dir->seq : end;
	u32 count = segments_of(below - w->s.seq, skb->gso_size, w->size.segments);
	u16 last = w->s.ip_id + w->size.segments - 1;
	int judged, sender = local_sender(skb, hook);

	if (dir->gaps && gap_fill(flow, w->s.seq, below, w)) {
		judged = judge_filling(flow, dir, w, sender);
		if (judged == LATE_RETRANSMIT)
			resent_note(flow, w->s.seq, below, w);
	} else {
		judged = judge_seen(flow, dir, end, w, sender);
		if (judged == LATE_DUPLICATE && dir->gaps && resent_match(flow, dir, w->s.seq, below, w))
			judged = LATE_REORDERED;
	}
	/* the newest of all: what is copied from it has the same */
	if (w->s.has_ip_id && before16(dir->ip_id, last))
		dir->ip_id = last;
	switch (judged) {
	case LATE_REORDERED:
		ADD(dir->out_of_order, count);
		break;
	case LATE_DUPLICATE:
		ADD(dir->duplicates, count);
		break;
	case LATE_RETRANSMIT:
		ADD(dir->retransmits, count);
		dir->known |= DIR_RESENT;
		break;
	default:
		ADD(dir->uncertain, count);
		dir->known |= DIR_RESENT;
	}
}

/*
 * A segment that asks whether the other end is still there, or takes data again: RFC 9293, 3.8.4 and 3.8.6.1.
 * Linux sends nothing below what is acknowledged, others a byte that is acknowledged already, or the next one.
 */
static __always_inline bool is_tcp_probe(const struct flow_dir *dir, const struct flow_dir *other,
					 const struct segment *s, u64 coarse)
{
	if (s->flags & (TCPHDR_SYN | TCPHDR_FIN) || !(other->known & DIR_ACK) || !(dir->known & DIR_SEQ))
		return false;
	if (!s->payload)
		return s->seq + 1 == other->ack;
	if (s->payload != 1)
		return false;
	if (!other->window && s->seq == other->ack)
		return true;
	return s->seq + 1 == other->ack && other->ack == dir->seq &&
	       data_age(dir, coarse) > KEEPALIVE_IDLE_NS;
}

#endif

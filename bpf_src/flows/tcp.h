/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* TCP: how a connection opens and closes, and what each segment does to its direction. */
#ifndef TCP_H
#define TCP_H

#define SYN_DATA_MAX 0x4000 /* bytes that a SYN may carry, RFC 7413 */

static __always_inline void flow_set(struct flow *flow, u64 bits)
{
	__sync_fetch_and_or(&flow->flags, bits);
}

static __always_inline void flow_clear(struct flow *flow, u64 bits)
{
	__sync_fetch_and_and(&flow->flags, ~bits);
}

/* True for exactly one of all who close it. */
static __always_inline bool flow_close(struct flow *flow, u64 how)
{
	return !(__sync_fetch_and_or(&flow->flags, FLOW_CLOSED | how) & FLOW_CLOSED);
}

/* This direction was out of our sight: what it knew may have been overtaken by what passed unseen. */
static __always_inline void dir_restart(struct flow_dir *dir, u8 epoch)
{
	dir->epoch = epoch;
	dir->known &= ~(DIR_TSVAL | DIR_SEQ);
	dir->ip_id_score = 0;
	dir->gaps = 0;
	rtt_probes_cancel(dir);
}

/* A SYN that is not this flow's own: does it begin another connection on the same ports at once? */
static __always_inline bool syn_replaces(const struct flow *flow, const struct flow_dir *dir,
					 const struct flow_dir *other, const struct segment *s, bool own)
{
	if (flow->flags & FLOW_CLOSED)
		return true;
	if (flow->flags & FLOW_REPLIED)
		return false;
	if (dir->packets)
		return !own;
	/* the other end's is here: a SYN too, or the answer to this one, or nothing that belongs to it */
	return !(flow->flags & FLOW_SYN) && s->seq + 1 != other->ack;
}

/* A SYN into a live connection: only the other end knows whether that is still there. RFC 5961, 4. */
static __always_inline void syn_pending(struct flow *flow, struct flow_dir *dir, int direction,
					const struct segment *s, u32 bytes, u64 coarse)
{
	rtt_probes_cancel(dir);
	rtt_probe_start(dir, s->seq + s->payload + 1, METHOD_HANDSHAKE, coarse);
	dir->syn_bytes = bytes;
	flow_set(flow, FLOW_SYN_PENDING(direction));
}

/* Does this SYN-ACK answer such a SYN?  Then that was another connection, and this one is no more. */
static __always_inline bool syn_answered(const struct flow *flow, const struct flow_dir *other, int direction,
					 const struct segment *s)
{
	const struct rtt_probe *syn = &other->rtt_probes[0];

	return flow->flags & FLOW_SYN_PENDING(!direction) && syn->method == METHOD_HANDSHAKE && syn->time &&
	       s->ack == syn->value;
}

/*
 * Would the other end believe this RST?  RFC 9293, 3.5.2, and RFC 5961, 3.2: within its window. Of that the lower
 * end is known but for what is on the way to it, and the upper end as well as the scale of the window is.
 */
static __always_inline bool rst_acceptable(const struct flow *flow, const struct flow_dir *dir,
					   const struct flow_dir *other, const struct segment *s)
{
	u32 shift = other->window_scale ? other->window_scale - 1 : TCP_MAX_WSCALE, limit;

	if (!other->packets)
		return false; /* the other end has said nothing that this might end */
	if (!(flow->flags & FLOW_REPLIED) && s->flags & TCPHDR_ACK && other->known & DIR_SEQ &&
	    s->ack == other->seq)
		return true; /* the answer to a SYN, or to a stray */
	if (!(other->known & DIR_ACK))
		return !(other->known & DIR_SEQ) || !(s->flags & TCPHDR_ACK);
	limit = other->ack + ((u32)other->window << (shift & 15));
	if (dir->known & DIR_SEQ && before(limit, dir->seq))
		limit = dir->seq;
	return !before(s->seq, other->ack) && !before(limit, s->seq);
}

/* The end that has sent a RST goes on: the RST was forged or of another connection. */
static __always_inline bool still_alive(const struct flow *flow, const struct flow_dir *dir, int direction,
					const struct segment *s)
{
	u32 end = s->seq + s->payload;

	if (!(flow->flags & FLOW_RESET_BY(direction)))
		return false;
	return before(dir->seq, end) || (s->flags & TCPHDR_ACK && before(dir->ack, s->ack)) ||
	       (s->stamped && dir->known & DIR_TSVAL && before(dir->tsval, s->tsval));
}

/* What this segment makes of the connection. A RST ends here. */
static __always_inline void tcp_state(struct flow *flow, struct flow_dir *dir, struct flow_dir *other,
				      int direction, const struct segment *s, struct counters *n)
{
	u64 flags = flow->flags;

	if (s->flags & TCPHDR_RST) {
		if (!(flags & FLOW_CLOSED) && rst_acceptable(flow, dir, other, s) &&
		    flow_close(flow, FLOW_RESET | FLOW_RESET_BY(direction)))
			n->closed++;
		return;
	}
	if (flags & FLOW_RESET && still_alive(flow, dir, direction, s)) {
		flow_clear(flow, FLOW_CLOSED | FLOW_RESET | FLOW_RESET_BY(direction));
		n->revived++;
	}
	if (!(flags & FLOW_REPLIED) && !(s->flags & TCPHDR_SYN)) {
		if (other->packets)
			flow_set(flow, FLOW_REPLIED);
		else if (flags & FLOW_SYN)
			flow_clear(flow, FLOW_SYN); /* goes on, and no answer is seen */
	}
	if (s->flags & TCPHDR_FIN && !(flags & FLOW_FIN(direction))) {
		flags = __sync_fetch_and_or(&flow->flags, FLOW_FIN(direction)) | FLOW_FIN(direction);
		if ((flags & FLOW_FINS) == FLOW_FINS && flow_close(flow, 0))
			n->closed++;
	}
}

/* A segment in order, or beyond: is it timed? */
static __always_inline void probe_segment(struct flow_dir *dir, const struct flow_dir *other, bool contiguous,
					  const struct work *w)
{
	/* an echo can only come back where the other end's timestamps do */
	bool by_stamp = w->s.stamped && other->known & DIR_STAMPED;

	if (w->s.flags & TCPHDR_SYN) {
		rtt_probe_start(dir, dir->seq, METHOD_HANDSHAKE, w->coarse);
	} else {
		if (w->marks.probe_slot == dir->probe_slot || !(by_stamp ? w->marks.tsval_new : contiguous))
			return;
		rtt_probe_start(dir, by_stamp ? w->s.tsval : dir->seq,
				by_stamp ? METHOD_TIMESTAMP : METHOD_SEQUENCE, w->coarse);
	}
	dir->probe_slot = w->marks.probe_slot;
}

/* What a segment tells of its direction beside its data. */
static __always_inline void tcp_options(struct flow_dir *dir, struct flow_dir *other, struct work *w)
{
	const struct segment *s = &w->s;

	w->newest = dir->tsval;
	w->marks.first_ack = !(dir->known & DIR_ACK);
	dir->window = s->window;
	if (s->stamped) {
		/* the first that is seen may have been carried before by what passed unseen */
		w->marks.tsval_new = dir->known & DIR_TSVAL && before(dir->tsval, s->tsval);
		if (w->marks.tsval_new || !(dir->known & DIR_TSVAL))
			dir->tsval = s->tsval;
		if ((dir->known & (DIR_TSVAL | DIR_STAMPED)) != (DIR_TSVAL | DIR_STAMPED))
			dir->known |= DIR_TSVAL | DIR_STAMPED;
	} else if (dir->known & DIR_STAMPED) {
		dir->known &= ~DIR_STAMPED;
	}
	if (s->flags & TCPHDR_ACK && (!(dir->known & DIR_ACK) || before(dir->ack, s->ack))) {
		dir->ack = s->ack;
		if (w->marks.first_ack)
			dir->known |= DIR_ACK;
	}
	if (s->flags & TCPHDR_SYN)
		dir->window_scale = s->window_scale ? s->window_scale : 1;
	if (s->dsack) {
		u32 mss = other->mss;

		ADD(other->dsacks,
		    mss && s->dsack > mss && s->dsack < 1 << 30 ? DIV_ROUND_UP(s->dsack, mss) : 1);
	}
}

/* The data of a segment: in order, beyond a gap, or late; and what of it is timed. */
static __always_inline void tcp_data(struct __sk_buff *skb, int hook, struct flow *flow, struct flow_dir *dir,
				     struct flow_dir *other, struct work *w)
{
	const struct segment *s = &w->s;
	u32 end = s->seq + s->payload + !!(s->flags & (TCPHDR_SYN | TCPHDR_FIN));
	bool known = dir->known & DIR_SEQ, contiguous;

	if (s->payload <= 1 && is_tcp_probe(dir, other, s, w->coarse)) {
		ADD(dir->tcp_probes, 1);
		return;
	}
	if (end == s->seq) {
		if (!known) {
			dir->seq = end; /* the first that we see of it is a pure ACK */
			dir->known |= DIR_SEQ;
		}
		return; /* a pure ACK is not acknowledged, so it measures nothing */
	}
	/* what is acknowledged was sent, whether we saw it or not */
	if (known && other->known & DIR_ACK && before(dir->seq, other->ack))
		dir->seq = other->ack;
	/* both have sent a SYN, and each answers with another that acknowledges: RFC 9293, 3.5, figure 7 */
	if (known && s->flags & TCPHDR_SYN && s->flags & TCPHDR_ACK && w->marks.first_ack) {
		rtt_probes_cancel(dir);
		return;
	}
	if (known && before(s->seq, dir->seq)) {
		/* an ACK may now answer one or the other (Karn), or cover data that waited for this */
		count_late(skb, hook, flow, dir, end, w);
		rtt_probes_cancel(dir);
		if (before(dir->seq, end))
			dir->seq = end;
		dir->data_time = data_time(w->coarse);
		return;
	}
	contiguous = known && s->seq == dir->seq;
	if (known && !contiguous)
		gap_open(flow, dir, dir->seq, s->seq, w);
	if (s->has_ip_id)
		track_ip_id(dir, w);
	if (s->payload > dir->mss)
		dir->mss = w->size.segments > 1 ? skb->gso_size : s->payload;
	dir->seq = end;
	if (!known || dir->known & DIR_RESENT)
		dir->known = (dir->known | DIR_SEQ) & ~DIR_RESENT;
	dir->data_time = data_time(w->coarse);
	probe_segment(dir, other, contiguous || s->flags & TCPHDR_SYN, w);
}

/* A TCP segment: what it answers, what it makes of the connection, and what it leaves outstanding. */
static __always_inline void process_tcp(struct __sk_buff *skb, int hook, struct flow *flow, struct work *w,
					struct counters *n)
{
	struct flow_dir *dir = &flow->dir[w->direction & 1], *other = &flow->dir[!w->direction];

	if (dir->epoch != w->marks.epoch)
		dir_restart(dir, w->marks.epoch);
	tcp_state(flow, dir, other, w->direction, &w->s, n);
	if (w->s.flags & TCPHDR_RST)
		return;
	if (w->s.flags & TCPHDR_ACK && other->epoch == w->marks.epoch)
		rtt_match(other, &w->s, &w->sample);
	tcp_options(dir, other, w);
	tcp_data(skb, hook, flow, dir, other, w);
}

/* What a SYN means for the flow that its ports have: false where it begins another one, which is put in its place. */
static __always_inline bool syn_belongs(struct flow *flow, struct work *w, struct counters *n)
{
	struct flow_dir *dir = &flow->dir[w->direction & 1], *other = &flow->dir[!w->direction];
	const struct segment *s = &w->s;
	/* its own: a SYN may carry data (RFC 7413), and none when it is sent again */
	bool own = dir->known & DIR_SEQ && dir->seq - (s->seq + 1) < SYN_DATA_MAX;
	bool replaces = s->flags & TCPHDR_ACK ? syn_answered(flow, other, w->direction, s)
					      : syn_replaces(flow, dir, other, s, own);

	if (replaces) {
		if (flow_close(flow, 0))
			n->closed++;
		w->marks.over = 1;
		return false;
	}
	if (!own && flow->flags & FLOW_REPLIED) {
		w->marks.foreign = 1;
		if (!(s->flags & TCPHDR_ACK))
			syn_pending(flow, dir, w->direction, s, w->size.bytes, w->coarse);
	}
	return true;
}

/* The SYN that this SYN-ACK answers was taken for one into the connection before: it belongs to the new one. */
static __always_inline void adopt_syn(struct flow *flow, const struct flow *before_it, int direction)
{
	const struct flow_dir *from = &before_it->dir[!direction];
	struct flow_dir *to = &flow->dir[!direction];

	to->packets = 1;
	to->bytes = from->syn_bytes;
	to->seq = from->rtt_probes[0].value;
	to->known = DIR_SEQ;
	to->data_time = from->data_time;
	to->rtt_probes[0] = from->rtt_probes[0];
	flow->flags |= FLOW_SYN;
}

#endif

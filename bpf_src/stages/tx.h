/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Sent packets, by skb: from IP to the driver, and where a packet ends. */
#ifndef TX_H
#define TX_H

/* Another packet takes the slot of one that waits in the queue. */
static __always_inline void slot_evict(const struct config *c, const struct slot *s, u64 key, u64 now)
{
	if (partial_tracking(c) && s->skb && s->skb != key && s->passed == PASSED_QUEUE &&
	    since(s->at, now) < SLOT_MAX_AGE_NS)
		miss(TX_QDISC, s->mark);
}

/*
 * NAT may still change the flow of a packet that begins its way out: if that matters, it is classified at the queue.
 */
static __always_inline void tx_mark(const struct config *c, struct slot *s, u64 now, u64 begun)
{
	if (FILTERING || c->focus) {
		s->state = SLOT_UNCLASSIFIED;
		s->mark = NO_MARK;
	} else {
		s->state = SLOT_FOLLOWED;
		s->mark = mark_of(c, 0, TX_BEGIN, now, begun);
	}
}

/* A packet of ours begins its way out here; its data was written at `begun`. */
static __always_inline void tx_begin(const struct config *c, struct slot *s, u64 key, u64 now, u64 begun)
{
	slot_evict(c, s, key, now);
	s->skb = key;
	tx_mark(c, s, now, begun);
	s->at = now;
	s->passed = PASSED_IP;
}

/* Routed on: a packet of ours ends its way here, and one that is to leave by our interface begins it. */
static __always_inline int ip_forwarded(const void *skb, bool ours, bool leaving)
{
	u64 key = AS_NUMBER(skb), now;
	struct config *c = settings_here();
	struct slot *s = rx_slot(key), *out = tx_slot(key);
	struct rx_current *d;
	bool known = false;

	if (!c || !s || !out)
		return 0;
	if (s->skb == key && s->state != SLOT_EXCLUDED && !(s->passed & PASSED_LOCAL)) {
		known = true;
		record(RX_FORWARD, since(s->at, bpf_ktime_get_ns()), s->mark);
	} else if (s->skb != key && ours && !partial_tracking(c)) {
		miss(RX_FORWARD, NO_MARK);
	}
	slot_clear(s, key);
	if (c->flags & NO_LOCAL) {
		d = rx_current_here();
		if (d)
			d->skb = 0;
	}
	if (!leaving)
		return 0;
	if (ours ? c->sample_shift && !known : !sampled(c)) {
		slot_clear(out, key);
		return 0;
	}
	now = bpf_ktime_get_ns();
	tx_begin(c, out, key, now, now);
	out->start = 0;
	out->stage_ns[0] = 0;
	out->written = WRITE_NONE;
	return 0;
}

/* What is recorded of it before the queue. */
static __always_inline void tx_record_written(const struct slot *s)
{
	if (s->written == WRITE_SEEN)
		record(TX_APPLICATION, s->stage_ns[0], s->mark);
	else if (s->written == WRITE_MISSED)
		miss(TX_APPLICATION, s->mark);
}

/* ip_local_out: IP has a packet to send. */
static __always_inline int tx_ip(const void *skb, int typed)
{
	u64 key = AS_NUMBER(skb), now, begun;
	struct config *c = settings_here();
	struct slot *s = tx_slot(key);

	if (!c || !s)
		return 0;
	if (!sampled(c)) {
		slot_clear(s, key);
		return 0;
	}
	now = bpf_ktime_get_ns();
	begun = now;
	s->written = tx_written(c, skb, now, typed, &begun);
	tx_begin(c, s, key, now, begun);
	s->start = begun;
	s->stage_ns[0] = ns_u32(since(begun, now));
	if (s->state == SLOT_FOLLOWED)
		tx_record_written(s);
	return 0;
}

/* Its addresses are final, and its link header is written: false if the filter does not want it. */
static __always_inline bool tx_classify(const struct config *c, struct slot *s, u64 key, const void *skb,
					int typed)
{
	u32 focus;
	bool wanted = classify_final(c, skb, typed, OUT, AT_LINK, &focus) != SLOT_EXCLUDED;

	tx_sock_filtered(skb, typed, wanted);
	if (!wanted) {
		slot_exclude(c, s, key);
		return false;
	}
	s->state = SLOT_FOLLOWED;
	s->mark = mark_of(c, focus, TX_BEGIN, s->at, s->start ? s->start : s->at);
	tx_record_written(s);
	return true;
}

/* ns for which a packet is not to leave the queue yet: fq and etf hold it until then. */
static __always_inline u32 pacing_ns(const void *skb, int typed, u64 now)
{
	u64 departure = 0;

	LOAD(typed, departure, skb, struct sk_buff, tstamp);
	/* What is further ahead is no time of this clock; fq does not look further either (its horizon). */
	return departure > now && departure - now < PACING_HORIZON_NS ? ns_u32(departure - now) : 0;
}

/* dev_queue_xmit. */
static __always_inline int tx_queue(const void *skb, int typed)
{
	u64 key = AS_NUMBER(skb), now, ns;
	struct config *c = settings_here();
	struct slot *s = tx_slot(key);
	void *dev = 0;

	if (!c || !s || (c->sample_shift ? s->skb != key : slot_excluded(s, key)))
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	if (!watched(c, dev, typed)) {
		/* It was routed anew, to another device, or it is another packet at this address. */
		if (s->skb == key && s->passed == PASSED_IP)
			s->skb = 0;
		return 0;
	}
	now = bpf_ktime_get_ns();
	if (s->skb == key && s->passed == PASSED_IP && since(s->at, now) < SLOT_MAX_AGE_NS) {
		if (s->state == SLOT_UNCLASSIFIED && !tx_classify(c, s, key, skb, typed))
			return 0;
		ns = since(s->at, now);
		s->stage_ns[1] = ns_u32(ns);
		record(TX_IP, ns, s->mark);
	} else if (c->sample_shift) {
		s->skb = 0;
		return 0;
	} else {
		if (!slot_open(c, s, key, skb, typed, OUT, AT_LINK, now))
			return 0;
		if (is_ip(skb, typed))
			miss(TX_IP, s->mark);
	}
	s->at = now;
	s->paced_ns = pacing_ns(skb, typed, now);
	s->passed = PASSED_QUEUE;
	return 0;
}

/* Segments of a packet that was segmented are still to come. */
static __always_inline bool gso_segments_left(void)
{
	struct gso_parent *parent = gso_parent_here();

	return parent && parent->segments;
}

/* The packet in hand is a segment of the one that was segmented last. */
static __always_inline struct gso_parent *gso_parent_of(const void *skb, u64 now, int typed)
{
	struct gso_parent *parent = gso_parent_here();
	u32 flow = 0;

	if (!parent || !parent->segments || since(parent->segmented_at, now) > GSO_SEG_WINDOW_NS)
		return 0;
	LOAD(typed, flow, skb, struct sk_buff, hash);
	if (flow != parent->flow)
		return 0;
	parent->segments--;
	return parent;
}

/* The driver is given the packet. */
static __always_inline int tx_driver(const void *skb, const void *dev, int typed)
{
	u64 key = AS_NUMBER(skb), now, ns;
	struct config *c = settings();
	struct slot *s = tx_slot(key);
	struct gso_parent *parent;
	bool known;

	if (!c || !s || slot_excluded(s, key) ||
	    (partial_tracking(c) && s->skb != key && !gso_segments_left()) || !watched(c, dev, typed))
		return 0;
	now = bpf_ktime_get_ns();
	/* PASSED_IP: where nothing shows the queue's entrance. */
	known = s->skb == key && (s->passed == PASSED_QUEUE || s->passed == PASSED_IP) &&
		since(s->at, now) < SLOT_MAX_AGE_NS;
	if (!known && (parent = gso_parent_of(skb, now, typed))) {
		*s = parent->slot;
		s->skb = key;
		known = true;
	}
	if (known) {
		s->state = SLOT_FOLLOWED;
		ns = since(s->at, now);
		s->stage_ns[2] = ns_u32(ns);
		record(TX_QDISC, ns, s->mark);
		if (s->passed == PASSED_QUEUE && s->paced_ns)
			record_paced(s->paced_ns < ns ? s->paced_ns : ns, s->mark);
	} else if (partial_tracking(c)) {
		slot_clear(s, key);
		return 0;
	} else {
		s->skb = key;
		s->start = 0;
		s->mark = NO_MARK;
		s->state = SLOT_FOLLOWED;
		if (is_ip(skb, typed))
			miss(TX_QDISC, NO_MARK);
	}
	s->at = now;
	s->passed = PASSED_XMIT;
	return 0;
}

static __always_inline void tx_path(struct paths *p, const struct slot *s, u64 driver)
{
	add_path(p, TX_APPLICATION, s->stage_ns[0], hist_any(s->stage_ns[0]));
	add_path(p, TX_IP, s->stage_ns[1], 1);
	add_path(p, TX_QDISC, s->stage_ns[2], 1);
	add_path(p, TX_DRIVER, driver, 1);
}

/* The driver has it, or was busy.  The skb may be gone: its address is still its name. */
static __always_inline int tx_sent(const void *skb, const void *dev, int result, int typed)
{
	u64 key = AS_NUMBER(skb), now, ns;
	struct config *c = settings();
	struct slot *s = tx_slot(key);

	if (!c || !s || s->skb != key)
		return 0;
	if (s->state == SLOT_EXCLUDED && !result)
		s->skb = 0;
	if ((s->passed & ~PASSED_DONE) != PASSED_XMIT || !watched(c, dev, typed))
		return 0;
	now = bpf_ktime_get_ns();
	if (result) {
		s->at = now; /* back to the queue */
		s->passed = PASSED_QUEUE;
		return 0;
	}
	ns = since(s->at, now);
	record(TX_DRIVER, ns, s->mark);
	if (s->start) {
		tx_path(paths_of(0), s, ns);
		if (in_focus(s->mark))
			tx_path(paths_of(1), s, ns);
		record(TX_WHOLE, since(s->start, now), s->mark);
	}
	if (s->passed & PASSED_DONE)
		s->skb = 0;
	s->passed = PASSED_XMIT | PASSED_SENT;
	return 0;
}

/* How many the stack makes of a packet that it segments. */
static __always_inline u32 gso_segs_of(const void *skb, int typed)
{
	const void *head = 0;
	u16 segments = 0;
	u32 end = 0;

	LOAD(typed, head, skb, struct sk_buff, head);
	LOAD(typed, end, skb, struct sk_buff, end);
	READ_FIELD(segments, head + end, struct skb_shared_info, gso_segs);
	return segments;
}

/* The kernel is done with a packet: sent, segmented, or read. */
static __always_inline int skb_consumed(const void *skb, int typed)
{
	u64 key = AS_NUMBER(skb);
	struct slot *s = tx_slot(key);
	struct config *c;
	struct gso_parent *parent;

	if (s && s->skb == key) {
		c = settings();
		parent = s->passed == PASSED_QUEUE ? gso_parent_here() : 0;
		if (parent) {
			parent->segments = gso_segs_of(skb, typed);
			parent->segmented_at = bpf_ktime_get_ns();
			parent->slot = *s;
			LOAD(typed, parent->flow, skb, struct sk_buff, hash);
			s->skb = 0;
		}
		/* once: its address may be another one's before net_dev_xmit is told of it */
		if (s->passed & PASSED_XMIT && !(s->passed & PASSED_DONE) && c && c->flags & COMPLETES)
			record(TX_DONE, since(s->at, bpf_ktime_get_ns()), s->mark);
		if (s->passed & PASSED_SENT)
			s->skb = 0;
		else if (s->passed & PASSED_XMIT)
			s->passed |= PASSED_DONE;
	}
	s = rx_slot(key);
	if (s && s->skb == key)
		s->skb = 0;
	return 0;
}

/*
 * kfree_skb also frees what is no loss: of TCP a FIN in the queue of a destroyed socket (sk_stream_kill_queues), an
 * ACK in a state other than ESTABLISHED (tcp_rcv_state_process); of IP a packet for another host that a switch or
 * promiscuity brought here, or for a group that no socket joined (ip6_mc_input).
 */
static __always_inline bool is_no_loss(const void *skb, enum skb_drop_reason reason, u32 passed, int typed)
{
	u8 type = 0;

#ifdef HAVE_QUEUE_PURGE
	if (reason == SKB_DROP_REASON_QUEUE_PURGE)
		return true;
#endif
	if (reason != SKB_DROP_REASON_NOT_SPECIFIED)
		return reason == SKB_DROP_REASON_OTHERHOST;
	if (passed & PASSED_LOCAL)
		return true;
	LOAD_AT(typed, type, skb, offsetof(struct sk_buff, __pkt_type_offset));
	type &= PKT_TYPE_MAX;
	return type == PACKET_BROADCAST || type == PACKET_MULTICAST;
}

/*
 * Not all that is received ends with a tracepoint, and the skb's next user may be a UNIX socket or a sender, which
 * pass nothing that would clear the slot. What the stack has received has skb_iif.
 */
static __always_inline bool rx_received(const struct slot *s, const void *skb, int typed)
{
	u32 index = 0;

	if (!(s->passed & PASSED_STACK))
		return since(s->at, bpf_ktime_get_ns()) < SAME_RUN_NS;
	LOAD(typed, index, skb, struct sk_buff, skb_iif);
	return index != 0;
}

static __always_inline int skb_dropped(const void *skb, int reason, int typed)
{
	u64 key = AS_NUMBER(skb);
	struct slot *s = rx_slot(key);

	if (s && s->skb == key) {
		s->skb = 0;
		if (s->state == SLOT_FOLLOWED && rx_received(s, skb, typed) &&
		    !is_no_loss(skb, reason, s->passed, typed))
			drop(s->passed & PASSED_LOCAL   ? RX_TRANSPORT
			     : s->passed & PASSED_IP    ? RX_LOCAL
			     : s->passed & PASSED_STACK ? RX_IP
							: RX_STACK,
			     s->mark);
	}
	s = tx_slot(key);
	if (s && s->skb == key) {
		s->skb = 0;
		/* What the driver has taken is no longer ours to lose: how it frees that says nothing. */
		if (s->state == SLOT_FOLLOWED && !(s->passed & (PASSED_SENT | PASSED_DONE)))
			drop(s->passed & PASSED_XMIT    ? TX_DRIVER
			     : s->passed & PASSED_QUEUE ? TX_QDISC
							: TX_IP,
			     s->mark);
	}
	return 0;
}

#endif

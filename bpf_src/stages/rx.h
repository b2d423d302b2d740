/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Received packets, by skb: from the driver to local delivery, or to where they are routed on. */
#ifndef RX_H
#define RX_H

/*
 * Has the stack had this packet already?  A bridge, or a redirect through an ifb, hands it to the stack again with
 * skb_iif set, which a driver's packet has not, though its address may have been another's.
 */
static __always_inline bool rx_reentered(const struct slot *s, u64 key, const void *skb, int typed)
{
	u32 index = 0;

	if (s->skb != key || !(s->passed & PASSED_STACK))
		return false;
	LOAD(typed, index, skb, struct sk_buff, skb_iif);
	return index != 0;
}

/* The driver hands a packet to the stack. */
static __always_inline int rx_driver(const void *skb, int typed)
{
	u64 key = AS_NUMBER(skb), now;
	struct config *c = settings_here();
	struct slot *s = rx_slot(key);
	enum slot_state state;
	void *dev = 0;
	u32 focus;

	if (!c || !s || c->flags & NO_STACK || rx_reentered(s, key, skb, typed))
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	if (!sampled(c) || !watched(c, dev, typed)) {
		slot_clear(s, key);
		return 0;
	}
	state = classify(c, skb, typed, IN, AT_NETWORK, &focus);
	if (state == SLOT_EXCLUDED) {
		slot_exclude(c, s, key);
		return 0;
	}
	now = bpf_ktime_get_ns();
	s->mark = state == SLOT_UNCLASSIFIED ? NO_MARK : mark_of(c, focus, RX_BEGIN, now, now);
	s->skb = key;
	s->state = state;
	s->at = now;
	s->start = now;
	s->passed = PASSED_DRIVER;
	return 0;
}

/*
 * A protocol gets the packet. Every packet of every interface passes here: a slot that names this skb is this
 * packet's from here on.
 */
static __always_inline int rx_stack(const void *skb, int typed)
{
	u64 key = AS_NUMBER(skb), now, ns, start;
	struct config *c = settings_here();
	struct slot *s = rx_slot(key);
	void *dev = 0;
	bool known;

	if (!c || !s || c->flags & NO_STACK || rx_reentered(s, key, skb, typed))
		return 0;
	if (!(c->flags & NO_DRIVER) && (c->sample_shift ? s->skb != key : slot_excluded(s, key)))
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	if (!watched(c, dev, typed)) {
		slot_clear(s, key);
		return 0;
	}
	now = bpf_ktime_get_ns();
	known = s->skb == key && s->passed == PASSED_DRIVER && since(s->at, now) < SLOT_MAX_AGE_NS;
	if (!known && c->sample_shift && (!(c->flags & NO_DRIVER) || !sampled(c))) {
		slot_clear(s, key);
		return 0;
	}
	if (!known || s->state == SLOT_UNCLASSIFIED) {
		start = known ? s->start : c->flags & NO_DRIVER ? now : 0;
		if (!slot_open(c, s, key, skb, typed, IN, AT_NETWORK, now))
			return 0;
		s->start = start;
		s->stage_ns[0] = 0;
	}
	if (known) {
		ns = since(s->at, now);
		s->stage_ns[0] = ns_u32(ns);
		record(RX_STACK, ns, s->mark);
	} else {
		miss(RX_STACK, s->mark);
	}
	s->at = now;
	s->passed = PASSED_DRIVER | PASSED_STACK;
	return 0;
}

/* __netif_receive_skb_core: (where the skb's address is, ...).  Unlike what calls it, it sees lists one by one. */
static __always_inline int rx_stack_indirect(const void *place, int typed)
{
	void *skb = 0;

	bpf_probe_read_kernel(&skb, sizeof(skb), place);
	return rx_stack(skb, typed);
}

static __always_inline void rx_current_set(struct rx_current *d, u64 key, u64 now, const void *net)
{
	d->skb = key;
	d->at = now;
	d->net = AS_NUMBER(net);
}

/* Local delivery begins here where nothing shows it. */
static __always_inline void rx_current_early(const struct config *c, u64 key, u64 now, const void *net)
{
	struct rx_current *d = c->flags & NO_LOCAL ? rx_current_here() : 0;

	if (d)
		rx_current_set(d, key, now, net);
}

/* The same where IP is the first that names the watched device. */
static __always_inline int rx_ip_first(const void *skb, u64 key, int typed, const struct config *c,
				       const void *net)
{
	struct slot *s = rx_slot(key);
	u64 now;

	if (!s || !sampled(c)) {
		if (s)
			slot_clear(s, key);
		return 0;
	}
	now = bpf_ktime_get_ns();
	if (!slot_open(c, s, key, skb, typed, IN, AT_NETWORK, now))
		return 0;
	s->start = now;
	s->stage_ns[0] = 0;
	s->stage_ns[1] = 0;
	s->at = now;
	s->passed = PASSED_STACK | PASSED_IP;
	rx_current_early(c, key, now, net);
	return 0;
}

/*
 * ip_rcv, ipv6_rcv. `ours`: it came in by the watched interface itself, not by a VLAN or a bridge upon it. The same
 * run of the stack leads here, so an old slot is not this packet's: beside a sniffer that keeps the skb IP goes on
 * with a clone, which no boundary has seen.
 */
static __always_inline int rx_ip(const void *skb, int typed, const struct config *c, bool ours,
				 const void *net)
{
	u64 key = AS_NUMBER(skb), now, ns;
	struct slot *s = rx_slot(key);

	if (c->flags & NO_STACK)
		return ours ? rx_ip_first(skb, key, typed, c, net) : 0;
	if (!s || (s->skb != key && (!ours || c->sample_shift)))
		return 0;
	if (slot_excluded(s, key) && (u32)bpf_jiffies64() - s->excluded_at < SAME_RUN_JIFFIES)
		return 0;
	now = bpf_ktime_get_ns();
	if (s->skb == key && s->state != SLOT_EXCLUDED && since(s->at, now) < SAME_RUN_NS) {
		if (s->passed & PASSED_IP)
			return 0;
		ns = since(s->at, now);
		s->stage_ns[1] = ns_u32(ns);
		record(RX_IP, ns, s->mark);
	} else if (ours && !c->sample_shift) {
		if (!slot_open(c, s, key, skb, typed, IN, AT_NETWORK, now))
			return 0;
		s->stage_ns[0] = 0;
		s->stage_ns[1] = 0;
		miss(RX_IP, s->mark);
	} else {
		s->skb = 0;
		return 0;
	}
	s->at = now;
	s->passed = PASSED_DRIVER | PASSED_STACK | PASSED_IP;
	rx_current_early(c, key, now, net);
	return 0;
}

/* ip_local_deliver, ip6_input: is the packet followed on? */
static __always_inline bool rx_local(const void *skb, const struct config *c, bool ours, const void *net)
{
	u64 key = AS_NUMBER(skb), now, ns;
	struct slot *s = rx_slot(key);
	struct rx_current *d = rx_current_here();

	if (!s || !d)
		return false;
	if (s->skb != key) {
		d->skb = 0;
		if (!ours || partial_tracking(c))
			return false;
		now = bpf_ktime_get_ns();
		s->skb = key;
		s->start = 0;
		s->mark = NO_MARK;
		s->passed = PASSED_STACK | PASSED_IP;
		s->state = SLOT_FOLLOWED;
		miss(RX_LOCAL, NO_MARK);
	} else {
		if (s->state == SLOT_EXCLUDED || s->passed & PASSED_LOCAL) {
			d->skb = 0;
			return false;
		}
		now = bpf_ktime_get_ns();
		ns = since(s->at, now);
		s->stage_ns[2] = ns_u32(ns);
		record(RX_LOCAL, ns, s->mark);
	}
	s->at = now;
	s->passed |= PASSED_LOCAL;
	rx_current_set(d, key, now, net);
	return true;
}

#endif

/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Received packets, by skb: from the driver to local delivery, or to where they are routed on.
 */
#ifndef RX_H
#define RX_H

/*
 * Has the stack had this packet already?  A bridge, a redirect through an ifb hand it to the stack a second time, with
 * where it came in written down.  What a driver brings has no such note, though its address may have been another's.
 */
static __always_inline bool rx_again(const struct slot *s, u64 key, const void *skb, int typed)
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
	u64 key = address(skb, typed), now;
	struct config *c = settings_here();
	struct slot *s = rx_slot(key);
	void *dev = 0;
	u64 mark;

	if (!c || !s || c->flags & NO_STACK || rx_again(s, key, skb, typed))
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	if (!sampled(c) || !watched(c, dev, typed)) {
		slot_clear(s, key);
		return 0;
	}
	mark = classify(c, skb, typed, IN, AT_NETWORK);
	if (mark == REFUSED) {
		slot_exclude(c, s, key);
		return 0;
	}
	now = bpf_ktime_get_ns();
	s->mark = mark == UNREAD ? mark : traced(c, mark, RX_BEGIN, now, now);
	s->skb = key;
	s->at = now;
	s->start = now;
	s->passed = PASSED_DRIVER;
	return 0;
}

/*
 * A protocol gets the packet.  Every packet of every interface passes here, so a slot that names this skb speaks of
 * this packet from here on.
 */
static __always_inline int rx_stack(const void *skb, int typed)
{
	u64 key = address(skb, typed), now, ns, start;
	struct config *c = settings_here();
	struct slot *s = rx_slot(key);
	void *dev = 0;
	bool known;

	if (!c || !s || c->flags & NO_STACK || rx_again(s, key, skb, typed))
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
	if (!known || s->mark == UNREAD) {
		start = known ? s->start : c->flags & NO_DRIVER ? now : 0;
		if (!slot_open(c, s, key, skb, typed, IN, AT_NETWORK, now))
			return 0;
		s->start = start;
		s->stage_ns[0] = 0;
	}
	if (known) {
		ns = since(s->at, now);
		s->stage_ns[0] = short_ns(ns);
		record(RX_STACK, ns, s->mark);
	} else {
		miss(RX_STACK, s->mark);
	}
	s->at = now;
	s->passed = PASSED_DRIVER | PASSED_STACK;
	return 0;
}

static __always_inline void deliver(struct rx_current *d, const void *skb, u64 key, u64 now, u64 net)
{
	d->pointer = (u64)skb;
	d->skb = key;
	d->at = now;
	d->net = net;
}

/* The same where IP is the first that names the watched device. */
static __always_inline int rx_ip_first(const void *skb, u64 key, int typed, const struct config *c,
				       const void *net)
{
	struct slot *s = rx_slot(key);
	struct rx_current *d;
	int zero = 0;
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
	d = c->flags & NO_LOCAL ? rx_currents.lookup(&zero) : 0;
	if (d)
		deliver(d, skb, key, now, address(net, typed));
	return 0;
}

/*
 * ip_rcv, ipv6_rcv.  `ours`: it came in by the watched interface itself, not by a VLAN or a bridge upon it.  The same
 * run of the stack leads here, so an old slot is not this packet's: a sniffer that keeps the skb makes IP go on with a
 * clone, which nobody has seen before.
 */
static __always_inline int rx_ip(const void *skb, u64 key, int typed, const struct config *c, bool ours,
				 const void *net)
{
	struct slot *s = rx_slot(key);
	struct rx_current *d;
	u64 now, ns;
	int zero = 0;

	if (c->flags & NO_STACK)
		return ours ? rx_ip_first(skb, key, typed, c, net) : 0;
	if (!s || (s->skb != key && (!ours || c->sample_shift)))
		return 0;
	if (slot_excluded(s, key) && bpf_jiffies64() - s->at < SAME_RUN_JIFFIES)
		return 0;
	now = bpf_ktime_get_ns();
	if (s->skb == key && s->passed != EXCLUDED && since(s->at, now) < SAME_RUN_NS) {
		if (s->passed & PASSED_IP)
			return 0;
		ns = since(s->at, now);
		s->stage_ns[1] = short_ns(ns);
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
	if (c->flags & NO_LOCAL) {
		d = rx_currents.lookup(&zero);
		if (d)
			deliver(d, skb, key, now, address(net, typed));
	}
	return 0;
}

/* ip_local_deliver, ip6_input: is the packet followed on? */
static __always_inline bool rx_local(const void *skb, u64 key, const struct config *c, bool ours, u64 net)
{
	struct slot *s = rx_slot(key);
	struct rx_current *d;
	u64 now, ns;
	int zero = 0;

	d = rx_currents.lookup(&zero);
	if (!s || !d)
		return false;
	if (s->skb != key) {
		d->skb = 0;
		if (!ours || partial_tracking(c))
			return false;
		now = bpf_ktime_get_ns();
		s->skb = key;
		s->start = 0;
		s->mark = 0;
		miss(RX_LOCAL, 0);
	} else {
		if (s->passed & (EXCLUDED | PASSED_LOCAL)) {
			d->skb = 0;
			return false;
		}
		now = bpf_ktime_get_ns();
		ns = since(s->at, now);
		s->stage_ns[2] = short_ns(ns);
		record(RX_LOCAL, ns, s->mark);
	}
	s->at = now;
	s->passed |= PASSED_LOCAL;
	deliver(d, skb, key, now, net);
	return true;
}

#endif

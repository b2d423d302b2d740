/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* IP fragments: later ones have no ports, so the first one's are kept for them. */
#ifndef FRAGMENT_H
#define FRAGMENT_H

#define FRAGMENT_SLOTS 1024

BPF_ARRAY(fragments, struct fragment_slot, FRAGMENT_SLOTS);

static __always_inline u64 mix(u64 a, u64 b)
{
	a = (a ^ b) * 0x9e3779b97f4a7c15ULL;
	return a ^ a >> 29;
}

/*
 * Give a fragment its ports; false if they are unknown. For each direction, since on loopback the same
 * packet passes in both. Where the protocol has no ports, every fragment says whose it is.
 */
static __always_inline bool fragment_ports(struct work *w, int hook)
{
	const struct packet *p = &w->packet;
	struct flow_key *key = &w->key;
	u64 hash = mix(mix(mix(*(u64 *)&p->source[2], *(u64 *)&p->destination[2]),
			   *(u64 *)&p->source[0] ^ *(u64 *)&p->destination[0]),
		       (u64)p->fragment_id << 9 | (p->protocol & 0xff) << 1 | hook);
	int index = hash >> 32 & (FRAGMENT_SLOTS - 1);
	struct fragment_slot *slot = fragments.lookup(&index);

	if (!slot)
		return false;
	if (p->fragment == FRAGMENT_FIRST) {
		slot->hash = hash;
		slot->local_port = key->local_port;
		slot->remote_port = key->remote_port;
	} else if (slot->hash == hash) {
		key->local_port = slot->local_port;
		key->remote_port = slot->remote_port;
	} else {
		return !has_ports(p->protocol) && p->protocol != IPPROTO_ICMP &&
		       p->protocol != IPPROTO_ICMPV6;
	}
	return true;
}

#endif

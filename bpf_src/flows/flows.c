// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Flows: one entry a connection with both directions in it, one look-up a packet for accounting, RTT and everything
 * else; and the processes that own them. Here is what happens to a packet; the steps are the parts beside.
 *
 * Two CPUs may have the same flow at the same time, one receiving, one sending: docs/flows-data.md has who writes
 * what, and what a race costs.
 */
#include "nettop.h"
#include "parse.h"
#include "filter.h"
#include "hist.h"
#include "load.h"
#include "flow.h"

CONFIG_MAP;
BPF_PERCPU_ARRAY(veth_peers, struct veth_peer, 1);
BPF_PERCPU_ARRAY(counters, struct counters, 1);

#include "work.h"
#include "segment.h"
#include "tunnel.h"
#include "fragment.h"
#include "focus.h"
#include "rtt.h"
#include "order.h"
#include "tcp.h"
#include "table.h"
#include "owner.h"

static __always_inline void read_addresses(struct work *w, int hook)
{
	const struct packet *p = &w->packet;

	__builtin_memcpy(w->key.local, hook == OUT ? p->source : p->destination, 16);
	__builtin_memcpy(w->key.remote, hook == OUT ? p->destination : p->source, 16);
	w->key.local_port = 0;
	w->key.remote_port = 0;
	w->key.protocol = (p->protocol & 0xff) | p->vlans << 8;
	w->key.tunnel = p->tunnel;
}

/* Headers, size, and the key of the packet's flow; false: it belongs to none. */
static __always_inline bool classify(struct __sk_buff *skb, int hook, const struct config *c, struct work *w,
				     struct counters *n)
{
	struct veth_peer *peer = NULL;
	int zero = 0;

	parse_packet(skb, c->l2_len, &w->packet);
	if (!w->packet.version) {
		n->untracked += w->packet.protocol == PROTO_BROKEN;
		return false;
	}
	if (hook == OUT && c->count_out & COUNT_NAPI)
		peer = veth_peers.lookup(&zero);
	packet_size(skb, &w->packet, c, hook, peer, &w->size);
	work_begin(w, c, hook);
	if (unlikely(may_be_tunnel(skb, &w->packet)))
		enter_tunnel(skb, w);
	read_addresses(w, hook);
	w->method = parse_transport(skb, w, hook);
	if (w->packet.fragment && !fragment_ports(w, hook)) {
		n->fragments++;
		n->fragment_bytes += w->size.bytes;
		return false;
	}
	return true;
}

static __always_inline int process_packet(struct __sk_buff *skb, int hook)
{
	int zero = 0;
	struct config *c = config.lookup(&zero);
	struct work *w = work.lookup(&zero);
	struct counters *n;
	struct flow *flow;

	if (!c || !w || !c->ifindex || !filter_accepts(skb, c->l2_len, hook))
		return TC_ACT_UNSPEC;
	n = counters.lookup(&zero);
	if (!n || !classify(skb, hook, c, w, n))
		return TC_ACT_UNSPEC;
	flow = flow_find_or_create(w, hook, n);
	flow_count(flow, w);
	flow->last = w->coarse;
	if (is_tcp(w) && !w->marks.foreign) {
		if (in_focus(c, flow))
			focus_update(skb, hook, flow, w);
		process_tcp(skb, hook, flow, w, n);
	} else if (!is_tcp(w) && w->method) {
		rtt_question(flow, w);
	}
	if (w->sample.sent)
		rtt_record(flow, w, c, n);
	if (w->marks.put)
		flow_put(w, n);
	return TC_ACT_UNSPEC;
}

int flows_ingress(struct __sk_buff *skb)
{
	return process_packet(skb, IN);
}

int flows_egress(struct __sk_buff *skb)
{
	return process_packet(skb, OUT);
}

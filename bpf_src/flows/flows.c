// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Flows: one entry a connection with both directions in it, one lookup a packet
 * for accounting, RTT and everything else; and the processes that own them.
 *
 * Two CPUs may have the same flow at the same time, one receiving, one sending. Each
 * direction's fields are written by its own packets, counters and flags by atomic
 * operations; what a race in the rest costs is at most a sample.
 */
#include "nettop.h"
#include "parse.h"
#include "filter.h"
#include "hist.h"
#include "load.h"
#include "flow.h"

#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17

#ifndef GENERATION
#define GENERATION 0 /* of the filter: whoever exchanges the programs counts it up */
#endif

CONFIG_MAP;
BPF_PERCPU_ARRAY(veth_peers, struct veth_peer, 1);
BPF_PERCPU_ARRAY(counters, struct counters, 1);

#include "work.h"
#include "segment.h"
#include "tunnel.h"
#include "fragment.h"
#include "rtt.h"
#include "order.h"
#include "tcp.h"
#include "table.h"
#include "focus.h"
#include "owner.h"

/* The coarse clock goes on with jiffies, which are one load where asking for it is a call: so it is kept for a tick. */
static __always_inline u64 coarse_clock(struct counters *n)
{
	u64 jiffies = bpf_jiffies64();

	if (n->tick != jiffies) {
		n->tick = jiffies;
		n->tick_ns = bpf_ktime_get_coarse_ns();
	}
	return n->tick_ns;
}

static __always_inline void work_begin(struct work *w, const struct config *c, struct counters *n, int hook)
{
	__builtin_memset(&w->s, 0, sizeof(w->s));
	__builtin_memset(&w->marks, 0, sizeof(w->marks)); /* one store for all of them */
	w->sample.sent = 0;
	w->sample.method = METHOD_NONE;
	w->coarse = coarse_clock(n);
	w->direction = hook;
	w->marks.epoch = c->epoch << 2 | GENERATION;
	w->marks.probe_slot = w->coarse >> (PROBE_SLOT_SHIFT + (c->rtt_shift & 7));
}

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

/* The flow of this packet: its own, a new one, or one that is put in anew. */
static __always_inline struct flow *flow_of(struct work *w, int hook, bool tcp, struct counters *n)
{
	struct flow *flow = flow_find(w, hook), *found = flow;

	if (flow && tcp && w->s.flags & TCPHDR_SYN && !syn_belongs(flow, w, n)) {
		flow = flow_new(w, hook, n);
		if (w->s.flags & TCPHDR_ACK)
			adopt_syn(flow, found, w->direction & 1);
		return flow;
	}
	if (!flow)
		return flow_new(w, hook, n);
	if (tcp && w->s.flags & (TCPHDR_SYN | TCPHDR_RST) && !(flow->flags & (FLOW_REPLIED | FLOW_CLOSED)))
		return flow_take_out(flow, w);
	return flow;
}

/* What can be timed and is not TCP. */
static __always_inline void process_question(struct flow *flow, struct work *w)
{
	struct flow_dir *dir = &flow->dir[w->direction & 1], *other = &flow->dir[!w->direction];

	if (w->method == METHOD_SPIN) {
		if (w->direction == OUT) {
			w->sample.method = METHOD_SPIN;
			w->sample.sent = spin_edge(dir, &flow->rtt[OUTWARD], &w->s);
		}
	} else if (w->s.flags & TCPHDR_SYN) {
		rtt_probe_start_id(dir, w->s.seq, w->method, w->coarse);
	} else {
		rtt_match(other, &w->s, &w->sample);
	}
}

static __always_inline int process_packet(struct __sk_buff *skb, int hook)
{
	int zero = 0;
	struct config *c = config.lookup(&zero);
	struct work *w = work.lookup(&zero);
	struct veth_peer *peer = NULL;
	struct counters *n;
	struct flow *flow;
	bool tcp;

	if (!c || !w || !c->ifindex || !filter_accepts(skb, c->l2_len, hook))
		return TC_ACT_UNSPEC;
	n = counters.lookup(&zero);
	if (!n)
		return TC_ACT_UNSPEC;
	parse_packet(skb, c->l2_len, &w->packet);
	if (!w->packet.version) {
		n->untracked += w->packet.protocol == PROTO_BROKEN;
		return TC_ACT_UNSPEC;
	}
	if (hook == OUT && c->count_out & COUNT_NAPI)
		peer = veth_peers.lookup(&zero);
	packet_size(skb, &w->packet, c, hook, peer, &w->size);
	work_begin(w, c, n, hook);
	w->key.tunnel_id = 0;
	if (unlikely(may_be_tunnel(skb, &w->packet)))
		enter_tunnel(skb, w);
	read_addresses(w, hook);
	w->method = read_transport(skb, w, hook);
	if (w->packet.fragment && !fragment_ports(w, hook)) {
		n->fragments++;
		n->fragment_bytes += w->size.bytes;
		return TC_ACT_UNSPEC;
	}

	tcp = w->packet.protocol == IPPROTO_TCP && w->method;
	flow = flow_of(w, hook, tcp, n);
	flow_add(flow, w);
	flow->last = w->coarse;
	if (tcp && !w->marks.foreign) {
		if (c->focus && c->focus == flow->id)
			focus_update(skb, hook, flow, w);
		process_tcp(skb, hook, flow, w, n);
	} else if (!tcp && w->method) {
		process_question(flow, w);
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

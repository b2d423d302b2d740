/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The table of flows: which flow a packet belongs to, new ones, and how they leave.
 *
 * An LRU map evicts first what was not looked up since it was put in. So a new flow goes in with its first packet
 * counted, and one without an answer goes in anew with each packet: a flood of SYNs evicts itself and no quiet
 * connection.
 */
#ifndef TABLE_H
#define TABLE_H

#define CPU_BITS \
	13 /* of an id: the kernel has 8192 CPUs at most; 40 are left for each one's flows below 2^53 */

/* How long a flow stays after its last packet, in s. */
#define LINGER_CLOSED 5
#define LINGER_UNREPLIED 30
#define LINGER_OTHER 120
#define LINGER_CLOSING 120 /* as conntrack has it */
#define LINGER_TCP 3600

BPF_TABLE("lru_hash", struct flow_key, struct flow, flows, 1024);

static __always_inline void flow_key_swap(struct flow_key *key)
{
	u16 port = key->local_port;
	int i;

#pragma unroll
	for (i = 0; i < 4; i++) {
		u32 word = key->local[i];

		key->local[i] = key->remote[i];
		key->remote[i] = word;
	}
	key->local_port = key->remote_port;
	key->remote_port = port;
}

/*
 * The flow of this key. On a port mirror both directions come in: one that is not there
 * may be there the other way round, of which nothing has ever been sent from here.
 */
static __always_inline struct flow *flow_find(struct work *w, int hook)
{
	struct flow *flow = flows.lookup(&w->key);

	if (flow) {
		if (hook == OUT && !(flow->flags & FLOW_EGRESS))
			flow_set(flow, FLOW_EGRESS);
		return flow;
	}
	if (hook == OUT)
		return NULL;
	flow_key_swap(&w->key);
	flow = flows.lookup(&w->key);
	if (flow && !(flow->flags & FLOW_EGRESS)) {
		w->direction = OUT;
		return flow;
	}
	flow_key_swap(&w->key);
	return NULL;
}

/* A new flow, not in the table yet. */
static __always_inline struct flow *flow_new(struct work *w, int hook, struct counters *n)
{
	struct flow *flow = &w->flow;
	u32 flags = w->s.flags;

	__builtin_memset(flow, 0, sizeof(*flow));
	flow->id = ++n->ids << CPU_BITS | bpf_get_smp_processor_id();
	flow->first = bpf_ktime_get_ns();
	flow->dir[IN].probe_slot = w->marks.probe_slot - 1;
	flow->dir[OUT].probe_slot = w->marks.probe_slot - 1;
	flow->dir[IN].epoch = w->marks.epoch;
	flow->dir[OUT].epoch = w->marks.epoch;
	w->marks.put = 1;
	w->marks.opened = 1;
	if (hook == OUT)
		flow->flags = FLOW_EGRESS;
	if (!is_tcp(w))
		return flow;
	if ((flags & (TCPHDR_SYN | TCPHDR_ACK)) == TCPHDR_SYN)
		flow->flags |= FLOW_TCP | FLOW_SYN | FLOW_OPENED_BY(w->direction & 1);
	else if (flags & TCPHDR_SYN)
		flow->flags |= FLOW_TCP | FLOW_OPENED_BY(!w->direction);
	else
		flow->flags |= FLOW_TCP | FLOW_MIDWAY;
	return flow;
}

/* Taken out of the table, to be put in anew: see above. */
static __always_inline struct flow *flow_take_out(struct flow *flow, struct work *w)
{
	w->flow = *flow;
	flows.delete(&w->key);
	w->marks.put = 1;
	return &w->flow;
}

static __always_inline void flow_count(struct flow *flow, const struct work *w)
{
	struct flow_dir *dir = &flow->dir[w->direction & 1];

	ADD(dir->bytes, w->size.bytes);
	ADD(dir->packets, w->size.segments);
}

/* The flow of this packet: its own, a new one, or one that is put in anew. */
static __always_inline struct flow *flow_find_or_create(struct work *w, int hook, struct counters *n)
{
	struct flow *flow = flow_find(w, hook), *found = flow;

	if (flow && is_tcp(w) && w->s.flags & TCPHDR_SYN && !syn_belongs(flow, w, n)) {
		flow = flow_new(w, hook, n);
		if (w->s.flags & TCPHDR_ACK)
			adopt_syn(flow, found, w->direction & 1);
		return flow;
	}
	if (!flow)
		return flow_new(w, hook, n);
	if (is_tcp(w) && w->s.flags & (TCPHDR_SYN | TCPHDR_RST) &&
	    !(flow->flags & (FLOW_REPLIED | FLOW_CLOSED)))
		return flow_take_out(flow, w);
	return flow;
}

/* Into the table, with its packet. */
static __always_inline void flow_put(struct work *w, struct counters *n)
{
	u64 fins = w->flow.flags & FLOW_FINS;
	struct flow *there;

	if (!(w->marks.over ? flows.update(&w->key, &w->flow) : flows.insert(&w->key, &w->flow))) {
		n->created += w->marks.opened;
		n->opened += w->marks.opened;
		n->replaced += w->marks.over;
		return;
	}
	/*
	 * another CPU was first, or there is no room; or it never left: the kernel refuses to delete from a busy
	 * bucket
	 */
	there = flows.lookup(&w->key);
	if (!w->marks.opened && (!there || there->id != w->flow.id))
		n->replaced++; /* taken out, and not back */
	if (!there) {
		n->untracked++;
		return;
	}
	flow_count(there, w);
	if (fins) {
		fins |= __sync_fetch_and_or(&there->flags, fins);
		if ((fins & FLOW_FINS) == FLOW_FINS && flow_close(there, 0))
			n->closed++;
	}
}

/* How long a flow in this state stays, in s; constants.py has the same. */
static __always_inline u32 flow_linger(u64 flags)
{
	if (!(flags & FLOW_TCP))
		return LINGER_OTHER;
	if (flags & FLOW_CLOSED)
		return LINGER_CLOSED;
	if (!(flags & FLOW_REPLIED))
		return LINGER_UNREPLIED;
	return flags & FLOW_FINS ? LINGER_CLOSING : LINGER_TCP;
}

BPF_ARRAY(due, struct due, 1);

/*
 * Take out what user space found due and is due still: a flow that has come back meanwhile, or another one with its
 * ports, stays; so does one that closed after the reading, as no frame has its last packets yet. Run by
 * BPF_PROG_TEST_RUN, which needs no privilege but the descriptor.
 */
int flows_expire(struct __sk_buff *skb)
{
	struct counters *n;
	struct due *d;
	int i, zero = 0;

	d = due.lookup(&zero);
	n = counters.lookup(&zero);
	if (!d || !n)
		return 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < DUE_FLOWS; i++) {
		struct flow_key key;
		struct flow *flow;
		u64 flags;

		if (i >= d->count)
			break;
		key = d->of[i].key;
		flow = flows.lookup(&key);
		if (!flow || flow->id != d->of[i].id)
			continue;
		flags = flow->flags;
		if (flow->last + flow_linger(flags) * 1000 * NSEC_PER_MSEC >= d->read_at)
			continue;
		if (flows.delete(&key))
			continue;
		n->expired++;
		n->idle += !(flags & FLOW_CLOSED);
	}
	return 0;
}

#endif

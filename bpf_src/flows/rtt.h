/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * RTT needs no table of packets: a flow needs a few samples a round trip, so its own entry has two probes a
 * direction.
 *
 * A probe is started on the CPU of its direction and taken on that of the other: `time` is published last, and taken,
 * by an exchange. So no CPU pairs one probe's time with another's value, and none is used twice.
 */
#ifndef RTT_H
#define RTT_H

#define RTT_EXPIRY_NS (10 * 1000 * NSEC_PER_MSEC) /* an answer that takes longer is not waited for */
#define QUESTION_LOST_NS (2 * 1000 * NSEC_PER_MSEC) /* no answer came: room for another question */

#define RTTS_NO_SUBNET 2 /* in `rtts`, after the two legs: the external leg, of subnets beyond the table */

BPF_PERCPU_ARRAY(rtts, struct hist, 3);
BPF_TABLE("hash", struct subnet_key, struct subnet, subnets, 512);
BPF_PERCPU_ARRAY(no_subnet, struct subnet, 1); /* zeros to begin with */

static __always_inline void rtt_probes_cancel(struct flow_dir *dir)
{
	dir->rtt_probes[0].time = 0;
	dir->rtt_probes[1].time = 0;
}

/*
 * Whether this packet answers a probe of the other direction. Probes that it makes obsolete are cancelled:
 *
 * - a TSval, when a newer one is echoed, when all data is acknowledged, and when there is no echo (an option stripped
 *   on the way). The echo of acknowledged data may come with any later packet: a receiver that delays its ACKs echoes
 *   the first of two (RFC 7323, 4.3).
 * - a segment, when more is acknowledged than was seen: what was missed may have caused the ACK.
 * - a SYN-ACK, when data comes: its ACK was lost, and the data waited for the sender.
 * - an echo request, when a later one is answered, or two lost ones would stand in the way.
 */
static __always_inline void rtt_match(struct flow_dir *other, const struct segment *s,
				      struct rtt_sample *sample)
{
	int i;

#pragma unroll
	for (i = 0; i < 2; i++) {
		struct rtt_probe *probe = &other->rtt_probes[i];
		u32 value = probe->value, method = probe->method;
		bool match, obsolete = false;
		u64 time;

		if (!probe->time)
			continue;
		if (method == METHOD_TIMESTAMP) {
			match = s->stamped && s->tsecr && s->tsecr == value;
			obsolete =
				!s->stamped || (s->tsecr && before(value, s->tsecr)) || s->ack == other->seq;
		} else if (method == METHOD_SEQUENCE) {
			/* cumulative: of two that are covered, the later one caused the ACK */
			obsolete = before(other->seq, s->ack);
			match = !obsolete && !before(s->ack, value);
		} else if (method == METHOD_HANDSHAKE) {
			obsolete = s->payload && !(s->flags & TCPHDR_SYN);
			match = !obsolete && !before(s->ack, value);
		} else {
			match = s->seq == value;
			obsolete = method == METHOD_ECHO && before16(swap16(value), swap16(s->seq));
		}
		if (!match) {
			if (obsolete)
				probe->time = 0;
			continue;
		}
		time = __sync_lock_test_and_set(&probe->time, 0);
		if (time > sample->sent && probe->value == value) {
			sample->sent = time;
			sample->method = method;
		}
	}
	sample->bare = sample->method == METHOD_HANDSHAKE || sample->method == METHOD_ECHO ||
		       (sample->method != METHOD_DNS && !s->payload && !(s->flags & TCPHDR_FIN));
}

/* Remember that this was sent, if there is room. */
static __always_inline void rtt_probe_start(struct flow_dir *dir, u32 value, u32 method, u64 coarse)
{
	struct rtt_probe *probe = &dir->rtt_probes[0];

	if (probe->time && coarse < probe->time + RTT_EXPIRY_NS) {
		probe = &dir->rtt_probes[1];
		if (probe->time && coarse < probe->time + RTT_EXPIRY_NS)
			return;
	}
	probe->time = 0;
	probe->value = value;
	probe->method = method;
	__sync_lock_test_and_set(&probe->time, bpf_ktime_get_ns());
}

/*
 * The same for a question with an id, timed from the first time it was asked. An unanswered one makes room for
 * others.
 */
static __always_inline void rtt_probe_start_id(struct flow_dir *dir, u32 id, u32 method, u64 coarse)
{
	bool waiting = false;
	int i;

#pragma unroll
	for (i = 0; i < 2; i++) {
		struct rtt_probe *probe = &dir->rtt_probes[i];

		if (!probe->time)
			continue;
		if (probe->value == id && coarse < probe->time + RTT_EXPIRY_NS)
			waiting = true;
	}
	if (waiting)
		return;
#pragma unroll
	for (i = 0; i < 2; i++)
		if (dir->rtt_probes[i].time && coarse > dir->rtt_probes[i].time + QUESTION_LOST_NS)
			dir->rtt_probes[i].time = 0;
	rtt_probe_start(dir, id, method, coarse);
}

/* Whether `count` of `total` is what tossing a coin gives, within four standard deviations. */
static __always_inline bool by_chance(u32 count, u32 total)
{
	s64 difference = 2 * (s64)count - total;

	return difference * difference <= 16 * (s64)total;
}

/*
 * QUIC's spin bit: an edge passes once a round trip. Without sequence numbers and echoes the direction's fields hold:
 * rtt_probes[0] the last edge and its bit, in `method` the last packet's bit; rtt_probes[1] counts packets and edges;
 * `seq` is the packet of the last edge, `tsval` counts runs of one packet.
 *
 * Endpoints that do not take part send a constant, or a random bit in each packet (RFC 9000, 17.4): then half of the
 * packets are edges, and half of the runs have one packet. A bit that spins has never both; no sample while that may
 * be so.
 */
static __always_inline u64 spin_edge(struct flow_dir *dir, const struct rtt *rtt, const struct segment *s)
{
	struct rtt_probe *edge = &dir->rtt_probes[0], *counts = &dir->rtt_probes[1];
	u32 bit = s->seq + 1, packets = ++counts->value;
	u64 last = edge->time, now;

	if (edge->method != bit && edge->method) {
		if (counts->method++ && packets - dir->seq == 1)
			dir->tsval++;
		dir->seq = packets;
	}
	edge->method = bit;
	if (edge->value == bit)
		return 0;
	now = bpf_ktime_get_ns();
	/* too soon for a round trip: a packet that was overtaken by the edge */
	if (last && now - last < rtt->min / 4)
		return 0;
	if (edge->value)
		edge->time = now;
	edge->value = bit;
	if (!last || (by_chance(counts->method, packets) && by_chance(dir->tsval, counts->method)))
		return 0;
	return now - last < RTT_EXPIRY_NS ? last : 0;
}

/* What can be timed and is not TCP. */
static __always_inline void rtt_question(struct flow *flow, struct work *w)
{
	struct flow_dir *dir = &flow->dir[w->direction & 1], *other = &flow->dir[!w->direction];

	if (w->method == METHOD_SPIN) {
		if (w->direction == OUT) {
			w->sample.method = METHOD_SPIN;
			w->sample.sent = spin_edge(dir, &flow->rtt[LEG_EXTERNAL], &w->s);
		}
	} else if (w->s.flags & TCPHDR_SYN) {
		rtt_probe_start_id(dir, w->s.seq, w->method, w->coarse);
	} else {
		rtt_match(other, &w->s, &w->sample);
	}
}

static __always_inline void rtt_update(struct rtt *rtt, u64 rtt_ns, u64 now, const struct rtt_sample *sample)
{
	if (!rtt->samples) {
		rtt->srtt = rtt_ns;
		rtt->rttvar = rtt_ns / 2;
		rtt->min = rtt_ns;
	} else {
		u64 difference = rtt->srtt > rtt_ns ? rtt->srtt - rtt_ns : rtt_ns - rtt->srtt;

		rtt->rttvar = rtt->rttvar - rtt->rttvar / 4 + difference / 4;
		rtt->srtt = rtt->srtt - rtt->srtt / 8 + rtt_ns / 8;
		if (rtt_ns < rtt->min)
			rtt->min = rtt_ns;
	}
	if (sample->bare && (!rtt->min_bare || rtt_ns < rtt->min_bare))
		rtt->min_bare = rtt_ns;
	rtt->last = rtt_ns;
	rtt->time = now;
	rtt->method = sample->method;
	rtt->samples++;
}

/* Addresses of this network would drown among their neighbours in a shorter prefix: kept apart. */
static __always_inline void subnet_apart(struct subnet_key *subnet, const struct flow_key *key, int word,
					 u32 network, u32 length)
{
	if (subnet->length < length &&
	    (key->remote[word] & swap32(~0U << (32 - length))) == swap32(network)) {
		subnet->length = length;
		subnet->prefix[word] = swap32(network);
	}
}

/* The remote end's subnet: prefix lengths of the configuration. */
static __always_inline void subnet_of(const struct flow_key *key, u8 version, const struct config *c,
				      struct subnet_key *subnet)
{
	u32 bits = version == 4 ? 96 + c->subnet4 : c->subnet6;
	int i;

#pragma unroll
	for (i = 0; i < 4; i++) {
		u32 word = bits >= 32 * (i + 1) ? ~0U : bits <= 32 * i ? 0 : ~0U << (32 - (bits & 31));

		subnet->prefix[i] = key->remote[i] & swap32(word);
	}
	subnet->length = version == 4 ? c->subnet4 : c->subnet6;
	subnet->version = version;
	if (version == 6) {
		subnet_apart(subnet, key, 0, 0xfe800000, 10); /* fe80::/10 */
		subnet_apart(subnet, key, 0, 0xfc000000, 7); /* fc00::/7 */
	} else {
		subnet_apart(subnet, key, 3, 0x0a000000, 8); /* 10.0.0.0/8 */
		subnet_apart(subnet, key, 3, 0xac100000, 12); /* 172.16.0.0/12 */
		subnet_apart(subnet, key, 3, 0xc0a80000, 16); /* 192.168.0.0/16 */
		subnet_apart(subnet, key, 3, 0xa9fe0000, 16); /* 169.254.0.0/16 */
	}
}

static __always_inline void subnet_add(const struct flow_key *key, u8 version, const struct config *c,
				       u64 rtt_ns)
{
	struct subnet_key subnet_key = {};
	struct subnet *subnet;
	int zero = 0, beyond = RTTS_NO_SUBNET;

	subnet_of(key, version, c, &subnet_key);
	subnet = subnets.lookup(&subnet_key);
	if (!subnet) {
		struct subnet *none = no_subnet.lookup(&zero);

		if (none)
			subnets.insert(&subnet_key, none);
		subnet = subnets.lookup(&subnet_key);
	}
	if (subnet) {
		ADD(subnet->sum, rtt_ns);
		ADD(subnet->slots[hist_slot(rtt_ns)], 1);
		if (!subnet->min || rtt_ns < subnet->min)
			subnet->min = rtt_ns;
	} else {
		struct hist *h = rtts.lookup(&beyond);

		if (h)
			hist_add(h, rtt_ns);
	}
}

/* A round trip into the flow, the histograms, and the events where the flow is in focus. */
static __always_inline void rtt_record(struct flow *flow, const struct work *w, const struct config *c,
				       struct counters *n)
{
	/* answered by what came in: the round trip was outside */
	int leg = w->direction == IN || w->sample.method == METHOD_SPIN ? LEG_EXTERNAL : LEG_INTERNAL;
	u64 now = bpf_ktime_get_ns(), rtt_ns = now - w->sample.sent;
	struct hist *h;

	if (rtt_ns > RTT_EXPIRY_NS)
		return;
	rtt_update(&flow->rtt[leg & 1], rtt_ns, now, &w->sample);
	h = rtts.lookup(&leg);
	if (h)
		hist_add(h, rtt_ns);
	if (leg == LEG_EXTERNAL)
		subnet_add(&w->key, w->packet.version, c, rtt_ns);
	if (in_focus(c, flow))
		focus_sample(flow, w, leg, now, rtt_ns, n);
}

#endif

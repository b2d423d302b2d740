// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Flows: one entry a connection with both directions in it, one lookup a packet
 * for accounting, RTT and everything else; and the processes that own them.
 *
 * RTT needs no table of packets. A flow needs a few samples a round trip, so what
 * is outstanding is kept in the flow's own entry: two places for each direction.
 *
 * Two CPUs may have the same flow at the same time, one receiving, one sending.
 * Counters are atomic; for the rest the worst that a race does is to lose a sample.
 */
#include "nettop.h"
#include "parse.h"
#include "filter.h"
#include "hist.h"
#include "flow.h"
#include "load.h"

#define FIN 1
#define SYN 2
#define RST 4
#define ACK 16

#define SPIN_PORT 443
#define DNS_PORT 53

#ifndef RTT
#define RTT 1 /* 0 for bench/, which measures what it adds */
#endif
#define EXPIRY (10 * 1000 * NSEC_PER_MSEC) /* an answer that takes longer is not waited for */
#define LOST (2 * 1000 * NSEC_PER_MSEC) /* a question to which no answer came: room for another */
#define TICK_SHIFT 24 /* at most one probe in 16.8 ms: sixty samples a second and direction are plenty */
#define FRAGMENT_SLOTS 1024
#define SOCKET_SLOTS 8192
#define OWNER_REFRESH 64 /* jiffies: how often a busy socket is looked at again */
#define FOCUS_REFRESH (8 * NSEC_PER_MSEC) /* how often the socket in focus is */

struct fragment_slot {
	u64 hash; /* of addresses, protocol and id */
	u16 local_port;
	u16 remote_port;
	u32 spare;
};

CONFIG_MAP;
BPF_TABLE("lru_hash", struct flow_key, struct flow, flows, 1024);
BPF_PERCPU_ARRAY(counters, struct counters, 1);
BPF_PERCPU_ARRAY(fresh, struct flow, 1); /* room for a new flow: the stack has too little */
BPF_PERCPU_ARRAY(rtts, struct hist, 3); /* outward, inward, subnets beyond the table */
BPF_TABLE("hash", struct subnet_key, struct subnet, subnets, 512);
BPF_PERCPU_ARRAY(no_subnet, struct subnet, 1); /* zeros to begin with */
BPF_ARRAY(fragments, struct fragment_slot, FRAGMENT_SLOTS);
BPF_RINGBUF_OUTPUT(events, 1024);
BPF_TABLE("lru_hash", struct flow_key, struct owner, owners, 16384);
BPF_ARRAY(sockets, struct socket_slot, SOCKET_SLOTS);
BPF_ARRAY(focused, struct focused, 1);

/* A TCP segment, or what of another protocol plays the same part. */
struct segment {
	u32 sequence;
	u32 ack;
	u32 payload;
	u32 tsval;
	u32 tsecr;
	u16 window;
	u8 flags;
	u8 has_stamp;
};

/* Serial number arithmetic, RFC 1982. */
static __always_inline bool before(u32 a, u32 b)
{
	return (s32)(a - b) < 0;
}

static __always_inline u64 mix(u64 a, u64 b)
{
	a = (a ^ b) * 0x9e3779b97f4a7c15ULL;
	return a ^ a >> 29;
}

/*
 * Options other than the usual NOP NOP TS: walk them. RFC 9293, 3.1; RFC 7323, 3.2.
 *
 * The forty bytes before the header's end are read, whatever the length of the options: a constant size,
 * which all verifiers can follow, and a start that varies, which lets them see the eight steps as alike.
 * There always are forty: the options are 12 bytes at least, and stand behind two headers of 20.
 */
static __always_inline void find_stamp(struct __sk_buff *skb, u32 end, u32 length, struct segment *s)
{
	u8 options[80] = {}; /* and room for what the mask lets through */
	u32 at = 40 - length;
	int i;

	if (bpf_skb_load_bytes(skb, end - 40, options, 40))
		return;
#pragma unroll
	for (i = 0; i < 8; i++) {
		u8 *option = &options[at & 63]; /* the mask is for the verifier */

		if (at > 30 || option[0] == 0)
			return;
		if (option[0] == 1) {
			at++;
			continue;
		}
		if (option[0] == 8 && option[1] == 10) {
			s->tsval = option[2] << 24 | option[3] << 16 | option[4] << 8 | option[5];
			s->tsecr = option[6] << 24 | option[7] << 16 | option[8] << 8 | option[9];
			s->has_stamp = 1;
			return;
		}
		if (option[1] < 2)
			return;
		at += option[1];
	}
}

static __always_inline bool read_tcp(struct __sk_buff *skb, const struct packet *p, struct flow_key *key,
				     int direction, struct segment *s)
{
	u32 copy[5], *word = packet_bytes(skb, p->l4, copy, 20);
	u32 length, stamp_copy[3], *stamp;
	u16 source, destination;

	if (!word)
		return false;
	source = swap32(word[0]) >> 16;
	destination = swap32(word[0]);
	key->local_port = direction == OUT ? source : destination;
	key->remote_port = direction == OUT ? destination : source;
	s->sequence = swap32(word[1]);
	s->ack = swap32(word[2]);
	length = (swap32(word[3]) >> 28) * 4;
	s->flags = swap32(word[3]) >> 16;
	s->window = swap32(word[3]);
	if (length < 20)
		return true;
	if (p->end > p->l4 + length)
		s->payload = p->end - p->l4 - length;
	/* SYNs are matched by sequence: their other layout of options need not be walked */
	if (length < 32 || s->flags & SYN)
		return true;
	stamp = packet_bytes(skb, p->l4 + 20, stamp_copy, 12);
	if (!stamp)
		return true;
	if (stamp[0] == swap32(0x0101080a)) {
		s->tsval = swap32(stamp[1]);
		s->tsecr = swap32(stamp[2]);
		s->has_stamp = 1;
	} else {
		find_stamp(skb, p->l4 + length, length - 20, s);
	}
	return true;
}

/* Ports of UDP and the id of an echo, and what of them can be matched: see struct segment. */
static __always_inline void read_other(struct __sk_buff *skb, const struct packet *p, struct flow_key *key,
				       int direction, u32 *method, struct segment *s)
{
	u16 copy[4], *half = packet_bytes(skb, p->l4, copy, 8);

	if (!half)
		return;
	if (p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6) {
		u8 type = *(u8 *)half;
		bool v6 = p->protocol == IPPROTO_ICMPV6;

		if (type != (v6 ? 128 : 8) && type != (v6 ? 129 : 0))
			return;
		key->local_port = swap16(half[2]);
		key->remote_port = key->local_port;
		*method = METHOD_ECHO;
		s->sequence = half[3];
		s->flags = type == (v6 ? 128 : 8) ? SYN : ACK;
		return;
	}
	/* UDP and everything else that begins with two ports (UDP-Lite, SCTP, DCCP) */
	key->local_port = swap16(half[direction == OUT ? 0 : 1]);
	key->remote_port = swap16(half[direction == OUT ? 1 : 0]);
	if (p->protocol != IPPROTO_UDP)
		return;
	if (key->local_port == DNS_PORT || key->remote_port == DNS_PORT) {
		u16 dns_copy[2], *dns = packet_bytes(skb, p->l4 + 8, dns_copy, 4);

		if (!dns)
			return;
		*method = METHOD_DNS;
		s->sequence = dns[0];
		s->flags = swap16(dns[1]) & 0x8000 ? ACK : SYN; /* QR, RFC 1035, 4.1.1 */
	} else if (key->local_port == SPIN_PORT || key->remote_port == SPIN_PORT) {
		u8 first_copy, *first = packet_bytes(skb, p->l4 + 8, &first_copy, 1);

		if (!first || (*first & 0xc0) != 0x40) /* a short header, RFC 9000, 17.3 */
			return;
		*method = METHOD_SPIN;
		s->sequence = *first >> 5 & 1;
	}
}

/*
 * Whether this packet answers something that the other direction has outstanding:
 * the time at which that was sent, or 0. What it makes obsolete is forgotten:
 *
 * - a TSval when a newer one is echoed, and when all data is acknowledged. The echo
 *   of data that is acknowledged already can only come with some later packet, at
 *   any time: a receiver that delays its ACKs echoes the first of two (RFC 7323, 4.3).
 * - a SYN-ACK when data comes: its ACK was lost, and the data waited for the sender.
 * - an echo request when a later one is answered. Else two lost ones stand in the way.
 */
static __always_inline u64 answered(struct flow_dir *other, const struct segment *s, u32 *method)
{
	u64 sent = 0;
	int i;

	if (!RTT)
		return 0;
#pragma unroll
	for (i = 0; i < 2; i++) {
		struct outstanding *o = &other->sent[i];
		bool match, obsolete = false;

		if (!o->time)
			continue;
		if (o->method == METHOD_TIMESTAMP) {
			match = s->has_stamp && s->tsecr && s->tsecr == o->value;
			obsolete = s->has_stamp && s->tsecr &&
				   (before(o->value, s->tsecr) || s->ack == other->sequence);
		} else if (o->method == METHOD_SEQUENCE) {
			/* cumulative: of two that are covered, the later one caused the ACK */
			match = !before(s->ack, o->value);
		} else if (o->method == METHOD_HANDSHAKE) {
			obsolete = s->payload && !(s->flags & SYN);
			match = !obsolete && !before(s->ack, o->value);
		} else {
			match = s->sequence == o->value;
			obsolete = o->method == METHOD_ECHO &&
				   (short)(swap16(o->value) - swap16(s->sequence)) < 0;
		}
		if (match && o->time > sent) {
			sent = o->time;
			*method = o->method;
		}
		if (match || obsolete)
			o->time = 0;
	}
	return sent;
}

/* Remember that this was sent, if there is room. */
static __always_inline void remember(struct flow_dir *dir, u32 value, u32 method, u64 coarse)
{
	struct outstanding *o = &dir->sent[0];

	if (!RTT)
		return;
	if (o->time && coarse < o->time + EXPIRY) {
		o = &dir->sent[1];
		if (o->time && coarse < o->time + EXPIRY)
			return;
	}
	o->time = 0;
	o->value = value;
	o->method = method;
	o->time = bpf_ktime_get_ns();
}

/*
 * The same for a question with an id. Asked again, its answer may be to either
 * (Karn). One that has had no answer for LOST makes room.
 */
static __always_inline void remember_question(struct flow_dir *dir, u32 id, u32 method, u64 coarse)
{
	bool again = false;
	int i;

#pragma unroll
	for (i = 0; i < 2; i++) {
		struct outstanding *o = &dir->sent[i];

		if (!o->time)
			continue;
		if (o->value == id) {
			again = coarse < o->time + EXPIRY;
			o->time = 0;
		} else if (coarse > o->time + LOST) {
			o->time = 0;
		}
	}
	if (!again)
		remember(dir, id, method, coarse);
}

static __always_inline void forget(struct flow_dir *dir)
{
	dir->sent[0].time = 0;
	dir->sent[1].time = 0;
}

/* What this TCP segment leaves outstanding in its direction; retransmissions and reordering. */
static __always_inline void sent_segment(struct flow *flow, int direction, const struct segment *s,
					 const struct size *size, u64 coarse, u8 tick)
{
	struct flow_dir *dir = &flow->dir[direction];
	u32 end = s->sequence + s->payload + !!(s->flags & (SYN | FIN));
	/* not "sequence is not 0": it is after every 4 GB */
	bool known = dir->packets > size->segments, fresh = false, contiguous, old;

	if (s->has_stamp) {
		fresh = !(flow->flags & FLOW_STAMPED(direction)) || before(dir->stamp, s->tsval);
		old = !fresh && s->tsval != dir->stamp;
		flow->flags |= FLOW_STAMPED(direction);
		if (fresh)
			dir->stamp = s->tsval;
	} else {
		old = false;
	}
	if (end == s->sequence) {
		if (!known)
			dir->sequence = end; /* the first that we see of it is a pure ACK */
		return; /* a pure ACK is not acknowledged, so it measures nothing */
	}

	contiguous = !known || s->sequence == dir->sequence;
	if (known && before(s->sequence, dir->sequence)) {
		/*
		 * Sent again, or late. A retransmission has a newer timestamp. Either
		 * way an ACK may now answer one or the other (Karn), or cover data
		 * that waited for this.
		 */
		if (old)
			ADD(dir->out_of_order, size->segments);
		else if (!(s->payload <= 1 && end == dir->sequence &&
			   s->payload)) /* not a keep-alive's byte */
			ADD(dir->retransmits, size->segments);
		forget(dir);
		if (before(dir->sequence, end))
			dir->sequence = end;
		return;
	}
	dir->sequence = end;
	if (s->flags & SYN) {
		remember(dir, end, METHOD_HANDSHAKE, coarse);
		flow->tick[direction] = tick;
	} else if (tick != flow->tick[direction]) {
		if (s->has_stamp ? !fresh : !contiguous)
			return;
		flow->tick[direction] = tick;
		if (s->has_stamp)
			remember(dir, s->tsval, METHOD_TIMESTAMP, coarse);
		else
			remember(dir, end, METHOD_SEQUENCE, coarse);
	}
}

/* Whether `count` of `total` is what tossing a coin gives, within four standard deviations. */
static __always_inline bool by_chance(u32 count, u32 total)
{
	s64 difference = 2 * (s64)count - total;

	return difference * difference <= 16 * (s64)total;
}

/*
 * QUIC's spin bit: an edge passes once a round trip. There are no sequence numbers
 * and no echoes here, so a direction's fields hold instead: sent[0] the last edge
 * and its bit, and in `method` the last packet's bit; sent[1] counts packets and
 * edges; `sequence` is the packet of the last edge, `stamp` counts runs of one packet.
 *
 * Endpoints that do not take part send a constant, or a random bit in each packet
 * (RFC 9000, 17.4). Then half of the packets are edges, and half of the runs have
 * one packet; a bit that spins has never both. No sample while that may be so.
 */
static __always_inline u64 spin_edge(struct flow_dir *dir, const struct rtt *rtt, const struct segment *s,
				     u64 *now)
{
	struct outstanding *edge = &dir->sent[0], *counts = &dir->sent[1];
	u32 bit = s->sequence + 1, packets = ++counts->value;
	u64 last = edge->time;

	if (edge->method != bit && edge->method) {
		if (counts->method++ && packets - dir->sequence == 1)
			dir->stamp++;
		dir->sequence = packets;
	}
	edge->method = bit;
	if (edge->value == bit)
		return 0;
	*now = bpf_ktime_get_ns();
	/* too soon for a round trip: a packet that was overtaken by the edge */
	if (last && *now - last < rtt->min / 4)
		return 0;
	if (edge->value)
		edge->time = *now;
	edge->value = bit;
	if (!last || (by_chance(counts->method, packets) && by_chance(dir->stamp, counts->method)))
		return 0;
	return *now - last < EXPIRY ? last : 0;
}

static __always_inline void update_rtt(struct rtt *rtt, u64 sample, u64 now, u32 method)
{
	if (!rtt->samples) {
		rtt->smoothed = sample;
		rtt->variance = sample / 2;
		rtt->min = sample;
	} else {
		u64 difference = rtt->smoothed > sample ? rtt->smoothed - sample : sample - rtt->smoothed;

		rtt->variance = rtt->variance - rtt->variance / 4 + difference / 4;
		rtt->smoothed = rtt->smoothed - rtt->smoothed / 8 + sample / 8;
		if (sample < rtt->min)
			rtt->min = sample;
	}
	rtt->last = sample;
	rtt->time = now;
	rtt->method = method;
	rtt->samples++;
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
	/* with short prefixes these would drown in their neighbours: kept apart */
	if (version == 6 && subnet->length < 10 &&
	    (key->remote[0] & swap32(0xffc00000)) == swap32(0xfe800000))
		subnet->length = 10, subnet->prefix[0] = swap32(0xfe800000);
	if (version == 6 && subnet->length < 7 && (key->remote[0] & swap32(0xfe000000)) == swap32(0xfc000000))
		subnet->length = 7, subnet->prefix[0] = swap32(0xfc000000);
	if (version == 4 && subnet->length < 8 && (key->remote[3] & swap32(0xff000000)) == swap32(0x0a000000))
		subnet->length = 8, subnet->prefix[3] = swap32(0x0a000000);
	if (version == 4 && subnet->length < 12 &&
	    (key->remote[3] & swap32(0xfff00000)) == swap32(0xac100000))
		subnet->length = 12, subnet->prefix[3] = swap32(0xac100000);
	if (version == 4 && subnet->length < 16 &&
	    (key->remote[3] & swap32(0xffff0000)) == swap32(0xc0a80000))
		subnet->length = 16, subnet->prefix[3] = swap32(0xc0a80000);
	if (version == 4 && subnet->length < 16 &&
	    (key->remote[3] & swap32(0xffff0000)) == swap32(0xa9fe0000))
		subnet->length = 16, subnet->prefix[3] = swap32(0xa9fe0000);
}

static __always_inline void event_of(struct event *e, u8 kind, u64 now, const struct flow_key *key,
				     const struct flow *flow)
{
	__builtin_memset(e, 0, sizeof(*e));
	e->time = now;
	e->id = flow->id;
	e->key = *key;
	e->bytes[IN] = flow->dir[IN].bytes;
	e->bytes[OUT] = flow->dir[OUT].bytes;
	e->packets[IN] = flow->dir[IN].packets;
	e->packets[OUT] = flow->dir[OUT].packets;
	e->kind = kind;
	e->state = flow->state;
}

/* What the socket in focus says of itself: struct tcp_sock, include/linux/tcp.h. */
static __always_inline void read_socket(struct focused *f, const struct flow_key *key, u64 now)
{
	struct sock_common common;
	u64 sk = f->socket;
	u32 sent = 0, acknowledged = 0, written = 0, received = 0, copied = 0;

	/* another socket may be at this address by now */
	if (!sk || READ(common, sk) || common.skc_num != key->local_port ||
	    swap16(common.skc_dport) != key->remote_port)
		return;
	/* neither a request nor what is left of a connection in TIME_WAIT */
	if (common.skc_state == 12 || common.skc_state == 10 || common.skc_state == 7 ||
	    common.skc_state == 6)
		return;
	READ_FIELD(sent, sk, struct tcp_sock, snd_nxt);
	READ_FIELD(acknowledged, sk, struct tcp_sock, snd_una);
	READ_FIELD(written, sk, struct tcp_sock, write_seq);
	READ_FIELD(received, sk, struct tcp_sock, rcv_nxt);
	READ_FIELD(copied, sk, struct tcp_sock, copied_seq);
	READ_FIELD(f->cwnd, sk, struct tcp_sock, snd_cwnd);
	READ_FIELD(f->ssthresh, sk, struct tcp_sock, snd_ssthresh);
	READ_FIELD(f->mss, sk, struct tcp_sock, mss_cache);
	READ_FIELD(f->send_window, sk, struct tcp_sock, snd_wnd);
	READ_FIELD(f->receive_window, sk, struct tcp_sock, rcv_wnd);
	READ_FIELD(f->chrono_start, sk, struct tcp_sock, chrono_start);
	READ_FIELD(f->chrono, sk, struct tcp_sock, chrono_stat);
	f->in_flight = sent - acknowledged;
	f->unsent = before(sent, written) ? written - sent : 0;
	f->unread = before(copied, received) ? received - copied : 0;
	f->jiffies = bpf_jiffies64();
	f->time = now;
}

/* A TCP segment of the flow in focus. */
static __always_inline void look_closer(struct focused *f, struct __sk_buff *skb, const struct flow *flow,
					const struct flow_key *key, int direction, const struct segment *s)
{
	u64 now = bpf_ktime_get_ns();

	if (f->id != flow->id) {
		__builtin_memset(f, 0, sizeof(*f));
		f->id = flow->id;
	}
	if (!s->window && !(s->flags & RST))
		f->zero_windows[direction]++;
	if (s->payload) {
		f->data[direction]++;
		if (f->last == 1 + !direction) {
			f->answers[direction]++;
			f->answer_ns[direction] += now - f->spoke[!direction];
		}
		f->spoke[direction] = now;
		f->last = 1 + direction;
	}
	if (direction == OUT)
		f->socket = (u64)skb->sk;
	else if (now - f->time > FOCUS_REFRESH)
		read_socket(f, key, now);
}

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

static __always_inline int account(struct __sk_buff *skb, int direction)
{
	struct packet packet;
	struct flow_key key = {};
	struct segment s = {};
	struct size size;
	struct counters *n;
	struct flow *flow;
	struct flow_dir *dir, *other;
	u32 method = METHOD_NONE;
	u64 coarse, now = 0, sent = 0;
	u8 opening = 0, closing = 0, tick_shift;
	bool replacing = false, putting = false;
	int zero = 0, side;
	struct config *c = config.lookup(&zero);

	if (!c || !c->ifindex || !filter_accepts(skb, c->l2_len, direction))
		return TC_ACT_UNSPEC;
	n = counters.lookup(&zero);
	if (!n)
		return TC_ACT_UNSPEC;
	parse_packet(skb, c->l2_len, &packet);
	if (!packet.version) {
		n->untracked += packet.protocol != PROTO_ARP;
		return TC_ACT_UNSPEC;
	}
	packet_size(skb, &packet, direction == IN ? c->count_in : c->count_out, &size);

	__builtin_memcpy(key.local, direction == OUT ? packet.source : packet.destination, 16);
	__builtin_memcpy(key.remote, direction == OUT ? packet.destination : packet.source, 16);
	key.protocol = (packet.protocol & 0xff) | packet.vlans << 8;
	if (packet.l4) {
		if (packet.protocol == IPPROTO_TCP) {
			if (read_tcp(skb, &packet, &key, direction, &s))
				method = METHOD_TIMESTAMP;
		} else if (packet.protocol == IPPROTO_UDP || packet.protocol == IPPROTO_ICMP ||
			   packet.protocol == IPPROTO_ICMPV6 || packet.protocol == 132 ||
			   packet.protocol == 136 || packet.protocol == 33) {
			read_other(skb, &packet, &key, direction, &method, &s);
		}
	}
	if (packet.fragment) {
		/*
		 * Later fragments have no ports: the first one's are kept for them. For
		 * each direction, since on loopback the same packet passes in both.
		 */
		u64 hash = mix(mix(mix(*(u64 *)&packet.source[2], *(u64 *)&packet.destination[2]),
				   *(u64 *)&packet.source[0] ^ *(u64 *)&packet.destination[0]),
			       (u64)packet.fragment_id << 9 | (packet.protocol & 0xff) << 1 | direction);
		int index = hash >> 32 & (FRAGMENT_SLOTS - 1);
		struct fragment_slot *slot = fragments.lookup(&index);

		if (slot && packet.fragment == FRAGMENT_FIRST) {
			slot->hash = hash;
			slot->local_port = key.local_port;
			slot->remote_port = key.remote_port;
		} else if (slot && slot->hash == hash) {
			key.local_port = slot->local_port;
			key.remote_port = slot->remote_port;
		} else {
			n->fragments++;
		}
	}

	tick_shift = TICK_SHIFT + (c->rtt_shift & 7);
	coarse = coarse_clock(n);
	flow = flows.lookup(&key);
	/* the same ports again: another connection */
	if (flow && packet.protocol == IPPROTO_TCP && (s.flags & (SYN | ACK)) == SYN &&
	    (flow->state >= STATE_CLOSED ||
	     (flow->dir[direction].packets && s.sequence + 1 != flow->dir[direction].sequence))) {
		if (flow->state < STATE_CLOSED) {
			n->closed++;
			closing = 1;
		}
		n->replaced++;
		replacing = true;
		flow = NULL;
	}
	/* half open: taken out, and put back by the end of this packet, as a new one is put in */
	if (flow && flow->state == STATE_SYN && packet.protocol == IPPROTO_TCP && s.flags & (SYN | RST)) {
		struct flow *half = fresh.lookup(&zero);

		if (half) {
			*half = *flow;
			flows.delete(&key);
			flow = half;
			putting = true;
		}
	}
	if (!flow) {
		struct flow *new = fresh.lookup(&zero);

		if (!new)
			return TC_ACT_UNSPEC;
		__builtin_memset(new, 0, sizeof(*new));
		now = bpf_ktime_get_ns();
		new->id = ((u64)bpf_get_smp_processor_id() + 1) << 48 | ++n->created;
		new->first = now;
		new->tick[IN] = (now >> tick_shift) - 1;
		new->tick[OUT] = new->tick[IN];
		if (packet.protocol == IPPROTO_TCP && packet.l4) {
			new->state = (s.flags & (SYN | ACK)) == SYN ? STATE_SYN : STATE_OPEN;
			if (s.flags & SYN)
				new->flags = FLOW_OPENED_BY(s.flags & ACK ? !direction : direction);
			else
				new->flags = FLOW_MIDWAY;
		}
		flow = new;
		n->opened++;
		opening = 1;
		putting = true;
		closing = 0;
	}

	dir = &flow->dir[direction];
	other = &flow->dir[!direction];
	ADD(dir->bytes, size.bytes);
	ADD(dir->packets, size.segments);
	flow->last = coarse;

	if (packet.protocol == IPPROTO_TCP) {
		if (method == METHOD_NONE)
			goto events;
		flow->window[direction] = s.window;
		if (s.flags & RST) {
			if (flow->state < STATE_CLOSED) {
				flow->state = STATE_RESET;
				closing = 1;
			}
			goto events;
		}
		if (c->focus && c->focus == flow->id) {
			struct focused *f = focused.lookup(&zero);

			if (f)
				look_closer(f, skb, flow, &key, direction, &s);
		}
		if (s.flags & ACK) {
			sent = answered(other, &s, &method);
			if (flow->state == STATE_SYN && !(s.flags & SYN))
				flow->state = STATE_OPEN;
		}
		sent_segment(flow, direction, &s, &size, coarse, coarse >> tick_shift);
		if (s.flags & FIN && flow->state < STATE_CLOSED) {
			flow->flags |= FLOW_FIN(direction);
			flow->state = STATE_CLOSING;
			if ((flow->flags & 3) == 3) {
				flow->state = STATE_CLOSED;
				closing = 1;
			}
		}
	} else if (method == METHOD_SPIN) {
		if (direction == OUT)
			sent = spin_edge(dir, &flow->rtt[OUTWARD], &s, &now);
	} else if (method) {
		if (s.flags & SYN)
			remember_question(dir, s.sequence, method, coarse);
		else
			sent = answered(other, &s, &method);
	}

	if (sent) {
		struct subnet_key subnet_key = {};
		struct subnet *subnet;
		struct hist *h;
		u64 sample;

		if (!now)
			now = bpf_ktime_get_ns();
		sample = now - sent;
		if (sample > EXPIRY)
			goto events;
		/* answered by what came in: the round trip was outside */
		side = direction == IN || method == METHOD_SPIN ? OUTWARD : INWARD;
		update_rtt(&flow->rtt[side], sample, now, method);
		n->samples++;
		h = rtts.lookup(&side);
		if (h)
			hist_add(h, sample);
		if (side == OUTWARD) {
			subnet_of(&key, packet.version, c, &subnet_key);
			subnet = subnets.lookup(&subnet_key);
			if (!subnet) {
				struct subnet *none = no_subnet.lookup(&zero);

				if (none)
					subnets.insert(&subnet_key, none);
				subnet = subnets.lookup(&subnet_key);
			}
			if (subnet) {
				ADD(subnet->sum, sample);
				ADD(subnet->slots[hist_slot(sample) & (HIST_SLOTS - 1)], 1);
				if (!subnet->min || sample < subnet->min)
					subnet->min = sample;
			} else {
				int beyond = 2;

				n->subnet_overflow++;
				h = rtts.lookup(&beyond);
				if (h)
					hist_add(h, sample);
			}
		}
		if (c->focus && c->focus == flow->id) {
			struct event e;

			event_of(&e, EVENT_SAMPLE, now, &key, flow);
			e.rtt = sample;
			e.side = side;
			e.method = method;
			if (events.ringbuf_output(&e, sizeof(e), NO_WAKEUP))
				n->lost_events++;
		}
	}

events:
	/*
	 * An LRU map gives up first what was not looked up since it was put in. So a new
	 * flow goes in when this packet is in it already, and one that is half open goes
	 * in anew with each packet: a flood of SYNs, answered or not, drives out itself
	 * and no connection that is quiet for a moment.
	 */
	if (putting && (replacing ? flows.update(&key, flow) : flows.insert(&key, flow))) {
		/* another CPU was first, or there is no room */
		flow = flows.lookup(&key);
		n->created--;
		n->opened--;
		opening = 0;
		if (!flow) {
			n->untracked++;
			return TC_ACT_UNSPEC;
		}
		ADD(flow->dir[direction].bytes, size.bytes);
		ADD(flow->dir[direction].packets, size.segments);
	}
	if (closing && !opening)
		n->closed++;
	if (opening || closing) {
		struct event e;

		event_of(&e, opening ? EVENT_OPEN : EVENT_CLOSE, now ? now : bpf_ktime_get_ns(), &key, flow);
		if (events.ringbuf_output(&e, sizeof(e), NO_WAKEUP))
			n->lost_events++;
	}
	return TC_ACT_UNSPEC;
}

int flows_ingress(struct __sk_buff *skb)
{
	return account(skb, IN);
}

int flows_egress(struct __sk_buff *skb)
{
	return account(skb, OUT);
}

/*
 * The process behind a socket: seen when it reads or writes, in its own context.
 * What is known of it is written when the socket or the process is new, and now
 * and then for the kernel's RTT.
 */
static __always_inline int write_owner(u64 sk, u32 pid)
{
	struct sock_common common;
	struct flow_key key = {};
	struct owner owner = {};
	u16 protocol = 0;

	if (READ(common, sk))
		return 0;
	if (common.skc_family == 2) { /* AF_INET */
		map_v4(key.local, common.skc_rcv_saddr);
		map_v4(key.remote, common.skc_daddr);
	} else if (common.skc_family == 10) { /* AF_INET6 */
		__builtin_memcpy(key.local, &common.skc_v6_rcv_saddr, 16);
		__builtin_memcpy(key.remote, &common.skc_v6_daddr, 16);
	} else {
		return 0;
	}
	/* not connected or not bound: zeros, in one form for both families */
	if (!common.skc_rcv_saddr && common.skc_family == 2)
		key.local[2] = 0;
	if (!common.skc_daddr && common.skc_family == 2)
		key.remote[2] = 0;
	key.local_port = common.skc_num;
	key.remote_port = swap16(common.skc_dport);
	READ_FIELD(protocol, sk, struct sock, sk_protocol);
	READ_FIELD(owner.netns, common.skc_net.net, struct net, ns.inum);
	/* the same addresses and ports may be in use in another namespace */
	key.protocol = (protocol & 0xff) | owner.netns << 8;
	owner.time = bpf_ktime_get_ns(); /* tracing programs have no coarse clock */
	owner.pid = pid;
	owner.uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(owner.comm, sizeof(owner.comm));
	if (protocol == IPPROTO_TCP) {
		READ_FIELD(owner.srtt_us, sk, struct tcp_sock, srtt_us);
		owner.srtt_us >>= 3; /* the kernel keeps eight times the value */
		READ_FIELD(owner.cwnd, sk, struct tcp_sock, snd_cwnd);
	}
	owners.update(&key, &owner);
	return 0;
}

/*
 * A slot for each socket keeps the usual call short. The ports tell a connection
 * from the one before it whose socket was at the same address.
 */
static __always_inline int own(u64 sk, u32 ports)
{
	int index = mix(sk, 0) >> 32 & (SOCKET_SLOTS - 1);
	struct socket_slot *slot = sockets.lookup(&index);
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	u64 jiffies = bpf_jiffies64();

	if (!slot || !sk)
		return 0;
	if (slot->sk == sk && slot->pid == pid && slot->ports == ports &&
	    jiffies - slot->jiffies < OWNER_REFRESH)
		return 0;
	slot->sk = sk;
	slot->pid = pid;
	slot->ports = ports;
	slot->jiffies = jiffies;
	return write_owner(sk, pid);
}

static __always_inline int own_untyped(u64 sk)
{
	u32 ports = 0;

	READ_FIELD(ports, sk, struct sock_common, skc_portpair);
	return own(sk, ports);
}

/* Typed raw tracepoint: the ports are one load, where a call of the helper costs as much as all the rest. */
int flows_owner_typed(struct bpf_raw_tracepoint_args *ctx)
{
	u32 ports = 0;
	void *sock;
	u64 sk;

	ARGUMENT(sock, ctx, 0);
	LOAD(TYPED, ports, sock, struct sock, __sk_common.skc_portpair);
	sk = (u64)sock;
	asm volatile("%0 = -%0; %0 = -%0" : "+r"(sk)); /* as below */
	return own(sk, ports);
}

/* Raw tracepoint or fentry: the socket is the first argument. */
int flows_owner(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0];

	/* to fentry's verifier a socket, with which no arithmetic is allowed, until it has been negated */
	asm volatile("%0 = -%0; %0 = -%0" : "+r"(sk));
	return own_untyped(sk);
}

int flows_owner_kprobe(struct pt_regs *ctx)
{
	return own_untyped(PT_REGS_PARM1(ctx));
}

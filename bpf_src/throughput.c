// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * What crosses the interface: bytes, packets, sizes, protocols, and the bytes of each millisecond, for bursts. Per
 * CPU and direction, so nothing is atomic: TC runs with bottom halves disabled.
 */
#include "nettop.h"
#include "parse.h"
#include "filter.h"

#define SIZE_CLASSES 8
#define BIN_SHIFT 20 /* a bin is 2^20 ns = 1.05 ms: a shift where a division would cost */
#define BINS 1024
#define UNTIMED 2048 /* bytes that may go to the last packet's bin: 16 Mbit/s of a bin */

struct traffic {
	u64 bytes;
	u64 packets;
	u64 segments;
	u64 fragments;
	u64 sizes
		[SIZE_CLASSES]; /* segments by length of frame: to 64, 128, 256, 512, 1024, 1518, 9018, above */
	u64 protocols[PROTO_SLOTS]; /* bytes by protocol */
};

struct bin {
	u32 number; /* ktime >> BIN_SHIFT */
	u32 bytes;
};

struct bursts {
	struct bin bins[BINS];
	u64 tick; /* jiffies when the clock was read */
	u32 number; /* the bin of that time */
	u32 bytes; /* since then */
};

CONFIG_MAP;
BPF_PERCPU_ARRAY(veth_peers, struct veth_peer, 1);
BPF_PERCPU_ARRAY(traffic, struct traffic, 2);
BPF_PERCPU_ARRAY(bursts, struct bursts, 2);

static __always_inline u32 size_class(u32 bytes)
{
	if (bytes <= 256)
		return bytes <= 64 ? 0 : bytes <= 128 ? 1 : 2;
	if (bytes <= 1024)
		return bytes <= 512 ? 3 : 4;
	return bytes <= 1518 ? 5 : bytes <= 9018 ? 6 : 7;
}

/*
 * The bin of these bytes. Reading the clock costs as much as all else here, so small packets do without: those within
 * a tick of the last reading that make up less than UNTIMED bytes since.
 */
static __always_inline u32 bin_number(struct bursts *b, u32 bytes)
{
	u64 jiffies = bpf_jiffies64();

	b->bytes += bytes;
	if (b->tick != jiffies || b->bytes >= UNTIMED) {
		b->tick = jiffies;
		b->bytes = 0;
		b->number = bpf_ktime_get_ns() >> BIN_SHIFT;
	}
	return b->number;
}

static __always_inline void traffic_add(struct traffic *t, struct bursts *b, const struct packet *packet,
					const struct size *size)
{
	u32 number;
	struct bin *bin;

	if (!t || !b)
		return;
	t->bytes += size->bytes;
	t->packets += size->packets;
	t->segments += size->segments;
	if (unlikely(packet->fragment != FRAGMENT_NONE))
		t->fragments++;
	if (packet->protocol < PROTO_SLOTS)
		t->protocols[packet->protocol] += size->bytes;
	t->sizes[size_class(size->segment_bytes)] += size->segments;

	number = bin_number(b, size->bytes);
	bin = &b->bins[number & (BINS - 1)];
	if (bin->number != number) {
		bin->number = number;
		bin->bytes = 0;
	}
	bin->bytes += size->bytes;
}

static __always_inline int process_packet(struct __sk_buff *skb, int direction)
{
	struct veth_peer *peer = NULL;
	struct packet packet;
	struct size size;
	/* a copy for look-ups, which take an address: `direction` itself stays a constant */
	int zero = 0, in = IN, index = direction;
	struct config *c = config.lookup(&zero);

	if (!c || !c->ifindex || !filter_accepts(skb, c->l2_len, direction))
		return TC_ACT_UNSPEC;
	parse_packet(skb, c->l2_len, &packet);
	if (direction == OUT && c->count_out & COUNT_NAPI)
		peer = veth_peers.lookup(&zero);
	packet_size(skb, &packet, c, direction, peer, &size);
	traffic_add(traffic.lookup(&index), bursts.lookup(&index), &packet, &size);
	if (direction == OUT && unlikely(c->count_in & COUNT_SENT))
		traffic_add(traffic.lookup(&in), bursts.lookup(&in), &packet, &size);
	return TC_ACT_UNSPEC;
}

int throughput_ingress(struct __sk_buff *skb)
{
	return process_packet(skb, IN);
}

int throughput_egress(struct __sk_buff *skb)
{
	return process_packet(skb, OUT);
}

/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What is remembered of each packet: a slot of an array, at the hash of its skb's address; and whether a packet is
 * followed, by interface, sample, filter and focus.
 */
#ifndef SLOT_H
#define SLOT_H

#define RX_STACK 0
#define RX_IP 1
#define RX_LOCAL 2
#define RX_FORWARD 3
#define RX_TRANSPORT 4
#define RX_SOCKET 5
#define RX_APPLICATION 6
#define RX_WHOLE 7
#define TX_APPLICATION 8
#define TX_IP 9
#define TX_QDISC 10
#define TX_DRIVER 11
#define TX_DONE 12
#define TX_WHOLE 13
#define STAGES 14

/* What a slot's packet has passed. */
#define PASSED_DRIVER 0x01
#define PASSED_STACK 0x02
#define PASSED_IP 0x04
#define PASSED_LOCAL 0x08
#define PASSED_QUEUE 0x10
#define PASSED_XMIT 0x20
#define PASSED_SENT 0x40
#define PASSED_DONE 0x80 /* the driver is done with it, and net_dev_xmit is still to come */

/* Whether a slot's packet is followed. */
enum slot_state {
	SLOT_UNCLASSIFIED, /* its headers are not in place yet: asked again at the next boundary */
	SLOT_FOLLOWED,
	SLOT_EXCLUDED, /* the filter does not want it, and it has passed nothing */
};

/* Sent: is it known when a packet's data was written? */
enum write_status {
	WRITE_NONE, /* there is nothing to be known: an ACK alone, sent again, or no socket that is followed */
	WRITE_SEEN,
	WRITE_MISSED,
};

/* sample_shift: no packet is followed.  nettop/bpf/config.py has the same. */
#define SAMPLE_NONE 31

#define PKT_TYPE_MAX 7 /* skbuff.h: the bits of sk_buff.pkt_type in its byte */

/* The config's flags, see nettop/bpf/config.py.  Hooks that this kernel does not give: */
#define NO_DRIVER 1
#define NO_LOCAL 2
#define NO_READY 4
#define NO_WRITE 8
/* What the user asks for: */
#define FILTERED 16
#define TRACE 32 /* the packets of the flow in focus, one by one */
#define TRACE_ALL 64 /* or whatever the filter accepts */
/* What the interface is: */
#define NO_STACK 128 /* a VLAN, a bond: the driver's call and netif_receive_skb name the device below */
/* A card, a tap: its driver frees what it has sent, and that very skb is received nowhere. */
#define COMPLETES 256

/* Programs that hold a filter are attached beside those with the one before, and obey their own config alone. */
#ifndef GENERATION
#define GENERATION 0
#endif
#ifdef FILTER
#define FILTERING true
#else
#define FILTERING false
#endif

/* What an event's `stage` may be besides: */
#define RX_BEGIN 14
#define TX_BEGIN 15
#define TRACE_DROP 0x100 /* the packet ended in the stage */

#define SLOT_BITS 15
#define SLOTS (1 << SLOT_BITS)
#define SOCKET_BITS 11
#define SOCKETS (1 << SOCKET_BITS)
#define SLOT_STAGES 3
/* BPF_F_MMAPABLE: a map begins with a page, so its entries with a cache line, and the loader can empty it at once. */
#define WHOLE_PAGES 1024
/* Nothing waits so long inside a host: what is older is another packet's slot. */
#define SLOT_MAX_AGE_NS (30ULL * 1000 * NSEC_PER_MSEC)
#define SAME_RUN_NS (100 * NSEC_PER_MSEC) /* between boundaries of one run of the stack */
#define SAME_RUN_JIFFIES 4 /* the same, coarsely: 4 ms at least */
#define PACING_HORIZON_NS (10ULL * 1000 * NSEC_PER_MSEC)
#define GSO_SEG_WINDOW_NS (2 * NSEC_PER_MSEC) /* within which the segments of a packet are sent */
#define WRITE_WINDOW_NS 50000 /* ns after a write in which no other data of its socket comes out */
#define REFUSED_IN_A_ROW 16 /* packets that the filter refuses: their socket's writes are not recorded then */
#define SOCK_IDLE_NS (200 * NSEC_PER_MSEC) /* after which a socket's entry may be taken by another */

/* What is shown of a packet besides the counts of all: both 0 for most. */
struct mark {
	u32 focus; /* focus_mark() of the flow that was in focus when it was first seen, where it is of that */
	u32 trace; /* its number in the trace */
};

#define NO_MARK ((struct mark){})

/* A packet on its way.  docs/stages-data.md has who writes what, and what a race does. */
struct slot {
	u64 skb; /* its address, 0: none */
	u64 at; /* when it passed the last boundary */
	u64 start; /* the first one, 0: not seen there */
	struct mark mark;
	u32 passed; /* PASSED_*, together */
	u32 state; /* enum slot_state */
	u32 stage_ns[SLOT_STAGES]; /* of the stages so far, for the sums over whole paths */
	u32 written; /* enum write_status */
	u32 paced_ns; /* sent: from the queue's entrance to the time before which it is not to leave */
	u32 excluded_at; /* jiffies: a load, where the clock is a call */
};

_Static_assert(sizeof(struct slot) == 64, "a cache line");

/* The packet that this CPU is delivering: no hook between here and UDP's socket shows the skb. */
struct rx_current {
	u64 skb; /* its address, 0: none that is followed */
	u64 at; /* when it was delivered */
	u64 net; /* its namespace, by address */
};

/*
 * A packet that the stack has just segmented for a device without that offload: new skbs, which follow at once on the
 * same CPU with its flow hash, and whose wait in the queue was its.
 */
struct gso_parent {
	struct slot slot;
	u64 segmented_at;
	u32 flow; /* skb->hash */
	u32 segments; /* that are still to come */
};

CONFIG_MAP;
BPF_F_TABLE("array", int, struct slot, rx_slots, SLOTS, WHOLE_PAGES);
BPF_F_TABLE("array", int, struct slot, tx_slots, SLOTS, WHOLE_PAGES);
BPF_PERCPU_ARRAY(rx_currents, struct rx_current, 1);
BPF_PERCPU_ARRAY(gso_parents, struct gso_parent, 1);

static __always_inline struct config *settings(void)
{
	int zero = 0;

	return config.lookup(&zero);
}

/* The same for a program that holds a filter. */
static __always_inline struct config *settings_here(void)
{
	struct config *c = settings();

	return c && c->generation == GENERATION ? c : 0;
}

/*
 * Tells a socket from the next one at its address. Made for those that get an entry; an untyped program cannot have
 * it made and takes the ports.
 */
static __always_inline u64 sock_cookie(const void *sock, int typed)
{
	u64 cookie = 0;
	u32 ports = 0;

	LOAD(typed, cookie, sock, struct sock, __sk_common.skc_cookie.counter);
	if (cookie)
		return cookie;
	LOAD(typed, ports, sock, struct sock, __sk_common.skc_portpair);
	return ports | 1ULL << 63;
}

static __always_inline u64 sock_cookie_made(void *sock, int typed)
{
	return typed ? bpf_get_socket_cookie(sock) : sock_cookie(sock, typed);
}

/* Fibonacci hashing: addresses differ in their middle bits. */
static __always_inline u32 hash_address(u64 address, int bits)
{
	return (address * 0x9E3779B97F4A7C15ULL) >> (64 - bits);
}

static __always_inline struct slot *rx_slot(u64 skb)
{
	int index = hash_address(skb, SLOT_BITS);

	return rx_slots.lookup(&index);
}

static __always_inline struct slot *tx_slot(u64 skb)
{
	int index = hash_address(skb, SLOT_BITS);

	return tx_slots.lookup(&index);
}

static __always_inline struct rx_current *rx_current_here(void)
{
	int zero = 0;

	return rx_currents.lookup(&zero);
}

static __always_inline struct gso_parent *gso_parent_here(void)
{
	int zero = 0;

	return gso_parents.lookup(&zero);
}

static __always_inline bool marked(struct mark mark)
{
	return mark.focus | mark.trace;
}

/* Is this a mark of the flow that is in focus now? */
static __always_inline bool in_focus(struct mark mark)
{
	struct config *c = mark.focus ? settings() : 0;

	return c && c->focus && focus_mark(c) == mark.focus;
}

/* One packet in 2^sample_shift is followed, decided once, at its first hook. */
static __always_inline bool sampled(const struct config *c)
{
	u32 shift = c->sample_shift;

	return !shift || (shift < SAMPLE_NONE && !(bpf_get_prandom_u32() & ((1 << shift) - 1)));
}

/* Where the IP header of a packet begins on its way in, or out above the device; or a VLAN tag before it. */
static __always_inline const void *skb_data(const void *skb, int typed)
{
	const void *data = 0;

	LOAD(typed, data, skb, struct sk_buff, data);
	return data;
}

/* The same on its way out, at the device. */
static __always_inline const void *skb_network_header(const void *skb, int typed)
{
	const void *head = 0;
	u16 network = 0;

	LOAD(typed, head, skb, struct sk_buff, head);
	LOAD(typed, network, skb, struct sk_buff, network_header);
	return head + network;
}

/* Is the IP header where it can be read?  A driver of napi_gro_frags has it in a page until the stack gets it. */
static __always_inline bool has_headers(const void *skb, int typed)
{
	u32 length = 0, paged = 0;

	LOAD(typed, length, skb, struct sk_buff, len);
	LOAD(typed, paged, skb, struct sk_buff, data_len);
	return length - paged >= 20;
}

static __always_inline bool accepted(const struct config *c, const void *skb, int typed, int direction,
				     int where)
{
#ifdef FILTER
	struct filter_packet packet;

	filter_look(&packet, skb, typed, c->l2_len, direction, where);
	packet.ifindex = c->ifindex;
	return filter_program(&packet);
#else
	return true;
#endif
}

/* Is a packet followed, and is it of the flow in focus?  Asked where it is first seen. */
static __always_inline enum slot_state classify(const struct config *c, const void *skb, int typed,
						int direction, int where, u32 *focus)
{
	*focus = 0;
	if (!FILTERING && !c->focus)
		return SLOT_FOLLOWED;
	if (!has_headers(skb, typed))
		return SLOT_UNCLASSIFIED;
	if (!accepted(c, skb, typed, direction, where))
		return SLOT_EXCLUDED;
	if (c->focus)
		*focus = focus_look(c, skb, typed,
				    where == AT_LINK ? skb_network_header(skb, typed) : skb_data(skb, typed),
				    direction);
	return SLOT_FOLLOWED;
}

/* The same where it cannot be put off. */
static __always_inline enum slot_state classify_final(const struct config *c, const void *skb, int typed,
						      int direction, int where, u32 *focus)
{
	enum slot_state state = classify(c, skb, typed, direction, where, focus);

	if (state == SLOT_UNCLASSIFIED)
		return FILTERING ? SLOT_EXCLUDED : SLOT_FOLLOWED;
	return state;
}

/*
 * Not every packet is followed: one unknown at a later boundary may be excluded or not sampled, and is not missed.
 * What is known to be lost is: see slot_evict().
 */
static __always_inline bool partial_tracking(const struct config *c)
{
	return c->sample_shift || c->flags & FILTERED;
}

static __always_inline bool is_ip(const void *skb, int typed)
{
	u16 protocol = 0;

	LOAD(typed, protocol, skb, struct sk_buff, protocol);
	return protocol == __builtin_bswap16(ETH_P_IP) || protocol == __builtin_bswap16(ETH_P_IPV6);
}

static __always_inline void slot_clear(struct slot *s, u64 key)
{
	if (s->skb == key)
		s->skb = 0;
}

/* Let no later boundary take this packet for one that it does not know. */
static __always_inline void slot_exclude(const struct config *c, struct slot *s, u64 key)
{
	if (c->sample_shift) {
		slot_clear(s, key);
		return;
	}
	s->skb = key;
	s->passed = 0;
	s->state = SLOT_EXCLUDED;
	s->excluded_at = bpf_jiffies64();
}

static __always_inline bool slot_excluded(const struct slot *s, u64 key)
{
	return s->skb == key && s->state == SLOT_EXCLUDED;
}

#endif

/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What is remembered of each packet on its way: a slot of an array, chosen by the skb's address; and whether a packet is
 * one of those that are followed, by interface, sample, filter and focus.
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
#define EXCLUDED 0x80 /* and no other: nobody asked for this packet */
#define PASSED_DONE 0x100 /* the driver is done with it, and net_dev_xmit is still to come */

/* Of sk_buff.pkt_type, include/uapi/linux/if_packet.h; skbuff.h: PKT_TYPE_MAX. */
#define PACKET_BROADCAST 1
#define PACKET_MULTICAST 2
#define PACKET_TYPES 7

/* The config's flags, see nettop/control.py.  Hooks that this kernel does not give: */
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
#define COMPLETES \
	256 /* a card, a tap: its driver frees what it has sent, and nobody receives that very skb */

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
/* BPF_F_MMAPABLE: a map begins with a page, and so its entries with a cache line; and the loader can empty it at once. */
#define WHOLE_PAGES 1024
#define SLOT_MAX_AGE_NS \
	(30ULL * 1000 * NSEC_PER_MSEC) /* nothing waits so long inside a host: another packet's slot */
#define SAME_RUN_NS (100 * NSEC_PER_MSEC) /* between boundaries of one run of the stack */
#define SAME_RUN_JIFFIES 4 /* the same, coarsely: 4 ms at least */
#define PACING_HORIZON_NS (10ULL * 1000 * NSEC_PER_MSEC)
#define GSO_SEG_WINDOW_NS (2 * NSEC_PER_MSEC) /* within which the segments of a packet are sent */
#define WRITE_WINDOW_NS 50000 /* ns after a write in which no other data of its socket comes out */
#define REFUSED_IN_A_ROW \
	16 /* packets in a row that the filter refuses: their socket's writes are left alone */
#define SOCK_IDLE_NS (200 * NSEC_PER_MSEC) /* after which a socket's entry may be taken by another */

#define ETH_P_IP_BE __builtin_bswap16(0x0800)
#define ETH_P_IPV6_BE __builtin_bswap16(0x86dd)
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#undef ETH_P_IP_BE
#undef ETH_P_IPV6_BE
#define ETH_P_IP_BE 0x0800
#define ETH_P_IPV6_BE 0x86dd
#endif
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define MSG_PEEK 2
#define MSG_ERRQUEUE 0x2000
#define NF_ACCEPT 1

struct slot {
	u64 skb; /* its address, never followed */
	u64 at; /* the last boundary */
	u64 start; /* the first one, 0: not seen there */
	u64 mark; /* of the flow in focus, see focus.h; in the upper half the packet's number, where it is traced */
	u32 passed;
	u32 stage_ns[SLOT_STAGES]; /* ns of the stages so far, for the sums over whole paths */
	u32 written; /* sent: is it known when its data was written? */
	u32 paced; /* sent: ns from the queue's entrance to the time before which it is not to leave */
	u64 spare;
};

#define WRITE_SEEN 1
#define WRITE_MISSED 2

/* The packet that this CPU is delivering: UDP's way to its socket shows no skb. */
struct rx_current {
	u64 skb; /* 0: not ours */
	u64 at;
	u64 net;
	u64 pointer; /* to the skb, which is good for as long as this is */
};

/*
 * A packet that the stack has just cut into segments for a device that cannot do it itself: new skbs, which follow at
 * once on the same CPU with the old one's flow hash, and whose wait in the queue was the old one's.
 */
struct gso_parent {
	u64 segmented_at;
	u64 at;
	u64 start;
	u32 stage_ns[SLOT_STAGES];
	u32 flow;
	u64 mark;
	u32 segments; /* that are still to come */
	u32 paced;
};

CONFIG_MAP;
BPF_F_TABLE("array", int, struct slot, rx_slots, SLOTS, WHOLE_PAGES);
BPF_F_TABLE("array", int, struct slot, tx_slots, SLOTS, WHOLE_PAGES);
BPF_PERCPU_ARRAY(rx_currents, struct rx_current, 1);
BPF_PERCPU_ARRAY(gso_parents, struct gso_parent, 1);
BPF_ARRAY(origin, u64, 1); /* see address() */

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
 * A pointer as a number: its distance from a place that all programs share.  The verifier lets nobody reckon with a typed
 * pointer, but take another pointer from it (kernel/bpf/verifier.c, adjust_reg_min_max_vals).  Where pointers are
 * numbers from the start, it wants the place as a number too, and forgets what it was when it went through a map.
 */
static __always_inline u64 address(const void *pointer, int typed)
{
	int zero = 0;
	u64 *place = origin.lookup(&zero);
	u64 number;

	if (!place)
		return 0;
	if (!typed) {
		*(volatile u64 *)place = (u64)place;
		return (u64)pointer - *(volatile u64 *)place;
	}
	asm("%0 = %1\n%0 -= %2" : "=&r"(number) : "r"(pointer), "r"(place));
	return number;
}

/*
 * What tells a socket from the next one at its address.  It is made for those that get an entry; a program without types
 * cannot have it made, and gives its entries the ports.
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
static __always_inline u32 hash(u64 address, int bits)
{
	return (address * 0x9E3779B97F4A7C15ULL) >> (64 - bits);
}

static __always_inline struct slot *rx_slot(u64 skb)
{
	int index = hash(skb, SLOT_BITS);

	return rx_slots.lookup(&index);
}

static __always_inline struct slot *tx_slot(u64 skb)
{
	int index = hash(skb, SLOT_BITS);

	return tx_slots.lookup(&index);
}

/* Is this a mark of the flow that is in focus now? */
static __always_inline bool in_focus(u64 mark)
{
	struct config *c = settings();

	return c && c->focus && focus_mark(c) == (u32)mark;
}

/* One packet in 2^sample_shift is followed. */
static __always_inline bool sampled(const struct config *c)
{
	return !c->sample_shift || !(bpf_get_prandom_u32() & ((1 << (c->sample_shift & 31)) - 1));
}

/* Where the IP header of a packet begins on its way in, or out above the device; or a VLAN tag before it. */
static __always_inline const void *at_data(const void *skb, int typed)
{
	const void *data = 0;

	LOAD(typed, data, skb, struct sk_buff, data);
	return data;
}

/* The same on its way out, at the device. */
static __always_inline const void *at_network(const void *skb, int typed)
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

#define UNREAD 1 /* not to be told yet */
#define REFUSED 2 /* by the filter */

/* What a packet is to us, asked where it is first seen: 0, or the mark of the flow in focus, or one of the above. */
static __always_inline u32 classify(const struct config *c, const void *skb, int typed, int direction,
				    int where)
{
	if (!FILTERING && !c->focus)
		return 0;
	if (!has_headers(skb, typed))
		return UNREAD;
	if (!accepted(c, skb, typed, direction, where))
		return REFUSED;
	if (!c->focus)
		return 0;
	return focus_look(c, skb, typed, where == AT_LINK ? at_network(skb, typed) : at_data(skb, typed),
			  direction);
}

/* The same where it cannot be put off. */
static __always_inline u32 classify_final(const struct config *c, const void *skb, int typed, int direction,
					  int where)
{
	u32 mark = classify(c, skb, typed, direction, where);

	if (mark == UNREAD)
		return FILTERING ? REFUSED : 0;
	return mark;
}

/*
 * Not every packet is followed: one that is not known at a later boundary may be none that was asked for, and is not
 * missed.  What is known to be lost is: see slot_evict().
 */
static __always_inline bool partial_tracking(const struct config *c)
{
	return c->sample_shift || c->flags & FILTERED;
}

static __always_inline bool internet(const void *skb, int typed)
{
	u16 protocol = 0;

	LOAD(typed, protocol, skb, struct sk_buff, protocol);
	return protocol == ETH_P_IP_BE || protocol == ETH_P_IPV6_BE;
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
	s->passed = EXCLUDED;
	s->at = bpf_jiffies64(); /* a load, where the clock is a call */
}

static __always_inline bool slot_excluded(const struct slot *s, u64 key)
{
	return s->skb == key && s->passed == EXCLUDED;
}

#endif

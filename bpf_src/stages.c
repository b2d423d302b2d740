// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Where a packet's time goes on its way through the host, from boundary to boundary.
 *
 * A packet is known by its skb's address for as long as it has one: the address chooses a slot of an array, and what
 * the slot holds is believed only if it names the same address and the right last boundary.  Nothing is ever looked
 * for, inserted or deleted, and what is dropped on the way is overwritten by whoever comes next.
 *
 *   receive: driver -> stack -> ip -> local (or forward) -> transport -> socket -> application
 *   send:    application -> ip -> qdisc -> driver -> handed over -> done
 *
 * Between socket and application, and application and ip, TCP merges and cuts skbs: there the socket is the key, and
 * the place in the stream says which packet it was (fifo.h).
 *
 * Each boundary has a body, and around it a function for each kind of program that may watch it; see load.h.
 */
#include "nettop.h"
#include "hist.h"
#include "load.h"
#include "fifo.h"
#include "focus.h"
#define FILTER_SK_BUFF
#include "filter.h"

/* Index of `stages`; nettop/probes/stages.py has the same list.  A stage ends where it is recorded. */
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
#define AT_DRIVER 0x01
#define AT_STACK 0x02
#define AT_IP 0x04
#define AT_LOCAL 0x08
#define AT_QUEUE 0x10
#define AT_XMIT 0x20
#define AT_SENT 0x40
#define LEFT_OUT 0x80 /* and no other: nobody asked for this packet */

/* The config's flags, see nettop/control.py.  Hooks that this kernel does not give: */
#define NO_DRIVER 1
#define NO_LOCAL 2
#define NO_READY 4
#define NO_WRITE 8
/* What the user asks for: */
#define FILTERED 16
#define TRACE 32 /* the packets of the flow in focus, one by one */
#define TRACE_ALL 64 /* or whatever the filter accepts */

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
#define DELTAS 3
/* BPF_F_MMAPABLE: a map begins with a page, and so its entries with a cache line; and the loader can empty it at once. */
#define WHOLE_PAGES 1024
#define OLD (30ULL * 1000 * NSEC_PER_MSEC) /* nothing waits so long inside a host: another packet's slot */
#define AT_ONCE (100 * NSEC_PER_MSEC) /* between boundaries of one run of the stack */
#define AT_ONCE_JIFFIES 4 /* the same, coarsely: 4 ms at least */
#define FRESH (2 * NSEC_PER_MSEC) /* within which the segments of a packet are sent */
#define SOON 50000 /* ns after a write in which no other data of its socket comes out */
#define UNWANTED 16 /* packets in a row that the filter refuses: their socket's writes are left alone */
#define IDLE (200 * NSEC_PER_MSEC) /* after which a socket's entry may be taken by another */

#define ETH_P_IP_BE __builtin_bswap16(0x0800)
#define ETH_P_IPV6_BE __builtin_bswap16(0x86dd)
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#undef ETH_P_IP_BE
#undef ETH_P_IPV6_BE
#define ETH_P_IP_BE 0x0800
#define ETH_P_IPV6_BE 0x86dd
#endif
#define FAMILY_INET 2
#define FAMILY_INET6 10
#define TYPE_STREAM 1
#define TCP_FIN 0x01
#define PEEK 0x02
#define ERRQUEUE 0x2000
#define ACCEPT 1 /* NF_ACCEPT */

struct slot {
	u64 skb; /* its address, never followed */
	u64 at; /* the last boundary */
	u64 start; /* the first one, 0: not seen there */
	u64 mark; /* of the flow in focus, see focus.h; in the upper half the packet's number, where it is traced */
	u32 passed;
	u32 deltas[DELTAS]; /* ns of the stages so far, for the sums over whole paths */
	u64 spare[2];
};

/* One stage on one CPU. */
struct stage {
	struct hist delay;
	u64 missed; /* packets at the stage's end whose beginning was not seen */
	u64 dropped; /* packets that ended in the stage: kfree_skb */
};

struct path {
	u64 ns;
	u64 packets;
};

/*
 * The stages of packets that go the whole way from a known start: these sums add up to the whole path's, which the
 * histograms' do not, as not every packet goes all the way.  By stage, close together.
 */
struct paths {
	struct path of[STAGES];
};

/* One boundary that one packet has passed. */
struct traced_event {
	u64 time;
	u64 flow; /* its id, 0: not the one in focus */
	u64 delay; /* ns of the stage that ends there */
	u32 packet; /* a number for it: addresses are the kernel's own business */
	u16 stage;
	u16 cpu;
};

/* The budget of traced packets on one CPU. */
struct tracing {
	u64 second;
	u64 left_out; /* packets beyond it */
	u64 lost; /* events that the ring had no room for */
	u32 packets;
	u32 number;
};

/* The packet that this CPU is delivering: UDP's way to its socket shows no skb. */
struct delivery {
	u64 skb; /* 0: not ours */
	u64 at;
	u64 net;
};

/*
 * A packet that the stack has just cut into segments for a device that cannot do it itself: new skbs, which follow at
 * once on the same CPU with the old one's flow hash, and whose wait in the queue was the old one's.
 */
struct cut {
	u64 cut_at;
	u64 at;
	u64 start;
	u32 deltas[DELTAS];
	u32 flow;
	u64 mark;
	u64 segments; /* that are still to come */
};

/* A socket that receives; what each packet needs is in one cache line, beside the queue's. */
struct reader {
	struct fifo queue;
	u64 used;
	u64 pending; /* when the packet in hand reached TCP, 0: none */
	u64 pending_start;
	u64 pending_mark;
	u32 pending_end;
	u32 left_out; /* the packet in hand is none of ours */
	u32 held; /* packets out of order, or below SO_RCVLOWAT */
	u32 mark; /* of the focused packets in the queue; those of an earlier focus count for nobody */
	u32 held_unknown; /* one of their starts is not known */
	u32 held_end;
	u32 held_focused; /* of those held, packets of the flow in focus */
	u32 in; /* UDP: datagrams queued */
	u64 held_sum; /* of the times of those held */
	u64 held_starts;
	u32 out; /* UDP: datagrams read */
	u32 spare[11];
};

/* A socket that sends. */
struct writer {
	struct fifo queue;
	u64 used;
	u64 sending; /* UDP: when the call in hand began */
	u32 sent_end; /* highest sequence number that went out */
	u16 sent; /* one did */
	u16 next; /* all before the newest write is sent: what comes out next begins with it */
	u32 refused; /* packets that the filter did not want, since the last that it did */
	u32 spare[9];
};

_Static_assert(!(sizeof(struct slot) % 64 + sizeof(struct reader) % 64 + sizeof(struct writer) % 64),
	       "cache lines");

CONFIG_MAP;
BPF_F_TABLE("array", int, struct slot, rx_slots, SLOTS, WHOLE_PAGES);
BPF_F_TABLE("array", int, struct slot, tx_slots, SLOTS, WHOLE_PAGES);
BPF_F_TABLE("array", int, struct reader, readers, SOCKETS, WHOLE_PAGES);
BPF_F_TABLE("array", int, struct writer, writers, SOCKETS, WHOLE_PAGES);
BPF_PERCPU_ARRAY(stages, struct stage, 2 * STAGES); /* of all packets, then of the flow in focus */
BPF_PERCPU_ARRAY(paths, struct paths, 2);
BPF_PERCPU_ARRAY(deliveries, struct delivery, 1);
BPF_PERCPU_ARRAY(cuts, struct cut, 1);
BPF_ARRAY(origin, u64, 1); /* see address() */
BPF_PERCPU_ARRAY(tracing, struct tracing, 1);
BPF_RINGBUF_OUTPUT(trace, 64);

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

static __always_inline struct stage *stage_of(int index)
{
	return stages.lookup(&index);
}

static __always_inline u64 since(u64 then, u64 now)
{
	s64 ns = now - then;

	/* 0 if negative: the clocks of two CPUs may differ by some ns. */
	return ns & ~(ns >> 63);
}

/* Is this a mark of the flow that is in focus now? */
static __always_inline bool in_focus(u64 mark)
{
	struct config *c = settings();

	return c && c->focus && focus_mark(c) == (u32)mark;
}

/* ---- one packet's way, as events ----------------------------------------------------------------------------- */

/* With TRACING alone: it makes every program half as long again. */
static __always_inline void emit(u32 stage, u64 ns, u64 mark, u64 at)
{
#ifdef TRACING
	struct config *c = settings();
	struct traced_event e = {};
	struct tracing *t;
	int zero = 0;

	if (!c || !(c->flags & TRACE))
		return;
	e.time = at;
	e.flow = c->focus && focus_mark(c) == (u32)mark ? c->focus : 0;
	e.delay = ns;
	e.packet = mark >> 32;
	e.stage = stage;
	e.cpu = bpf_get_smp_processor_id();
	if (!trace.ringbuf_output(&e, sizeof(e), NO_WAKEUP))
		return;
	t = tracing.lookup(&zero);
	if (t)
		t->lost++;
#endif
}

/* Whether a packet is traced is decided where it is first seen; whole ways or nothing, so many a second. */
static __always_inline u64 traced(const struct config *c, u64 mark, u32 begin, u64 now, u64 begun)
{
#ifdef TRACING
	struct tracing *t;
	int zero = 0;
	u64 second;

	if (!(c->flags & TRACE) || !(c->flags & TRACE_ALL || (u32)mark & FOCUSED))
		return mark;
	t = tracing.lookup(&zero);
	if (!t)
		return mark;
	second = now >> 30;
	if (t->second != second) {
		t->second = second;
		t->packets = 0;
	}
	if (t->packets >= c->trace_rate) {
		t->left_out++;
		return mark;
	}
	t->packets++;
	t->number = (t->number + 1) & 0xffffff;
	if (!t->number)
		t->number = 1;
	mark |= (u64)(t->number | bpf_get_smp_processor_id() << 24) << 32;
	emit(begin, 0, mark, begun);
#endif
	return mark;
}

/* ---- what is counted ----------------------------------------------------------------------------------------- */

static __always_inline void add_stage(struct stage *s, u64 ns, u32 packets)
{
	if (s)
		hist_add_many(&s->delay, ns, packets);
}

/* `focused` of the packets have this mark. */
static __always_inline void record_many(int index, u64 ns, u32 packets, u64 mark, u32 focused)
{
	add_stage(stage_of(index), ns, packets);
	if (!mark)
		return;
	if (in_focus(mark))
		add_stage(stage_of(STAGES + index), ns, focused);
	if (mark >> 32 && index != RX_WHOLE && index != TX_WHOLE)
		emit(index, ns, mark, bpf_ktime_get_ns());
}

static __always_inline void record(int index, u64 ns, u64 mark)
{
	record_many(index, ns, 1, mark, 1);
}

static __always_inline struct paths *paths_of(int which)
{
	return paths.lookup(&which);
}

static __always_inline void add_path(struct paths *p, int index, u64 ns, u32 packets)
{
	p->of[index].ns += ns * packets;
	p->of[index].packets += packets;
}

/* As record(), for packets whose path began at `start`; 0: not known, and none of a path. */
static __always_inline void record_path(int index, u64 ns, u32 packets, u64 start, u64 mark, u32 focused)
{
	u32 known = -(u32)hist_any(start);
	struct paths *p = paths_of(0);

	add_stage(stage_of(index), ns, packets);
	if (p)
		add_path(p, index, ns, packets & known);
	if (!mark)
		return;
	if (in_focus(mark)) {
		add_stage(stage_of(STAGES + index), ns, focused);
		p = paths_of(1);
		if (p)
			add_path(p, index, ns, focused & known);
	}
	if (mark >> 32)
		emit(index, ns, mark, bpf_ktime_get_ns());
}

static __always_inline void record_whole(int index, u64 start, u64 now, u32 packets, u64 mark, u32 focused)
{
	u32 known = -(u32)hist_any(start);

	record_many(index, since(start, now), packets & known, mark, focused & known);
}

static __always_inline void count_miss(struct stage *s, u32 packets)
{
	if (s)
		s->missed += packets;
}

static __always_inline void miss(int index, u64 mark)
{
	count_miss(stage_of(index), 1);
	if (mark && in_focus(mark))
		count_miss(stage_of(STAGES + index), 1);
}

static __always_inline u32 short_ns(u64 ns)
{
	return ns > 0xffffffff ? 0xffffffff : ns;
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
static __always_inline u32 look(const struct config *c, const void *skb, int typed, int direction, int where)
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
static __always_inline u32 look_now(const struct config *c, const void *skb, int typed, int direction,
				    int where)
{
	u32 mark = look(c, skb, typed, direction, where);

	if (mark == UNREAD)
		return FILTERING ? REFUSED : 0;
	return mark;
}

/*
 * Not every packet is followed: one that is not known at a later boundary may be none that was asked for, and is not
 * missed.  What is known to be lost is: see lose().
 */
static __always_inline bool some(const struct config *c)
{
	return c->sample_shift || c->flags & FILTERED;
}

static __always_inline bool internet(const void *skb, int typed)
{
	u16 protocol = 0;

	LOAD(typed, protocol, skb, struct sk_buff, protocol);
	return protocol == ETH_P_IP_BE || protocol == ETH_P_IPV6_BE;
}

/* ---- receive: by skb ---------------------------------------------------------------------------------------- */

static __always_inline void forget(struct slot *s, u64 key)
{
	if (s->skb == key)
		s->skb = 0;
}

/* Let no later boundary take this packet for one that it does not know. */
static __always_inline void leave_out(const struct config *c, struct slot *s, u64 key)
{
	if (c->sample_shift) {
		forget(s, key);
		return;
	}
	s->skb = key;
	s->passed = LEFT_OUT;
	s->at = bpf_jiffies64(); /* a load, where the clock is a call */
}

static __always_inline bool left_out(const struct slot *s, u64 key)
{
	return s->skb == key && s->passed == LEFT_OUT;
}

/*
 * A packet is first seen here, though the boundary before is watched or cannot be: whose is it?  False where nobody
 * asked for it.
 */
static __always_inline bool begin(const struct config *c, struct slot *s, u64 key, const void *skb, int typed,
				  int direction, int where, u64 now)
{
	u64 mark = look_now(c, skb, typed, direction, where);

	if (mark == REFUSED) {
		leave_out(c, s, key);
		return false;
	}
	s->mark = traced(c, mark, direction == IN ? RX_BEGIN : TX_BEGIN, now, now);
	s->skb = key;
	s->start = 0;
	return true;
}

/* The driver hands a packet to the stack. */
static __always_inline int rx_driver(const void *skb, int typed)
{
	u64 key = address(skb, typed), now;
	struct config *c = settings_here();
	struct slot *s = rx_slot(key);
	void *dev = 0;
	u64 mark;

	if (!c || !s)
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	if (!sampled(c) || !watched(c, dev, typed)) {
		forget(s, key);
		return 0;
	}
	mark = look(c, skb, typed, IN, AT_NETWORK);
	if (mark == REFUSED) {
		leave_out(c, s, key);
		return 0;
	}
	now = bpf_ktime_get_ns();
	s->mark = mark == UNREAD ? mark : traced(c, mark, RX_BEGIN, now, now);
	s->skb = key;
	s->at = now;
	s->start = now;
	s->passed = AT_DRIVER;
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

	if (!c || !s)
		return 0;
	if (!(c->flags & NO_DRIVER) && (c->sample_shift ? s->skb != key : left_out(s, key)))
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	if (!watched(c, dev, typed)) {
		forget(s, key);
		return 0;
	}
	now = bpf_ktime_get_ns();
	known = s->skb == key && s->passed == AT_DRIVER && since(s->at, now) < OLD;
	if (!known && c->sample_shift && (!(c->flags & NO_DRIVER) || !sampled(c))) {
		forget(s, key);
		return 0;
	}
	if (!known || s->mark == UNREAD) {
		start = known ? s->start : c->flags & NO_DRIVER ? now : 0;
		if (!begin(c, s, key, skb, typed, IN, AT_NETWORK, now))
			return 0;
		s->start = start;
		s->deltas[0] = 0;
	}
	if (known) {
		ns = since(s->at, now);
		s->deltas[0] = short_ns(ns);
		record(RX_STACK, ns, s->mark);
	} else {
		miss(RX_STACK, s->mark);
	}
	s->at = now;
	s->passed = AT_DRIVER | AT_STACK;
	return 0;
}

static __always_inline void deliver(struct delivery *d, u64 key, u64 now, u64 net)
{
	d->skb = key;
	d->at = now;
	d->net = net;
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
	struct delivery *d;
	u64 now, ns;
	int zero = 0;

	if (!s || (s->skb != key && (!ours || c->sample_shift)))
		return 0;
	if (left_out(s, key) && bpf_jiffies64() - s->at < AT_ONCE_JIFFIES)
		return 0;
	now = bpf_ktime_get_ns();
	if (s->skb == key && s->passed != LEFT_OUT && since(s->at, now) < AT_ONCE) {
		if (s->passed & AT_IP)
			return 0;
		ns = since(s->at, now);
		s->deltas[1] = short_ns(ns);
		record(RX_IP, ns, s->mark);
	} else if (ours && !c->sample_shift) {
		if (!begin(c, s, key, skb, typed, IN, AT_NETWORK, now))
			return 0;
		s->deltas[0] = 0;
		s->deltas[1] = 0;
		miss(RX_IP, s->mark);
	} else {
		s->skb = 0;
		return 0;
	}
	s->at = now;
	s->passed = AT_DRIVER | AT_STACK | AT_IP;
	if (c->flags & NO_LOCAL) {
		d = deliveries.lookup(&zero);
		if (d)
			deliver(d, key, now, address(net, typed));
	}
	return 0;
}

/* ip_local_deliver, ip6_input. */
static __always_inline int rx_local(u64 key, const struct config *c, bool ours, u64 net)
{
	struct slot *s = rx_slot(key);
	struct delivery *d;
	u64 now, ns;
	int zero = 0;

	d = deliveries.lookup(&zero);
	if (!s || !d)
		return 0;
	if (s->skb != key) {
		d->skb = 0;
		if (!ours || some(c))
			return 0;
		now = bpf_ktime_get_ns();
		s->skb = key;
		s->start = 0;
		s->mark = 0;
		miss(RX_LOCAL, 0);
	} else {
		if (s->passed & (LEFT_OUT | AT_LOCAL)) {
			d->skb = 0;
			return 0;
		}
		now = bpf_ktime_get_ns();
		ns = since(s->at, now);
		s->deltas[2] = short_ns(ns);
		record(RX_LOCAL, ns, s->mark);
	}
	s->at = now;
	s->passed |= AT_LOCAL;
	deliver(d, key, now, net);
	return 0;
}

/* Another packet takes the slot of one that waits in the queue. */
static __always_inline void lose(const struct config *c, const struct slot *s, u64 key, u64 now)
{
	if (some(c) && s->skb && s->skb != key && s->passed == AT_QUEUE && since(s->at, now) < OLD)
		miss(TX_QDISC, s->mark);
}

/* Routed on: a packet of ours ends its way here, and one that is to leave by our interface begins it. */
static __always_inline int forward(const void *skb, u64 key, int typed, bool ours, bool leaving)
{
	struct config *c = settings_here();
	struct slot *s = rx_slot(key), *out = tx_slot(key);
	struct delivery *d;
	bool known = false;
	u64 now = 0;
	int zero = 0;
	u64 mark;

	if (!c || !s || !out)
		return 0;
	if (s->skb == key && !(s->passed & (AT_LOCAL | LEFT_OUT))) {
		known = true;
		now = bpf_ktime_get_ns();
		record(RX_FORWARD, since(s->at, now), s->mark);
	} else if (s->skb != key && ours && !some(c)) {
		miss(RX_FORWARD, 0);
	}
	forget(s, key);
	if (c->flags & NO_LOCAL) {
		d = deliveries.lookup(&zero);
		if (d)
			d->skb = 0;
	}
	if (!leaving)
		return 0;
	if (ours ? c->sample_shift && !known : !sampled(c)) {
		forget(out, key);
		return 0;
	}
	mark = look_now(c, skb, typed, OUT, AT_NETWORK_ALONE);
	if (mark == REFUSED) {
		leave_out(c, out, key);
		return 0;
	}
	now = bpf_ktime_get_ns();
	lose(c, out, key, now);
	out->skb = key;
	out->mark = traced(c, mark, TX_BEGIN, now, now);
	out->at = now;
	out->start = 0;
	out->deltas[0] = 0;
	out->passed = AT_IP;
	return 0;
}

/* ---- receive: by socket ------------------------------------------------------------------------------------- */

/* The entry of a socket that is in the table already. */
static __always_inline struct reader *reader_of(u64 sock)
{
	int index = hash(sock, SOCKET_BITS);
	struct reader *r = readers.lookup(&index);

	return r && r->queue.owner == sock ? r : 0;
}

/* The same, taken from a socket that has nothing to wait for; nobody's if that is still busy. */
static __always_inline struct reader *reader_for(u64 sock, u64 now, bool *fresh)
{
	int index = hash(sock, SOCKET_BITS);
	struct reader *r = readers.lookup(&index);

	if (!r)
		return 0;
	if (r->queue.owner != sock) {
		if (r->queue.owner && !fifo_empty(&r->queue) && since(r->used, now) < IDLE)
			return 0;
		r->queue.owner = sock;
		r->pending = 0;
		r->held = 0;
		r->in = 0;
		r->out = 0;
		fifo_clear(&r->queue);
		*fresh = true;
	}
	r->used = now;
	return r;
}

static __always_inline void queued(struct reader *r, u64 at, u64 start, u32 position, u32 packets,
				   u32 focused, u32 trace)
{
	fifo_push(&r->queue, at, start, position, packets, focused, trace);
}

/* Everything up to this position has been read. */
static __always_inline void taken(struct reader *r, u32 position)
{
	struct waiting *w;
	u64 mark;
	u64 now;
	int i;

	w = fifo_oldest(&r->queue);
	if (fifo_empty(&r->queue) || before(position, w->position))
		return;
	now = bpf_ktime_get_ns();
	for (i = 0; i < FIFO_SLOTS; i++) {
		if (fifo_empty(&r->queue))
			break;
		w = fifo_oldest(&r->queue);
		if (before(position, w->position))
			break;
		mark = (w->focused ? r->mark : 0) | (u64)w->trace << 32;
		record_path(RX_APPLICATION, since(w->at, now), w->packets, w->start, mark, w->focused);
		record_whole(RX_WHOLE, w->start, now, w->packets, mark, w->focused);
		r->queue.tail++;
	}
}

/* The socket as TCP sees it.  `sock` if the verifier need not know, NULL if it is none of TCP's. */
static __always_inline void *tcp_of(void *sock, int typed)
{
	return typed ? bpf_skc_to_tcp_sock(sock) : sock;
}

static __always_inline bool sock_watched(const struct config *c, const void *sock, int typed)
{
	void *net = 0;
	u32 inode = 0;

	LOAD(typed, net, sock, struct sock, __sk_common.skc_net.net);
	LOAD(typed, inode, net, struct net, ns.inum);
	return inode == c->netns;
}

/* Keep what nobody was told of: it came before its turn, or is less than the reader asked for. */
static __always_inline void hold(struct reader *r, u64 at, u64 start, u32 end, u64 mark)
{
	if (!r->held) {
		r->held_sum = 0;
		r->held_starts = 0;
		r->held_unknown = 0;
		r->held_focused = 0;
		r->held_end = end;
	}
	if (before(r->held_end, end))
		r->held_end = end;
	r->held_sum += at;
	r->held_starts += start;
	r->held_unknown |= !start;
	r->held_focused += (u32)mark != 0;
	r->held++;
}

#define KNOWN 0 /* all of it is there already */
#define NEXT 1
#define LATER 2 /* behind a gap */

/* The place of a segment that does not begin where the last one ended. */
static __always_inline int order_of(struct reader *r, void *sock, int typed, u32 first, u32 end, u64 now)
{
	void *tcp = tcp_of(sock, typed);
	u32 received = 0, copied = 0;

	if (!tcp)
		return KNOWN;
	LOAD(typed, received, tcp, struct tcp_sock, rcv_nxt);
	LOAD(typed, copied, tcp, struct tcp_sock, copied_seq);
	if (!before(received, end))
		return KNOWN;
	if (before(received, first))
		return LATER;
	if (r->pending)
		hold(r, r->pending, r->pending_start, received, r->pending_mark);
	if (received == copied)
		fifo_clear(&r->queue); /* nothing is unread: what is left there is another connection's */
	return NEXT;
}

/* The way up to the socket; `transport` 0: none, or recorded already. */
static __always_inline void rx_path(struct paths *p, const struct slot *s, u64 transport)
{
	if (!p)
		return;
	add_path(p, RX_STACK, s->deltas[0], 1);
	add_path(p, RX_IP, s->deltas[1], 1);
	add_path(p, RX_LOCAL, s->deltas[2], 1);
	add_path(p, RX_TRANSPORT, transport, hist_any(transport));
}

/* The packet in hand is not to be waited for, though its socket, or one at this address before, had packets of ours. */
static __always_inline void not_ours(const void *sock, int typed)
{
	struct reader *r = reader_of(address(sock, typed));

	if (r)
		r->left_out = 1;
}

/* TCP has the packet: tcp_rcv_established, out of the backlog if the socket was in use. */
static __always_inline int rx_tcp(void *sock, const void *skb, int typed)
{
	u64 key = address(skb, typed), now, ns, start = 0;
	const u32 cb = offsetof(struct sk_buff, cb);
	struct slot *s = rx_slot(key);
	u32 first = 0, end = 0, index = 0;
	u64 mark = 0;
	struct reader *r;
	struct config *c;
	bool fresh = false;
	u8 flags = 0;
	int order;

	c = settings();
	if (!c || !s || (s->skb != key && some(c)))
		return 0;
	if (left_out(s, key)) {
		s->skb = 0;
		not_ours(sock, typed);
		return 0;
	}
	LOAD_AT(typed, first, skb, cb + offsetof(struct tcp_skb_cb, seq));
	LOAD_AT(typed, end, skb, cb + offsetof(struct tcp_skb_cb, end_seq));
	if (s->skb != key || !sock_watched(c, sock, typed)) {
		LOAD(typed, index, skb, struct sk_buff, skb_iif);
		if (index != c->ifindex || !sock_watched(c, sock, typed)) {
			not_ours(sock, typed);
			return 0;
		}
		miss(RX_TRANSPORT, 0);
		if (first == end)
			return 0;
		now = bpf_ktime_get_ns();
	} else {
		s->skb = 0;
		now = bpf_ktime_get_ns();
		ns = since(s->at, now);
		mark = s->mark;
		record(RX_TRANSPORT, ns, mark);
		if (first == end)
			return 0;
		start = s->start;
	}
	LOAD_AT(typed, flags, skb, cb + offsetof(struct tcp_skb_cb, tcp_flags));
	if (end - first == 1 && flags & TCP_FIN) {
		not_ours(sock, typed); /* its reader is told, and has nothing to read */
		return 0;
	}
	r = reader_for(address(sock, typed), now, &fresh);
	if (!r) {
		miss(RX_SOCKET, mark);
		miss(RX_APPLICATION, mark);
		return 0;
	}
	r->left_out = 0;
	/* Where the last one ended this one begins: in order, and no need to ask the socket. */
	order = NEXT;
	if (fresh || r->pending || r->pending_end != first)
		order = order_of(r, sock, typed, first, end, now);
	if (order == KNOWN)
		return 0;
	if (c->flags & NO_READY) {
		/* Nothing will say when the reader is told: it waits from here on, behind a gap as well. */
		queued(r, now, start, end, 1, (u32)mark != 0, mark >> 32);
		r->pending_end = end;
	} else if (order == LATER) {
		hold(r, now, start, end, mark);
	} else {
		r->pending = now;
		r->pending_mark = mark;
		r->pending_start = start;
		r->pending_end = end;
	}
	if ((u32)mark)
		r->mark = mark;
	if (start) {
		rx_path(paths_of(0), s, ns);
		if (mark && in_focus(mark))
			rx_path(paths_of(1), s, ns);
	}
	return 0;
}

/* The reader of a TCP socket is told. */
static __always_inline int rx_ready_stream(void *sock, int typed, u64 id)
{
	struct reader *r = reader_of(id);
	u64 now, start, held_start;
	struct config *c;
	u32 received;
	void *tcp;

	if (!r)
		return 0;
	if (!r->pending && !r->held) {
		c = settings();
		if (!r->left_out && c && !some(c))
			miss(RX_SOCKET, 0);
		return 0;
	}
	now = bpf_ktime_get_ns();
	start = r->pending_start;
	received = r->pending_end;
	if (r->held) {
		tcp = tcp_of(sock, typed);
		if (!tcp)
			return 0;
		LOAD(typed, received, tcp, struct tcp_sock, rcv_nxt);
		r->pending_end = received;
	}
	if (r->pending) {
		record_path(RX_SOCKET, since(r->pending, now), 1, start, r->pending_mark, 1);
		queued(r, now, start, received, 1, (u32)r->pending_mark != 0, r->pending_mark >> 32);
		r->pending = 0;
	}
	if (r->held && !before(received, r->held_end)) {
		/* The gap is closed: the mean of those that waited behind it, counted for each. */
		held_start = r->held_unknown ? 0 : r->held_starts / r->held;
		record_path(RX_SOCKET, since(r->held_sum / r->held, now), r->held, held_start,
			    r->held_focused ? r->mark : 0, r->held_focused);
		queued(r, now, held_start, received, r->held, r->held_focused, 0);
		r->held = 0;
	}
	return 0;
}

/* Datagrams in the queue of a socket: those before the reader's last splice are in a queue of UDP's own. */
static __always_inline u32 datagrams(const void *sock, int typed)
{
	u32 queue = 0, reader_queue = 0;

	LOAD(typed, queue, sock, struct sock, sk_receive_queue.qlen);
	READ_FIELD(reader_queue, sock, struct udp_sock, reader_queue.qlen);
	return queue + reader_queue;
}

/* The reader of any other socket is told: UDP, ping, raw. */
static __always_inline int rx_ready_datagram(void *sock, int typed, u64 id)
{
	struct reader *r = reader_of(id);
	struct delivery *d;
	struct config *c;
	struct slot *s;
	u64 now, start = 0, net = 0;
	bool fresh = false;
	void *pointer = 0;
	u64 mark = 0;
	int zero = 0;

	if (r)
		r->in++;
	d = deliveries.lookup(&zero);
	if (!d || !d->skb)
		return 0;
	LOAD(typed, pointer, sock, struct sock, __sk_common.skc_net.net);
	net = address(pointer, typed);
	if (d->net != net)
		return 0;
	now = bpf_ktime_get_ns();
	s = rx_slot(d->skb);
	if (s && s->skb == d->skb) {
		mark = s->mark;
		if (s->start) {
			start = s->start;
			rx_path(paths_of(0), s, 0);
			if (mark && in_focus(mark))
				rx_path(paths_of(1), s, 0);
			s->skb = 0;
		}
	}
	record_path(RX_SOCKET, since(d->at, now), 1, start, mark, 1);
	r = reader_for(id, now, &fresh);
	if (!r) {
		miss(RX_APPLICATION, mark);
		return 0;
	}
	if ((u32)mark)
		r->mark = mark;
	/* Counting reads and arrivals may go astray (two CPUs at once, an error queue): count again now and then. */
	c = settings();
	if (fresh || !(r->in & 63) || (c && some(c)))
		r->in = r->out + datagrams(sock, typed);
	queued(r, now, start, r->in, 1, (u32)mark != 0, mark >> 32);
	return 0;
}

static __always_inline bool internet_socket(const void *sock, int typed, u16 *type)
{
	u16 family = 0;

	LOAD(typed, family, sock, struct sock, __sk_common.skc_family);
	if (family != FAMILY_INET && family != FAMILY_INET6)
		return false;
	LOAD(typed, *type, sock, struct sock, sk_type);
	return true;
}

static __always_inline int rx_ready(void *sock, int typed)
{
	u64 id = address(sock, typed);
	u16 type = 0;

	if (!internet_socket(sock, typed, &type))
		return 0;
	return type == TYPE_STREAM ? rx_ready_stream(sock, typed, id) : rx_ready_datagram(sock, typed, id);
}

/* UDP has the packet, where there is a function to watch. */
static __always_inline int rx_udp(const void *skb, int typed)
{
	u64 key = address(skb, typed), now;
	struct slot *s = rx_slot(key);
	struct delivery *d;
	int zero = 0;

	d = deliveries.lookup(&zero);
	if (!s || !d || s->skb != key || d->skb != key || s->passed & LEFT_OUT)
		return 0;
	now = bpf_ktime_get_ns();
	record_path(RX_TRANSPORT, since(s->at, now), 1, s->start, s->mark, 1);
	s->at = now;
	d->at = now;
	return 0;
}

/* The application has copied from a TCP socket. */
static __always_inline int rx_read_stream(void *sock, int typed)
{
	struct reader *r = reader_of(address(sock, typed));
	u32 copied = 0;
	void *tcp;

	if (!r || fifo_empty(&r->queue))
		return 0;
	tcp = tcp_of(sock, typed);
	if (!tcp)
		return 0;
	LOAD(typed, copied, tcp, struct tcp_sock, copied_seq);
	taken(r, copied);
	return 0;
}

/* One recvmsg of any socket is over: `length` is what it returned. */
static __always_inline int rx_read_datagram(void *sock, int typed, int length, int flags)
{
	struct reader *r;
	u16 type = 0;

	if (length < 0 || flags & (PEEK | ERRQUEUE))
		return 0;
	if (!internet_socket(sock, typed, &type) || type == TYPE_STREAM)
		return 0;
	r = reader_of(address(sock, typed));
	if (!r)
		return 0;
	r->out++;
	taken(r, r->out);
	return 0;
}

/* ---- send --------------------------------------------------------------------------------------------------- */

static __always_inline struct writer *writer_of(u64 sock)
{
	int index = hash(sock, SOCKET_BITS);
	struct writer *w = writers.lookup(&index);

	return w && w->queue.owner == sock ? w : 0;
}

static __always_inline struct writer *writer_for(u64 sock, u64 now)
{
	int index = hash(sock, SOCKET_BITS);
	struct writer *w = writers.lookup(&index);
	bool waits;

	if (!w)
		return 0;
	if (w->queue.owner != sock) {
		waits = !fifo_empty(&w->queue) &&
			(!w->sent || before(w->sent_end, fifo_newest(&w->queue)->position + 1));
		if (w->queue.owner && waits && since(w->used, now) < IDLE)
			return 0;
		w->queue.owner = sock;
		w->sent = 0;
		w->sending = 0;
		w->refused = 0;
		fifo_clear(&w->queue);
	}
	w->used = now;
	return w;
}

/* An application writes to a TCP socket; the kernel asks once for each skb that it fills. */
static __always_inline int tx_write(void *sock, int typed)
{
	u64 id = address(sock, typed), now;
	struct writer *w = writer_of(id);
	void *route = 0, *dev = 0, *tcp;
	u32 written = 0, sent = 0;
	struct config *c;

	if (!w) {
		c = settings();
		if (!c)
			return 0;
		LOAD(typed, route, sock, struct sock, sk_dst_cache);
		LOAD(typed, dev, route, struct dst_entry, dev);
		if (!watched(c, dev, typed))
			return 0;
	} else if (w->refused >= UNWANTED) {
		return 0;
	}
	tcp = tcp_of(sock, typed);
	if (!tcp)
		return 0;
	LOAD(typed, written, tcp, struct tcp_sock, write_seq);
	LOAD(typed, sent, tcp, struct tcp_sock, snd_nxt);
	now = bpf_ktime_get_ns();
	if (!w)
		w = writer_for(id, now);
	if (!w)
		return 0;
	w->used = now;
	if (!fifo_empty(&w->queue)) {
		if (sent == written)
			fifo_restart(&w->queue); /* all is sent: what is left there is of no use */
		else if (fifo_newest(&w->queue)->position == written)
			return 0; /* the same place again, after a wait for memory */
	}
	w->next = sent == written;
	fifo_push(&w->queue, now, now, written, 1, 0, 0);
	return 0;
}

/* udp_sendmsg begins. */
static __always_inline int tx_write_datagram(void *sock, int typed)
{
	u64 now = bpf_ktime_get_ns();
	struct writer *w = writer_for(address(sock, typed), now);

	if (w)
		w->sending = now;
	return 0;
}

/* When the first byte of a segment was written; 0 if that is not known, 1 if it need not be. */
static __always_inline u64 written_at(const struct config *c, struct writer *w, const void *skb, u64 now,
				      int typed)
{
	u16 transport = 0, network = 0;
	struct waiting *oldest, *next;
	u32 length = 0, first, end;
	void *head = 0;
	u8 tcp[14];
	int i;

	/* TCP keeps its data outside of the skb's head. */
	LOAD(typed, length, skb, struct sk_buff, data_len);
	if (!length)
		return 1;
	oldest = fifo_oldest(&w->queue);
	if (w->next && !c->sample_shift && since(oldest->at, now) < SOON) {
		w->next = 0;
		w->sent = 1;
		w->sent_end = oldest->position + length;
		return oldest->at;
	}
	w->next = 0;
	LOAD(typed, head, skb, struct sk_buff, head);
	LOAD(typed, length, skb, struct sk_buff, len);
	LOAD(typed, transport, skb, struct sk_buff, transport_header);
	LOAD(typed, network, skb, struct sk_buff, network_header);
	if (bpf_probe_read_kernel(tcp, sizeof(tcp), (char *)head + transport))
		return 1;
	first = ((u32)tcp[4] << 24) | ((u32)tcp[5] << 16) | ((u32)tcp[6] << 8) | tcp[7];
	length -= (u32)(transport - network) + (tcp[12] >> 4) * 4;
	end = first + length;
	if (!length || length > 0x100000 || (w->sent && !before(w->sent_end, end)))
		return 1; /* an ACK alone, or sent before */
	w->sent = 1;
	w->sent_end = end;
	for (i = 0; i < FIFO_SLOTS; i++) {
		if (w->queue.head - w->queue.tail < 2)
			break;
		next = &w->queue.slots[(w->queue.tail + 1) & (FIFO_SLOTS - 1)];
		if (before(first, next->position))
			break;
		w->queue.tail++;
	}
	oldest = fifo_oldest(&w->queue);
	if (fifo_empty(&w->queue) || before(first, oldest->position))
		return 0;
	return oldest->at;
}

/* When what is sent was written: as written_at(), for any socket. */
static __always_inline u64 written(const struct config *c, const void *skb, u64 now, int typed)
{
	struct writer *w;
	void *sock = 0;
	u32 data = 0;
	u16 type = 0;
	u64 then;

	LOAD(typed, sock, skb, struct sk_buff, sk);
	if (!sock)
		return 1;
	w = writer_of(address(sock, typed));
	if (w && w->sending) {
		then = w->sending;
		w->sending = 0;
		return then;
	}
	if (w) {
		if (w->refused >= UNWANTED) {
			fifo_restart(&w->queue); /* nothing was written down meanwhile */
			w->next = 0;
		}
		w->refused = 0;
		return written_at(c, w, skb, now, typed);
	}
	LOAD(typed, data, skb, struct sk_buff, data_len);
	if (data && !(c->flags & NO_WRITE) && internet_socket(sock, typed, &type) && type == TYPE_STREAM)
		return 0;
	return 1;
}

/* The filter does not want what this socket sends. */
static __always_inline void refuse(const void *skb, int typed)
{
	struct writer *w;
	void *sock = 0;

	LOAD(typed, sock, skb, struct sk_buff, sk);
	if (!sock)
		return;
	w = writer_of(address(sock, typed));
	if (!w)
		return;
	w->next = 0;
	if (w->refused < UNWANTED)
		w->refused++;
}

/* ip_local_out: IP has a packet to send. */
static __always_inline int tx_ip(const void *skb, u64 key, int typed)
{
	struct config *c = settings_here();
	struct slot *s = tx_slot(key);
	u64 now, then, ns, mark;

	if (!c || !s)
		return 0;
	if (!sampled(c)) {
		forget(s, key);
		return 0;
	}
	mark = look_now(c, skb, typed, OUT, AT_NETWORK_ALONE);
	if (mark == REFUSED) {
		leave_out(c, s, key);
		refuse(skb, typed);
		return 0;
	}
	now = bpf_ktime_get_ns();
	lose(c, s, key, now);
	then = written(c, skb, now, typed);
	s->skb = key;
	s->mark = traced(c, mark, TX_BEGIN, now, then > 1 ? then : now);
	s->at = now;
	s->start = now;
	s->passed = AT_IP;
	s->deltas[0] = 0;
	if (then > 1) {
		ns = since(then, now);
		s->start = then;
		s->deltas[0] = short_ns(ns);
		record(TX_APPLICATION, ns, s->mark);
	} else if (!then) {
		miss(TX_APPLICATION, s->mark);
	}
	return 0;
}

/* dev_queue_xmit. */
static __always_inline int tx_queue(const void *skb, int typed)
{
	u64 key = address(skb, typed), now, ns;
	struct config *c = settings_here();
	struct slot *s = tx_slot(key);
	void *dev = 0;

	if (!c || !s || (c->sample_shift ? s->skb != key : left_out(s, key)))
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	if (!watched(c, dev, typed))
		return 0;
	now = bpf_ktime_get_ns();
	if (s->skb == key && s->passed == AT_IP && since(s->at, now) < OLD) {
		ns = since(s->at, now);
		s->deltas[1] = short_ns(ns);
		record(TX_IP, ns, s->mark);
	} else if (c->sample_shift) {
		s->skb = 0;
		return 0;
	} else {
		if (!begin(c, s, key, skb, typed, OUT, AT_LINK, now))
			return 0;
		if (internet(skb, typed))
			miss(TX_IP, s->mark);
	}
	s->at = now;
	s->passed = AT_QUEUE;
	return 0;
}

/* Segments of a packet that was cut are still to come. */
static __always_inline bool cutting(void)
{
	int zero = 0;
	struct cut *cut = cuts.lookup(&zero);

	return cut && cut->segments;
}

/* The packet in hand is a segment of the one that was cut last. */
static __always_inline struct cut *cut_from(const void *skb, u64 now, int typed)
{
	int zero = 0;
	struct cut *cut = cuts.lookup(&zero);
	u32 flow = 0;

	if (!cut || !cut->segments || since(cut->cut_at, now) > FRESH)
		return 0;
	LOAD(typed, flow, skb, struct sk_buff, hash);
	if (flow != cut->flow)
		return 0;
	cut->segments--;
	return cut;
}

/* The driver is given the packet. */
static __always_inline int tx_driver(const void *skb, const void *dev, int typed)
{
	u64 key = address(skb, typed), now, ns;
	struct config *c = settings();
	struct slot *s = tx_slot(key);
	struct cut *cut;

	if (!c || !s || left_out(s, key) || (some(c) && s->skb != key && !cutting()) ||
	    !watched(c, dev, typed))
		return 0;
	now = bpf_ktime_get_ns();
	/* AT_IP: where nothing shows the queue's entrance. */
	if (s->skb == key && (s->passed == AT_QUEUE || s->passed == AT_IP) && since(s->at, now) < OLD) {
		ns = since(s->at, now);
		s->deltas[2] = short_ns(ns);
		record(TX_QDISC, ns, s->mark);
	} else if ((cut = cut_from(skb, now, typed))) {
		ns = since(cut->at, now);
		s->skb = key;
		s->start = cut->start;
		s->mark = cut->mark;
		s->deltas[0] = cut->deltas[0];
		s->deltas[1] = cut->deltas[1];
		s->deltas[2] = short_ns(ns);
		record(TX_QDISC, ns, s->mark);
	} else if (some(c)) {
		forget(s, key);
		return 0;
	} else {
		s->skb = key;
		s->start = 0;
		s->mark = 0;
		if (internet(skb, typed))
			miss(TX_QDISC, 0);
	}
	s->at = now;
	s->passed = AT_XMIT;
	return 0;
}

static __always_inline void tx_path(struct paths *p, const struct slot *s, u64 driver)
{
	if (!p)
		return;
	add_path(p, TX_APPLICATION, s->deltas[0], hist_any(s->deltas[0]));
	add_path(p, TX_IP, s->deltas[1], 1);
	add_path(p, TX_QDISC, s->deltas[2], 1);
	add_path(p, TX_DRIVER, driver, 1);
}

/* The driver has it, or was busy.  The skb may be gone: its address is still its name. */
static __always_inline int tx_sent(u64 key, const void *dev, int result, int typed)
{
	struct config *c = settings();
	struct slot *s = tx_slot(key);
	u64 now, ns;

	if (!c || !s || s->skb != key)
		return 0;
	if (s->passed == LEFT_OUT && !result)
		s->skb = 0;
	if (s->passed != AT_XMIT || !watched(c, dev, typed))
		return 0;
	now = bpf_ktime_get_ns();
	if (result) {
		s->at = now; /* back to the queue */
		s->passed = AT_QUEUE;
		return 0;
	}
	ns = since(s->at, now);
	record(TX_DRIVER, ns, s->mark);
	if (s->start) {
		tx_path(paths_of(0), s, ns);
		if (s->mark && in_focus(s->mark))
			tx_path(paths_of(1), s, ns);
		record(TX_WHOLE, since(s->start, now), s->mark);
	}
	s->passed = AT_XMIT | AT_SENT;
	return 0;
}

/* How many the stack makes of a packet that it cuts. */
static __always_inline u32 segments_of(const void *skb, int typed)
{
	const void *head = 0;
	u16 segments = 0;
	u32 end = 0;

	LOAD(typed, head, skb, struct sk_buff, head);
	LOAD(typed, end, skb, struct sk_buff, end);
	READ_FIELD(segments, head + end, struct skb_shared_info, gso_segs);
	return segments;
}

/* Done with, in one way or the other. */
static __always_inline int consumed(const void *skb, u64 key, int typed)
{
	struct slot *s = tx_slot(key);
	struct cut *cut;
	int zero = 0;

	if (s && s->skb == key) {
		cut = s->passed == AT_QUEUE ? cuts.lookup(&zero) : 0;
		if (cut) {
			cut->segments = segments_of(skb, typed);
			cut->cut_at = bpf_ktime_get_ns();
			cut->at = s->at;
			cut->start = s->start;
			cut->mark = s->mark;
			cut->deltas[0] = s->deltas[0];
			cut->deltas[1] = s->deltas[1];
			LOAD(typed, cut->flow, skb, struct sk_buff, hash);
			s->skb = 0;
		}
		if (s->passed & AT_XMIT)
			record(TX_DONE, since(s->at, bpf_ktime_get_ns()), s->mark);
		if (s->passed & AT_SENT)
			s->skb = 0;
	}
	s = rx_slot(key);
	if (s && s->skb == key)
		s->skb = 0;
	return 0;
}

static __always_inline void drop(int index, u64 mark)
{
	struct stage *s = stage_of(index);

	if (s)
		s->dropped++;
	if (!mark)
		return;
	if (mark >> 32)
		emit(TRACE_DROP | index, 0, mark, bpf_ktime_get_ns());
	if (!in_focus(mark))
		return;
	s = stage_of(STAGES + index);
	if (s)
		s->dropped++;
}

static __always_inline int dropped(u64 key)
{
	struct slot *s = rx_slot(key);

	if (s && s->skb == key) {
		s->skb = 0;
		if (!(s->passed & LEFT_OUT))
			drop(s->passed & AT_LOCAL   ? RX_TRANSPORT
			     : s->passed & AT_IP    ? RX_LOCAL
			     : s->passed & AT_STACK ? RX_IP
						    : RX_STACK,
			     s->mark);
	}
	s = tx_slot(key);
	if (s && s->skb == key) {
		s->skb = 0;
		/* What the driver has taken is no longer ours to lose: how it frees that says nothing. */
		if (!(s->passed & (LEFT_OUT | AT_SENT)))
			drop(s->passed & AT_XMIT    ? TX_DRIVER
			     : s->passed & AT_QUEUE ? TX_QDISC
						    : TX_IP,
			     s->mark);
	}
	return 0;
}

/* ---- the programs: typed (tp_btf and fentry), plain raw tracepoints, netfilter, kprobes ---------------------- */

#define TRACED(name, body, number)                    \
	int name(struct bpf_raw_tracepoint_args *ctx) \
	{                                             \
		void *it;                             \
		ARGUMENT(it, ctx, number);            \
		return body(it, TYPED);               \
	}
/*
 * Only what kernels with BTF and netfilter links need: a third of the compiler's time.  The loader compiles the rest when
 * something there could not be attached.
 */
#ifdef TYPED_ONLY
#define RAW(name, body)
#define KPROBE(name, body, parameter)
#else
#define RAW(name, body)                                     \
	int name(struct bpf_raw_tracepoint_args *ctx)       \
	{                                                   \
		return body((void *)ctx->args[0], UNTYPED); \
	}
#define KPROBE(name, body, parameter)                         \
	int name(struct pt_regs *ctx)                         \
	{                                                     \
		return body((void *)parameter(ctx), UNTYPED); \
	}
#endif

TRACED(stages_driver, rx_driver, 0)
#ifndef TYPED_ONLY
TRACED(stages_driver_second, rx_driver, 1)
#endif
RAW(stages_driver_raw, rx_driver)
KPROBE(stages_driver_kprobe, rx_driver, PT_REGS_PARM1)
KPROBE(stages_driver_second_kprobe, rx_driver, PT_REGS_PARM2)

/* __netif_receive_skb_core: (where the skb's address is, ...).  Unlike what calls it, it sees lists one by one. */
static __always_inline int rx_stack_indirect(const void *place, int typed)
{
	void *skb = 0;

	bpf_probe_read_kernel(&skb, sizeof(skb), place);
	return rx_stack(skb, typed);
}

TRACED(stages_stack, rx_stack, 0)
RAW(stages_stack_raw, rx_stack)
KPROBE(stages_stack_kprobe, rx_stack_indirect, PT_REGS_PARM1)

TRACED(stages_ready, rx_ready, 0)
RAW(stages_ready_raw, rx_ready)
KPROBE(stages_ready_kprobe, rx_ready, PT_REGS_PARM1)

TRACED(stages_read_stream, rx_read_stream, 0)
RAW(stages_read_stream_raw, rx_read_stream)
KPROBE(stages_read_stream_kprobe, rx_read_stream, PT_REGS_PARM1)

TRACED(stages_write, tx_write, 0)
RAW(stages_write_raw, tx_write)
KPROBE(stages_write_kprobe, tx_write, PT_REGS_PARM1)

TRACED(stages_write_datagram, tx_write_datagram, 0)
KPROBE(stages_write_datagram_kprobe, tx_write_datagram, PT_REGS_PARM1)

TRACED(stages_queue, tx_queue, 0)
RAW(stages_queue_raw, tx_queue)
KPROBE(stages_queue_kprobe, tx_queue, PT_REGS_PARM1)

TRACED(stages_udp, rx_udp, 1)
KPROBE(stages_udp_kprobe, rx_udp, PT_REGS_PARM2)

/* tcp_probe and tcp_rcv_established: (sock, skb). */
int stages_tcp(struct bpf_raw_tracepoint_args *ctx)
{
	void *sock, *skb;

	ARGUMENT(sock, ctx, 0);
	ARGUMENT(skb, ctx, 1);
	return rx_tcp(sock, skb, TYPED);
}

#ifndef TYPED_ONLY
int stages_tcp_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return rx_tcp((void *)ctx->args[0], (void *)ctx->args[1], UNTYPED);
}

int stages_tcp_kprobe(struct pt_regs *ctx)
{
	return rx_tcp((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), UNTYPED);
}
#endif

/* sock_recv_length: (sock, length or error, flags). */
int stages_read_datagram(struct bpf_raw_tracepoint_args *ctx)
{
	void *sock;

	ARGUMENT(sock, ctx, 0);
	return rx_read_datagram(sock, TYPED, (int)ctx->args[1], (int)ctx->args[2]);
}

#ifndef TYPED_ONLY
int stages_read_datagram_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return rx_read_datagram((void *)ctx->args[0], UNTYPED, (int)ctx->args[1], (int)ctx->args[2]);
}
#endif

/* skb_consume_udp: (sock, skb, length; negative when it only peeked). */
int stages_consume_udp(struct bpf_raw_tracepoint_args *ctx)
{
	void *sock;

	ARGUMENT(sock, ctx, 0);
	return rx_read_datagram(sock, TYPED, (int)ctx->args[2], 0);
}

#ifndef TYPED_ONLY
int stages_consume_udp_kprobe(struct pt_regs *ctx)
{
	return rx_read_datagram((void *)PT_REGS_PARM1(ctx), UNTYPED, (int)PT_REGS_PARM3(ctx), 0);
}
#endif

/* net_dev_start_xmit and dev_hard_start_xmit: (skb, device). */
int stages_xmit(struct bpf_raw_tracepoint_args *ctx)
{
	void *skb, *dev;

	ARGUMENT(skb, ctx, 0);
	ARGUMENT(dev, ctx, 1);
	return tx_driver(skb, dev, TYPED);
}

#ifndef TYPED_ONLY
int stages_xmit_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return tx_driver((void *)ctx->args[0], (void *)ctx->args[1], UNTYPED);
}

int stages_xmit_kprobe(struct pt_regs *ctx)
{
	return tx_driver((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), UNTYPED);
}
#endif

/* net_dev_xmit: (skb, result, device, length). */
int stages_sent(struct bpf_raw_tracepoint_args *ctx)
{
	void *skb, *dev;

	ARGUMENT(skb, ctx, 0);
	ARGUMENT(dev, ctx, 2);
	return tx_sent(address(skb, TYPED), dev, (int)ctx->args[1], TYPED);
}

#ifndef TYPED_ONLY
int stages_sent_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return tx_sent(address((void *)ctx->args[0], UNTYPED), (void *)ctx->args[2], (int)ctx->args[1],
		       UNTYPED);
}
#endif

int stages_consumed(struct bpf_raw_tracepoint_args *ctx)
{
	void *skb;

	ARGUMENT(skb, ctx, 0);
	return consumed(skb, address(skb, TYPED), TYPED);
}

#ifndef TYPED_ONLY
int stages_consumed_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return consumed((void *)ctx->args[0], address((void *)ctx->args[0], UNTYPED), UNTYPED);
}
#endif

int stages_dropped(struct bpf_raw_tracepoint_args *ctx)
{
	void *skb;

	ARGUMENT(skb, ctx, 0);
	return dropped(address(skb, TYPED));
}

#ifndef TYPED_ONLY
int stages_dropped_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return dropped(address((void *)ctx->args[0], UNTYPED));
}
#endif

#ifdef HAVE_bpf_nf_ctx
/* Netfilter programs belong to one network namespace, that of the watched interface. */

#define STATE(ctx, state, skb)                                          \
	LOAD_AS(state, ctx, offsetof(struct bpf_nf_ctx, state), "u64"); \
	LOAD_AS(skb, ctx, offsetof(struct bpf_nf_ctx, skb), "u64")

static __always_inline bool is_ours(const struct config *c, const void *dev)
{
	u32 index = 0;

	LOAD(TYPED, index, dev, struct net_device, ifindex);
	return index == c->ifindex;
}

int stages_ip(struct bpf_nf_ctx *ctx)
{
	struct config *c = settings();
	void *state, *skb, *dev, *net;

	STATE(ctx, state, skb);
	LOAD(TYPED, dev, state, struct nf_hook_state, in);
	LOAD(TYPED, net, state, struct nf_hook_state, net);
	if (c)
		rx_ip(skb, address(skb, TYPED), TYPED, c, is_ours(c, dev), net);
	return ACCEPT;
}

int stages_local(struct bpf_nf_ctx *ctx)
{
	struct config *c = settings();
	void *state, *skb, *dev, *net;

	STATE(ctx, state, skb);
	LOAD(TYPED, dev, state, struct nf_hook_state, in);
	LOAD(TYPED, net, state, struct nf_hook_state, net);
	if (c)
		rx_local(address(skb, TYPED), c, is_ours(c, dev), address(net, TYPED));
	return ACCEPT;
}

int stages_forward(struct bpf_nf_ctx *ctx)
{
	struct config *c = settings();
	void *state, *skb, *in, *out;

	STATE(ctx, state, skb);
	LOAD(TYPED, in, state, struct nf_hook_state, in);
	LOAD(TYPED, out, state, struct nf_hook_state, out);
	if (c)
		forward(skb, address(skb, TYPED), TYPED, is_ours(c, in), is_ours(c, out));
	return ACCEPT;
}

int stages_out(struct bpf_nf_ctx *ctx)
{
	struct config *c = settings();
	void *state, *skb, *dev;

	STATE(ctx, state, skb);
	LOAD(TYPED, dev, state, struct nf_hook_state, out);
	if (c && is_ours(c, dev))
		tx_ip(skb, address(skb, TYPED), TYPED);
	return ACCEPT;
}

#endif

#if !defined(TYPED_ONLY) || !defined(HAVE_bpf_nf_ctx)
/* The same boundaries by function, where there are no netfilter links: kernels before 6.4. */
static __always_inline int rx_ip_function(const void *skb, int typed)
{
	struct config *c = settings();
	void *dev = 0, *net = 0;

	if (!c)
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	LOAD(typed, net, dev, struct net_device, nd_net.net);
	return rx_ip(skb, address(skb, typed), typed, c, watched(c, dev, typed), net);
}

static __always_inline int rx_local_function(const void *skb, int typed)
{
	struct config *c = settings();
	void *dev = 0, *net = 0;

	if (!c)
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	LOAD(typed, net, dev, struct net_device, nd_net.net);
	return rx_local(address(skb, typed), c, watched(c, dev, typed), address(net, typed));
}

/* Where a packet is routed to: skb_dst(), whose lowest bit says that it holds no reference. */
static __always_inline void *route_device(const void *skb)
{
	u64 route = 0;
	void *dev = 0;

	READ_FIELD(route, skb, struct sk_buff, _skb_refdst);
	route &= ~1ULL;
	if (route)
		READ_FIELD(dev, route, struct dst_entry, dev);
	return dev;
}

static __always_inline int forward_function(const void *skb, int typed)
{
	struct config *c = settings();
	void *dev = 0;

	if (!c)
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	return forward(skb, address(skb, typed), typed, watched(c, dev, typed),
		       watched(c, route_device(skb), UNTYPED));
}

static __always_inline int tx_ip_function(const void *skb, int typed)
{
	struct config *c = settings();

	if (!c || !watched(c, route_device(skb), UNTYPED))
		return 0;
	return tx_ip(skb, address(skb, typed), typed);
}

TRACED(stages_ip_fentry, rx_ip_function, 0)
KPROBE(stages_ip_kprobe, rx_ip_function, PT_REGS_PARM1)
TRACED(stages_local_fentry, rx_local_function, 0)
KPROBE(stages_local_kprobe, rx_local_function, PT_REGS_PARM1)
TRACED(stages_forward_fentry, forward_function, 0)
KPROBE(stages_forward_kprobe, forward_function, PT_REGS_PARM1)
/* __ip_local_out and __ip6_local_out: (net, sock, skb). */
TRACED(stages_out_fentry, tx_ip_function, 2)
KPROBE(stages_out_kprobe, tx_ip_function, PT_REGS_PARM3)
#endif

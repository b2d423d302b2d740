/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What waits in a socket, in order: when it came, and the position in the stream (a TCP sequence number, or the
 * number of a datagram) that ends its wait. The skb's address is no key: TCP merges skbs in its queues. 64 entries
 * hold many more packets: the fuller it is, the more share one, a group, whose times are interpolated between its
 * first and last packet.
 */
#ifndef FIFO_H
#define FIFO_H

#define FIFO_SLOTS 64
#define GROUP_MAX 0x7fff /* packets of one group; what is beyond is missed */
#define SPAN_SHIFT 10

#ifndef VERIFIER_UNKNOWN
/* Make the verifier take this for any number, with the help of one. */
#define VERIFIER_UNKNOWN(number, any) asm volatile("%0 += %1; %0 -= %1" : "+r"(number) : "r"(any))
#endif

/* Packets that came one after the other. */
struct group {
	u64 at; /* when the first one came */
	u32 span; /* from then to the last one, in units of 1024 ns */
	u32 lag; /* ns from the beginning of their paths, the mean; 0: not known */
	u32 position; /* where the last one ends */
	u16 packets;
	u16 focused; /* of these, packets of the flow in focus */
	u16 taken; /* of these, counted already */
	u16 spare;
	u32 trace; /* the newest one's number, if it is traced */
};

/*
 * Producer and consumer often run on different CPUs, and a cache line that the other has changed takes 100 ns to
 * load. So each writes to lines of its own, and the producer looks only now and then how far the consumer is.
 */
struct fifo {
	u64 owner; /* the socket whose queue it is: its address, which the next socket may get, */
	u64 cookie; /* and its cookie, which none does */
	u32 head; /* next to write */
	u32 seen; /* of the tail, when it was last looked at */
	u64 spare[5];
	u32 tail; /* next to read */
	u32 spare_more[15];
	struct group slots[FIFO_SLOTS];
};

static __always_inline bool fifo_empty(const struct fifo *f)
{
	return f->head == f->tail;
}

/* `position`: where what comes next begins. */
static __always_inline void fifo_clear(struct fifo *f, u32 position)
{
	f->tail = f->head;
	f->seen = f->head;
	f->slots[(f->head - 1) & (FIFO_SLOTS - 1)].position = position;
}

/* How many packets an entry may stand for, where half of the entries are taken. */
static __always_inline u32 fifo_group_max(u32 free)
{
	if (free > 8)
		return free > 16 ? 4 : 16;
	return free > 2 ? 64 : free > 1 ? 1024 : GROUP_MAX;
}

/* The time from the beginning of a path to a later point of it, as a group has it. */
static __always_inline u32 lag_of(u64 start, u64 at)
{
	s64 ns = at - start;

	if (!start || ns > 0xffffffffLL)
		return 0;
	return ns > 0 ? ns : 1;
}

/* More packets for the newest group. */
static __always_inline void group_extend(struct group *g, u64 at, u32 lag, u32 position, u32 packets,
					 u32 focused, u32 trace)
{
	u64 span = at > g->at ? (at - g->at) >> SPAN_SHIFT : 0;
	u32 all = g->packets + packets;

	g->span = span > 0xffffffff ? 0xffffffff : span;
	g->lag = g->lag && lag ? ((u64)g->lag * g->packets + (u64)lag * packets) / all : 0;
	g->position = position;
	g->packets = all;
	g->focused += focused;
	if (trace)
		g->trace = trace;
}

static __always_inline void group_begin(struct group *g, u64 at, u32 lag, u32 position, u32 packets,
					u32 focused, u32 trace)
{
	g->at = at;
	g->span = 0;
	g->lag = lag;
	g->position = position;
	g->packets = packets;
	g->focused = focused;
	g->taken = 0;
	g->trace = trace;
}

/* False where there is no room: then these packets are missed. */
static __always_inline bool fifo_push(struct fifo *f, u64 at, u32 lag, u32 position, u32 packets, u32 focused,
				      u32 trace)
{
	struct group *newest;
	u32 used = f->head - f->seen;

	if (used >= FIFO_SLOTS / 2) {
		f->seen = f->tail;
		used = f->head - f->seen;
	}
	if (used >= FIFO_SLOTS / 2) {
		newest = &f->slots[(f->head - 1) & (FIFO_SLOTS - 1)];
		if (newest->packets + packets <= fifo_group_max(FIFO_SLOTS - used)) {
			group_extend(newest, at, lag, position, packets, focused, trace);
			return true;
		}
		/* the last entry stays free: the tail's begins where the one before ended */
		if (used >= FIFO_SLOTS - 1)
			return false;
	}
	group_begin(&f->slots[f->head & (FIFO_SLOTS - 1)], at, lag, position, packets, focused, trace);
	f->head++;
	return true;
}

static __always_inline struct group *fifo_oldest(struct fifo *f)
{
	return &f->slots[f->tail & (FIFO_SLOTS - 1)];
}

/* How many packets of the oldest group lie before this position, which is in the middle of it. */
static __always_inline u32 fifo_packets_before(struct fifo *f, const struct group *g, u32 position)
{
	u32 from = f->slots[(f->tail - 1) & (FIFO_SLOTS - 1)].position;
	u32 width = g->position - from, reached = position - from;

	if (reached >= width)
		return 0; /* before the group, or it is not known where that begins */
	return (u64)g->packets * reached / width;
}

/* Packets of a group that are counted with one wait, as they came close together. */
struct portion {
	u64 at; /* when they came, the mean */
	u32 packets;
	u32 focused;
};

/*
 * The next portion of a group up to packet number `due`: all of that, where a packet's interpolated wait is off by
 * less than a histogram's bucket; else at most so many packets.
 */
static __always_inline void group_portion(const struct group *g, u32 due, u32 most, u64 now,
					  struct portion *p)
{
	u32 packets = g->packets, taken = g->taken, count = due - taken;
	u64 span = (u64)g->span << SPAN_SHIFT;

	p->at = g->at;
	p->packets = 1;
	p->focused = g->focused;
	if (packets > 1) {
		if (count > most && span << 4 > now - g->at)
			count = most;
		p->packets = count;
		p->at += span * (2 * taken + count - 1) / (2 * (packets - 1));
		p->focused = g->focused * (taken + count) / packets - g->focused * taken / packets;
	}
	/* Make the verifier forget which branch this came by, or it would follow each to the end. */
	VERIFIER_UNKNOWN(p->packets, now);
	VERIFIER_UNKNOWN(p->focused, now);
}

#endif

/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What waits in a socket, in order: when it came, and the position in the stream (a TCP sequence number, or the
 * number of a datagram) that ends its wait.  The skb's pointer is no key there: TCP merges skbs in its queues.
 *
 * 64 entries hold many more packets: the fuller it is, the more packets share one entry, which then counts for all
 * of them.  A full queue means a long wait, against which the time between neighbours is nothing.
 */
#ifndef FIFO_H
#define FIFO_H

#define FIFO_SLOTS 64

struct waiting {
	u64 at; /* since when it waits */
	u64 start; /* when its path began, 0: not known */
	u32 position;
	u32 packets; /* that it stands for */
	u32 focused; /* of these, packets of the flow in focus */
	u32 trace; /* the newest one's number, if it is traced */
};

/*
 * Who writes and who reads are often on two CPUs, and what one of them has changed takes the other 100 ns to load.  So
 * each writes to cache lines of its own, and who writes looks only now and then how far the other one is.
 */
struct fifo {
	u64 owner; /* the socket whose queue it is */
	u32 head; /* next to write */
	u32 seen; /* of the tail, when it was last looked at */
	u32 skipped; /* packets since the last entry, to be counted with the next */
	u32 skipped_focused;
	u64 spare[5];
	u32 tail; /* next to read */
	u32 spare_more[15];
	struct waiting slots[FIFO_SLOTS];
};

static __always_inline bool before(u32 a, u32 b)
{
	return (s32)(a - b) < 0;
}

static __always_inline bool fifo_empty(const struct fifo *f)
{
	return f->head == f->tail;
}

static __always_inline void fifo_clear(struct fifo *f)
{
	f->tail = f->head;
	f->seen = f->head;
	f->skipped = 0;
	f->skipped_focused = 0;
}

/*
 * The same, and begin with the first slot again, which is likely to be in the cache.  Only where nobody else is at the
 * queue: under the socket's lock.
 */
static __always_inline void fifo_restart(struct fifo *f)
{
	f->head = 0;
	fifo_clear(f);
}

/* How many packets the next entry has to stand for. */
static __always_inline u32 fifo_step(struct fifo *f)
{
	u32 free;

	if (f->head - f->seen < FIFO_SLOTS - 32)
		return 1;
	f->seen = f->tail;
	free = FIFO_SLOTS - (f->head - f->seen);
	if (free > 32)
		return 1;
	if (free > 8)
		return free > 16 ? 4 : 16;
	return free > 2 ? 64 : 1024;
}

static __always_inline void fifo_push(struct fifo *f, u64 at, u64 start, u32 position, u32 packets,
				      u32 focused, u32 trace)
{
	struct waiting *w;

	f->skipped += packets;
	f->skipped_focused += focused;
	if (f->skipped < fifo_step(f) || f->head - f->seen >= FIFO_SLOTS)
		return;
	w = &f->slots[f->head & (FIFO_SLOTS - 1)];
	w->at = at;
	w->start = start;
	w->position = position;
	w->packets = f->skipped;
	w->focused = f->skipped_focused;
	w->trace = trace;
	f->skipped = 0;
	f->skipped_focused = 0;
	f->head++;
}

static __always_inline struct waiting *fifo_oldest(struct fifo *f)
{
	return &f->slots[f->tail & (FIFO_SLOTS - 1)];
}

static __always_inline struct waiting *fifo_newest(struct fifo *f)
{
	return &f->slots[(f->head - 1) & (FIFO_SLOTS - 1)];
}

#endif

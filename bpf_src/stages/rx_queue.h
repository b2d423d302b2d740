/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * A receiving socket's entry: packets that its reader was told of (fifo.h), and what waits behind gaps as runs, each
 * of which is released when its own gap closes.
 */
#ifndef RX_QUEUE_H
#define RX_QUEUE_H

#define RUNS 64 /* behind gaps, of one socket */
#define CONSUME_STEPS 96 /* portions of groups that one call records; with few left a whole group is one */
#define RELEASE_STEPS 64 /* the same of runs */
#define PAUSE_NS (1 * NSEC_PER_MSEC) /* between segments of a run */
#define RUNS_FOR_PAUSES (RUNS / 2) /* with so many, a run has pauses in it: the rest is for gaps */

/* Segments without a gap between them that TCP holds back. */
struct run {
	struct group group;
	u32 first; /* where it begins */
	u32 lacking; /* bytes in it that have not come: two runs made one, see rx_join_runs() */
};

/* The mask is for the verifier; the compiler would leave it out where it knows better. */
static __always_inline u32 run_index(u32 number)
{
	asm volatile("" : "+r"(number));
	return number & (RUNS - 1);
}

/* A segment that has come, and of which the reader is not told yet. */
struct arrival {
	u64 at; /* when it reached TCP, 0: none */
	struct mark mark;
	u32 lag;
	u32 first;
	u32 end;
	u32 packets; /* it is so many, joined in the backlog */
};

#define EARLY_SLOTS 16

/* What the reader is told of at once. */
struct batch {
	u64 lags; /* from the beginning of their paths until now, the sum */
	u32 packets;
	u32 focused;
	u32 end;
	u32 trace;
	u32 unknown; /* one of the beginnings is not known */
	u32 spare;
};

/* A socket that receives; what each packet needs is in one cache line, beside the queue's. */
struct rx_sock {
	struct fifo queue;
	u64 used;
	struct arrival pending; /* the segment in hand; `end` is kept: where the next one in order begins */
	u32 focus; /* mark of the focused packets in the queue; marks from a previous focus are ignored */
	u32 runs; /* out of order, or below SO_RCVLOWAT */
	u32 in; /* UDP: datagrams queued */
	u32 out; /* UDP: datagrams read */
	u32 early_in; /* written by local delivery alone: the socket's user may be writing all else */
	u32 early_out;
	/* Where the runs are looked through: in memory, where the verifier takes what there is for any number. */
	struct batch released;
	u32 next;
	u32 kept;
	u32 early_seen; /* there was one */
	u32 partial; /* the index of a run that is in order up to its middle */
	u32 has_partial; /* there is one */
	u32 spare_more[3];
	struct run held[RUNS];
	struct arrival early[EARLY_SLOTS]; /* of a socket whose TCP calls no hook for them, see rx_early() */
};

_Static_assert(!(sizeof(struct rx_sock) % 64), "cache lines");

BPF_F_TABLE("array", int, struct rx_sock, rx_socks, SOCKETS, WHOLE_PAGES);

/* The entry of a socket that is in the table already. */
static __always_inline struct rx_sock *rx_sock_of(const void *sock, int typed)
{
	u64 id = AS_NUMBER(sock);
	int index = hash_address(id, SOCKET_BITS);
	struct rx_sock *r = rx_socks.lookup(&index);

	return r && r->queue.owner == id && r->queue.cookie == sock_cookie(sock, typed) ? r : 0;
}

/*
 * The same, taken over from a socket that is gone or idle; NULL if that is busy. `position`: where the stream goes
 * on.
 */
static __always_inline struct rx_sock *rx_sock_for(void *sock, int typed, u32 position, u64 now, bool *fresh)
{
	u64 id = AS_NUMBER(sock);
	int index = hash_address(id, SOCKET_BITS);
	struct rx_sock *r = rx_socks.lookup(&index);
	u32 unread;

	if (!r)
		return 0;
	if (r->queue.owner != id || r->queue.cookie != sock_cookie(sock, typed)) {
		unread = r->queue.head - r->queue.tail;
		if (r->queue.owner && r->queue.owner != id && (unread || r->runs)) {
			if (since(r->used, now) < SOCK_IDLE_NS)
				return 0;
			miss_many(RX_APPLICATION, unread, NO_MARK, 0);
		}
		r->queue.owner = id;
		r->queue.cookie = sock_cookie_made(sock, typed);
		r->pending.at = 0;
		r->runs = 0;
		r->early_in = 0;
		r->early_out = 0;
		r->early_seen = 0;
		r->in = 0;
		r->out = 0;
		fifo_clear(&r->queue, position);
		*fresh = true;
	}
	r->used = now;
	return r;
}

/* These packets will be seen at neither end of the queue. */
static __always_inline void rx_miss(u32 packets, struct mark mark, u32 focused)
{
	miss_many(RX_SOCKET, packets, mark, focused);
	miss_many(RX_APPLICATION, packets, mark, focused);
}

/* Everything up to this position has been read. */
static __always_inline void rx_consume_upto(struct rx_sock *r, u32 position)
{
	struct portion p;
	struct group *g;
	struct mark mark;
	u64 start, now;
	u32 due, most;
	int i;

	g = fifo_oldest(&r->queue);
	if (fifo_empty(&r->queue) || (before(position, g->position) && g->packets == 1))
		return;
	now = bpf_ktime_get_ns();
	for (i = 0; i < CONSUME_STEPS; i++) {
		if (fifo_empty(&r->queue))
			break;
		g = fifo_oldest(&r->queue);
		due = g->packets;
		if (before(position, g->position)) {
			if (due == 1)
				break;
			due = fifo_packets_before(&r->queue, g, position);
		}
		if (due <= g->taken)
			break;
		most = r->queue.head - r->queue.tail + i < CONSUME_STEPS ? (g->packets >> 3) + 1 : GROUP_MAX;
		group_portion(g, due, most, now, &p);
		mark.focus = r->focus & -(u32)hist_any(p.focused);
		mark.trace = g->trace;
		start = (p.at - g->lag) & -hist_any(g->lag);
		record_path(RX_APPLICATION, since(p.at, now), p.packets, start, mark, p.focused);
		record_whole(RX_WHOLE, start, now, p.packets, mark, p.focused);
		due = g->taken + p.packets;
		if (due >= g->packets)
			r->queue.tail++;
		else
			g->taken = due;
	}
}

/* Does this segment continue the newest run, at about its pace?  A pause begins another run. */
static __always_inline bool run_goes_on(const struct run *run, u32 runs, u64 at, u32 first)
{
	u64 span = (u64)run->group.span << SPAN_SHIFT, pause = since(run->group.at + span, at);

	if (first != run->group.position || run->group.packets >= GROUP_MAX)
		return false;
	return runs >= RUNS_FOR_PAUSES || pause <= PAUSE_NS || pause * run->group.packets <= span << 2;
}

/* Hold what TCP has not delivered. False where there is no room: it is missed. */
static __always_inline bool rx_append(struct rx_sock *r, const struct arrival *a)
{
	struct run *run = &r->held[run_index(r->runs - 1)];
	u32 focused = a->packets & -(u32)hist_any(a->mark.focus);

	if (r->runs && run_goes_on(run, r->runs, a->at, a->first)) {
		group_extend(&run->group, a->at, a->lag, a->end, a->packets, focused, a->mark.trace);
		return true;
	}
	if (r->runs >= RUNS) {
		rx_miss(a->packets, a->mark, focused);
		return false;
	}
	run = &r->held[run_index(r->runs)];
	group_begin(&run->group, a->at, a->lag, a->end, a->packets, focused, a->mark.trace);
	run->first = a->first;
	run->lacking = 0;
	r->runs++;
	return true;
}

/*
 * All places are taken: join pairs of runs with a small gap between them, gap included. Such a run is released bit by
 * bit, see rx_release_part().
 */
static __always_inline void rx_join_runs(struct rx_sock *r)
{
	volatile u32 *kept = &r->kept;
	struct run *to, *from;
	u32 all, gap, width;
	u64 end;
	int i;

	*kept = 0;
	for (i = 0; i < RUNS; i += 2) {
		from = &r->held[run_index(i)];
		to = &r->held[run_index(*kept)];
		*to = *from;
		*kept = *kept + 1;
		from = &r->held[run_index(i + 1)];
		all = to->group.packets + from->group.packets;
		gap = from->first - to->group.position;
		width = (to->group.position - to->first) + (from->group.position - from->first);
		if (gap > 2 * width || all > GROUP_MAX || from->group.taken) {
			to = &r->held[run_index(*kept)];
			*to = *from;
			*kept = *kept + 1;
			continue;
		}
		end = from->group.at + ((u64)from->group.span << SPAN_SHIFT);
		to->lacking += from->lacking + gap;
		group_extend(&to->group, end, from->group.lag, from->group.position, from->group.packets,
			     from->group.focused, from->group.trace);
	}
	r->runs = *kept;
}

/* The same for what came early or is below SO_RCVLOWAT. False where TCP has it already, too. */
static __always_inline bool rx_hold(struct rx_sock *r, const struct arrival *a)
{
	struct run *run;
	u32 width = a->end - a->first;
	int i;

	for (i = 0; i < RUNS; i++) {
		if (i >= r->runs)
			break;
		run = &r->held[run_index(i)];
		if (before(a->first, run->first) || before(run->group.position, a->end))
			continue;
		if (!run->lacking)
			return false;
		run->lacking -= width < run->lacking ? width : run->lacking;
	}
	if (r->runs >= RUNS)
		rx_join_runs(r);
	return rx_append(r, a);
}

/* The reader is told of these packets, which came at `at` in the mean. */
static __always_inline void batch_add(struct batch *b, u64 at, u32 lag, u64 now, u32 packets, u32 focused,
				      u32 end)
{
	b->lags += (since(at, now) + lag) * packets;
	b->unknown |= !lag;
	b->packets += packets;
	b->focused += focused;
	if (b->packets == packets || before(b->end, end))
		b->end = end;
}

/*
 * Move the runs that are in order now to the end of the list, behind `kept` others. That number stays in memory: in a
 * register it would be another one for the verifier in each round.
 */
static __always_inline void rx_part(struct rx_sock *r, u32 received)
{
	volatile u32 *kept = &r->kept;
	struct run *from, *to, run;
	u32 place;
	int i;

	*kept = 0;
	r->has_partial = 0;
	for (i = 0; i < RUNS; i++) {
		if (i >= r->runs)
			break;
		from = &r->held[run_index(i)];
		if (!before(received, from->group.position))
			continue;
		place = *kept;
		if (from->lacking && before(from->first, received)) {
			r->partial = place;
			r->has_partial = 1;
		}
		to = &r->held[run_index(place)];
		run = *to;
		*to = *from;
		*from = run;
		*kept = place + 1;
	}
}

/* What rx_release() and rx_take_early() have reported, in memory, for what comes after them. */
static __always_inline void batch_told(const struct batch *told, struct batch *b)
{
	if (told->packets && (!b->packets || before(b->end, told->end)))
		b->end = told->end;
	b->lags += told->lags;
	b->packets += told->packets;
	b->focused += told->focused;
	b->unknown |= told->unknown;
}

/* Of a joined run, the first gaps have closed: release the packets before the next one, by bytes. */
static __always_inline void rx_release_part(struct rx_sock *r, u32 received, u64 now, struct batch *told)
{
	struct run *run = &r->held[run_index(r->partial)];
	u32 width = run->group.position - run->first, due;
	struct portion p;
	struct mark mark = {};

	due = width ? (u64)run->group.packets * (received - run->first) / width : 0;
	if (due <= run->group.taken || due >= run->group.packets)
		return;
	group_portion(&run->group, due, GROUP_MAX, now, &p);
	mark.focus = r->focus & -(u32)hist_any(p.focused);
	record_path(RX_SOCKET, since(p.at, now), p.packets, run->group.lag, mark, p.focused);
	batch_add(told, p.at, run->group.lag, now, p.packets, p.focused, received);
	run->group.taken += p.packets;
}

/* Release the runs that are in order now. */
static __always_inline void rx_release(struct rx_sock *r, u32 received, u64 now, struct batch *b)
{
	struct batch *told = &r->released;
	struct portion p;
	struct run *run;
	u32 next, most, fine;
	struct mark mark;
	int i;

	*told = (struct batch){};
	rx_part(r, received);
	r->next = *(volatile u32 *)&r->kept;
	/*
	 * A run's packets came at about one pace: a part of what is left of it is as much of what is left of its
	 * wait. Half of it each time with many runs, a sixteenth with one: RELEASE_STEPS suffice for some 350
	 * packets; beyond that the last portion is the rest.
	 */
	next = r->runs - r->next;
	fine = next > 3 ? 1 : next > 2 ? 2 : next > 1 ? 3 : 4;
	VERIFIER_UNKNOWN(fine, now);
	for (i = 0; i < RELEASE_STEPS; i++) {
		/* volatile: in a register the verifier would follow its value */
		next = *(volatile u32 *)&r->next;
		if (next >= r->runs)
			break;
		run = &r->held[run_index(next)];
		most = run->group.packets - run->group.taken;
		if (r->runs - next + i < RELEASE_STEPS)
			most = (most >> (fine & 7)) + 1;
		group_portion(&run->group, run->group.packets, most, now, &p);
		mark.focus = r->focus & -(u32)hist_any(p.focused);
		mark.trace = run->group.trace;
		record_path(RX_SOCKET, since(p.at, now), p.packets, run->group.lag, mark, p.focused);
		batch_add(told, p.at, run->group.lag, now, p.packets, p.focused, run->group.position);
		run->group.taken += p.packets;
		r->next = next + (run->group.taken >= run->group.packets);
	}
	r->runs = r->kept;
	if (r->has_partial)
		rx_release_part(r, received, now, told);
	batch_told(told, b);
}

/* As run_index(). */
static __always_inline struct arrival *rx_early_at(struct rx_sock *r, u32 number)
{
	asm volatile("" : "+r"(number));
	return &r->early[number & (EARLY_SLOTS - 1)];
}

/* What came while the socket was in use: its reader is told of it now, or it waits behind a gap. */
static __always_inline void rx_take_early(struct rx_sock *r, u32 received, u64 now, struct batch *b)
{
	struct batch *told = &r->released;
	struct arrival *e;
	u32 focused;
	int i;

	*told = (struct batch){};
	for (i = 0; i < EARLY_SLOTS; i++) {
		if (r->early_out == *(volatile u32 *)&r->early_in)
			break;
		e = rx_early_at(r, r->early_out);
		if (before(received, e->end)) {
			rx_append(r, e);
		} else {
			focused = hist_any(e->mark.focus);
			record_path(RX_SOCKET, since(e->at, now), 1, e->lag, e->mark, focused);
			batch_add(told, e->at, e->lag, now, 1, focused, e->end);
		}
		r->early_out++;
	}
	batch_told(told, b);
}

#endif

/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What is counted: each stage's delays, what was missed and dropped, the sums over whole paths, and with --trace an
 * event for each boundary that a packet passes.
 */
#ifndef RECORD_H
#define RECORD_H

/* One stage on one CPU. */
struct stage {
	struct hist delay;
	u64 missed; /* packets at the stage's end whose beginning was not seen */
	u64 dropped; /* packets that ended in the stage: kfree_skb */
	u64 paced; /* ns of the delays before which the packets were not to leave: pacing, not a queue */
};

struct path {
	u64 ns;
	u64 packets;
};

/*
 * The stages of packets that pass the whole path from a known start: these sums add up to the whole path's, which the
 * histograms' do not. By stage, close together.
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

#define CPU_BITS 10 /* of a packet's number: beyond 1024 CPUs two may have the same one */

/* What of the trace is not there, on one CPU. */
struct tracing {
	u64 left_out; /* packets beyond the budget */
	u64 lost; /* events that the ring had no room for */
	u64 number; /* of the packet that this CPU traced last */
};

/* The budget of traced packets, of all CPUs together: what is traced is seldom enough for an atomic. */
struct trace_budget {
	u64 second;
	u64 packets;
};

BPF_PERCPU_ARRAY(stages, struct stage, 2 * STAGES); /* of all packets, then of the flow in focus */
BPF_PERCPU_ARRAY(paths, struct paths, 2);
BPF_PERCPU_ARRAY(tracing, struct tracing, 1);
BPF_ARRAY(trace_budget, struct trace_budget, 1);
RINGBUF(trace, struct traced_event, 64);

static __always_inline struct stage *stage_of(int index)
{
	return stages.lookup(&index);
}

/* ---- one packet's path, as events ---------------------------------------------------------------------------- */

/* With TRACING alone: it makes every program half as long again. */
static __always_inline void trace_emit(u32 stage, u64 ns, struct mark mark, u64 at)
{
#ifdef TRACING
	struct config *c = settings();
	struct traced_event e = {};
	struct tracing *t;
	int zero = 0;

	if (!c || !(c->flags & TRACE))
		return;
	e.time = at;
	e.flow = c->focus && focus_mark(c) == mark.focus ? c->focus : 0;
	e.delay = ns;
	e.packet = mark.trace;
	e.stage = stage;
	e.cpu = bpf_get_smp_processor_id();
	if (!trace.ringbuf_output(&e, sizeof(e), NO_WAKEUP))
		return;
	t = tracing.lookup(&zero);
	if (t)
		t->lost++;
#endif
}

/*
 * The mark of a packet of that focus (0: none). Tracing is decided at the first hook: whole paths, so many a second.
 */
static __always_inline struct mark mark_of(const struct config *c, u32 focus, u32 begin, u64 now, u64 begun)
{
	struct mark mark = {.focus = focus};
#ifdef TRACING
	struct trace_budget *budget;
	struct tracing *t;
	int zero = 0;

	if (!(c->flags & TRACE) || !(c->flags & TRACE_ALL || focus))
		return mark;
	t = tracing.lookup(&zero);
	budget = trace_budget.lookup(&zero);
	if (!t || !budget)
		return mark;
	if (budget->second != now >> 30) {
		budget->second = now >> 30;
		budget->packets = 0;
	}
	if (budget->packets >= c->trace_rate) {
		t->left_out++;
		return mark;
	}
	__sync_fetch_and_add(&budget->packets, 1);
	mark.trace = ++t->number << CPU_BITS | bpf_get_smp_processor_id();
	trace_emit(begin, 0, mark, begun);
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
static __always_inline void record_many(int index, u64 ns, u32 packets, struct mark mark, u32 focused)
{
	add_stage(stage_of(index), ns, packets);
	if (!marked(mark))
		return;
	if (in_focus(mark))
		add_stage(stage_of(STAGES + index), ns, focused);
	if (mark.trace && index != RX_WHOLE && index != TX_WHOLE)
		trace_emit(index, ns, mark, bpf_ktime_get_ns());
}

static __always_inline void record(int index, u64 ns, struct mark mark)
{
	record_many(index, ns, 1, mark, 1);
}

static __always_inline struct paths *paths_of(int which)
{
	return paths.lookup(&which);
}

static __always_inline void add_path(struct paths *p, int index, u64 ns, u32 packets)
{
	if (!p)
		return;
	p->of[index].ns += ns * packets;
	p->of[index].packets += packets;
}

/* As record(), for packets that count for the sums over whole paths if the beginning of theirs is known (not 0). */
static __always_inline void record_path(int index, u64 ns, u32 packets, u64 begun, struct mark mark,
					u32 focused)
{
	u32 known = -(u32)hist_any(begun);

	add_stage(stage_of(index), ns, packets);
	add_path(paths_of(0), index, ns, packets & known);
	if (!marked(mark))
		return;
	if (in_focus(mark)) {
		add_stage(stage_of(STAGES + index), ns, focused);
		add_path(paths_of(1), index, ns, focused & known);
	}
	if (mark.trace)
		trace_emit(index, ns, mark, bpf_ktime_get_ns());
}

static __always_inline void record_whole(int index, u64 start, u64 now, u32 packets, struct mark mark,
					 u32 focused)
{
	u32 known = -(u32)hist_any(start);

	record_many(index, since(start, now), packets & known, mark, focused & known);
}

/* To a stage's count of all packets, and to that of the flow in focus where the mark is of that. */
#define STAGE_ADD(index, field, all, mark, focused)                       \
	do {                                                              \
		struct stage *stage_ = stage_of(index);                   \
		if (stage_)                                               \
			stage_->field += (all);                           \
		stage_ = in_focus(mark) ? stage_of(STAGES + (index)) : 0; \
		if (stage_)                                               \
			stage_->field += (focused);                       \
	} while (0)

/* `focused` of the packets have this mark. */
static __always_inline void miss_many(int index, u32 packets, struct mark mark, u32 focused)
{
	STAGE_ADD(index, missed, packets, mark, focused);
}

static __always_inline void miss(int index, struct mark mark)
{
	miss_many(index, 1, mark, 1);
}

static __always_inline void drop(int index, struct mark mark)
{
	STAGE_ADD(index, dropped, 1, mark, 1);
	if (mark.trace)
		trace_emit(TRACE_DROP | index, 0, mark, bpf_ktime_get_ns());
}

static __always_inline void record_paced(u32 ns, struct mark mark)
{
	STAGE_ADD(TX_QDISC, paced, ns, mark, ns);
}

static __always_inline u32 ns_u32(u64 ns)
{
	return ns > 0xffffffff ? 0xffffffff : ns;
}

/* First seen here, though the boundary before is watched or cannot be: is it followed?  False: filtered out. */
static __always_inline bool slot_open(const struct config *c, struct slot *s, u64 key, const void *skb,
				      int typed, int direction, int where, u64 now)
{
	u32 focus;

	if (classify_final(c, skb, typed, direction, where, &focus) == SLOT_EXCLUDED) {
		slot_exclude(c, s, key);
		return false;
	}
	s->mark = mark_of(c, focus, direction == IN ? RX_BEGIN : TX_BEGIN, now, now);
	s->skb = key;
	s->state = SLOT_FOLLOWED;
	s->start = 0;
	return true;
}

#endif

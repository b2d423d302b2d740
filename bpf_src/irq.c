// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The interrupt path: how long handlers run, how long softirqs wait and run, how long a device waits for its poll.
 *
 * What is under way is kept per CPU: an interrupt, a softirq and a poll begin and end on one, and idle tasks, which
 * all have the pid 0, are not confused.  A softirq that is raised again before it runs has waited since the first
 * time.  Handlers of one line never run on two CPUs at once, so their rows are shared by all CPUs and stay few.
 */
#include "nettop.h"
#include "hist.h"
#include "load.h"

#define VECTORS 10 /* NR_SOFTIRQS */
#define NET_RX 3 /* NET_RX_SOFTIRQ */
#define LINES 256 /* interrupt lines that have fired; later ones find no room */
#define WAITING 4 /* interrupts that asked for a poll and wait for it, a CPU */
#define NAME 32
#define OWN 0 /* polls of the watched device */
#define BACKLOG 1 /* and of the CPU's backlog, by which packets of devices without NAPI come */
#define POLLERS 2

struct asked {
	u64 at;
	u32 irq;
	u32 pad;
};

/* One CPU. */
struct cpu_state {
	u64 raised[VECTORS]; /* 0: not waiting */
	u64 entered[VECTORS]; /* 0: not running */
	u64 irq_at; /* the handler that runs, 0: none */
	u64 poll_at; /* since when the poll in hand runs */
	u32 irq;
	u32 asks; /* how many of asked[] */
	struct asked asked[WAITING];
};

struct softirq {
	struct hist wait;
	struct hist run;
};

/* One interrupt line, for all CPUs. */
struct line {
	struct hist run;
	struct hist to_poll;
	u64 unhandled; /* IRQ_NONE: a shared line's other device */
	char name[NAME];
};

struct poller {
	struct hist run;
	u64 work;
	u64 polls;
	u64 exhausted; /* the whole budget used */
};

CONFIG_MAP;
BPF_PERCPU_ARRAY(cpus, struct cpu_state, 1);
BPF_PERCPU_ARRAY(softirqs, struct softirq, VECTORS);
BPF_PERCPU_ARRAY(pollers, struct poller, POLLERS);
BPF_ARRAY(blanks, struct line, 1);
BPF_HASH(lines, u32, struct line, LINES); /* by interrupt number */

static __always_inline struct cpu_state *this_cpu(void)
{
	int zero = 0;

	return cpus.lookup(&zero);
}

/* Its own copy of the number: a key lies on the stack, where the verifier forgets its bounds. */
static __always_inline struct softirq *softirq_of(u32 vector)
{
	return softirqs.lookup(&vector);
}

static __always_inline u64 since(u64 then, u64 now)
{
	s64 ns = now - then;

	return ns & ~(ns >> 63);
}

static __always_inline void line_add(struct hist *h, u64 ns)
{
	u32 slot = hist_bound(hist_slot(ns));

	ADD(h->sum, ns);
	ADD(h->slots[slot], 1);
}

/* A line's entry; with its name, when it is seen first. */
static __always_inline struct line *line_for(u32 irq, const void *action, int typed)
{
	struct line *l = lines.lookup(&irq), *blank;
	const char *text = 0;
	int zero = 0;

	if (l)
		return l;
	blank = blanks.lookup(&zero);
	if (!blank)
		return 0;
	lines.insert(&irq, blank);
	l = lines.lookup(&irq);
	if (!l)
		return 0; /* the table is full */
	LOAD(typed, text, action, struct irqaction, name);
	bpf_probe_read_kernel_str(l->name, sizeof(l->name), text);
	return l;
}

static __always_inline int irq_entry(u32 irq)
{
	struct cpu_state *cpu = this_cpu();

	if (!cpu)
		return 0;
	cpu->irq = irq;
	cpu->irq_at = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int irq_exit(u32 irq, const void *action, int handled, int typed)
{
	struct cpu_state *cpu = this_cpu();
	struct line *l;
	u64 now = bpf_ktime_get_ns();

	if (!cpu || !cpu->irq_at || cpu->irq != irq)
		return 0;
	l = line_for(irq, action, typed);
	if (l && handled)
		line_add(&l->run, since(cpu->irq_at, now));
	else if (l)
		ADD(l->unhandled, 1);
	cpu->irq_at = 0;
	return 0;
}

static __always_inline int raised(u32 vector)
{
	struct cpu_state *cpu = this_cpu();
	struct asked *a;

	if (!cpu || vector >= VECTORS)
		return 0;
	if (!cpu->raised[vector])
		cpu->raised[vector] = bpf_ktime_get_ns();
	if (vector == NET_RX && cpu->irq_at && cpu->asks < WAITING) {
		/* A handler that schedules its NAPI: from its beginning to the poll is what the device waits. */
		a = &cpu->asked[cpu->asks & (WAITING - 1)];
		a->at = cpu->irq_at;
		a->irq = cpu->irq;
		cpu->asks++;
	}
	return 0;
}

static __always_inline int entered(u32 vector)
{
	struct cpu_state *cpu = this_cpu();
	struct softirq *s;
	u64 now;

	if (!cpu || vector >= VECTORS)
		return 0;
	s = softirq_of(vector);
	if (!s)
		return 0;
	now = bpf_ktime_get_ns();
	if (cpu->raised[vector])
		hist_add(&s->wait, since(cpu->raised[vector], now));
	cpu->raised[vector] = 0;
	cpu->entered[vector] = now;
	if (vector == NET_RX)
		cpu->poll_at = now;
	return 0;
}

/* What was asked up to then is done.  An interrupt that came later has its poll before it, in this run or the next. */
static __always_inline void answered(struct cpu_state *cpu, u64 then)
{
	u32 i, kept = 0;

	for (i = 0; i < WAITING; i++) {
		if (i >= cpu->asks)
			break;
		if (cpu->asked[i].at <= then)
			continue;
		cpu->asked[kept & (WAITING - 1)] = cpu->asked[i];
		kept++;
	}
	cpu->asks = kept;
}

static __always_inline int left(u32 vector)
{
	struct cpu_state *cpu = this_cpu();
	struct softirq *s;

	if (!cpu || vector >= VECTORS || !cpu->entered[vector])
		return 0;
	s = softirq_of(vector);
	if (s)
		hist_add(&s->run, since(cpu->entered[vector], bpf_ktime_get_ns()));
	cpu->entered[vector] = 0;
	if (vector == NET_RX) {
		answered(cpu, cpu->poll_at);
		cpu->poll_at = 0;
	}
	return 0;
}

/* A poll is over.  It began when the one before it ended, or with the softirq. */
static __always_inline int polled(const void *napi, int work, int budget, int typed)
{
	struct cpu_state *cpu = this_cpu();
	struct config *c;
	struct poller *p;
	struct line *l;
	void *dev = 0;
	int zero = 0, which;
	u64 now, began;
	u32 i, irq;

	c = config.lookup(&zero);
	if (!cpu || !c)
		return 0;
	LOAD(typed, dev, napi, struct napi_struct, dev);
	which = dev ? OWN : BACKLOG;
	if (dev && !watched(c, dev, typed)) {
		if (cpu->poll_at)
			cpu->poll_at = bpf_ktime_get_ns();
		return 0;
	}
	p = pollers.lookup(&which);
	if (!p)
		return 0;
	p->polls++;
	p->work += work > 0 ? work : 0;
	p->exhausted += work >= budget && budget > 0;
	began = cpu->poll_at;
	if (!began)
		return 0; /* busy polling, or a thread of its own: no softirq that began it */
	now = bpf_ktime_get_ns();
	hist_add(&p->run, since(began, now));
	cpu->poll_at = now;
	if (which == BACKLOG)
		return 0;
	for (i = 0; i < WAITING; i++) {
		if (i >= cpu->asks)
			break;
		if (cpu->asked[i].at > began)
			continue; /* it came in the middle of this poll, which had enabled interrupts again */
		irq = cpu->asked[i].irq;
		l = lines.lookup(&irq);
		if (l)
			line_add(&l->to_poll, since(cpu->asked[i].at, began));
	}
	answered(cpu, began);
	return 0;
}

/* ---- the programs: typed raw tracepoints, and plain ones ------------------------------------------------------ */

int irq_handler_entry(struct bpf_raw_tracepoint_args *ctx)
{
	return irq_entry((u32)ctx->args[0]);
}

/* irq_handler_exit: (number, action, what the handler returned). */
int irq_handler_exit(struct bpf_raw_tracepoint_args *ctx)
{
	void *action;

	ARGUMENT(action, ctx, 1);
	return irq_exit((u32)ctx->args[0], action, (int)ctx->args[2], TYPED);
}

int irq_handler_exit_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return irq_exit((u32)ctx->args[0], (void *)ctx->args[1], (int)ctx->args[2], UNTYPED);
}

int irq_softirq_raise(struct bpf_raw_tracepoint_args *ctx)
{
	return raised((u32)ctx->args[0]);
}

int irq_softirq_entry(struct bpf_raw_tracepoint_args *ctx)
{
	return entered((u32)ctx->args[0]);
}

int irq_softirq_exit(struct bpf_raw_tracepoint_args *ctx)
{
	return left((u32)ctx->args[0]);
}

int irq_napi_poll(struct bpf_raw_tracepoint_args *ctx)
{
	void *napi;

	ARGUMENT(napi, ctx, 0);
	return polled(napi, (int)ctx->args[1], (int)ctx->args[2], TYPED);
}

int irq_napi_poll_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return polled((void *)ctx->args[0], (int)ctx->args[1], (int)ctx->args[2], UNTYPED);
}

// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The interrupt path: how long handlers run, how long softirqs wait and run, how long a device waits for its poll.
 *
 * State is per CPU: an interrupt, a softirq and a poll begin and end on one, and idle tasks all have the pid 0. A
 * softirq raised again before it runs has waited since the first time. Handlers of one line never run on two CPUs at
 * once, so their rows are shared by all CPUs and stay few.
 */
#include "nettop.h"
#include "hist.h"
#include "load.h"

/* include/linux/interrupt.h */
#define NR_SOFTIRQS 10
#define NET_RX_SOFTIRQ 3

#define MAX_LINES 256 /* interrupt lines; the plan has as many as the machine has */
#define MAX_PENDING 8 /* lines of a CPU that wait for a poll at the same time: a line waits once */
#define MAX_STRIKES 3 /* polls that did not come before a line counts as one of several NAPI instances */
#define ANY_NAPI 0xFFFFFFFF
#define LINE_NAME 32
#define POLLER_DEVICE 0 /* polls of the watched device */
#define POLLER_BACKLOG 1 /* and of the CPU's backlog, by which packets of devices without NAPI come */
#define POLLERS 2

/* An interrupt that waits for its poll. */
struct pending_irq {
	u64 at;
	u32 irq;
	u32 raised; /* its handler raised NET_RX_SOFTIRQ; 0: it may have found its NAPI scheduled already */
};

/* One CPU. */
struct cpu_state {
	u64 raised_at[NR_SOFTIRQS]; /* 0: not waiting */
	u64 entered_at[NR_SOFTIRQS]; /* 0: not running */
	u64 irq_at; /* the handler that runs, 0: none */
	u64 poll_at; /* since when the poll in hand runs */
	u32 irq;
	u32 raised_here; /* the handler that runs has raised NET_RX_SOFTIRQ */
	u32 pending_count; /* how many of pending[] */
	/* pending_polled()'s, in memory: at hand, each number would be another way for the verifier to follow */
	u32 kept;
	u32 unknown;
	u32 claimed;
	struct pending_irq pending[MAX_PENDING];
};

struct softirq {
	struct hist wait;
	struct hist run;
};

/* One interrupt line, for all CPUs. */
struct line {
	struct hist run;
	u64 unhandled; /* IRQ_NONE: a shared line's other device */
	char name[LINE_NAME];
};

/* A line whose handler schedules polls. */
struct wait {
	struct hist to_poll;
	u64 missed; /* the poll was not seen */
	u32 napi; /* which NAPI instance polls for it; 0: not known yet, ANY_NAPI: more than one */
	u32 strikes;
};

struct poller {
	struct hist run;
	u64 work;
	u64 polls;
	u64 exhausted; /* the whole budget used */
};

CONFIG_MAP;
BPF_PERCPU_ARRAY(cpus, struct cpu_state, 1);
BPF_PERCPU_ARRAY(softirqs, struct softirq, NR_SOFTIRQS);
BPF_PERCPU_ARRAY(pollers, struct poller, POLLERS);
BPF_ARRAY(blanks, struct line, 1);
BPF_ARRAY(no_waits, struct wait, 1);
/* By interrupt number; memory is taken for those that fire, so there can be a place for each that the machine has. */
BPF_F_TABLE("hash", u32, struct line, lines, MAX_LINES, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash", u32, struct wait, waits, MAX_LINES, BPF_F_NO_PREALLOC);

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

static __always_inline void line_add(struct hist *h, u64 ns)
{
	u32 slot = hist_slot(ns);

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
	cpu->raised_here = 0;
	return 0;
}

static __always_inline struct wait *wait_for(u32 irq)
{
	struct wait *w = waits.lookup(&irq), *blank;
	int zero = 0;

	if (w)
		return w;
	blank = no_waits.lookup(&zero);
	if (!blank)
		return 0;
	waits.insert(&irq, blank);
	return waits.lookup(&irq);
}

/*
 * The handler that ends has scheduled its NAPI: the device waits from the handler's entry to the poll.
 *
 * It raises NET_RX_SOFTIRQ for that, but since 6.4 not while net_rx_action runs or a run with work left is to come
 * (net/core/dev.c, in_net_rx_action). There a line that has raised before is taken to ask again; if its NAPI was
 * scheduled already, the next poll is still the one that it waits for.
 */
static __always_inline void pending_add(struct cpu_state *cpu, u32 irq)
{
	struct wait *w;
	struct pending_irq *a;
	u32 i;

	if (cpu->raised_here)
		w = wait_for(irq);
	else if (cpu->entered_at[NET_RX_SOFTIRQ] || cpu->raised_at[NET_RX_SOFTIRQ])
		w = waits.lookup(&irq);
	else
		return;
	if (!w)
		return;
	for (i = 0; i < MAX_PENDING; i++) {
		if (i >= cpu->pending_count)
			break;
		if (cpu->pending[i].irq == irq)
			return; /* waits since then */
	}
	if (cpu->pending_count >= MAX_PENDING) {
		ADD(w->missed, 1);
		return;
	}
	a = &cpu->pending[cpu->pending_count & (MAX_PENDING - 1)];
	a->at = cpu->irq_at;
	a->irq = irq;
	a->raised = cpu->raised_here;
	cpu->pending_count++;
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
	if (handled)
		pending_add(cpu, irq);
	cpu->irq_at = 0;
	return 0;
}

static __always_inline int softirq_raise(u32 vector)
{
	struct cpu_state *cpu = this_cpu();

	if (!cpu || vector >= NR_SOFTIRQS)
		return 0;
	if (!cpu->raised_at[vector])
		cpu->raised_at[vector] = bpf_ktime_get_ns();
	if (vector == NET_RX_SOFTIRQ && cpu->irq_at)
		cpu->raised_here = 1;
	return 0;
}

static __always_inline int softirq_entry(u32 vector)
{
	struct cpu_state *cpu = this_cpu();
	struct softirq *s;
	u64 now;

	if (!cpu || vector >= NR_SOFTIRQS)
		return 0;
	s = softirq_of(vector);
	if (!s)
		return 0;
	now = bpf_ktime_get_ns();
	if (cpu->raised_at[vector])
		hist_add(&s->wait, since(cpu->raised_at[vector], now));
	cpu->raised_at[vector] = 0;
	cpu->entered_at[vector] = now;
	if (vector == NET_RX_SOFTIRQ)
		cpu->poll_at = now;
	return 0;
}

/*
 * NET_RX_SOFTIRQ has ended and is not raised again: no NAPI of this CPU is scheduled (net_rx_action raises it for
 * what it leaves). What still waits was polled elsewhere (a thread, a busy poll, another device's), or never asked.
 */
static __always_inline void pending_missed(struct cpu_state *cpu)
{
	struct wait *w;
	u32 i, irq;

	for (i = 0; i < MAX_PENDING; i++) {
		if (i >= cpu->pending_count)
			break;
		irq = cpu->pending[i].irq;
		w = cpu->pending[i].raised ? waits.lookup(&irq) : 0;
		if (!w)
			continue;
		ADD(w->missed, 1);
		if (w->napi == ANY_NAPI)
			continue;
		w->strikes++;
		w->napi = w->strikes < MAX_STRIKES ? 0 : ANY_NAPI;
	}
	cpu->pending_count = 0;
}

/*
 * A poll of the watched device has answered the interrupts that asked this NAPI for it before it began. Which NAPI a
 * line asks is learned where only one is possible; until then the poll counts for the line that waits longest.
 */
static __always_inline void pending_polled(struct cpu_state *cpu, u32 napi, u64 began)
{
	u32 i, irq;
	struct wait *w;

	cpu->kept = cpu->unknown = cpu->claimed = 0;
	for (i = 0; i < MAX_PENDING; i++) {
		if (i >= cpu->pending_count)
			break;
		irq = cpu->pending[i].irq;
		w = waits.lookup(&irq);
		cpu->unknown += w && !w->napi;
	}
	for (i = 0; i < MAX_PENDING; i++) {
		if (i >= cpu->pending_count)
			break;
		irq = cpu->pending[i].irq;
		w = waits.lookup(&irq);
		/* Later than that: in the middle of this poll, which had enabled interrupts again. */
		if (!w || cpu->pending[i].at > began || (w->napi && w->napi != napi && w->napi != ANY_NAPI) ||
		    (!w->napi && cpu->claimed)) {
			cpu->pending[cpu->kept & (MAX_PENDING - 1)] = cpu->pending[i];
			cpu->kept++;
			continue;
		}
		if (!w->napi) {
			cpu->claimed = 1;
			if (cpu->unknown == 1)
				w->napi = napi;
		} else if (w->napi == napi) {
			w->strikes = 0;
		}
		line_add(&w->to_poll, since(cpu->pending[i].at, began));
	}
	cpu->pending_count = cpu->kept;
}

static __always_inline int softirq_exit(u32 vector)
{
	struct cpu_state *cpu = this_cpu();
	struct softirq *s;

	if (!cpu || vector >= NR_SOFTIRQS || !cpu->entered_at[vector])
		return 0;
	s = softirq_of(vector);
	if (s)
		hist_add(&s->run, since(cpu->entered_at[vector], bpf_ktime_get_ns()));
	cpu->entered_at[vector] = 0;
	if (vector == NET_RX_SOFTIRQ) {
		cpu->poll_at = 0;
		if (!cpu->raised_at[NET_RX_SOFTIRQ])
			pending_missed(cpu);
	}
	return 0;
}

/* A poll is over.  It began when the one before it ended, or with the softirq. */
static __always_inline int napi_polled(const void *napi, int work, int budget, int typed)
{
	struct cpu_state *cpu = this_cpu();
	struct config *c;
	struct poller *p;
	void *dev = 0;
	int zero = 0, which;
	u64 now, began;

	c = config.lookup(&zero);
	if (!cpu || !c)
		return 0;
	LOAD(typed, dev, napi, struct napi_struct, dev);
	which = dev ? POLLER_DEVICE : POLLER_BACKLOG;
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
	if (which == POLLER_DEVICE && cpu->pending_count)
		/* of a kernel address no more than tells two apart */
		pending_polled(cpu, (u32)AS_NUMBER(napi) >> 4 | 1, began);
	return 0;
}

/* ---- the programs: typed raw tracepoints, and plain ones; nettop/probes/irq/probe.py lists the hooks ----------- */

#include "hook.h"

ANY_PROGRAM(irq_handler_entry, irq_entry((u32)ctx->args[0]))
/* (number, action, what the handler returned) */
TRACEPOINT(irq_handler_exit, 0, irq_handler_exit, irq_exit(INT(0), POINTER(1), INT(2), typed),
	   "irq_handler_exit")
ANY_PROGRAM(irq_softirq_raise, softirq_raise((u32)ctx->args[0]))
ANY_PROGRAM(irq_softirq_entry, softirq_entry((u32)ctx->args[0]))
ANY_PROGRAM(irq_softirq_exit, softirq_exit((u32)ctx->args[0]))
/* (napi, work, budget) */
TRACEPOINT(napi_poll, 0, irq_napi_poll, napi_polled(POINTER(0), INT(1), INT(2), typed), "napi_poll")

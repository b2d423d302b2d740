/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Log-linear histograms of delays in ns: 16 buckets to an octave, so that one is
 * at most 6.25 % wide, from 1 ns to 34 s. nettop/core/histogram.py does the same arithmetic.
 */
#ifndef HIST_H
#define HIST_H

#define HIST_SHIFT 4
#define HIST_STEPS (1 << HIST_SHIFT)
#define HIST_SLOTS 512

/* A value of a per-CPU array, so nothing here needs an atomic. */
struct hist {
	u64 sum; /* ns */
	u64 slots[HIST_SLOTS];
};

/* 1 if any bit is set, without a branch: branches double what the verifier has to walk through. */
static __always_inline u64 hist_any(u64 v)
{
	u64 negative = -v;

	asm volatile("" : "+r"(negative)); /* or the compiler makes the branch that this avoids */
	return (v | negative) >> 63;
}

/* floor(log2(v)): BPF has no instruction for it. */
static __always_inline u32 hist_log2(u64 v)
{
	u32 r, step;

	r = hist_any(v >> 32) << 5;
	v >>= r;
	step = hist_any(v >> 16) << 4;
	v >>= step;
	r += step;
	step = hist_any(v >> 8) << 3;
	v >>= step;
	r += step;
	step = hist_any(v >> 4) << 2;
	v >>= step;
	/* The last four bits from a table of two bits each: 0 0 1 1 2 2 2 2 3 3 3 3 3 3 3 3. */
	return r + step + ((0xFFFFAA50U >> (v << 1)) & 3);
}

/* The bucket of a delay; the last one is open above. */
static __always_inline u32 hist_slot(u64 ns)
{
	/* Below HIST_STEPS a bucket a value, which is what an octave of number 0 amounts to. */
	u32 octave = hist_log2(ns | HIST_STEPS) - HIST_SHIFT;
	u32 slot = (octave << HIST_SHIFT) + ((ns >> octave) & (HIST_STEPS - 1)) +
		   (hist_any(ns >> HIST_SHIFT) << HIST_SHIFT);

	/* Beyond the last one all bits are set, without a branch: numbers end below 2 * HIST_SLOTS. */
	slot |= -(slot / HIST_SLOTS);
	/* the verifier wants to see the mask; the compiler would leave it out */
	asm volatile("" : "+r"(slot));
	return slot & (HIST_SLOTS - 1);
}

/* A delay; 0 if negative: the clocks of two CPUs may differ by some ns. */
static __always_inline u64 since(u64 then, u64 now)
{
	s64 ns = now - then, sign = ns >> 63;

	asm volatile("" : "+r"(sign)); /* see hist_any() */
	return ns & ~sign;
}

/* A delay of several packets that went together. */
static __always_inline void hist_add_many(struct hist *h, u64 ns, u32 count)
{
	h->sum += ns * count;
	h->slots[hist_slot(ns)] += count;
}

static __always_inline void hist_add(struct hist *h, u64 ns)
{
	hist_add_many(h, ns, 1);
}

#endif

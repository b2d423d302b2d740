/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Reading the kernel's structures in programs of every kind with one text.
 *
 * Where the verifier knows what a pointer points to (typed raw tracepoints, fentry, netfilter) a field is one
 * load instruction; elsewhere (raw tracepoints, kprobes) it is a call of bpf_probe_read_kernel, 25 ns each.
 * Each function that reads takes `typed` as a constant and is inlined, so only one of the two ways is left.
 */
#ifndef LOAD_H
#define LOAD_H

#define UNTYPED 0
#define TYPED 1

/* Assembly, because BCC rewrites every -> on a kernel pointer into the helper call. */
#define LOAD_AS(to, pointer, offset, size)                                 \
	do {                                                               \
		u64 loaded_;                                               \
		asm volatile("%0 = *(" size " *)(%1 + %2)"                 \
			     : "=r"(loaded_)                               \
			     : "r"((const void *)(pointer)), "i"(offset)); \
		(to) = (typeof(to))loaded_;                                \
	} while (0)

#define LOAD_AT(typed, to, pointer, offset)                                                           \
	do {                                                                                          \
		if (!(typed))                                                                         \
			bpf_probe_read_kernel(&(to), sizeof(to), (const char *)(pointer) + (offset)); \
		else if (sizeof(to) == 8)                                                             \
			LOAD_AS(to, pointer, offset, "u64");                                          \
		else if (sizeof(to) == 4)                                                             \
			LOAD_AS(to, pointer, offset, "u32");                                          \
		else if (sizeof(to) == 2)                                                             \
			LOAD_AS(to, pointer, offset, "u16");                                          \
		else                                                                                  \
			LOAD_AS(to, pointer, offset, "u8");                                           \
	} while (0)

/* One field; `to` has its size and is set beforehand, for where the read fails. */
#define LOAD(typed, to, pointer, type, field) LOAD_AT(typed, to, pointer, offsetof(type, field))

/* An argument of a tracepoint, an fentry or an fexit program, its type kept for the verifier. */
#define ARGUMENT(to, ctx, number) LOAD_AS(to, ctx, 8 * (number), "u64")

/* Is this the watched interface?  Indexes repeat across namespaces, so the namespace counts too. */
static __always_inline bool watched(const struct config *c, const void *dev, int typed)
{
	void *net = 0;
	u32 index = 0, inode = 0;

	LOAD(typed, index, dev, struct net_device, ifindex);
	if (index != c->ifindex)
		return false;
	LOAD(typed, net, dev, struct net_device, nd_net.net);
	LOAD(typed, inode, net, struct net, ns.inum);
	return inode == c->netns;
}

#endif

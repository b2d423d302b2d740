/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Reading the kernel's structures in programs of every kind with one text.
 *
 * Where the verifier knows a pointer's type (typed raw tracepoints, fentry, netfilter) a field is one load
 * instruction; elsewhere (raw tracepoints, kprobes) a call of bpf_probe_read_kernel, 25 ns each. `typed` is a
 * constant in inlined functions, so one of the two ways is left.
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

/* The VLAN tag that was lifted out of the frame: EtherType and TCI; 0: none. */
static __always_inline u32 lifted_tag(const void *skb, int typed)
{
	u16 protocol = 0, tci = 0;
#ifdef HAVE_pkt_vlan_present_offset
	u8 present = 0;

	/* before 6.2 a bit of its own, the first of its byte, and what the tag was may still be there without it */
	LOAD_AT(typed, present, skb, offsetof(struct sk_buff, __pkt_vlan_present_offset));
	if (!(present & 1))
		return 0;
#endif
	LOAD(typed, protocol, skb, struct sk_buff, vlan_proto);
	if (!protocol)
		return 0;
	LOAD(typed, tci, skb, struct sk_buff, vlan_tci);
	return (u32)__builtin_bswap16(protocol) << 16 | tci;
}

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

/*
 * To the verifier a TC program's context is no struct sk_buff, though it points to one (bpf_convert_ctx_access). Since
 * Linux 6.2 it can be told so, and of what type any address is, for reads: these calls become register moves
 * (kernel/bpf/verifier.c, fixup_kfunc_call). The header tree has their numbers.
 */
#ifdef KFUNC_bpf_rdonly_cast
#define TC_TYPED TYPED
#define KFUNC(name) ((const void *(*)(u64, u32))(KFUNC_CALL | KFUNC_##name))
#define KERNEL_SKB(skb) KFUNC(bpf_cast_to_kern_ctx)((u64)(skb), 0)
#define KERNEL_CAST(address, type) KFUNC(bpf_rdonly_cast)(address, BTF_##type)
#else
#define TC_TYPED UNTYPED
#define KERNEL_SKB(skb) ((const void *)(skb))
#define KERNEL_CAST(address, type) ((const void *)(address))
#endif

#ifndef AS_NUMBER
/* A pointer as a number, its address: with a typed one the verifier allows no arithmetic until it has been negated. */
#define AS_NUMBER(pointer)                                          \
	({                                                          \
		u64 _number = (u64)(pointer);                       \
		asm volatile("%0 = -%0; %0 = -%0" : "+r"(_number)); \
		_number;                                            \
	})
#endif

#endif

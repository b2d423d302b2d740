/* What bpf_src/flows/table.h finds in the kernel and in the headers before it, for a process with so many CPUs. */
#define CPUS 8192
#include "process_kernel.h"

#define IPPROTO_TCP 6
#define TCPHDR_SYN 2
#define TCPHDR_RST 4
#define TCPHDR_ACK 16

struct __sk_buff;
struct packet {
	u16 protocol;
};
struct size {
	u32 bytes, segments;
};

/* A table in which nothing is found. */
#define BPF_TABLE(kind, key_type, type, name, entries)    \
	static type *name##_lookup(key_type *key)         \
	{                                                 \
		return 0;                                 \
	}                                                 \
	static int name##_put(key_type *key, type *value) \
	{                                                 \
		return 0;                                 \
	}                                                 \
	static int name##_delete(key_type *key)           \
	{                                                 \
		return 0;                                 \
	}                                                 \
	static struct {                                   \
		type *(*lookup)(key_type *);              \
		int (*insert)(key_type *, type *);        \
		int (*update)(key_type *, type *);        \
		int (*delete)(key_type *);                \
	} name = {name##_lookup, name##_put, name##_put, name##_delete};

struct flow;
struct work;
struct counters;

static u64 bpf_jiffies64(void)
{
	return clock_ns / 4000000;
}

static u64 bpf_ktime_get_coarse_ns(void)
{
	return clock_ns;
}

static bool syn_belongs(struct flow *flow, struct work *w, struct counters *n)
{
	return true;
}

static void adopt_syn(struct flow *flow, const struct flow *from, int direction)
{
}

static void flow_set(struct flow *flow, u64 bits)
{
}

static bool flow_close(struct flow *flow, u64 how)
{
	return false;
}

/* What bpf_src/irq.c finds in the kernel, for a process: its maps as arrays, a clock that is set, one CPU. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;

#define __always_inline inline __attribute__((always_inline))
#define LINUX_VERSION_CODE 0x061200
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define BPF_F_NO_PREALLOC 1
#define AS_NUMBER(pointer) ((u64)(pointer))
#define ROOM 16

struct irqaction {
	const char *name;
};
struct net {
	struct {
		u32 inum;
	} ns;
};
struct net_device {
	int ifindex;
	struct {
		struct net *net;
	} nd_net;
};
struct napi_struct {
	struct net_device *dev;
} __attribute__((aligned(64)));
struct sk_buff {
	u16 vlan_proto, vlan_tci;
};

static u64 clock_ns;

static u64 bpf_ktime_get_ns(void)
{
	return clock_ns;
}

static long bpf_probe_read_kernel(void *to, u32 size, const void *from)
{
	memcpy(to, from, size);
	return 0;
}

static long bpf_probe_read_kernel_str(void *to, u32 size, const char *from)
{
	strncpy(to, from, size);
	return 0;
}

#define ARRAY(name, type, entries)                    \
	static type name##_values[entries];           \
	static type *name##_lookup(void *index)       \
	{                                             \
		return &name##_values[*(u32 *)index]; \
	}                                             \
	static struct {                               \
		type *(*lookup)(void *);              \
	} name = {name##_lookup};
#define BPF_ARRAY(name, type, entries) ARRAY(name, type, entries)
#define BPF_PERCPU_ARRAY(name, type, entries) ARRAY(name, type, entries)
#define HASH(key_type, type, name)                             \
	static key_type name##_keys[ROOM];                     \
	static type name##_values[ROOM];                       \
	static u32 name##_used;                                \
	static type *name##_lookup(key_type *key)              \
	{                                                      \
		for (u32 i = 0; i < name##_used; i++)          \
			if (name##_keys[i] == *key)            \
				return &name##_values[i];      \
		return 0;                                      \
	}                                                      \
	static void name##_insert(key_type *key, type *value)  \
	{                                                      \
		if (name##_used == ROOM || name##_lookup(key)) \
			return;                                \
		name##_keys[name##_used] = *key;               \
		name##_values[name##_used++] = *value;         \
	}                                                      \
	static struct {                                        \
		type *(*lookup)(key_type *);                   \
		void (*insert)(key_type *, type *);            \
	} name = {name##_lookup, name##_insert};
#define BPF_F_TABLE(kind, key_type, type, name, entries, flags) HASH(key_type, type, name)
#define BPF_HASH(name, key_type, type, entries) HASH(key_type, type, name)

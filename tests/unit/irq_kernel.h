/* What bpf_src/irq.c finds in the kernel, for a process. */
#include "process_kernel.h"

#define BPF_F_NO_PREALLOC 1
#define ROOM 16

struct irqaction {
	const char *name;
};
struct napi_struct {
	struct net_device *dev;
} __attribute__((aligned(64)));
struct sk_buff {
	u16 vlan_proto, vlan_tci;
};

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

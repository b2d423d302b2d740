/* What the kernel gives to programs, for a process: types, a clock that is set, one CPU at a time, maps as arrays. */
#ifndef PROCESS_KERNEL_H
#define PROCESS_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

#define __always_inline inline __attribute__((always_inline))
#define AS_NUMBER(pointer) ((u64)(pointer))
#ifndef CPUS
#define CPUS 1
#endif

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

static u64 clock_ns;
static u32 cpu_number;

static u64 bpf_ktime_get_ns(void)
{
	return clock_ns;
}

static u32 bpf_get_smp_processor_id(void)
{
	return cpu_number;
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

#define ARRAY_OF(name, type, entries, cpus, cpu)           \
	static type name##_values[cpus][entries];          \
	static type *name##_lookup(void *index)            \
	{                                                  \
		return &name##_values[cpu][*(u32 *)index]; \
	}                                                  \
	static struct {                                    \
		type *(*lookup)(void *);                   \
	} name = {name##_lookup};
#define BPF_ARRAY(name, type, entries) ARRAY_OF(name, type, entries, 1, 0)
#define BPF_PERCPU_ARRAY(name, type, entries) ARRAY_OF(name, type, entries, CPUS, cpu_number)

#endif

/* What the parts of bpf_src/stages find in the kernel, for a process with so many CPUs. */
#define CPUS 1024
#include "process_kernel.h"

#define TRACING
#define AT_NETWORK 1 /* of filter.h, which no part here asks */
#define AT_LINK 0
#define BPF_F_TABLE(kind, key_type, type, name, entries, flags) BPF_ARRAY(name, type, entries)
#define VERIFIER_UNKNOWN(number, any) /* there is no verifier */

struct sk_buff {
	u8 *head, *data;
	u32 len, data_len;
	u16 protocol, network_header, vlan_proto, vlan_tci;
};
struct sock {
	struct {
		struct {
			u64 counter;
		} skc_cookie;
		u32 skc_portpair;
	} __sk_common;
};

static u32 bpf_get_prandom_u32(void)
{
	return 0;
}

static u64 bpf_jiffies64(void)
{
	return clock_ns / 4000000;
}

static u64 bpf_get_socket_cookie(void *sock)
{
	return ((struct sock *)sock)->__sk_common.skc_cookie.counter;
}

static void emitted(const void *event);

static long write_event(void *event, u64 size, u64 flags)
{
	emitted(event);
	return 0;
}

#define RINGBUF(name, event, pages)                       \
	static struct {                                   \
		long (*ringbuf_output)(void *, u64, u64); \
	} name = {write_event};

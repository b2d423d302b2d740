/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What every program shares with the Python side, which writes struct config by the names of its fields
 * (nettop/bpf/config.py); tests/unit/test_layout.py compares the constants.
 */
#ifndef NETTOP_H
#define NETTOP_H

#include "kernel.h"

/* How an interface's own counters count a packet; docs/probes/throughput.md has what counts how. */
#define COUNT_SKB \
	0 /* as the one skb that is seen here, with its link header, without a tag beside the frame */
#define COUNT_WIRE 1 /* as the segments that it stands for: the hardware cuts it up */
#define COUNT_BARE 2 /* without the link header */
#define COUNT_NAPI 4 /* veth: BARE and MERGED hold for what the receiving end takes by NAPI alone */
#define COUNT_STACK 8 /* sent: as segments where the stack cuts it up for want of an offload */
#define COUNT_TAG 16 /* with the tag */
#define COUNT_MERGED 32 /* received: before GRO merged what is one here */
#define COUNT_CELLS 64 /* tunnels: the above, but for what was merged below them */
#define COUNT_SENT 128 /* ifb: as received what it is given to send, and nothing else */

#define VLAN_HLEN 4
#define VLAN_VID_MASK 0x0fff

#define IN 0 /* received: TC ingress */
#define OUT 1 /* sent: TC egress */

#define NO_WAKEUP 1 /* BPF_RB_NO_WAKEUP: a wake-up costs fifteen times the event */

#define NSEC_PER_MSEC 1000000ULL

/*
 * Local and remote as the interface sees them: what it sends comes from the local end. IPv4 is v4-mapped. ICMP echo
 * has its id for both ports.
 */
struct flow_key {
	u32 local[4];
	u32 remote[4];
	u16 local_port;
	u16 remote_port;
	/*
	 * IP protocol in bits 0-7, outer VID in 8-19, inner VID in 20-31; of a socket: its namespace's inode in 8-31
	 */
	u32 protocol;
	u32 tunnel; /* TUNNEL_*, see parse.h: all of the above is of the packet inside */
	u32 tunnel_id; /* which one, where its packets say so and both directions have the same: VNI, GRE's key */
};

/* The map `config`: written by the loader once all is attached, later by the screen (focus, sampling). */
struct config {
	u32 ifindex; /* 0: not yet; do nothing */
	u32 netns; /* inode of the interface's network namespace */
	u16 l2_len; /* of the link header that an skb has at TC: 14, or 0 on tun, wg, ppp */
	u8 count_in; /* COUNT_*, together */
	u8 count_out;
	u8 subnet4; /* prefix lengths for RTT by subnet */
	u8 subnet6;
	u8 sample_shift; /* stages follow one packet in 2^n */
	u8 rtt_shift; /* RTT probes 2^n times as far apart as usual */
	u32 epoch; /* counted up whenever packets may have passed unseen */
	u32 cut_above; /* the queue cuts up GSO packets that make more bytes than this; 0: none */
	u64 focus; /* id of the flow in focus, 0: none */
	struct flow_key focus_key; /* of that flow */
	u32 generation; /* of the filter: programs that were compiled for another do nothing */
	u32 trace_rate; /* packets a second that may be traced */
	u32 flags; /* what stages/ is to know, see slot.h */
};

/* BCC's rewriter takes map functions in the main file only, and not inside macros: look it up by hand. */
#define CONFIG_MAP BPF_ARRAY(config, struct config, 1)

/* A ring buffer that tells what its events are: BCC's own BPF_RINGBUF_OUTPUT describes them as u32. */
#ifndef RINGBUF
#define RINGBUF(name, event, pages)                                                           \
	struct name##_table_t {                                                               \
		int key;                                                                      \
		event leaf;                                                                   \
		int (*ringbuf_output)(void *, u64, u64);                                      \
		u32 max_entries;                                                              \
	};                                                                                    \
	__attribute__((section("maps/ringbuf"))) struct name##_table_t name = {.max_entries = \
										       (pages)*PAGE_SIZE}
#endif

/* Where hardly a packet goes: out of the way of the others, in the program's text as well. */
#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

/* Network order: the programs run on little-endian machines alone. */
#define swap16(v) __builtin_bswap16(v)
#define swap32(v) __builtin_bswap32(v)

#define DIV_ROUND_UP(n, d) (((n) + (d)-1) / (d))

/* Serial number arithmetic, RFC 1982. */
static __always_inline bool before(u32 a, u32 b)
{
	return (s32)(a - b) < 0;
}

static __always_inline bool before16(u16 a, u16 b)
{
	return (s16)(a - b) < 0;
}

#define ADD(where, what) __sync_fetch_and_add(&(where), (what))

/* Read kernel memory, for what direct access cannot reach. */
#define READ(to, from) bpf_probe_read_kernel(&(to), sizeof(to), (const void *)(from))
/* One field of a kernel structure behind a pointer. */
#define READ_FIELD(to, pointer, type, field) \
	bpf_probe_read_kernel(&(to), sizeof(to), (const char *)(pointer) + offsetof(type, field))

#endif

// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The published way to time the network stack and the interrupt path, on the hooks that stages.c and irq.c use: the
 * time of the last boundary in a hash keyed by the skb (or the socket, or the softirq's number and CPU), the packet's
 * addresses and ports by one read each, a histogram that is a hash again, and keys that nobody deletes.  A baseline
 * for bench/stages_cost.py; and programs that do nothing, whose cost is that of being called.
 */
#include "nettop.h"
#include "load.h"

struct seen {
	u64 at;
	u32 stage;
	u32 source;
	u32 target;
	u16 source_port;
	u16 target_port;
};

struct bucket {
	u32 stage;
	u32 slot;
};

struct vector {
	u32 number;
	u32 cpu;
};

BPF_HASH(packets, u64, struct seen, 65536);
BPF_HASH(vectors, struct vector, u64, 1024);
BPF_HISTOGRAM(times, struct bucket, 4096);

static __always_inline void count(u32 stage, u64 ns)
{
	struct bucket key = {.stage = stage, .slot = bpf_log2l(ns)};

	times.increment(key);
}

static __always_inline void boundary(u64 address, u32 stage)
{
	struct seen now = {.at = bpf_ktime_get_ns(), .stage = stage}, *before;
	const char *skb = (const char *)address;
	u16 network = 0, transport = 0;
	void *head = 0;

	READ_FIELD(head, skb, struct sk_buff, head);
	READ_FIELD(network, skb, struct sk_buff, network_header);
	READ_FIELD(transport, skb, struct sk_buff, transport_header);
	READ(now.source, (char *)head + network + 12);
	READ(now.target, (char *)head + network + 16);
	READ(now.source_port, (char *)head + transport);
	READ(now.target_port, (char *)head + transport + 2);
	before = packets.lookup(&address);
	if (before)
		count(stage, now.at - before->at);
	packets.update(&address, &now);
}

static __always_inline void socket_boundary(u64 address, u32 stage)
{
	struct seen now = {.at = bpf_ktime_get_ns(), .stage = stage}, *before;
	const void *sock = (const void *)address;

	READ_FIELD(now.source, sock, struct sock, __sk_common.skc_rcv_saddr);
	READ_FIELD(now.target, sock, struct sock, __sk_common.skc_daddr);
	READ_FIELD(now.source_port, sock, struct sock, __sk_common.skc_num);
	READ_FIELD(now.target_port, sock, struct sock, __sk_common.skc_dport);
	before = packets.lookup(&address);
	if (before)
		count(stage, now.at - before->at);
	packets.update(&address, &now);
}

#define SKB(name, stage)                              \
	int name(struct bpf_raw_tracepoint_args *ctx) \
	{                                             \
		boundary(ctx->args[0], stage);        \
		return 0;                             \
	}
#define SOCKET(name, stage)                           \
	int name(struct bpf_raw_tracepoint_args *ctx) \
	{                                             \
		socket_boundary(ctx->args[0], stage); \
		return 0;                             \
	}
#define NETFILTER(name, stage)                                             \
	int name(struct bpf_nf_ctx *ctx)                                   \
	{                                                                  \
		u64 skb = 0;                                               \
		bpf_probe_read_kernel(&skb, sizeof(skb), (char *)ctx + 8); \
		boundary(skb, stage);                                      \
		return 1;                                                  \
	}

SKB(published_driver, 0)
SKB(published_stack, 1)
NETFILTER(published_ip, 2)
NETFILTER(published_local, 3)
SOCKET(published_tcp, 4)
SOCKET(published_ready, 5)
SOCKET(published_read, 6)
SOCKET(published_received, 7)
SOCKET(published_write, 8)
NETFILTER(published_out, 9)
SKB(published_queue, 10)
SKB(published_xmit, 11)
SKB(published_sent, 12)
SKB(published_consumed, 13)

static __always_inline void begin(u32 number)
{
	struct vector key = {.number = number, .cpu = bpf_get_smp_processor_id()};
	u64 now = bpf_ktime_get_ns();

	vectors.update(&key, &now);
}

static __always_inline void end(u32 number, u32 stage)
{
	struct vector key = {.number = number, .cpu = bpf_get_smp_processor_id()};
	u64 *at = vectors.lookup(&key);

	if (!at)
		return;
	count(stage, bpf_ktime_get_ns() - *at);
	vectors.delete(&key);
}

int published_raise(struct bpf_raw_tracepoint_args *ctx)
{
	begin(256 + (u32)ctx->args[0]);
	return 0;
}

int published_entry(struct bpf_raw_tracepoint_args *ctx)
{
	end(256 + (u32)ctx->args[0], 20);
	begin((u32)ctx->args[0]);
	return 0;
}

int published_exit(struct bpf_raw_tracepoint_args *ctx)
{
	end((u32)ctx->args[0], 21);
	return 0;
}

int published_poll(struct bpf_raw_tracepoint_args *ctx)
{
	void *dev = 0;
	u32 index = 0;

	READ_FIELD(dev, ctx->args[0], struct napi_struct, dev);
	if (dev)
		READ_FIELD(index, dev, struct net_device, ifindex);
	count(22, ctx->args[1]);
	return 0;
}

int empty(struct bpf_raw_tracepoint_args *ctx)
{
	return 0;
}

int empty_netfilter(struct bpf_nf_ctx *ctx)
{
	return 1;
}

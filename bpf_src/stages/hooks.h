/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The programs: a body for each kind of program that may watch its boundary; typed (tp_btf and fentry), plain raw
 * tracepoints, netfilter, kprobes.
 */
#ifndef HOOKS_H
#define HOOKS_H

#define TRACED(name, body, number)                    \
	int name(struct bpf_raw_tracepoint_args *ctx) \
	{                                             \
		void *it;                             \
		ARGUMENT(it, ctx, number);            \
		return body(it, TYPED);               \
	}
/*
 * Only what kernels with BTF and netfilter links need: a third of the compiler's time.  The loader compiles the rest when
 * something there could not be attached.
 */
#ifdef TYPED_ONLY
#define RAW(name, body)
#define KPROBE(name, body, parameter)
#else
#define RAW(name, body)                                     \
	int name(struct bpf_raw_tracepoint_args *ctx)       \
	{                                                   \
		return body((void *)ctx->args[0], UNTYPED); \
	}
#define KPROBE(name, body, parameter)                         \
	int name(struct pt_regs *ctx)                         \
	{                                                     \
		return body((void *)parameter(ctx), UNTYPED); \
	}
#endif

TRACED(stages_driver, rx_driver, 0)
#ifndef TYPED_ONLY
TRACED(stages_driver_second, rx_driver, 1)
#endif
RAW(stages_driver_raw, rx_driver)
KPROBE(stages_driver_kprobe, rx_driver, PT_REGS_PARM1)
KPROBE(stages_driver_second_kprobe, rx_driver, PT_REGS_PARM2)

/* __netif_receive_skb_core: (where the skb's address is, ...).  Unlike what calls it, it sees lists one by one. */
static __always_inline int rx_stack_indirect(const void *place, int typed)
{
	void *skb = 0;

	bpf_probe_read_kernel(&skb, sizeof(skb), place);
	return rx_stack(skb, typed);
}

TRACED(stages_stack, rx_stack, 0)
RAW(stages_stack_raw, rx_stack)
KPROBE(stages_stack_kprobe, rx_stack_indirect, PT_REGS_PARM1)

TRACED(stages_ready, rx_ready, 0)
RAW(stages_ready_raw, rx_ready)
KPROBE(stages_ready_kprobe, rx_ready, PT_REGS_PARM1)

TRACED(stages_read_stream, rx_read_stream, 0)
RAW(stages_read_stream_raw, rx_read_stream)
KPROBE(stages_read_stream_kprobe, rx_read_stream, PT_REGS_PARM1)

TRACED(stages_write, tx_write, 0)
RAW(stages_write_raw, tx_write)
KPROBE(stages_write_kprobe, tx_write, PT_REGS_PARM1)

TRACED(stages_write_datagram, tx_write_datagram, 0)
KPROBE(stages_write_datagram_kprobe, tx_write_datagram, PT_REGS_PARM1)

TRACED(stages_queue, tx_queue, 0)
RAW(stages_queue_raw, tx_queue)
KPROBE(stages_queue_kprobe, tx_queue, PT_REGS_PARM1)

TRACED(stages_udp, rx_udp, 1)
KPROBE(stages_udp_kprobe, rx_udp, PT_REGS_PARM2)

/* tcp_probe and tcp_rcv_established: (sock, skb). */
int stages_tcp(struct bpf_raw_tracepoint_args *ctx)
{
	void *sock, *skb;

	ARGUMENT(sock, ctx, 0);
	ARGUMENT(skb, ctx, 1);
	return rx_tcp(sock, skb, TYPED);
}

#ifndef TYPED_ONLY
int stages_tcp_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return rx_tcp((void *)ctx->args[0], (void *)ctx->args[1], UNTYPED);
}

int stages_tcp_kprobe(struct pt_regs *ctx)
{
	return rx_tcp((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), UNTYPED);
}
#endif

/* sock_recv_length: (sock, length or error, flags). */
int stages_read_datagram(struct bpf_raw_tracepoint_args *ctx)
{
	void *sock;

	ARGUMENT(sock, ctx, 0);
	return rx_read_datagram(sock, TYPED, (int)ctx->args[1], (int)ctx->args[2]);
}

#ifndef TYPED_ONLY
int stages_read_datagram_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return rx_read_datagram((void *)ctx->args[0], UNTYPED, (int)ctx->args[1], (int)ctx->args[2]);
}
#endif

/* skb_consume_udp: (sock, skb, length; negative when it only peeked). */
int stages_consume_udp(struct bpf_raw_tracepoint_args *ctx)
{
	void *sock;

	ARGUMENT(sock, ctx, 0);
	return rx_read_datagram(sock, TYPED, (int)ctx->args[2], 0);
}

#ifndef TYPED_ONLY
int stages_consume_udp_kprobe(struct pt_regs *ctx)
{
	return rx_read_datagram((void *)PT_REGS_PARM1(ctx), UNTYPED, (int)PT_REGS_PARM3(ctx), 0);
}
#endif

/* net_dev_start_xmit and dev_hard_start_xmit: (skb, device). */
int stages_xmit(struct bpf_raw_tracepoint_args *ctx)
{
	void *skb, *dev;

	ARGUMENT(skb, ctx, 0);
	ARGUMENT(dev, ctx, 1);
	return tx_driver(skb, dev, TYPED);
}

#ifndef TYPED_ONLY
int stages_xmit_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return tx_driver((void *)ctx->args[0], (void *)ctx->args[1], UNTYPED);
}

int stages_xmit_kprobe(struct pt_regs *ctx)
{
	return tx_driver((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), UNTYPED);
}
#endif

/* net_dev_xmit: (skb, result, device, length). */
int stages_sent(struct bpf_raw_tracepoint_args *ctx)
{
	void *skb, *dev;

	ARGUMENT(skb, ctx, 0);
	ARGUMENT(dev, ctx, 2);
	return tx_sent(address(skb, TYPED), dev, (int)ctx->args[1], TYPED);
}

#ifndef TYPED_ONLY
int stages_sent_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return tx_sent(address((void *)ctx->args[0], UNTYPED), (void *)ctx->args[2], (int)ctx->args[1],
		       UNTYPED);
}
#endif

int stages_consumed(struct bpf_raw_tracepoint_args *ctx)
{
	void *skb;

	ARGUMENT(skb, ctx, 0);
	return consumed(skb, address(skb, TYPED), TYPED);
}

#ifndef TYPED_ONLY
int stages_consumed_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return consumed((void *)ctx->args[0], address((void *)ctx->args[0], UNTYPED), UNTYPED);
}
#endif

int stages_dropped(struct bpf_raw_tracepoint_args *ctx)
{
	void *skb;
	u64 reason;

	ARGUMENT(skb, ctx, 0);
	ARGUMENT(reason, ctx, 2);
	return dropped(skb, address(skb, TYPED), reason, TYPED);
}

#ifndef TYPED_ONLY
int stages_dropped_raw(struct bpf_raw_tracepoint_args *ctx)
{
	return dropped((void *)ctx->args[0], address((void *)ctx->args[0], UNTYPED), ctx->args[2], UNTYPED);
}
#endif

#ifdef HAVE_bpf_nf_ctx
/* Netfilter programs belong to one network namespace, that of the watched interface. */

#define STATE(ctx, state, skb)                                          \
	LOAD_AS(state, ctx, offsetof(struct bpf_nf_ctx, state), "u64"); \
	LOAD_AS(skb, ctx, offsetof(struct bpf_nf_ctx, skb), "u64")

static __always_inline bool is_ours(const struct config *c, const void *dev)
{
	u32 index = 0;

	LOAD(TYPED, index, dev, struct net_device, ifindex);
	return index == c->ifindex;
}

int stages_ip(struct bpf_nf_ctx *ctx)
{
	struct config *c = settings();
	void *state, *skb, *dev, *net;

	STATE(ctx, state, skb);
	LOAD(TYPED, dev, state, struct nf_hook_state, in);
	LOAD(TYPED, net, state, struct nf_hook_state, net);
	if (c)
		rx_ip(skb, address(skb, TYPED), TYPED, c, is_ours(c, dev), net);
	return NF_ACCEPT;
}

int stages_local(struct bpf_nf_ctx *ctx)
{
	struct config *c = settings();
	void *state, *skb, *dev, *net;

	STATE(ctx, state, skb);
	LOAD(TYPED, dev, state, struct nf_hook_state, in);
	LOAD(TYPED, net, state, struct nf_hook_state, net);
	if (c && rx_local(skb, address(skb, TYPED), c, is_ours(c, dev), address(net, TYPED)))
		rx_early(c, skb, address(skb, TYPED), TYPED);
	return NF_ACCEPT;
}

int stages_forward(struct bpf_nf_ctx *ctx)
{
	struct config *c = settings();
	void *state, *skb, *in, *out;

	STATE(ctx, state, skb);
	LOAD(TYPED, in, state, struct nf_hook_state, in);
	LOAD(TYPED, out, state, struct nf_hook_state, out);
	if (c)
		forward(address(skb, TYPED), is_ours(c, in), is_ours(c, out));
	return NF_ACCEPT;
}

int stages_out(struct bpf_nf_ctx *ctx)
{
	struct config *c = settings();
	void *state, *skb, *dev;

	STATE(ctx, state, skb);
	LOAD(TYPED, dev, state, struct nf_hook_state, out);
	if (c && is_ours(c, dev))
		tx_ip(skb, address(skb, TYPED), TYPED);
	return NF_ACCEPT;
}

#endif

#if !defined(TYPED_ONLY) || !defined(HAVE_bpf_nf_ctx)
/* The same boundaries by function, where there are no netfilter links: kernels before 6.4. */
static __always_inline int rx_ip_function(const void *skb, int typed)
{
	struct config *c = settings();
	void *dev = 0, *net = 0;

	if (!c)
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	LOAD(typed, net, dev, struct net_device, nd_net.net);
	return rx_ip(skb, address(skb, typed), typed, c, watched(c, dev, typed), net);
}

static __always_inline int rx_local_function(const void *skb, int typed)
{
	struct config *c = settings();
	void *dev = 0, *net = 0;

	if (!c)
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	LOAD(typed, net, dev, struct net_device, nd_net.net);
	if (rx_local(skb, address(skb, typed), c, watched(c, dev, typed), address(net, typed)))
		rx_early(c, skb, address(skb, typed), typed);
	return 0;
}

/* Where a packet is routed to: skb_dst(), whose lowest bit says that it holds no reference. */
static __always_inline void *route_device(const void *skb)
{
	u64 route = 0;
	void *dev = 0;

	READ_FIELD(route, skb, struct sk_buff, _skb_refdst);
	route &= ~1ULL;
	if (route)
		READ_FIELD(dev, route, struct dst_entry, dev);
	return dev;
}

static __always_inline int forward_function(const void *skb, int typed)
{
	struct config *c = settings();
	void *dev = 0;

	if (!c)
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	return forward(address(skb, typed), watched(c, dev, typed), watched(c, route_device(skb), UNTYPED));
}

static __always_inline int tx_ip_function(const void *skb, int typed)
{
	struct config *c = settings();

	if (!c || !watched(c, route_device(skb), UNTYPED))
		return 0;
	return tx_ip(skb, address(skb, typed), typed);
}

TRACED(stages_ip_fentry, rx_ip_function, 0)
KPROBE(stages_ip_kprobe, rx_ip_function, PT_REGS_PARM1)
TRACED(stages_local_fentry, rx_local_function, 0)
KPROBE(stages_local_kprobe, rx_local_function, PT_REGS_PARM1)
TRACED(stages_forward_fentry, forward_function, 0)
KPROBE(stages_forward_kprobe, forward_function, PT_REGS_PARM1)
/* __ip_local_out and __ip6_local_out: (net, sock, skb). */
TRACED(stages_out_fentry, tx_ip_function, 2)
KPROBE(stages_out_kprobe, tx_ip_function, PT_REGS_PARM3)
#endif

#endif

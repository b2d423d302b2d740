/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The boundaries at IP, as two mechanisms show them: netfilter programs, which belong to one network namespace, that of
 * the watched interface, and are told the packet's devices; and functions, which see all namespaces and are told the
 * skb alone.
 */
#ifndef IP_H
#define IP_H

#ifdef HAVE_bpf_nf_ctx

#define NF_ARGUMENTS(ctx, state, skb)                                   \
	LOAD_AS(state, ctx, offsetof(struct bpf_nf_ctx, state), "u64"); \
	LOAD_AS(skb, ctx, offsetof(struct bpf_nf_ctx, skb), "u64")

static __always_inline bool nf_watched(const struct config *c, const void *dev)
{
	u32 index = 0;

	LOAD(TYPED, index, dev, struct net_device, ifindex);
	return index == c->ifindex;
}

static __always_inline void rx_ip_netfilter(const void *ctx)
{
	struct config *c = settings();
	void *state, *skb, *dev, *net;

	NF_ARGUMENTS(ctx, state, skb);
	LOAD(TYPED, dev, state, struct nf_hook_state, in);
	LOAD(TYPED, net, state, struct nf_hook_state, net);
	if (c)
		rx_ip(skb, TYPED, c, nf_watched(c, dev), net);
}

static __always_inline void rx_local_netfilter(const void *ctx)
{
	struct config *c = settings();
	void *state, *skb, *dev, *net;

	NF_ARGUMENTS(ctx, state, skb);
	LOAD(TYPED, dev, state, struct nf_hook_state, in);
	LOAD(TYPED, net, state, struct nf_hook_state, net);
	if (c && rx_local(skb, c, nf_watched(c, dev), net))
		rx_early(c, skb, TYPED);
}

static __always_inline void ip_forwarded_netfilter(const void *ctx)
{
	struct config *c = settings();
	void *state, *skb, *in, *out;

	NF_ARGUMENTS(ctx, state, skb);
	LOAD(TYPED, in, state, struct nf_hook_state, in);
	LOAD(TYPED, out, state, struct nf_hook_state, out);
	if (c)
		ip_forwarded(skb, nf_watched(c, in), nf_watched(c, out));
}

static __always_inline void tx_ip_netfilter(const void *ctx)
{
	struct config *c = settings();
	void *state, *skb, *dev;

	NF_ARGUMENTS(ctx, state, skb);
	LOAD(TYPED, dev, state, struct nf_hook_state, out);
	if (c && nf_watched(c, dev))
		tx_ip(skb, TYPED);
}

#endif

static __always_inline int rx_ip_function(const void *skb, int typed)
{
	struct config *c = settings();
	void *dev = 0, *net = 0;

	if (!c)
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	LOAD(typed, net, dev, struct net_device, nd_net.net);
	return rx_ip(skb, typed, c, watched(c, dev, typed), net);
}

static __always_inline int rx_local_function(const void *skb, int typed)
{
	struct config *c = settings();
	void *dev = 0, *net = 0;

	if (!c)
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	LOAD(typed, net, dev, struct net_device, nd_net.net);
	if (rx_local(skb, c, watched(c, dev, typed), net))
		rx_early(c, skb, typed);
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

static __always_inline int ip_forwarded_function(const void *skb, int typed)
{
	struct config *c = settings();
	void *dev = 0;

	if (!c)
		return 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	return ip_forwarded(skb, watched(c, dev, typed), watched(c, route_device(skb), UNTYPED));
}

static __always_inline int tx_ip_function(const void *skb, int typed)
{
	struct config *c = settings();

	if (!c || !watched(c, route_device(skb), UNTYPED))
		return 0;
	return tx_ip(skb, typed);
}

#endif

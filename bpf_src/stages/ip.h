/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The boundaries at IP, by two mechanisms: netfilter programs, which belong to the watched interface's namespace and
 * are told the packet's devices; and functions, which see all namespaces and are told the skb alone.
 */
#ifndef IP_H
#define IP_H

#ifdef HAVE_bpf_nf_ctx

#define NF_ARGUMENT(to, ctx, offset) LOAD_AS(to, ctx, offset, "u64")

static __always_inline bool nf_watched(const struct config *c, const void *dev)
{
	u32 index = 0;

	LOAD(TYPED, index, dev, struct net_device, ifindex);
	return index == c->ifindex;
}

/* A received packet: its namespace, and whether it came in by the watched interface.  NULL without a config. */
static __always_inline struct config *nf_received(const void *ctx, void **skb, void **net, bool *ours)
{
	struct config *c = settings();
	void *state, *dev;

	NF_ARGUMENT(state, ctx, offsetof(struct bpf_nf_ctx, state));
	NF_ARGUMENT(*skb, ctx, offsetof(struct bpf_nf_ctx, skb));
	LOAD(TYPED, dev, state, struct nf_hook_state, in);
	LOAD(TYPED, *net, state, struct nf_hook_state, net);
	*ours = c && nf_watched(c, dev);
	return c;
}

static __always_inline void rx_ip_netfilter(const void *ctx)
{
	void *skb, *net;
	bool ours;
	struct config *c = nf_received(ctx, &skb, &net, &ours);

	if (c)
		rx_ip(skb, TYPED, c, ours, net);
}

static __always_inline void rx_local_netfilter(const void *ctx)
{
	void *skb, *net;
	bool ours;
	struct config *c = nf_received(ctx, &skb, &net, &ours);

	if (c && rx_local(skb, c, ours, net))
		rx_early(c, skb, TYPED);
}

static __always_inline void ip_forwarded_netfilter(const void *ctx)
{
	struct config *c = settings();
	void *state, *skb, *in, *out;

	NF_ARGUMENT(state, ctx, offsetof(struct bpf_nf_ctx, state));
	NF_ARGUMENT(skb, ctx, offsetof(struct bpf_nf_ctx, skb));
	LOAD(TYPED, in, state, struct nf_hook_state, in);
	LOAD(TYPED, out, state, struct nf_hook_state, out);
	if (c)
		ip_forwarded(skb, nf_watched(c, in), nf_watched(c, out));
}

static __always_inline void tx_ip_netfilter(const void *ctx)
{
	struct config *c = settings();
	void *state, *skb, *dev;

	NF_ARGUMENT(state, ctx, offsetof(struct bpf_nf_ctx, state));
	NF_ARGUMENT(skb, ctx, offsetof(struct bpf_nf_ctx, skb));
	LOAD(TYPED, dev, state, struct nf_hook_state, out);
	if (c && nf_watched(c, dev))
		tx_ip(skb, TYPED);
}

#endif

/* As nf_received(). */
static __always_inline struct config *skb_received(const void *skb, int typed, void **net, bool *ours)
{
	struct config *c = settings();
	void *dev = 0;

	if (!c)
		return 0;
	*net = 0;
	LOAD(typed, dev, skb, struct sk_buff, dev);
	LOAD(typed, *net, dev, struct net_device, nd_net.net);
	*ours = watched(c, dev, typed);
	return c;
}

static __always_inline int rx_ip_function(const void *skb, int typed)
{
	void *net;
	bool ours;
	struct config *c = skb_received(skb, typed, &net, &ours);

	return c ? rx_ip(skb, typed, c, ours, net) : 0;
}

static __always_inline int rx_local_function(const void *skb, int typed)
{
	void *net;
	bool ours;
	struct config *c = skb_received(skb, typed, &net, &ours);

	if (c && rx_local(skb, c, ours, net))
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

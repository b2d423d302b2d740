/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * How large a packet is to its interface's own counters, and on the wire: a GSO or GRO packet is one skb in the stack
 * and many packets on the wire, and each driver counts at a point of its own (COUNT_* in nettop.h). What __sk_buff
 * lacks (the kind of GSO, the device's offloads) is read from the kernel's structures, for GSO packets alone.
 */
#ifndef SIZE_H
#define SIZE_H

#include "load.h"

/* include/linux/skbuff.h. The features of the same meaning are NETIF_F_GSO_SHIFT bits further up. */
#define NETIF_F_GSO_SHIFT 16
#define SKB_GSO_TYPES 0x7ffffu /* up to SKB_GSO_FRAGLIST; what lies above is no feature */
#define SKB_GSO_TCPV4 (1 << 0)
#define SKB_GSO_DODGY (1 << 1) /* from a guest: checked, not cut, where the device lacks NETIF_F_GSO_ROBUST */
#define SKB_GSO_TCPV6 (1 << 4)
#define SKB_GSO_UDP_L4 (1 << 17)
#define SKB_GSO_FRAGLIST (1 << 18)
#define SKB_GSO_TUNNELS (0x3f << 6) /* GRE, GRE_CSUM, IPXIP4, IPXIP6, UDP_TUNNEL, UDP_TUNNEL_CSUM */

/* include/linux/netdev_features.h */
#define NETIF_F_FRAGLIST (1ULL << 6)
#define NETIF_F_HW_VLAN_CTAG_TX (1ULL << 7)
#define NETIF_F_GRO (1ULL << 14)
#define NETIF_F_ALL_TSO (0x1dULL << NETIF_F_GSO_SHIFT)
#define NETIF_F_IP_CSUM (1ULL << 1)
#define NETIF_F_HW_CSUM (1ULL << 3)
#define NETIF_F_IPV6_CSUM (1ULL << 4)
#define GRO_UDP_FEATURES ((1ULL << 57) | (1ULL << 59)) /* NETIF_F_GRO_FRAGLIST, NETIF_F_GRO_UDP_FWD */

/* A packet's size as its interface counts it, and the packets on the wire that it stands for. */
struct size {
	u32 bytes;
	u32 packets; /* as the interface counts */
	u32 segments; /* as the wire does */
	u32 segment_bytes; /* of a full segment with its headers */
};

/* Bytes of the transport header at this offset; 0 where there is none of a kind that segments. */
static __always_inline u32 transport_header_len(struct __sk_buff *skb, u32 offset, u16 protocol)
{
	u8 copy, *byte;

	if (!offset)
		return 0;
	if (protocol == IPPROTO_UDP)
		return 8;
	if (protocol != IPPROTO_TCP)
		return 0;
	byte = packet_bytes(skb, offset + 12, &copy, 1);
	return byte ? (*byte >> 4) * 4 : 0;
}

/*
 * Bytes of headers that each segment repeats: all up to the payload, in a tunnel's packet up to that of the inner one
 * (net/core/dev.c, qdisc_pkt_len_init). 0 where that cannot be said.
 */
static __always_inline u32 gso_headers(struct __sk_buff *skb, const struct packet *p, u32 type)
{
	u16 protocol = p->protocol;
	u32 transport = p->l4;

	if (unlikely(type & SKB_GSO_TUNNELS)) {
		const void *kernel = KERNEL_SKB(skb);
		u64 head = 0, data = 0;
		u16 inner = 0;

		LOAD(TC_TYPED, head, kernel, struct sk_buff, head);
		LOAD(TC_TYPED, data, kernel, struct sk_buff, data);
		LOAD(TC_TYPED, inner, kernel, struct sk_buff, inner_transport_header);
		transport = head + inner - data;
		protocol = type & (SKB_GSO_TCPV4 | SKB_GSO_TCPV6) ? IPPROTO_TCP : IPPROTO_UDP;
	}
	transport &= 0x7fff;
	return transport ? transport + transport_header_len(skb, transport, protocol) : 0;
}

/* The device that the packet leaves by, and its features. */
static __always_inline u64 device_features(struct __sk_buff *skb, const void **dev)
{
	u64 features = 0;

	/*
	 * Not from the context, which the verifier trusts: for each pointer loaded from there it goes through the
	 * names of all of the kernel's types (kernel/bpf/btf.c, btf_nested_type_is_trusted).
	 */
	LOAD(TC_TYPED, *dev, KERNEL_CAST((u64)KERNEL_SKB(skb), sk_buff), struct sk_buff, dev);
	LOAD(TC_TYPED, features, *dev, struct net_device, features);
	return features;
}

/*
 * Whether the stack cuts this packet up before the driver sees it: an offload that it needs is off, or it is larger
 * than the device says (net/core/dev.c, netif_skb_features and skb_gso_ok).
 */
static __always_inline bool segmented_by_stack(struct __sk_buff *skb, const struct packet *p, u32 type,
					       u32 segments, bool list)
{
	__typeof__(((struct net_device *)0)->gso_max_segs) most_segments = 0;
	const void *dev = NULL;
	u64 features = device_features(skb, &dev), others = 0;
	u32 most_bytes = 0;

	if (unlikely(type & SKB_GSO_TUNNELS)) {
		LOAD(TC_TYPED, others, dev, struct net_device, hw_enc_features);
		features &= others;
	}
	if (unlikely(p->vlans)) {
		LOAD(TC_TYPED, others, dev, struct net_device, vlan_features);
		features &= others;
		if (p->vlans > VLAN_VID_MASK) /* two tags: vlan_features_check */
			return true;
	}
	/* what the device cannot put the checksum into either: harmonize_features */
	if (!(features & (NETIF_F_HW_CSUM | (p->version == 6 ? NETIF_F_IPV6_CSUM : NETIF_F_IP_CSUM))))
		return true;
	if ((u64)(type & SKB_GSO_TYPES & ~SKB_GSO_DODGY) << NETIF_F_GSO_SHIFT & ~features)
		return true;
	if (list && !(features & NETIF_F_FRAGLIST))
		return true;
	LOAD(TC_TYPED, most_segments, dev, struct net_device, gso_max_segs);
#ifdef HAVE_gso_ipv4_max_size /* since 6.3 */
	if (p->version != 6)
		LOAD(TC_TYPED, most_bytes, dev, struct net_device, gso_ipv4_max_size);
	else
#endif
		LOAD(TC_TYPED, most_bytes, dev, struct net_device, gso_max_size);
	return segments > most_segments || SKB_FIELD(skb, len) >= most_bytes;
}

/* What the other end of a veth takes by NAPI, see below. */
#define POLLS_NOTHING 0
#define POLLS_DATAGRAMS 1 /* of sockets of this host */
#define POLLS_ALL 2

/*
 * Whether the other end of a veth receives by NAPI, and so counts for both without the link header
 * (drivers/net/veth.c, veth_skb_is_eligible_for_gro and veth_xmit): where it merges or has an XDP program, and this
 * end cuts up by itself; or for a socket's datagrams where it merges such. The first field of veth's private data is
 * its peer, the third its program.
 */
static __always_inline u32 peer_polls(struct __sk_buff *skb)
{
	const u64 private = (sizeof(struct net_device) + 63) & ~63ULL; /* netdev_priv() */
	u64 peer = 0, program = 0, features = 0;
	const void *dev = NULL;
	u32 most = device_features(skb, &dev) & NETIF_F_ALL_TSO ? POLLS_DATAGRAMS : POLLS_ALL;

	bpf_probe_read_kernel(&peer, sizeof(peer), (const void *)(AS_NUMBER(dev) + private));
	READ_FIELD(features, peer, struct net_device, features);
	bpf_probe_read_kernel(&program, sizeof(program), (const void *)(peer + private + 16));
	if (!(features & NETIF_F_GRO) && !program)
		return POLLS_NOTHING;
	return most == POLLS_ALL || features & GRO_UDP_FEATURES ? most : POLLS_NOTHING;
}

/* What was found so, kept for a tick of the clock; one for each CPU. */
struct veth_peer {
	u64 tick; /* jiffies */
	u64 polls;
};

/*
 * Whether the packet is a datagram of a local socket: the kernel asks for sock_wfree, where TCP has destructors of
 * its own. In a tunnel it may be a TCP socket's, whatever the outer header. A request's socket is no whole one.
 */
static __always_inline bool is_own_datagram(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	u64 destructor = 0;

	if (!sk)
		return false;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->type == SOCK_STREAM)
		return false;
	LOAD(TC_TYPED, destructor, KERNEL_SKB(skb), struct sk_buff, destructor);
	return destructor;
}

static __always_inline bool peer_counts(struct __sk_buff *skb, struct veth_peer *kept)
{
	u64 tick = bpf_jiffies64();

	if (!kept)
		return false;
	if (unlikely(kept->tick != tick)) {
		kept->tick = tick;
		kept->polls = peer_polls(skb);
	}
	return kept->polls == POLLS_ALL || (kept->polls == POLLS_DATAGRAMS && is_own_datagram(skb));
}

/*
 * Bytes of a lifted VLAN tag, if the interface counted them. What is sent has the tag in the frame again where the
 * device cannot insert it. What is received had it there where the driver or a guest put it, but not between two ends
 * of a veth, which pass it beside the frame; there the stack leaves a trace when it lifts a tag out: the addresses
 * move up, and their first four bytes stay where they were.
 */
static __always_inline u32 counted_tag(struct __sk_buff *skb, u8 counting, int hook)
{
	const void *dev, *kernel;
	u64 head = 0;
	u32 trace[2];
	u16 mac = 0;

	if (likely(!SKB_FIELD(skb, vlan_present)))
		return 0;
	if (counting & COUNT_TAG)
		return VLAN_HLEN;
	if (hook == OUT)
		return !(counting & COUNT_STACK) || device_features(skb, &dev) & NETIF_F_HW_VLAN_CTAG_TX
			       ? 0
			       : VLAN_HLEN;
	if (!(counting & COUNT_NAPI))
		return 0;
	kernel = KERNEL_SKB(skb);
	LOAD(TC_TYPED, head, kernel, struct sk_buff, head);
	LOAD(TC_TYPED, mac, kernel, struct sk_buff, mac_header);
	if (mac < VLAN_HLEN || bpf_probe_read_kernel(trace, sizeof(trace), (void *)(head + mac - VLAN_HLEN)))
		return 0;
	return trace[0] == trace[1] ? VLAN_HLEN : 0;
}

/* Whether the interface counts each of the segments that this one packet, which is sent, stands for. */
static __always_inline bool counts_sent(struct __sk_buff *skb, const struct packet *p, const struct config *c,
					u32 type, u32 segments, bool list)
{
	if (c->count_out & COUNT_WIRE)
		return true;
	if (!(c->count_out & COUNT_STACK))
		return false;
	/* wire_len: qdisc_pkt_len(), with the headers of each segment */
	return (c->cut_above && SKB_FIELD(skb, wire_len) > c->cut_above) ||
	       segmented_by_stack(skb, p, type, segments, list);
}

/* Whether it has counted each of those that this one, which was received, was merged of. */
static __always_inline bool counts_received(struct __sk_buff *skb, u8 counting, u32 type, u32 headers,
					    bool list)
{
	u16 inner = 0;
	u32 paged = 0;

	/* GRO says how many it has merged; a guest's packet comes without the number, as one */
	if (!(counting & COUNT_MERGED) || !SKB_FIELD(skb, gso_segs))
		return false;
	if (unlikely(counting & COUNT_CELLS &&
		     !(type & SKB_GSO_FRAGLIST))) { /* whole from below, or its sender: inner headers known */
		LOAD(TC_TYPED, inner, KERNEL_SKB(skb), struct sk_buff, inner_network_header);
		return !inner;
	}
	if (unlikely(counting & COUNT_NAPI &&
		     (type & (SKB_GSO_UDP_L4 | SKB_GSO_FRAGLIST)) == SKB_GSO_UDP_L4 && !list)) {
		/*
		 * A veth may be handed datagrams merged by their sender, which has their headers alone in one piece,
		 * or all in one where the device takes no more.
		 */
		LOAD(TC_TYPED, paged, KERNEL_SKB(skb), struct sk_buff, data_len);
		return paged && SKB_FIELD(skb, len) - paged > headers;
	}
	return true;
}

/* Of a GSO packet: the segments it stands for, the headers of each, and whether the interface has counted them. */
static __always_inline u32 gso_segments(struct __sk_buff *skb, const struct packet *p, const struct config *c,
					int hook, u8 counting, u32 *headers, u32 *counted)
{
	u32 segments = SKB_FIELD(skb, gso_segs), gso_size = SKB_FIELD(skb, gso_size), type = 0, end = 0;
	const void *kernel = KERNEL_SKB(skb), *shared;
	u64 head = 0, list = 0;

	LOAD(TC_TYPED, head, kernel, struct sk_buff, head);
	LOAD(TC_TYPED, end, kernel, struct sk_buff, end);
	shared = KERNEL_CAST(head + end, skb_shared_info);
	LOAD(TC_TYPED, type, shared, struct skb_shared_info, gso_type);
	LOAD(TC_TYPED, list, shared, struct skb_shared_info, frag_list);
	*headers = gso_headers(skb, p, type);
	if (!segments) /* a guest's or a tap's skb comes without the count */
		segments = SKB_FIELD(skb, len) > *headers
				   ? (SKB_FIELD(skb, len) - *headers + gso_size - 1) / gso_size
				   : 1;
	VERIFIER_MASK(segments, 0x1ffff);
	if (segments > 1)
		*counted = hook == OUT ? counts_sent(skb, p, c, type, segments, list != 0)
				       : counts_received(skb, counting, type, *headers, list != 0);
	return segments;
}

/* BCC takes no look-ups here, so `kept` is looked up by the program: for what a veth sends (COUNT_NAPI), else NULL. */
static __always_inline void packet_size(struct __sk_buff *skb, const struct packet *p, const struct config *c,
					int hook, struct veth_peer *kept, struct size *s)
{
	u8 counting = hook == OUT ? c->count_out : c->count_in;
	u32 tag = counted_tag(skb, counting, hook), bare, wire, bytes, packets = 1, segments = 1;

	if (counting & COUNT_NAPI) {
		if (hook == OUT)
			counting |= peer_counts(skb, kept) ? COUNT_BARE : 0;
		else if (!SKB_FIELD(skb, napi_id))
			counting &= ~(COUNT_MERGED | COUNT_BARE);
	}
	bare = counting & COUNT_BARE ? ETH_HLEN : 0;
	/* one way from here on, for the verifier, whichever it was */
	VERIFIER_MASK(tag, 7);
	VERIFIER_MASK(bare, 15);
	VERIFIER_MASK(counting, 0xff);
	wire = SKB_FIELD(skb, len) + (unlikely(SKB_FIELD(skb, vlan_present)) ? VLAN_HLEN : 0);
	bytes = SKB_FIELD(skb, len) + tag - bare;
	/* a guest may say that anything is made of segments; without headers to repeat it is not */
	if (SKB_FIELD(skb, gso_size) && p->l4) {
		u32 headers = 0, counted = 0;

		segments = gso_segments(skb, p, c, hook, counting, &headers, &counted);
		if (segments > 1) {
			wire = headers + SKB_FIELD(skb, gso_size);
			if (counted) {
				bytes += (segments - 1) * (headers + tag - bare);
				packets = segments;
			}
		}
	}
	VERIFIER_MASK(bytes, 0x7fffffff);
	VERIFIER_MASK(packets, 0x7fffffff);
	VERIFIER_MASK(segments, 0x7fffffff);
	VERIFIER_MASK(wire, 0x7fffffff);
	s->bytes = bytes;
	s->packets = packets;
	s->segments = segments;
	s->segment_bytes = wire;
}

#endif

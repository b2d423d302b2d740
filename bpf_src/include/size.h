/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * How large a packet is to its interface's own counters, and what it is on the wire.
 *
 * A GSO or GRO packet is one skb in the stack and many packets on the wire, and each
 * driver counts at a point of its own: see COUNT_* in nettop.h. What __sk_buff does not
 * say (the kind of GSO, the device's offloads) is read from the kernel's own structures.
 * The verifier knows the context as a type of its own, but where it points to is the
 * struct sk_buff itself (bpf_convert_ctx_access). Only GSO packets pay for that.
 */
#ifndef SIZE_H
#define SIZE_H

/* include/linux/skbuff.h: SKB_GSO_*. The features of the same meaning are GSO_SHIFT bits further up. */
#define GSO_SHIFT 16 /* NETIF_F_GSO_SHIFT */
#define GSO_TYPES 0x7ffffu /* up to SKB_GSO_FRAGLIST; what lies above is no feature */
#define GSO_TCPV4 (1 << 0)
#define GSO_DODGY (1 << 1) /* from a guest: checked, not cut, where the device lacks NETIF_F_GSO_ROBUST */
#define GSO_TCPV6 (1 << 4)
#define GSO_UDP_L4 (1 << 17)
#define GSO_FRAGLIST (1 << 18)
#define GSO_TUNNELS (0x3f << 6) /* GRE, GRE_CSUM, IPXIP4, IPXIP6, UDP_TUNNEL, UDP_TUNNEL_CSUM */

/* include/linux/netdev_features.h */
#define FEATURE_FRAGLIST (1ULL << 6)
#define FEATURE_VLAN_TX (1ULL << 7) /* NETIF_F_HW_VLAN_CTAG_TX */
#define FEATURE_GRO (1ULL << 14)
#define FEATURE_ALL_TSO (0x1dULL << GSO_SHIFT)
#define FEATURE_IP_CSUM (1ULL << 1)
#define FEATURE_HW_CSUM (1ULL << 3)
#define FEATURE_IPV6_CSUM (1ULL << 4)
#define FEATURE_GRO_UDP ((1ULL << 57) | (1ULL << 59)) /* NETIF_F_GRO_FRAGLIST, NETIF_F_GRO_UDP_FWD */

#define VLAN_HLEN 4

#define SOCK_STREAM 1 /* include/linux/net.h */
#define TCP_NEW_SYN_RECV 12 /* include/net/tcp_states.h */

/* A packet's size as its interface counts it, and the packets on the wire that it stands for. */
struct size {
	u32 bytes;
	u32 packets; /* as the interface counts */
	u32 segments; /* as the wire does */
	u32 segment_bytes; /* of a full segment with its headers */
};

/*
 * Of struct sk_buff, read at once: from one field to the last of them, with what lies between. Linux 6.1 has four bytes
 * between the first two, later ones have none.
 */
struct skb_place {
	u32 end;
	u8 between[offsetof(struct sk_buff, head) - offsetof(struct sk_buff, end) - sizeof(u32)];
	u64 head;
	u64 data;
} __attribute__((packed));
_Static_assert(offsetof(struct skb_place, data) ==
		       offsetof(struct sk_buff, data) - offsetof(struct sk_buff, end),
	       "neighbours in struct sk_buff");

static __always_inline void read_place(struct __sk_buff *skb, struct skb_place *place)
{
	READ_FIELD(*place, skb, struct sk_buff, end);
}

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
static __always_inline u32 gso_headers(struct __sk_buff *skb, const struct packet *p, u32 type,
				       const struct skb_place *place)
{
	u16 protocol = p->protocol;
	u32 transport = p->l4;

	if (type & GSO_TUNNELS) {
		u16 inner;

		READ_FIELD(inner, skb, struct sk_buff, inner_transport_header);
		transport = place->head + inner - place->data;
		protocol = type & (GSO_TCPV4 | GSO_TCPV6) ? IPPROTO_TCP : IPPROTO_UDP;
	}
	transport &= 0x7fff;
	return transport ? transport + transport_header_len(skb, transport, protocol) : 0;
}

/* The features of the device that the packet leaves by. */
static __always_inline u64 device_features(struct __sk_buff *skb, struct net_device **dev)
{
	u64 features;

	READ_FIELD(*dev, skb, struct sk_buff, dev);
	READ_FIELD(features, *dev, struct net_device, features);
	return features;
}

/*
 * Whether the stack cuts this packet up before the driver sees it: where an offload that it needs is off, or where it
 * is larger than the device says (net/core/dev.c, netif_skb_features and skb_gso_ok).
 */
static __always_inline bool cut_by_stack(struct __sk_buff *skb, const struct packet *p, u32 type,
					 u32 segments, bool list)
{
	__typeof__(((struct net_device *)0)->gso_max_segs) most_segments;
	u32 most_bytes;
	struct net_device *dev;
	u64 features = device_features(skb, &dev), others;

	if (type & GSO_TUNNELS) {
		READ_FIELD(others, dev, struct net_device, hw_enc_features);
		features &= others;
	}
	if (p->vlans) {
		READ_FIELD(others, dev, struct net_device, vlan_features);
		features &= others;
		if (p->vlans > 0xfff) /* two tags: vlan_features_check */
			return true;
	}
	/* what the device cannot put the checksum into either: harmonize_features */
	if (!(features & (FEATURE_HW_CSUM | (p->version == 6 ? FEATURE_IPV6_CSUM : FEATURE_IP_CSUM))))
		return true;
	if ((u64)(type & GSO_TYPES & ~GSO_DODGY) << GSO_SHIFT & ~features)
		return true;
	if (list && !(features & FEATURE_FRAGLIST))
		return true;
	READ_FIELD(most_segments, dev, struct net_device, gso_max_segs);
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	if (p->version != 6)
		READ_FIELD(most_bytes, dev, struct net_device, gso_ipv4_max_size);
	else
#endif
		READ_FIELD(most_bytes, dev, struct net_device, gso_max_size);
	return segments > most_segments || SKB_FIELD(skb, len) >= most_bytes;
}

/* What the other end of a veth takes by NAPI, see below. */
#define POLLS_NOTHING 0
#define POLLS_DATAGRAMS 1 /* of sockets of this host */
#define POLLS_ALL 2

/*
 * Whether the other end of a veth takes what it is sent by NAPI. Then it is the receiver that counts it for both, without
 * the link header (drivers/net/veth.c, veth_skb_is_eligible_for_gro and veth_xmit): where the other one merges or has an
 * XDP program, and this end cuts up by itself; or for a socket's datagrams where the other one merges such. The first
 * field of what a veth keeps for itself is its peer, the third its program.
 */
static __always_inline u32 peer_polls(struct __sk_buff *skb)
{
	const u64 private = (sizeof(struct net_device) + 63) & ~63ULL; /* netdev_priv() */
	struct net_device *dev, *peer = NULL;
	void *program = NULL;
	u64 features;
	u32 most = device_features(skb, &dev) & FEATURE_ALL_TSO ? POLLS_DATAGRAMS : POLLS_ALL;

	bpf_probe_read_kernel(&peer, sizeof(peer), (char *)dev + private);
	READ_FIELD(features, peer, struct net_device, features);
	bpf_probe_read_kernel(&program, sizeof(program), (char *)peer + private + 16);
	if (!(features & FEATURE_GRO) && !program)
		return POLLS_NOTHING;
	return most == POLLS_ALL || features & FEATURE_GRO_UDP ? most : POLLS_NOTHING;
}

/* What was found so, kept for a tick of the clock; one for each CPU. */
struct veth_peer {
	u64 tick; /* jiffies */
	u64 polls;
};

/*
 * Whether the packet is a socket's and no stream's: the kernel asks for sock_wfree, where TCP has destructors of its own.
 * Inside a tunnel it may be a TCP socket's, whatever the outer header is. A request's socket is no whole one.
 */
static __always_inline bool is_own_datagram(struct __sk_buff *skb)
{
	void *destructor = NULL;
	struct sock *sk = NULL;
	u8 state = 0;
	u16 type = 0;

	READ_FIELD(destructor, skb, struct sk_buff, destructor);
	READ_FIELD(sk, skb, struct sk_buff, sk);
	if (!destructor || !sk)
		return false;
	READ_FIELD(state, sk, struct sock_common, skc_state);
	READ_FIELD(type, sk, struct sock, sk_type);
	return state != TCP_NEW_SYN_RECV && type != SOCK_STREAM;
}

static __always_inline bool peer_counts(struct __sk_buff *skb, struct veth_peer *kept)
{
	u64 tick = bpf_jiffies64();

	if (!kept)
		return false;
	if (kept->tick != tick) {
		kept->tick = tick;
		kept->polls = peer_polls(skb);
	}
	return kept->polls == POLLS_ALL || (kept->polls == POLLS_DATAGRAMS && is_own_datagram(skb));
}

/*
 * Bytes of a VLAN tag that was lifted out of the frame, if the interface counted them. What it sends has the tag in it
 * again where the device cannot put it there by itself. What it received had it in it where the driver or a guest
 * put it, but not between the two ends of a veth, which hand the tag over beside the frame; there the stack
 * leaves a trace when it lifts one out: the addresses were moved, and their first four bytes stay where they were.
 */
static __always_inline u32 counted_tag(struct __sk_buff *skb, u8 counting)
{
	struct net_device *dev;
	struct skb_place place;
	u32 trace[2];
	u16 mac;

	if (!SKB_FIELD(skb, vlan_present))
		return 0;
	if (counting & COUNT_TAG)
		return VLAN_HLEN;
	if (counting & COUNT_STACK)
		return device_features(skb, &dev) & FEATURE_VLAN_TX ? 0 : VLAN_HLEN;
	if (!(counting & COUNT_NAPI))
		return 0;
	read_place(skb, &place);
	READ_FIELD(mac, skb, struct sk_buff, mac_header);
	if (mac < VLAN_HLEN ||
	    bpf_probe_read_kernel(trace, sizeof(trace), (void *)(place.head + mac - VLAN_HLEN)))
		return 0;
	return trace[0] == trace[1] ? VLAN_HLEN : 0;
}

/*
 * Whether the interface has counted each of the segments that this one packet stands for.
 */
static __always_inline bool counts_segments(struct __sk_buff *skb, const struct packet *p, u8 counting,
					    u32 cut_above, u32 type, u32 segments, u32 headers, bool list)
{
	u32 paged;
	u16 inner;

	if (counting & COUNT_WIRE)
		return true;
	if (counting & COUNT_STACK) /* wire_len: qdisc_pkt_len(), with the headers of each segment */
		return (cut_above && SKB_FIELD(skb, wire_len) > cut_above) ||
		       cut_by_stack(skb, p, type, segments, list);
	/* GRO says how many it has merged; a guest's packet comes without the number, as one */
	if (!(counting & COUNT_MERGED) || !SKB_FIELD(skb, gso_segs))
		return false;
	if (counting & COUNT_CELLS &&
	    !(type & GSO_FRAGLIST)) { /* whole from below, or its sender: inner headers known */
		READ_FIELD(inner, skb, struct sk_buff, inner_network_header);
		return !inner;
	}
	if (counting & COUNT_NAPI && (type & (GSO_UDP_L4 | GSO_FRAGLIST)) == GSO_UDP_L4 && !list) {
		/*
		 * A veth may be handed datagrams merged by their sender, which has their headers alone in one piece, or all
		 * in one where the device takes no more.
		 */
		READ_FIELD(paged, skb, struct sk_buff, data_len);
		return paged && SKB_FIELD(skb, len) - paged > headers;
	}
	return true;
}

/*
 * Of a GSO packet: the segments it stands for, the headers of each, and whether the interface has counted them.
 */
static __always_inline u32 gso_segments(struct __sk_buff *skb, const struct packet *p, u8 counting,
					u32 cut_above, u32 *headers, u32 *counted)
{
	u32 segments = SKB_FIELD(skb, gso_segs), gso_size = SKB_FIELD(skb, gso_size), type = 0;
	struct skb_place place;
	void *list = NULL;
	char *shared;

	read_place(skb, &place);
	shared = (char *)place.head + place.end;
	READ_FIELD(type, shared, struct skb_shared_info, gso_type);
	READ_FIELD(list, shared, struct skb_shared_info, frag_list);
	*headers = gso_headers(skb, p, type, &place);
	if (!segments) /* a guest's or a tap's skb comes without the count */
		segments = SKB_FIELD(skb, len) > *headers
				   ? (SKB_FIELD(skb, len) - *headers + gso_size - 1) / gso_size
				   : 1;
	BLUR(segments, 0x1ffff);
	if (segments > 1)
		*counted = counts_segments(skb, p, counting, cut_above, type, segments, *headers, list);
	return segments;
}

/*
 * `kept` is looked up for a veth's COUNT_NAPI alone, else NULL. `cut_above` is what the queue does with a packet that is
 * sent, see struct config.
 */
static __always_inline void packet_size(struct __sk_buff *skb, const struct packet *p, u8 counting,
					u32 cut_above, struct veth_peer *kept, struct size *s)
{
	u32 tag = counted_tag(skb, counting), bare, wire, bytes, packets = 1, segments = 1;

	if (counting & COUNT_NAPI) {
		if (counting & COUNT_STACK)
			counting |= peer_counts(skb, kept) ? COUNT_BARE : 0;
		else if (!SKB_FIELD(skb, napi_id))
			counting &= ~(COUNT_MERGED | COUNT_BARE);
	}
	bare = counting & COUNT_BARE ? ETH_HLEN : 0;
	/* one way from here on, for the verifier, whichever it was */
	BLUR(tag, 7);
	BLUR(bare, 15);
	BLUR(counting, 0xff);
	wire = SKB_FIELD(skb, len) + (SKB_FIELD(skb, vlan_present) ? VLAN_HLEN : 0);
	bytes = SKB_FIELD(skb, len) + tag - bare;
	/* a guest may say that anything is made of segments; without headers to repeat it is not */
	if (SKB_FIELD(skb, gso_size) && p->l4) {
		u32 headers = 0, counted = 0;

		segments = gso_segments(skb, p, counting, cut_above, &headers, &counted);
		if (segments > 1) {
			wire = headers + SKB_FIELD(skb, gso_size);
			if (counted) {
				bytes += (segments - 1) * (headers + tag - bare);
				packets = segments;
			}
		}
	}
	BLUR(bytes, 0x7fffffff);
	BLUR(packets, 0x7fffffff);
	BLUR(segments, 0x7fffffff);
	BLUR(wire, 0x7fffffff);
	s->bytes = bytes;
	s->packets = packets;
	s->segments = segments;
	s->segment_bytes = wire;
}

#endif

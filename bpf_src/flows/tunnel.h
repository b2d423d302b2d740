/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * From a tunnel's packet to the IP packet that it carries: IP in IP (RFC 2003, 4213, 2473), GRE (RFC 2784, 2890),
 * VXLAN (RFC 7348) and Geneve (RFC 8926), the last three with Ethernet in them, too. One tunnel deep. What is not
 * understood to the last bit, or is no IP inside, stays what it is from outside: a packet of the tunnel's own flow.
 */
#ifndef TUNNEL_H
#define TUNNEL_H

#define VXLAN_PORT 4789 /* IANA's */
#define VXLAN_PORT_LINUX 8472 /* what Linux takes if it is told nothing */
#define GENEVE_PORT 6081

#define GRE_CSUM 0x8000
#define GRE_KEY 0x2000
#define GRE_SEQ 0x1000

#define VXLAN_VNI 0x08 /* the flag, and the only one but for the group policy's */
#define VXLAN_POLICY 0x80
#define GENEVE_CONTROL 0x80

/* What lies inside, as far as the tunnel's header says so. */
struct inside {
	u32 kind; /* TUNNEL_* */
	u32 id;
	u32 offset;
	u16 ethertype; /* 0: not understood */
};

static __always_inline bool is_udp_tunnel(u16 port)
{
	return port == swap16(VXLAN_PORT) || port == swap16(VXLAN_PORT_LINUX) || port == swap16(GENEVE_PORT);
}

/* Hardly a packet is, and this is asked of all of them. */
static __always_inline bool may_be_tunnel(struct __sk_buff *skb, const struct packet *p)
{
	u16 copy, *port;

	if (likely(p->protocol == IPPROTO_TCP) || p->fragment || !p->l4)
		return false;
	if (p->protocol == IPPROTO_UDP) {
		port = packet_bytes(skb, p->l4 + 2, &copy, 2);
		return port && is_udp_tunnel(*port);
	}
	return p->protocol == IPPROTO_IPIP || p->protocol == IPPROTO_IPV6 || p->protocol == IPPROTO_GRE;
}

static __always_inline void enter_ethernet(struct __sk_buff *skb, struct inside *in)
{
	u16 copy, *type = packet_bytes(skb, in->offset + ETH_HLEN - 2, &copy, 2);

	in->ethertype = type ? *type : 0;
	in->offset += ETH_HLEN;
}

static __always_inline void enter_gre(struct __sk_buff *skb, struct inside *in)
{
	u16 copy[2], *header = packet_bytes(skb, in->offset, copy, 4), flags, type;
	u32 key_copy, *key;

	if (!header)
		return;
	flags = swap16(header[0]);
	type = header[1];
	if (flags & ~(GRE_CSUM | GRE_KEY | GRE_SEQ)) /* routing, or another version */
		return;
	in->kind = TUNNEL_GRE;
	in->offset += flags & GRE_CSUM ? 8 : 4;
	VERIFIER_MASK(in->offset, 0x3fff);
	if (flags & GRE_KEY) {
		key = packet_bytes(skb, in->offset, &key_copy, 4);
		if (!key)
			return;
		in->id = swap32(*key);
		in->offset += 4;
	}
	in->offset += flags & GRE_SEQ ? 4 : 0;
	VERIFIER_MASK(in->offset, 0x3fff);
	if (type == swap16(ETH_P_TEB))
		enter_ethernet(skb, in);
	else
		in->ethertype = type;
}

/* VXLAN's header and Geneve's: eight bytes with the number in the same place. */
static __always_inline void enter_udp(struct __sk_buff *skb, struct inside *in)
{
	u32 copy[4], *word = packet_bytes(skb, in->offset, copy, 16), first, second;
	bool geneve;

	if (!word)
		return;
	geneve = (word[0] >> 16) == swap16(GENEVE_PORT); /* UDP: source and destination port */
	first = swap32(word[2]);
	second = swap32(word[3]);
	in->offset += 16;
	in->id = second >> 8;
	if (second & 0xff)
		return;
	if (!geneve) {
		if ((first >> 24 & ~VXLAN_POLICY) != VXLAN_VNI)
			return;
		in->kind = TUNNEL_VXLAN;
		enter_ethernet(skb, in);
		return;
	}
	if (first >> 30 || first >> 16 & GENEVE_CONTROL) /* version 0, and no message of the tunnel's own */
		return;
	in->kind = TUNNEL_GENEVE;
	in->offset += (first >> 24) * 4; /* options */
	VERIFIER_MASK(in->offset, 0x3fff);
	if ((first & 0xffff) == ETH_P_TEB)
		enter_ethernet(skb, in);
	else
		in->ethertype = swap16(first & 0xffff);
}

/* Put the packet inside in the place of the one outside, if it is IP. */
static __always_inline void enter_tunnel(struct __sk_buff *skb, struct work *w)
{
	struct packet *outside = &w->packet, *p = &w->inside;
	struct inside in = {.offset = outside->l4};
	u32 end = outside->end;

	if (outside->protocol == IPPROTO_GRE) {
		enter_gre(skb, &in);
	} else if (outside->protocol == IPPROTO_UDP) {
		enter_udp(skb, &in);
	} else {
		in.kind = TUNNEL_IPIP;
		in.ethertype = outside->protocol == IPPROTO_IPIP ? swap16(ETH_P_IP) : swap16(ETH_P_IPV6);
	}
	VERIFIER_MASK(in.offset, 0x3fff);
	__builtin_memset(p, 0, sizeof(*p));
	p->l3 = in.offset;
	p->vlans = outside->vlans;
	if (in.ethertype == swap16(ETH_P_IP))
		parse_ipv4(skb, p);
	else if (in.ethertype == swap16(ETH_P_IPV6))
		parse_ipv6(skb, p);
	if (!p->version)
		return;
	if (p->end > end)
		p->end = end;
	p->tunnel = in.kind;
	parsed(p);
	w->packet = *p;
	w->key.tunnel_id = in.id;
}

#endif

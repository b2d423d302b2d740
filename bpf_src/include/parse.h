/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * From an skb at TC to its network and transport headers. Nothing is assumed of
 * the packet: every read is checked, and what cannot be read is said to be absent.
 */
#ifndef PARSE_H
#define PARSE_H

#define PPP_IP 0x0021
#define PPP_IPV6 0x0057
#define PPPOE_HLEN 8 /* with PPP's protocol (RFC 2516, 4) */

/* Protocols beyond the 256 of IP. */
#define PROTO_ARP 256
#define PROTO_OTHER 257 /* another EtherType */
#define PROTO_LLDP 258
#define PROTO_LLC 259 /* spanning tree and whatever else has no EtherType */
#define PROTO_PPPOE 260 /* its discovery, and what of PPP is no IP */
#define PROTO_MPLS 261 /* no IP below the labels: a pseudowire, or too many of them */
#define PROTO_BROKEN 262 /* an IP header that makes no sense, or is not there */
#define PROTO_SLOTS 263

/* What an IP packet is wrapped in; constants.py has their names. The first two are passed here, others by flows/. */
#define TUNNEL_NONE 0
#define TUNNEL_PPPOE 1
#define TUNNEL_MPLS 2
#define TUNNEL_IPIP 3 /* either version in either */
#define TUNNEL_GRE 4
#define TUNNEL_VXLAN 5
#define TUNNEL_GENEVE 6

/* include/net/ip.h, include/net/ipv6.h */
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff
#define IP6_MF 0x0001
#define IP6_OFFSET 0xfff8

#define FRAGMENT_NONE 0
#define FRAGMENT_FIRST 1
#define FRAGMENT_LATER 2 /* has no transport header */

#define VLAN_TAGS 2
#define MPLS_LABELS 4
#define EXTENSION_HEADERS 6
/* Far beyond any real header chain; lets the verifier bound packet pointers. */
#define MAX_OFFSET 1024

#define TC_ACT_UNSPEC -1 /* "next": the packet goes on as if we were not there */

struct packet {
	u32 l3; /* offset of the IP header */
	u32 l4; /* offset of the transport header, 0: none here */
	u32 end; /* offset of the end of the IP packet: a short frame is padded beyond */
	u32 vlans; /* outer VID in bits 0-11, inner in 12-23 */
	u16 protocol; /* IPPROTO_* or PROTO_* */
	u8 version; /* 4, 6, or 0 */
	u8 fragment;
	u8 tunnel; /* TUNNEL_* */
	u32 fragment_id;
	u32 source[4]; /* IPv4 as v4-mapped IPv6, network order */
	u32 destination[4];
};

/*
 * A field of the context, loaded anew: clang would keep a pointer to one that it reads twice, which the verifier
 * refuses.
 */
#define SKB_FIELD(skb, field)                   \
	({                                      \
		struct __sk_buff *_skb = (skb); \
		asm volatile("" : "+r"(_skb));  \
		_skb->field;                    \
	})

/*
 * Bytes of the packet: in place if they are in the linear part, else copied to the buffer; NULL if the packet ends
 * before. Never pulls, which would change the skb for later programs.
 */
static __always_inline void *packet_bytes(struct __sk_buff *skb, u32 offset, void *buffer, u32 size)
{
	void *data, *end;

	/* or the compiler uses another copy of the offset than the one that was compared */
	asm volatile("" : "+r"(offset));
	data = (void *)(long)SKB_FIELD(skb, data);
	end = (void *)(long)SKB_FIELD(skb, data_end);
	if (unlikely(offset > MAX_OFFSET))
		return NULL;
	if (unlikely(data + offset + size > end))
		return bpf_skb_load_bytes(skb, offset, buffer, size) < 0 ? NULL : buffer;
	return data + offset;
}

/*
 * Both leave a number as it is, if it fits into the mask, and change what the verifier knows of it.
 *
 * VERIFIER_FORGET: only its highest bits, by two byte swaps. In a loop the verifier otherwise follows each way
 * through one round by itself through all later rounds.
 *
 * VERIFIER_MASK: its highest bits for certain, where ways come together. Kernels without a history of stack accesses
 * (struct bpf_jmp_history_entry, since 6.8) must forget the rest too, by two negations: they otherwise follow each
 * way through the parser to the program's end, and give up at a million instructions.
 */
#define VERIFIER_FORGET(number, mask) \
	asm volatile("%0 = be64 %0; %0 = be64 %0; %0 &= %1" : "+r"(number) : "i"(mask))
#ifdef HAVE_bpf_jmp_history_entry
#define VERIFIER_MASK(number, mask) asm volatile("%0 &= %1" : "+r"(number) : "i"(mask))
#else
#define VERIFIER_MASK(number, mask) asm volatile("%0 = -%0; %0 = -%0; %0 &= %1" : "+r"(number) : "i"(mask))
#endif

static __always_inline void map_v4(u32 *to, u32 address)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = swap32(0x0000ffff);
	to[3] = address;
}

/* A length of 0 is a packet larger than its field can say (BIG TCP, RFC 2675). */
static __always_inline void set_end(struct __sk_buff *skb, struct packet *p, u32 length)
{
	p->end = SKB_FIELD(skb, len);
	if (length && p->l3 + length < p->end)
		p->end = p->l3 + length;
}

static __always_inline void parse_ipv4(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr copy, *ip = packet_bytes(skb, p->l3, &copy, sizeof(copy));
	u16 fragment;
	u8 first;

	if (!ip)
		return;
	first = *(u8 *)ip;
	if (unlikely(first >> 4 != 4 || (first & 15) < 5))
		return;
	p->version = 4;
	p->protocol = ip->protocol;
	map_v4(p->source, ip->saddr);
	map_v4(p->destination, ip->daddr);
	p->l4 = p->l3 + (first & 15) * 4;
	set_end(skb, p, swap16(ip->tot_len));
	fragment = swap16(ip->frag_off);
	if (unlikely(fragment & (IP_MF | IP_OFFSET))) {
		p->fragment = fragment & IP_OFFSET ? FRAGMENT_LATER : FRAGMENT_FIRST;
		p->fragment_id = ip->id;
	}
}

static __always_inline void parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6hdr copy, *ip = packet_bytes(skb, p->l3, &copy, sizeof(copy));
	u8 next;
	int i;

	if (!ip || *(u8 *)ip >> 4 != 6)
		return;
	p->version = 6;
	__builtin_memcpy(p->source, &ip->saddr, 16);
	__builtin_memcpy(p->destination, &ip->daddr, 16);
	next = ip->nexthdr;
	p->protocol = next;
	p->l4 = p->l3 + sizeof(*ip);
	set_end(skb, p, ip->payload_len ? sizeof(*ip) + swap16(ip->payload_len) : 0);
	/* RFC 8200, 4: a chain of extension headers, each of which names the next. */
#pragma unroll
	for (i = 0; i < EXTENSION_HEADERS; i++) {
		u8 extension_copy[8], *extension;

		if (likely(next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_FRAGMENT &&
			   next != IPPROTO_AH && next != IPPROTO_DSTOPTS))
			break;
		extension = packet_bytes(skb, p->l4, extension_copy, 8);
		if (!extension) {
			p->l4 = 0;
			return;
		}
		if (next == IPPROTO_FRAGMENT) {
			u16 offset = extension[2] << 8 | extension[3];

			/* RFC 6946: an atomic fragment is a whole packet */
			if (offset & (IP6_MF | IP6_OFFSET))
				p->fragment = offset & IP6_OFFSET ? FRAGMENT_LATER : FRAGMENT_FIRST;
			__builtin_memcpy(&p->fragment_id, extension + 4, 4);
			p->l4 += 8;
		} else if (next == IPPROTO_AH) {
			p->l4 += (extension[1] + 2) * 4; /* RFC 4302, 2.2: in words of 4, less 2 */
		} else {
			p->l4 += (extension[1] + 1) * 8;
		}
		next = extension[0];
		p->protocol = next;
		/* however it came to this one */
		VERIFIER_FORGET(p->l4, 0x3fff);
		VERIFIER_FORGET(p->fragment, 3);
		if (p->fragment == FRAGMENT_LATER)
			break;
	}
}

/* What a packet is that is no IP, by its EtherType. */
static __always_inline u16 not_ip(u16 ethertype)
{
	switch (swap16(ethertype)) {
	case ETH_P_ARP:
		return PROTO_ARP;
	case ETH_P_LLDP:
		return PROTO_LLDP;
	case ETH_P_PPP_DISC:
	case ETH_P_PPP_SES:
		return PROTO_PPPOE;
	case ETH_P_MPLS_UC:
	case ETH_P_MPLS_MC:
		return PROTO_MPLS;
	}
	return swap16(ethertype) < ETH_P_802_3_MIN ? PROTO_LLC : PROTO_OTHER;
}

/* Behind PPPoE's header, RFC 2516: the EtherType of what it carries, or its own where that is no IP. */
static __always_inline u16 pass_pppoe(struct __sk_buff *skb, struct packet *p, u32 *offset)
{
	u16 copy[4], *header = packet_bytes(skb, *offset, copy, PPPOE_HLEN);

	if (!header || header[0] != swap16(0x1100) || /* version 1, type 1, code 0: a session's data */
	    (header[3] != swap16(PPP_IP) && header[3] != swap16(PPP_IPV6)))
		return swap16(ETH_P_PPP_SES);
	*offset += PPPOE_HLEN;
	p->tunnel = TUNNEL_PPPOE;
	return header[3] == swap16(PPP_IP) ? swap16(ETH_P_IP) : swap16(ETH_P_IPV6);
}

/* Behind the label stack, RFC 3032: the EtherType of the IP below it, by its version (RFC 4928), or MPLS's own. */
static __always_inline u16 pass_mpls(struct __sk_buff *skb, struct packet *p, u32 *offset)
{
	u8 copy[4], *label = copy;
	u32 place = *offset;
	int i;

#pragma unroll
	for (i = 0; i < MPLS_LABELS; i++) {
		label = packet_bytes(skb, place, copy, 4);
		if (!label)
			return swap16(ETH_P_MPLS_UC);
		place += 4;
		if (label[2] & 1) /* the bottom of the stack */
			break;
	}
	if (i == MPLS_LABELS)
		return swap16(ETH_P_MPLS_UC);
	VERIFIER_MASK(place, 0xff);
	label = packet_bytes(skb, place, copy, 1);
	if (!label || (label[0] >> 4 != 4 && label[0] >> 4 != 6))
		return swap16(ETH_P_MPLS_UC);
	*offset = place;
	p->tunnel = TUNNEL_MPLS;
	return label[0] >> 4 == 4 ? swap16(ETH_P_IP) : swap16(ETH_P_IPV6);
}

/* Most packets, with one check of the length: untagged IPv4 in Ethernet, no options, no fragment, header linear. */
static __always_inline bool parse_plain(struct __sk_buff *skb, u32 l2_len, struct packet *p)
{
	void *data = (void *)(long)SKB_FIELD(skb, data), *end = (void *)(long)SKB_FIELD(skb, data_end);
	struct iphdr *ip = data + ETH_HLEN;

	if (l2_len != ETH_HLEN || SKB_FIELD(skb, vlan_present) || (void *)(ip + 1) > end)
		return false;
	if (*(u16 *)((void *)ip - 2) != swap16(ETH_P_IP) || *(u8 *)ip != 0x45 ||
	    ip->frag_off & swap16(0x3fff))
		return false;
	p->version = 4;
	p->protocol = ip->protocol;
	map_v4(p->source, ip->saddr);
	map_v4(p->destination, ip->daddr);
	p->l3 = ETH_HLEN;
	p->l4 = ETH_HLEN + sizeof(*ip);
	set_end(skb, p, swap16(ip->tot_len));
	return true;
}

static __always_inline void parse_any(struct __sk_buff *skb, u32 l2_len, struct packet *p)
{
	u16 type_copy, *type, ethertype = skb->protocol;
	u32 offset = l2_len;
	int i;

	p->protocol = PROTO_BROKEN;
	if (unlikely(SKB_FIELD(skb, vlan_present)))
		p->vlans = SKB_FIELD(skb, vlan_tci) & 0xfff;
	if (l2_len >= 2) {
		/* what the frame says, which a raw socket's skb->protocol need not */
		type = packet_bytes(skb, l2_len - 2, &type_copy, 2);
		if (!type)
			return;
		ethertype = *type;
	}
#pragma unroll
	for (i = 0; i < VLAN_TAGS; i++) {
		u16 tag_copy[2], *tag;

		if (likely(ethertype != swap16(ETH_P_8021Q) && ethertype != swap16(ETH_P_8021AD)))
			break;
		tag = packet_bytes(skb, offset, tag_copy, 4);
		if (!tag)
			return;
		p->vlans |=
			p->vlans ? (swap16(tag[0]) & VLAN_VID_MASK) << 12 : swap16(tag[0]) & VLAN_VID_MASK;
		ethertype = tag[1];
		offset += 4;
	}
	if (unlikely(ethertype == swap16(ETH_P_PPP_SES)))
		ethertype = pass_pppoe(skb, p, &offset);
	else if (unlikely(ethertype == swap16(ETH_P_MPLS_UC) || ethertype == swap16(ETH_P_MPLS_MC)))
		ethertype = pass_mpls(skb, p, &offset);
	VERIFIER_MASK(offset, 0xff);
	p->l3 = offset;
	if (ethertype == swap16(ETH_P_IP))
		parse_ipv4(skb, p);
	else if (ethertype == swap16(ETH_P_IPV6))
		parse_ipv6(skb, p);
	else
		p->protocol = not_ip(ethertype);
}

/* What is known of a packet once its headers are read. All ways come together here before the next branch. */
static __always_inline void parsed(struct packet *p)
{
	VERIFIER_MASK(p->l4, 0x3fff); /* the longest chain of extension headers ends before 12400 */
	VERIFIER_MASK(p->end, 0x7fffffff);
	VERIFIER_MASK(p->vlans, 0xffffff);
	VERIFIER_MASK(p->protocol, 0x1ff);
	VERIFIER_MASK(p->version, 7);
	VERIFIER_MASK(p->fragment, 3);
	VERIFIER_MASK(p->tunnel, 7);
	/* by its own length too short for the header: what follows in the frame is padding */
	if (unlikely(p->fragment == FRAGMENT_LATER) ||
	    p->l4 + (p->protocol == IPPROTO_TCP ? sizeof(struct tcphdr) : sizeof(struct udphdr)) > p->end)
		p->l4 = 0;
	VERIFIER_MASK(p->l4, 0x3fff);
}

static __always_inline void parse_packet(struct __sk_buff *skb, u32 l2_len, struct packet *p)
{
	__builtin_memset(p, 0, sizeof(*p));
	if (!parse_plain(skb, l2_len, p))
		parse_any(skb, l2_len, p);
	parsed(p);
}

#include "size.h"

#endif

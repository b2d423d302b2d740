/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Is this packet one of the flow in focus?  Asked where it is first seen, and only while there is a focus. The key is
 * that of the flow table (flows/flows.c). One read has the IP header and the ports; inner VLAN tags are not told
 * apart, and later fragments and what follows IPv6 extension headers are not recognised.
 */
#ifndef FOCUS_H
#define FOCUS_H

#define FOCUS_MARKED 0x80000000 /* of a mark: never 0, whatever the flow's id */

/*
 * What a slot remembers: whose flow's it was, from all of the flow's id, whose lower bits are the CPU's number. Marks
 * from a previous focus are ignored.
 */
static __always_inline u32 focus_mark(const struct config *c)
{
	return (u32)((c->focus * 0x9E3779B97F4A7C15ULL) >> 32) | FOCUS_MARKED;
}

/* Protocol numbers in network order. */
static __always_inline bool is_vlan(u16 protocol)
{
	return protocol == __builtin_bswap16(ETH_P_8021Q) || protocol == __builtin_bswap16(ETH_P_8021AD);
}

/* Ports first: they alone tell nearly all flows apart. */
static __always_inline bool ports_match(const struct flow_key *key, u32 ports, int direction)
{
	u32 local = key->local_port, remote = key->remote_port;

	return __builtin_bswap32(ports) == (direction == OUT ? local << 16 | remote : remote << 16 | local);
}

static __always_inline bool ends_match(const u32 *source, const u32 *destination, const u32 *local,
				       const u32 *remote, int direction, int from)
{
	const u32 *near = direction == OUT ? source : destination,
		  *far = direction == OUT ? destination : source;
	u32 differ = 0;
	int i;

#pragma unroll
	for (i = from; i < 4; i++)
		differ |= (near[i - from] ^ local[i]) | (far[i - from] ^ remote[i]);
	return !differ;
}

/*
 * The mark for a packet: 0, or focus_mark().  `header` is where the IP header begins, or a VLAN tag before
 * it, as skb->protocol says.
 */
static __always_inline u32 focus_look(const struct config *c, const void *skb, int typed, const void *header,
				      int direction)
{
	const struct flow_key *key = &c->focus_key;
	u32 words[16] = {}, tags[1], ports, length, vid, next, size;
	const u8 *bytes = (const u8 *)words;
	u16 protocol = 0;
	bool first = true, same;
	int i;

	LOAD(typed, protocol, skb, struct sk_buff, protocol);
	vid = lifted_tag(skb, typed) & 0xfff;
	first = !vid;
#pragma unroll
	for (i = 0; i < 2; i++) {
		if (!is_vlan(protocol))
			break;
		if (bpf_probe_read_kernel(tags, sizeof(tags), header))
			return 0;
		if (first)
			vid = __builtin_bswap16((u16)tags[0]) & 0xfff;
		first = false;
		protocol = tags[0] >> 16;
		header += 4;
	}
	/* Behind the shortest packet there is skb_shared_info: this never leaves the skb's memory. */
	if (vid != (key->protocol >> 8 & 0xfff) || bpf_probe_read_kernel(words, sizeof(words), header))
		return 0;
	if (bytes[0] >> 4 == 4) {
		next = bytes[9];
		ports = words[5];
		size = (bytes[0] & 15) * 4;
		if (bytes[6] & 0x1f || bytes[7])
			return 0; /* a later fragment */
		if (size != 20 && bpf_probe_read_kernel(&ports, sizeof(ports), header + size))
			return 0;
		length = words[size == 20 ? 6 : 15];
		if (size != 20 && bpf_probe_read_kernel(&length, sizeof(length), header + size + 4))
			return 0;
	} else if (bytes[0] >> 4 == 6) {
		next = bytes[6];
		ports = words[10];
		length = words[11];
	} else {
		return 0;
	}
	if (next != (key->protocol & 0xff))
		return 0;
	if (next == IPPROTO_ICMP || next == IPPROTO_ICMPV6)
		same = __builtin_bswap16((u16)length) == key->local_port; /* echo: the identifier */
	else if (key->local_port | key->remote_port)
		same = ports_match(key, ports, direction);
	else
		same = true;
	if (!same)
		return 0;
	if (bytes[0] >> 4 == 4)
		same = key->local[2] == __builtin_bswap32(0xffff) &&
		       ends_match(&words[3], &words[4], key->local, key->remote, direction, 3);
	else
		same = ends_match(&words[2], &words[6], key->local, key->remote, direction, 0);
	return same ? focus_mark(c) : 0;
}

#endif

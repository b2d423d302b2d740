/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* From a packet to what of its transport header matters: struct segment, and the ports of its flow. */
#ifndef SEGMENT_H
#define SEGMENT_H

#define TCPOPT_EOL 0
#define TCPOPT_NOP 1
#define TCPOPT_WINDOW 3
#define TCPOPT_SACK 5
#define TCPOPT_TIMESTAMP 8
#define TCPOLEN_WINDOW 3
#define TCPOLEN_TIMESTAMP 10
#define TCPOLEN_SACK(blocks) (2 + 8 * (blocks))
#define TCPOPT_SACK_ALIGNED 0x01010500 /* NOP NOP SACK, the usual layout */
#define TCPOPT_TIMESTAMP_ALIGNED 0x0101080a /* NOP NOP TS, likewise */

#define DNS_PORT 53
#define DNS_QR 0x8000 /* a response; RFC 1035, 4.1.1 */

/* A short header, RFC 9000, 17.3: bits of its first byte. */
#define QUIC_PORT 443
#define QUIC_LONG 0x80
#define QUIC_FIXED 0x40
#define QUIC_SPIN_SHIFT 5

#define ICMP_ECHOREPLY 0
#define ICMP_ECHO 8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

static __always_inline u32 bytes32(const u8 *b)
{
	return (u32)b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3];
}

/*
 * Does the first SACK block say that data came twice?  RFC 2883, 4: it lies below the cumulative ACK, or
 * inside the second block.
 */
static __always_inline void find_dsack(struct segment *s, u32 start, u32 end, bool second, u32 start2,
				       u32 end2)
{
	if (before(start, s->ack) || (second && !before(start, start2) && !before(end2, end)))
		s->dsack = end - start;
}

/* SACK where it stands in the usual layout: by itself, or behind the timestamps. */
static __always_inline void parse_sack(struct __sk_buff *skb, u32 offset, struct segment *s)
{
	u32 copy[3], more_copy[2] = {}, *more = more_copy, *word = packet_bytes(skb, offset, copy, 12);
	u32 kind, start, end;
	bool second;

	if (!word)
		return;
	kind = swap32(word[0]);
	if ((kind & 0xffffff00) != TCPOPT_SACK_ALIGNED || (kind & 0xff) < TCPOLEN_SACK(1))
		return;
	start = swap32(word[1]);
	end = swap32(word[2]);
	second = (kind & 0xff) >= TCPOLEN_SACK(2);
	if (second) {
		more = packet_bytes(skb, offset + 12, more_copy, 8);
		if (!more)
			return;
	}
	find_dsack(s, start, end, second, swap32(more[0]), swap32(more[1]));
}

/*
 * Options in any layout: walk them. RFC 9293, 3.1; RFC 7323, 2.2 and 3.2; RFC 2018, 3.
 *
 * The forty bytes before the header's end are read, whatever the length of the options: a constant size,
 * which all verifiers can follow, and a start that varies, which lets them see the eight steps as alike.
 * There always are forty: the options are 12 bytes at least, and stand behind two headers of 20.
 */
static __always_inline void walk_tcp_options(struct __sk_buff *skb, u32 end, u32 length, struct work *w)
{
	u32 at = 40 - length, stamp_at = 0, sack_at = 0, sack_length = 0;
	struct segment *s = &w->s;
	u8 *found;
	int i;

	if (bpf_skb_load_bytes(skb, end - 40, w->options, 40))
		return;
#pragma unroll
	for (i = 0; i < 8; i++) {
		u8 *option;

		/* however it came to this one */
		VERIFIER_FORGET(at, 0x1ff);
		VERIFIER_FORGET(stamp_at, 63);
		VERIFIER_FORGET(sack_at, 63);
		VERIFIER_FORGET(sack_length, 0xff);
		option = &w->options[at & 63]; /* the mask is for the verifier */
		if (at > 37 || option[0] == TCPOPT_EOL)
			break;
		if (option[0] == TCPOPT_NOP) {
			at++;
			continue;
		}
		if (option[1] < 2)
			break;
		if (option[0] == TCPOPT_TIMESTAMP && option[1] == TCPOLEN_TIMESTAMP && at <= 30)
			stamp_at = at;
		else if (option[0] == TCPOPT_WINDOW && option[1] == TCPOLEN_WINDOW)
			s->window_scale = 1 + (option[2] < TCP_MAX_WSCALE ? option[2] : TCP_MAX_WSCALE);
		else if (option[0] == TCPOPT_SACK && option[1] >= TCPOLEN_SACK(1) && at + option[1] <= 40)
			sack_at = at, sack_length = option[1];
		at += option[1];
	}
	/* a mask that the compiler cannot leave out, as it does where it knows better than the verifier */
	VERIFIER_MASK(stamp_at, 63);
	VERIFIER_MASK(sack_at, 63);
	if (stamp_at) {
		found = &w->options[stamp_at];
		s->tsval = bytes32(found + 2);
		s->tsecr = bytes32(found + 6);
		s->stamped = 1;
	}
	if (sack_length) {
		found = &w->options[sack_at];
		find_dsack(s, bytes32(found + 2), bytes32(found + 6), sack_length >= TCPOLEN_SACK(2),
			   bytes32(found + 10), bytes32(found + 14));
	}
}

static __always_inline void parse_tcp_options(struct __sk_buff *skb, u32 offset, u32 length, struct work *w)
{
	u32 copy[3], *word;

	if (length < 12)
		return;
	word = packet_bytes(skb, offset, copy, 12);
	if (!word)
		return;
	if (!(w->s.flags & TCPHDR_SYN) && word[0] == swap32(TCPOPT_TIMESTAMP_ALIGNED)) {
		w->s.tsval = swap32(word[1]);
		w->s.tsecr = swap32(word[2]);
		w->s.stamped = 1;
		if (length >= 24)
			parse_sack(skb, offset + 12, &w->s);
	} else if (length == 12 && (word[0] & swap32(0xffffff00)) == swap32(TCPOPT_SACK_ALIGNED)) {
		parse_sack(skb, offset, &w->s);
	} else {
		walk_tcp_options(skb, offset + length, length, w);
	}
}

static __always_inline void read_ip_id(struct __sk_buff *skb, struct work *w)
{
	u16 copy, *id;

	if (w->packet.version != 4)
		return;
	id = packet_bytes(skb, w->packet.l3 + offsetof(struct iphdr, id), &copy, 2);
	if (!id)
		return;
	w->s.ip_id = swap16(*id);
	w->s.has_ip_id = 1;
}

static __always_inline u32 parse_tcp(struct __sk_buff *skb, struct work *w, int hook)
{
	u32 copy[5], *word = packet_bytes(skb, w->packet.l4, copy, 20);
	struct segment *s = &w->s;
	u16 source, destination;
	u32 length;

	if (!word)
		return METHOD_NONE;
	source = swap32(word[0]) >> 16;
	destination = swap32(word[0]);
	w->key.local_port = hook == OUT ? source : destination;
	w->key.remote_port = hook == OUT ? destination : source;
	s->seq = swap32(word[1]);
	s->ack = swap32(word[2]);
	length = (swap32(word[3]) >> 28) * 4;
	s->flags = swap32(word[3]) >> 16;
	s->window = swap32(word[3]);
	if (length < 20)
		return METHOD_TIMESTAMP;
	if (w->packet.end > w->packet.l4 + length)
		s->payload = w->packet.end - w->packet.l4 - length;
	if (s->payload)
		read_ip_id(skb, w);
	parse_tcp_options(skb, w->packet.l4 + 20, length - 20, w);
	return METHOD_TIMESTAMP;
}

static __always_inline bool has_ports(u32 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP ||
	       protocol == IPPROTO_UDPLITE || protocol == IPPROTO_DCCP;
}

/* An echo's id stands for both ports; its sequence number can be matched. */
static __always_inline u32 parse_echo(const u16 *half, bool v6, struct flow_key *key, struct segment *s)
{
	u8 type = *(const u8 *)half, request = v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO;

	if (type != request && type != (v6 ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY))
		return METHOD_NONE;
	key->local_port = swap16(half[2]);
	key->remote_port = key->local_port;
	s->seq = half[3];
	s->flags = type == request ? TCPHDR_SYN : TCPHDR_ACK;
	return METHOD_ECHO;
}

/* Ports of UDP and the id of an echo, and what of them can be matched: see struct segment. The method, or none. */
static __always_inline u32 parse_l4_ports(struct __sk_buff *skb, struct work *w, int hook)
{
	u16 copy[4], *half = packet_bytes(skb, w->packet.l4, copy, 8);
	u32 protocol = w->packet.protocol, l7 = w->packet.l4 + 8;
	struct segment *s = &w->s;

	if (!half)
		return METHOD_NONE;
	if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6)
		return parse_echo(half, protocol == IPPROTO_ICMPV6, &w->key, s);
	w->key.local_port = swap16(half[hook == OUT ? 0 : 1]);
	w->key.remote_port = swap16(half[hook == OUT ? 1 : 0]);
	if (protocol != IPPROTO_UDP)
		return METHOD_NONE;
	if (w->key.local_port == DNS_PORT || w->key.remote_port == DNS_PORT) {
		u16 dns_copy[2], *dns = packet_bytes(skb, l7, dns_copy, 4);

		if (!dns)
			return METHOD_NONE;
		s->seq = dns[0];
		s->flags = swap16(dns[1]) & DNS_QR ? TCPHDR_ACK : TCPHDR_SYN;
		return METHOD_DNS;
	}
	if (w->key.local_port == QUIC_PORT || w->key.remote_port == QUIC_PORT) {
		u8 first_copy, *first = packet_bytes(skb, l7, &first_copy, 1);

		if (!first || (*first & (QUIC_LONG | QUIC_FIXED)) != QUIC_FIXED)
			return METHOD_NONE;
		s->seq = *first >> QUIC_SPIN_SHIFT & 1;
		return METHOD_SPIN;
	}
	return METHOD_NONE;
}

/* The transport header: ports into the key, and by which method this packet may be timed. */
static __always_inline u32 parse_transport(struct __sk_buff *skb, struct work *w, int hook)
{
	u32 protocol = w->packet.protocol;

	if (!w->packet.l4)
		return METHOD_NONE;
	if (protocol == IPPROTO_TCP)
		return parse_tcp(skb, w, hook);
	if (has_ports(protocol) || protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6)
		return parse_l4_ports(skb, w, hook);
	return METHOD_NONE;
}

#endif

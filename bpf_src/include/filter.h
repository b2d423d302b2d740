/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The packet filter: C text that nettop/bpf/filter.py makes of libpcap's classic BPF, asked before anything is
 * stored.
 *
 * It is chosen at compile time: filter_generated.h on the include path and FILTER defined; without, everything is
 * accepted. The generated function reads through filter_load() and its siblings alone, which show the frame as a
 * capture file has it, with a lifted VLAN tag back in place: from the skb at TC, or with FILTER_SK_BUFF from kernel
 * memory.
 */
#ifndef FILTER_H
#define FILTER_H

#define TAG_OFFSET 12 /* behind the two addresses */

#define PACKET_OUTGOING 4 /* what a packet socket sees as the type of packets sent */

/* Keeps comparisons apart, as in classic BPF: clang would gather a row of them and keep all outcomes on the stack. */
#define FILTER_STEP(a)                      \
	({                                  \
		asm volatile("" : "+r"(a)); \
		(a);                        \
	})

#define FILTER_NUMBER(bytes, size) \
	((size) == 1 ? *(u8 *)(bytes) : (size) == 2 ? swap16(*(u16 *)(bytes)) : swap32(*(u32 *)(bytes)))

#ifndef FILTER_SK_BUFF

/* All but the pointer is constant where the filter is inlined: no packet pays for another's tag or direction. */
struct filter_packet {
	struct __sk_buff *skb;
	int direction; /* IN, OUT */
	bool tagged; /* a tag was lifted out */
};

/* A number of 1, 2 or 4 bytes in network order, at an offset of what is in the skb. */
static __always_inline bool filter_read(const struct filter_packet *packet, u64 offset, u32 size, u64 *value)
{
	struct __sk_buff *skb = packet->skb;
	void *data, *end, *bytes;
	u32 copy;

	/*
	 * Each read loads the packet's bounds anew: kept in registers, with a range that differs by the path taken,
	 * they would make every path through a filter one of its own for the verifier.
	 */
	asm volatile("" : "+r"(skb));
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	/* What is compared must be the register that is used, not a sum that is as large. */
	if (!__builtin_constant_p(offset))
		asm volatile("" : "+r"(offset));
	if (offset <= MAX_OFFSET) {
		bytes = data + offset;
		if (!__builtin_constant_p(offset))
			asm volatile("" : "+r"(bytes));
		if (bytes + size <= end) {
			*value = FILTER_NUMBER(bytes, size);
			return true;
		}
	}
	if (offset > 0x7fffffff || bpf_skb_load_bytes(skb, offset, &copy, size) < 0)
		return false;
	*value = FILTER_NUMBER(&copy, size);
	return true;
}

static __always_inline u32 filter_tag(const struct filter_packet *packet)
{
	return (u32)swap16((u16)packet->skb->vlan_proto) << 16 | (packet->skb->vlan_tci & 0xffff);
}

static __always_inline u32 filter_length(const struct filter_packet *packet)
{
	return packet->skb->len + (packet->tagged ? VLAN_HLEN : 0);
}

/* PACKET_*: a packet socket is told so of what is sent; the skb itself does not know. */
static __always_inline u32 filter_packet_type(const struct filter_packet *packet)
{
	return packet->direction == OUT ? PACKET_OUTGOING : packet->skb->pkt_type;
}

static __always_inline u32 filter_ifindex(const struct filter_packet *packet)
{
	return packet->skb->ifindex;
}

#else

#define FILTER_HEAD 64
/* Behind an Ethernet header everything is aligned so, as reads of the stack have to be. */
#define FILTER_SHIFT 2

/*
 * The same for programs that have the kernel's own sk_buff: every read is a call. Only the linear part is read, which
 * holds all headers; what lies in pages is as if cut off.
 */
struct filter_packet {
	const void *frame; /* where the link header is, or would be */
	u32 readable; /* bytes from there on */
	u32 length; /* of the frame on the wire */
	u32 tag; /* EtherType and TCI, 0: none was lifted out */
	u32 ifindex;
	int direction; /* IN, OUT */
	u16 protocol; /* skb->protocol, for where there is no link header yet */
	bool linked; /* there is one */
	bool tagged;
	u8 shift[FILTER_SHIFT];
	u8 head[FILTER_HEAD]; /* the first bytes of the frame: a call for all that most filters look at */
};

static __always_inline u64 filter_head(const u8 *bytes, u32 size, bool aligned)
{
	if (aligned || size == 1)
		return FILTER_NUMBER(bytes, size);
	if (size == 2)
		return bytes[0] << 8 | bytes[1];
	return (u32)bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
}

static __always_inline bool filter_read(const struct filter_packet *packet, u64 offset, u32 size, u64 *value)
{
	u32 copy = 0;

	if (offset + size > packet->readable)
		return false;
	if (!packet->linked && offset < TAG_OFFSET + 2) {
		/* not written yet: its EtherType is known, its addresses are not */
		if (offset != TAG_OFFSET || size != 2)
			return false;
		*value = swap16(packet->protocol);
		return true;
	}
	/* What is compared must be the register that is used, not a sum that is as large. */
	if (!__builtin_constant_p(offset))
		asm volatile("" : "+r"(offset));
	if (offset <= FILTER_HEAD - size) {
		*value = filter_head(packet->head + offset, size,
				     __builtin_constant_p(offset) && !((offset + FILTER_SHIFT) % size));
		return true;
	}
	if (bpf_probe_read_kernel(&copy, size, packet->frame + offset))
		return false;
	*value = FILTER_NUMBER(&copy, size);
	return true;
}

static __always_inline u32 filter_tag(const struct filter_packet *packet)
{
	return packet->tag;
}

static __always_inline u32 filter_length(const struct filter_packet *packet)
{
	return packet->length + (packet->tagged ? VLAN_HLEN : 0);
}

static __always_inline u32 filter_packet_type(const struct filter_packet *packet)
{
	return packet->direction == OUT ? PACKET_OUTGOING : 0;
}

static __always_inline u32 filter_ifindex(const struct filter_packet *packet)
{
	return packet->ifindex;
}

#endif

/* A number of the frame with its tag; false where the frame ends before. */
static __always_inline bool filter_load(const struct filter_packet *packet, u64 offset, u32 size, u64 *value)
{
	u64 tag, result = 0;
	u32 i;

	if (!packet->tagged || offset + size <= TAG_OFFSET)
		return filter_read(packet, offset, size, value);
	if (offset >= TAG_OFFSET + VLAN_HLEN)
		return filter_read(packet, offset - VLAN_HLEN, size, value);
	/* of the tag, or across an end of it */
	tag = filter_tag(packet);
#pragma unroll
	for (i = 0; i < size; i++) {
		u64 at = offset + i, byte;

		if (at >= TAG_OFFSET && at < TAG_OFFSET + VLAN_HLEN)
			byte = tag >> 8 * (TAG_OFFSET + VLAN_HLEN - 1 - at);
		else if (!filter_read(packet, at < TAG_OFFSET ? at : at - VLAN_HLEN, 1, &byte))
			return false;
		result = result << 8 | (byte & 0xff);
	}
	*value = result;
	return true;
}

#ifdef FILTER
#include "filter_generated.h"
#else
static __always_inline u32 filter_program(const struct filter_packet *packet)
{
	return 1;
}
#endif

#ifndef FILTER_SK_BUFF

/* A frame without a link header has no place for a tag. */
#define FILTER_ACCEPTS(program, buffer, l2_len, way)                                                     \
	((l2_len) && (buffer)->vlan_present                                                              \
		 ? program(&(struct filter_packet){.skb = (buffer), .direction = (way), .tagged = true}) \
		 : program(&(struct filter_packet){.skb = (buffer), .direction = (way), .tagged = false}))

/* Whether the packet is one of those that the user asked for. */
static __always_inline bool filter_accepts(struct __sk_buff *skb, u32 l2_len, int direction)
{
	return FILTER_ACCEPTS(filter_program, skb, l2_len, direction);
}

#else

/* Where skb->data points to at a hook. */
#define AT_LINK 0 /* the link header: net_dev_queue and later */
#define AT_NETWORK 1 /* the IP header, the link header before it: netif_receive_skb and later */
#define AT_NETWORK_ALONE 2 /* the IP header, the link header yet to come: sending, above the device */

/* Needs load.h. Without FILTER it does nothing and costs nothing. */
static __always_inline void filter_look(struct filter_packet *packet, const void *skb, int typed, u32 l2_len,
					int direction, int where)
{
#ifdef FILTER
	u32 behind = where == AT_LINK ? 0 : l2_len, length = 0, paged = 0;
	const void *data = 0;

	LOAD(typed, data, skb, struct sk_buff, data);
	LOAD(typed, length, skb, struct sk_buff, len);
	LOAD(typed, paged, skb, struct sk_buff, data_len);
	LOAD(typed, packet->protocol, skb, struct sk_buff, protocol);
	packet->frame = data - behind;
	packet->readable = length - paged + behind;
	packet->length = length + behind;
	packet->direction = direction;
	packet->linked = !l2_len || where != AT_NETWORK_ALONE;
	packet->tag = l2_len ? lifted_tag(skb, typed) : 0;
	packet->tagged = packet->tag != 0;
	/* Behind the shortest packet there is skb_shared_info: this never leaves the skb's memory. */
	bpf_probe_read_kernel(packet->head, sizeof(packet->head), packet->frame);
#endif
}

#endif
#endif

/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What sockets and TCP segments are asked. */
#ifndef SOCK_H
#define SOCK_H

/* The socket as TCP sees it: `sock` if the verifier need not know, NULL if it is none of TCP's. */
static __always_inline void *tcp_of(void *sock, int typed)
{
	return typed ? bpf_skc_to_tcp_sock(sock) : sock;
}

/* Is this socket of the watched interface's namespace? */
static __always_inline bool sock_watched(const struct config *c, const void *sock, int typed)
{
	void *net = 0;
	u32 inode = 0;

	LOAD(typed, net, sock, struct sock, __sk_common.skc_net.net);
	LOAD(typed, inode, net, struct net, ns.inum);
	return inode == c->netns;
}

/* Is this a socket of IPv4 or IPv6, and of which type? */
static __always_inline bool sock_is_ip(const void *sock, int typed, u16 *type)
{
	u16 family = 0;

	LOAD(typed, family, sock, struct sock, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return false;
	LOAD(typed, *type, sock, struct sock, sk_type);
	return true;
}

/* Does the application read from another socket?  MPTCP moves what its subflows get. */
static __always_inline bool is_subflow(const void *tcp, int typed)
{
	u8 multipath = 0;

#ifdef HAVE_is_mptcp
	LOAD(typed, multipath, tcp, struct tcp_sock, is_mptcp);
#endif
	return multipath;
}

/* Datagrams in the queue of a socket: those before the reader's last splice are in a queue of UDP's own. */
static __always_inline u32 udp_queued(const void *sock, int typed)
{
	u32 queue = 0, reader_queue = 0;

	LOAD(typed, queue, sock, struct sock, sk_receive_queue.qlen);
	READ_FIELD(reader_queue, sock, struct udp_sock, reader_queue.qlen);
	return queue + reader_queue;
}

/*
 * How many packets make up a segment from the socket's backlog: tcp_add_backlog joins later ones to it, while its IP
 * header still has the length of the first. What GRO has merged is one packet; the joined ones are taken to be as
 * large as the first.
 */
static __always_inline u32 backlog_packets(const void *sock, const void *skb, int typed, u32 data)
{
	u16 transport = 0, network = 0, size = 0, segments = 0;
	u32 owned = 0, length = 0, end = 0, own, others;
	const void *head = 0;
	u8 ip[6];

	LOAD(typed, owned, sock, struct sock, sk_lock.owned);
	if (!owned)
		return 1;
	LOAD(typed, head, skb, struct sk_buff, head);
	LOAD(typed, length, skb, struct sk_buff, len);
	LOAD(typed, transport, skb, struct sk_buff, transport_header);
	LOAD(typed, network, skb, struct sk_buff, network_header);
	if (bpf_probe_read_kernel(ip, sizeof(ip), head + network))
		return 1;
	own = ip[0] >> 4 == 4 ? (u32)ip[2] << 8 | ip[3] : ((u32)ip[4] << 8 | ip[5]) + 40;
	length += transport - network;
	if (length <= own || length - own >= data)
		return 1;
	own = data - (length - own);
	LOAD(typed, end, skb, struct sk_buff, end);
	READ_FIELD(size, head + end, struct skb_shared_info, gso_size);
	READ_FIELD(segments, head + end, struct skb_shared_info, gso_segs);
	own = size ? (own + size - 1) / size : 1;
	others = segments > own ? segments - own : 1;
	return 1 + (own > 1 ? (others + own - 1) / own : others);
}

/* What a segment has in the stream, by its header. */
struct segment {
	u32 first;
	u32 length; /* of its data */
	bool opens; /* SYN */
	bool resets;
};

/* Of an skb whose data begins with its IP header. */
static __always_inline bool segment_read(const void *skb, int typed, struct segment *segment)
{
	u16 transport = 0, network = 0;
	const void *head = 0;
	struct tcphdr tcp;
	u32 length = 0;

	LOAD(typed, head, skb, struct sk_buff, head);
	LOAD(typed, length, skb, struct sk_buff, len);
	LOAD(typed, transport, skb, struct sk_buff, transport_header);
	LOAD(typed, network, skb, struct sk_buff, network_header);
	if (bpf_probe_read_kernel(&tcp, sizeof(tcp), head + transport))
		return false;
	segment->first = __builtin_bswap32(tcp.seq);
	segment->length = length - (u16)(transport - network) - tcp.doff * 4;
	segment->opens = tcp.syn;
	segment->resets = tcp.rst;
	return true;
}

#endif

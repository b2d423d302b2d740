/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Received packets, by socket: from TCP or UDP to the reader. TCP merges skbs in its queues, so a packet is known by
 * where in the stream it ends (rx_queue.h). TCP's hooks run under the socket's lock.
 */
#ifndef RX_SOCK_H
#define RX_SOCK_H

enum segment_order {
	SEGMENT_KNOWN, /* all of it is there already */
	SEGMENT_NEXT,
	SEGMENT_LATER, /* behind a gap */
};

/* The order of a segment that does not continue the last one, or follows one whose reader was not told. */
static __always_inline enum segment_order order_of(struct rx_sock *r, void *sock, int typed, u32 first,
						   u32 end)
{
	void *tcp = tcp_of(sock, typed);
	u32 received = 0, copied = 0;

	if (!tcp)
		return SEGMENT_KNOWN;
	LOAD(typed, received, tcp, struct tcp_sock, rcv_nxt);
	LOAD(typed, copied, tcp, struct tcp_sock, copied_seq);
	if (r->pending.at && before(received, r->pending.end))
		drop(RX_SOCKET, r->pending.mark); /* TCP did not take it: a wrong checksum, no memory */
	else if (r->pending.at)
		rx_hold(r, &r->pending);
	r->pending.at = 0;
	if (!before(received, end))
		return SEGMENT_KNOWN;
	if (before(received, first))
		return SEGMENT_LATER;
	if (received == copied)
		fifo_clear(&r->queue,
			   received); /* nothing is unread: what is left there is another connection's */
	return SEGMENT_NEXT;
}

/* The path up to the socket; `transport` 0: none, or recorded already. */
static __always_inline void rx_path_of(struct paths *p, const struct slot *s, u64 transport, u32 packets)
{
	add_path(p, RX_STACK, s->stage_ns[0], packets);
	add_path(p, RX_IP, s->stage_ns[1], packets);
	add_path(p, RX_LOCAL, s->stage_ns[2], packets);
	add_path(p, RX_TRANSPORT, transport, packets & -(u32)hist_any(transport));
}

static __always_inline void rx_path(const struct slot *s, u64 transport, u32 packets, struct mark mark)
{
	rx_path_of(paths_of(0), s, transport, packets);
	if (in_focus(mark))
		rx_path_of(paths_of(1), s, transport, packets);
}

/* TCP has a segment with data, or is about to (`early`): remember it until its reader is told. */
static __always_inline void rx_enqueue(const struct config *c, void *sock, int typed, const struct arrival *a,
				       const struct slot *s, u64 transport, bool early)
{
	u32 focused = a->packets & -(u32)hist_any(a->mark.focus);
	bool fresh = false;
	struct rx_sock *r;
	enum segment_order order = SEGMENT_NEXT;

	r = rx_sock_for(sock, typed, a->first, a->at, &fresh);
	if (!r) {
		rx_miss(a->packets, a->mark, focused);
		return;
	}
	/* Where the last one ended this one begins: in order, and no need to ask the socket. */
	if (early || fresh || r->pending.at || r->pending.end != a->first)
		order = order_of(r, sock, typed, a->first, a->end);
	if (order == SEGMENT_KNOWN)
		return;
	if (early)
		r->early_seen = 1;
	if (a->mark.focus)
		r->focus = a->mark.focus;
	if (c->flags & NO_READY) {
		/* Nothing will say when the reader is told: it waits from here on, behind a gap as well. */
		if (!fifo_push(&r->queue, a->at, a->lag, a->end, a->packets, focused, a->mark.trace))
			miss_many(RX_APPLICATION, a->packets, a->mark, focused);
		r->pending.end = a->end;
	} else if (order == SEGMENT_LATER || early) {
		if (!rx_hold(r, a))
			return;
	} else {
		r->pending = *a;
	}
	if (a->lag)
		rx_path(s, transport, a->packets, a->mark);
}

/* TCP has the packet: tcp_rcv_established, out of the backlog if the socket was in use. */
static __always_inline int rx_tcp(void *sock, const void *skb, int typed)
{
	u64 key = AS_NUMBER(skb), now, ns = 0, start = 0;
	struct mark mark = {};
	const u32 cb = offsetof(struct sk_buff, cb);
	struct slot *s = rx_slot(key);
	u32 first = 0, end = 0, index = 0, packets;
	struct arrival arrival;
	struct config *c;
	u8 flags = 0;

	c = settings();
	if (!c || !s || (s->skb != key && partial_tracking(c)))
		return 0;
	if (slot_excluded(s, key)) {
		s->skb = 0;
		return 0;
	}
	LOAD_AT(typed, first, skb, cb + offsetof(struct tcp_skb_cb, seq));
	LOAD_AT(typed, end, skb, cb + offsetof(struct tcp_skb_cb, end_seq));
	if (s->skb != key || !sock_watched(c, sock, typed)) {
		LOAD(typed, index, skb, struct sk_buff, skb_iif);
		if (index != c->ifindex || !sock_watched(c, sock, typed))
			return 0;
		miss(RX_TRANSPORT, NO_MARK);
		if (first == end)
			return 0;
		now = bpf_ktime_get_ns();
	} else {
		s->skb = 0;
		now = bpf_ktime_get_ns();
		ns = since(s->at, now);
		mark = s->mark;
		record(RX_TRANSPORT, ns, mark);
		if (first == end)
			return 0;
		start = s->start;
	}
	LOAD_AT(typed, flags, skb, cb + offsetof(struct tcp_skb_cb, tcp_flags));
	end -= flags & TCPHDR_FIN; /* which is no data: a reader has read all before it gets there */
	if (first == end)
		return 0;
	packets = backlog_packets(sock, skb, typed, end - first);
	if (packets > 1)
		miss_many(RX_TRANSPORT, packets - 1, mark, packets - 1);
	/* As in group_portion(): a packet that is not known and one without a mark go on together. */
	VERIFIER_UNKNOWN(mark.focus, now);
	VERIFIER_UNKNOWN(mark.trace, now);
	arrival = (struct arrival){now, mark, lag_of(start, now), first, end, packets};
	rx_enqueue(c, sock, typed, &arrival, s, ns, false);
	return 0;
}

/*
 * The socket is owned by its user, and the packet goes to the backlog: only what is written here alone may be
 * touched.
 */
static __always_inline void rx_push_early(void *sock, const struct arrival *a, const struct slot *s)
{
	struct rx_sock *r;
	u32 received = 0;
	bool fresh = false;

	LOAD(UNTYPED, received, sock, struct tcp_sock, rcv_nxt);
	if (!before(received, a->end))
		return;
	r = rx_sock_for(sock, UNTYPED, a->first, a->at, &fresh);
	if (!r || r->early_in - *(volatile u32 *)&r->early_out >= EARLY_SLOTS) {
		rx_miss(1, a->mark, 1);
		return;
	}
	*rx_early_at(r, r->early_in) = *a;
	if (a->mark.focus)
		r->focus = a->mark.focus;
	r->early_seen = 1;
	r->early_in++;
	if (a->lag)
		rx_path(s, 0, 1, a->mark);
}

/*
 * Local delivery has a packet for a connection whose own side is closed: tcp_probe will not see it, and behind a gap
 * nothing will. Early demux has found the socket.
 */
static __always_inline int rx_early(const struct config *c, const void *skb, int typed)
{
	struct segment segment;
	struct arrival arrival;
	u32 first, end, owned = 0;
	struct rx_current *d;
	void *sock = 0;
	struct slot *s;
	u8 state = 0;
	u64 key;

	LOAD(typed, sock, skb, struct sk_buff, sk);
	if (!sock)
		return 0;
	LOAD(typed, state, sock, struct sock, __sk_common.skc_state);
	if (state != TCP_FIN_WAIT1 && state != TCP_FIN_WAIT2)
		return 0;
	sock = 0;
	READ_FIELD(sock, skb, struct sk_buff, sk);
	key = AS_NUMBER(skb);
	s = rx_slot(key);
	d = rx_current_here();
	if (!s || !d || s->skb != key || c->flags & NO_READY || !segment_read(skb, typed, &segment))
		return 0;
	first = segment.first;
	end = first + segment.length;
	if (!before(first, end) || segment.opens || segment.resets)
		return 0;
	arrival = (struct arrival){s->at, s->mark, lag_of(s->start, s->at), first, end, 1};
	s->skb = 0;
	d->skb = 0;
	LOAD(UNTYPED, owned, sock, struct sock, sk_lock.owned);
	if (owned)
		rx_push_early(sock, &arrival, s);
	else
		rx_enqueue(c, sock, UNTYPED, &arrival, s, 0, true);
	return 0;
}

/*
 * A listener's user is told while a SYN is delivered: TCP Fast Open, whose data is in the new socket's queue. Which
 * socket that is cannot be known here, so its reading is missed.
 */
static __always_inline void rx_fast_open(const struct rx_current *current, const void *sock, int typed,
					 u64 now)
{
	const u32 cb = offsetof(struct sk_buff, cb);
	const void *skb = (const void *)current->skb;
	struct slot *s = rx_slot(current->skb);
	u32 first = 0, end = 0;
	void *net = 0;
	u8 flags = 0;

	LOAD(typed, net, sock, struct sock, __sk_common.skc_net.net);
	if (!s || !current->skb || s->skb != current->skb || current->net != AS_NUMBER(net) ||
	    !(s->passed & PASSED_LOCAL))
		return;
	LOAD_AT(UNTYPED, first, skb, cb + offsetof(struct tcp_skb_cb, seq));
	LOAD_AT(UNTYPED, end, skb, cb + offsetof(struct tcp_skb_cb, end_seq));
	LOAD_AT(UNTYPED, flags, skb, cb + offsetof(struct tcp_skb_cb, tcp_flags));
	if (!(flags & TCPHDR_SYN) || end - first < 2)
		return;
	s->skb = 0;
	record(RX_SOCKET, since(s->at, now), s->mark);
	miss(RX_APPLICATION, s->mark);
}

/*
 * A reader is told of data that no hook has seen: it came with the handshake's last ACK, or for a half-closed
 * connection without early demux. The packet is the one that this CPU delivers; or, where the socket's user has just
 * released it and TCP works off the backlog, the newest of the receive queue, if it was not merged. False where it is
 * not known, or there is none (a FIN alone).
 */
static __always_inline bool rx_unprobed(const struct rx_sock *r, void *sock, const void *tcp, int typed,
					u32 received, u64 now, struct batch *b, struct mark *mark)
{
	struct rx_current *current = rx_current_here();
	u32 owned = 0, index = 0, known = 0;
	void *newest = 0, *net = 0;
	struct config *c = settings();
	struct slot *s;
	u8 state = 0;
	u64 key;

	LOAD(typed, state, sock, struct sock, __sk_common.skc_state);
	if (r)
		known = r->pending.end;
	else
		LOAD(typed, known, tcp, struct tcp_sock, copied_seq);
	if (!c || !current)
		return false;
	if (state == TCP_LISTEN)
		rx_fast_open(current, sock, typed, now);
	if (state == TCP_LISTEN || !before(known, received))
		return false;
	LOAD(typed, owned, sock, struct sock, sk_lock.owned);
	LOAD(typed, net, sock, struct sock, __sk_common.skc_net.net);
	if (owned) {
		LOAD(typed, newest, sock, struct sock, sk_receive_queue.prev);
		key = AS_NUMBER(newest);
	} else {
		key = current->net == AS_NUMBER(net) ? current->skb : 0;
	}
	s = rx_slot(key);
	if (!s)
		return false;
	if (key && s->skb == key && s->passed & PASSED_LOCAL) {
		s->skb = 0;
		*mark = s->mark;
		if (s->start)
			rx_path(s, 0, 1, s->mark);
		record_path(RX_SOCKET, since(s->at, now), 1, s->start, s->mark, 1);
		batch_add(b, now, lag_of(s->start, now), now, 1, s->mark.focus != 0, received);
		return true;
	}
	if (state == TCP_ESTABLISHED || (r && r->early_seen) || partial_tracking(c) ||
	    !sock_watched(c, sock, typed))
		return false;
	LOAD(typed, index, sock, struct sock, sk_rx_dst_ifindex);
	if (owned ? index == c->ifindex : key != 0)
		rx_miss(1, NO_MARK, 1);
	return false;
}

/* The reader of a TCP socket is told. */
static __always_inline int rx_ready_stream(void *sock, int typed)
{
	struct rx_sock *r = rx_sock_of(sock, typed);
	u32 received = 0, lag = 0, more, focused;
	struct batch b = {};
	bool fresh = false;
	u8 shutdown = 0;
	struct mark mark = {};
	u64 now;
	void *tcp;

	now = bpf_ktime_get_ns();
	tcp = tcp_of(sock, typed);
	if (!tcp)
		return 0;
	if (r && r->pending.at) {
		mark = r->pending.mark;
		received = r->pending.end;
		more = r->pending.packets;
		focused = more & -(u32)hist_any(mark.focus);
		record_path(RX_SOCKET, since(r->pending.at, now), more, r->pending.lag, mark, focused);
		batch_add(&b, r->pending.at, r->pending.lag, now, more, focused, received);
		r->pending.at = 0;
	}
	if (!b.packets || r->runs || r->early_in != r->early_out) {
		LOAD(typed, received, tcp, struct tcp_sock, rcv_nxt);
		LOAD(typed, shutdown, sock, struct sock, sk_shutdown);
		received -= shutdown & RCV_SHUTDOWN; /* the FIN */
	}
	if (r && r->early_in != r->early_out) {
		rx_take_early(r, received, now, &b);
		mark.focus = b.focused ? r->focus : 0;
		mark.trace = 0;
	}
	if (!b.packets && !rx_unprobed(r, sock, tcp, typed, received, now, &b, &mark) && (!r || !r->runs))
		return 0;
	b.trace = mark.trace;
	if (!r) {
		r = rx_sock_for(sock, typed, received - 1, now, &fresh);
		if (!r) {
			miss(RX_APPLICATION, mark);
			return 0;
		}
	}
	r->pending.end = received;
	if (r->runs) {
		/* As in group_portion(): the loop is the same whatever came before it. */
		VERIFIER_UNKNOWN(b.packets, now);
		VERIFIER_UNKNOWN(b.focused, now);
		VERIFIER_UNKNOWN(b.end, now);
		VERIFIER_UNKNOWN(b.unknown, now);
		VERIFIER_UNKNOWN(b.trace, now);
		VERIFIER_UNKNOWN(b.lags, now);
		VERIFIER_UNKNOWN(mark.focus, now);
		VERIFIER_UNKNOWN(mark.trace, now);
		VERIFIER_UNKNOWN(received, now);
		rx_release(r, received, now, &b);
	}
	if (!b.packets)
		return 0;
	if (mark.focus)
		r->focus = mark.focus;
	if (!b.unknown)
		lag = lag_of(1, b.lags / b.packets + 1);
	more = b.packets;
	if (is_subflow(tcp, typed) || !fifo_push(&r->queue, now, lag, b.end, more, b.focused, b.trace))
		miss_many(RX_APPLICATION, more, (struct mark){.focus = r->focus}, b.focused);
	return 0;
}

/* The reader of any other socket is told: UDP, ping, raw. */
static __always_inline int rx_ready_datagram(void *sock, int typed)
{
	struct rx_sock *r = rx_sock_of(sock, typed);
	u64 now, start = 0, net = 0;
	struct mark mark = {};
	struct rx_current *d = rx_current_here();
	struct config *c;
	struct slot *s;
	bool fresh = false;
	void *pointer = 0;

	if (r)
		r->in++;
	if (!d || !d->skb)
		return 0;
	LOAD(typed, pointer, sock, struct sock, __sk_common.skc_net.net);
	net = AS_NUMBER(pointer);
	if (d->net != net)
		return 0;
	now = bpf_ktime_get_ns();
	s = rx_slot(d->skb);
	if (s && s->skb == d->skb) {
		mark = s->mark;
		if (s->start) {
			start = s->start;
			rx_path(s, 0, 1, mark);
			s->skb = 0;
		}
	}
	record_path(RX_SOCKET, since(d->at, now), 1, start, mark, 1);
	r = rx_sock_for(sock, typed, 0, now, &fresh);
	if (!r) {
		miss(RX_APPLICATION, mark);
		return 0;
	}
	if (mark.focus)
		r->focus = mark.focus;
	/* Counting reads and arrivals may go astray (two CPUs at once, an error queue): count again now and then. */
	c = settings();
	if (fresh || !(r->in & 63) || (c && partial_tracking(c)))
		r->in = r->out + udp_queued(sock, typed);
	if (!fifo_push(&r->queue, now, lag_of(start, now), r->in, 1, mark.focus != 0, mark.trace))
		miss(RX_APPLICATION, mark);
	return 0;
}

static __always_inline int rx_ready(void *sock, int typed)
{
	u16 type = 0;

	if (!sock_is_ip(sock, typed, &type))
		return 0;
	return type == SOCK_STREAM ? rx_ready_stream(sock, typed) : rx_ready_datagram(sock, typed);
}

/* UDP has the packet, where there is a function to watch. */
static __always_inline int rx_udp(const void *skb, int typed)
{
	u64 key = AS_NUMBER(skb), now;
	struct slot *s = rx_slot(key);
	struct rx_current *d = rx_current_here();

	if (!s || !d || s->skb != key || d->skb != key || s->state == SLOT_EXCLUDED)
		return 0;
	now = bpf_ktime_get_ns();
	record_path(RX_TRANSPORT, since(s->at, now), 1, s->start, s->mark, 1);
	s->at = now;
	d->at = now;
	return 0;
}

/* The application has copied from a TCP socket. */
static __always_inline int rx_read_stream(void *sock, int typed)
{
	struct rx_sock *r = rx_sock_of(sock, typed);
	u32 copied = 0;
	void *tcp;

	if (!r || fifo_empty(&r->queue))
		return 0;
	tcp = tcp_of(sock, typed);
	if (!tcp)
		return 0;
	LOAD(typed, copied, tcp, struct tcp_sock, copied_seq);
	rx_consume_upto(r, copied);
	return 0;
}

/* One recvmsg of any socket is over: `length` is what it returned. */
static __always_inline int rx_read_datagram(void *sock, int typed, int length, int flags)
{
	struct rx_sock *r;
	u16 type = 0;

	if (length < 0 || flags & (MSG_PEEK | MSG_ERRQUEUE))
		return 0;
	if (!sock_is_ip(sock, typed, &type) || type == SOCK_STREAM)
		return 0;
	r = rx_sock_of(sock, typed);
	if (!r)
		return 0;
	r->out++;
	rx_consume_upto(r, r->out);
	return 0;
}

#endif

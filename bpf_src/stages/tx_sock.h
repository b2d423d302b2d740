/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Sent packets, by socket: when the first byte of a segment was written. TCP cuts what is written into segments of
 * its own, so a socket's entry remembers where in the stream each write began, and when. 64 entries hold many more
 * writes: the fuller it is, the more share one, and times between its first and last are interpolated. TCP's hooks
 * run under the socket's lock.
 */
#ifndef TX_SOCK_H
#define TX_SOCK_H

#define WRITE_SLOTS 64
#define SEGMENT_MAX (1 << 20) /* bytes: more is none of TCP's */

/* Writes that came one after the other. */
struct writes {
	u64 at; /* when the first one began */
	u32 position; /* in the stream, where it began */
	u32 reach; /* from there to where the last one began */
	u32 span; /* the same in time, in units of 1024 ns */
	u32 count;
};

/* A socket that sends. */
struct tx_sock {
	u64 owner; /* as a fifo's */
	u64 cookie;
	u64 used;
	u64 sending; /* UDP: when the call in hand began */
	u32 head; /* next to write */
	u32 tail; /* the oldest of which something may be unsent */
	u32 sent_end; /* highest sequence number that went out */
	u16 sent; /* one did */
	u16 next; /* all before the newest write is sent, and this is at once: what comes out next begins with it */
	u32 refused; /* packets that the filter did not want, since the last that it did */
	u32 spare[3];
	struct writes slots[WRITE_SLOTS];
};

_Static_assert(!(sizeof(struct tx_sock) % 64), "cache lines");

BPF_F_TABLE("array", int, struct tx_sock, tx_socks, SOCKETS, WHOLE_PAGES);

static __always_inline struct writes *writes_at(struct tx_sock *w, u32 index)
{
	return &w->slots[index & (WRITE_SLOTS - 1)];
}

/* All is sent: begin with the first slot again, which is likely to be in the cache. */
static __always_inline void tx_restart(struct tx_sock *w)
{
	w->head = 0;
	w->tail = 0;
}

static __always_inline struct tx_sock *tx_sock_of(const void *sock, int typed)
{
	u64 id = AS_NUMBER(sock);
	int index = hash_address(id, SOCKET_BITS);
	struct tx_sock *w = tx_socks.lookup(&index);

	return w && w->owner == id && w->cookie == sock_cookie(sock, typed) ? w : 0;
}

/* Is something of an entry still to be sent? */
static __always_inline bool tx_waits(struct tx_sock *w)
{
	return w->head != w->tail &&
	       (!w->sent || before(w->sent_end, writes_at(w, w->head - 1)->position + 1));
}

static __always_inline struct tx_sock *tx_sock_for(void *sock, int typed, u64 now)
{
	u64 id = AS_NUMBER(sock);
	int index = hash_address(id, SOCKET_BITS);
	struct tx_sock *w = tx_socks.lookup(&index);

	if (!w)
		return 0;
	if (w->owner != id || w->cookie != sock_cookie(sock, typed)) {
		if (w->owner && w->owner != id && tx_waits(w) && since(w->used, now) < SOCK_IDLE_NS)
			return 0;
		w->owner = id;
		w->cookie = sock_cookie_made(sock, typed);
		w->sent = 0;
		w->sending = 0;
		w->refused = 0;
		tx_restart(w);
	}
	w->used = now;
	return w;
}

static __always_inline void tx_write_push(struct tx_sock *w, u64 now, u32 position)
{
	u32 used = w->head - w->tail;
	struct writes *newest = writes_at(w, w->head - 1);

	if (used >= WRITE_SLOTS / 2 &&
	    (used >= WRITE_SLOTS || newest->count < fifo_group_max(WRITE_SLOTS + 1 - used))) {
		newest->reach = position - newest->position;
		newest->span = since(newest->at, now) >> SPAN_SHIFT;
		newest->count++;
		return;
	}
	newest = writes_at(w, w->head);
	newest->at = now;
	newest->position = position;
	newest->reach = 0;
	newest->span = 0;
	newest->count = 1;
	w->head++;
}

/* An application writes to a TCP socket; the kernel asks once for each skb that it fills. */
static __always_inline int tx_write(void *sock, int typed)
{
	struct tx_sock *w = tx_sock_of(sock, typed);
	void *route = 0, *dev = 0, *tcp;
	u32 written = 0, sent = 0, out = 0, window = 0;
	struct config *c;
	struct writes *newest;
	u64 now;

	if (!w) {
		c = settings();
		if (!c)
			return 0;
		LOAD(typed, route, sock, struct sock, sk_dst_cache);
		LOAD(typed, dev, route, struct dst_entry, dev);
		if (!watched(c, dev, typed))
			return 0;
	} else if (w->refused >= REFUSED_IN_A_ROW) {
		return 0;
	}
	tcp = tcp_of(sock, typed);
	if (!tcp)
		return 0;
	LOAD(typed, written, tcp, struct tcp_sock, write_seq);
	LOAD(typed, sent, tcp, struct tcp_sock, snd_nxt);
	now = bpf_ktime_get_ns();
	if (!w)
		w = tx_sock_for(sock, typed, now);
	if (!w)
		return 0;
	w->used = now;
	if (w->head != w->tail) {
		newest = writes_at(w, w->head - 1);
		if (sent == written)
			tx_restart(w);
		else if (newest->position + newest->reach == written)
			return 0; /* the same place again, after a wait for memory */
	}
	w->next = 0;
	if (sent == written) {
		/* with a full window something may be sent again before it */
		LOAD(typed, out, tcp, struct tcp_sock, packets_out);
		LOAD(typed, window, tcp, struct tcp_sock, snd_cwnd);
		w->next = out < window;
	}
	tx_write_push(w, now, written);
	return 0;
}

/* udp_sendmsg begins. */
static __always_inline int tx_write_datagram(void *sock, int typed)
{
	u64 now = bpf_ktime_get_ns();
	struct tx_sock *w = tx_sock_for(sock, typed, now);

	if (w)
		w->sending = now;
	return 0;
}

/* When this place in the stream was written, at `at`. */
static __always_inline enum write_status tx_write_time(struct tx_sock *w, u32 first, u64 *at)
{
	struct writes *oldest;
	u32 offset;
	int i;

	for (i = 0; i < WRITE_SLOTS; i++) {
		if (w->head - w->tail < 2 || before(first, writes_at(w, w->tail + 1)->position))
			break;
		w->tail++;
	}
	oldest = writes_at(w, w->tail);
	if (w->head == w->tail || before(first, oldest->position))
		return WRITE_MISSED;
	offset = first - oldest->position;
	*at = oldest->at;
	if (!oldest->reach)
		return WRITE_SEEN;
	if (offset > oldest->reach)
		offset = oldest->reach;
	*at += ((u64)oldest->span << SPAN_SHIFT) * offset / oldest->reach;
	return WRITE_SEEN;
}

/* From here on the socket's writes are written down again: nothing was meanwhile. */
static __always_inline void tx_resume(struct tx_sock *w)
{
	if (w->refused >= REFUSED_IN_A_ROW) {
		tx_restart(w);
		w->next = 0;
	}
	w->refused = 0;
}

/* When the first byte of a segment was written. */
static __always_inline enum write_status tx_segment_written(const struct config *c, struct tx_sock *w,
							    const void *skb, u64 now, int typed, u64 *at)
{
	struct segment segment;
	u32 length = 0, first, end;
	struct writes *oldest;

	/* TCP keeps its data outside of the skb's head. */
	LOAD(typed, length, skb, struct sk_buff, data_len);
	if (!length)
		return WRITE_NONE;
	if (w->refused >= REFUSED_IN_A_ROW) {
		if (!FILTERING) /* else tx_sock_filtered() does, once the filter has been asked */
			tx_resume(w);
		return WRITE_MISSED;
	}
	oldest = writes_at(w, w->tail);
	if (w->next && !c->sample_shift && since(oldest->at, now) < WRITE_WINDOW_NS) {
		w->next = 0;
		w->sent = 1;
		w->sent_end = oldest->position + length;
		*at = oldest->at;
		return WRITE_SEEN;
	}
	w->next = 0;
	if (!segment_read(skb, typed, &segment))
		return WRITE_NONE;
	first = segment.first;
	length = segment.length;
	end = first + length;
	if (!length || length > SEGMENT_MAX || (w->sent && !before(w->sent_end, end)))
		return WRITE_NONE;
	w->sent = 1;
	w->sent_end = end;
	return tx_write_time(w, first, at);
}

/* When what is sent was written, by any socket: `at`, which stays as it is if that is not known. */
static __always_inline enum write_status tx_written(const struct config *c, const void *skb, u64 now,
						    int typed, u64 *at)
{
	struct tx_sock *w;
	void *sock = 0;
	u32 data = 0;
	u16 type = 0;

	LOAD(typed, sock, skb, struct sk_buff, sk);
	if (!sock)
		return WRITE_NONE;
	w = tx_sock_of(sock, typed);
	if (w && w->sending) {
		*at = w->sending;
		w->sending = 0;
		return WRITE_SEEN;
	}
	if (w)
		return tx_segment_written(c, w, skb, now, typed, at);
	LOAD(typed, data, skb, struct sk_buff, data_len);
	if (data && !(c->flags & NO_WRITE) && sock_is_ip(sock, typed, &type) && type == SOCK_STREAM)
		return WRITE_MISSED;
	return WRITE_NONE;
}

/*
 * What the filter says of a packet that this socket sends: while it wants none of them, its writes are not recorded.
 */
static __always_inline void tx_sock_filtered(const void *skb, int typed, bool wanted)
{
	struct tx_sock *w;
	void *sock = 0;

	if (!FILTERING)
		return;
	LOAD(typed, sock, skb, struct sk_buff, sk);
	if (!sock)
		return;
	w = tx_sock_of(sock, typed);
	if (!w)
		return;
	if (!wanted) {
		w->next = 0;
		if (w->refused < REFUSED_IN_A_ROW)
			w->refused++;
		return;
	}
	tx_resume(w);
}

#endif

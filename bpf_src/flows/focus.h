/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The flow in focus: what its local socket says and how long each end takes to answer (struct focused), and each of
 * its RTT samples (struct event).
 */
#ifndef FOCUS_H
#define FOCUS_H

#define FOCUS_REFRESH_NS (8 * NSEC_PER_MSEC) /* how often the socket is read */
#define FOCUS_PAUSE_NS (10 * NSEC_PER_MSEC) /* after which data is no more of the same answer */

BPF_ARRAY(focused, struct focused, 1);
RINGBUF(events, struct event, 16); /* pages: 1400 samples, of at most 120 a second */

/* What the socket in focus says of itself: struct tcp_sock, include/linux/tcp.h. */
static __always_inline void focus_read_socket(struct focused *f, const struct flow_key *key, u64 now)
{
	struct sock_common common;
	u64 sk = f->socket;
	u32 sent = 0, acknowledged = 0, written = 0, received = 0, copied = 0;

	/* another socket may be at this address by now */
	if (!sk || READ(common, sk) || common.skc_num != key->local_port ||
	    swap16(common.skc_dport) != key->remote_port)
		return;
	/* neither a request nor what is left of a connection in TIME_WAIT */
	if (common.skc_state == TCP_NEW_SYN_RECV || common.skc_state == TCP_LISTEN ||
	    common.skc_state == TCP_CLOSE || common.skc_state == TCP_TIME_WAIT)
		return;
	READ_FIELD(sent, sk, struct tcp_sock, snd_nxt);
	READ_FIELD(acknowledged, sk, struct tcp_sock, snd_una);
	READ_FIELD(written, sk, struct tcp_sock, write_seq);
	READ_FIELD(received, sk, struct tcp_sock, rcv_nxt);
	READ_FIELD(copied, sk, struct tcp_sock, copied_seq);
	READ_FIELD(f->cwnd, sk, struct tcp_sock, snd_cwnd);
	READ_FIELD(f->ssthresh, sk, struct tcp_sock, snd_ssthresh);
	READ_FIELD(f->mss, sk, struct tcp_sock, mss_cache);
	READ_FIELD(f->send_window, sk, struct tcp_sock, snd_wnd);
	READ_FIELD(f->receive_window, sk, struct tcp_sock, rcv_wnd);
	READ_FIELD(f->chrono_start, sk, struct tcp_sock, chrono_start);
	READ_FIELD(f->chrono, sk, struct tcp_sock, chrono_stat);
	READ_FIELD(f->srtt, sk, struct tcp_sock, srtt_us);
	f->srtt >>= 3; /* the kernel keeps eight times the value, of this and of rcv_rtt */
	READ_FIELD(f->rtt_min, sk, struct tcp_sock, rtt_min.s[0].v);
	READ_FIELD(f->rcv_rtt, sk, struct tcp_sock, rcv_rtt_est.rtt_us);
	f->rcv_rtt >>= 3;
	READ_FIELD(f->total_retrans, sk, struct tcp_sock, total_retrans);
	READ_FIELD(f->dsack_dups, sk, struct tcp_sock, dsack_dups);
	f->in_flight = sent - acknowledged;
	f->unsent = before(sent, written) ? written - sent : 0;
	f->unread = before(copied, received) ? received - copied : 0;
	f->jiffies = bpf_jiffies64();
	f->time = now;
}

/* A TCP segment of the flow in focus. */
static __always_inline void focus_update(struct __sk_buff *skb, int hook, const struct flow *flow,
					 const struct work *w)
{
	int zero = 0, direction = w->direction & 1;
	u32 same = 1 + direction, other = 2 - direction;
	struct focused *f = focused.lookup(&zero);
	u64 now = bpf_ktime_get_ns();

	if (!f)
		return;
	/* or what `last` is compared with is what the verifier of 6.12 then knows, wrongly, of an index */
	VERIFIER_MASK(same, 3);
	VERIFIER_MASK(other, 3);
	if (f->id != flow->id) {
		__builtin_memset(f, 0, sizeof(*f));
		f->id = flow->id;
	}
	if (!w->s.window && !(w->s.flags & TCPHDR_RST))
		f->zero_windows[direction]++;
	if (w->s.payload) {
		f->data[direction]++;
		if (f->last == other) {
			f->answers[direction]++;
			f->answer_ns[direction] += now - f->spoke[!direction];
		} else if (f->last == same && now - f->spoke[direction] > FOCUS_PAUSE_NS) {
			f->unasked[direction]++;
		}
		f->spoke[direction] = now;
		f->last = same;
	}
	if (hook == OUT)
		f->socket = (u64)skb->sk;
	else if (now - f->time > FOCUS_REFRESH_NS)
		focus_read_socket(f, &w->key, now);
}

/* A round trip of the flow in focus, which ended now. */
static __always_inline void focus_sample(const struct flow *flow, const struct work *w, u32 leg, u64 now,
					 u64 rtt_ns, struct counters *n)
{
	struct event e = {.time = now,
			  .id = flow->id,
			  .rtt = rtt_ns,
			  .leg = leg,
			  .method = w->sample.method,
			  .payload = w->s.payload,
			  .tsval = w->s.stamped ? w->s.tsval : 0};

	if (events.ringbuf_output(&e, sizeof(e), NO_WAKEUP))
		n->lost_events++;
}

#endif

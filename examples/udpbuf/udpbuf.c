// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* How full the receive buffers of UDP sockets are, whenever a datagram comes in, is read, or finds no room. */
#include "own.h"

struct buffer { /* the columns of probe.py */
	u32 used, size, peak, pid;
	u64 drops;
	u16 port;
	char process[16];
};

CONFIG_MAP;
BPF_TABLE("lru_hash", u64, struct buffer, sockets, 4096);

static __always_inline int look(void *sock, int refused, bool reading)
{
	struct buffer fresh = {}, *b;
	int zero = 0;
	u64 cookie;

	if (!socket_here(config.lookup(&zero), sock) || !socket_of(sock, IPPROTO_UDP))
		return 0;
	cookie = bpf_get_socket_cookie(sock);
	b = sockets.lookup_or_try_init(&cookie, &fresh);
	if (!b)
		return 0;
	FIELD(b->port, sock, sock, __sk_common.skc_num);
	FIELD(b->size, sock, sock, sk_rcvbuf);
	FIELD(b->used, sock, sock, sk_backlog.rmem_alloc);
	b->peak = max(b->peak, b->used);
	ADD(b->drops, refused);
	if (reading) { /* in the process that reads */
		b->pid = bpf_get_current_pid_tgid() >> 32;
		bpf_get_current_comm(b->process, sizeof(b->process));
	}
	return 0;
}

int sk_data_ready__tp_btf(struct bpf_raw_tracepoint_args *ctx)
{
	return look(TYPED_ARGUMENT(ctx, 0), 0, false);
}

int sock_recv_length__tp_btf(struct bpf_raw_tracepoint_args *ctx)
{
	return look(TYPED_ARGUMENT(ctx, 0), 0, true);
}

int udp_fail_queue_rcv_skb__tp_btf(struct bpf_raw_tracepoint_args *ctx)
{
	return look(TYPED_ARGUMENT(ctx, 1), 1, false);
}

/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The processes that own the flows' sockets. */
#ifndef OWNER_H
#define OWNER_H

#define SOCKET_SLOTS 8192
#define OWNER_REFRESH_JIFFIES 64 /* how often a busy socket is looked at again */

BPF_TABLE("lru_hash", struct flow_key, struct owner, owners, 16384);
BPF_ARRAY(sockets, struct socket_slot, SOCKET_SLOTS);

/*
 * The process behind a socket, seen when it reads or writes, in its own context. Written when the socket or the
 * process is new, and now and then for the kernel's RTT.
 */
static __always_inline int owner_write(u64 sk, u32 pid)
{
	struct sock_common common;
	struct flow_key key = {};
	struct owner owner = {};
	u16 protocol = 0;
	u32 netns = 0;

	if (READ(common, sk))
		return 0;
	if (common.skc_family == AF_INET) {
		map_v4(key.local, common.skc_rcv_saddr);
		map_v4(key.remote, common.skc_daddr);
	} else if (common.skc_family == AF_INET6) {
		__builtin_memcpy(key.local, &common.skc_v6_rcv_saddr, 16);
		__builtin_memcpy(key.remote, &common.skc_v6_daddr, 16);
	} else {
		return 0;
	}
	/* not connected or not bound: zeros, in one form for both families */
	if (!common.skc_rcv_saddr && common.skc_family == AF_INET)
		key.local[2] = 0;
	if (!common.skc_daddr && common.skc_family == AF_INET)
		key.remote[2] = 0;
	key.local_port = common.skc_num;
	key.remote_port = swap16(common.skc_dport);
	READ_FIELD(protocol, sk, struct sock, sk_protocol);
	READ_FIELD(netns, common.skc_net.net, struct net, ns.inum);
	/* the same addresses and ports may be in use in another namespace */
	key.protocol = (protocol & 0xff) | netns << 8;
	owner.pid = pid;
	bpf_get_current_comm(owner.comm, sizeof(owner.comm));
	if (protocol == IPPROTO_TCP) {
		READ_FIELD(owner.srtt_us, sk, struct tcp_sock, srtt_us);
		owner.srtt_us >>= 3; /* the kernel keeps eight times the value */
		READ_FIELD(owner.cwnd, sk, struct tcp_sock, snd_cwnd);
	}
	owners.update(&key, &owner);
	return 0;
}

/*
 * A slot for each socket keeps the usual call short. The ports tell a connection from an earlier one at the same
 * address.
 */
static __always_inline int owner_refresh(u64 sk, u32 ports)
{
	int index = mix(sk, 0) >> 32 & (SOCKET_SLOTS - 1);
	struct socket_slot *slot = sockets.lookup(&index);
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	u64 jiffies = bpf_jiffies64();

	if (!slot || !sk)
		return 0;
	if (slot->sk == sk && slot->pid == pid && slot->ports == ports &&
	    jiffies - slot->jiffies < OWNER_REFRESH_JIFFIES)
		return 0;
	slot->sk = sk;
	slot->pid = pid;
	slot->ports = ports;
	slot->jiffies = jiffies;
	return owner_write(sk, pid);
}

static __always_inline int owner_refresh_untyped(u64 sk)
{
	u32 ports = 0;

	READ_FIELD(ports, sk, struct sock_common, skc_portpair);
	return owner_refresh(sk, ports);
}

/* Typed raw tracepoint: the ports are one load, where a call of the helper costs as much as everything else. */
int flows_owner_typed(struct bpf_raw_tracepoint_args *ctx)
{
	u32 ports = 0;
	void *sock;
	u64 sk;

	ARGUMENT(sock, ctx, 0);
	LOAD(TYPED, ports, sock, struct sock, __sk_common.skc_portpair);
	sk = (u64)sock;
	asm volatile("%0 = -%0; %0 = -%0" : "+r"(sk)); /* as below */
	return owner_refresh(sk, ports);
}

/* Raw tracepoint or fentry: the socket is the first argument. */
int flows_owner(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0];

	/* to fentry's verifier a socket, with which no arithmetic is allowed, until it has been negated */
	asm volatile("%0 = -%0; %0 = -%0" : "+r"(sk));
	return owner_refresh_untyped(sk);
}

int flows_owner_kprobe(struct pt_regs *ctx)
{
	return owner_refresh_untyped(PT_REGS_PARM1(ctx));
}

#endif

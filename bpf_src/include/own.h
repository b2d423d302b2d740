/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * For the programs of users' own probes, docs/probes/own.md: what most of them need, for typed arguments (tp_btf and
 * fentry). What is wanted of another kind of program is in load.h.
 */
#ifndef OWN_H
#define OWN_H

#include "nettop.h"
#include "parse.h"
#include "load.h"

/* An argument of a tracepoint or function, with the type that the verifier knows. */
#define TYPED_ARGUMENT(ctx, number)               \
	({                                        \
		void *_argument;                  \
		ARGUMENT(_argument, ctx, number); \
		_argument;                        \
	})

/* A field of what a typed pointer points to; `to` has the field's size. */
#define FIELD(to, pointer, type, field) LOAD(TYPED, to, pointer, struct type, field)

#define max(a, b) ((a) > (b) ? (a) : (b))

/* Is it time to count, and is this socket in the namespace of the watched interface? */
static __always_inline bool socket_here(const struct config *c, const void *sock)
{
	u32 inode = 0;
	void *net;

	if (!c || !c->ifindex)
		return false;
	FIELD(net, sock, sock, __sk_common.skc_net.net);
	FIELD(inode, net, net, ns.inum);
	return inode == c->netns;
}

/* Is it a socket of this protocol: IPPROTO_TCP, IPPROTO_UDP? */
static __always_inline bool socket_of(const void *sock, u16 wanted)
{
	u16 protocol = 0;

	FIELD(protocol, sock, sock, sk_protocol);
	return protocol == wanted;
}

#endif

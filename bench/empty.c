// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* What a TC program costs that does nothing: the base that bench/ subtracts. */
int empty_ingress(struct __sk_buff *skb)
{
	return -1;
}

int empty_egress(struct __sk_buff *skb)
{
	return -1;
}

/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The hook table: which kernel hook calls which body, by which mechanisms in order of preference.  The programs come
 * of it by the macros of hook.h, the loader's list by nettop/bpf/hook_table.py.  A new hook is a line here and a
 * body.
 */
#ifndef HOOKS_H
#define HOOKS_H

#include "hook.h"

/* clang-format off */

/* What a driver calls to hand a packet over. */
EITHER(driver, NO_DRIVER, stages_driver, rx_driver(POINTER(0), typed),
       "netif_rx napi_gro_receive_entry napi_gro_frags_entry netif_receive_skb_entry netif_receive_skb_list_entry",
       "__netif_rx|netif_rx netif_receive_skb")
/* (napi, skb) */
FALLBACK(driver, NO_DRIVER, stages_driver_gro, rx_driver(POINTER(1), typed), "napi_gro_receive|gro_receive_skb")

TRACEPOINT(netif_receive_skb, 0, stages_stack, rx_stack(POINTER(0), typed), "netif_receive_skb")
/* Compilers change its signature, so fentry does not know it. */
KPROBE(netif_receive_skb, 0, stages_stack_kprobe, rx_stack_indirect(POINTER(0), typed),
       "__netif_receive_skb_core|__netif_receive_skb_core.constprop.0|__netif_receive_skb_core.isra.0")

NETFILTER(ip_rcv, 0, stages_ip, rx_ip_netfilter, "pre_routing")
FALLBACK(ip_rcv, 0, stages_ip_function, rx_ip_function(POINTER(0), typed),
         "ip_rcv_core|ip_rcv_core.isra.0 ip6_rcv_core|ip6_rcv_core.isra.0|ipv6_rcv")

NETFILTER(ip_local_deliver, NO_LOCAL, stages_local, rx_local_netfilter, "local_in")
FALLBACK(ip_local_deliver, NO_LOCAL, stages_local_function, rx_local_function(POINTER(0), typed),
         "ip_local_deliver ip6_input")

NETFILTER(ip_forward, 0, stages_forward, ip_forwarded_netfilter, "forward")
FALLBACK(ip_forward, 0, stages_forward_function, ip_forwarded_function(POINTER(0), typed), "ip_forward ip6_forward")

/* Both (sock, skb). */
EITHER(tcp_rcv_established, 0, stages_tcp, rx_tcp(POINTER(0), POINTER(1), typed), "tcp_probe", "tcp_rcv_established")

/* (sock, skb) */
FUNCTION(udp_queue_rcv_skb, 0, stages_udp, rx_udp(POINTER(1), typed), "udp_queue_rcv_skb udpv6_queue_rcv_skb")

EITHER(sk_data_ready, NO_READY, stages_ready, rx_ready(POINTER(0), typed), "sk_data_ready", "sock_def_readable")

EITHER(tcp_rcv_space_adjust, 0, stages_read_stream, rx_read_stream(POINTER(0), typed),
       "tcp_rcv_space_adjust", "tcp_rcv_space_adjust")

/* (sock, length or error, flags) */
TRACEPOINT(sock_recv_length, 0, stages_read_datagram, rx_read_datagram(POINTER(0), typed, INT(1), INT(2)),
           "sock_recv_length")
/* (sock, skb, length; negative when it only peeked) */
FUNCTION(sock_recv_length, 0, stages_consume_udp, rx_read_datagram(POINTER(0), typed, INT(2), 0), "skb_consume_udp")

EITHER(tcp_sendmsg_locked, NO_WRITE, stages_write, tx_write(POINTER(0), typed),
       "tcp_sendmsg_locked", "tcp_sendmsg_locked")

FUNCTION(udp_sendmsg, 0, stages_write_datagram, tx_write_datagram(POINTER(0), typed), "udp_sendmsg udpv6_sendmsg")

NETFILTER(ip_local_out, 0, stages_out, tx_ip_netfilter, "local_out")
/* (net, sock, skb) */
FALLBACK(ip_local_out, 0, stages_out_function, tx_ip_function(POINTER(2), typed), "__ip_local_out __ip6_local_out")

EITHER(net_dev_queue, 0, stages_queue, tx_queue(POINTER(0), typed), "net_dev_queue", "__dev_queue_xmit")

/* Both (skb, device). */
EITHER(net_dev_start_xmit, 0, stages_xmit, tx_driver(POINTER(0), POINTER(1), typed),
       "net_dev_start_xmit", "dev_hard_start_xmit")

/* (skb, result, device, length) */
TRACEPOINT(net_dev_xmit, 0, stages_sent, tx_sent(POINTER(0), POINTER(2), INT(1), typed), "net_dev_xmit")

TRACEPOINT(consume_skb, 0, stages_consumed, skb_consumed(POINTER(0), typed), "consume_skb")

/* (skb, place, reason) */
TRACEPOINT(kfree_skb, 0, stages_dropped, skb_dropped(POINTER(0), INT(2), typed), "kfree_skb")

/* clang-format on */

#endif

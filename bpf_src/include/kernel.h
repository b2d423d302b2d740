/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Numbers by the kernel's own names: macros, and members of enums without a name, which BTF does not have or cannot
 * be asked for.  include/uapi/linux/ if_arp.h, if_ether.h, if_packet.h, in.h, netfilter.h; include/linux/ net.h,
 * socket.h; include/net/ sock.h, tcp.h, tcp_states.h.
 */
#ifndef KERNEL_H
#define KERNEL_H

#define ETH_HLEN 14
#define ETH_P_802_3_MIN 0x0600 /* below: a length, and 802.2 LLC behind it (spanning tree, among others) */
#define ETH_P_IP 0x0800
#define ETH_P_ARP 0x0806
#define ETH_P_TEB 0x6558 /* Ethernet */
#define ETH_P_8021Q 0x8100
#define ETH_P_IPV6 0x86dd
#define ETH_P_MPLS_UC 0x8847
#define ETH_P_MPLS_MC 0x8848
#define ETH_P_PPP_DISC 0x8863
#define ETH_P_PPP_SES 0x8864
#define ETH_P_8021AD 0x88a8
#define ETH_P_LLDP 0x88cc

#define PACKET_BROADCAST 1
#define PACKET_MULTICAST 2

#define IPPROTO_HOPOPTS 0
#define IPPROTO_ICMP 1
#define IPPROTO_IPIP 4
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_DCCP 33
#define IPPROTO_IPV6 41
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_GRE 47
#define IPPROTO_AH 51
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60
#define IPPROTO_SCTP 132
#define IPPROTO_UDPLITE 136

#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17

#define SOCK_STREAM 1

#define TCP_ESTABLISHED 1
#define TCP_FIN_WAIT1 4
#define TCP_FIN_WAIT2 5
#define TCP_TIME_WAIT 6
#define TCP_CLOSE 7
#define TCP_LISTEN 10
#define TCP_NEW_SYN_RECV 12
#define TCP_MAX_WSCALE 14 /* RFC 7323, 2.3 */

#define TCPHDR_FIN 1
#define TCPHDR_SYN 2
#define TCPHDR_RST 4
#define TCPHDR_ACK 16

#define RCV_SHUTDOWN 1

#define MSG_PEEK 2
#define MSG_ERRQUEUE 0x2000

#define NF_ACCEPT 1

#endif

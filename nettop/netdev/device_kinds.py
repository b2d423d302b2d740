"""How each kind of device counts its packets, and where that cannot be followed: one table.

A GSO or GRO packet is one skb in the stack and many packets on the wire, and every driver counts at a point of its own:
before or after GRO has merged and the stack has cut, with or without the link header.  The kinds are those of rtnetlink
(IFLA_INFO_KIND); each row is from the driver's source, named beside it, and is tested in tests/live/devices.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from nettop.bpf.config import Counting

_SKB, _WIRE, _BARE, _NAPI = Counting.SKB, Counting.WIRE, Counting.BARE, Counting.NAPI
_STACK, _TAG, _MERGED, _CELLS = Counting.STACK, Counting.TAG, Counting.MERGED, Counting.CELLS


@dataclass(frozen=True)
class Kind:
    """How a kind of device counts what it receives and sends; ``differs`` says why that is not what is shown."""

    received: Counting
    sent: Counting
    differs: str = ""


_L2_TUNNEL = Kind(_CELLS | _MERGED | _BARE | _TAG, _STACK | _BARE)
_GRETAP = Kind(_CELLS | _MERGED | _TAG, _STACK | _BARE)
_L3_TUNNEL = Kind(_CELLS | _MERGED, _STACK)
_PLAIN = Kind(_SKB, _STACK)

LOOPBACK = Kind(_BARE, _STACK | _BARE)  # drivers/net/loopback.c: after eth_type_trans
CARD = Kind(_MERGED | _TAG, _WIRE | _TAG)  # before GRO; the hardware cuts what is large
# Drivers of virtual machines: they hand a large packet to the host whole, and count it as one.
PARAVIRTUAL = Kind(_MERGED | _TAG, _STACK | _TAG)
PARAVIRTUAL_DRIVERS = ("virtio_net", "xen_netfront", "vif", "hv_netvsc")
OTHER = _PLAIN

KINDS = {
    # drivers/net/veth.c: where NAPI receives, that counts
    "veth": Kind(_NAPI | _MERGED | _BARE, _STACK | _NAPI),
    "tun": Kind(_NAPI | _MERGED | _TAG, _STACK | _TAG),  # drivers/net/tun.c, tun_get_user and tun_put_user
    "bridge": Kind(_BARE, _STACK),  # net/bridge: br_pass_frame_up after the header is off, br_dev_xmit before
    "macvlan": _PLAIN,  # drivers/net/macvlan.c: len + ETH_HLEN of what the device below has merged
    "macvtap": _PLAIN,
    "ipvlan": _PLAIN,  # drivers/net/ipvlan/ipvlan_core.c: the same
    "ipvtap": _PLAIN,
    "vlan": Kind(_BARE | _TAG, _STACK),  # net/8021q: vlan_do_receive, vlan_dev_hard_start_xmit
    "team": Kind(_BARE, _STACK),  # drivers/net/team: team_handle_frame, team_xmit
    "ifb": Kind(Counting.SENT, _STACK),  # drivers/net/ifb.c: what is redirected to it is received and sent
    "dummy": _PLAIN,
    # include/net/ip_tunnels.h, iptunnel_xmit_stats: what is sent, from the inner network header on
    "vxlan": _L2_TUNNEL,  # drivers/net/vxlan: vxlan_rcv, before gro_cells_receive
    "geneve": _L2_TUNNEL,
    "gretap": _GRETAP,  # net/ipv4/ip_tunnel.c: ip_tunnel_rcv, before eth_type_trans
    "ip6gretap": _GRETAP,
    "erspan": _GRETAP,
    "gre": _L3_TUNNEL,
    "ip6gre": _L3_TUNNEL,
    "ipip": _L3_TUNNEL,
    "ip6tnl": _L3_TUNNEL,
    "sit": _PLAIN,  # net/ipv6/sit.c: netif_rx, no GRO behind it
    "wireguard": Kind(
        _MERGED,
        _WIRE,
        "wireguard counts the encrypted messages: 32 bytes and padding more for each packet, and its handshakes and "
        "keep-alives",
    ),
    "ppp": Kind(_SKB, _STACK, "ppp counts its control frames (LCP) too"),
    # drivers/net/bonding: the sums of its ports, so the kind of those decides
    "bond": Kind(
        _SKB,
        _STACK,
        "a bond counts what its ports count: LACP, and frames that come by ports that are not in use, among them",
    ),
}

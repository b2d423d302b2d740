"""Devices of every kind, traffic through them with each offload on and off, and whether nettop counts as they do.

Runs on this machine and in a guest (tests/vm/guest/test_devices.py); what the kernel lacks is said.  A `Device` is what
is watched, its far end, and the interfaces whose offloads are switched while nettop runs.
"""

import array
import base64
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import platform
import re
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import observe
from lab import Lab, Link, oracle, shell
from lab.errors import LabError
from lab.namespace import Endpoint, Namespace
from lab.program import REPOSITORY, command
from observe import Observed, Watch, watching

TCP_BYTES = 1_000_003
UDP_SENDS, UDP_SEGMENTS, UDP_SIZE = 17, 13, 1009
# A polled veth has room for 256 packets (drivers/net/veth.c): what it refuses nettop has counted, and it has not.
WINDOW = 256 << 10
_SOL_UDP, _UDP_SEGMENT = 17, 103

# What is switched, on the watched interface, on its far end and on what lies below them.
ON = {"tso": "on", "gso": "on", "gro": "on", "tx-udp-segmentation": "on"}
SETTINGS: dict[str, dict[str, str]] = {
    "as made": {},
    "all on": ON,
    "gro off": {**ON, "gro": "off"},
    "tso off": {**ON, "tso": "off"},
    "tso and gro off": {**ON, "tso": "off", "gro": "off"},
    "udp segmentation off": {**ON, "tx-udp-segmentation": "off"},
    "tunnel segmentation off": {**ON, "tx-udp_tnl-segmentation": "off", "tx-gre-segmentation": "off"},
    "rx-gro-list": {**ON, "tso": "off", "tx-udp-segmentation": "off", "rx-gro-list": "on"},
    "rx-gro-list, tso on": {**ON, "rx-gro-list": "on"},
    "rx-udp-gro-forwarding": {**ON, "rx-gro-list": "off", "rx-udp-gro-forwarding": "on"},
    "checksums off": {**ON, "rx-udp-gro-forwarding": "off", "tx": "off"},
    "scatter-gather off": {**ON, "tx": "on", "sg": "off"},
    "all off": {"sg": "on", **dict.fromkeys(ON, "off")},
}


@dataclass(frozen=True)
class Device:
    """What is watched (`near` sends and receives there), its far end, and what is switched beside them."""

    kind: str
    watched: Endpoint
    near: Endpoint
    far: Endpoint
    below: tuple[Endpoint, ...] = ()

    def switch(self, features: dict[str, str]) -> None:
        """Set offloads everywhere; what a device does not have stays as it is."""
        words = [word for pair in features.items() for word in pair]
        for end in dict.fromkeys((self.watched, self.near, self.far, *self.below)):
            if not words or end.ns.run("ethtool", "-K", end.name, *words, check=False).returncode == 0:
                continue
            for name, value in features.items():
                end.ns.run("ethtool", "-K", end.name, name, value, check=False)


# --- traffic ------------------------------------------------------------------------------------------------


def _tcp(sender: Endpoint, receiver: Endpoint, size: int) -> None:
    listener = receiver.ns.call(lambda: socket.create_server((receiver.v4, 0)))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW // 2)  # socket(7): it is doubled
    received = 0

    def read() -> None:
        nonlocal received
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            while data := connection.recv(1 << 20):
                received += len(data)

    reader = threading.Thread(target=read, daemon=True)  # where nobody connects it waits for ever
    reader.start()
    address = listener.getsockname()
    with listener, sender.ns.call(lambda: socket.create_connection(address, 20)) as connection:
        connection.settimeout(30)
        connection.sendall(bytes(size))
        connection.shutdown(socket.SHUT_WR)
        reader.join(30)
    if received != size:
        raise LabError(f"{received} of {size} bytes came")


def _udp(sender: Endpoint, receiver: Endpoint) -> None:
    """Datagrams by UDP_SEGMENT: one write is many datagrams."""
    there = receiver.ns.socket(socket.SOCK_DGRAM)
    here = sender.ns.socket(socket.SOCK_DGRAM)
    with there, here:
        there.bind((receiver.v4, 0))
        here.setsockopt(_SOL_UDP, _UDP_SEGMENT, UDP_SIZE)
        for _ in range(UDP_SENDS):
            try:
                here.sendto(bytes(UDP_SEGMENTS * UDP_SIZE), there.getsockname())
            except OSError as error:
                # Before Linux 6.11 a device that computes no checksums is given none (udp_send_skb).
                if error.errno != errno.EIO:
                    raise
                here.setsockopt(_SOL_UDP, _UDP_SEGMENT, 0)
                for _ in range(UDP_SEGMENTS):
                    here.sendto(bytes(UDP_SIZE), there.getsockname())
            time.sleep(0.001)


def exchange(device: Device, size: int = TCP_BYTES) -> None:
    """TCP and UDP, both ways."""
    for sender, receiver in ((device.near, device.far), (device.far, device.near)):
        _tcp(sender, receiver, size)
        _udp(sender, receiver)
    time.sleep(0.1)


# --- devices ------------------------------------------------------------------------------------------------


def _at(ns: Namespace, name: str, v4: str) -> Endpoint:
    return Endpoint(ns, name, "", v4, "")


def _quiet(*spaces: Namespace) -> None:
    for ns in spaces:
        ns.sysctl("ipv6.conf.all.disable_ipv6", 1)
        ns.sysctl("ipv6.conf.default.disable_ipv6", 1)


def _link(lab: Lab) -> Link:
    link = lab.veth()
    _quiet(link.a.ns, link.b.ns)
    return link


def _address(end: Endpoint) -> None:
    end.ns.run("ip", "addr", "add", f"{end.v4}/24", "dev", end.name)
    end.ns.run("ip", "link", "set", end.name, "up")


def _strip(end: Endpoint) -> None:
    """Addresses and routes off: the device above has them."""
    end.ns.run("ip", "addr", "flush", "dev", end.name)


def veth(lab: Lab) -> Device:
    """One end of a pair."""
    link = _link(lab)
    return Device("veth", link.a, link.a, link.b)


def bridge(lab: Lab) -> Device:
    """A bridge with an address, and one port."""
    link = _link(lab)
    _strip(link.a)
    top = _at(link.a.ns, "br0", link.a.v4)
    top.ns.run("ip", "link", "add", "br0", "type", "bridge")
    top.ns.run("ip", "link", "set", link.a.name, "master", "br0")
    _address(top)
    return Device("bridge", top, top, link.b, (link.a,))


def bridge_port(lab: Lab) -> Device:
    """The port of that bridge."""
    made = bridge(lab)
    return replace(made, kind="bridge port (veth)", watched=made.below[0], below=(made.watched,))


def _over(kind: str, *options: str, local: bool = True) -> Callable[[Lab], Device]:
    """A tunnel over a veth pair: `ip link add ... type KIND local A remote B OPTIONS`."""

    def make(lab: Lab) -> Device:
        link = _link(lab)
        ends = []
        for number, (this, that) in enumerate(((link.a, link.b), (link.b, link.a)), 1):
            place = ("local", this.v4) if local else ()
            end = _at(this.ns, f"{kind}1", f"10.88.1.{number}")
            end.ns.run("ip", "link", "add", end.name, "type", kind, *place, "remote", that.v4, *options)
            _address(end)
            ends.append(end)
        return Device(kind, ends[0], ends[0], ends[1], (link.a, link.b))

    return make


vxlan = _over("vxlan", "id", "7", "dstport", "4789")


def below(made: Callable[[Lab], Device]) -> Callable[[Lab], Device]:
    """The veth that the tunnel's packets go through."""

    def make(lab: Lab) -> Device:
        device = made(lab)
        return replace(
            device,
            kind=f"veth below {device.kind}",
            watched=device.below[0],
            below=(device.near, device.below[1]),
        )

    return make


def _above(kind: str, *options: str) -> Callable[[Lab], Device]:
    """A device with a lower one, at the near end alone."""

    def make(lab: Lab) -> Device:
        link = _link(lab)
        _strip(link.a)
        top = _at(link.a.ns, f"{kind}1", link.a.v4)
        top.ns.run("ip", "link", "add", "link", link.a.name, "name", top.name, "type", kind, *options)
        _address(top)
        link.b.ns.run("ip", "neigh", "flush", "all", check=False)
        link.b.ns.run("ip", "neigh", "del", link.a.v4, "dev", link.b.name, check=False)
        if "l3" in options:  # nobody answers ARP there, and the lower device is the one who asks
            for here, address, there in ((link.b, top.v4, link.a), (link.a, link.b.v4, link.b)):
                here.ns.run("ip", "neigh", "replace", address, "lladdr", there.mac, "dev", here.name)
        return Device(kind, top, top, link.b, (link.a,))

    return make


def vlan(lab: Lab, levels: int = 1) -> Device:
    """802.1Q at both ends, or one in the other."""
    link = _link(lab)
    ends = []
    for number, base in enumerate((link.a, link.b), 1):
        lower = base.name
        for level in range(levels):
            name = f"vlan{level}"
            protocol = "802.1ad" if levels > 1 and level == 0 else "802.1Q"
            base.ns.run(
                *("ip", "link", "add", "link", lower, "name", name, "type", "vlan"),
                *("protocol", protocol, "id", str(70 + level)),
            )
            base.ns.run("ip", "link", "set", name, "up")
            lower = name
        end = _at(base.ns, lower, f"10.88.1.{number}")
        _address(end)
        ends.append(end)
    kind = "8021q" if levels == 1 else "8021q in 802.1ad"
    return Device(kind, ends[0], ends[0], ends[1], (link.a, link.b))


def outer_vlan(lab: Lab) -> Device:
    """The outer device of QinQ."""
    made = vlan(lab, 2)
    return replace(
        made,
        kind="802.1ad below 8021q",
        watched=_at(made.near.ns, "vlan0", ""),
        below=(made.near, *made.below),
    )


def bond(mode: str) -> Callable[[Lab], Device]:
    """Two pairs, bonded at both ends."""

    def make(lab: Lab) -> Device:
        first = lab.veth()
        second = lab.veth(a=first.a.ns, b=first.b.ns)
        _quiet(first.a.ns, first.b.ns)  # now: without IPv6 the second could not have its addresses
        ends = []
        for number, ports in enumerate(((first.a, second.a), (first.b, second.b)), 1):
            end = _at(ports[0].ns, "bond0", f"10.88.1.{number}")
            end.ns.run("ip", "link", "add", "bond0", "type", "bond", "mode", mode, "miimon", "100")
            for port in ports:
                _strip(port)
                end.ns.run("ip", "link", "set", port.name, "down")
                end.ns.run("ip", "link", "set", port.name, "master", "bond0")
            if mode == "active-backup":  # the same pair at both ends, whichever had its carrier first
                end.ns.run("ip", "link", "set", "bond0", "type", "bond", "primary", ports[0].name)
            _address(end)
            ends.append(end)
        for _ in range(100):  # LACP takes its time
            if ends[0].ns.run("ping", "-c", "1", "-W", "1", ends[1].v4, check=False).returncode == 0:
                break
        else:
            raise LabError(f"the two bonds of {mode} do not reach each other")
        return Device(f"bond {mode}", ends[0], ends[0], ends[1], (first.a, first.b, second.a, second.b))

    return make


def ifb(lab: Lab) -> Device:
    """What the near end receives goes over an ifb first."""
    link = _link(lab)
    ns, name = link.a.ns, link.a.name
    ns.run("ip", "link", "add", "ifb1", "txqueuelen", "8192", "type", "ifb")  # its own 32 overflow
    ns.run("ip", "link", "set", "ifb1", "up")
    ns.run("tc", "qdisc", "add", "dev", name, "ingress")
    ns.run(
        *("tc", "filter", "add", "dev", name, "parent", "ffff:", "u32", "match", "u32", "0", "0"),
        *("action", "mirred", "egress", "redirect", "dev", "ifb1"),
    )
    return Device("ifb", _at(ns, "ifb1", ""), link.a, link.b)


def loopback(lab: Lab) -> Device:
    """Both ends are here."""
    ns = lab.namespace("l")
    end = _at(ns, "lo", "127.0.0.1")
    return Device("lo", end, end, end)


def wireguard(lab: Lab) -> Device:
    """A tunnel between the ends, its keys by generic netlink (pyroute2): there is no wg(8) everywhere."""
    link = _link(lab)
    ends = []
    pairs = [_keys(), _keys()]
    for number, (this, that) in enumerate(((link.a, link.b), (link.b, link.a))):
        end = _at(this.ns, "wg1", f"10.88.1.{number + 1}")
        end.ns.run("ip", "link", "add", "wg1", "type", "wireguard")
        private, public = pairs[number][0], pairs[1 - number][1]
        end.ns.call(partial(_configure_wireguard, private, public, that.v4))
        _address(end)
        ends.append(end)
    return Device("wireguard", ends[0], ends[0], ends[1], (link.a, link.b))


def _keys() -> tuple[str, str]:
    """A private and a public key, as wg(8) writes them: X25519 (RFC 7748), of its base point 9."""
    prime = 2**255 - 19
    private = bytearray(os.urandom(32))
    private[0] &= 248
    private[31] = private[31] & 127 | 64
    scalar = int.from_bytes(private, "little")
    x1, x2, z2, x3, z3, swap = 9, 1, 0, 9, 1, 0
    for bit in range(254, -1, -1):
        now = scalar >> bit & 1
        if swap ^ now:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = now
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb, aa, bb = d * a % prime, c * b % prime, a * a % prime, b * b % prime
        x3, z3 = (da + cb) ** 2 % prime, x1 * (da - cb) ** 2 % prime
        x2, z2 = aa * bb % prime, (aa - bb) * (aa + 121665 * (aa - bb)) % prime
    if swap:
        x2, z2 = x3, z3
    public = (x2 * pow(z2, prime - 2, prime) % prime).to_bytes(32, "little")
    return base64.b64encode(bytes(private)).decode(), base64.b64encode(public).decode()


def _configure_wireguard(private: str, public: str, far: str) -> None:
    from pyroute2 import WireGuard

    peer = {
        "public_key": public,
        "endpoint_addr": far,
        "endpoint_port": 51820,
        "allowed_ips": ["10.88.1.0/24"],
    }
    with WireGuard() as wg:
        wg.set("wg1", private_key=private, listen_port=51820, peer=peer)


_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, _IFF_TAP, _IFF_NAPI, IFF_NO_PI, _IFF_VNET_HDR = 0x1, 0x2, 0x10, 0x1000, 0x4000
_TUN_F_TCP, _TUN_F_USO = 0x0F, 0x60  # checksums, TSO; UDP's, from Linux 6.2


def open_tun(ns: Namespace, name: str, flags: int) -> int:
    """A tun or tap device in a namespace; the descriptor is its other end."""

    def make() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        try:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_TCP | _TUN_F_USO)
        except OSError:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_TCP)
        return fd

    return ns.call(make)


def open_tap(lab: Lab, number: int = 1, napi: bool = False) -> tuple[Endpoint, int]:
    """A tap in a namespace of its own, and the descriptor from which its packets are read: the caller's."""
    ns = lab.namespace("t")
    _quiet(ns)
    end = _at(ns, f"tap{number}", f"10.88.1.{number}")
    fd = open_tun(ns, end.name, _IFF_TAP | IFF_NO_PI | _IFF_VNET_HDR | (_IFF_NAPI if napi else 0))
    ns.run("ip", "link", "set", end.name, "txqueuelen", "8192")
    _address(end)
    return end, fd


def tap(lab: Lab, napi: bool = False) -> Device:
    """Two taps, as of two virtual machines, whose packets go from one to the other with their virtio-net headers."""
    ends, fds = zip(*(open_tap(lab, number, napi) for number in (1, 2)), strict=True)
    over = threading.Event()

    def carry() -> None:
        there = {fds[0]: fds[1], fds[1]: fds[0]}
        while not over.is_set():
            for fd in select.select(fds, [], [], 0.05)[0]:
                with contextlib.suppress(BlockingIOError):
                    for _ in range(64):
                        os.write(there[fd], os.read(fd, 1 << 17))

    carrier = threading.Thread(target=carry)
    carrier.start()

    def stop() -> None:
        over.set()
        carrier.join()
        for fd in fds:
            os.close(fd)

    lab.on_close(stop)
    return Device("tap with IFF_NAPI" if napi else "tap", ends[0], ends[0], ends[1])


_PPP = {"getchan": 0x80047437, "attach": 0x40047438, "connect": 0x4004743A, "unit": 0xC004743E}  # PPPIOC*
_AF_PPPOX, _PPPOE_HEADERS = 24, 8


def ppp(lab: Lab) -> Device:
    """A PPPoE session whose two ends know each other already, so that nobody negotiates (no pppd)."""
    link = _link(lab)
    ends, fds = [], []
    for number, (this, that) in enumerate(((link.a, link.b), (link.b, link.a)), 1):
        made = this.ns.call(partial(_open_ppp, this.name, that.mac))
        fds += made
        end = _at(this.ns, "ppp0", f"10.88.1.{number}")
        mtu = str(1500 - _PPPOE_HEADERS)
        end.ns.run("ip", "link", "set", "ppp0", "mtu", mtu, "txqueuelen", "8192")  # its own 3 overflow
        end.ns.run("ip", "addr", "add", end.v4, "peer", f"10.88.1.{3 - number}", "dev", "ppp0")
        end.ns.run("ip", "link", "set", "ppp0", "up")
        ends.append(end)
    lab.on_close(lambda: [os.close(fd) for fd in fds])
    return Device("ppp", ends[0], ends[0], ends[1], (link.a, link.b))


def _open_ppp(lower: str, far: str) -> list[int]:
    """A session's socket, its channel and a unit (ppp0), as the files that hold them (net/pppox.h, ppp-ioctl.h)."""

    def number(fd: int, request: str, value: int) -> int:
        data = array.array("i", [value])
        fcntl.ioctl(fd, _PPP[request], data)
        return data[0]

    try:
        session = socket.socket(_AF_PPPOX, socket.SOCK_STREAM, 0).detach()
    except OSError as error:
        raise LabError(f"PPPoE: {error}") from error
    address = struct.pack("=HI", _AF_PPPOX, 0) + struct.pack(
        "!H6s16s", 7, bytes.fromhex(far.replace(":", "")), lower.encode()
    )
    if ctypes.CDLL(None, use_errno=True).connect(session, address, len(address)) != 0:
        raise LabError(f"PPPoE: {os.strerror(ctypes.get_errno())}")
    channel, unit = (os.open("/dev/ppp", os.O_RDWR | os.O_CLOEXEC) for _ in range(2))
    number(channel, "attach", number(session, "getchan", 0))
    number(channel, "connect", number(unit, "unit", -1))
    return [unit, channel, session]


HERE: dict[str, Callable[[Lab], Device]] = {
    "veth": veth,
    "bridge": bridge,
    "bridge port": bridge_port,
    "vxlan": vxlan,
    "veth below vxlan": below(vxlan),
    "macvlan": _above("macvlan", "mode", "bridge"),
    "ifb": ifb,
    "lo": loopback,
    "tap": tap,
    "tap with IFF_NAPI": partial(tap, napi=True),
}
# Where the kernel has them; Debian's has.
ELSEWHERE: dict[str, Callable[[Lab], Device]] = {
    "8021q": vlan,
    "qinq": partial(vlan, levels=2),
    "below qinq": outer_vlan,
    "veth below 8021q": below(vlan),
    "bond active-backup": bond("active-backup"),
    "bond balance-rr": bond("balance-rr"),
    "bond 802.3ad": bond("802.3ad"),
    "gre": _over("gre"),
    "gretap": _over("gretap"),
    "ipip": _over("ipip"),
    "sit": _over("sit", "mode", "any"),
    "geneve": _over("geneve", "id", "7", local=False),
    "veth below gre": below(_over("gre")),
    "veth below ipip": below(_over("ipip")),
    "veth below geneve": below(_over("geneve", "id", "7", local=False)),
    "ipvlan l2": _above("ipvlan", "mode", "l2"),
    "ipvlan l3": _above("ipvlan", "mode", "l3"),
    "wireguard": wireguard,
    "ppp": ppp,
    "veth below ppp": below(ppp),
}


# What a veth is given as its queue, by tc(8)'s words after "qdisc add dev NAME"; one after another, while nettop runs.
_TBF = ("tbf", "rate", "500mbit", "latency", "500ms", "burst")
QUEUES: dict[str, tuple[str, ...]] = {
    "none": (),
    "tbf, burst of 9000": ("root handle 1:", *_TBF, "9000"),
    "tbf, burst of 100000": ("root handle 1:", *_TBF, "100000"),
    "htb": ("root handle 1: htb default 1", ";class parent 1: classid 1:1 htb rate 500mbit"),
    "tbf below htb": (
        "root handle 1: htb default 1",
        ";class parent 1: classid 1:1 htb rate 500mbit",
        ";parent 1:1",
        *_TBF,
        "9000",
    ),
    "none again": (),
}
# Where the kernel has them; Debian's has.  None of them is to drop for a delay that is an emulated CPU's.
MORE_QUEUES: dict[str, tuple[str, ...]] = {
    "cake": ("root cake rtt 100s",),
    "cake no-split-gso": ("root cake no-split-gso rtt 100s",),
    "cake below tbf": ("root handle 1:", *_TBF, "100000", ";parent 1:1 cake rtt 100s"),
    "cake below htb": (
        "root handle 1: htb default 1",
        ";class parent 1: classid 1:1 htb rate 500mbit",
        ";parent 1:1 cake rtt 100s",
    ),
    "netem delay": ("root netem delay 1ms limit 20000",),
    "cake below netem": ("root handle 1: netem delay 1ms limit 20000", ";parent 1:1 cake rtt 100s"),
    "netem corrupt": ("root netem corrupt 10%",),
    "netem duplicate": ("root netem duplicate 10%",),
    "taprio": (
        "root handle 1: taprio num_tc 1 map 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 queues 1@0 base-time 0",
        "sched-entry S 01 1000000 clockid CLOCK_TAI",
    ),
    "fq_codel": ("root fq_codel target 5s interval 50s",),
    "fq": ("root fq flow_limit 10000",),
    "fq_pie": ("root fq_pie target 5s",),
}


def queue(end: Endpoint, words: tuple[str, ...]) -> None:
    """Give a device this queue, by one tc command for each `;`; none: take it away."""
    end.ns.run("tc", "qdisc", "del", "dev", end.name, "root", check=False)
    for line in " ".join(words).split(";") if words else ():
        what, rest = ("class", line[6:]) if line.startswith("class ") else ("qdisc", line)
        end.ns.run("tc", what, "add", "dev", end.name, *rest.split())


# --- the matrix ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One device with one setting: what both counted, by direction and unit."""

    device: str
    setting: str
    counted: dict[str, int]
    own: dict[str, int]
    differs: str = ""  # what nettop says of the difference
    panes: dict[str, str] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        return self.counted == self.own

    def __str__(self) -> str:
        text = "equal" if self.equal else "DIFFERS"
        figures = ", ".join(f"{key} {self.counted[key]}/{self.own[key]}" for key in self.own)
        return f"{self.device} | {self.setting} | {text} | {figures}"


def compare(seen: Observed, device: str, setting: str) -> Row:
    """nettop's sums beside the growth of the interface's own counters."""
    keys = [(way, what) for way in ("rx", "tx") for what in ("packets", "bytes")]
    said = [frame["throughput"]["differs"] for frame in seen.frames]
    notes = [note for frame in seen.frames for note in frame.get("notes", ()) if "%" in note]
    return Row(
        device,
        setting,
        {f"{way} {what}": seen.total(way, what) for way, what in keys},
        {f"{way} {what}": seen.counters[f"{way}_{what}"] for way, what in keys},
        said[-1] or (notes[-1] if notes else ""),
    )


def panes(seen: Observed) -> dict[str, str]:
    """What the other panes saw of the same traffic: flows, stages by their packets, interrupt lines."""
    probes = seen.frames[-1]["probes"]
    found = {name: probes[name]["state"] for name in ("flows", "stages", "irq")}
    if found["flows"] == "live":
        sums: dict[int, int] = {}
        for row in seen.rows(protocol="tcp"):
            sums[row["id"]] = sums.get(row["id"], 0) + row["rx_bytes"] + row["tx_bytes"]
        found["flows"] = f"{sum(size > TCP_BYTES for size in sums.values())} of 2"
    if found["stages"] == "live":
        found["stages"] = "; ".join(f"{way} {_followed(seen, way)}" for way in ("rx", "tx"))
    if found["irq"] == "live":
        found["irq"] = "its own lines" if seen.frames[-1]["irq"]["hardware"] else "no lines of its own"
    return found


def _followed(seen: Observed, way: str) -> str:
    """Of each stage's end, the share of its packets that were seen at its beginning too."""
    sums: dict[str, list[int]] = {}
    for frame in seen.frames:
        for stage in frame["stages"][way]:
            pair = sums.setdefault(stage["stage"], [0, 0])
            pair[0] += stage["matched"]
            pair[1] += stage["matched"] + (stage["missed"] or 0)
    return (
        ", ".join(f"{name} {100 * a // b if b else 0} %" for name, (a, b) in sums.items() if b) or "nothing"
    )


@contextmanager
def watched(lab: Lab, make: Callable[[Lab], Device], probes: str) -> Iterator[tuple[Device, Watch]]:
    """The device made, and a nettop that watches it."""
    device = make(lab)
    with watching(lab, device.watched, probes=probes) as watch:
        yield device, watch


def check_below(
    make: Callable[[Lab], Device], tunnel: tuple[str, int]
) -> tuple[Observed, list[dict[str, Any]]]:
    """Below a tunnel are the two connections in it, whole, and every byte; what was observed, and their rows."""
    with Lab() as lab, watched(lab, make, "throughput,flows") as (device, watch):
        exchange(device)
        before = oracle.netstat(device.near.ns)
        with watch.observing() as seen:
            exchange(device)
        again = oracle.difference(oracle.netstat(device.near.ns), before)["TcpRetransSegs"]
        compared = compare(seen, device.kind, "as made")
    assert compared.equal, compared
    found = list({row["id"]: row for row in seen.rows(protocol="tcp") if row["rx_packets"]}.values())
    assert [(row["tunnel"], row["tunnel_id"]) for row in found] == [tunnel] * 2
    for way in ("rx", "tx"):
        assert max(row[f"{way}_bytes_total"] for row in found) > TCP_BYTES
    assert sum(row["tx_retransmits_total"] for row in found) == again
    return seen, found


def rows(
    make: Callable[[Lab], Device], settings: dict[str, dict[str, str]], probes: str = "throughput"
) -> Iterator[Row]:
    """One nettop, one setting after the other."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        device, watch = stack.enter_context(watched(lab, make, probes))
        exchange(device)  # neighbours are known from here on
        for name, features in settings.items():
            device.switch(features)
            with watch.observing() as seen:
                exchange(device)
            row = compare(seen, device.kind, name)
            if not row.equal and not row.differs:  # what nettop says of it, it says after some frames
                with watch.observing() as longer:
                    for _ in range(8):
                        exchange(device)
                row = replace(row, differs=compare(longer, device.kind, name).differs)
            yield replace(row, panes=panes(seen)) if "flows" in probes else row


def queue_rows(make: Callable[[Lab], Device], queues: dict[str, tuple[str, ...]]) -> Iterator[Row]:
    """One nettop, one queue after the other, with TSO on and off.  A queue that the kernel lacks is left out."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        device, watch = stack.enter_context(watched(lab, make, "throughput"))
        exchange(device)
        for name, words in queues.items():
            for state in ("on", "off"):
                device.switch({"tso": state, "tx-udp-segmentation": state})
                try:
                    queue(device.watched, words)
                except LabError:
                    break
                watch.nettop.more_frames(1 + round(1.5 / float(observe.DELAY)))  # it looks twice a second
                with watch.observing() as seen:
                    exchange(device)
                yield compare(seen, f"{device.kind}, {name}", f"offloads {state}")


# --- the document -------------------------------------------------------------------------------------------

_PROBES = "throughput,flows,stages,irq"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "devices.md"
HEAD = """\
# Devices

nettop beside each device's own counters: a megabyte of TCP and 221 datagrams by UDP_SEGMENT, each way, with offloads
on and off, switched while it runs. Written by

    tests/live/devices.py --json host.json                          # and the same in guests:
    OUT=out tests/vm/run.sh bookworm bookworm 'python3 tests/live/devices.py --json /out/devices.json'
    tests/live/devices.py --document host.json out/devices.json

*Equal*: bytes and packets are the same to the last one, received and sent, in all settings. *Flows*: of the two TCP
connections, those whose megabyte is in one flow; an ifb gets one direction, on lo each end is a flow. *Stages*: those
that the device has, with the share of packets seen at their start where it is not 100 %; *all*: rx stack, ip, local,
transport, socket, application; tx application, ip, qdisc, driver. *ppp* is PPPoE without negotiation. None of these
devices has interrupt lines of its own.

| devices | Linux | throughput | flows | stages |
|---|---|---|---|---|"""
QUEUES_HEAD = """
A veth with these qdiscs, one after the other. What a qdisc segments, duplicates or drops is behind nettop.

| qdisc | throughput | what the pane says |
|---|---|---|"""
ALL_STAGES = {
    "rx": "stack, ip, local, transport, socket, application",
    "tx": "application, ip, qdisc, driver",
}
SHARE = re.compile(r"(?<= )[1-9]\d*(?= %)")


def measure(names: Sequence[str], into: Path) -> None:
    """Devices with all settings, those that this kernel lacks by their reason; written after each of them."""
    found: dict[str, Any] = {"kernel": platform.release(), "rows": [], "lacking": {}, "queues": []}
    everything = HERE | ELSEWHERE
    # What is compiled in a guest takes longer than a device waits for its first frame.
    shell.run(
        command("lo", "-b", "--format", "ndjson", "-n", "1", "-d", "0.1", "-p", _PROBES),
        cwd=REPOSITORY,
        timeout=900,
    )
    for name in names or everything:
        try:
            for row in rows(everything[name], SETTINGS, _PROBES):
                print(row, row.panes, flush=True)
                found["rows"].append({"name": name, **asdict(row), "equal": row.equal})
        except LabError as error:
            reason = str(error).strip().splitlines()
            found["lacking"][name] = reason[-1][:200] if reason else "?"
            print(name, found["lacking"][name], flush=True)
        into.write_text(json.dumps(found))
    for row in () if names else queue_rows(veth, QUEUES | MORE_QUEUES):
        print(row, row.differs, flush=True)
        found["queues"].append({"name": row.device.partition(", ")[2], **asdict(row), "equal": row.equal})
        into.write_text(json.dumps(found))


def document(measured: Sequence[dict[str, Any]]) -> str:
    """docs/devices.md from what was measured: devices of which the same was found share a row."""
    kernels: dict[tuple[str, ...], dict[str, list[str]]] = {}  # by what was found: each device's, in order
    shares: dict[tuple[str, ...], list[list[int]]] = {}
    queues: dict[tuple[str, str, str], list[str]] = {}
    for one in measured:
        kernel = ".".join(one["kernel"].split(".")[:2])
        for name, same in _by_name(one["rows"]).items():
            seen = same[1 if len(same) > 1 else 0]["panes"]
            stages = _stages(seen.get("stages", ""))
            partly = [int(share) for share in SHARE.findall(stages)]
            pattern = SHARE.sub("{}", stages)
            key = (_equal(same), seen.get("flows", ""), pattern)
            kernels.setdefault(key, {}).setdefault(name, []).append(kernel)
            shares.setdefault(key, []).append(partly)
        for name, same in _by_name(one.get("queues", ())).items():
            said = next((row["differs"] for row in same if not row["equal"]), "")
            key = (_equal([row | {"differs": ""} for row in same]), said, kernel)
            queues.setdefault(key, []).append(name)
    parts = [HEAD]
    for (throughput, flows, pattern), devices in kernels.items():
        ranges = [
            "–".join(dict.fromkeys([str(min(each)), str(max(each))]))
            for each in zip(*shares[throughput, flows, pattern], strict=True)
        ]
        where: dict[str, list[str]] = {}
        for device, on in devices.items():
            where.setdefault(", ".join(on), []).append(device)
        for on, names in where.items():
            parts.append(_line(", ".join(names), on, throughput, flows, pattern.format(*ranges)))
    if queues:
        parts.append(QUEUES_HEAD)
    parts += [_line("; ".join(names), throughput, said) for (throughput, said, _), names in queues.items()]
    return "\n".join(parts) + "\n"


def _by_name(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row)
    return found


def _stages(text: str) -> str:
    """As panes() has them, without what is usual."""
    said = []
    for part in text.split("; ") if text else ():
        way, _, stages = part.replace(" 100 %", "").partition(" ")
        if re.sub(r" \d+ %", "", stages) == ALL_STAGES.get(way):
            lacking = [stage for stage in stages.split(", ") if "%" in stage]
            stages = f"all, but {', '.join(lacking)}" if lacking else "all"
        said.append(f"{way} {stages}")
    return "; ".join(said)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _equal(same: Sequence[dict[str, Any]]) -> str:
    """In which settings both count the same, and what differs in the others."""
    wrong = [row for row in same if not row["equal"]]
    if not wrong:
        return "equal"
    apart = dict.fromkeys(
        key for row in wrong for key, own in row["own"].items() if row["counted"][key] != own
    )
    named = "in no setting"
    if len(wrong) < len(same):
        named = "not in " + ", ".join(f"*{row['setting']}*" for row in wrong)
    said = ", as the pane says" if all(row["differs"] for row in wrong) else ""
    return f"{named}: {', '.join(apart)}{said}"


def main(argv: Sequence[str]) -> None:
    """--json FILE [DEVICE...] measures; --document FILE... writes docs/devices.md."""
    if argv[0] == "--document":
        DOCUMENT.write_text(document([json.loads(Path(name).read_text()) for name in argv[1:]]))
    else:
        measure(argv[2:], Path(argv[1]))


if __name__ == "__main__":
    main(sys.argv[1:])

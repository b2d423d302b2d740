"""Matched + missed is all: at each stage's end as many packets as others count there, whatever happens on the way."""

import fcntl
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from lab import Direction, Lab, Link
from lab.namespace import Endpoint, Namespace
from lab.oracle import netstat, sockets
from lab.packets import ACK, ethernet, ip, send, tcp
from lab.shell import eventually
from lab.traffic import Transfer, transfer
from stagelab import above, stages, through_ifb, watching
from tally import NOT_TAKEN, Tally

IPPROTO_MPTCP = 262
TCP_FASTOPEN, MSG_FASTOPEN = 23, 0x20000000
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_REPAIR_OFF_NO_WP = 19, 20, 21, -1
TCP_RECV_QUEUE, TCP_SEND_QUEUE = 1, 2
UNIT = 300  # bytes of a write


@dataclass(frozen=True)
class Scene:
    """Where it is watched, what lies upon that, and the traffic."""

    at: Endpoint
    run: Callable[[Tally], None]
    above: tuple[str, ...] = ()
    joined: bool = False  # TCP has joined segments in the backlog
    local: bool = True  # connections end here


def one_by_one(*ends: Endpoint) -> None:
    """No offloads: each packet is one for everybody who counts."""
    for end in ends:
        for feature in ("tso", "gso", "gro", "tx-udp-segmentation"):
            end.ns.run("ethtool", "-K", end.name, feature, "off", check=False)
        end.ns.run("ip", "link", "set", end.name, "gso_max_segs", "1")  # TCP makes large ones on any device


def quiet(ns: Namespace) -> bool:
    """No connection of this namespace waits for an answer, so that nothing is sent again."""
    waiting = {"ESTAB", "SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "LAST-ACK", "CLOSING"}
    return not any(each.state in waiting for each in sockets(ns, "state", "all"))


def unacknowledged(end: socket.socket) -> int:
    """Bytes that the peer's TCP has not acknowledged (SIOCOUTQ)."""
    return int(struct.unpack("i", fcntl.ioctl(end, termios.TIOCOUTQ, bytes(4)))[0])


def pump(pair: Transfer, tally: Tally, writes: int, pause: float = 0.0) -> None:
    """So many writes from sender to receiver, all of which are read."""

    def read() -> None:
        left = writes * UNIT
        while left:
            data = tally.recv(pair.receiver, min(65536, left))
            assert data
            left -= len(data)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(writes):
        pair.sender.sendall(b"x" * UNIT)
        time.sleep(pause)
    thread.join(90)
    assert not thread.is_alive()
    assert eventually(lambda: unacknowledged(pair.sender) == 0)  # else it is closed before the last ACK comes


def questions(near: Endpoint, far: Endpoint, tally: Tally, count: int = 211) -> None:
    """Both ways, by a connection that `near` opens, then by one that it accepts."""
    for sender, receiver in ((near, far), (far, near)):
        with transfer(sender, receiver) as pair:
            for _ in range(count):
                pair.sender.sendall(b"x" * UNIT)
                if receiver is near:
                    tally.recv(pair.receiver)
                    pair.receiver.sendall(b"y" * 50)
                    pair.sender.recv(1000)
                else:
                    pair.receiver.recv(1000)
                    pair.receiver.sendall(b"y" * 50)
                    tally.recv(pair.sender)


def places(end: socket.socket) -> tuple[int, int]:
    """Where in its stream a socket is that sends nothing now: its next sequence number, and the peer's."""
    found = []
    end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    for queue in (TCP_SEND_QUEUE, TCP_RECV_QUEUE):
        end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        found.append(end.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF)
    end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)
    return found[0], found[1]


def datagrams(ns: Namespace) -> socket.socket:
    return ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))


# --- the labs --------------------------------------------------------------------------------------------------------


def plain(lab: Lab) -> Scene:
    link = lab.veth()
    one_by_one(link.a, link.b)
    return Scene(link.a, lambda tally: questions(link.a, link.b, tally))


def _received(link: Link, writes: int, pause: float = 0.0, half: bool = False) -> Scene:
    def run(tally: Tally) -> None:
        with transfer(link.a, link.b) as pair:
            if half:
                pair.receiver.shutdown(socket.SHUT_WR)
                time.sleep(0.1)
            pump(pair, tally, writes, pause)

    return Scene(link.b, run)


def loss(lab: Lab) -> Scene:
    return _received(lab.wire(Direction(delay_ms=5, loss=0.03), Direction(delay_ms=5)), 1501, 0.0005)


def reordering(lab: Lab) -> Scene:
    there = Direction(delay_ms=2, reorder=0.05, reorder_extra_ms=3)
    return _received(lab.wire(there, Direction(delay_ms=2)), 1501, 0.0005)


def sent_with_loss(lab: Lab) -> Scene:
    """Retransmissions are no data of the application's."""
    scene = _received(link := lab.wire(Direction(delay_ms=5, loss=0.03), Direction(delay_ms=5)), 1501, 0.0005)
    one_by_one(link.a)
    return Scene(link.a, scene.run)


def half_closed_by_the_reader(lab: Lab) -> Scene:
    link = lab.veth()
    one_by_one(link.a, link.b)
    return _received(link, 499, 0.001, half=True)


def half_closed_by_the_peer(lab: Lab) -> Scene:
    """What it still gets, and its ACKs."""
    link = lab.veth()
    one_by_one(link.a, link.b)
    return Scene(link.a, _received(link, 499, 0.001, half=True).run)


def half_closed_with_loss(lab: Lab) -> Scene:
    return _received(
        lab.wire(Direction(delay_ms=5, loss=0.05), Direction(delay_ms=5)), 1501, 0.0005, half=True
    )


def half_closed_with_reordering(lab: Lab) -> Scene:
    there = Direction(delay_ms=2, reorder=0.05, reorder_extra_ms=3)
    return _received(lab.wire(there, Direction(delay_ms=2)), 1501, 0.0005, half=True)


def fast_open(lab: Lab) -> Scene:
    """Data in the SYN: connections after the first, which gets the cookie."""
    link = lab.veth()
    one_by_one(link.a, link.b)
    for end in (link.a, link.b):
        end.ns.sysctl("ipv4.tcp_fastopen", 3)

    def run(tally: Tally) -> None:
        listener = link.a.ns.call(lambda: socket.create_server((link.a.v4, 0)))
        listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
        with listener:
            for _ in range(23):
                with link.b.ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as client:
                    client.sendto(b"x" * UNIT, MSG_FASTOPEN, listener.getsockname())
                    accepted = listener.accept()[0]
                    with accepted:
                        for _ in range(3):
                            tally.recv(accepted)
                            accepted.sendall(b"y")
                            assert client.recv(10)
                            client.sendall(b"x" * UNIT)
                        tally.recv(accepted)

    return Scene(link.a, run)


def multipath(lab: Lab) -> Scene:
    link = lab.veth()
    one_by_one(link.a, link.b)
    for end in (link.a, link.b):
        end.ns.sysctl("mptcp.enabled", 1)

    def run(tally: Tally) -> None:
        def opened() -> socket.socket:
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)

        with link.a.ns.call(opened) as listener, link.b.ns.call(opened) as client:
            listener.bind((link.a.v4, 0))
            listener.listen()
            client.connect(listener.getsockname())
            accepted = listener.accept()[0]
            with accepted:
                for _ in range(101):
                    client.sendall(b"x" * UNIT)
                    tally.recv(accepted)
                    time.sleep(0.002)

    return Scene(link.a, run)


def udp(lab: Lab, buffer: int = 0) -> Scene:
    link = lab.veth()
    rounds, burst = 7, 101 if buffer else 13

    def run(tally: Tally) -> None:
        with datagrams(link.a.ns) as receiver, datagrams(link.b.ns) as sender:
            if buffer:
                receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            receiver.bind((link.a.v4, 0))
            receiver.settimeout(0.3)
            for _ in range(rounds):
                for _ in range(burst):
                    sender.sendto(b"x" * UNIT, receiver.getsockname())
                try:
                    while receiver.recv(1000):
                        tally.datagrams += 1
                except TimeoutError:
                    pass
        if buffer:
            assert tally.datagrams < rounds * burst, "it was never full"
        else:
            assert tally.datagrams == rounds * burst

    return Scene(link.a, run)


def udp_with_a_full_buffer(lab: Lab) -> Scene:
    return udp(lab, buffer=4096)


def corrupt(lab: Lab) -> Scene:
    """Segments of a connection that are damaged on the way, each before the right one."""
    link = lab.veth()
    one_by_one(link.a, link.b)

    def run(tally: Tally) -> None:
        with transfer(link.b, link.a) as pair:
            first, ack = places(pair.sender)
            for index in range(29):
                place = (first + index * UNIT) & 0xFFFFFFFF
                ports = pair.local[1], pair.remote[1]
                segment = bytearray(
                    tcp(link.b.v4, link.a.v4, *ports, seq=place, ack=ack, flags=ACK, payload=b"x" * UNIT)
                )
                segment[-1] ^= 0xFF
                packet = ip(link.b.v4, link.a.v4, 6, bytes(segment), ttl=NOT_TAKEN)
                send(lab, link.b, [ethernet(link.b, link.a, packet)])
                pair.sender.sendall(b"x" * UNIT)
                tally.recv(pair.receiver)

    return Scene(link.a, run)


def unread(lab: Lab) -> Scene:
    """Closed with unread data: TCP had it, and nobody read it."""
    link = lab.veth()
    one_by_one(link.a, link.b)

    def run(tally: Tally) -> None:
        for index in range(41):
            with transfer(link.b, link.a) as pair:
                pair.sender.sendall(b"x" * UNIT)
                time.sleep(0.005)
                if index % 2:
                    tally.recv(pair.receiver)
                    pair.sender.sendall(b"x" * UNIT)
                    pair.sender.sendall(b"x" * UNIT)
                    time.sleep(0.005)

    return Scene(link.a, run)


def reset(lab: Lab) -> Scene:
    """The peer's RST, with data unread and with data read."""
    link = lab.veth()
    one_by_one(link.a, link.b)

    def run(tally: Tally) -> None:
        for index in range(41):
            with transfer(link.b, link.a) as pair:
                for _ in range(3):
                    pair.sender.sendall(b"x" * UNIT)
                time.sleep(0.005)
                if index % 2:
                    tally.recv(pair.receiver)
                pair.sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                pair.sender.close()
                time.sleep(0.005)

    return Scene(link.a, run)


def busy(lab: Lab, half: bool = False) -> Scene:
    """The reader has hold of the socket: segments wait in its backlog, where TCP joins those of a wire."""
    link = lab.wire(Direction(delay_ms=0.2))
    one_by_one(link.a)
    link.b.ns.sysctl("ipv4.tcp_rmem", "4096 16000000 32000000")
    first = 3_000_000

    def run(tally: Tally) -> None:
        with transfer(link.a, link.b) as pair:
            if half:
                pair.receiver.shutdown(socket.SHUT_WR)
                time.sleep(0.1)
            over = threading.Event()

            def look() -> None:
                """The same three megabytes, again and again: a millisecond each time."""
                buffer = bytearray(first)
                while not over.is_set():
                    pair.receiver.recv_into(buffer, first, socket.MSG_PEEK)

            pair.sender.sendall(b"x" * first)
            time.sleep(0.3)
            thread = threading.Thread(target=look)
            thread.start()
            bursts = 0
            while bursts < 101 or (netstat(link.b.ns)["TcpExtTCPBacklogCoalesce"] < 5 and bursts < 5001):
                for _ in range(5):
                    pair.sender.sendall(b"x" * UNIT)
                time.sleep(0.002)
                bursts += 1
            over.set()
            thread.join(10)
            for left in range(first + bursts * 5 * UNIT, 0, -50_000):
                tally.recv(pair.receiver, min(left, 50_000), socket.MSG_WAITALL)

    return Scene(link.b, run, joined=True)


def half_closed_and_busy(lab: Lab) -> Scene:
    return busy(lab, half=True)


def _upon(lab: Lab, *words: str) -> Scene:
    link = lab.veth()
    one_by_one(link.a, link.b)
    upper = above(link, *[link.a.name if word == "IT" else word for word in words])
    one_by_one(upper)
    return Scene(link.a, lambda tally: questions(upper, link.b, tally), (upper.name,))


def bridge(lab: Lab) -> Scene:
    return _upon(lab, "type", "bridge")


def macvlan(lab: Lab) -> Scene:
    return _upon(lab, "link", "IT", "type", "macvlan", "mode", "bridge")


def macvlan_itself(lab: Lab) -> Scene:
    scene = macvlan(lab)
    return Scene(replace(scene.at, name="up0"), scene.run)


def ifb(lab: Lab) -> Scene:
    scene = plain(lab)
    through_ifb(scene.at)
    return scene


def _through(lab: Lab, side: str, nat: bool) -> Scene:
    router = lab.router()
    one_by_one(router.client, router.server, router.client_side, router.server_side)
    if nat:
        nft = router.ns.run
        nft("nft", "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }")
        nft("nft", f"add rule ip nat post oifname {router.server_side.name} masquerade fully-random")

    def run(tally: Tally) -> None:
        questions(router.server, router.client, tally)

    return Scene(getattr(router, side), run, local=False)


def forwarded_inside(lab: Lab) -> Scene:
    return _through(lab, "client_side", nat=False)


def forwarded_outside(lab: Lab) -> Scene:
    return _through(lab, "server_side", nat=False)


def masquerade_inside(lab: Lab) -> Scene:
    return _through(lab, "client_side", nat=True)


def masquerade_outside(lab: Lab) -> Scene:
    return _through(lab, "server_side", nat=True)


LABS = [
    plain, loss, reordering, sent_with_loss, half_closed_by_the_reader, half_closed_by_the_peer, half_closed_with_loss,
    half_closed_with_reordering, fast_open, multipath, udp, udp_with_a_full_buffer, corrupt, unread, reset, busy,
    half_closed_and_busy, bridge, macvlan, macvlan_itself, ifb, forwarded_inside, forwarded_outside, masquerade_inside,
    masquerade_outside,
]  # fmt: skip


@pytest.mark.parametrize("make", LABS, ids=lambda make: make.__name__)
def test_matched_and_missed_are_all(lab: Lab, make: Callable[[Lab], Scene]) -> None:
    scene = make(lab)
    for name in lab._namespaces:
        Namespace(name).sysctl("ipv6.conf.all.disable_ipv6", 1)  # its chatter is nobody's
        # ACKs at once, and not by a timer: that may interrupt a process for which a kernel runs no tracing programs
        Namespace(name).sysctl("ipv4.tcp_comp_sack_nr", 0)
    time.sleep(1)  # it takes its leave
    with Tally(scene.at, *scene.above, local=scene.local) as tally, watching(lab, scene.at) as frames:
        scene.run(tally)
        assert eventually(lambda: all(quiet(Namespace(name)) for name in lab._namespaces), timeout=30)
        time.sleep(0.2)
    totals = stages(frames)
    # A device above others has no rows for what is seen below it.
    expected = {key: count for key, count in tally.expected().items() if key in totals}
    assert {key: totals[key].count + totals[key].missed for key in expected} == expected
    assert len(expected) == (9 if make is macvlan_itself else 11)
    assert tally.counters["TcpExtTCPBacklogCoalesce"] > 0 or not scene.joined

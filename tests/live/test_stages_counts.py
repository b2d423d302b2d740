"""Matched + missed is all: at each stage's end as many packets as others count there, whatever happens on the way."""

import fcntl
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import pytest
from lab import Direction, Lab, Link
from lab.namespace import Endpoint, Namespace
from lab.oracle import netstat, sockets
from lab.packets import ethernet, ip, send, tcp
from lab.shell import eventually
from lab.traffic import Transfer, transfer
from stagelab import Watch, above, masquerade, running, stages, through_ifb
from tally import NOT_TAKEN, Tally

IPPROTO_MPTCP = 262
TCP_FASTOPEN, MSG_FASTOPEN = 23, 0x20000000
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_REPAIR_OFF_NO_WP = 19, 20, 21, -1
TCP_RECV_QUEUE, TCP_SEND_QUEUE = 1, 2
UNIT = 300  # bytes of a write


@dataclass(frozen=True)
class Place:
    """What is watched, and the two who talk: `near` on the watched side."""

    lab: Lab
    at: Endpoint
    near: Endpoint
    far: Endpoint
    link: Link | None = None
    above: tuple[str, ...] = ()  # devices upon the watched one
    local: bool = True  # connections end here
    rows: int = 11  # that nettop has for it

    def spaces(self) -> set[Namespace]:
        return {self.at.ns, self.near.ns, self.far.ns}


Run = Callable[[Place, Tally], None]


@dataclass(frozen=True)
class Scene:
    """The traffic at one of PLACES; in `wire` each way's faults, outward and inward."""

    run: Run
    at: str = "veth"
    wire: tuple[Direction, Direction] | None = None
    joined: bool = False  # TCP has joined segments in the backlog
    covered: float = 0.0  # how much of what comes to sockets and their readers is matched


def one_by_one(*ends: Endpoint) -> None:
    """No offloads: each packet is one for everybody who counts."""
    for end in ends:
        for feature in ("tso", "gso", "gro", "tx-udp-segmentation"):
            end.ns.run("ethtool", "-K", end.name, feature, "off", check=False)
        end.ns.run("ip", "link", "set", end.name, "gso_max_segs", "1")  # TCP makes large ones on any device


# --- the places ------------------------------------------------------------------------------------------------------


def veth(lab: Lab) -> Place:
    link = lab.veth()
    one_by_one(link.a, link.b)
    return Place(lab, link.a, link.a, link.b)


def wire(lab: Lab) -> Place:
    link = lab.wire()
    one_by_one(link.a, link.b)
    link.a.ns.sysctl("ipv4.tcp_rmem", "4096 16000000 32000000")
    return Place(lab, link.a, link.a, link.b, link)


def ifb(lab: Lab) -> Place:
    place = veth(lab)
    through_ifb(place.at)
    return place


def upon(lab: Lab, *words: str) -> Place:
    link = lab.veth()
    one_by_one(link.a, link.b)
    upper = above(link, *[link.a.name if word == "IT" else word for word in words])
    one_by_one(upper)
    return Place(lab, link.a, upper, link.b, above=(upper.name,))


MACVLAN = ("link", "IT", "type", "macvlan", "mode", "bridge")


def macvlan_itself(lab: Lab) -> Place:
    """A device above others has no rows for what is seen below it."""
    place = upon(lab, *MACVLAN)
    return replace(place, at=replace(place.at, name="up0"), above=(), rows=9)


def router(lab: Lab, side: str, nat: bool) -> Place:
    made = lab.router()
    one_by_one(made.client, made.server, made.client_side, made.server_side)
    if nat:
        masquerade(made.ns, made.server_side.name, "fully-random")
    return Place(lab, getattr(made, side), made.server, made.client, local=False)


PLACES: dict[str, Callable[[Lab], Place]] = {
    "veth": veth,
    "wire": wire,
    "ifb": ifb,
    "bridge": lambda lab: upon(lab, "type", "bridge"),
    "macvlan": lambda lab: upon(lab, *MACVLAN),
    "macvlan itself": macvlan_itself,
    "router, inside": partial(router, side="client_side", nat=False),
    "router, outside": partial(router, side="server_side", nat=False),
    "masquerade, inside": partial(router, side="client_side", nat=True),
    "masquerade, outside": partial(router, side="server_side", nat=True),
}


@contextmanager
def watched(name: str) -> Iterator[tuple[Place, Watch]]:
    with Lab() as lab:
        made = PLACES[name](lab)
        for space in lab._namespaces:
            Namespace(space).sysctl("ipv6.conf.all.disable_ipv6", 1)  # its chatter is nobody's
            # ACKs at once, and not by a timer: that may interrupt a process for which a kernel runs no tracing programs
            Namespace(space).sysctl("ipv4.tcp_comp_sack_nr", 0)
        time.sleep(1)  # it takes its leave
        with running(lab, made.at) as watch:
            yield made, watch


@pytest.fixture(scope="module")
def at() -> Iterator[Callable[[str], tuple[Place, Watch]]]:
    """A place by its name, and who watches it, until another one is asked for."""
    with ExitStack() as stack:
        last: dict[str, tuple[Place, Watch]] = {}

        def place(name: str) -> tuple[Place, Watch]:
            if name not in last:
                stack.close()
                last.clear()
                last[name] = stack.enter_context(watched(name))
            return last[name]

        yield place


# --- traffic ---------------------------------------------------------------------------------------------------------


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


def questions(place: Place, tally: Tally, count: int = 211) -> None:
    """Both ways, by a connection that `near` opens, then by one that it accepts."""
    for sender, receiver in ((place.near, place.far), (place.far, place.near)):
        with transfer(sender, receiver) as pair:
            for _ in range(count):
                pair.sender.sendall(b"x" * UNIT)
                if receiver is place.near:
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


def pumped(writes: int, pause: float, *, half: bool = False, outward: bool = False) -> Run:
    """Data to the watched side, or from there; `half`: to a reader who has said that it sends no more."""

    def run(place: Place, tally: Tally) -> None:
        ends = (place.near, place.far) if outward else (place.far, place.near)
        with transfer(*ends) as pair:
            if half:
                pair.receiver.shutdown(socket.SHUT_WR)
                time.sleep(0.1)
            pump(pair, tally, writes, pause)

    return run


def fast_open(place: Place, tally: Tally) -> None:
    """Data in the SYN: connections after the first, which gets the cookie."""
    near, far = place.near, place.far
    for end in (near, far):
        end.ns.sysctl("ipv4.tcp_fastopen", 3)
    with near.ns.call(lambda: socket.create_server((near.v4, 0))) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
        for _ in range(23):
            with far.ns.socket(socket.SOCK_STREAM) as client:
                client.sendto(b"x" * UNIT, MSG_FASTOPEN, listener.getsockname())
                with listener.accept()[0] as accepted:
                    for _ in range(3):
                        tally.recv(accepted)
                        accepted.sendall(b"y")
                        assert client.recv(10)
                        client.sendall(b"x" * UNIT)
                    tally.recv(accepted)


def multipath(place: Place, tally: Tally) -> None:
    for end in (place.near, place.far):
        end.ns.sysctl("mptcp.enabled", 1)

    def opened() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)

    with place.near.ns.call(opened) as listener, place.far.ns.call(opened) as client:
        listener.bind((place.near.v4, 0))
        listener.listen()
        client.connect(listener.getsockname())
        with listener.accept()[0] as accepted:
            for _ in range(101):
                client.sendall(b"x" * UNIT)
                tally.recv(accepted)
                time.sleep(0.002)


def udp(place: Place, tally: Tally, buffer: int = 0) -> None:
    """Bursts that the reader takes; with a small buffer, those that find room."""
    rounds, burst = 7, 101 if buffer else 13
    with (
        place.near.ns.socket(socket.SOCK_DGRAM) as receiver,
        place.far.ns.socket(socket.SOCK_DGRAM) as sender,
    ):
        if buffer:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        receiver.bind((place.near.v4, 0))
        receiver.settimeout(0.3)
        for _ in range(rounds):
            for _ in range(burst):
                sender.sendto(b"x" * UNIT, receiver.getsockname())
            with suppress(TimeoutError):
                while receiver.recv(1000):
                    tally.datagrams += 1
    if buffer:
        assert tally.datagrams < rounds * burst, "it was never full"
    else:
        assert tally.datagrams == rounds * burst


def corrupt(place: Place, tally: Tally) -> None:
    """Segments of a connection that are damaged on the way, each before the right one."""
    near, far = place.near, place.far
    with transfer(far, near) as pair:
        first, ack = places(pair.sender)
        ports = pair.local[1], pair.remote[1]
        for index in range(29):
            seq = first + index * UNIT
            segment = bytearray(tcp(far.v4, near.v4, *ports, seq=seq, ack=ack, payload=b"x" * UNIT))
            segment[-1] ^= 0xFF
            packet = ip(far.v4, near.v4, 6, bytes(segment), ttl=NOT_TAKEN)
            send(place.lab, far, [ethernet(far, near, packet)])
            pair.sender.sendall(b"x" * UNIT)
            tally.recv(pair.receiver)


def unread(place: Place, tally: Tally) -> None:
    """Closed with unread data: TCP had it, and nobody read it."""
    for index in range(41):
        with transfer(place.far, place.near) as pair:
            pair.sender.sendall(b"x" * UNIT)
            time.sleep(0.005)
            if index % 2:
                tally.recv(pair.receiver)
                pair.sender.sendall(b"x" * UNIT)
                pair.sender.sendall(b"x" * UNIT)
                time.sleep(0.005)


def reset(place: Place, tally: Tally) -> None:
    """The peer's RST, with data unread and with data read."""
    for index in range(41):
        with transfer(place.far, place.near) as pair:
            for _ in range(3):
                pair.sender.sendall(b"x" * UNIT)
            time.sleep(0.005)
            if index % 2:
                tally.recv(pair.receiver)
            pair.sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            pair.sender.close()
            time.sleep(0.005)


def busy(place: Place, tally: Tally, half: bool = False) -> None:
    """The reader has hold of the socket: segments wait in its backlog, where TCP joins those of a wire."""
    first = 3_000_000

    def joined() -> int:
        return netstat(place.near.ns)["TcpExtTCPBacklogCoalesce"]

    with transfer(place.far, place.near) as pair:
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
        bursts, before = 0, joined()
        while bursts < 101 or (joined() < before + 5 and bursts < 5001):
            for _ in range(5):
                pair.sender.sendall(b"x" * UNIT)
            time.sleep(0.002)
            bursts += 1
        over.set()
        thread.join(10)
        for left in range(first + bursts * 5 * UNIT, 0, -50_000):
            tally.recv(pair.receiver, min(left, 50_000), socket.MSG_WAITALL)


GOOD, LOSSY = Direction(delay_ms=5), Direction(delay_ms=5, loss=0.03)
LOST = (GOOD, LOSSY)
REORDERED = (Direction(delay_ms=2), Direction(delay_ms=2, reorder=0.05, reorder_extra_ms=3))
SHORT = (Direction(delay_ms=0.2), Direction(delay_ms=0.2))

SCENES = {
    "plain": Scene(questions),
    "half closed by the reader": Scene(pumped(499, 0.001, half=True), covered=0.98),
    "half closed by the peer": Scene(
        pumped(499, 0.001, half=True, outward=True)
    ),  # what it still gets, and its ACKs
    "fast open": Scene(fast_open),
    "multipath": Scene(multipath),
    "udp": Scene(udp),
    "udp with a full buffer": Scene(partial(udp, buffer=4096)),
    "corrupt": Scene(corrupt),
    "unread": Scene(unread),
    "reset": Scene(reset),
    "loss": Scene(pumped(1501, 0.0005), "wire", LOST),
    "reordering": Scene(pumped(1501, 0.0005), "wire", REORDERED),
    # Retransmissions are no data of the application's.
    "sent with loss": Scene(pumped(1501, 0.0005, outward=True), "wire", LOST[::-1]),
    "half closed with loss": Scene(
        pumped(1501, 0.0005, half=True), "wire", (GOOD, Direction(delay_ms=5, loss=0.05))
    ),
    "half closed with reordering": Scene(pumped(1501, 0.0005, half=True), "wire", REORDERED),
    "busy": Scene(busy, "wire", SHORT, joined=True),
    "half closed and busy": Scene(partial(busy, half=True), "wire", SHORT, joined=True),
    **{name: Scene(questions, name) for name in PLACES if name not in ("veth", "wire")},
}


@pytest.mark.parametrize("name", SCENES)
def test_matched_and_missed_are_all(at: Callable[[str], tuple[Place, Watch]], name: str) -> None:
    scene = SCENES[name]
    place, watch = at(scene.at)
    if scene.wire:
        assert place.link
        assert place.link.wire
        place.link.wire.set(*scene.wire)
    with Tally(place.at, *place.above, local=place.local) as tally, watch.observing() as frames:
        scene.run(place, tally)
        assert eventually(lambda: all(map(quiet, place.spaces())), timeout=30)
        time.sleep(0.2)
    totals = stages(frames)
    expected = {key: count for key, count in tally.expected().items() if key in totals}
    assert {key: totals[key].count + totals[key].missed for key in expected} == expected
    assert len(expected) == place.rows
    assert tally.counters["TcpExtTCPBacklogCoalesce"] > 0 or not scene.joined
    for name in ("socket", "application"):
        assert totals["rx", name].coverage >= scene.covered or not scene.covered

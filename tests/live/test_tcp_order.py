"""Reordered, copied by the network, or sent again: nettop beside the sender's own counters and the wire's."""

import contextlib
import socket
import threading
import time
from dataclasses import dataclass

import pytest
from lab import Direction, Lab, oracle, packets
from lab.traffic import fresh_port, transfer
from rtts import Row, Talk, flow, play_all, watching, watching_both

BYTES = 3_000_017
RATE = 60_000_000  # bit/s
SO_MAX_PACING_RATE = 47  # include/uapi/asm-generic/socket.h
TCP_KEEPIDLE, TCP_KEEPINTVL = 4, 5


@dataclass(frozen=True)
class Sent:
    """One transfer as its sender, the wire, and a nettop at each end saw it."""

    retransmitted: int  # tcpi_total_retrans
    dsacks: int  # tcpi_dsack_dups
    reordered: int
    duplicated: int
    near: Row  # at the sender: its data is tx
    far: Row  # at the receiver: its data is rx

    def __str__(self) -> str:
        names = ("retransmits", "out_of_order", "duplicates", "uncertain", "unneeded", "probes")
        ends = (("near", self.near, "tx"), ("far", self.far, "rx"))
        shown = [
            f"{end} " + " ".join(f"{n} {row[f'{way}_{n}_total']}" for n in names) for end, row, way in ends
        ]
        kernel = f"sender: {self.retransmitted} again, {self.dsacks} dsacks; wire: {self.reordered} late, "
        return kernel + f"{self.duplicated} twice; " + "; ".join(shown)


# IPv4 has an ID and timestamps may be off: what there is to tell by differs.
KINDS = {"v4, timestamps": (False, 1), "v4": (False, 0), "v6, timestamps": (True, 1), "v6": (True, 0)}


def send(lab: Lab, wire: Direction) -> dict[str, Sent]:
    """A transfer of each kind over this wire, paced, so that what the wire does is all that happens to it."""
    link = lab.wire(wire, Direction(delay_ms=wire.delay_ms))
    assert link.wire
    told = {}
    with contextlib.ExitStack() as stack:
        both = stack.enter_context(watching_both(lab, link))
        for kind, (ipv6, stamps) in KINDS.items():
            for end in (link.a, link.b):
                end.ns.sysctl("ipv4.tcp_timestamps", stamps)
            connection = stack.enter_context(transfer(link.a, link.b, ipv6=ipv6))
            connection.sender.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, RATE // 8)
            link.wire.reset()
            connection.send_slowly_read(BYTES, pause_s=0)
            port = connection.remote[1]
            (sender,) = oracle.sockets(link.a.ns, "dport", "=", f":{port}")
            held, _ = link.wire.report()
            dsacks = int(sender.info.get("dsack_dups", 0))
            told[kind] = (port, sender.retransmits, dsacks, held.reordered, held.duplicated)
        frames = [nettop.more_frames(2)[-1] for nettop in both]
    found = {}
    for kind, (port, *counts) in told.items():
        found[kind] = Sent(*counts, *(flow([frame], port=port) for frame in frames))
        print(f"{kind}: {found[kind]}")
    return found


def test_what_the_wire_reorders_is_not_sent_again(lab: Lab) -> None:
    """2 % by 0.3 ms: two segments overtake one, within a tick of TSval."""
    for sent in send(lab, Direction(delay_ms=2, reorder=0.02, reorder_extra_ms=0.3)).values():
        assert sent.near["tx_retransmits_total"] == sent.retransmitted
        assert sent.far["rx_retransmits_total"] == sent.retransmitted
        # Those that nothing overtakes, since a pause came after them, are in order all the same.
        assert sent.reordered / 2 <= sent.far["rx_out_of_order_total"] <= sent.reordered
        assert sent.near["tx_out_of_order_total"] == sent.far["rx_duplicates_total"] == 0
        assert sent.far["rx_uncertain_total"] == 0


def test_what_comes_after_it_was_sent_again_was_late_and_not_copied(lab: Lab) -> None:
    """2 % by 20 ms, five round trips: the sender repeats each of them, and is told that it need not have (DSACK)."""
    for kind, sent in send(lab, Direction(delay_ms=2, reorder=0.02, reorder_extra_ms=20)).items():
        assert sent.near["tx_retransmits_total"] == sent.retransmitted > 20
        # The kernel does not count every one that it is told of (tcp_input.c, tcp_dsack_seen).
        assert sent.dsacks <= sent.near["tx_unneeded_total"] == sent.far["rx_unneeded_total"]
        assert sent.near["tx_unneeded_total"] - sent.dsacks <= 1
        if kind != "v6":  # which has nothing to tell them by
            again, late = sent.far["rx_retransmits_total"], sent.far["rx_out_of_order_total"]
            # Of the last before a pause the repetition came first and in order: the other looks like a copy of it.
            last = sent.retransmitted - again
            assert last <= 0.2 * sent.retransmitted
            assert (late, sent.far["rx_duplicates_total"]) == (sent.reordered - last, last)
            assert sent.far["rx_uncertain_total"] == 0


def test_what_the_wire_copies_is_not_sent_again(lab: Lab) -> None:
    for kind, sent in send(lab, Direction(delay_ms=2, duplicate=0.03)).items():
        assert sent.duplicated > 20
        assert (
            sent.far["rx_retransmits_total"] == sent.near["tx_retransmits_total"] == sent.retransmitted == 0
        )
        assert sent.far["rx_out_of_order_total"] == 0
        # IPv6 has no ID: a copy that comes at once, with the newest TSval, may as well be a hasty retransmission.
        if kind.startswith("v4"):
            assert (sent.far["rx_duplicates_total"], sent.far["rx_uncertain_total"]) == (sent.duplicated, 0)
        assert sent.far["rx_duplicates_total"] + sent.far["rx_uncertain_total"] == sent.duplicated
        assert sent.near["tx_unneeded_total"] == sent.far["rx_unneeded_total"] == sent.dsacks


def test_what_is_sent_again_is_what_the_sender_counts(lab: Lab) -> None:
    for kind, sent in send(lab, Direction(delay_ms=2, loss=0.02)).items():
        assert sent.retransmitted > 20
        assert sent.near["tx_retransmits_total"] == sent.retransmitted
        assert sent.near["tx_uncertain_total"] == sent.near["tx_duplicates_total"] == 0
        # Behind the loss: without timestamps and IDs a gap that is filled may be either; and some are lost again.
        told = "rx_uncertain_total" if kind == "v6" else "rx_retransmits_total"
        assert 0.8 * sent.retransmitted <= sent.far[told] <= sent.retransmitted
        assert sent.far["rx_out_of_order_total"] == sent.far["rx_duplicates_total"] == 0


def test_all_of_it_at_once(lab: Lab) -> None:
    wire = Direction(delay_ms=2, loss=0.01, reorder=0.02, reorder_extra_ms=0.5, duplicate=0.01)
    for kind, sent in send(lab, wire).items():
        assert sent.near["tx_retransmits_total"] == sent.retransmitted
        assert sent.near["tx_unneeded_total"] == sent.dsacks
        assert sent.far["rx_retransmits_total"] <= sent.retransmitted
        assert 0 < sent.far["rx_out_of_order_total"] <= sent.reordered
        if kind.startswith("v4"):
            assert sent.far["rx_retransmits_total"] >= 0.8 * sent.retransmitted
            # One that was sent again and is overtaken, too, has an older ID and looks like a copy.
            assert abs(sent.far["rx_duplicates_total"] - sent.duplicated) <= 2


@pytest.mark.parametrize("stamps", [True, False], ids=["timestamps", "no-timestamps"])
def test_single_bytes_that_are_really_sent_twice(lab: Lab, stamps: bool) -> None:
    """Their ACKs are lost, so a timer has them sent again: no keep-alives, though they are one byte."""
    good = Direction(delay_ms=2)
    link = lab.wire(good, good)
    assert link.wire
    link.a.ns.sysctl("ipv4.tcp_timestamps", int(stamps))
    with contextlib.ExitStack() as stack:
        ends = stack.enter_context(watching_both(lab, link))
        connection = stack.enter_context(transfer(link.a, link.b))
        for _ in range(20):  # so that the IDs are seen to increase
            connection.sender.sendall(b".")
            time.sleep(0.01)
        for _ in range(5):
            link.wire.set(good, Direction(delay_ms=2, loss=1.0))
            connection.sender.sendall(b".")
            time.sleep(0.12)
            link.wire.set(good, good)
            time.sleep(0.25)
        again = oracle.netstat(link.a.ns)["TcpRetransSegs"]  # of the namespace, which has no other connection
        rows = [flow([nettop.more_frames(3)[-1]], port=connection.remote[1]) for nettop in ends]
    assert again >= 5
    assert rows[0]["tx_retransmits_total"] == again
    assert rows[1]["rx_retransmits_total"] == again
    assert rows[0]["tx_probes_total"] == rows[1]["rx_probes_total"] == 0


def test_keep_alives_and_window_probes_are_probes(lab: Lab) -> None:
    link = lab.wire(Direction(delay_ms=2))
    with contextlib.ExitStack() as stack:
        ends = stack.enter_context(watching_both(lab, link))
        quiet = stack.enter_context(transfer(link.a, link.b))
        stalled = stack.enter_context(transfer(link.a, link.b, receive_buffer=4096))
        quiet.sender.sendall(b"?")
        for option in (TCP_KEEPIDLE, TCP_KEEPINTVL):
            quiet.sender.setsockopt(socket.IPPROTO_TCP, option, 1)
        quiet.sender.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        stalled.sender.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            stalled.sender.send(b"x" * 1_000_000)
        time.sleep(3.5)
        counters = oracle.netstat(link.a.ns)
        rows = {
            name: [flow([nettop.more_frames(2)[-1]], port=c.remote[1]) for nettop in ends]
            for name, c in (("quiet", quiet), ("stalled", stalled))
        }
    alive, probes = counters["TcpExtTCPKeepAlive"], counters["TcpExtTCPWinProbe"]
    print(f"keep-alives {alive}, window probes {probes}")
    assert alive >= 2
    assert probes >= 2
    for name, expected in (("quiet", alive), ("stalled", probes)):
        for row, way in zip(rows[name], ("tx", "rx"), strict=True):
            # One may come between the reading of the counters and the frame.
            assert expected <= row[f"{way}_probes_total"] <= expected + 1, (name, row)
            assert row["loss"]["uncertain_total"] == 0
    # What the small buffer could not take the kernel has sent again; the probes are none of it.
    again = sum(rows[name][0]["tx_retransmits_total"] for name in rows)
    assert again == counters["TcpRetransSegs"] < alive + probes


def test_a_byte_beyond_a_closed_window_and_then_the_whole(lab: Lab) -> None:
    """As other systems probe: with the next byte. What comes when the window opens is sent for the first time."""
    link = lab.veth()
    talk = Talk(link, 1).with_(stamps=False).open()
    talk.near(5, seq=1, ack=1, length=1000).far(5, seq=1, ack=1001, window=0)
    for _ in range(5):
        talk.near(30, seq=1001, ack=1, length=1).far(5, seq=1, ack=1001, window=0)
    talk.far(5, seq=1, ack=1001)
    for number in range(40):
        talk.near(0.1, seq=1001 + 1448 * number, ack=1, length=1448)
    with watching(lab, link.a) as nettop:
        play_all(lab, [talk])
        row = flow(nettop.more_frames(3), remote_port=8000)
    assert (row["tx_probes_total"], row["retransmits_total"], row["loss"]["uncertain_total"]) == (5, 0, 0)


def test_an_overlap_counts_the_segments_that_it_covers(lab: Lab) -> None:
    """One packet of forty segments by GSO, of which the first was sent before."""
    link = lab.veth()
    talk = Talk(link, 2).with_(stamps=False).open()
    talk.near(5, seq=1, ack=1, length=1448)
    with watching(lab, link.a) as nettop:
        play_all(lab, [talk])
        packets.send_gso(lab, link.a, _large(talk, 1448 * 40), 1448)
        row = flow(nettop.more_frames(3), remote_port=8000)
    assert row["tx_packets_total"] == 3 + 40
    assert row["tx_retransmits_total"] == 1


# What comes before the segment that shows a gap, and what is then made of what fills the gap 5 ms later, within half a
# round trip: overtaken, or not to be told.
BEFORE_A_GAP = {"nothing": (1, 0), "a retransmission": (0, 2), "a pause": (0, 1)}


@pytest.mark.timing
@pytest.mark.parametrize("what", BEFORE_A_GAP)
def test_a_gap_may_be_filled_again_as_soon_as_it_is_seen(lab: Lab, what: str) -> None:
    """No ACK has asked for it since: but one for what was sent after it may have, or a timer. IPv6 has no ID."""
    link = lab.veth()
    talk = Talk(link, 3, ipv6=True).with_(stamps=False)
    talk.near(seq=0, flags=packets.SYN).far(200, seq=0, ack=1, flags=packets.SYN | packets.ACK)
    talk.near(seq=1, ack=1).far(5, seq=1, ack=1, length=1000)
    if what == "a retransmission":
        talk.far(seq=2001, ack=1, length=1000).far(150, seq=1001, ack=1, length=1000)
    else:
        talk.far(5, seq=1001, ack=1, length=1000).far(seq=2001, ack=1, length=1000)
    talk.far(60 if what == "a pause" else 0, seq=4001, ack=1, length=1000)
    talk.far(5, seq=3001, ack=1, length=1000)
    with watching(lab, link.a) as nettop:
        play_all(lab, [talk])
        row = flow(nettop.more_frames(3), remote_port=8000)
    assert (row["rx_out_of_order_total"], row["rx_uncertain_total"]) == BEFORE_A_GAP[what]
    assert row["rx_retransmits_total"] == row["rx_duplicates_total"] == 0


def _large(talk: Talk, length: int) -> bytes:
    near, far = talk.near_address, talk.far_address
    segment = packets.tcp(near, far, 40_000, 8000, seq=1001, ack=5001, payload=bytes(length))
    return packets.ethernet(talk.link.a, talk.link.b, packets.ip(near, far, 6, segment))


def test_syns_and_fins_that_are_sent_again_count(lab: Lab) -> None:
    good, broken = Direction(delay_ms=2), Direction(delay_ms=2, loss=1.0)
    link = lab.wire(broken, good)
    assert link.wire
    wire = link.wire
    with watching(lab, link.a, delay="0.25") as nettop:
        threading.Timer(0.5, wire.set, (good, good)).start()
        with transfer(link.a, link.b) as connection:
            port = connection.remote[1]
            connection.sender.sendall(b"?")
            assert connection.receiver.recv(1) == b"?"
            time.sleep(0.1)
            before = flow(nettop.more_frames(2), remote_port=port)
            assert before["tx_retransmits_total"] == oracle.netstat(link.a.ns)["TcpRetransSegs"] == 1
            wire.set(broken, good)
            connection.sender.shutdown(socket.SHUT_WR)
            time.sleep(0.3)
            wire.set(good, good)
            time.sleep(0.6)
            after = flow(nettop.more_frames(2), remote_port=port)
            assert after["tx_retransmits_total"] == oracle.netstat(link.a.ns)["TcpRetransSegs"] >= 2
            assert after["state"] == "closing"


def test_both_ends_open_at_once(lab: Lab) -> None:
    """Two SYNs cross, and each is answered with another that acknowledges: nothing is sent again."""
    link = lab.wire(Direction(delay_ms=20))
    with contextlib.ExitStack() as stack:
        ends = stack.enter_context(watching_both(lab, link))
        both = [stack.enter_context(end.ns.call(socket.socket)) for end in (link.a, link.b)]
        ports = fresh_port(), fresh_port()
        for each, end, port in zip(both, (link.a, link.b), ports, strict=True):
            each.bind((end.v4, port))
        dials = [
            threading.Thread(target=each.connect, args=((end.v4, port),))
            for each, end, port in zip(both, (link.b, link.a), reversed(ports), strict=True)
        ]
        for dial in dials:
            dial.start()
        for dial in dials:
            dial.join()
        both[0].sendall(b"hello")
        assert both[1].recv(16) == b"hello"
        rows = [flow([nettop.more_frames(2)[-1]], port=ports[1]) for nettop in ends]
        assert [oracle.netstat(end.ns)["TcpRetransSegs"] for end in (link.a, link.b)] == [0, 0]
    for row in rows:
        assert (row["state"], row["rx_packets_total"], row["tx_packets_total"]) == ("open", 4, 4)
        assert row["retransmits_total"] == row["loss"]["uncertain_total"] == row["out_of_order_total"] == 0

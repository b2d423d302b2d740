"""What devices and queues count that only a guest's kernel has, or counts by other fields than the host's: exactly.

tests/live/devices.py measures all of them with all settings, for docs/devices.md.
"""

import devices
import pytest
from lab import Lab

SETTINGS = {name: devices.SETTINGS[name] for name in ("all on", "tso off")}
QUEUES = {name: (devices.QUEUES | devices.MORE_QUEUES)[name] for name in ("none", "cake", "netem delay")}


def counts_as_itself(kind: str) -> None:
    rows = list(devices.rows((devices.HERE | devices.ELSEWHERE)[kind], SETTINGS))
    print(*rows, sep="\n")
    assert len(rows) == len(SETTINGS)
    assert [str(row) for row in rows if not row.equal] == []


def test_bytes_and_packets_of_a_veth_are_its_own_whether_it_cuts_them_up_or_not() -> None:
    """Where TSO is off the kind of each packet is read from the kernel's structures, which lie otherwise in 6.1."""
    counts_as_itself("veth")


@pytest.mark.parametrize("kind", ["8021q", "bond active-backup", "gre", "ipip", "ipvlan l2", "ppp"])
def test_a_device_that_the_host_lacks_counts_as_it_does_itself(kind: str) -> None:
    counts_as_itself(kind)


def test_wireguard_counts_its_messages_and_the_pane_says_so() -> None:
    for row in devices.rows(devices.ELSEWHERE["wireguard"], SETTINGS):
        for way in ("rx", "tx"):
            assert row.counted[f"{way} bytes"] < row.own[f"{way} bytes"]
        assert row.differs.startswith("wireguard counts the encrypted messages")


def test_what_a_tunnels_own_gro_merges_is_said() -> None:
    """Over a veth of this host, which has not merged it: a note has the share."""
    (row,) = devices.rows(
        devices.ELSEWHERE["gre"], {"tunnel segmentation off": devices.SETTINGS["tunnel segmentation off"]}
    )
    assert row.counted["rx packets"] < row.own["rx packets"]
    assert "% of the packets received are not seen, or are merged or cut up" in row.differs


@pytest.mark.parametrize("kind", ["gre", "geneve"])
def test_below_a_tunnel_are_the_connections_in_it(kind: str) -> None:
    devices.check_below(devices.ELSEWHERE[f"veth below {kind}"], (kind, 7 if kind == "geneve" else 0))


@pytest.mark.parametrize("kind", ["8021q", "bond active-backup"])
def test_stages_of_a_device_above_another(kind: str) -> None:
    """What its packets went through below is the lower device's; from IP on they are followed to their reader."""
    with Lab() as lab, devices.watched(lab, devices.ELSEWHERE[kind], "throughput,stages") as (device, watch):
        devices.exchange(device)
        with watch.observing() as seen:
            devices.exchange(device)
    for way, last in (("rx", "application"), ("tx", "driver")):
        sums = {
            stage: [sum(row[name] or 0 for f in seen.frames for row in f["stages"][way] if row["stage"] == stage)
                    for name in ("matched", "missed")]
            for stage in (last, "local" if way == "rx" else "ip")
        }  # fmt: skip
        for stage, (matched, missed) in sums.items():
            assert matched > 10, (way, stage, sums)
            assert missed <= matched // 50, (way, stage, sums)
    # A veth is below, which has no completion.
    assert not sum(row["matched"] for f in seen.frames for row in f["stages"]["tx"] if row["stage"] == "done")
    frame = seen.frames[-1]
    assert frame["health"]["untracked_packets"] is None  # the flows do not run


def test_what_a_queue_cuts_up_counts_as_the_device_counts_it() -> None:
    """cake cuts up what the device could take whole, netem does not; each takes the other's place while nettop runs."""
    rows = list(devices.queue_rows(devices.veth, QUEUES))
    print(*rows, sep="\n")
    assert len(rows) == 2 * len(QUEUES)
    assert [str(row) for row in rows if not row.equal] == []

"""What devices and queues count that only a guest's kernel has, or counts by other fields than the host's: exactly.

tests/live/devices.py measures all of them with all settings, for docs/devices.md.
"""

import devices
import pytest

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


@pytest.mark.parametrize("kind", ["8021q", "bond active-backup", "gre", "ppp"])
def test_a_device_that_the_host_lacks_counts_as_it_does_itself(kind: str) -> None:
    counts_as_itself(kind)


def test_what_a_queue_cuts_up_counts_as_the_device_counts_it() -> None:
    """cake cuts up what the device could take whole, netem does not; each takes the other's place while nettop runs."""
    rows = list(devices.queue_rows(devices.veth, QUEUES))
    print(*rows, sep="\n")
    assert len(rows) == 2 * len(QUEUES)
    assert [str(row) for row in rows if not row.equal] == []

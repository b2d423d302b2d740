"""The fold of the interrupt path, its parsers and its pane."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from fakes import assert_fits
from lab import layouts

from nettop.core.frame import SECONDS, Frame, Health
from nettop.core.histogram import Histogram, bucket_of
from nettop.netdev.interrupts import Softnet, device_lines, parse_interrupts, parse_softnet, room
from nettop.probes.base import Reads, Setup
from nettop.probes.irq import pane as irq_pane
from nettop.probes.irq.fold import VECTORS, IrqFold
from nettop.probes.irq.probe import PROBE
from nettop.probes.irq.section import Cpu, Irq
from nettop.render.canvas import Canvas, text_of

SOFTIRQ, POLLER, LINE, WAIT = (
    layouts.of("irq")[name].value for name in ("softirqs", "pollers", "lines", "waits")
)
SECOND = 1_000_000_000
CPUS = 2
NET_RX = VECTORS.index("NET_RX")


class Kernel:
    """Maps as the programs leave them."""

    def __init__(self) -> None:
        self.softirqs = np.zeros((len(VECTORS), CPUS), SOFTIRQ)
        self.pollers = np.zeros((2, CPUS), POLLER)
        self.keys = np.zeros(0, "u4")
        self.lines = np.zeros(0, LINE)
        self.waits = np.zeros(0, WAIT)
        self.softnet: tuple[Softnet, ...] | None = (Softnet(0, 0, 0, 0), Softnet(1, 0, 0, 0))
        self.own: frozenset[int] | None = frozenset({38})

    def interrupt(self, irq: int, name: bytes, ns: int, count: int = 1) -> None:
        if irq not in self.keys:
            self.keys = np.append(self.keys, np.uint32(irq))
            self.lines = np.append(self.lines, np.zeros(1, LINE))
            self.waits = np.append(self.waits, np.zeros(1, WAIT))
        line = self.lines[list(self.keys).index(irq)]
        line["name"] = name
        line["run"]["sum"] += ns * count
        line["run"]["slots"][bucket_of(ns)] += count
        wait = self.waits[list(self.keys).index(irq)]
        wait["to_poll"]["slots"][bucket_of(2 * ns)] += count
        wait["to_poll"]["sum"] += 2 * ns * count

    def softirq(self, vector: int, cpu: int, wait: int, run: int, count: int = 1) -> None:
        for name, ns in (("wait", wait), ("run", run)):
            self.softirqs[vector, cpu][name]["sum"] += ns * count
            self.softirqs[vector, cpu][name]["slots"][bucket_of(ns)] += count

    def reads(self) -> Reads:
        maps = {
            "softirqs": self.softirqs,
            "pollers": self.pollers,
            "lines": (self.keys, self.lines),
            "waits": (self.keys, self.waits),
        }
        return Reads(0, SECOND, maps, {"softnet": self.softnet, "interrupt_lines": self.own})


def folded(fold: IrqFold, kernel: Kernel) -> Irq:
    return fold(kernel.reads()).section  # type: ignore[return-value]


@pytest.fixture
def fold() -> IrqFold:
    return IrqFold(Setup("eth0", CPUS))


def test_an_interval_is_what_was_added(fold):
    kernel = Kernel()
    kernel.softirq(NET_RX, 0, 2_000, 9_000, 5)
    kernel.softirq(NET_RX, 1, 4_000, 9_000, 6)
    kernel.interrupt(38, b"virtio2-input.0", 1_000, 3)
    folded(fold, kernel)
    kernel.softirq(NET_RX, 1, 4_000, 9_000, 13)
    kernel.interrupt(38, b"virtio2-input.0", 1_000, 17)
    section = folded(fold, kernel)
    found = next(s for s in section.soft if s.vector == "NET_RX")
    assert (found.wait.count, found.run.count, found.wait.sum_ns) == (13, 13, 52_000)
    assert section.hard[0].latency.count == 17
    assert section.poll[0].irq_to_poll.count == 17


def test_the_devices_own_lines_come_first(fold):
    kernel = Kernel()
    kernel.interrupt(36, b"disk", 1_000, 500)
    kernel.interrupt(38, b"eth0-rx-0", 1_000, 2)
    section = folded(fold, kernel)
    assert [(x.irq, x.own) for x in section.hard] == [(38, True), (36, False)]
    assert section.hardware is True
    assert section.poll[0].irq_to_poll.count == 2  # not the disk's


def test_what_was_missed_is_of_the_interval_and_of_the_own_lines(fold):
    kernel = Kernel()
    kernel.interrupt(38, b"eth0-rx-0", 1_000, 2)
    kernel.interrupt(40, b"eth1-rx-0", 1_000, 2)
    kernel.waits["missed"] = (3, 5)
    folded(fold, kernel)
    kernel.waits["missed"] = (7, 10)
    section = folded(fold, kernel)
    assert [p.irq_missed for p in section.poll] == [4, None]
    assert [p.irq_missed for p in Irq.from_frame(section.in_frame(0, "")).poll] == [4, None]


def test_there_is_room_for_every_line_of_the_machine():
    """A server with a line for each queue of each disk and NIC has thousands."""
    text = "      CPU0 CPU1\n" + "".join(f"{n:5}: 1 2 PCI-MSI {n}-edge x{n}\n" for n in range(3000))
    assert room(text) >= 3000
    assert room("") == 256


def test_what_is_not_known_is_none(fold):
    kernel = Kernel()
    kernel.interrupt(36, b"disk", 1_000)
    kernel.own, kernel.softnet = None, None
    section = folded(fold, kernel)
    assert section.hard[0].own is None
    assert section.hardware is None
    assert section.cpus is None
    assert section.poll[0].irq_to_poll is None
    kernel.own = frozenset()
    assert folded(fold, kernel).hardware is False


def test_softnet_counters_are_of_the_interval_and_come_round(fold):
    kernel = Kernel()
    kernel.softnet = (Softnet(0, 0xFFFFFFF0, 1, 0),)
    folded(fold, kernel)
    kernel.softnet = (Softnet(0, 0x10, 4, 2), Softnet(1, 9, 9, 9))
    assert folded(fold, kernel).cpus == (Cpu(0, 32, 3, 2), Cpu(1, 0, 0, 0))


def test_json_there_and_back(fold):
    kernel = Kernel()
    kernel.interrupt(38, b"eth0\x1b[31m", 5_000, 2)
    kernel.softirq(NET_RX, 0, 1_000, 2_000)
    section = folded(fold, kernel)
    data = section.in_frame(1, "")
    assert "\x1b" not in section.hard[0].name
    assert PROBE.section.from_frame(data).in_frame(1, "") == data
    assert PROBE.section.from_frame({}).in_frame(1, "")["irq"]["cpus"] is None


def test_softnet_names_its_cpus():
    text = "000d751b 0000000a 00000002 0 0 0 0 0 0 0 0 00000000 00000003 0 0\n"
    assert parse_softnet(text) == (Softnet(3, 0xD751B, 10, 2),)


def test_interrupts_of_any_column_layout():
    text = (
        "           CPU0       CPU1\n"
        " 24:          1          0  IO-APIC   5-edge      ACPI:Ged\n"
        " 32:        721          4 PCI-MSIX-0000:00:01.0   4-edge      virtio0-input.0\n"
        " 33:         10         20 PCI-MSI 16385-edge      eth0, ehci_hcd:usb1\n"
        "NMI:          0          0   Non-maskable interrupts\n"
        "ERR:          0\n"
    )
    assert parse_interrupts(text) == {
        24: (1, "ACPI:Ged"),
        32: (725, "virtio0-input.0"),
        33: (30, "eth0, ehci_hcd:usb1"),
    }
    assert parse_interrupts("") == {}


def test_a_device_and_its_lines(tmp_path: Path):
    """As sysfs has them: virtio below PCI, a pin, a device without either."""
    pci = tmp_path / "devices/pci0000:00/0000:00:03.0"
    virtio = pci / "virtio2"
    virtio.mkdir(parents=True)
    (pci / "msi_irqs").mkdir()
    for number in (37, 38, 39):
        (pci / "msi_irqs" / str(number)).write_text("msix\n")
    pin = tmp_path / "devices/pci0000:00/0000:00:04.0"
    pin.mkdir(parents=True)
    (pin / "irq").write_text("11\n")
    bare = tmp_path / "devices/platform/eth.0"
    bare.mkdir(parents=True)
    for bus, place in (("virtio", virtio), ("pci", pin), ("platform", bare)):
        devices = tmp_path / "bus" / bus / "devices"
        devices.mkdir(parents=True)
        (devices / place.name).symlink_to(place)
    assert device_lines("virtio", "virtio2", tmp_path) == {37, 38, 39}
    assert device_lines("pci", "0000:00:04.0", tmp_path) == {11}
    assert device_lines("platform", "eth.0", tmp_path) == frozenset()
    with pytest.raises(FileNotFoundError):
        device_lines("pci", "gone0", tmp_path)


def history(hardware: bool) -> list[Frame]:
    kernel, fold = Kernel(), IrqFold(Setup("eth0", CPUS))
    if not hardware:
        kernel.own = frozenset()
    result = []
    for number in range(12):
        kernel.interrupt(38, b"eth0-rx-0", 1_500, 100)
        kernel.interrupt(36, b"virtio1-req.0", 5_000, 3)
        kernel.softirq(NET_RX, 0, 2_000, 30_000, 90)
        kernel.softirq(VECTORS.index("RCU"), 0, 2_000, 30_000, 9)
        for name, count in (("polls", 100), ("work", 1_210), ("exhausted", 4)):
            kernel.pollers[0 if hardware else 1, 0][name] += count
        kernel.softnet = (Softnet(0, 1_000 * number, 0, number), Softnet(1, 10 * number, 0, 0))
        result.append(Frame(number * SECOND, SECOND, "h", "eth0", sections={"irq": folded(fold, kernel)}))
    return result


def shown(frames: list[Frame], canvas: Canvas) -> list[str]:
    return [text_of(row) for row in irq_pane.pane(frames, canvas)]


def test_the_pane_of_a_card():
    text = "\n".join(shown(history(True), Canvas(100, 12)))
    parts = "eth0-rx-0, NET_RX wait, NET_RX run, irq→poll, poll work 12.1 of 64, budget spent 4, squeezed 1"
    assert [part for part in parts.split(", ") if part not in text] == []
    assert "virtio1-req.0" not in text
    zoomed = "\n".join(shown(history(True), Canvas(100, 40, zoomed=True)))
    assert "virtio1-req.0" in zoomed
    assert "RCU run" in zoomed


def resting(one_in: int, silent: int) -> list[Frame]:
    """Frames a second apart, the last ones of which are from while the hooks were not attached."""
    frames = history(True)
    health = Health(shed={SECONDS: one_in})
    stretched = [replace(f, time_ns=(n + 1) * SECOND, health=health) for n, f in enumerate(frames)]
    # The same lines and softirqs, without a sample.
    section, empty = frames[-1].sections["irq"], Histogram.empty()
    nothing = replace(
        section,
        hard=tuple(replace(line, latency=empty) for line in section.hard),
        soft=tuple(replace(s, wait=empty, run=empty) for s in section.soft),
        poll=tuple(
            replace(p, run=empty, irq_to_poll=empty, polls=0, work=0, budget_exhausted=0)
            for p in section.poll
        ),
    )
    return stretched + [
        replace(stretched[-1], time_ns=(len(frames) + n + 1) * SECOND, sections={"irq": nothing})
        for n in range(silent)
    ]


@pytest.mark.parametrize(("one_in", "silent", "held"), [(8, 3, True), (1, 3, False), (4, 20, False)])
def test_while_the_budget_lets_it_rest_the_last_values_stay_with_their_age(one_in, silent, held):
    """No holes in six of eight frames; but nothing is carried on where nothing is what was measured, nor for ever."""
    lines = shown(resting(one_in, silent), Canvas(100, 12))
    waited = next(row for row in lines if "NET_RX wait" in row)
    assert ("NET_RX wait 3 s" in waited) is held
    assert ("2.02 µs" in waited) is held


def test_while_it_rests_every_column_and_every_line_keeps_its_last_value():
    """All of the pane as it was, but for the ages that it names."""
    was, held = (shown(resting(8, silent), Canvas(110, 40, zoomed=True)) for silent in (0, 3))
    rows = was.index(next(text for text in was if text.startswith("poll work")))
    assert [text.split()[0] for text in held[:rows]] == [text.split()[0] for text in was[:rows]]
    for then, now in zip(was[1:rows], held[1:rows], strict=True):
        assert now.split()[-1] == then.split()[-1], "the rate"
        assert (" 3 s " in now) == (then.split()[-1] != "-"), "and its age"
    assert held[rows].split("  ")[:2] == ["poll work 12.1 of 64", "3 s ago"]
    assert "budget spent 4" in held[rows]
    assert irq_pane.names(resting(8, 3)) == irq_pane.names(resting(8, 0))
    assert (
        irq_pane.subtitle(resting(8, 3), Canvas(60, 1))
        == irq_pane.subtitle(resting(8, 0), Canvas(60, 1)) + " · 3 s ago"
    )
    small = [text_of(row) for row in irq_pane.compact(resting(8, 3), Canvas(110, 2))]
    assert all("3 s ago" in text for text in small)


def test_the_pane_of_a_device_without_interrupts_says_so():
    text = "\n".join(shown(history(False), Canvas(100, 12)))
    assert "no hardware interrupts" in text
    assert "backlog poll" in text
    assert "irq→poll" not in text


@pytest.mark.parametrize("width", [1, 3, 11, 30, 50, 80, 121])
@pytest.mark.parametrize("selected", ["", "NET_RX wait", "irq 38", "irq to poll", "poll"])
def test_no_line_is_wider_or_more_than_the_canvas(width, selected):
    for made in (history(True), history(False)):
        for height, zoomed in product((1, 2, 5, 11, 40), (True, False)):
            canvas = Canvas(width, height, zoomed, (3, 4), selected)
            assert_fits(irq_pane.pane(made, canvas), width, height)

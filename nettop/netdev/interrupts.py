"""What the system says of interrupts: the device's own lines, and softnet's counters per CPU.

READINGS maps a name, as probes use it in ``Probe.system``, to a function of the interface's name.  They raise OSError
where there is nothing to read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nettop.netdev import netlink

_SYSTEM = Path("/sys")


@dataclass(frozen=True)
class Softnet:
    """One CPU's counters since boot (net/core/net-procfs.c)."""

    cpu: int
    processed: int
    dropped: int
    time_squeeze: int


def parse_softnet(text: str) -> tuple[Softnet, ...]:
    """/proc/net/softnet_stat: a line for each CPU that is online, in hexadecimal."""
    rows = ([int(word, 16) for word in line.split()] for line in text.splitlines())
    return tuple(Softnet(words[12], *words[:3]) for words in rows)  # the 13th is the CPU's number


def parse_interrupts(text: str) -> dict[int, tuple[int, str]]:
    """/proc/interrupts: by number, how often all CPUs together, and the names of its handlers.

    Chip and pin stand between them in as many columns as the kernel's version likes; the names come last.
    """
    lines = text.splitlines()
    cpus = len(lines[0].split()) if lines else 0
    result: dict[int, tuple[int, str]] = {}
    for line in lines[1:]:
        number, colon, rest = line.partition(":")
        if not colon or not number.strip().isdigit():
            continue
        words = rest.split()
        first = len(words) - 1
        # Handlers of a shared line are separated by commas: "eth0, ehci_hcd:usb1".
        while first > cpus and words[first - 1].endswith(","):
            first -= 1
        name = " ".join(words[first:]) if len(words) > cpus else ""
        result[int(number)] = (sum(int(c) for c in words[:cpus] if c.isdigit()), name)
    return result


def room(text: str | None = None) -> int:
    """How many interrupt lines a table must hold, so that none is left out, with some for devices that come later."""
    if text is None:
        try:
            text = Path("/proc/interrupts").read_text()
        except OSError:
            return 256
    return min(max(2 * len(parse_interrupts(text)), 256), 1 << 16)


def softnet(_interface: str) -> tuple[Softnet, ...]:
    """Softnet's counters of this machine: they are the same in every network namespace."""
    return parse_softnet(Path("/proc/net/softnet_stat").read_text())


def device_lines(bus: str, name: str, system: Path = _SYSTEM) -> frozenset[int]:
    """Numbers of the interrupt lines of a device on its bus (``pci``, ``0000:00:03.0``).

    The network device hangs from the one that has the interrupts, or (virtio) from a child of that: the nearest one
    above it that has a list of message-signalled interrupts, or a pin's, is it.
    """
    device = (system / "bus" / bus / "devices" / name).resolve(strict=True)
    top = system.resolve()
    while device != top and device != device.parent:
        messages = device / "msi_irqs"
        if messages.is_dir():
            return frozenset(int(entry.name) for entry in messages.iterdir() if entry.name.isdigit())
        pin = device / "irq"
        if pin.is_file() and (number := int(pin.read_text())) > 0:
            return frozenset({number})
        device = device.parent
    return frozenset()


def interface_lines(interface: str) -> frozenset[int]:
    """Those of the interface's device; empty for a virtual one, which has no hardware.

    Netlink names the device, of our own network namespace; /sys/class/net may be mounted for another one.
    """
    found = netlink.interface(interface)
    return device_lines(found.bus, found.device) if found.device else frozenset()


READINGS: Mapping[str, Callable[[str], Any]] = {"softnet": softnet, "interrupt_lines": interface_lines}

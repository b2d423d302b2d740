"""What a driver says of itself, by the ethtool ioctl: right in every network namespace, and open to everybody.

Source: include/uapi/linux/ethtool.h.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_GSET = 0x01
_GDRVINFO = 0x03
_UNKNOWN_SPEED = 0xFFFFFFFF


def _ask(interface: str, request: bytes) -> bytes | None:
    buffer = array.array("B", request)
    address, _ = buffer.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP", interface.encode(), address))
        except OSError:
            return None
    return buffer.tobytes()


def driver(interface: str) -> str:
    """The driver's name; empty where there is none (lo)."""
    answer = _ask(interface, struct.pack("I", _GDRVINFO).ljust(196, b"\0"))
    return answer[4:36].split(b"\0", 1)[0].decode(errors="replace") if answer else ""


def speed_bits_per_s(interface: str) -> int | None:
    """The link's speed as its driver says it (struct ethtool_cmd: speed at 12 and 28); None where it does not know."""
    answer = _ask(interface, struct.pack("I", _GSET).ljust(44, b"\0"))
    if not answer:
        return None
    megabits = struct.unpack_from("=H", answer, 12)[0] | struct.unpack_from("=H", answer, 28)[0] << 16
    return megabits * 1_000_000 if 0 < megabits != _UNKNOWN_SPEED else None

"""What a driver says of itself, by the ethtool ioctl: right in every network namespace, and open to everybody.

Source: include/uapi/linux/ethtool.h.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_GDRVINFO = 0x03
TSO = 0x1E  # ETHTOOL_GTSO
GRO = 0x2B  # ETHTOOL_GGRO


def _ask(interface: str, request: bytes) -> bytes | None:
    buffer = array.array("B", request)
    address, _ = buffer.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP", interface.encode(), address))
        except OSError:
            return None
    return buffer.tobytes()


def feature(interface: str, command: int) -> bool:
    """Whether an offload (TSO, GRO) is on; False where the driver does not say."""
    answer = _ask(interface, struct.pack("II", command, 0))
    return bool(answer and struct.unpack("II", answer)[1])


def driver(interface: str) -> str:
    """The driver's name; empty where there is none (lo)."""
    answer = _ask(interface, struct.pack("I", _GDRVINFO).ljust(196, b"\0"))
    return answer[4:36].split(b"\0", 1)[0].decode(errors="replace") if answer else ""

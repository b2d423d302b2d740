"""A pcap-filter expression -> classic BPF, by libpcap -> C text of a function that the programs call on each packet.

The two halves run in different processes.  Expressions are parsed, and host names looked up, by libpcap in the one
without privileges.  What crosses to the loader is classic BPF, a language without loops or pointers: the loader
checks it again (``check``, by the rules of bpf_check_classic in the kernel's net/core/filter.c) and translates it
itself (``to_c``), so that no text that the other process made reaches the compiler.

Language: pcap-filter(7).  Instructions: the BSD packet filter, McCanne and Jacobson 1993; linux/bpf_common.h.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from nettop.bpf import library
from nettop.core.errors import ExitCode, NettopError

#: Link types of pcap: an Ethernet header first, or the IP header.
EN10MB = 1
RAW = 12

#: Enough for several hundred addresses or ports.  The kernel itself takes 4096 (BPF_MAXINSNS); ours are native
#: instructions in the end, about twenty for one, whose jumps reach 32767.
MAX_INSTRUCTIONS = 2048

SNAPLEN = 262144  # tcpdump's: nothing is cut off
_MAX_TEXT = 65536
_NO_MASK = 0  # so ``ip broadcast`` is 0.0.0.0 and 255.255.255.255 alone, as tcpdump's, whatever the interface
_CELLS = 16  # of M, BPF_MEMWORDS
_WORD = (1 << 32) - 1

_AD_OFF = 0xFFFFF000  # SKF_AD_OFF: loads from here on are of what the kernel knows beside the bytes
_AD = {4: "filter_packet_type(packet)", 8: "filter_ifindex(packet)"}  # SKF_AD_PKTTYPE, SKF_AD_IFINDEX

# What can be typed when looking for a row: a name, a number, an address, an address with a port.
_PLAIN = re.compile(r"\[?[^\s\x00-\x1f\x7f()!&|=<>\"'\\\[]+")
# Words of the language that want more after them.  Looking for "port" in the rows is not what is meant.
_UNFINISHED = frozenset(
    "and or not host net mask port portrange src dst less greater gateway proto protochain ether link type subtype "
    "ifindex len fddi tr wlan ppp".split()
)


class FilterError(NettopError):
    """An expression that is none; ``message`` is libpcap's own text."""

    def __init__(self, message: str, hint: str = "pcap-filter(7) has the language, as tcpdump's") -> None:
        super().__init__(message, hint, ExitCode.USAGE)


class Instruction(NamedTuple):
    """One of classic BPF (struct sock_filter)."""

    code: int
    jt: int
    jf: int
    k: int


Instructions = tuple[Instruction, ...]


@dataclass(frozen=True)
class Program:
    """A compiled expression: its text, the link type that it is for, and what it is in classic BPF."""

    text: str
    link_type: int
    instructions: Instructions

    @property
    def words(self) -> tuple[int, ...]:
        """The instructions as plain numbers, four for each: what is said to the loader."""
        return tuple(number for instruction in self.instructions for number in instruction)

    def matches(self, packet: bytes, length: int | None = None) -> bool:
        """Ask libpcap (pcap_offline_filter) about one packet of which ``length`` bytes were on the wire."""
        lib = _libpcap()
        array = (_Insn * len(self.instructions))(*(_Insn(*i) for i in self.instructions))
        program = _BpfProgram(len(array), array)
        header = _Header((0, 0), len(packet), len(packet) if length is None else length)
        return bool(lib.pcap_offline_filter(ctypes.byref(program), ctypes.byref(header), packet))


# --- libpcap ----------------------------------------------------------------------------------------------


class _Insn(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


class _BpfProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Insn)))


class _Header(ctypes.Structure):
    """struct pcap_pkthdr: struct timeval, bytes captured, bytes on the wire."""

    _fields_ = (("time", 2 * ctypes.c_long), ("captured", ctypes.c_uint), ("length", ctypes.c_uint))


_HANDLE, _INT, _TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
_PROGRAM = ctypes.POINTER(_BpfProgram)
_FUNCTIONS = {  # what each returns, and its arguments
    "pcap_open_dead": (_HANDLE, _INT, _INT),
    "pcap_compile": (_INT, _HANDLE, _PROGRAM, _TEXT, _INT, ctypes.c_uint),
    "pcap_geterr": (_TEXT, _HANDLE),
    "pcap_freecode": (None, _PROGRAM),
    "pcap_close": (None, _HANDLE),
    "pcap_offline_filter": (_INT, _PROGRAM, ctypes.POINTER(_Header), _TEXT),
}


@cache
def _libpcap() -> ctypes.CDLL:
    if found := library.load(
        ("libpcap.so.0.8", "libpcap.so.1"), _FUNCTIONS
    ):  # Debian's name, everybody else's
        return found
    raise NettopError(
        "libpcap is not installed, and filters need it",
        "apt install libpcap0.8 (Debian, Ubuntu), dnf install libpcap, pacman -S libpcap",
        ExitCode.UNSUPPORTED,
    )


def link_type(l2_len: int) -> int:
    """The link type of an interface by the bytes of its link header (``Config.l2_len``)."""
    return EN10MB if l2_len else RAW


def compile_expression(text: str, link: int = EN10MB) -> Program:
    """Compile an expression as tcpdump does.  An empty one matches everything.

    Blocks while names are looked up, and a second or more for hundreds of terms: call it in a thread.  Raises
    FilterError with libpcap's text, or NettopError (4) without libpcap.
    """
    if len(text) > _MAX_TEXT or not all(c.isprintable() or c in "\t\n" for c in text):
        raise FilterError("not an expression: too long, or with characters that cannot be printed")
    lib = _libpcap()
    handle = lib.pcap_open_dead(link, SNAPLEN)
    if not handle:
        raise FilterError("libpcap has no room for a filter")
    with ExitStack() as undo:
        undo.callback(lib.pcap_close, handle)
        program = _BpfProgram()
        if lib.pcap_compile(handle, ctypes.byref(program), text.encode(), 1, _NO_MASK) != 0:
            raise FilterError(lib.pcap_geterr(handle).decode(errors="replace"))
        undo.callback(lib.pcap_freecode, ctypes.byref(program))
        found = tuple(Instruction(i.code, i.jt, i.jf, i.k) for i in program.instructions[: program.length])
    if any(i.code == _JA and i.k > _WORD >> 1 for i in found):
        raise FilterError("protochain is a loop, which no filter in the kernel can be", "use proto instead")
    check(found)
    return Program(text, link, found)


def compile_or_word(text: str, link: int = EN10MB) -> Program | None:
    """What was typed: a Program for the kernel, or None for a plain word to look for in what is shown.

    A word is one that libpcap cannot compile, such as an address, a port or a process's name.  Blocks and raises
    as ``compile_expression`` does.
    """
    try:
        return compile_expression(text, link)
    except FilterError:
        if _PLAIN.fullmatch(text.strip()) and text.strip().lower() not in _UNFINISHED:
            return None
        raise


# --- classic BPF ------------------------------------------------------------------------------------------

_LOADS = {0x20: 4, 0x28: 2, 0x30: 1, 0x40: 4, 0x48: 2, 0x50: 1}  # LD ABS and LD IND, by size in bytes
_INDIRECT = frozenset((0x40, 0x48, 0x50))
_ALU = {0x00: "+", 0x10: "-", 0x20: "*", 0x30: "/", 0x40: "|", 0x50: "&", 0x60: "<<", 0x70: ">>"}
_ALU |= {0x90: "%", 0xA0: "^"}
_JUMPS = {  # the condition, and its opposite
    0x10: ("FILTER_STEP(a) == {}", "FILTER_STEP(a) != {}"),
    0x20: ("FILTER_STEP(a) > {}", "FILTER_STEP(a) <= {}"),
    0x30: ("FILTER_STEP(a) >= {}", "FILTER_STEP(a) < {}"),
    0x40: ("FILTER_STEP(a) & {}", "!(FILTER_STEP(a) & {})"),
}
_PLAIN_CODES = {
    0x00: "a = {k};",
    0x01: "x = {k};",
    0x02: "m{n} = a;",
    0x03: "m{n} = x;",
    0x07: "x = a;",
    0x60: "a = m{n};",
    0x61: "x = m{n};",
    0x80: "a = filter_length(packet);",
    0x81: "x = filter_length(packet);",
    0x84: "a = (u32)-a;",
    0x87: "a = x;",
}
_JA, _MSH, _RET_K, _RET_A = 0x05, 0xB1, 0x06, 0x16
_CELL_CODES = (0x02, 0x03, 0x60, 0x61)
_CODES = (
    frozenset((_JA, _MSH, _RET_K, _RET_A, *_LOADS, *_PLAIN_CODES))
    .union(0x04 | op | source for op in _ALU for source in (0, 8))
    .union(0x05 | op | source for op in _JUMPS for source in (0, 8))
)


def from_words(words: Sequence[int]) -> Instructions:
    """The instructions that ``Program.words`` gave, checked.  Raises ValueError."""
    if len(words) % 4:
        raise ValueError("a filter is in groups of four numbers")
    if len(words) > 4 * MAX_INSTRUCTIONS:
        raise ValueError(f"a filter has at most {MAX_INSTRUCTIONS} instructions")
    instructions = tuple(Instruction(*words[i : i + 4]) for i in range(0, len(words), 4))
    if instructions:
        check(instructions)
    return instructions


def check(instructions: Instructions) -> None:
    """Refuse (FilterError, ValueError) what is no classic BPF program: unknown codes, jumps back or out of it, no end.

    The same rules as the kernel's bpf_check_classic, but for the extensions, of which only the packet's direction
    and its interface are known here.
    """
    length = len(instructions)
    if length > MAX_INSTRUCTIONS:
        raise FilterError(
            f"the filter needs {length} instructions, more than {MAX_INSTRUCTIONS}", "fewer terms, or nets"
        )
    if not length or instructions[-1].code not in (_RET_K, _RET_A):
        raise ValueError("a filter ends with a return")
    for number, (code, jt, jf, k) in enumerate(instructions):
        if code not in _CODES or not (0 <= jt <= 255 and 0 <= jf <= 255 and 0 <= k <= _WORD):
            raise ValueError(f"no instruction of classic BPF: {code:#x} {jt} {jf} {k:#x}")
        left = length - number - 1
        good = True
        if code == _JA:
            good = k < left
        elif code & 7 == 5:
            good = jt < left and jf < left
        elif code in _CELL_CODES:
            good = k < _CELLS
        elif code in (0x34, 0x94):  # DIV, MOD by a constant
            good = k != 0
        elif code in (0x64, 0x74):  # shifts by a constant
            good = k < 32
        if not good:
            raise ValueError(f"instruction {number} is out of range: {code:#x} {jt} {jf} {k:#x}")


def to_c(instructions: Instructions, name: str = "filter_program") -> str:
    """C text of a function that is what the program is; bpf_src/include/filter.h has the functions that it calls.

    A, X and M are 64 bits wide and hold 32, which spares BPF, whose registers are, clearing the rest again and again.
    What is loaded from beyond the packet's end makes it return 0, as does a division by 0.  Raises as ``check``.
    """
    check(instructions)
    statements = [_statement(number, instruction) for number, instruction in enumerate(instructions)]
    text = "\n".join(line for statement in statements for line in statement)
    names = sorted(set(re.findall(r"\b(?:[ax]|m\d+)\b", text)))
    targets = set(re.findall(r"goto (l\d+);", text))
    lines = [f"static __always_inline u32 {name}(const struct filter_packet *packet)", "{"]
    if names:
        lines += [f"\tu64 {', '.join(f'{n} = 0' for n in names)};", ""]
    for number, statement in enumerate(statements):
        if f"l{number}" in targets:
            lines.append(f"l{number}:")
        lines += ["\t" + line for line in statement]
    return "\n".join([*lines, "}", ""])


def _statement(number: int, instruction: Instruction) -> list[str]:
    code, jt, jf, k = instruction
    if code in _PLAIN_CODES:
        return [_PLAIN_CODES[code].format(k=f"{k:#x}", n=k)]
    if code in _LOADS:
        return _load(code, k)
    if code == _MSH:  # the length of an IPv4 header
        return [f"if (!filter_load(packet, {k:#x}, 1, &x))", "\treturn 0;", "x = (x & 15) << 2;"]
    if code == _RET_K:
        return [f"return {int(k != 0)};"]
    if code == _RET_A:
        return ["return a != 0;"]
    if code == _JA:
        return [f"goto l{number + 1 + k};"]
    operand = "x" if code & 8 else f"{k:#x}"
    if code & 7 == 5:
        condition, opposite = _JUMPS[code & 0xF0]
        return _jump(condition.format(operand), opposite.format(operand), number + 1, jt, jf)
    operator = _ALU[code & 0xF0]
    if operand == "x" and operator in "/%":
        return ["if (!x)", "\treturn 0;", f"a = a {operator} x;"]
    if operand == "x" and operator in ("<<", ">>"):
        return [f"a = x < 32 ? (u32)(a {operator} x) : 0;"]
    return [f"a = (u32)(a {operator} {operand});"]


def _load(code: int, k: int) -> list[str]:
    if code not in _INDIRECT and k >= _AD_OFF:
        known = _AD.get(k - _AD_OFF)
        return [f"a = {known};"] if known else ["return 0;"]
    # not modulo 2^32: an offset that wraps is beyond the end
    offset = f"x + {k:#x}" if code in _INDIRECT else f"{k:#x}"
    return [f"if (!filter_load(packet, {offset}, {_LOADS[code]}, &a))", "\treturn 0;"]


def _jump(condition: str, opposite: str, base: int, jt: int, jf: int) -> list[str]:
    if jt == jf:
        return [f"goto l{base + jt};"] if jt else []
    if not jt:
        return [f"if ({opposite})", f"\tgoto l{base + jf};"]
    result = [f"if ({condition})", f"\tgoto l{base + jt};"]
    return [*result, f"goto l{base + jf};"] if jf else result

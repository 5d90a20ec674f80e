"""The socket filter: a program by which the kernel drops datagrams of a flood before they are queued.

The rule: the filter belongs to the open file description, which predecessor and successor share, so only the owner
attaches one, and detaches any when it begins and when it ends. A datagram passes unless it is of a class whose share is
below 1, the dice say so, and its source is none of those that are spared; or it is data of a session whose share is
below 1, and the dice say so. A batch of datagrams that the kernel has joined (UDP_GRO) is one datagram here and of no
class, for nothing that a packet is in is as short as those; where it is longer than a row it is of no session, too:
dropped as one it would cost a connection more than its share, and it takes little time to receive.

Sources: socket(7) SO_ATTACH_FILTER, linux/filter.h, and the kernel's Documentation/networking/filter.rst. At a UDP
socket offset 0 is the UDP header. A load beyond the datagram ends the program, and drops it: all are checked before.
"""

import os
import socket
import struct
from array import array
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from socket import SOL_SOCKET
from typing import NamedTuple

from oxidize.protocol.constants import DATA_OVERHEAD, INITIATION_SIZE, MAC_SIZE, TYPE_DATA, TYPE_INITIATION
from oxidize.protocol.rows import ROW_BYTES
from oxidize.protocol.shedding import Sheddable

SOURCES_SPARED_MAX = 1024  # what fits into the 20 KiB of net.core.optmem_max, its default before Linux 6.9

# --- asm-generic/socket.h ---
SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27

# --- linux/bpf_common.h ---
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _LOAD_LENGTH = 0x20, 0x28, 0x30, 0x80
_LOAD_NUMBER, _LOAD_X_MEMORY, _STORE = 0x00, 0x61, 0x02
_JUMP, _IF_EQUAL, _IF_AT_LEAST, _IF_ABOVE_X = 0x05, 0x15, 0x35, 0x2D
_MULTIPLY, _SHIFT_RIGHT, _ADD_X, _TO_X, _RETURN = 0x24, 0x74, 0x0C, 0x07, 0x06
# --- linux/filter.h: negative offsets, as the kernel's s32 ---
_RANDOM = (-0x1000 + 56) & 0xFFFF_FFFF
_NETWORK_HEADER = (-0x10_0000) & 0xFFFF_FFFF

_UDP_HEADER = 8
_WORD_END = 1 << 32
_LEAF = 16  # sources that are compared one after the other

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, two jumps forward, operand
_PROGRAM = struct.Struct("@HP")  # struct sock_fprog: number of instructions, their address


class Instruction(NamedTuple):
    """One instruction: after a comparison `if_true` or `if_false` others are skipped."""

    code: int
    operand: int = 0
    if_true: int = 0
    if_false: int = 0


_PASS = Instruction(_RETURN, 0xFFFF_FFFF)
_DROP = Instruction(_RETURN, 0)

Program = list[Instruction]


def assemble(
    shares: Sequence[float], spared: Collection[tuple[bytes, int]], sessions: Mapping[int, float] | None = None
) -> Program:
    """Return the program that lets the share of each class pass, by `Sheddable`, and all from the sources in `spared`.

    spared: addresses (4 or 16 bytes) and ports, at most SOURCES_SPARED_MAX. sessions: the shares of data messages by
    receiver index, of at most `fair_share.SESSIONS_MAX`.
    """
    limits = [_limit(share) for share in shares]
    initiation = [
        *_unless(Instruction(_IF_EQUAL, _UDP_HEADER + INITIATION_SIZE), [_PASS]),
        Instruction(_LOAD_WORD, _UDP_HEADER),
        *_unless(Instruction(_IF_EQUAL, TYPE_INITIATION << 24), [_PASS]),
        *_throw(limits, Sheddable.UNPROVEN, Sheddable.PROVEN),
    ]
    short = [Instruction(_LOAD_NUMBER, limits[Sheddable.SHORT]), Instruction(_JUMP, len(initiation))]
    return [
        *(_thin(sessions) if sessions else ()),
        Instruction(_LOAD_LENGTH),
        *_unless(Instruction(_IF_AT_LEAST, _UDP_HEADER + DATA_OVERHEAD), short),
        *initiation,
        # The accumulator holds the limit of the datagram's class: up to it, the dice let the datagram pass.
        Instruction(_STORE),
        Instruction(_LOAD_X_MEMORY),
        Instruction(_LOAD_WORD, _RANDOM),
        *_unless(Instruction(_IF_ABOVE_X), [_PASS]),
        *_spare(spared),
    ]


def _limit(share: float) -> int:
    """Return up to which word the dice let a datagram pass."""
    return min(round(share * _WORD_END), _WORD_END - 1)


def _thin(sessions: Mapping[int, float]) -> Program:
    """Return the instructions that decide on data of these sessions, and go on with any other datagram."""
    words = {int.from_bytes(index.to_bytes(4, "little"), "big"): _limit(part) for index, part in sessions.items()}
    thin = [
        Instruction(_LOAD_WORD, _UDP_HEADER + 4),
        *_find_limit(sorted(words.items())),
        Instruction(_STORE),
        Instruction(_LOAD_X_MEMORY),
        Instruction(_LOAD_WORD, _RANDOM),
        *_unless(Instruction(_IF_ABOVE_X), [_PASS]),
        _DROP,
    ]
    of_data = [
        Instruction(_LOAD_WORD, _UDP_HEADER),
        *_unless(Instruction(_IF_EQUAL, TYPE_DATA << 24), [Instruction(_JUMP, len(thin))]),
        *thin,
    ]
    is_longer = Instruction(_IF_AT_LEAST, _UDP_HEADER + ROW_BYTES + 1, 0, 1)
    of_length = [is_longer, Instruction(_JUMP, len(of_data)), *of_data]
    beyond = [Instruction(_JUMP, len(of_length))]
    return [
        Instruction(_LOAD_LENGTH),
        *_unless(Instruction(_IF_AT_LEAST, _UDP_HEADER + DATA_OVERHEAD), beyond),
        *of_length,
    ]


def _find_limit(limits: Sequence[tuple[int, int]], behind: int = 0) -> Program:
    """Return the instructions that load the limit of the word in the accumulator and jump to their end, else pass.

    limits: words and their limits, sorted by word. behind: how many instructions are to be skipped beyond the end.
    """
    if len(limits) > _LEAF:
        middle = len(limits) // 2
        upper = _find_limit(limits[middle:], behind)
        lower = _find_limit(limits[:middle], behind + len(upper))
        beyond = Instruction(_JUMP, len(lower))
        return [Instruction(_IF_AT_LEAST, limits[middle][0], 0, 1), beyond, *lower, *upper]
    program = [_PASS]
    for word, limit in reversed(limits):
        found = [Instruction(_LOAD_NUMBER, limit), Instruction(_JUMP, len(program) + behind)]
        program = [Instruction(_IF_EQUAL, word, 0, len(found)), *found, *program]
    return program


def _unless(test: Instruction, then: Program) -> Program:
    """Return the instructions that do `then` where the test fails."""
    return [test._replace(if_true=len(then)), *then]


def _throw(limits: Sequence[int], without_mac2: Sheddable, with_mac2: Sheddable) -> Program:
    """Return the instructions that load the limit of an initiation by whether its mac2 is zeros."""
    words = range(_UDP_HEADER + INITIATION_SIZE - MAC_SIZE, _UDP_HEADER + INITIATION_SIZE, 4)
    zero = [Instruction(_LOAD_NUMBER, limits[without_mac2]), Instruction(_JUMP, 1)]
    program = [*zero, Instruction(_LOAD_NUMBER, limits[with_mac2])]
    for offset in reversed(words):
        program = [Instruction(_LOAD_WORD, offset), Instruction(_IF_EQUAL, 0, 0, len(program) - 1), *program]
    return program


def _spare(spared: Collection[tuple[bytes, int]]) -> Program:
    """Return the instructions that let a datagram pass if it comes from one of these sources, else drop it."""
    factor = int.from_bytes(os.urandom(4), "little") | 1  # no other host can make a source that is taken for another
    fours = sorted({_hash(address, port, factor) for address, port in spared if len(address) == 4})
    sixes = sorted({_hash(address, port, factor) for address, port in spared if len(address) == 16})
    if not fours and not sixes:
        return [_DROP]
    four = [*_load_hash(range(12, 16, 4), factor), *_search(fours)]
    six = [*_load_hash(range(8, 24, 4), factor), *_search(sixes)]
    return [
        Instruction(_LOAD_BYTE, _NETWORK_HEADER),
        Instruction(_SHIFT_RIGHT, 4),
        Instruction(_IF_EQUAL, 4, 1, 0),
        Instruction(_JUMP, len(four)),
        *four,
        *six,
    ]


def _hash(address: bytes, port: int, factor: int) -> int:
    value = 0
    for word in (*struct.unpack(f">{len(address) // 4}I", address), port):
        value = (value + word) * factor % _WORD_END
    return value


def _load_hash(offsets: range, factor: int) -> Program:
    """Return the instructions that load `_hash` of a datagram's source; offsets: of its address in the IP header."""
    words = [Instruction(_LOAD_WORD, _NETWORK_HEADER + offset) for offset in offsets]
    program = []
    for load in (*words, Instruction(_LOAD_HALF, 0)):
        program += [load, Instruction(_ADD_X), Instruction(_MULTIPLY, factor), Instruction(_TO_X)]
    return [Instruction(_LOAD_NUMBER, 0), Instruction(_TO_X), *program]


def _search(values: Sequence[int]) -> Program:
    """Return the instructions that pass if the accumulator holds one of the sorted values, else drop."""
    if len(values) <= _LEAF:
        return [*(Instruction(_IF_EQUAL, value, len(values) - n) for n, value in enumerate(values)), _DROP, _PASS]
    middle = len(values) // 2
    lower = _search(values[:middle])
    beyond = Instruction(_JUMP, len(lower))  # a comparison can skip 255 instructions, this any number
    return [Instruction(_IF_AT_LEAST, values[middle], 0, 1), beyond, *lower, *_search(values[middle:])]


def attach(bound: socket.socket, program: Program) -> None:
    """Attach a program in place of any before; raises OSError where the kernel refuses it."""
    code = array("B", b"".join(_INSTRUCTION.pack(i.code, i.if_true, i.if_false, i.operand) for i in program))
    address, _ = code.buffer_info()
    bound.setsockopt(SOL_SOCKET, SO_ATTACH_FILTER, _PROGRAM.pack(len(program), address))


def detach(bound: socket.socket) -> None:
    """Detach the filter, by whichever process it was attached; a no-op without one, or where the kernel has none."""
    with suppress(OSError):
        bound.setsockopt(SOL_SOCKET, SO_DETACH_FILTER, 0)

"""Messages to nftables: their bytes, and the effect of each answer of the kernel."""

import errno
import os
import socket
import struct
from collections.abc import Iterable

import pytest

from oxidize.errors import OxidizeError
from oxidize.hostnet import nft_expressions as expr
from oxidize.hostnet import nftables as nft
from oxidize.hostnet.nftables import NftError, NftSocket, Table
from oxidize.hostnet.part import run

PORT = 77
ERROR, DONE = 2, 3
NEW_TABLE, NEW_RULE = 10 << 8, 10 << 8 | 6


def answer(kind: int, sequence: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, PORT) + body


def acknowledgement(sequence: int, code: int = 0) -> bytes:
    return answer(ERROR, sequence, struct.pack("=i", -code) + bytes(16))


def table(name: str, owner: int, flags: int = 0) -> bytes:
    value = name.encode() + b"\0"
    named = struct.pack("=HH", 4 + len(value), 1) + value + bytes(-len(value) % 4)
    owned = struct.pack("=HH", 8, 7) + struct.pack(">I", owner) if owner else b""
    return answer(NEW_TABLE, 1, bytes(4) + named + owned, flags)


def rule(chain: str, data: bytes) -> bytes:
    attributes = ((2, chain.encode() + b"\0"), (7, data))
    packed = (struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4) for kind, value in attributes)
    return answer(NEW_RULE, 1, bytes(4) + b"".join(packed))


class Kernel:
    """A socket whose other end gives prepared answers, after each request."""

    def __init__(self, *answers: Iterable[bytes], stale: Iterable[bytes] = ()) -> None:
        self.requests: list[bytes] = []
        self.send_bytes = 65_536
        self._waiting = list(stale)
        self._answers = [list(each) for each in answers]

    @property
    def datagrams_waiting(self) -> int:
        return len(self._waiting)

    def getsockname(self) -> tuple[int, int]:
        return PORT, 0

    def sendto(self, data: bytes, address: tuple[int, int]) -> None:
        assert address == (0, 0)
        assert len(data) <= self.send_bytes, "EMSGSIZE"
        self.requests.append(data)
        self._waiting += self._answers.pop(0)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert (level, option) == (socket.SOL_SOCKET, 32)  # SO_SNDBUFFORCE
        self.send_bytes = value

    def recv(self, size: int, flags: int) -> bytes:
        assert flags == socket.MSG_DONTWAIT
        if not self._waiting:
            raise BlockingIOError
        return self._waiting.pop(0)


def connected(kernel: Kernel) -> NftSocket:
    return NftSocket(kernel)  # type: ignore[arg-type]  # a fake socket with the methods used here


def split(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Return (type, flags, sequence, body) of each message of a batch."""
    found = []
    while data:
        length, kind, flags, sequence, port = struct.unpack_from("=IHHII", data)
        assert (port, length % 4) == (0, 0)
        found.append((kind, flags, sequence, data[16:length]))
        data = data[length:]
    return found


BATCH = [nft.delete_table("a"), nft.new_table("table", exclusive=True)]


def test_a_batch_stands_between_its_begin_and_its_end() -> None:
    kernel = Kernel([acknowledgement(3)])
    connected(kernel).commit(BATCH)
    begin, delete, new, end = split(kernel.requests[0])
    assert begin == (0x10, 1, 1, bytes.fromhex("0000000a"))
    assert delete == (10 << 8 | 2, 1, 2, bytes.fromhex("01000000 06000100 61000000"))
    named, owned = bytes.fromhex("0a000100 7461626c65000000"), bytes.fromhex("08000200 00000002")
    assert new == (10 << 8, 5 | 0x400 | 0x200, 3, bytes.fromhex("01000000") + named + owned)
    assert end == (0x11, 1, 4, bytes.fromhex("0000000a"))


def test_a_batch_of_thousands_of_messages_fits_into_the_socket_and_so_do_its_answers() -> None:
    kernel = Kernel([acknowledgement(5_001)])
    connected(kernel).commit([nft.new_rule("t", "c", expr.masquerade())] * 5_000)
    sent = split(kernel.requests[0])
    assert len(sent) == 5_002
    assert [sequence for _, flags, sequence, _ in sent if flags & 4] == [5_001]  # NLM_F_ACK


def test_a_batch_that_is_only_checked_has_no_end() -> None:
    kernel = Kernel([acknowledgement(2), acknowledgement(3)])
    connected(kernel).check(BATCH)
    assert [kind for kind, *_ in split(kernel.requests[0])] == [0x10, 10 << 8 | 2, 10 << 8]


def test_a_rule_is_a_list_of_expressions() -> None:
    message = nft.new_rule("t", "c", expr.masquerade())
    masquerade = bytes.fromhex("09000100 6d61737100000000 04000280")  # name "masq", no data
    element = struct.pack("=HH", 4 + len(masquerade), 0x8001) + masquerade
    expressions = struct.pack("=HH", 4 + len(element), 0x8004) + element
    assert message.attributes == bytes.fromhex("06000100 74000000 06000200 63000000") + expressions
    assert (message.kind, message.flags) == (6, 0x400 | 0x800)


def test_an_interface_is_compared_with_the_nuls_after_its_name() -> None:
    equal, unequal = (expr.interface_is(expr.NFT_META_OIFNAME, "ox0", negate=negate) for negate in (False, True))
    assert b"ox0".ljust(16, b"\0") in equal
    assert len(equal) == len(unequal)
    assert [pair for pair in zip(equal, unequal, strict=True) if pair[0] != pair[1]] == [(0, 1)]


def test_a_refusal_names_the_first_refused_step() -> None:
    kernel = Kernel([acknowledgement(2), acknowledgement(3, errno.EEXIST)])
    with pytest.raises(NftError, match="message 1: File exists") as caught:
        connected(kernel).commit(BATCH)
    assert (caught.value.code, caught.value.step) == (errno.EEXIST, 1)
    kernel = Kernel([acknowledgement(1, errno.EPERM)])
    with pytest.raises(NftError) as caught:
        connected(kernel).commit(BATCH)
    assert (caught.value.code, caught.value.step) == (errno.EPERM, -1)


def test_a_missing_answer_is_an_error() -> None:
    with pytest.raises(OxidizeError, match="no answer to a batch of changes"):
        connected(Kernel([acknowledgement(2)])).commit(BATCH)


def test_answers_to_another_holder_of_the_socket_are_discarded() -> None:
    kernel = Kernel([acknowledgement(2) + acknowledgement(3)], stale=[acknowledgement(2, errno.EPERM)])
    connected(kernel).commit(BATCH)


def test_sequence_numbers_continue_across_batches() -> None:
    kernel = Kernel([acknowledgement(2), acknowledgement(3)], [acknowledgement(6), acknowledgement(7)])
    held = connected(kernel)
    held.commit(BATCH)
    held.commit(BATCH)
    assert [sequence for request in kernel.requests for _, _, sequence, _ in split(request)] == list(range(1, 9))


def test_tables_are_listed_with_their_owners() -> None:
    kernel = Kernel([table("ours", PORT) + table("free", 0), table("theirs", 2**32 - 5), answer(DONE, 1, bytes(4))])
    found = connected(kernel).tables()
    assert found == [Table("ours", PORT), Table("free", 0), Table("theirs", 2**32 - 5)]
    assert split(kernel.requests[0]) == [(10 << 8 | 1, 1 | 0x300, 1, bytes.fromhex("01000000"))]


def test_a_list_of_tables_that_changed_while_it_was_read_is_read_again() -> None:
    torn = [table("half", 0, flags=0x10), answer(DONE, 1, bytes(4), flags=0x10)]
    kernel = Kernel(torn, [table("whole", 0), answer(DONE, 2, bytes(4))])
    assert connected(kernel).tables() == [Table("whole", 0)]
    with pytest.raises(OxidizeError, match="change faster"):
        connected(Kernel(*[torn] * 10)).tables()


def test_the_rules_of_a_table_are_read_a_datagram_at_a_time() -> None:
    """Each ends a slice: the next one is still in the kernel then."""
    parts = [rule("c", bytes([number])) + rule("c", bytes([number + 1])) for number in (0, 2, 4)]
    kernel = Kernel([*parts, answer(DONE, 1, bytes(4))])
    waiting: list[int] = []
    found = run(connected(kernel).rules("table"), lambda _: waiting.append(kernel.datagrams_waiting))
    assert waiting == [3, 2, 1, 0]
    assert found == [("c", bytes([number])) for number in range(6)]


def test_a_refused_list_of_tables_is_an_error() -> None:
    with pytest.raises(NftError) as caught:
        connected(Kernel([acknowledgement(1, errno.EPERM)])).tables()
    assert caught.value.code == errno.EPERM


def test_a_descriptor_of_another_kind_is_closed() -> None:
    made = [os.open("/dev/null", os.O_RDONLY), socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()]
    for descriptor in made:
        with pytest.raises(OxidizeError, match=f"descriptor {descriptor} passed as nat"):
            NftSocket.adopt(descriptor)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)

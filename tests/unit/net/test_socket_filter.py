"""The socket filter on real sockets: what the kernel drops of each class, and what it never touches.

Shares are compared within ten standard deviations: by chance a test fails once in 10^22 runs.
"""

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from math import sqrt

import pytest

from oxidize.net.socket_filter import SOURCES_SPARED_MAX, Program, assemble, attach, detach
from oxidize.net.udp import UdpSocket, bind_udp
from oxidize.net.udp_cmsg import UDP_SEGMENT
from oxidize.protocol.constants import COOKIE_REPLY_SIZE, DATA_OVERHEAD, INITIATION_SIZE, RESPONSE_SIZE
from oxidize.protocol.fair_share import SESSIONS_MAX, SHARE_MIN
from oxidize.protocol.shedding import PASS_SHARE_MIN, Sheddable
from tests.support.socket_filter import is_filtered
from tests.support.udp import receive

SENT = 2000
WAIT_MS, WAITS_MAX = 10, 500  # what was sent on loopback has been queued or dropped long before
INSTRUCTIONS_MAX = 4096  # BPF_MAXINSNS
OPTMEM_BYTES = 20_480  # net.core.optmem_max before Linux 6.9
ALL_SHED = (PASS_SHARE_MIN,) * len(Sheddable)
NONE_SHED = (1.0,) * len(Sheddable)

# (what the receiver binds, what the sender binds)
FAMILIES = {"ipv4": ("127.0.0.1", "127.0.0.1"), "ipv6": ("::1", "::1"), "mapped": ("::", "127.0.0.1")}

INITIATION = b"\1\0\0\0" + bytes(range(128))
OF_EACH_CLASS = {
    Sheddable.SHORT: [b"", b"x", b"\4\0\0\0", bytes(DATA_OVERHEAD - 1)],
    Sheddable.UNPROVEN: [INITIATION + bytes(16)],
    Sheddable.PROVEN: [INITIATION + bytes(n) + b"\1" + bytes(15 - n) for n in range(16)],
}
DATA = [b"\4\0\0\0" + bytes(size - 4) for size in (DATA_OVERHEAD, 96, INITIATION_SIZE, 1452)]
OTHERS = [
    *DATA,
    b"\2\0\0\0" + bytes(RESPONSE_SIZE - 4),
    b"\3\0\0\0" + bytes(COOKIE_REPLY_SIZE - 4),
    INITIATION + bytes(15),
    INITIATION + bytes(17),
    b"\1\0\0\1" + INITIATION[4:] + bytes(16),
]


class Stand:
    """A receiver and senders on the loopback."""

    def __init__(self, undo: ExitStack, ours: str, theirs: str) -> None:
        self._undo = undo
        self._theirs = theirs
        self.bound = undo.enter_context(bind_udp(ours, 0))
        self.udp = UdpSocket(self.bound)
        self.udp.take_ownership()
        self.sender = self.new_sender()

    def new_sender(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._theirs else socket.AF_INET
        sender = self._undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        sender.bind((self._theirs, 0))
        sender.connect((self._theirs, self.bound.getsockname()[1]))
        return sender

    def source(self, sender: socket.socket) -> tuple[bytes, int]:
        host, port = sender.getsockname()[:2]
        return socket.inet_pton(sender.family, host), port

    def filter(self, shares: Sequence[float], spared: Sequence[tuple[bytes, int]] = ()) -> None:
        attach(self.bound, assemble(shares, spared))

    def passed(self, datagrams: Sequence[bytes], sender: socket.socket | None = None) -> int:
        """Send datagrams; return how many of them the kernel did not drop."""
        before = self.udp.kernel_drops()
        for datagram in datagrams:
            (sender or self.sender).send(datagram)
        return self.received(len(datagrams), before)

    def received(self, sent: int, drops_before: int) -> int:
        readable = select.poll()
        readable.register(self.bound, select.POLLIN)
        received = 0
        for _ in range(WAITS_MAX):
            if received + self.udp.kernel_drops() - drops_before >= sent:
                break
            readable.poll(WAIT_MS)
            while (batch := receive(self.udp)) is not None:
                received += len(batch.datagrams)
        return received


@pytest.fixture(params=list(FAMILIES))
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    with ExitStack() as undo:
        yield Stand(undo, *FAMILIES[request.param])


def many(datagrams: Sequence[bytes]) -> list[bytes]:
    return list(islice(cycle(datagrams), SENT))


def is_share(passed: int, share: float) -> bool:
    return abs(passed - SENT * share) <= 10 * sqrt(SENT * share * (1 - share))


@pytest.mark.parametrize("kind", Sheddable)
def test_a_share_of_one_class_passes_and_all_of_the_others(stand: Stand, kind: Sheddable) -> None:
    shares = [1.0] * len(Sheddable)
    shares[kind] = 0.25
    stand.filter(shares)
    assert is_share(stand.passed(many(OF_EACH_CLASS[kind])), 0.25)
    for other in set(Sheddable) - {kind}:
        assert stand.passed(many(OF_EACH_CLASS[other])) == SENT


def test_each_class_has_a_share_of_its_own(stand: Stand) -> None:
    shares = {Sheddable.SHORT: 0.5, Sheddable.UNPROVEN: PASS_SHARE_MIN, Sheddable.PROVEN: 0.25}
    stand.filter([shares[kind] for kind in Sheddable])
    for kind, share in shares.items():
        assert is_share(stand.passed(many(OF_EACH_CLASS[kind])), share)


def test_no_other_datagram_is_dropped(stand: Stand) -> None:
    stand.filter(ALL_SHED)
    assert stand.passed(many(OTHERS)) == SENT


@pytest.mark.parametrize(("size", "count"), [(DATA_OVERHEAD, 64), (INITIATION_SIZE // 2, 2), (1440, 45)])
def test_a_batch_that_the_kernel_has_joined_passes_whole(stand: Stand, size: int, count: int) -> None:
    stand.filter(ALL_SHED)
    batches = 50
    batch = b"".join(b"\4\0\0\0" + bytes(size - 4) for _ in range(count))
    before = stand.udp.kernel_drops()
    received = 0
    for _ in range(batches):
        stand.sender.sendmsg([batch], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))])
        received += stand.received(count, before)
    assert received == batches * count


def test_data_behind_an_initiation_of_the_same_sender_passes(stand: Stand) -> None:
    stand.filter(ALL_SHED)
    before = stand.udp.kernel_drops()
    batch = INITIATION + bytes(16) + b"\4\0\0\0" + bytes(INITIATION_SIZE - 4)
    for _ in range(50):
        stand.sender.sendmsg([batch], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", INITIATION_SIZE))])
        assert stand.received(2, before) == 2


def test_initiations_of_spared_sources_pass_and_no_others(stand: Stand) -> None:
    others = [(os.urandom(4 if number % 2 else 16), number) for number in range(SOURCES_SPARED_MAX - 2)]
    second, stranger = stand.new_sender(), stand.new_sender()
    spared = [stand.source(stand.sender), *others, stand.source(second)]
    stand.filter(ALL_SHED, spared)
    for kind in Sheddable:
        assert stand.passed(many(OF_EACH_CLASS[kind])) == SENT
        assert stand.passed(many(OF_EACH_CLASS[kind]), second) == SENT
        assert is_share(stand.passed(many(OF_EACH_CLASS[kind]), stranger), PASS_SHARE_MIN), "the address alone"


def memory_of(program: Program) -> int:
    """Return how many bytes the kernel takes, at most: of its own instructions a load is eight, a return two."""
    own = {0x20: 8, 0x28: 8, 0x30: 8, 0x06: 2}
    is_compared = {0x15, 0x25, 0x35}  # with a constant, which is loaded first where it would be negative
    return 8 * sum(own.get(each.code, 1) + (each.code in is_compared and each.operand >= 1 << 31) for each in program)


@pytest.mark.parametrize("lengths", [[4], [16], [4, 16]], ids=str)
def test_the_kernel_takes_a_filter_with_as_many_sources_as_may_be_spared(lengths: list[int]) -> None:
    sizes = islice(cycle(lengths), SOURCES_SPARED_MAX)
    program = assemble(ALL_SHED, [(os.urandom(size), 1) for size in sizes])
    assert len(program) <= INSTRUCTIONS_MAX
    assert memory_of(program) < OPTMEM_BYTES
    assert all(each.if_true < 256 and each.if_false < 256 for each in program)
    with bind_udp("127.0.0.1", 0) as bound:
        attach(bound, program)
        assert is_filtered(bound)


SESSIONS = {1: 0.25, 0x01020304: 0.5, 0xFFFFFFFF: SHARE_MIN}


def data(session: int, size: int = 96) -> bytes:
    return b"\4\0\0\0" + session.to_bytes(4, "little") + bytes(size - 8)


def test_a_share_of_each_session_passes_and_all_of_the_others(stand: Stand) -> None:
    attach(stand.bound, assemble(NONE_SHED, (), SESSIONS))
    for session, share in SESSIONS.items():
        assert is_share(stand.passed(many([data(session, DATA_OVERHEAD), data(session, 1452)])), share)
    others = [data(session) for session in (2, 0x04030201, 0x01020305, 0x7FFFFFFF)]
    handshakes = [datagram for each in OF_EACH_CLASS.values() for datagram in each]
    assert stand.passed(many([*others, *OTHERS, *handshakes])) == SENT


def test_sessions_and_a_flood_are_thinned_out_together_and_a_spared_source_keeps_to_its_share(stand: Stand) -> None:
    attach(stand.bound, assemble(ALL_SHED, [stand.source(stand.sender)], SESSIONS))
    assert is_share(stand.passed(many([data(1)])), 0.25)
    for datagrams in OF_EACH_CLASS.values():
        assert stand.passed(many(datagrams)) == SENT
        assert is_share(stand.passed(many(datagrams), stand.new_sender()), PASS_SHARE_MIN)
    assert stand.passed(many(OTHERS)) == SENT


def test_a_long_batch_of_a_session_passes_whole(stand: Stand) -> None:
    attach(stand.bound, assemble(NONE_SHED, (), dict.fromkeys(SESSIONS, SHARE_MIN)))
    before = stand.udp.kernel_drops()
    batch = b"".join([data(1, 1440)] * 40)
    for number in range(1, 51):
        stand.sender.sendmsg([batch], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 1440))])
        assert stand.received(40, before) == 40, number


def test_the_kernel_takes_a_filter_with_as_many_sessions_as_may_be_thinned_out(stand: Stand) -> None:
    sessions = {int.from_bytes(os.urandom(4), "little"): number / SESSIONS_MAX for number in range(1, SESSIONS_MAX + 1)}
    spared = [(os.urandom(16 if number % 2 else 4), number) for number in range(SOURCES_SPARED_MAX)]
    program = assemble(ALL_SHED, spared, sessions)
    assert len(program) <= INSTRUCTIONS_MAX
    assert memory_of(program) < OPTMEM_BYTES
    assert all(each.if_true < 256 and each.if_false < 256 for each in program)
    attach(stand.bound, program)
    one = next(session for session, share in sessions.items() if share == 0.5)
    assert is_share(stand.passed(many([data(one)])), 0.5)


def test_a_filter_that_is_replaced_or_detached_drops_no_more(stand: Stand) -> None:
    stand.filter(ALL_SHED)
    stand.filter((1.0, 1.0, 0.5))
    assert stand.passed(many(OF_EACH_CLASS[Sheddable.UNPROVEN])) == SENT
    with stand.bound.dup() as same:
        detach(same)
    assert not is_filtered(stand.bound)
    assert stand.passed(many(OF_EACH_CLASS[Sheddable.PROVEN])) == SENT
    detach(stand.bound)


def test_a_program_that_the_kernel_refuses_is_an_error_and_changes_nothing(stand: Stand) -> None:
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is compared
        attach(stand.bound, assemble(ALL_SHED, ())[:-1])
    assert refused.value.errno == errno.EINVAL
    assert not is_filtered(stand.bound)


def test_an_owner_begins_and_ends_without_a_filter(stand: Stand) -> None:
    stand.filter(ALL_SHED)
    successor = UdpSocket(stand.bound.dup())
    assert is_filtered(stand.bound), "a successor that only restores changes nothing"
    successor.take_ownership()
    successor.close()
    assert not is_filtered(stand.bound), "the filter of an owner that was killed"
    stand.udp.shed(ALL_SHED, (), {})
    assert is_filtered(stand.bound)
    stand.udp.end_ownership()
    assert not is_filtered(stand.bound)


def test_all_shares_of_one_leave_no_filter(stand: Stand) -> None:
    stand.udp.shed(ALL_SHED, (), {})
    stand.udp.shed(NONE_SHED, (), {1: 0.5})
    assert is_filtered(stand.bound)
    stand.udp.shed(NONE_SHED, (), {})
    assert not is_filtered(stand.bound)

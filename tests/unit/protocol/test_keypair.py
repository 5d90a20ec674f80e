"""A keypair and that of its peer: counters used once in each direction, whatever a batch holds."""

import pytest

from oxidize.protocol.changes import KeypairState
from oxidize.protocol.constants import BATCH_PACKETS_MAX, PADDING_MULTIPLE, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES
from oxidize.protocol.counters import RECEIVE_NEXT, SEND_COUNTER, DropReason
from oxidize.protocol.keypair import Keypair, padding
from oxidize.protocol.messages import DATA_HEADER
from tests.support.counters import ArraySlots

MTU = 1420
SEND_KEY, RECEIVE_KEY = bytes(range(32)), bytes(range(32, 64))


def joined() -> tuple[Keypair[None], Keypair[None]]:
    """Return the two sides of one session, each with counters of its own."""
    sides = []
    for local, remote, keys in ((1, 2, (SEND_KEY, RECEIVE_KEY)), (2, 1, (RECEIVE_KEY, SEND_KEY))):
        slots = ArraySlots(1)
        state = KeypairState(local, remote, *keys, created_at=100.0, is_initiator=local == 1, slot=slots.allocate())
        sides.append(Keypair[None](state, None, slots.counters))
    near, far = sides
    return near, far


def seal(keypair: Keypair[None], *packets: bytes) -> list[bytes]:
    return keypair.seal([packet.ljust(PADDING_MULTIPLE, b".") for packet in packets], MTU)


def opened(keypair: Keypair[None], messages: list[bytes]) -> tuple[list[bytes], list[DropReason]]:
    plaintexts, drops = keypair.open(messages)
    return [plaintext.rstrip(b".") for plaintext in plaintexts], drops


def test_messages_of_a_batch_are_opened_in_order() -> None:
    near, far = joined()
    assert opened(far, seal(near, b"a", b"b", b"c")) == ([b"a", b"b", b"c"], [])
    assert opened(near, seal(far, b"d")) == ([b"d"], [])


def test_no_counter_is_sealed_twice() -> None:
    near, _ = joined()
    messages = [message for size in (1, 3, BATCH_PACKETS_MAX, 0, 2) for message in seal(near, *[b"x"] * size)]
    counters = [DATA_HEADER.unpack_from(message)[2] for message in messages]
    assert counters == list(range(1 + 3 + BATCH_PACKETS_MAX + 2))


def test_a_message_that_a_batch_holds_twice_is_delivered_once() -> None:
    near, far = joined()
    first, second = seal(near, b"a", b"b")
    assert opened(far, [first, first, second]) == ([b"a", b"b"], [DropReason.REPLAYED_COUNTER])
    assert opened(far, [first, second]) == ([], [DropReason.REPLAYED_COUNTER] * 2)


def test_an_overtaken_message_that_a_batch_holds_twice_is_delivered_once() -> None:
    near, far = joined()
    first, second, third = seal(near, b"a", b"b", b"c")
    assert opened(far, [third]) == ([b"c"], [])
    assert opened(far, [first, first, second]) == ([b"a", b"b"], [DropReason.REPLAYED_COUNTER])


def test_a_run_that_later_messages_have_overtaken_is_delivered_once() -> None:
    near, far = joined()
    messages = seal(near, b"a", b"b", b"c", b"d")
    assert opened(far, messages[3:]) == ([b"d"], [])
    assert opened(far, messages[:3]) == ([b"a", b"b", b"c"], [])
    assert opened(far, messages) == ([], [DropReason.REPLAYED_COUNTER] * 4)


def test_a_forged_message_marks_no_counter() -> None:
    near, far = joined()
    (message,) = seal(near, b"a")
    forged = message[:-1] + bytes([message[-1] ^ 1])
    assert opened(far, [forged, message]) == ([b"a"], [DropReason.AUTHENTICATION_FAILED])


def test_a_batch_marks_the_counters_of_its_messages_and_no_others() -> None:
    near, far = joined()
    far.open(seal(near, b"a", b"b"))
    assert far._words[far.state.slot + RECEIVE_NEXT] == 2


@pytest.mark.parametrize(("age", "expected"), [(0.0, False), (REJECT_AFTER_TIME - 1, False), (REJECT_AFTER_TIME, True)])
def test_a_keypair_expires_by_its_age(age: float, expected: bool) -> None:
    near, _ = joined()
    assert near.is_expired(100.0 + age) is expected


def test_a_keypair_requires_a_new_one_after_rekey_after_messages() -> None:
    near, _ = joined()
    near._words[near.state.slot + SEND_COUNTER] = REKEY_AFTER_MESSAGES - 1
    assert not near.wants_rekey()
    seal(near, b"a")
    assert near.wants_rekey()


@pytest.mark.parametrize(
    ("size", "zeros"),
    [(0, 0), (1, 15), (15, 1), (16, 0), (1404, 4), (1408, 0), (1409, 11), (1419, 1), (1420, 0), (1421, 0), (1500, 0)],
)
def test_packets_are_padded_to_16_bytes_but_not_beyond_the_mtu(size: int, zeros: int) -> None:
    assert padding(size, MTU) == bytes(zeros)

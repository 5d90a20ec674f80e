"""The replay window (paper, section 5.4.6) in a process that is not killed."""

import pytest

from oxidize.errors import StateError
from oxidize.protocol.constants import REJECT_AFTER_MESSAGES
from oxidize.protocol.counters import RECEIVE_NEXT, REPLAY_WORDS, SEND_COUNTER, SLOT_WORDS, Counters
from oxidize.protocol.replay import WINDOW_SIZE, is_fresh, mark, mark_run
from tests.support.counters import ArraySlots

RING_SIZE = REPLAY_WORDS * 64


def new_window() -> tuple[Counters, int]:
    slots = ArraySlots(3)
    slots.allocate()
    return slots.counters, slots.allocate()


def test_the_window_is_at_least_as_large_as_that_of_the_reference_implementations() -> None:
    assert WINDOW_SIZE >= 2048


def test_a_counter_is_accepted_once() -> None:
    words, slot = new_window()
    for counter in (0, 1, 2, 63, 64, 65, 3, 66, 1000, 999, 0xFFFF_FFFF, 0x1_0000_0000):
        assert is_fresh(words, slot, counter)
        assert is_fresh(words, slot, counter)  # asking changes nothing
        assert mark(words, slot, counter)
        assert not is_fresh(words, slot, counter)
        assert not mark(words, slot, counter)


def test_receive_next_is_one_more_than_the_highest_counter() -> None:
    words, slot = new_window()
    for counter, expected in ((0, 1), (5, 6), (3, 6), (63, 64), (64, 65), (100_000, 100_001), (99_999, 100_001)):
        assert mark(words, slot, counter)
        assert words[slot + RECEIVE_NEXT] == expected


@pytest.mark.parametrize("highest", [WINDOW_SIZE, WINDOW_SIZE + 1, 10 * RING_SIZE + 63, 10 * RING_SIZE + 17])
def test_the_window_ends_exactly_at_its_size(highest: int) -> None:
    words, slot = new_window()
    assert mark(words, slot, highest)
    oldest = highest + 1 - WINDOW_SIZE
    assert is_fresh(words, slot, oldest)
    assert not is_fresh(words, slot, oldest - 1)
    assert not mark(words, slot, oldest - 1)
    assert mark(words, slot, oldest)
    assert not mark(words, slot, oldest)


def test_counters_that_a_jump_skipped_are_fresh() -> None:
    words, slot = new_window()
    mark_run(words, slot, 0, RING_SIZE)  # every word is full
    assert mark(words, slot, 3 * RING_SIZE)
    for counter in range(3 * RING_SIZE + 1 - WINDOW_SIZE, 3 * RING_SIZE):
        assert is_fresh(words, slot, counter)


def test_counters_from_reject_after_messages_on_are_never_fresh() -> None:
    words, slot = new_window()
    for counter in (REJECT_AFTER_MESSAGES, REJECT_AFTER_MESSAGES + 1, (1 << 64) - 1):
        assert not is_fresh(words, slot, counter)
        assert not mark(words, slot, counter)
    assert words[slot + RECEIVE_NEXT] == 0
    assert mark(words, slot, REJECT_AFTER_MESSAGES - 1)
    assert mark(words, slot, REJECT_AFTER_MESSAGES - WINDOW_SIZE)
    assert not mark(words, slot, REJECT_AFTER_MESSAGES)


def test_nothing_outside_the_window_of_the_slot_is_written() -> None:
    words, slot = new_window()
    for index in range(len(words)):
        if not slot + RECEIVE_NEXT <= index < slot + SLOT_WORDS:
            words[index] = 0xA5A5_A5A5_A5A5_A5A5
    for counter in (0, 64 * (REPLAY_WORDS - 1) + 63, 5 * RING_SIZE, 2**40):
        assert mark(words, slot, counter)
    mark_run(words, slot, 2**40 + 1, 3 * RING_SIZE)
    untouched = [i for i in range(len(words)) if not slot + RECEIVE_NEXT <= i < slot + SLOT_WORDS]
    assert slot + SEND_COUNTER in untouched
    assert {words[i] for i in untouched} == {0xA5A5_A5A5_A5A5_A5A5}


def test_a_run_must_be_new_and_below_reject_after_messages() -> None:
    words, slot = new_window()
    mark_run(words, slot, 0, 10)
    before = bytes(words)
    for first, count in ((9, 1), (0, 100), (REJECT_AFTER_MESSAGES, 1), (REJECT_AFTER_MESSAGES - 1, 2)):
        with pytest.raises(StateError, match=f"counters {first} to"):
            mark_run(words, slot, first, count)
        assert bytes(words) == before
    mark_run(words, slot, REJECT_AFTER_MESSAGES - 2, 2)
    assert not is_fresh(words, slot, REJECT_AFTER_MESSAGES - 1)

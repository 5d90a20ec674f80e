"""The replay window against a set of all counters ever accepted, in processes that are killed and in others."""

from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oxidize.protocol.constants import REJECT_AFTER_MESSAGES
from oxidize.protocol.counters import RECEIVE_NEXT, REPLAY_WORDS, Counters
from oxidize.protocol.replay import WINDOW_SIZE, is_fresh, mark, mark_run
from tests.support.counters import ArraySlots

COUNTER_MAX = (1 << 64) - 1
RING_SIZE = REPLAY_WORDS * 64

# Where the window's behaviour changes: the ends of blocks, of the window, of the ring.
edges = st.sampled_from([0, 1, 63, 64, 65, WINDOW_SIZE, (REPLAY_WORDS - 1) * 64, RING_SIZE, 10_000])
offsets = st.one_of(
    st.integers(-3, 3),
    st.builds(lambda edge, off, sign: sign * (edge + off), edges, st.integers(-2, 2), st.sampled_from([1, -1])),
    st.integers(-2 * WINDOW_SIZE, 2 * WINDOW_SIZE),
)
starts = st.sampled_from([0, 1000, 2**32 - 70, 2**63 - 70, REJECT_AFTER_MESSAGES - 5000, COUNTER_MAX - 20_000])


class Killed(Exception):  # noqa: N818 - it is no error of the code under test
    """The process ends here."""


class DyingWords:
    """Counters whose process is killed just before its n-th store."""

    def __init__(self, words: Counters, stores_left: int) -> None:
        self._words = words
        self._stores_left = stores_left

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        if self._stores_left == 0:
            raise Killed
        self._stores_left -= 1
        self._words[index] = value


def dying_words(words: Counters, stores_left: int) -> Counters:
    return cast(Counters, DyingWords(words, stores_left))


class Model:
    """The rule of the window, without a bitmap."""

    def __init__(self) -> None:
        self.accepted: set[int] = set()
        self.receive_next = 0

    def is_fresh(self, counter: int) -> bool:
        in_window = counter >= self.receive_next - WINDOW_SIZE
        return counter < REJECT_AFTER_MESSAGES and in_window and counter not in self.accepted

    def mark(self, counter: int) -> bool:
        if not self.is_fresh(counter):
            return False
        self.accepted.add(counter)
        self.receive_next = max(self.receive_next, counter + 1)
        return True


def new_window() -> tuple[Counters, int]:
    slots = ArraySlots(1)
    return slots.counters, slots.allocate()


def near(counter: int, offset: int) -> int:
    return min(max(counter + offset, 0), COUNTER_MAX)


@settings(max_examples=200)
@given(starts, st.lists(offsets, max_size=60), st.lists(offsets, max_size=20))
def test_the_replay_window_agrees_with_a_set(start: int, marked: list[int], asked: list[int]) -> None:
    words, slot = new_window()
    model = Model()
    highest = start
    for offset in marked:
        counter = near(highest, offset)
        assert is_fresh(words, slot, counter) == model.is_fresh(counter)
        assert mark(words, slot, counter) == model.mark(counter)
        assert words[slot + RECEIVE_NEXT] == model.receive_next
        highest = max(start, model.receive_next - 1)
    for offset in asked:
        counter = near(highest, offset)
        assert is_fresh(words, slot, counter) == model.is_fresh(counter)
    for counter in model.accepted:
        assert not is_fresh(words, slot, counter)


@settings(max_examples=200)
@given(
    starts.filter(lambda start: start < REJECT_AFTER_MESSAGES - 20_000),
    st.lists(
        st.tuples(st.one_of(st.just(1), st.integers(1, 200), edges.map(lambda e: e + 1)), st.integers(0, 300)),
        max_size=12,
    ),
    st.lists(st.integers(-WINDOW_SIZE, 0), max_size=10),
)
def test_marking_a_run_equals_marking_its_counters_one_by_one(
    start: int, runs: list[tuple[int, int]], late: list[int]
) -> None:
    fast, slot = new_window()
    slow, slow_slot = new_window()
    assert slot == slow_slot
    next_counter = start
    for gap, count in runs:
        first = next_counter + gap - 1
        mark_run(fast, slot, first, count)
        for counter in range(first, first + count):
            assert mark(slow, slot, counter)
        assert bytes(fast) == bytes(slow)
        next_counter = first + count
    for offset in late:
        counter = near(next_counter, offset)
        assert mark(fast, slot, counter) == mark(slow, slot, counter)


@settings(max_examples=200)
@given(starts, st.lists(st.tuples(offsets, st.integers(0, 80), st.integers(0, 140)), max_size=30))
def test_no_sequence_of_kills_makes_an_accepted_counter_fresh(start: int, steps: list[tuple[int, int, int]]) -> None:
    """steps: where to mark, how many (0: one, by `mark`), and the store before which the process is killed."""
    words, slot = new_window()
    accepted: set[int] = set()
    for offset, run, stores in steps:
        receive_next = words[slot + RECEIVE_NEXT]
        counter = near(max(start, receive_next - 1), offset)
        dying = dying_words(words, stores)
        try:
            if not run:
                if mark(dying, slot, counter):
                    assert counter not in accepted
                    accepted.add(counter)
            elif counter >= receive_next and counter + run <= REJECT_AFTER_MESSAGES:
                mark_run(dying, slot, counter, run)
                accepted.update(range(counter, counter + run))
        except Killed:
            pass
        assert words[slot + RECEIVE_NEXT] >= receive_next
        for counter in accepted:
            assert not is_fresh(words, slot, counter)


Step = Callable[[Counters, int], object]


def _mark_step(counter: int) -> Step:
    return lambda words, slot: mark(words, slot, counter)


def _run_step(first: int, count: int) -> Step:
    return lambda words, slot: mark_run(words, slot, first, count)


@pytest.mark.parametrize("highest", [0, 63, 64, 2 * RING_SIZE + 31])
@pytest.mark.parametrize("jump", [1, 64, 65, WINDOW_SIZE, WINDOW_SIZE + 64, RING_SIZE, RING_SIZE + 64, 9 * RING_SIZE])
@pytest.mark.parametrize("run", [0, 100, RING_SIZE + 100])
def test_a_kill_between_any_two_stores_makes_no_counter_fresh_again(highest: int, jump: int, run: int) -> None:
    step = _run_step(highest + jump, run) if run else _mark_step(highest + jump)
    marked = range(max(0, highest + 1 - RING_SIZE), highest + 1)
    # Blocks are cleared whole, so their ends represent them; then every store of every case can be tried.
    accepted = [counter for counter in marked if counter % 64 in (0, 1, 63) or counter == highest]
    stores = 0
    while True:
        words, slot = new_window()
        mark_run(words, slot, marked.start, len(marked))
        dying = dying_words(words, stores)
        finished = False
        try:
            step(dying, slot)
            finished = True
        except Killed:
            pass
        fresh_again = [counter for counter in accepted if is_fresh(words, slot, counter)]
        assert not fresh_again, f"after {stores} stores"
        # The successor continues with the same words, and must not undo it either.
        assert mark(words, slot, highest + jump + run + 1)
        assert not any(is_fresh(words, slot, counter) for counter in accepted), f"after {stores} stores and one more"
        if finished:
            break
        stores += 1
    assert stores >= 2


@pytest.mark.parametrize("jump", [1, 5, 64, 65, 1000, WINDOW_SIZE, RING_SIZE])
def test_a_kill_refuses_no_counter_that_never_came(jump: int) -> None:
    highest = 2 * RING_SIZE + 20
    for stores in range(2 * REPLAY_WORDS + 4):
        words, slot = new_window()
        mark_run(words, slot, 0, highest + 1)
        dying = dying_words(words, stores)
        try:
            mark(dying, slot, highest + jump)
            killed = False
        except Killed:
            killed = True
        oldest = words[slot + RECEIVE_NEXT] - WINDOW_SIZE
        for counter in range(max(oldest, highest + 1), highest + jump):
            assert is_fresh(words, slot, counter), f"after {stores} stores"
        assert is_fresh(words, slot, highest + jump) == killed

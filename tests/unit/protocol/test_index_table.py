"""Session indices: random, never zero, never two values at once."""

import random
from collections.abc import Callable

import pytest

from oxidize.errors import StateError
from oxidize.protocol.index_table import DRAWS_MAX, IndexTable


def draws(*indices: int) -> Callable[[int], bytes]:
    """Return a source of randomness that yields these indices, then fails."""
    left = [index.to_bytes(4, "little") for index in indices]

    def random_bytes(size: int) -> bytes:
        assert size == 4
        return left.pop(0)

    return random_bytes


def test_an_index_names_its_value_until_it_is_released() -> None:
    table: IndexTable[str] = IndexTable()
    index = table.new("a", draws(0x0403_0201))
    assert index == 0x0403_0201
    assert table.get(index) == "a"
    assert len(table) == 1
    table.release(index)
    table.release(index)
    assert table.get(index) is None
    assert len(table) == 0


def test_zero_and_used_indices_are_drawn_again() -> None:
    table: IndexTable[str] = IndexTable()
    table.claim(7, "a")
    assert table.new("b", draws(0, 7, 0, 8)) == 8
    assert (table.get(7), table.get(8)) == ("a", "b")


def test_a_source_without_randomness_is_an_error_and_not_a_loop() -> None:
    table: IndexTable[str] = IndexTable()
    with pytest.raises(StateError, match="check the source of randomness"):
        table.new("a", draws(*[0] * DRAWS_MAX))
    assert len(table) == 0


def test_indices_use_all_32_bits() -> None:
    table: IndexTable[int] = IndexTable()
    source = random.Random(1)
    indices = [table.new(number, source.randbytes) for number in range(1000)]
    assert len(set(indices)) == len(table) == 1000
    assert [table.get(index) for index in indices] == list(range(1000))
    for bit in range(32):
        assert {index >> bit & 1 for index in indices} == {0, 1}


def test_claiming_an_index_replaces_its_value() -> None:
    table: IndexTable[str] = IndexTable()
    table.claim(0xFFFF_FFFF, "a")
    table.claim(0xFFFF_FFFF, "b")
    assert table.get(0xFFFF_FFFF) == "b"
    assert len(table) == 1


@pytest.mark.parametrize("index", [0, -1, 1 << 32])
def test_an_index_out_of_range_cannot_be_claimed(index: int) -> None:
    table: IndexTable[str] = IndexTable()
    with pytest.raises(StateError, match=str(index)):
        table.claim(index, "a")

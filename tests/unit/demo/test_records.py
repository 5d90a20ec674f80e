"""The stream of records between the clients and the demonstration."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.records import RECORD_SIZE, Kind, Record, RecordDecoder, encode
from oxidize.errors import DecodeError

times = st.floats(0, 1e9)
records = st.builds(Record, st.sampled_from(Kind), st.integers(0, 2**16 - 1), st.integers(0, 2**64 - 1), times, times)


@given(st.lists(records, max_size=20), st.integers(1, 3 * RECORD_SIZE))
def test_records_survive_a_split_at_any_byte(wanted: list[Record], cut: int) -> None:
    data = encode(wanted)
    assert len(data) == RECORD_SIZE * len(wanted)
    decoder = RecordDecoder()
    got = [record for i in range(0, len(data), cut) for record in decoder.feed(data[i : i + cut])]
    assert got == wanted


@pytest.mark.parametrize("kind", [0, max(Kind) + 1, 255])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    data = bytearray(encode([Record(Kind.SENT, 1, 2, 3.0)]))
    data[0] = kind
    with pytest.raises(DecodeError, match=f"record of kind {kind}: expected 1 to {len(Kind)}"):
        list(RecordDecoder().feed(bytes(data)))

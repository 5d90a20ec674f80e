"""A super-packet is what the kernel cuts into exactly the segments that it was made of."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oxidize.protocol.constants import BATCH_PACKETS_MAX
from oxidize.protocol.rows import ReceivedRows
from oxidize.protocol.super_packets import VNET_HEADER_SIZE, SuperPacket, join
from tests.support.segments import ACK, PUSH, Segment, comparable, cut, has_right_checksum, run

FIRST4 = Segment(ident=7, sequence=(1 << 32) - 20_000)
FIRST6 = replace(FIRST4, source="fd00::1", destination="fd00::2")

# What may be different of a segment, by a number of bits: a run ends before it, behind it, or it is written alone.
CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "push": {"flags": ACK | PUSH},
    "fin": {"flags": ACK | 0x01},
    "congestion window reduced": {"flags": ACK | 0x80},
    "no ack": {"flags": PUSH},
    "window": {"window": 501},
    "ports": {"ports": (1000, 2001)},
    "service": {"service": 3},
    "options": {"options": bytes.fromhex("0101080a0000000100000003")},
    "shorter options": {"options": b"\1" * 4, "payload": bytes(608)},
    "may be fragmented": {"fragment": 0},
    "fragment": {"fragment": 0x2000},
    "again": {"sequence": 5},
    "destination": {"destination": "10.0.0.9"},
}
STEPS = st.lists(
    st.tuples(st.sampled_from([*["nothing"] * 20, *CHANGES]), st.binary(min_size=4, max_size=4)),
    min_size=2,
    max_size=BATCH_PACKETS_MAX,
)


def fill(rows: ReceivedRows, packets: list[bytes], first: int = 0) -> None:
    for row, packet in enumerate(packets, first):
        rows.packet(row, len(packet))[:] = packet


def joined(packets: list[bytes], first: int = 0) -> list[bytes]:
    """Return what is written of packets that are as long, each with its virtio header."""
    rows = ReceivedRows(VNET_HEADER_SIZE)
    fill(rows, packets, first)
    frames = join(rows, first, len(packets), len(packets[0]))
    for frame in frames:
        if isinstance(frame, SuperPacket):
            assert [bytes(each[VNET_HEADER_SIZE:]) for each in frame.frames()] == packets[: frame.count]
        packets = packets[frame.count if isinstance(frame, SuperPacket) else 1 :]
    assert packets == []
    return [b"".join(frame.buffers) if isinstance(frame, SuperPacket) else bytes(frame) for frame in frames]


def segments(first: Segment, steps: list[tuple[str, bytes]], size: int) -> list[bytes]:
    found = []
    for number, (change, noise) in enumerate(steps):
        payload = (noise * (size // 4 + 1))[:size]
        segment = replace(first, payload=payload, sequence=first.sequence + number * size, ident=first.ident + number)
        changed = dict(CHANGES[change])
        if first.source.startswith("fd") and "destination" in changed:
            changed["destination"] = "fd00::9"
        if "payload" in changed:
            changed["payload"] = payload + bytes(len(first.options) - 4)
        found.append(replace(segment, **changed).packet())
    return found


@settings(max_examples=300)
@given(st.sampled_from([FIRST4, FIRST6]), STEPS, st.sampled_from([1, 333, 600, 1_368, 1_400]), st.integers(0, 3))
def test_what_is_joined_is_cut_into_the_same_segments(
    first: Segment, steps: list[tuple[str, bytes]], size: int, row: int
) -> None:
    packets = segments(first, steps[: BATCH_PACKETS_MAX - row], size)
    written = joined(packets, row)
    assert all(has_right_checksum(frame[VNET_HEADER_SIZE:]) for frame in written)
    assert [comparable(packet) for frame in written for packet in cut(frame)] == list(map(comparable, packets))


@pytest.mark.parametrize("first", [FIRST4, FIRST6])
@pytest.mark.parametrize("sequence", [1, FIRST4.sequence])
@pytest.mark.parametrize(("count", "size", "writes"), [(2, 600, 1), (46, 1_400, 1), (64, 1_400, 2), (64, 333, 64)])
def test_a_run_is_as_few_writes_as_the_length_of_a_packet_allows(
    first: Segment, count: int, size: int, writes: int, sequence: int
) -> None:
    packets = [each.packet() for each in run(replace(first, payload=bytes(size), sequence=sequence), count)]
    assert len(joined(packets)) == writes


@pytest.mark.parametrize("fragment", [0, 0x2000, 0x4001, 0x6000])
def test_fragments_and_what_may_become_some_are_written_alone(fragment: int) -> None:
    assert len(joined([each.packet() for each in run(replace(FIRST4, fragment=fragment), 4)])) == 4


def test_a_push_ends_a_run() -> None:
    segments = run(FIRST4, 6)
    segments[3] = replace(segments[3], flags=ACK | PUSH)
    written = joined([each.packet() for each in segments])
    assert [len(cut(frame)) for frame in written] == [4, 2]
    assert [packet[33] for packet in cut(written[0])] == [ACK, ACK, ACK, ACK | PUSH]


def test_other_packets_before_a_run_are_written_alone() -> None:
    segments = run(replace(FIRST4, fragment=0), 2) + run(FIRST4, 4)
    assert [len(cut(frame)) for frame in joined([each.packet() for each in segments])] == [1, 1, 4]


@pytest.mark.parametrize("first", [FIRST4, FIRST6])
@pytest.mark.parametrize("damaged", range(5))
@pytest.mark.parametrize("damage", [1, 256, 0x7FFF])
def test_a_damaged_segment_damages_its_super_packet(first: Segment, damaged: int, damage: int) -> None:
    segments = run(replace(first, payload=b"\xa5\x01" * 300), 5)
    (whole,) = joined([each.packet() for each in segments])
    assert has_right_checksum(whole[VNET_HEADER_SIZE:])
    segments[damaged] = replace(segments[damaged], damage=damage)
    (whole,) = joined([each.packet() for each in segments])
    assert not has_right_checksum(whole[VNET_HEADER_SIZE:])

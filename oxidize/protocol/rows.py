"""Rows: fixed places in memory for the datagrams of a batch, and for the packets in them.

The rule: everything that is done once for each datagram is prepared here once for all: the views into the rows, and
struct formats that read one field of all rows in one call. Row n begins at n * ROW_BYTES, or where
datagrams lie without gaps; what is opened or sealed has rows of its own.
"""

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from oxidize.protocol.constants import BATCH_PACKETS_MAX, DATA_HEADER_SIZE, DATA_OVERHEAD
from oxidize.protocol.endpoint import Endpoint

RECEIVE_BYTES_MAX = 65_536  # what one receive may bring, where it is the first: a batch of datagrams is never longer
ROW_BYTES = 2048  # a datagram of an Ethernet, with room; a longer one is received as a batch of its own
FORMATS_CACHED_MAX = 512  # formats for a number of rows and their size
SEGMENT_SIZES_CACHED_MAX = 16  # sizes of joined datagrams whose views are kept
SIZES_CACHED_MAX = 160  # sizes of datagrams whose views are kept: all that are padded, and some
PAYLOADS_CACHED_MAX = 64  # sizes of headers and payloads whose views are kept
OPENED_AT = 16  # where what was opened begins in its row: the tunnel's own header has room before it
_NONCE_SIZE = 12


@lru_cache(FORMATS_CACHED_MAX)
def _format(field: str, rows: int, stride: int = ROW_BYTES) -> struct.Struct:
    """Return the struct that reads or writes `field` at the beginning of each row."""
    rest = f"{stride - struct.calcsize(field)}x"
    return struct.Struct(field[0] + rest.join([field[1:]] * rows))


_HEADER = "<IIQ"  # type, receiver index, counter
_IPV4_HEADER = ">BxH8x4s"  # version and header size, length, source
_IPV6_HEADER = ">B3xH2x16s"  # version, length behind the header, source
_NONCES = [struct.Struct("<" + "4xQ" * rows) for rows in range(BATCH_PACKETS_MAX + 1)]  # paper, section 5.4.6


class _Views:
    """For each size that was asked for: two views of each row, which `make` cuts out by the row's number and the size.

    Views are made for as many rows as batches have used: the first packets of a process wait for no others.
    """

    def __init__(self, make: Callable[[int, int], tuple[memoryview, memoryview]]) -> None:
        self._make = make
        self._of_size: dict[int, tuple[list[memoryview], list[memoryview]]] = {}

    def of(self, size: int, rows: int) -> tuple[list[memoryview], list[memoryview]]:
        """Return both views of each row, of at least the first `rows` rows."""
        if (views := self._of_size.get(size)) is None:
            if len(self._of_size) >= SIZES_CACHED_MAX:
                self._of_size.clear()
            views = self._of_size[size] = ([], [])
        firsts, seconds = views
        for row in range(len(firsts), rows):
            first, second = self._make(row, size)
            firsts.append(first)
            seconds.append(second)
        return views


class _JoinedViews(dict[int, _Views]):
    """For each size of rows without gaps that was asked for: their views, which `cut` makes."""

    def __init__(self, cut: Callable[[int, int, int], tuple[memoryview, memoryview]]) -> None:
        super().__init__()
        self._cut = cut

    def __missing__(self, stride: int) -> _Views:
        if len(self) >= SEGMENT_SIZES_CACHED_MAX:
            self.clear()
        self[stride] = _Views(partial(self._cut, stride))
        return self[stride]


def _memory() -> memoryview:
    return memoryview(bytearray(BATCH_PACKETS_MAX * ROW_BYTES))


class _Nonces(list[memoryview]):
    """A nonce for each row, 12 bytes."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(BATCH_PACKETS_MAX * _NONCE_SIZE))
        ends = range(_NONCE_SIZE, len(self._memory) + 1, _NONCE_SIZE)
        super().__init__(self._memory[end - _NONCE_SIZE : end] for end in ends)

    def set(self, counters: Sequence[int]) -> None:
        """Set the nonces of the first rows (paper, section 5.4.6)."""
        _NONCES[len(counters)].pack_into(self._memory, 0, *counters)


class ReceivedRows:
    """The datagrams of one batch, in the order of their arrival: single ones of any senders, or those that GRO joined.

    sizes, endpoints: of the datagrams, one for each row in use. are_joined: whether GRO joined them. memory: of all
    rows. room: for each row a list with the view to receive into; the first one extends over other rows.
    types, receivers, counters, nonces: the headers of data messages, which `read_headers` sets; of another datagram
    only the type means anything. views: of data messages of one size, for each row what is sealed and the room to open
    it. All views are valid until the rows are filled again.

    header_size: of the tunnel's own header, bytes, OPENED_AT at most: so many zeros precede each packet in its `frame`.
    """

    def __init__(self, header_size: int = 0) -> None:
        self.header_size = header_size
        self.sizes: list[int] = []
        self.endpoints: list[Endpoint] = []
        self.memory = _memory()
        self._opened = _memory()
        self.room = [
            [self.memory[start : start + ROW_BYTES]] for start in range(0, BATCH_PACKETS_MAX * ROW_BYTES, ROW_BYTES)
        ]
        self.room[0] = [self.memory[:RECEIVE_BYTES_MAX]]
        self.nonces = _Nonces()
        self.are_joined = False
        self._stride = ROW_BYTES
        self.views = self._views_of_singles = _Views(partial(self._cut, ROW_BYTES))
        self._views_of_joined = _JoinedViews(self._cut)
        self._payloads: dict[tuple[int, int], list[memoryview]] = {}
        self.types: tuple[int, ...] = ()
        self.receivers: tuple[int, ...] = ()
        self.counters: tuple[int, ...] = ()

    def _cut(self, stride: int, row: int, size: int) -> tuple[memoryview, memoryview]:
        start, opened = row * stride, row * ROW_BYTES + OPENED_AT
        return (
            self.memory[start + DATA_HEADER_SIZE : start + size],
            self._opened[opened : opened + size - DATA_OVERHEAD],
        )

    def clear(self) -> None:
        """Forget the datagrams; the next ones come singly, each in a row."""
        self.sizes.clear()
        self.endpoints.clear()
        self.are_joined = False
        self._stride, self.views = ROW_BYTES, self._views_of_singles

    def fill_joined(self, size: int, segment_size: int, endpoint: Endpoint) -> None:
        """Make rows of `size` bytes that one sender's datagrams fill without gaps; only the last may be shorter.

        segment_size: of the others, from DATA_OVERHEAD to ROW_BYTES.
        """
        whole, rest = divmod(size, segment_size)
        self.sizes[:] = [segment_size] * whole + ([rest] if rest else [])
        self.endpoints[:] = [endpoint] * len(self.sizes)
        self.are_joined = True
        self._stride, self.views = segment_size, self._views_of_joined[segment_size]

    def datagram(self, row: int) -> memoryview:
        """Return the datagram in a row."""
        start = row * self._stride
        return self.memory[start : start + self.sizes[row]]

    def read_headers(self) -> None:
        """Read the headers of the rows in use."""
        fields = _format(_HEADER, len(self.sizes), self._stride).unpack_from(self.memory)
        self.types, self.receivers, self.counters = fields[0::3], fields[1::3], fields[2::3]
        self.nonces.set(self.counters)

    def packet(self, row: int, length: int) -> memoryview:
        """Return the first `length` bytes of what was opened in a row."""
        start = row * ROW_BYTES + OPENED_AT
        return self._opened[start : start + length]

    def frame(self, row: int, length: int) -> memoryview:
        """Return `packet` behind the tunnel's header."""
        start = row * ROW_BYTES + OPENED_AT
        return self._opened[start - self.header_size : start + length]

    def framed(self, packet: bytes) -> bytes:
        """Return a packet that does not stand in these rows behind the tunnel's header."""
        return bytes(self.header_size) + packet

    def payloads(self, start: int, size: int) -> list[memoryview]:
        """Return, for each row, `size` bytes from `start` on of what was opened in it."""
        if (views := self._payloads.get((start, size))) is None:
            if len(self._payloads) >= PAYLOADS_CACHED_MAX:
                self._payloads.clear()
            views = [self.packet(row, start + size)[start:] for row in range(BATCH_PACKETS_MAX)]
            self._payloads[start, size] = views
        return views

    def opened_fields(self, first: int, count: int, size: int) -> tuple[bytes, ...]:
        """Return the first `size` bytes of what was opened in each of `count` rows from `first` on."""
        return _format(f"={size}s", count).unpack_from(self._opened, first * ROW_BYTES + OPENED_AT)

    def ip_headers(self, version: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bytes, ...]]:
        """Return fields of what is in all rows as a packet of one version of IP, 4 or 6.

        They are the first byte, the length by the header, and the source address.
        """
        header = _IPV6_HEADER if version == 6 else _IPV4_HEADER
        fields = _format(header, len(self.sizes)).unpack_from(self._opened, OPENED_AT)
        return fields[0::3], fields[1::3], fields[2::3]


class PacketRows:
    """The packets of one batch on their way from the tunnel, each in a row behind a header of `header_size` bytes.

    room: for each row the views to read into: the row, and what a longer packet has beyond it, for the last one only.
    """

    def __init__(self, header_size: int) -> None:
        self._header_size = header_size
        self._memory = _memory()
        self._beyond = memoryview(bytearray(RECEIVE_BYTES_MAX))
        starts = range(0, BATCH_PACKETS_MAX * ROW_BYTES, ROW_BYTES)
        self.room = [(self._memory[start : start + ROW_BYTES], self._beyond) for start in starts]
        self._views: dict[int, list[memoryview]] = {}  # by the size of packets: those that were asked for, from row 0

    def packets(self, sizes: Sequence[int]) -> list[memoryview]:
        """Return the packets of the first rows, one at least; they last until a row is used again.

        sizes: with the header, bytes, of at least `header_size`; only the last may be longer than a row.
        """
        last, before = len(sizes) - 1, sizes[:-1]
        if before.count(sizes[0]) == last:
            packets = self._alike(sizes[0], last)
        else:
            packets = [self._packet(row, size) for row, size in enumerate(before)]
        packets.append(self._packet(last, sizes[last]))
        return packets

    def _alike(self, size: int, count: int) -> list[memoryview]:
        if (views := self._views.get(size)) is None:
            if len(self._views) >= SEGMENT_SIZES_CACHED_MAX:
                self._views.clear()
            views = self._views[size] = []
        views += [self._packet(row, size) for row in range(len(views), count)]
        return views[:count]

    def _packet(self, row: int, size: int) -> memoryview:
        start = row * ROW_BYTES
        packet = self._memory[start + self._header_size : start + min(size, ROW_BYTES)]
        return packet if size <= ROW_BYTES else memoryview(b"".join((packet, self._beyond[: size - ROW_BYTES])))


class SealedRows:
    """Data messages of any peers on their way out.

    nonces: set by `set_headers`. views: of packets of one size, padding included, for each row the room to seal it, and
    the whole message. All views are valid until the rows are used again.
    """

    def __init__(self) -> None:
        self._memory = _memory()
        self.nonces = _Nonces()
        self.views = self._views_of_single = _Views(partial(self._cut, ROW_BYTES))
        self._views_of_joined = _JoinedViews(self._cut)

    def _cut(self, stride: int, row: int, size: int) -> tuple[memoryview, memoryview]:
        start = row * stride
        message = self._memory[start : start + size + DATA_OVERHEAD]
        return message[DATA_HEADER_SIZE:], message

    def set_headers(self, fields: Sequence[int], joined_size: int = 0) -> None:
        """Set type, receiver index and counter of the first rows, and their nonces; what was in the rows is lost.

        joined_size: of all messages but the last, which may be shorter, where they are to lie without gaps.
        """
        stride = joined_size or ROW_BYTES
        self.views = self._views_of_joined[stride] if joined_size else self._views_of_single
        _format(_HEADER, len(fields) // 3, stride).pack_into(self._memory, 0, *fields)
        self.nonces.set(fields[2::3])

    def last_joined(self, row: int, stride: int, size: int) -> tuple[memoryview, memoryview]:
        """Return what `views` has, of a row that may be shorter than the `stride` of those before it."""
        return self._cut(stride, row, size)

    def joined(self, size: int) -> memoryview:
        """Return the messages that lie without gaps, of `size` bytes together."""
        return self._memory[:size]

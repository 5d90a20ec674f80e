"""The transport messages of a server on the wire, identified by receiver index and counter.

Rule: a keypair seals with each counter once, across all processes that held it. The receiver index identifies the
keypair, so a pair that occurs twice is a reused nonce. Source: the paper, section 5.4.6.
"""

import struct
from collections import Counter
from collections.abc import Iterable

TYPE_DATA = 4
DATA_HEADER = struct.Struct("<IIQ")  # the type with its three zero bytes, receiver index, counter
UDP_PAYLOAD_BYTES_MAX = 1_452  # of one Ethernet frame; a longer payload would be several coalesced datagrams


def transport_pairs(datagrams: Iterable[bytes]) -> list[tuple[int, int]]:
    """Return (receiver index, counter) of every transport message, in the order of the wire."""
    pairs = []
    for datagram in datagrams:
        if len(datagram) >= DATA_HEADER.size and datagram[0] == TYPE_DATA:
            _, index, counter = DATA_HEADER.unpack_from(datagram)
            pairs.append((index, counter))
    return pairs


def assert_no_nonce_twice(pairs: list[tuple[int, int]], at_least: int) -> None:
    """Fail if a pair occurs twice, or if the capture has fewer messages than were sent."""
    assert len(pairs) >= at_least, f"only {len(pairs)} transport messages were seen, expected {at_least} or more"
    again = [(pair, times) for pair, times in Counter(pairs).items() if times > 1]
    assert not again, f"{len(again)} pairs of receiver index and counter were sealed twice: {again[:5]}"

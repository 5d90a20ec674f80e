"""What a server put on the wire: every transport message by receiver index and counter.

Rule: a keypair seals with each counter once, whatever became of the processes that held it. The receiver index names
the keypair, so a pair that is seen twice is a nonce used twice. Source: the paper, section 5.4.6.
"""

import struct
from collections import Counter
from collections.abc import Iterable

TYPE_DATA = 4
DATA_HEADER = struct.Struct("<IIQ")  # the type with its three zero bytes, receiver index, counter
UDP_PAYLOAD_BYTES_MAX = 1_452  # one Ethernet frame's: anything longer would be several datagrams in one


def transport_pairs(datagrams: Iterable[bytes]) -> list[tuple[int, int]]:
    """Return (receiver index, counter) of every transport message, in the order of the wire."""
    pairs = []
    for datagram in datagrams:
        if len(datagram) >= DATA_HEADER.size and datagram[0] == TYPE_DATA:
            _, index, counter = DATA_HEADER.unpack_from(datagram)
            pairs.append((index, counter))
    return pairs


def assert_no_nonce_twice(pairs: list[tuple[int, int]], at_least: int) -> None:
    """Fail if a pair comes twice, or if fewer were seen than must have been: then nothing would have been shown."""
    assert len(pairs) >= at_least, f"only {len(pairs)} transport messages were seen, expected {at_least} or more"
    again = [(pair, times) for pair, times in Counter(pairs).items() if times > 1]
    assert not again, f"{len(again)} pairs of receiver index and counter were sealed twice: {again[:5]}"

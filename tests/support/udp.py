"""Receiving from a `UdpSocket` where a test does not care whether datagrams came singly or as a batch."""

from oxidize.net.udp import UdpSocket
from oxidize.net.udp_receiver import ReceivedBatch
from oxidize.protocol.rows import ReceivedRows


def receive(wrapped: UdpSocket) -> ReceivedBatch | None:
    """Return what one receive brings, from one sender, as copies; None for nothing."""
    rows = ReceivedRows()
    batch = wrapped.receiver.receive(rows)
    datagrams = [memoryview(bytes(rows.datagram(row))) for row in range(len(rows.sizes))]
    if batch is None and not datagrams:
        return None
    (endpoint,) = {*rows.endpoints, *([batch.endpoint] if batch is not None else [])}
    if batch is not None:
        datagrams += [memoryview(bytes(datagram)) for datagram in batch.datagrams]
    return ReceivedBatch(endpoint, datagrams, batch is not None and batch.truncated)

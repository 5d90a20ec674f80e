"""An initiation takes as long as a batch of data, and so is one, in a turn of the loop of its own."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from oxidize.protocol.constants import REKEY_TIMEOUT
from oxidize.protocol.counters import DropReason, Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.handshaker import Handled, Handshaker
from tests.unit.net.test_strays import Stand


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    with ExitStack() as undo:
        yield Stand(undo, monkeypatch)


@pytest.fixture
def delivered(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many packets had been delivered when each handshake message was looked into."""
    found: list[int] = []
    receive = Handshaker.receive

    def note(
        handshaker: Handshaker, data: bytes | memoryview, endpoint: Endpoint, now: float
    ) -> DropReason | Handled:  # fmt: skip
        found.append(len(stand.tunnel.packets))
        return receive(handshaker, data, endpoint, now)

    monkeypatch.setattr(Handshaker, "receive", note)
    return found


def send_two_initiations_among_data(stand: Stand) -> None:
    """Send two packets, an initiation, a packet, the initiation once more, and a packet."""
    stand.world.now += REKEY_TIMEOUT + 1
    stand.client.device._handshaker.initiate(stand.client.peer(stand.server), stand.world.now)
    (initiation,) = (datagram for transmit in stand.client.take_transmits() for datagram in transmit.datagrams)
    data = stand.messages(4)
    for datagram in (*data[:2], initiation, data[2], initiation, data[3]):
        stand.peer.send(datagram)


def test_data_is_delivered_before_the_initiation_behind_it_is_looked_into(stand: Stand, delivered: list[int]) -> None:
    before = stand.server.total(Total.INITIATIONS_RECEIVED)
    send_two_initiations_among_data(stand)
    stand.carry(6)
    assert stand.server.total(Total.INITIATIONS_RECEIVED) == before + 1
    assert delivered == [2, 3]
    assert len(stand.tunnel.packets) == 4
    assert stand.batches == 5


def test_an_initiation_ends_the_turn_before_it_and_its_own(stand: Stand) -> None:
    send_two_initiations_among_data(stand)
    delivered = []
    for _ in range(5):
        stand.path.from_udp()
        delivered.append(len(stand.tunnel.packets))
    assert delivered == [2, 2, 3, 3, 4]


def test_under_load_initiations_take_little_work_and_end_no_batch(stand: Stand, delivered: list[int]) -> None:
    stand.world.now += REKEY_TIMEOUT + 1
    stand.server.device._handshaker.admission._load.fill(stand.world.now + REKEY_TIMEOUT + 1)
    send_two_initiations_among_data(stand)
    stand.carry(6)
    assert delivered == [4, 4]
    assert stand.batches == 1

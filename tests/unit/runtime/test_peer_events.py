"""Lines about peers: one for each change, limited, and no work while nothing changes."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from oxidize.clock import boot_time
from oxidize.protocol.constants import REJECT_AFTER_TIME
from oxidize.protocol.counters import LAST_RECEIVED_NS, Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.noise import TransportKeys
from oxidize.runtime.peer_events import CHECK_SECS, FIRST_SECS, LINES_BURST, PEERS_PER_SLICE, PeerEvents
from tests.support.node_stand import Stand

FIRST, SECOND = Endpoint(bytes([192, 0, 2, 1]), 1000), Endpoint(bytes([192, 0, 2, 2]), 1000)


class Bench:
    """The events of a server's peers, on a clock of its own. looks: how many of them looked at the peers."""

    def __init__(self, stand: Stand, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        caplog.set_level(logging.INFO)
        self._caplog = caplog
        self.stand = stand
        self.now = boot_time()
        self.events = PeerEvents(stand.node.device, stand.node.counters, lambda: self.now)
        self.looks = 0
        self.turns = 0
        original = self.events._look

        def counted() -> Iterator[None]:
            self.looks += 1
            return original()

        monkeypatch.setattr(self.events, "_look", counted)

    def connect(self, endpoint: Endpoint = FIRST) -> None:
        """Have the peer shake hands and send its first message from an endpoint."""
        self.stand.begin_session()
        self.stand.node.counters[Total.HANDSHAKES_RESPONDER] += 1
        self.hear(endpoint)

    def hear(self, endpoint: Endpoint) -> None:
        peer = self.stand.peer
        self.stand.node.device._table.move_endpoint(peer, endpoint, self.now)
        self.stand.node.counters[peer.slot + LAST_RECEIVED_NS] = int(self.now * 1e9)

    def begin(self) -> list[str]:
        """Let the first look pass."""
        self.check(0)
        return self.check(FIRST_SECS)

    def check(self, secs: float = CHECK_SECS) -> list[str]:
        """Let time pass, run everything that is due, and return the new lines, without the fields."""
        self.now += secs
        self._caplog.clear()
        for _ in range(10_000):
            if self.events.next_deadline() > self.now:
                break
            self.turns += 1
            self.events.handle_timeout(self.now)
            if self.events._work is not None:
                self.now = max(self.now, self.events.next_deadline())
        return [record.getMessage() for record in self._caplog.records]

    def fields(self) -> dict[str, Any]:
        (record,) = self._caplog.records
        return dict(vars(record)["oxidize_fields"])


@pytest.fixture
def bench(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with ExitStack() as undo:
        yield Bench(Stand(tmp_path, undo), caplog, monkeypatch)


def test_a_peer_connects_moves_and_is_silent(bench: Bench) -> None:
    assert bench.begin() == []
    bench.connect()
    assert bench.check() == ["a peer has connected"]
    assert bench.fields() == {"peer": "alice", "endpoint": "192.0.2.1:1000"}
    assert bench.check() == []
    bench.hear(SECOND)
    assert bench.check() == ["a peer has moved"]
    assert bench.fields() == {"peer": "alice", "endpoint": "192.0.2.2:1000"}
    heard_at = bench.now - CHECK_SECS
    assert bench.check(REJECT_AFTER_TIME) == ["a peer is silent"]
    assert bench.fields() == {
        "peer": "alice", "endpoint": "192.0.2.2:1000", "unheard_secs": round(bench.now - heard_at)
    }  # fmt: skip
    assert bench.check() == []


def test_a_peer_that_connects_before_the_first_look_is_told(bench: Bench) -> None:
    bench.check(0)
    bench.now += FIRST_SECS / 2
    bench.connect()
    assert bench.check(FIRST_SECS / 2) == ["a peer has connected"]


def test_a_peer_that_connects_again_is_told_again(bench: Bench) -> None:
    bench.begin()
    bench.connect()
    bench.check()
    bench.check(REJECT_AFTER_TIME)
    table, peer = bench.stand.node.device._table, bench.stand.peer
    index = table.indices.new(None, table.random_bytes)
    keypair = table.create_keypair(peer, TransportKeys(bytes(32), bytes(32)), (index, 1), True, bench.now)
    table.rotate(peer, lambda: peer.rotate_as_initiator(keypair))
    bench.stand.node.counters[Total.HANDSHAKES_INITIATOR] += 1
    assert bench.check() == ["a peer has connected"]


def test_an_initiation_alone_connects_nobody(bench: Bench) -> None:
    """It may be a replay."""
    bench.begin()
    table, peer = bench.stand.node.device._table, bench.stand.peer
    index = table.indices.new(None, table.random_bytes)
    keypair = table.create_keypair(peer, TransportKeys(bytes(32), bytes(32)), (index, 1), False, bench.now)
    table.rotate(peer, lambda: peer.rotate_as_responder(keypair))
    bench.stand.node.counters[Total.HANDSHAKES_RESPONDER] += 1
    assert bench.check() == []
    table.rotate(peer, peer.promote_next)
    assert bench.check() == ["a peer has connected"], "it is confirmed after it was counted"


def test_what_was_so_before_is_no_event(bench: Bench) -> None:
    bench.connect()
    bench.now = boot_time()
    assert bench.begin() == []
    assert bench.check() == []
    bench.hear(SECOND)
    assert bench.check() == ["a peer has moved"]


def test_the_local_half_of_an_endpoint_is_no_move(bench: Bench) -> None:
    bench.begin()
    bench.connect()
    bench.check()
    bench.hear(FIRST._replace(local_address=bytes([192, 0, 2, 9])))
    bench.stand.node.counters[Total.ENDPOINT_MOVES] += 1
    assert bench.check() == []


def test_nobody_is_looked_at_while_nothing_can_have_changed(bench: Bench) -> None:
    bench.begin()
    bench.connect()
    for _ in range(5):
        bench.check()
    looks = bench.looks
    for _ in range(20):
        bench.check()
    assert bench.looks == looks
    bench.check(REJECT_AFTER_TIME)
    assert bench.looks == looks + 1


def test_a_peer_whose_access_has_ended_is_forgotten_without_a_line(bench: Bench) -> None:
    bench.begin()
    bench.connect()
    bench.check()
    bench.stand.node.device._table.peers.clear()
    assert bench.check(REJECT_AFTER_TIME) == []
    assert bench.events._connected == {}


def test_lines_are_limited_and_the_others_counted(bench: Bench) -> None:
    bench.begin()
    bench.connect()
    number = 3 * PEERS_PER_SLICE
    peers: Any = {index.to_bytes(4, "big"): _Copy(bench.stand.peer) for index in range(number)}
    bench.stand.node.device._table.peers = peers
    turns = bench.turns
    lines = bench.check()
    assert lines[:-1].count("a peer has connected") == len(lines) - 1
    assert LINES_BURST <= len(lines) - 1 <= LINES_BURST + 2
    assert lines[-1] == "more peers have changed than are logged"
    record = bench._caplog.records[-1]
    assert vars(record)["oxidize_fields"] == {"connected": number - (len(lines) - 1), "moved": 0, "silent": 0}
    assert bench.turns - turns >= len(lines) - 1 + number // PEERS_PER_SLICE, "a line in each turn"
    assert bench.check() == []


class _Copy:
    """A peer like another one, but not the same."""

    def __init__(self, peer: Any) -> None:
        self._peer = peer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peer, name)


def test_no_peer_is_looked_at_in_a_hand_off(bench: Bench) -> None:
    bench.connect()
    bench.check(0)
    assert bench.looks == 0
    bench.check(FIRST_SECS)
    assert bench.looks == 1

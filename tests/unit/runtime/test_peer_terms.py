"""The end of a peer's access: at its time, by the machine's clock, also where that is set."""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from oxidize.errors import StorageError
from oxidize.protocol.changes import Change, PeerRemoved
from oxidize.protocol.peer import Peer
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.runtime.parts import boot_id
from oxidize.runtime.peer_terms import CHANGES_PER_SLICE, CHECK_SECS, RETRY_SECS, PeerTerms
from oxidize.state.session_state import SessionState
from tests.support.network import EPOCH, Host, World
from tests.support.node_stand import Stand


class Scene:
    """A server with peers that end after so many seconds (None: never, 0: disabled), and its terms."""

    def __init__(self, *ends: float | None) -> None:
        self.world = World()
        self.server = self.world.host()
        self.clients: list[Host] = []
        self.ahead = 0.0  # how far the time of day was set
        self.peers: list[PeerSettings] = []
        for end in ends:
            client = self.world.host()
            client.know(self.server)
            self.server.know(client, reachable=False)
            client.start()
            self.clients.append(client)
            peer = self.server.peers[-1]._replace(name=f"p{len(self.clients)}", enabled=end != 0)
            self.peers.append(peer if not end else peer._replace(expires_unix=self.unix() + end))
        self.added: list[Peer] = []
        self.start()

    def start(self) -> None:
        self.server.peers = [peer for peer in self.peers if peer.is_active(self.unix())]
        if hasattr(self.server, "device"):
            self.server.replace()
        else:
            self.server.start()
        self.terms = PeerTerms(self.peers, self.server.device, self.added.append, self.unix)
        self.terms.begin(self.world.now)

    def unix(self) -> float:
        return EPOCH + self.world.now + self.ahead

    def run(self, secs: float) -> None:
        ends_at = self.world.now + secs
        while (due := self.terms.next_deadline()) is not None and due <= ends_at:
            self.world.run(max(0.0, due - self.world.now))
            self.terms.handle_timeout(self.world.now)
        self.world.run(ends_at - self.world.now)

    def reached(self) -> list[bool]:
        """Return which clients can reach the server now; they try for as long as their handshakes are retried."""
        found = []
        for client in self.clients:
            self.server.delivered.clear()
            for _ in range(3):
                client.send(self.server)
                self.world.exchange()
                self.run(5.5)
            found.append(bool(self.server.delivered))
        return found

    def inactive(self) -> dict[str, str]:
        return {peer.name: reason for peer, reason in self.terms.inactive()}


def test_a_session_ends_at_its_time_without_a_reload() -> None:
    scene = Scene(None, 100.0)
    assert scene.reached() == [True, True]
    assert scene.inactive() == {}
    scene.run(99.9 - (scene.world.now - 1000))
    assert scene.server.device.live_sessions(scene.world.now) == 2
    scene.run(0.2)
    assert scene.server.device.live_sessions(scene.world.now) == 1
    assert scene.inactive() == {"p2": "expired"}
    assert scene.reached() == [True, False]


def test_the_end_holds_for_the_next_process() -> None:
    scene = Scene(None, 100.0)
    assert scene.reached() == [True, True]
    scene.run(100)
    scene.start()
    assert scene.inactive() == {"p2": "expired"}
    assert scene.reached() == [True, False]


def test_an_end_that_came_while_no_process_served_counts_before_the_first_packet() -> None:
    scene = Scene(None, 100.0)
    assert scene.reached() == [True, True]
    scene.server.peers = scene.peers  # made just before the end, it owns after it
    scene.world.now += 100
    scene.server.replace()
    scene.terms = PeerTerms(scene.peers, scene.server.device, scene.added.append, scene.unix)
    assert scene.inactive() == {}
    scene.terms.begin(scene.world.now)
    assert scene.inactive() == {"p2": "expired"}
    assert scene.server.device.live_sessions(scene.world.now) == 1


def test_a_clock_that_is_set_forward_ends_access_within_seconds() -> None:
    scene = Scene(86_400.0, 86_500.0)
    assert scene.reached() == [True, True]
    scene.ahead = 86_400.0
    scene.run(CHECK_SECS)
    assert scene.inactive() == {"p1": "expired"}
    assert scene.reached() == [False, True]


def test_a_clock_that_is_set_back_restores_access() -> None:
    scene = Scene(3600.0, 7200.0, None)
    scene.ahead = 10_000.0
    scene.run(CHECK_SECS)
    assert scene.inactive() == {"p1": "expired", "p2": "expired"}
    scene.ahead = 5_000.0
    scene.run(CHECK_SECS)
    assert [peer.settings.name for peer in scene.added] == ["p2"]
    assert scene.reached() == [False, True, True]
    scene.ahead = -1e9
    scene.run(CHECK_SECS)
    assert scene.reached() == [True, True, True]


def test_a_process_that_starts_with_a_clock_ahead_lets_peers_in_when_it_is_right() -> None:
    scene = Scene(3600.0)
    assert scene.reached() == [True]
    scene.ahead = 1e6
    scene.start()
    assert scene.inactive() == {"p1": "expired"}
    scene.ahead = 0.0
    scene.run(CHECK_SECS)
    assert scene.inactive() == {}
    assert list(scene.server.device.membership.unknown) == []
    assert scene.reached() == [True]


def test_a_disabled_peer_never_has_access() -> None:
    scene = Scene(None, 0)
    assert scene.terms.next_deadline() is None, "a clock need not be looked at"
    assert scene.inactive() == {"p2": "disabled"}
    assert scene.reached() == [True, False]


def test_many_ends_at_once_leave_room_for_packets() -> None:
    count = CHANGES_PER_SLICE + 3
    scene = Scene(*[10.0] * count)
    scene.world.now += 10.0
    scene.terms.handle_timeout(scene.world.now)
    assert len(scene.inactive()) == CHANGES_PER_SLICE
    assert scene.terms.next_deadline() == scene.world.now
    scene.terms.handle_timeout(scene.world.now)
    assert len(scene.inactive()) == count


def test_an_end_that_cannot_be_recorded_counts_and_is_recorded_later(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(100.0)
    assert scene.reached() == [True]
    table = scene.server.device._table
    real = table.record

    def refuse(change: Change) -> None:
        if isinstance(change, PeerRemoved):
            raise StorageError("made up")
        real(change)

    table.record = refuse
    scene.run(100)
    assert scene.server.device.live_sessions(scene.world.now) == 0
    assert scene.server.folded() != []
    scene.ahead = -1000.0  # an end that is not recorded is not taken back: the records would hold the old keys
    scene.run(CHECK_SECS)
    assert scene.inactive() == {"p1": "expired"}
    table.record = real
    scene.run(CHECK_SECS + RETRY_SECS)
    assert scene.inactive() == {}
    assert scene.reached() == [True]


def test_a_node_ends_access_before_it_reads(tmp_path: Path) -> None:
    with ExitStack() as undo:
        stand = Stand(tmp_path, undo)
        (alice,) = stand.settings.peers
        stand.settings = stand.settings._replace(peers=(alice._replace(expires_unix=time.time() + 100),))
        node = stand.make_node(SessionState.create("test", 1, boot_id(), stand.settings.public_key), 1)
        node.terms._unix_time = lambda: time.time() + 1000
        assert len(node.device.peers) == 1
        node.serve()
        assert node.device.peers == {}
        node.give_up_ownership()

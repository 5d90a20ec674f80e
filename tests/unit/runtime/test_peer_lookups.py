"""Names of peers: when they are looked up, what an answer changes, and that none of it stops the service."""

from collections.abc import Callable

import pytest

from oxidize.net.event_loop import Loop, Timed
from oxidize.net.resolver import LOOKUP_PAUSE_SECS, LOOKUP_PAUSE_SECS_MAX, Lookup, Outcome, Resolver
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer import Peer
from oxidize.runtime import peer_lookups
from oxidize.runtime.peer_lookups import LOOKUPS_MAX, NOT_ASKED, STARTS_PER_SLICE, PeerLookups
from tests.support.network import Host, World, packet

NAME = "site.example:51820"
ELSEWHERE = Endpoint(bytes([203, 0, 113, 9]), 51820)
DEAD = OSError("Name or service not known")


class FakeLoop(Loop):
    def __init__(self, world: World) -> None:
        self.timed: list[Timed] = []
        self.now = lambda: world.now

    def add_timed(self, timed: Timed) -> None:
        self.timed.append(timed)

    def remove_timed(self, timed: Timed) -> None:
        if timed in self.timed:
            self.timed.remove(timed)


class FakeResolver(Resolver):
    """Notes when it is asked; the scene supplies the outcome, or none."""

    def __init__(self, text: str, lookup: Lookup, loop: Loop, done: Callable[[Outcome], None]) -> None:
        self.text, self.done, self.now = text, done, loop.now
        self.asked: list[float] = []
        self.asks = False

    @property
    def is_asking(self) -> bool:
        return self.asks

    def ask(self) -> None:
        self.asked.append(self.now())
        self.asks = True

    def answer(self, outcome: Outcome) -> None:
        self.asks = False
        self.done(outcome)


class FakeLog:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self.lines.append((level, fields))


class Scene:
    """A server whose peer has a name, and that peer. answer: of every lookup; None for a mute name server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, keepalive: float = 0.0) -> None:
        self.world = World()
        self.server, self.site = self.world.host(), self.world.host()
        self.server.know(self.site, reachable=False, keepalive=keepalive)
        self.name_peers()
        self.site.know(self.server)
        self.site.start()
        self.answer: Outcome | None = DEAD
        self.resolvers: list[FakeResolver] = []
        self.log = FakeLog()
        monkeypatch.setattr(peer_lookups, "log", self.log)
        monkeypatch.setattr(peer_lookups, "Resolver", self.resolver)
        self.start()

    def name_peers(self, text: str = NAME) -> None:
        self.server.peers = [each._replace(configured_endpoint=text, name="site") for each in self.server.peers]

    def resolver(self, *args: object) -> FakeResolver:
        self.resolvers.append(FakeResolver(*args))  # type: ignore[arg-type]  # those of a resolver
        return self.resolvers[-1]

    def start(self) -> None:
        """Start the server, or let a successor restore its state, and look its names up."""
        self.resolvers.clear()
        if hasattr(self.server, "device"):
            self.server.replace()
        else:
            self.server.start()
        self.loop = FakeLoop(self.world)
        self.lookups = PeerLookups(self.server.device, self.loop, self.world.exchange)
        self.lookups.start(self.world.now)

    @property
    def peer(self) -> Peer:
        return self.server.peer(self.site)

    @property
    def asked(self) -> list[float]:
        return [at for resolver in self.resolvers for at in resolver.asked]

    def run(self, secs: float) -> None:
        """Let time pass; every lookup is answered at once."""
        ends_at = self.world.now + secs
        while self.world.now < ends_at:
            self.world.run(0.25)
            for timed in {self.lookups, *self.loop.timed}:
                timed.handle_timeout(self.world.now)
            for resolver in self.resolvers:
                if resolver.asks and self.answer is not None:
                    resolver.answer(self.answer)
            self.world.exchange()

    def pings(self, host: Host | None = None) -> bool:
        """Return whether a packet of the server arrives at its peer."""
        host = host or self.site
        self.server.send(host, b"ping")
        self.run(0.5)
        return packet(self.server.inner, host.inner, b"ping") in host.delivered


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_a_dead_name_is_looked_up_with_backoff_for_as_long_as_it_takes_and_logged_once(scene: Scene) -> None:
    scene.run(600.0)
    pauses = [later - earlier for earlier, later in zip(scene.asked, scene.asked[1:], strict=False)]
    assert pauses[0] < 3 * LOOKUP_PAUSE_SECS
    assert sorted(pauses) == pauses, "each is at least as long as the one before"
    assert LOOKUP_PAUSE_SECS_MAX <= pauses[-1] < LOOKUP_PAUSE_SECS_MAX + 2
    assert [fields["peer"] for level, fields in scene.log.lines if level == "warning"] == ["site"]
    assert list(scene.lookups.waiting()) == [(scene.peer, NAME, str(DEAD))]
    assert scene.lookups.waiting_by_name() == {"site": True}
    scene.answer = [scene.site.endpoint]
    scene.run(LOOKUP_PAUSE_SECS_MAX + 2)
    assert scene.peer.endpoint == scene.site.endpoint
    assert scene.pings()
    assert list(scene.lookups.waiting()) == []
    assert scene.lookups.waiting_by_name() == {"site": False}


def test_a_peer_waits_while_a_mute_name_server_does_not_answer(scene: Scene) -> None:
    scene.answer = None
    scene.run(60.0)
    assert len(scene.asked) == 1, "one lookup at a time"
    assert list(scene.lookups.waiting()) == [(scene.peer, NAME, NOT_ASKED)]


def test_a_peer_that_comes_by_itself_is_served_and_its_name_not_asked_for_any_more(scene: Scene) -> None:
    scene.run(10.0)
    scene.site.send(scene.server, b"here I am")
    scene.run(2.0)
    asked = len(scene.asked)
    assert scene.pings()
    scene.run(60.0)
    assert len(scene.asked) == asked
    assert list(scene.lookups.waiting()) == []


def test_an_answer_is_not_used_when_the_peer_was_heard_meanwhile(scene: Scene) -> None:
    scene.answer = None
    scene.run(1.0)
    scene.site.send(scene.server, b"here I am")
    scene.run(0.5)
    scene.resolvers[0].answer([ELSEWHERE])
    assert scene.peer.endpoint == scene.site.endpoint


def test_an_operators_keepalive_brings_the_tunnel_up_as_soon_as_the_name_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch, keepalive=25.0)
    scene.answer = [scene.site.endpoint]
    scene.run(2.0)
    assert scene.peer.has_session(scene.world.now)


def test_a_successor_with_the_session_looks_nothing_up_and_sends_where_the_peer_is(scene: Scene) -> None:
    scene.site.send(scene.server, b"here I am")
    scene.run(2.0)
    scene.start()
    scene.run(30.0)
    assert scene.asked == []
    assert scene.pings()


def test_a_name_that_moves_is_followed_when_its_peer_stops_answering(scene: Scene) -> None:
    scene.answer = [scene.site.endpoint]
    scene.run(2.0)
    assert scene.pings()
    asked = len(scene.asked)
    scene.run(60.0)
    assert len(scene.asked) == asked, "a peer that answers is not looked up"
    scene.world.move(scene.site, ELSEWHERE)
    scene.answer = [ELSEWHERE]
    scene.site.delivered.clear()
    scene.server.send(scene.site, b"ping")
    scene.run(30.0)
    assert scene.peer.endpoint == ELSEWHERE
    assert scene.pings()


def test_the_addresses_of_a_name_are_tried_in_turn_while_the_peer_does_not_answer(scene: Scene) -> None:
    scene.answer = [ELSEWHERE, scene.site.endpoint]
    scene.run(2.0)
    assert scene.peer.endpoint == ELSEWHERE
    scene.server.send(scene.site, b"ping")
    scene.run(40.0)
    assert scene.peer.endpoint == scene.site.endpoint
    assert scene.pings()


def test_an_endpoint_of_an_earlier_run_counts_until_the_name_is_known(scene: Scene) -> None:
    scene.server.device.endpoints.use_cached(scene.peer, scene.site.endpoint, scene.world.now)
    assert scene.pings()
    scene.run(2.0)
    assert list(scene.lookups.waiting()) == []


def test_an_endpoint_of_an_earlier_run_gives_way_to_the_name(scene: Scene) -> None:
    scene.server.device.endpoints.use_cached(scene.peer, ELSEWHERE, scene.world.now)
    scene.answer = [scene.site.endpoint]
    scene.run(2.0)
    assert scene.peer.endpoint == scene.site.endpoint


def test_nothing_is_looked_up_and_no_answer_used_by_a_process_that_does_not_own(scene: Scene) -> None:
    scene.answer = None
    scene.run(1.0)
    scene.lookups.stop()
    scene.resolvers[0].answer([ELSEWHERE])
    assert scene.peer.endpoint is None
    assert scene.lookups.next_deadline() is None
    scene.run(60.0)
    assert len(scene.asked) == 1


def test_no_thread_is_started_before_the_first_packet_has_had_its_turn(scene: Scene) -> None:
    scene.lookups.start(scene.world.now)
    scene.lookups.handle_timeout(scene.world.now)
    assert scene.asked == []
    deadline = scene.lookups.next_deadline()
    assert deadline is not None
    assert deadline > scene.world.now


def test_many_names_are_looked_up_at_once_a_few_between_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    del scene.server.device
    scene.server.peers = [
        scene.server.peers[0]._replace(public_key=number.to_bytes(32, "big"), allowed_ips=(), name=str(number))
        for number in range(2, 2 + LOOKUPS_MAX + 10)
    ]
    scene.answer = None
    scene.start()
    scene.world.now += 1.0
    scene.lookups.handle_timeout(scene.world.now)
    assert len(scene.asked) == STARTS_PER_SLICE
    assert scene.lookups.next_deadline() == scene.world.now, "the next ones are started after one batch"
    scene.run(30.0)
    assert len(scene.asked) == LOOKUPS_MAX, "the others wait for their turn"
    scene.answer = DEAD
    scene.run(20.0)
    assert all(resolver.asked for resolver in scene.resolvers)


# --- A name that was changed in the configuration ---


def test_a_changed_name_is_used_as_soon_as_it_is_known_whatever_the_records_say(scene: Scene) -> None:
    scene.site.send(scene.server, b"here I am")
    scene.run(2.0)
    scene.server.device.endpoints.record_configured()
    scene.name_peers("other.example:51820")
    scene.start()
    assert scene.peer.endpoint == scene.site.endpoint, "until then the records say where it is"
    scene.run(5.0)
    assert list(scene.lookups.waiting()) == [(scene.peer, "other.example:51820", str(DEAD))]
    scene.server.device.endpoints.record_configured()
    scene.start()  # a reload meanwhile does not forget that
    scene.answer = [ELSEWHERE]
    scene.run(5.0)
    assert scene.peer.endpoint == ELSEWHERE
    scene.start()
    assert scene.peer.endpoint == ELSEWHERE
    assert list(scene.lookups.waiting()) == []

"""A client's connection: which lookups it makes, which events it handles, and what it reports to the operator."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address, ip_network
from types import SimpleNamespace

import pytest

from oxidize.client import connection as connection_module
from oxidize.client.connection import Connection
from oxidize.net.event_loop import Loop, Timed
from oxidize.net.network_watch import NetworkWatch
from oxidize.net.resolver import LOOKUP_PAUSE_SECS, LOOKUP_PAUSE_SECS_MAX, Lookup, Resolver
from oxidize.protocol.counters import LINK_STATE, OUTAGE_SINCE_NS, LinkState
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.link_policy import LinkPolicy
from oxidize.service_manager import notify
from oxidize.settings import NodeSettings
from tests.support.link_policy import DEFAULT_POLICY
from tests.support.network import Host, World, lose_everything
from tests.support.node_settings import settings_with

Wire = Callable[[Endpoint, Endpoint, bytes], Iterable[bytes]]

ELSEWHERE = Endpoint(bytes([203, 0, 113, 9]), 51820)
THIRD = Endpoint(bytes([203, 0, 113, 77]), 51820)
NAME, LITERAL = "vpn.example:51820", "192.0.2.2:51820"


class FakeResolver(Resolver):
    """Notes when it is asked; the test supplies the outcome."""

    def __init__(self, done: Callable[[list[Endpoint] | OSError], None], now: Callable[[], float]) -> None:
        self.done = done
        self.now = now
        self.asked: list[float] = []
        self.stopped = False

    def ask(self) -> None:
        self.asked.append(self.now())

    def stop(self) -> None:
        self.stopped = True


class FakeLoop(Loop):
    def __init__(self) -> None:
        self.timed: list[Timed] = []

    def add_timed(self, timed: Timed) -> None:
        if timed not in self.timed:
            self.timed.append(timed)

    def remove_timed(self, timed: Timed) -> None:
        if timed in self.timed:
            self.timed.remove(timed)


class FakeWatch(NetworkWatch):
    def __init__(self, _: Loop, changed: Callable[[float], None]) -> None:
        self.changed = changed
        self.runs = False

    def start(self) -> None:
        self.runs = True

    def stop(self) -> None:
        self.runs = False


class FakeLog:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, object]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self.lines.append((level, event, fields))

    def events(self) -> list[str]:
        return [event for _, event, _ in self.lines]


def settings_of(server: str, **more: object) -> NodeSettings:
    """Return what a connection uses of a client's settings."""
    return settings_with(role="client", server=server, fwmark=51820, **more)


class Scene:
    """A client with a connection, its server, and doubles of everything around them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, server: str, policy: LinkPolicy, *, found: bool) -> None:
        self.world = World()
        self.client, self.server = self.world.host(), self.world.host()
        self.client.know(self.server, reachable=found, link=policy)
        self.server.know(self.client, reachable=False)
        self.client.start()
        self.server.start()
        self.wire: Wire | None = None
        self.log = FakeLog()
        self.said: list[str] = []
        self.failures: list[str] = []
        self.source: bytes | None = b"\x0a\0\0\1"
        monkeypatch.setattr(connection_module, "log", self.log)
        monkeypatch.setattr(connection_module, "boot_time", lambda: self.world.now)
        monkeypatch.setattr(connection_module, "NetworkWatch", FakeWatch)
        monkeypatch.setattr(connection_module, "source_address_for", lambda endpoint, mark: self.source)
        monkeypatch.setattr(notify, "notify", self.said.append)
        monkeypatch.setattr(
            connection_module, "Resolver", lambda text, lookup, loop, done: FakeResolver(done, lambda: self.world.now)
        )
        self.loop = FakeLoop()
        self.connection = self.connect(self.client, settings_of(server), ["192.0.2.53"])
        resolver, watch = self.connection._resolver, self.connection._watch
        assert isinstance(resolver, FakeResolver)
        assert isinstance(watch, FakeWatch)
        self.resolver, self.watch = resolver, watch
        self.connection.start(self.world.now)
        self.world.exchange(self.wire)

    def connect(self, host: Host, settings: NodeSettings, upstream_dns: Sequence[str] = ()) -> Connection:
        return Connection(
            settings,
            host.device,
            host.slots.counters,
            self.loop,
            lambda: None,
            self.failures.append,
            upstream_dns,
        )

    @property
    def place(self) -> Endpoint | None:
        endpoint = self.client.peer(self.server).endpoint
        return endpoint and Endpoint(*endpoint.remote)

    def run(self, seconds: float) -> None:
        end = self.world.now + seconds
        while (due := self.connection.next_deadline()) is not None and due <= end:
            self.world.run(max(0.0, due - self.world.now), self.wire)
            self.connection.handle_timeout(self.world.now)
            self.world.exchange(self.wire)
        self.world.run(end - self.world.now, self.wire)

    def go_dark(self) -> None:
        """Begin an outage."""
        self.wire = lose_everything
        self.client.device.on_route_change(self.world.now, is_lost=True)
        assert self.connection.state == LinkState.RECONNECTING

    def flap(self, seconds: float) -> None:
        """Begin an outage that ends at once, and let time pass."""
        self.go_dark()
        self.wire = None
        self.run(seconds)

    def change_network(self) -> None:
        self.watch.changed(self.world.now)
        self.world.exchange(self.wire)


Make = Callable[..., Scene]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    def scene(server: str = NAME, policy: LinkPolicy | None = None, *, found: bool = True) -> Scene:
        return Scene(monkeypatch, server, policy or DEFAULT_POLICY, found=found)

    return scene


# --- Reports to the operator ---


def test_each_state_is_reported_once(make: Make) -> None:
    scene = make()
    scene.run(60.0)
    scene.go_dark()
    scene.run(30.0)
    scene.wire = None
    scene.run(10.0)
    assert scene.log.events() == ["connecting", "connected", "reconnecting", "connected"]
    assert [level for level, *_ in scene.log.lines] == ["info", "info", "warning", "info"]
    assert scene.log.lines[2][2]["reason"] == "the host is unreachable"
    assert scene.said == [f"STATUS={state}: {NAME}" for state in ("connected", "reconnecting", "connected")]


def test_an_outage_that_ends_at_once_is_logged_once_a_minute(make: Make) -> None:
    scene = make()
    scene.run(60.0)
    for _ in range(60):  # two minutes
        scene.flap(2.0)
        assert scene.connection.state == LinkState.CONNECTED
    logged = [event for level, event, _ in scene.log.lines if level != "debug"]
    assert logged == ["connecting", "connected"] + ["reconnecting", "connected"] * 2


def test_an_outage_that_lasts_is_logged_while_it_lasts_although_flaps_came_before(make: Make) -> None:
    scene = make()
    scene.run(60.0)
    scene.flap(5.0)
    before = len(scene.log.lines)
    scene.go_dark()
    scene.run(0.9)
    assert [level for level, *_ in scene.log.lines[before:]] == ["debug"]
    scene.run(30.0)
    assert [line[:2] for line in scene.log.lines[before + 1 :]] == [("warning", "reconnecting")]
    assert scene.log.lines[-1][2]["reason"] == "the host is unreachable"
    scene.wire = None
    scene.run(5.0)
    assert [line[:2] for line in scene.log.lines[before + 2 :]] == [("info", "connected")]


def test_a_predecessor_that_thaws_warns_of_no_outage_that_its_successor_ended(make: Make) -> None:
    scene = make()
    scene.run(60.0)
    scene.flap(5.0)
    scene.go_dark()
    before = len(scene.log.lines)
    scene.connection.stop()
    scene.world.now += 5.0
    counters, slot = scene.client.slots.counters, scene.client.peer(scene.server).slot
    counters[slot + OUTAGE_SINCE_NS], counters[slot + LINK_STATE] = 0, LinkState.CONNECTED  # by its successor
    scene.wire = None
    scene.connection.start(scene.world.now)
    scene.run(5.0)
    assert scene.connection.state == LinkState.CONNECTED
    assert scene.log.lines[before:] == []


def test_after_the_last_retry_the_process_ends_once_and_only_from_the_loop(make: Make) -> None:
    scene = make(policy=DEFAULT_POLICY._replace(retries_max=3))
    scene.go_dark()
    while scene.connection.state != LinkState.FAILED:
        scene.world.run(0.1, scene.wire)
    assert scene.failures == []
    assert scene.connection.next_deadline() == 0.0
    scene.connection.handle_timeout(scene.world.now)
    (failure,) = scene.failures
    assert failure.startswith(f"giving up on {NAME}: the host is unreachable; max_reconnect_attempts = 3 ")
    assert scene.log.lines[-1][:2] == ("error", "failed")
    scene.connection.handle_timeout(scene.world.now)
    assert len(scene.failures) == 1


def test_the_status_shows_an_outage_and_the_packets_that_wait(make: Make) -> None:
    scene = make()
    up = scene.connection.describe(scene.world.now)
    assert (up["state"], up["server"], up["outage_secs"], up["waiting_packets"]) == ("connected", NAME, None, 0)
    scene.connection.missing = lambda: ["policy routing: the kernel lacks this family"]
    assert scene.connection.describe(scene.world.now)["state"] == "degraded"
    scene.go_dark()
    scene.client.send(scene.server, b"waits")
    scene.run(7.0)
    down = scene.connection.describe(scene.world.now)
    assert (down["state"], down["outage_secs"], down["waiting_packets"]) == ("reconnecting", pytest.approx(7.0), 1)
    assert down["retries"] > 3


def test_a_connection_that_has_not_started_has_a_status(make: Make) -> None:
    scene = make()
    fresh = Host(scene.world, 9)
    fresh.know(scene.server, link=DEFAULT_POLICY)
    fresh.start()
    connection = scene.connect(fresh, settings_of(LITERAL))
    described = connection.describe(5.0)
    assert (described["state"], described["outage_secs"], described["retries"]) == ("connecting", None, 0)


# --- Lookups ---


def test_a_client_without_an_endpoint_looks_its_server_up_at_the_start(make: Make) -> None:
    scene = make(found=False)
    scene.run(0.0)
    assert len(scene.resolver.asked) == 1
    scene.resolver.done([scene.server.endpoint])
    scene.world.exchange()
    assert scene.connection.state == LinkState.CONNECTED


def test_an_outage_looks_the_name_up_at_once_and_then_with_growing_pauses(make: Make) -> None:
    scene = make()
    scene.run(100.0)
    assert len(scene.resolver.asked) <= 1
    scene.resolver.asked.clear()
    scene.go_dark()
    began = scene.world.now
    scene.run(600.0)
    moments = [moment - began for moment in scene.resolver.asked]
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert moments[0] == 0.0
    assert pauses[:3] == [pytest.approx(LOOKUP_PAUSE_SECS * factor) for factor in (1, 2, 4)]
    assert max(pauses) == pytest.approx(LOOKUP_PAUSE_SECS_MAX)
    scene.wire = None
    scene.run(10.0)
    assert scene.connection.state == LinkState.CONNECTED
    scene.run(LOOKUP_PAUSE_SECS_MAX)
    scene.resolver.asked.clear()
    scene.run(600.0)
    assert scene.resolver.asked == []


def test_a_literal_address_is_never_looked_up(make: Make) -> None:
    scene = make(LITERAL)
    scene.go_dark()
    scene.run(60.0)
    assert scene.resolver.asked == []


def test_a_name_that_does_not_resolve_is_reported_once_for_each_outage(make: Make) -> None:
    scene = make()
    for _ in range(2):
        scene.go_dark()
        for _ in range(4):
            scene.run(2.0)
            scene.resolver.done(OSError("Temporary failure in name resolution"))
        scene.wire = None
        scene.run(10.0)
        assert scene.connection.state == LinkState.CONNECTED
    reported = [fields["reason"] for _, event, fields in scene.log.lines if "cannot be looked up" in event]
    assert reported == ["Temporary failure in name resolution"] * 2


def test_a_client_follows_its_server_to_a_new_address_of_the_name(make: Make) -> None:
    scene = make()
    scene.world.move(scene.server, ELSEWHERE)
    scene.flap(0.5)
    scene.resolver.done([ELSEWHERE])
    scene.world.exchange()
    assert scene.connection.state == LinkState.CONNECTED
    assert scene.place == ELSEWHERE


def test_the_addresses_of_a_name_are_tried_in_turn(make: Make) -> None:
    scene = make()
    addresses = [scene.server.endpoint, ELSEWHERE, THIRD]
    scene.go_dark()
    places = []
    for _ in range(5):
        scene.resolver.done(addresses)
        places.append(scene.place)
    assert places == [addresses[0], ELSEWHERE, THIRD, addresses[0], ELSEWHERE], "the first failure may be the network's"


def test_a_lookup_that_ends_after_the_outage_changes_no_endpoint(make: Make) -> None:
    scene = make()
    scene.go_dark()
    scene.run(0.1)
    scene.wire = None
    scene.run(10.0)
    assert scene.connection.state == LinkState.CONNECTED
    before = scene.place
    assert before is not None
    scene.resolver.done([ELSEWHERE])
    scene.resolver.done([before, ELSEWHERE])
    assert scene.place == before


def test_a_predecessor_that_thaws_with_a_connected_link_makes_no_lookup(make: Make) -> None:
    scene = make()
    scene.go_dark()
    scene.run(5.0)
    scene.connection.stop()
    assert scene.resolver.stopped
    assert (scene.watch.runs, scene.loop.timed) == (False, [])
    scene.wire = None
    scene.world.run(10.0)  # by its successor
    assert scene.connection.state == LinkState.CONNECTED
    scene.connection.start(scene.world.now)
    scene.resolver.asked.clear()
    scene.run(300.0)
    assert scene.resolver.asked == []
    assert scene.loop.timed == [scene.connection]


# --- Another server in the configuration ---


def test_a_new_name_in_the_configuration_is_looked_up_until_it_resolves(make: Make) -> None:
    scene = make()
    scene.resolver.asked.clear()
    scene.connection.move()
    scene.run(0.0)
    assert len(scene.resolver.asked) == 1
    scene.resolver.done(OSError("no network"))
    scene.run(LOOKUP_PAUSE_SECS)
    assert len(scene.resolver.asked) == 2
    scene.resolver.done([ELSEWHERE])
    assert scene.place == ELSEWHERE
    scene.world.move(scene.server, ELSEWHERE)
    scene.run(10.0)
    scene.resolver.asked.clear()
    scene.run(100.0)
    assert scene.resolver.asked == []


def test_a_new_address_in_the_configuration_is_used_at_once(make: Make) -> None:
    scene = make(f"{ELSEWHERE}")
    scene.connection.move()
    assert scene.place == ELSEWHERE


# --- The network ---


def test_a_lost_route_is_an_outage_that_a_new_route_ends(make: Make) -> None:
    scene = make()
    states = []
    scene.source = None
    scene.change_network()
    states.append(scene.connection.state)
    scene.wire = lose_everything
    scene.run(50.0)
    scene.wire, scene.source = None, b"\x0a\0\0\2"
    scene.change_network()
    states.append(scene.connection.state)
    assert states == [LinkState.RECONNECTING, LinkState.CONNECTED]


def test_a_changed_route_is_probed_and_an_unchanged_one_is_not(make: Make) -> None:
    scene = make()
    scene.world.run(1.0)
    scene.world.log.clear()
    scene.change_network()
    assert scene.world.log == []
    scene.source = b"\x0a\0\0\2"
    scene.change_network()
    assert scene.world.log
    assert scene.connection.state == LinkState.CONNECTED


def test_packets_of_an_outage_are_not_sent_again_when_the_new_route_is_seen_after_the_server_was_heard(
    make: Make,
) -> None:
    scene = make()
    scene.source, scene.wire = None, lose_everything
    scene.change_network()
    scene.client.send(scene.server, b"staged")
    scene.run(1.0)
    scene.source, scene.wire = b"\x0a\0\0\1", None
    scene.server.send(scene.client)
    scene.world.exchange()
    assert scene.connection.state == LinkState.CONNECTED
    scene.change_network()
    scene.run(5.0)
    assert [delivered[20:] for delivered in scene.server.delivered] == [b"staged"]


def test_a_network_change_during_an_outage_probes_and_looks_up_again(make: Make) -> None:
    scene = make()
    scene.go_dark()
    scene.run(120.0)
    scene.resolver.asked.clear()
    scene.world.log.clear()
    scene.change_network()
    scene.run(0.0)
    assert len(scene.resolver.asked) == 1
    assert scene.world.log


def test_a_network_change_before_the_server_is_known_looks_it_up(make: Make) -> None:
    scene = make(found=False)
    scene.run(100.0)
    scene.resolver.asked.clear()
    scene.change_network()
    scene.run(0.0)
    assert len(scene.resolver.asked) == 1


# --- Past the tunnel ---


def test_with_a_default_route_lookups_carry_the_mark_and_go_to_the_upstream_servers(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make()
    lookups: list[Lookup] = []

    def resolver(text: str, lookup: Lookup, *_: object) -> FakeResolver:
        lookups.append(lookup)
        return scene.resolver

    monkeypatch.setattr(connection_module, "Resolver", resolver)
    monkeypatch.setattr(connection_module, "read_upstream_dns", lambda: ["192.0.2.53", "10.0.0.1"])
    dns = SimpleNamespace(servers=(ip_address("10.0.0.1"),))
    settings = settings_of(NAME, default_routes=(ip_network("0.0.0.0/0"),), name_servers=dns)
    first = scene.connect(scene.client, settings)
    assert first.upstream_dns == ["192.0.2.53"], "the tunnel's own server would be queried through the tunnel"
    scene.connect(scene.client, settings, ["198.51.100.53"])
    scene.connect(scene.client, settings_of(NAME))
    assert [getattr(lookup, "keywords", None) for lookup in lookups] == [
        {"mark": 51820, "upstream_dns": ["192.0.2.53"]},
        {"mark": 51820, "upstream_dns": ["198.51.100.53"]},
        None,
    ]

"""The work that handshakes may cause: bounded over all sources, by counts and virtual time."""

from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from oxidize.protocol import noise
from oxidize.protocol.admission import (
    ANSWERED_INITIATIONS_BURST,
    ANSWERED_INITIATIONS_PER_SECOND,
    COOKIE_REPLIES_BURST,
    COOKIE_REPLIES_PER_SECOND,
    COOKIE_REPLIES_RESERVED,
    FAILED_INITIATIONS_BURST,
    FAILED_INITIATIONS_PER_SECOND,
    OWN_INITIATIONS_BURST,
    OWN_INITIATIONS_LATE_PER_SECOND,
    OWN_INITIATIONS_PER_SECOND,
    OWN_INITIATIONS_RESERVED,
    Admission,
)
from oxidize.protocol.constants import (
    COOKIE_REPLY_SIZE,
    FORGED_ANSWERS_MAX,
    PEERS_PER_TIMEOUT_MAX,
    REKEY_TIMEOUT,
    TYPE_INITIATION,
)
from oxidize.protocol.cookie import CookieChecker, CookieJar
from oxidize.protocol.counters import DropReason, Total
from oxidize.protocol.crypto import public_key
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.messages import CookieReply, Initiation, Response, message_type
from oxidize.protocol.peer import PeerSettings
from oxidize.protocol.rate_limiter import HANDSHAKES_PER_SECOND, UNDER_LOAD_HANDSHAKES
from tests.support.counters import ArraySlots
from tests.support.network import Host, World, connected, joined, lose_everything, packet


class Work:
    """Counts of the expensive operations of all devices."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        for name in ("consume_initiation", "consume_response", "create_initiation"):
            self._count(monkeypatch, f"oxidize.protocol.handshaker.{name}", name, getattr(noise, name))
        for name in ("check_mac1", "check_mac2", "create_reply"):
            self._count(
                monkeypatch, f"oxidize.protocol.cookie.CookieChecker.{name}", name, getattr(CookieChecker, name)
            )

    def _count(self, monkeypatch: pytest.MonkeyPatch, target: str, name: str, do: object) -> None:
        def counted(*args: object) -> object:
            self.counts[name] += 1
            return do(*args)  # type: ignore[operator]

        monkeypatch.setattr(target, counted)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


def forged(world: World, jar: CookieJar) -> bytes:
    """Return an initiation that anybody can make who knows the public key of its receiver."""
    rand = world.random.randbytes
    return jar.stamp(Initiation(world.random.getrandbits(32), rand(32), rand(48), rand(28)).encode(), world.now)


def stranger(number: int) -> Endpoint:
    return Endpoint(bytes([203, number >> 16 & 255, number >> 8 & 255, number & 255]), 4000)


def flood(world: World, server: Host, per_second: int, seconds: float) -> Iterator[int]:
    """Send forged initiations, each from another address; yield the number of each after it was received."""
    jar = CookieJar(server.public_key)
    for number in range(int(per_second * seconds)):
        world.now += 1 / per_second
        server.receive([forged(world, jar)], stranger(number))
        yield number


def many_clients(world: World, server: Host, count: int) -> list[Host]:
    """Add clients to a server that is not started yet."""
    server.slots = ArraySlots(5 * count + 64)
    server.make_slots = lambda: server.slots  # type: ignore[method-assign]
    clients = []
    for number in range(count):
        client = Host(world, 1)
        client.inner = f"10.1.{number >> 8}.{number & 255}"
        client.endpoint = Endpoint(bytes([198, 18, number >> 8, number & 255]), 5000)
        world.add(client)
        client.know(server)
        server.know(client, reachable=False)
        client.start()
        clients.append(client)
    return clients


def talk(client: Host, server: Host) -> None:
    """Carry what a client and a server say to each other, and nothing else."""
    while transmits := client.take_transmits():
        for transmit in transmits:
            server.receive(transmit.datagrams, client.endpoint)
        for transmit in server.take_transmits():
            if transmit.endpoint == client.endpoint:
                client.receive(transmit.datagrams, server.endpoint)


# --- Floods from all sources together ---


def test_a_flood_with_a_valid_mac1_costs_a_bounded_number_of_operations(work: Work) -> None:
    world = World()
    _, server = connected(world)
    work.counts.clear()
    seconds = 0.5
    for _ in flood(world, server, 40_000, seconds):
        pass
    replies = COOKIE_REPLIES_PER_SECOND * seconds + COOKIE_REPLIES_BURST
    assert work.counts["consume_initiation"] <= UNDER_LOAD_HANDSHAKES / 2 * (1 + seconds), "forgeries count twice"
    assert replies / 2 <= work.counts["create_reply"] <= replies
    assert work.counts["check_mac1"] <= replies + UNDER_LOAD_HANDSHAKES * (1 + seconds), "most are not looked into"
    assert work.counts["check_mac2"] == 0
    assert server.dropped(DropReason.OVER_BUDGET) > 16_000
    sent = [d for transmit in server.take_transmits() for d in transmit.datagrams]
    assert {len(datagram) for datagram in sent} == {COOKIE_REPLY_SIZE}


def test_what_exceeds_the_budget_of_cookies_is_dropped_by_a_few_of_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    client, server = connected(world)
    looked_into = 0
    refuse = Admission.refuse

    def counted(admission: Admission, raw: bytes | memoryview, endpoint: Endpoint, now: float) -> DropReason | None:
        nonlocal looked_into
        looked_into += 1
        return refuse(admission, raw, endpoint, now)

    monkeypatch.setattr(Admission, "refuse", counted)
    seconds = 0.5
    for _ in flood(world, server, 40_000, seconds):
        pass
    burst = COOKIE_REPLIES_BURST - COOKIE_REPLIES_RESERVED + FAILED_INITIATIONS_BURST
    assert looked_into <= 2 * (COOKIE_REPLIES_PER_SECOND * seconds + burst), "each token ends one refusal"
    before = looked_into
    server.receive([forged(world, CookieJar(server.public_key)) for _ in range(64)], stranger(7))
    assert looked_into <= before + 64
    server.receive([forged(world, CookieJar(server.public_key)) for _ in range(64)], stranger(7))
    assert looked_into <= before + 64, "a batch of one sender is dropped as well"
    assert server.dropped(DropReason.OVER_BUDGET) > 15_000
    client.send(server)
    server.take_transmits()
    world.exchange()
    assert len(server.delivered) >= 1, "data is never dropped with them"


def test_initiations_that_fail_at_the_begin_of_a_flood_soon_put_the_device_under_load(work: Work) -> None:
    world = World()
    _, server = connected(world)
    work.counts.clear()
    for _ in flood(world, server, 20_000, 0.2):
        pass
    assert work.counts["consume_initiation"] <= FAILED_INITIATIONS_BURST + FAILED_INITIATIONS_PER_SECOND * 0.2
    burst = COOKIE_REPLIES_BURST - COOKIE_REPLIES_RESERVED
    assert work.counts["create_reply"] <= burst + COOKIE_REPLIES_PER_SECOND * 0.2


def test_a_flood_with_invented_cookies_costs_one_hash_for_each_message(work: Work) -> None:
    world = World()
    _, server = connected(world)
    jar = CookieJar(server.public_key)
    jar.cookie, jar.received_at = bytes(16), world.now
    work.counts.clear()
    for number in range(10_000):
        world.now += 1 / 40_000
        server.receive([forged(world, jar)], stranger(number))
    assert work.counts["check_mac2"] <= 10_000
    assert work.counts["check_mac1"] <= COOKIE_REPLIES_PER_SECOND + COOKIE_REPLIES_BURST + UNDER_LOAD_HANDSHAKES * 2
    assert work.counts["consume_initiation"] <= UNDER_LOAD_HANDSHAKES


def with_cookies(world: World, server: Host, count: int) -> list[CookieJar]:
    """Return the jars of strangers that have fetched a cookie each from a loaded server."""
    jars = [CookieJar(server.public_key) for _ in range(count)]
    for number, jar in enumerate(jars):
        world.now += 0.001
        server.receive([forged(world, jar)], stranger(number))
        (transmit,) = server.device.take_transmits()
        assert jar.consume_reply(CookieReply.decode(transmit.datagrams[0]), world.now)
    return jars


def test_a_thousand_sources_with_cookies_share_one_budget_and_a_newcomer_is_served(work: Work) -> None:
    world = World()
    client, server = world.host(), world.host(under_load_handshakes=0)
    client.know(server)
    server.know(client, reachable=False)
    client.start()
    server.start()
    jars = with_cookies(world, server, 1000)
    client.send(server)
    talk(client, server)
    assert client.total(Total.COOKIE_REPLIES_RECEIVED) == 1
    world.now += REKEY_TIMEOUT + 0.1
    work.counts.clear()
    began = world.now
    for round_ in range(5):
        for number, jar in enumerate(jars):
            world.now += 1 / (1000 * HANDSHAKES_PER_SECOND)
            server.receive([forged(world, jar)], stranger(number))
        if round_ == 3:
            client.handle_timeout()
            talk(client, server)
    assert client.peer(server).current is not None, "its address is not known, but it asks seldom"
    allowed = ANSWERED_INITIATIONS_PER_SECOND * (world.now - began) + ANSWERED_INITIATIONS_BURST
    assert allowed / 2 < work.counts["consume_initiation"] <= allowed + 1
    assert server.dropped(DropReason.OVER_BUDGET) > 4000


@pytest.mark.parametrize("per_second", [251, 400])
def test_forged_initiations_below_the_limit_do_not_delay_an_honest_client(per_second: int) -> None:
    world = World()
    server = world.host()
    clients = many_clients(world, server, 100)
    server.start()
    for number in flood(world, server, per_second, 10.0):
        if number % 25 == 0 and number // 25 < len(clients):
            clients[number // 25].send(server)
            talk(clients[number // 25], server)
            assert clients[number // 25].peer(server).current is not None
    assert server.total(Total.COOKIE_REPLIES_SENT) == 0


def test_a_client_gets_its_session_with_its_second_initiation_under_a_flood() -> None:
    world = World()
    client, server = joined(world.host(), world.host())
    for _ in flood(world, server, 5000, 0.5):
        pass
    client.send(server)
    world.exchange()
    assert client.total(Total.COOKIE_REPLIES_RECEIVED) == 1
    world.now += REKEY_TIMEOUT - 0.5
    for number in flood(world, server, 5000, 1.0):
        if number % 50 == 0:
            client.handle_timeout()
            world.exchange()
    assert client.peer(server).current is not None
    assert client.total(Total.INITIATIONS_SENT) == 2
    assert server.dropped(DropReason.COOKIE_REQUIRED) > 1000, "the flood has not ended"


def test_load_ends_a_second_after_its_cause() -> None:
    world = World()
    client, server = joined(world.host(), world.host())
    for _ in flood(world, server, 20_000, 0.2):
        pass
    server.device.take_transmits()
    world.now += 1.01
    client.send(server)
    world.exchange()
    assert client.peer(server).current is not None


@pytest.mark.parametrize("within_secs", [0.0, 0.5])
def test_a_thousand_clients_at_once_are_all_answered_at_their_first_initiation(within_secs: float) -> None:
    world = World()
    server = world.host()
    clients = many_clients(world, server, 1000)
    server.start()
    for client in clients:
        world.now += within_secs / 1000
        client.send(server)
        talk(client, server)
    assert server.total(Total.COOKIE_REPLIES_SENT) == 0
    assert server.total(Total.HANDSHAKES_RESPONDER) == 1000
    assert len(server.delivered) == 1000


# --- Answers to initiations of this device ---


def test_responses_to_handshakes_in_flight_are_neither_load_nor_asked_for_cookies() -> None:
    world = World()
    clients = [world.host() for _ in range(50)]
    server = world.host(under_load_handshakes=0)
    for client in clients:
        client.know(server)
        server.know(client)
    for host in (*clients, server):
        host.start()
    for client in clients:
        server.send(client)
    world.run(1.0)
    assert server.total(Total.HANDSHAKES_INITIATOR) == 50
    assert server.total(Total.COOKIE_REPLIES_SENT) == 0


def test_responses_that_were_not_asked_for_are_not_looked_into(work: Work) -> None:
    world = World()
    _, server = connected(world)
    jar = CookieJar(server.public_key)
    work.counts.clear()
    for number in range(5000):
        rand, index = world.random.randbytes, world.random.getrandbits
        message = Response(index(32), index(32), rand(32), rand(16)).encode()
        server.receive([jar.stamp(message, world.now)], stranger(number))
    assert work.counts == {}
    assert server.dropped(DropReason.UNKNOWN_INDEX) == 5000
    assert server.device.take_transmits() == []


def test_forged_answers_to_one_initiation_are_limited(monkeypatch: pytest.MonkeyPatch, work: Work) -> None:
    world = World()
    client, server = joined(world.host(), world.host())
    client.send(server)
    pending = client.peer(server).handshake
    assert pending is not None
    index, rand, jar = pending.state.local_index, world.random.randbytes, CookieJar(client.public_key)
    unsealed = 0

    def unseal(*_: object) -> None:
        nonlocal unsealed
        unsealed += 1

    monkeypatch.setattr("oxidize.protocol.cookie.unseal_x", unseal)
    work.counts.clear()
    for _ in range(1000):
        client.receive([jar.stamp(Response(7, index, rand(32), rand(16)).encode(), world.now)], server.endpoint)
        client.receive([CookieReply(index, rand(24), rand(32)).encode()], server.endpoint)
    assert work.counts["consume_response"] == FORGED_ANSWERS_MAX
    assert unsealed == FORGED_ANSWERS_MAX
    monkeypatch.undo()
    client.take_transmits()
    world.run(REKEY_TIMEOUT + 1)
    assert client.peer(server).current is not None, "the next initiation can be answered"


# --- Initiations of this device ---


def hub(world: World, count: int) -> tuple[Host, list[bytes]]:
    """Return a started device with many peers without a session, and a packet to each of them."""
    server = world.host()
    server.slots = ArraySlots(5 * count + 64)
    server.make_slots = lambda: server.slots  # type: ignore[method-assign]
    for number in range(count):
        inner = f"10.1.{number >> 8}.{number & 255}"
        key = public_key(world.random.randbytes(32))
        endpoint = Endpoint(bytes([198, 18, number >> 8, number & 255]), 5000)
        server.peers.append(PeerSettings(key, allowed_ips=(ip_network(inner),), endpoint=endpoint))
    server.start()
    return server, [packet("10.9.0.9", f"10.1.{n >> 8}.{n & 255}") for n in range(count)]


def initiations_to(host: Host) -> list[Endpoint]:
    """Return where the initiations that a device has queued go."""
    return [
        transmit.endpoint
        for transmit in host.take_transmits()
        for datagram in transmit.datagrams
        if message_type(datagram) == TYPE_INITIATION
    ]


def test_a_scan_of_many_peers_causes_initiations_at_a_bounded_rate_and_none_is_lost() -> None:
    world = World()
    server, packets = hub(world, 800)
    for first in range(0, 800, 50):
        server.device.send_packets(packets[first : first + 50], world.now)
    sent = [(world.now, endpoint) for endpoint in initiations_to(server)]
    assert len(sent) <= OWN_INITIATIONS_BURST
    began = world.now
    while len({endpoint for _, endpoint in sent}) < 800:
        due = server.device.next_deadline()
        assert due is not None
        world.now = max(world.now, due)
        server.handle_timeout()
        at_once = initiations_to(server)
        assert len(at_once) <= PEERS_PER_TIMEOUT_MAX
        sent += [(world.now, endpoint) for endpoint in at_once]
        rate = OWN_INITIATIONS_PER_SECOND + OWN_INITIATIONS_LATE_PER_SECOND
        assert len(sent) <= OWN_INITIATIONS_BURST + rate * (world.now - began) + PEERS_PER_TIMEOUT_MAX
        assert world.now - began < 2 * 800 / OWN_INITIATIONS_LATE_PER_SECOND
    assert all(len(peer.staged) == 1 for peer in server.device.peers.values()), "no packet is lost"


def test_a_scan_by_one_source_does_not_delay_the_initiations_that_others_cause() -> None:
    world = World()
    server, packets = hub(world, 1000)
    scanned, others = packets[:950], range(950, 1000)
    for round_ in range(50):
        server.device.send_packets(scanned[round_ * 19 : round_ * 19 + 19], world.now)
        initiations_to(server)
        number = others[round_]
        inner = f"10.1.{number >> 8}.{number & 255}"
        server.device.send_packets([packet(f"10.8.0.{round_}", inner)], world.now)
        expected = Endpoint(bytes([198, 18, number >> 8, number & 255]), 5000)
        assert initiations_to(server) == [expected], "at once"
        world.now += 0.02


def test_a_peer_cannot_pass_its_limit_by_many_inner_addresses() -> None:
    world = World()
    server, packets = hub(world, 500)
    scanner = public_key(world.random.randbytes(32))
    server.peers.append(PeerSettings(scanner, allowed_ips=(ip_network("10.8.0.0/16"),)))
    server.start()
    count = 0
    for number in range(500):
        destination = str(ip_address(packets[number][16:20]))
        server.device.send_packets([packet(f"10.8.{number >> 8}.{number & 255}", destination)], world.now)
        count += len(initiations_to(server))
    assert count <= OWN_INITIATIONS_BURST - OWN_INITIATIONS_RESERVED + 5


def test_retries_of_many_handshakes_share_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oxidize.protocol.admission.OWN_INITIATIONS_PER_SECOND", 10)
    monkeypatch.setattr("oxidize.protocol.admission.OWN_INITIATIONS_LATE_PER_SECOND", 10)
    world = World()
    server, packets = hub(world, 200)
    began, sent = world.now, 0
    for first in range(0, 200, 50):
        server.device.send_packets(packets[first : first + 50], world.now)
    sent += len(initiations_to(server))
    while world.now < began + 30.0:
        due = server.device.next_deadline()
        assert due is not None
        world.now = max(world.now, due)
        server.handle_timeout()
        sent += len(initiations_to(server))
    assert 200 < sent <= OWN_INITIATIONS_BURST + (10 + 10) * 31


def test_a_session_that_ends_is_renewed_although_the_budget_is_used_up() -> None:
    world = World()
    client, server = world.pair()
    client.send(server)
    world.exchange()
    admission = client.device._handshaker.admission
    for _ in range(5000):
        admission.place_initiation(b"", world.now)
    world.run(120.0)
    for _ in range(60 * 1000):
        admission.place_initiation(b"", world.now)
    client.send(server)
    world.exchange()
    assert client.total(Total.HANDSHAKES_INITIATOR) == 2


# --- Unknown indices ---


@pytest.mark.parametrize("since_boot_secs", [0.0, 1.0, 5.0, 60.0, 89.0, 1000.0])
def test_one_stray_datagram_brings_one_initiation_at_any_time_after_the_boot(since_boot_secs: float) -> None:
    world = World()
    world.now = since_boot_secs
    server, _ = hub(world, 1)
    remote = Endpoint(bytes([198, 18, 0, 0]), 5000)
    server.receive([b"\4\0\0\0" + bytes([1, 2, 3, 4]) + bytes(24)], remote)
    count = len(initiations_to(server))
    server.replace()
    while (due := server.device.next_deadline()) is not None and due < since_boot_secs + 300.0:
        world.now = max(world.now, due)
        server.handle_timeout()
        count += len(initiations_to(server))
    assert count == 1


@pytest.mark.parametrize(
    ("remote", "local"),
    [("198.18.0.0", "192.0.2.77"), ("2001:db8::1", "2001:db8:77::77"), ("fe80::1", "fe80::77")],
)
def test_an_initiation_because_of_an_unknown_index_leaves_from_where_the_datagram_came_to(
    remote: str, local: str
) -> None:
    world = World()
    server = world.host()
    known = Endpoint(ip_address(remote).packed, 5000, 3 if remote.startswith("fe80") else 0)
    server.peers.append(PeerSettings(public_key(world.random.randbytes(32)), endpoint=known))
    server.start()
    came = known._replace(local_address=ip_address(local).packed, local_interface=3)
    server.receive([b"\4\0\0\0" + bytes([1, 2, 3, 4]) + bytes(24)], came)
    (transmit,) = server.device.take_transmits()
    assert transmit.endpoint == came
    (peer,) = server.device.peers.values()
    assert peer.endpoint == known, "the datagram may be forged: it moves nothing"


def test_a_replay_after_lost_state_does_not_hide_the_client_from_the_answer_to_unknown_indices() -> None:
    world = World()
    client, server = world.pair()
    client.send(server)
    world.exchange()
    recorded = next(datagram for _, _, datagram in world.log if message_type(datagram) == TYPE_INITIATION)
    server.slots, server.journal, server.live = ArraySlots(256), [], {}
    server.start()
    server.device.use_cached_endpoint(server.peer(client), client.endpoint, world.now)
    server.receive([recorded], stranger(6))
    assert server.peer(client).endpoint == stranger(6), "as in every WireGuard: no timestamp is known"
    world.carry(lose_everything)
    world.run(REKEY_TIMEOUT)
    assert not server.peer(client).has_session(world.now)
    client.send(server, b"in the old session")
    world.exchange()
    assert server.peer(client).endpoint == client.endpoint
    assert server.total(Total.HANDSHAKES_INITIATOR) == 1
    assert server.device._table.by_remote == {client.endpoint.remote: server.peer(client)}


def test_a_remembered_endpoint_is_forgotten_when_another_one_is_confirmed() -> None:
    world = World()
    client, server = world.pair()
    remembered = stranger(1)
    server.device.use_cached_endpoint(server.peer(client), remembered, world.now)
    client.send(server)
    world.carry()
    assert set(server.device._table.by_remote) == {remembered.remote, client.endpoint.remote}
    world.exchange()
    assert set(server.device._table.by_remote) == {client.endpoint.remote}

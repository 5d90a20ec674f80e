"""The work that handshakes may cause: bounded over all sources, by counts and virtual time."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from oxidize.protocol import noise
from oxidize.protocol.admission import (
    ANSWERED_INITIATIONS_BURST,
    ANSWERED_INITIATIONS_PER_SECOND,
    COOKIE_REPLIES_BURST,
    COOKIE_REPLIES_PER_SECOND,
    COOKIE_REPLIES_RESERVED,
    FAILED_COOKIES_BURST,
    FAILED_COOKIES_PER_SECOND,
    FAILED_COOKIES_RESERVED,
    FAILED_INITIATIONS_BURST,
    FAILED_INITIATIONS_PER_SECOND,
    Admission,
)
from oxidize.protocol.constants import (
    COOKIE_REPLY_SIZE,
    FORGED_ANSWERS_MAX,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER_MAX,
)
from oxidize.protocol.cookie import CookieChecker, CookieJar
from oxidize.protocol.counters import DropReason, Total
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.messages import CookieReply, Initiation, Response
from oxidize.protocol.rate_limiter import HANDSHAKES_PER_SECOND, UNDER_LOAD_HANDSHAKES
from tests.support.counters import ArraySlots
from tests.support.network import Host, World, connected, joined, stranger


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

    def _count(self, monkeypatch: pytest.MonkeyPatch, target: str, name: str, do: Callable[..., object]) -> None:
        def counted(*args: object) -> object:
            self.counts[name] += 1
            return do(*args)

        monkeypatch.setattr(target, counted)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


def forged(world: World, jar: CookieJar) -> bytes:
    """Return an initiation that anybody can make who knows the public key of its receiver."""
    rand = world.random.randbytes
    return jar.stamp(Initiation(world.random.getrandbits(32), rand(32), rand(48), rand(28)).encode(), world.now)


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


def test_a_flood_with_invented_cookies_costs_a_bounded_number_of_hashes(work: Work) -> None:
    world = World()
    _, server = connected(world)
    jar = CookieJar(server.public_key)
    jar.cookie, jar.received_at = bytes(16), world.now
    work.counts.clear()
    for number in range(10_000):
        world.now += 1 / 40_000
        server.receive([forged(world, jar)], stranger(number))
    assert work.counts["check_mac2"] <= FAILED_COOKIES_PER_SECOND * 0.25 + FAILED_COOKIES_BURST
    assert server.dropped(DropReason.OVER_BUDGET) > 6_000
    assert work.counts["check_mac1"] <= COOKIE_REPLIES_PER_SECOND + COOKIE_REPLIES_BURST + UNDER_LOAD_HANDSHAKES * 2
    begin = FAILED_INITIATIONS_BURST + FAILED_INITIATIONS_PER_SECOND * 0.25
    assert work.counts["consume_initiation"] <= begin, "none is answered under load"


def test_a_peer_with_a_cookie_is_answered_beside_a_flood_with_invented_ones() -> None:
    world = World()
    client, server = joined(world.host(), world.host(under_load_handshakes=0))
    client.send(server)
    world.exchange()
    assert client.total(Total.COOKIE_REPLIES_RECEIVED) == 1
    jar = CookieJar(server.public_key)
    jar.cookie, jar.received_at = bytes(16), world.now
    for number in range(2 * (FAILED_COOKIES_BURST - FAILED_COOKIES_RESERVED)):
        server.receive([forged(world, jar)], stranger(number))
    world.now += REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX
    for number in range(2 * (FAILED_COOKIES_BURST - FAILED_COOKIES_RESERVED)):
        server.receive([forged(world, jar)], stranger(number))
    server.take_transmits()
    client.handle_timeout()
    talk(client, server)
    assert client.peer(server).current is not None, "a part of the budget is kept for the endpoints of peers"


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
    client, server = world.pair(under_load_handshakes=0)
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

"""Initiations of this device: its packets, its peers and its retries cause them at a bounded rate."""

from ipaddress import ip_address, ip_network

import pytest

from oxidize.protocol.admission import (
    OWN_INITIATIONS_BURST,
    OWN_INITIATIONS_LATE_PER_SECOND,
    OWN_INITIATIONS_PER_SECOND,
    OWN_INITIATIONS_RESERVED,
)
from oxidize.protocol.constants import (
    PEERS_PER_TIMEOUT_MAX,
)
from oxidize.protocol.counters import Total
from oxidize.protocol.crypto import public_key
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer_settings import PeerSettings
from tests.support.network import World, hub, initiations_to, packet


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

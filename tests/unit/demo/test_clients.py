"""The clients' process against a small server in this process, which can drop, repeat and damage datagrams."""

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from operator import xor
from pathlib import Path
from random import Random

import pytest

from demo.clients import FleetSettings
from demo.fleet import FleetProcess
from demo.records import Kind, Record
from demo.verdict import Tally, Verdict, judge
from demo.workspace import SERVER_ADDRESS, Workspace, client_address
from oxidize.config import load_server
from oxidize.net.userspace import UserspaceNetwork
from oxidize.protocol.crypto import public_key
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.peer_settings import PeerSettings
from tests.support.counters import ArraySlots

CLIENTS, RATE, SECONDS = 3, 600.0, 0.2
PLANNED = CLIENTS + round(RATE * SECONDS)  # one more of each client to warm up


class SmallServer:
    """A thread that answers echo requests through WireGuard; a test may replace `send` and `answers`."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(0.05)
        self.workspace = Workspace()
        host, port = self.socket.getsockname()
        settings = self.workspace.write(CLIENTS, RATE, SECONDS)
        self.settings = replace(settings, server_host=host, server_port=port)
        self.device = self.make_device()
        self.replies = 0
        self.send: Callable[[bytes, tuple[str, int]], object] = self.socket.sendto
        self.answers: Callable[[list[bytes]], list[bytes]] = lambda packets: packets
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def make_device(self) -> Device:
        private_key = base64.b64decode((self.workspace.directory / "server.key").read_bytes())
        assert public_key(private_key).hex() == self.settings.server_public_key
        peers = [
            PeerSettings(
                public_key(bytes.fromhex(client.private_key)),
                bytes.fromhex(client.preshared_key),
                (ip_network(client.address),),
            )
            for client in self.settings.clients
        ]
        return Device(private_key, peers, ArraySlots(), Random(1).randbytes, time.time, lambda change: None)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        network = UserspaceNetwork([SERVER_ADDRESS])
        while not self._stop.is_set():
            try:
                datagram, address = self.socket.recvfrom(2048)
            except TimeoutError:
                continue
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            endpoint = Endpoint(IPv4Address(address[0]).packed, address[1])
            network.write_packets(self.device.receive_datagrams([datagram], endpoint, now))
            self.device.send_packets(self.answers(network.read_packets(64)), now)
            for transmit in self.device.take_transmits():
                for outgoing in transmit.datagrams:
                    self.send(outgoing, address)

    def close(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.socket.close()
        self.workspace.close()


@pytest.fixture
def server() -> Iterator[SmallServer]:
    server = SmallServer()
    yield server
    server.close()


def run(server: SmallServer) -> tuple[list[Record], Verdict]:
    server.start()
    fleet = FleetProcess(server.settings, server.workspace.directory / "clients.log")
    records: list[Record] = []
    try:
        while not fleet.ended:
            records += fleet.read()
            time.sleep(0.005)
    finally:
        fleet.close()
    assert fleet.log_path.read_text() == ""
    tally = Tally()
    tally.add(records)
    return records, judge(tally, [], CLIENTS, 0)


def records_until(server: SmallServer, kind: Kind) -> list[Record]:
    """Run the clients until they report this kind of event, and end them in the middle of their schedule."""
    fleet = FleetProcess(server.settings, server.workspace.directory / "clients.log")
    records: list[Record] = []
    try:
        while not any(record.kind is kind for record in records):
            assert not fleet.ended
            records += fleet.read()
            time.sleep(0.005)
    finally:
        fleet.close()
    return records


def test_a_perfect_server_passes(server: SmallServer) -> None:
    records, verdict = run(server)
    assert verdict.reasons == ()
    assert (verdict.sent, verdict.replies, verdict.lost) == (PLANNED, PLANNED, 0)
    assert verdict.handshakes == CLIENTS
    assert {record.client for record in records if record.kind is Kind.SENT} == set(range(CLIENTS))
    # The schedule is kept from its start: request n leaves no earlier than n intervals after it.
    started = next(record.at for record in records if record.kind is Kind.STARTED)
    schedule = sorted(record.at for record in records if record.kind is Kind.SENT and record.number)
    assert all(at >= started + i / RATE - 1e-6 for i, at in enumerate(schedule))


def test_bursts_arrive_whole_and_at_the_same_rate(server: SmallServer) -> None:
    server.settings = replace(server.settings, burst=4)
    records, verdict = run(server)
    assert verdict.reasons == ()
    assert (verdict.sent, verdict.replies) == (PLANNED, PLANNED)
    started = next(record.at for record in records if record.kind is Kind.STARTED)
    schedule = sorted(record.at for record in records if record.kind is Kind.SENT and record.number)
    assert all(at >= started + i // 4 * 4 / RATE - 1e-6 for i, at in enumerate(schedule))


def test_clients_continue_until_they_are_told_to_finish(server: SmallServer) -> None:
    server.start()
    settings = replace(server.settings, until_told=True, seconds=0.01)
    fleet = FleetProcess(settings, server.workspace.directory / "clients.log")
    tally = Tally()
    try:
        while tally.sent < PLANNED:
            assert not fleet.ended
            tally.add(fleet.read())
            time.sleep(0.005)
        fleet.finish()
        while not fleet.ended:
            tally.add(fleet.read())
            time.sleep(0.005)
        fleet.finish()  # too late, and no error
    finally:
        fleet.close()
    assert judge(tally, [], CLIENTS, 0).ok


def every_tenth(server: SmallServer, action: str) -> None:
    def send(datagram: bytes, address: tuple[str, int]) -> None:
        server.replies += 1
        if server.replies % 10 or len(datagram) <= 92:
            server.socket.sendto(datagram, address)
        elif action == "repeat":
            server.socket.sendto(datagram, address)
            server.socket.sendto(datagram, address)
        elif action == "damage":
            server.socket.sendto(datagram[:-1] + bytes([datagram[-1] ^ 1]), address)

    server.send = send


def test_a_request_that_the_server_drops_counts_as_lost(server: SmallServer) -> None:
    every_tenth(server, "lose")
    _, verdict = run(server)
    assert verdict.lost > 0
    assert verdict.lost == verdict.sent - verdict.replies
    assert any("requests lost" in reason for reason in verdict.reasons)


def test_a_datagram_that_is_sent_twice_is_a_duplicate(server: SmallServer) -> None:
    every_tenth(server, "repeat")
    _, verdict = run(server)
    assert verdict.lost == 0
    assert verdict.duplicated > 0
    assert any("twice" in reason for reason in verdict.reasons)


def test_a_reply_that_is_sealed_twice_is_a_duplicate(server: SmallServer) -> None:
    server.answers = lambda packets: packets * 2
    _, verdict = run(server)
    assert (verdict.lost, verdict.duplicated) == (0, PLANNED)


def test_a_damaged_datagram_is_reported(server: SmallServer) -> None:
    every_tenth(server, "damage")
    _, verdict = run(server)
    assert verdict.lost > 0
    assert any("authentication_failed" in reason for reason in verdict.reasons)


def test_a_reply_with_wrong_contents_is_reported(server: SmallServer) -> None:
    damaged = bytes(59) + b"\1"
    server.answers = lambda packets: [bytes(map(xor, packet, damaged)) for packet in packets]
    server.start()
    records = records_until(server, Kind.CORRUPTED)
    assert not any(record.kind is Kind.REPLY for record in records)


def test_settings_survive_json(server: SmallServer) -> None:
    assert FleetSettings.from_json(server.settings.to_json()) == server.settings


def test_an_unbound_port_is_reported(server: SmallServer) -> None:
    server.socket.close()
    assert records_until(server, Kind.UNREACHABLE)


def test_the_workspace_is_private_and_is_removed(tmp_path: Path) -> None:
    workspace = Workspace()
    try:
        workspace.write(2, 10.0, 1.0)
        assert workspace.directory.stat().st_mode & 0o777 == 0o700
        keys = [*workspace.directory.glob("*.key"), *workspace.directory.glob("*.psk")]
        assert len(keys) == 3
        assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}
        config = load_server(workspace.config_path)
        assert [str(peer.allowed_ips[0].network_address) for peer in config.peers] == [
            str(client_address(0)),
            str(client_address(1)),
        ]
        assert config.warnings == ()
    finally:
        workspace.close()
    assert not workspace.directory.exists()

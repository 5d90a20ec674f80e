"""The server and the device against Debian's wireguard-go: every way to establish and to keep a session."""

import os
import select
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest

from demo.echo import EchoPath
from oxidize.net.data_path import DataPath
from oxidize.net.udp import UdpSocket, bind_udp
from oxidize.net.userspace import UserspaceNetwork
from oxidize.protocol.constants import BATCH_PACKETS_MAX, TYPE_INITIATION
from oxidize.protocol.counters import DROPS_START, DropReason, Total
from oxidize.protocol.device import Device
from oxidize.protocol.endpoint import Endpoint
from oxidize.protocol.messages import message_type
from oxidize.protocol.peer_settings import PeerSettings
from tests.support.counters import ArraySlots
from tests.support.traffic.clients import clock
from tests.support.traffic.namespaces import set_addresses
from tests.support.traffic.ping import ping
from tests.support.traffic.server import WAIT_SECS, wait_for
from tests.support.traffic.site import PORT, Client, Site

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping")]

# Of copies of an initiation at once: more than the 128 in its queue that make wireguard-go feel under load, and fewer
# than its receive buffer holds. It feels so for a second; then it would ask for no cookie.
FLOOD_BATCHES = 4
FLOOD_INTERVAL_SECS = 0.3
UNDER_LOAD_AFTER_SECS = 1.0


def totals(site: Site) -> dict[str, int]:
    found: dict[str, int] = site.server.status()["totals"]
    return found


# --- `oxidize server` ---


@pytest.mark.parametrize("preshared_key", [None, bytes(range(1, 33))], ids=["no preshared key", "preshared key"])
@pytest.mark.parametrize("ipv6", [False, True], ids=["over IPv4", "over IPv6"])
def test_a_client_shakes_hands_and_pings_in_both_families(site: Site, ipv6: bool, preshared_key: bytes | None) -> None:
    client = site.add_client(preshared_key=preshared_key)
    site.server.start()
    client.connect(ipv6=ipv6)
    for source, target in ((client.namespace, Site.SERVER4), (client.namespace, Site.SERVER6)):
        ping(site.lab, source, target)
    for target in (client.inner4, client.inner6):
        ping(site.lab, site.namespace, target)
    outer = f"[{client.outer6}]" if ipv6 else client.outer4
    status = client.peer_status()
    assert status["endpoint"] == f"{outer}:{client.wireguard.listen_port()}"
    assert (status["received_packets"], status["sent_packets"]) >= (20, 20)
    ours = (status["sent_bytes"], status["received_bytes"])
    wait_for("both sides to agree on what was sent", lambda: client.wireguard.transfer() == ours)


def test_a_wrong_preshared_key_gives_no_session(site: Site) -> None:
    client = site.add_client(preshared_key=bytes(range(1, 33)))
    site.server.start()
    client.preshared_key = bytes(range(2, 34))
    client.connect(keepalive=1)
    wait_for("an initiation", lambda: totals(site)["initiations_received"])
    wait_for("wireguard-go to find the response invalid", lambda: "Received invalid response" in client.wireguard.log)
    assert client.wireguard.latest_handshake() == 0
    assert totals(site)["handshakes_responder"] == 0
    assert client.peer_status()["last_handshake_unix"] == 0


@pytest.mark.parametrize("ipv6", [False, True], ids=["over IPv4", "over IPv6"])
def test_the_server_starts_a_handshake_with_a_known_endpoint(site: Site, ipv6: bool) -> None:
    client = site.add_client()
    outer = f"[{client.outer6}]" if ipv6 else client.outer4
    site.server.peers[0] = client.table(endpoint=f"{outer}:{client.wireguard.listen_port()}")
    site.server.write_config()
    site.server.start()
    client.connect(knows_endpoint=False)
    for target in (client.inner4, client.inner6):
        ping(site.lab, site.namespace, target)
    assert totals(site)["handshakes_initiator"] == 1
    assert client.wireguard.endpoint() == (f"[{client.server6}]" if ipv6 else client.server4) + f":{PORT}"


def test_a_client_that_moves_keeps_its_session(site: Site) -> None:
    client = site.add_client()
    site.server.start()
    client.connect()
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    handshake = client.wireguard.latest_handshake()

    client.wireguard.wg("set", client.wireguard.name, "listen-port", "4242")
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    assert client.peer_status()["endpoint"] == f"{client.outer4}:4242"

    # The neighbouring link: another outer address, and another address of the server that it talks to.
    other = 4 * 63
    set_link(site, client, f"192.0.2.{other + 1}", f"192.0.2.{other + 2}")
    peer = client.wireguard.wg("show", client.wireguard.name, "peers").strip()
    client.wireguard.wg("set", client.wireguard.name, "peer", peer, "endpoint", f"192.0.2.{other + 1}:{PORT}")
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    assert client.peer_status()["endpoint"] == f"192.0.2.{other + 2}:4242"

    # From one family to the other.
    client.connect(ipv6=True)
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    ping(site.lab, site.namespace, client.inner6, 2)
    assert client.peer_status()["endpoint"] == f"[{client.outer6}]:4242"
    assert client.wireguard.latest_handshake() == handshake
    assert totals(site)["handshakes_responder"] == 1
    assert totals(site)["endpoint_moves"] == 3


def set_link(site: Site, client: Client, server4: str, outer4: str) -> None:
    """Change the IPv4 addresses of both ends of a client's link."""
    set_addresses(site.namespace, f"client{client.number}", [f"{server4}/30", f"{client.server6}/64"])
    client.move(outer4, client.outer6)


def test_persistent_keepalives_are_sent_in_both_directions(site: Site) -> None:
    client = site.add_client()
    endpoint = f"{client.outer4}:{client.wireguard.listen_port()}"
    site.server.peers[0] = client.table(endpoint=endpoint, keepalive=1)
    site.server.write_config()
    client.connect(knows_endpoint=False)
    site.server.start()
    wait_for("a session without a packet", client.wireguard.latest_handshake)
    wait_for("our keepalives", lambda: totals(site)["sent_keepalives"] >= 2)
    received, _ = client.wireguard.transfer()
    wait_for("our next keepalive to arrive", lambda: client.wireguard.transfer()[0] >= received + 32)
    client.connect(knows_endpoint=False, keepalive=1)
    wait_for("their keepalives", lambda: totals(site)["received_keepalives"] >= 2)
    assert totals(site)["received_packets"] == totals(site)["sent_packets"] == 0


def test_a_client_that_lost_its_state_reconnects(site: Site) -> None:
    client = site.add_client()
    site.server.start()
    client.connect()
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    client.wireguard.restart()
    client.connect()
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    ping(site.lab, site.namespace, client.inner6, 2)
    assert totals(site)["handshakes_responder"] == 2
    assert site.server.status()["sessions"] == 1


# --- A device in this process ---


class RecordingNetwork(UserspaceNetwork):
    """A userspace network that also records all packets."""

    def __init__(self) -> None:
        super().__init__([ip_interface(f"{Site.SERVER4}/24"), ip_interface(f"{Site.SERVER6}/64")])
        self.received: list[bytes] = []

    def write_packets(self, packets: Sequence[bytes | bytearray | memoryview]) -> int:
        self.received += map(bytes, packets)
        return super().write_packets(packets)


class DeviceHost:
    """A device in the server's place on a real socket, without a process or an event loop."""

    def __init__(self, client: Client, *, endpoint: bool, **options: Any) -> None:
        wireguard = client.wireguard
        self.slots = ArraySlots(32)
        self.network = RecordingNetwork()
        self.client_endpoint = Endpoint(ip_address(client.outer4).packed, wireguard.listen_port())
        peer = PeerSettings(
            wireguard.identity.public,
            allowed_ips=(ip_network(client.inner4), ip_network(client.inner6)),
            endpoint=self.client_endpoint if endpoint else None,
        )
        private_key = client.site.server.identity.private
        self.device = Device(private_key, [peer], self.slots, os.urandom, time.time, lambda _: None, **options)
        with client.site.namespace.entered():
            self.udp = UdpSocket(bind_udp("::", PORT))
        client.site.lab.stack.callback(self.udp.close)
        self.udp.take_ownership()
        self.path = DataPath(self.device, self.udp, self.network, self.slots.counters, clock)
        self._echo = EchoPath(IPv4Address(Site.SERVER4), IPv4Address(client.inner4), 7)

    def total(self, total: Total) -> int:
        return self.slots.counters[total]

    def drops(self, reason: DropReason) -> int:
        return self.slots.counters[DROPS_START + reason]

    def ask(self, number: int) -> None:
        """Send an echo request to the client's kernel."""
        self.device.send_packets([self._echo.request(number, 0)], clock())
        self.path.flush()

    def answered(self) -> set[int]:
        """Return the numbers of the requests answered by the client's kernel."""
        return {reply[0] for packet in self.network.received if (reply := self._echo.read_reply(packet)) is not None}

    def turn(self) -> None:
        """Wait for at most one timer or datagram, and process it."""
        select.select([self.udp.fileno()], [], [], 0.005)
        self.path.from_udp()
        self.path.handle_timeout(clock())

    def run_until(self, what: str, done: Callable[[], object]) -> None:
        deadline = clock() + WAIT_SECS
        while not done():
            assert clock() < deadline, f"waited {WAIT_SECS:g} s for {what}"
            self.turn()


def test_the_device_starts_a_handshake_with_wireguard_go(site: Site) -> None:
    client = site.add_client()
    client.connect(knows_endpoint=False)
    host = DeviceHost(client, endpoint=True)
    for number in range(10):  # all wait for the session, and none is forgotten
        host.ask(number)
    host.run_until("replies", lambda: host.answered() == set(range(10)))
    assert host.total(Total.HANDSHAKES_INITIATOR) == 1
    assert client.wireguard.latest_handshake() > 0


def test_wireguard_go_retries_with_the_cookie_of_a_loaded_device(site: Site) -> None:
    client = site.add_client()
    host = DeviceHost(client, endpoint=False, under_load_handshakes=0)
    client.connect(keepalive=1)
    host.run_until("a session", lambda: host.device.live_sessions(clock()))
    assert host.total(Total.COOKIE_REPLIES_SENT) >= 1
    assert host.total(Total.INITIATIONS_RECEIVED) == 1
    assert "Receiving cookie response" in client.wireguard.log
    host.ask(1)
    host.run_until("a reply", lambda: host.answered() == {1})


def test_the_device_retries_with_the_cookie_of_a_loaded_wireguard_go(site: Site) -> None:
    client = site.add_client()  # which does not know us yet, so that no copy of the flood can make a session
    host = DeviceHost(client, endpoint=True)
    host.device.send_packets([host._echo.request(1, 0)], clock())
    (transmit,) = host.device.take_transmits()
    (initiation,) = transmit.datagrams
    assert message_type(memoryview(initiation)) == TYPE_INITIATION
    flood = [initiation] * BATCH_PACKETS_MAX
    flooded_at = loaded_at = 0.0
    seen = 0

    def cookies() -> int:
        """Keep wireguard-go under load, and count its cookies: it computes a Diffie-Hellman for each copy."""
        nonlocal flooded_at, loaded_at, seen
        if clock() >= flooded_at + FLOOD_INTERVAL_SECS:
            flooded_at = clock()
            for _ in range(FLOOD_BATCHES):
                host.udp.transmit(host.client_endpoint, flood)
        # One cookie is taken for each initiation; the device drops those for its copies.
        received = host.total(Total.COOKIE_REPLIES_RECEIVED) + host.drops(DropReason.AUTHENTICATION_FAILED)
        if received > seen:
            seen, loaded_at = received, clock()
        return host.total(Total.COOKIE_REPLIES_RECEIVED)

    host.run_until("a cookie", cookies)
    client.connect(knows_endpoint=False)
    host.run_until("a session under load", lambda: cookies() and host.total(Total.HANDSHAKES_INITIATOR))
    assert clock() < loaded_at + UNDER_LOAD_AFTER_SECS, "wireguard-go was no longer under load"
    assert host.total(Total.INITIATIONS_SENT) >= 2
    host.ask(2)
    host.run_until("a reply", lambda: 2 in host.answered())

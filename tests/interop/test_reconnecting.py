"""A client that keeps its tunnel up through outages of the server, the network and its own process."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.traffic.direct_link import PORT, DirectLink, GoServer, OxidizeServer
from tests.support.traffic.oxidize_client import OxidizeClient
from tests.support.traffic.ping import Ping, ping, wait_for_replies
from tests.support.traffic.server import OXIDIZE, Lab, wait_for
from tests.support.traffic.transfer import Transfer
from tests.support.traffic.wireguard_go import WireguardGo

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "nft")]

# The last one is longer than the first pair of REFUSED_PROBE_INTERVALS and OUTAGE_PROBE_INTERVALS, and long enough for
# the longest delay between two retries.
OUTAGES_SECS = (0.0, 1.0, 12.0)
STILL_SECS_MAX = 90.0  # of a transfer: the longest outage, and what TCP adds to it
LOSSY_SECS = 8.0
LINK_DOWN_SECS = 2.0
BUFFER_PACKETS = 10_000  # what pings and transfers send in the longest outage
Record = Callable[[str, object], None]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as made:
        yield made


def wait_for_state(client: OxidizeClient, state: str, seconds: float = 20.0) -> None:
    wait_for(f"the client to be {state}", lambda: client.status()["connection"]["state"] == state, seconds)


class Trip:
    """A client and its server on a separate link, with a continuous ping and transfer."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack, name: str, server: type[GoServer] | None) -> None:
        self.link = DirectLink(lab)
        self.server = GoServer(self.link) if server else OxidizeServer(self.link, remembers=True)
        place = f"{DirectLink.SERVER}:{PORT}" if server else f"[{DirectLink.SERVER6}]:{PORT}"
        self.client = self.link.client(self.server.public_key, place, name=name, reconnect_buffer_size=BUFFER_PACKETS)
        self.server.serve(self.client.identity.public)
        self.client.start()
        inside = self.link.client_side
        ping(lab, inside, DirectLink.INNER_SERVER, 2)
        self.ping = Ping(lab, inside, DirectLink.INNER_SERVER, f"{name}-ping")
        self.transfer = stack.enter_context(
            Transfer(inside, self.link.server_side, DirectLink.INNER_SERVER, wait_secs=STILL_SECS_MAX)
        )
        wait_until_back([self])
        self.ping.enlarge_buffers()

    def wait_for_bytes_after(self, received: int) -> None:
        wait_for("the transfer to go on", lambda: self.transfer.received_bytes > received, STILL_SECS_MAX)


def wait_until_back(trips: Sequence[Trip]) -> None:
    """Wait until ping and transfer of each are making progress."""
    wait_for_replies([trip.ping for trip in trips], 20)
    received = [trip.transfer.received_bytes for trip in trips]
    for trip, before in zip(trips, received, strict=True):
        trip.wait_for_bytes_after(before)
        wait_for_state(trip.client, "connected")


def test_a_tunnel_survives_outages_of_every_kind(lab: Lab, record_property: Record) -> None:
    """With wireguard-go as server over IPv4 and with Oxidize over IPv6, at the same time."""
    with contextlib.ExitStack() as stack:
        trips = [Trip(lab, stack, "to-go", GoServer), Trip(lab, stack, "to-us", None)]
        for seconds in OUTAGES_SECS:  # the server is killed, its port is unbound, it starts without its sessions
            for trip in trips:
                trip.server.stop()
            time.sleep(seconds)
            for trip in trips:
                trip.server.start()
            wait_until_back(trips)
        for trip in trips:
            trip.link.set_link("down")
        time.sleep(LINK_DOWN_SECS)
        for trip in trips:
            trip.link.set_link("up")
        wait_until_back(trips)
        for trip in trips:
            trip.link.place_client("192.0.2.77", "2001:db8::77")
        wait_until_back(trips)
        for trip in trips:
            trip.client.replace()
        wait_until_back(trips)
        results = [trip.ping.stop() for trip in trips]  # what is lost on a lossy link is lost
        with contextlib.ExitStack() as losses:
            for trip in trips:
                losses.enter_context(trip.link.losing(30))
            time.sleep(LOSSY_SECS)
        for trip in trips:
            received = trip.transfer.received_bytes
            trip.wait_for_bytes_after(received)
            trip.transfer.assert_intact()
    for trip, result in zip(trips, results, strict=True):
        totals = trip.client.status()["totals"]
        record_property(trip.client.name, f"{result.summary()}, {totals}")
        assert result.lost == (), result.summary()
        assert totals["outages"] >= len(OUTAGES_SECS)
        assert trip.client.log.count("connection connecting ") == 1


def test_a_restarted_server_starts_handshakes_itself(lab: Lab) -> None:
    """An unmodified client would use its lost session for another 15 s."""
    link = DirectLink(lab)
    server = OxidizeServer(link, remembers=True)
    client = WireguardGo(lab, link.client_side, [f"{DirectLink.INNER_CLIENT}/24"])
    server.serve(client.identity.public)
    client.set_peer(server.public_key, "10.9.0.0/24", endpoint=f"{DirectLink.SERVER}:{PORT}")
    ping(lab, link.client_side, DirectLink.INNER_SERVER, 2)
    server.stop()
    server.start()
    assert server.server.status()["sessions"] == 0
    traffic = Ping(lab, link.client_side, DirectLink.INNER_SERVER, "ping-again")
    traffic.wait_for_replies(2)
    traffic.stop()
    totals = server.server.status()["totals"]
    assert totals["unknown_index_initiations"] == totals["handshakes_initiator"] == 1
    assert totals["initiations_received"] == 0


def test_a_client_follows_a_server_name_to_another_address(lab: Lab) -> None:
    link = DirectLink(lab)
    server = GoServer(link)
    hosts = lab.folder / "hosts"
    hosts.write_text(f"{DirectLink.SERVER} vpn.example.org\n")
    client = link.client(server.public_key, f"vpn.example.org:{PORT}")
    server.serve(client.identity.public)
    # Its own /etc/hosts, for the file that getaddrinfo reads is the same everywhere.
    script = f'mount --bind {hosts} /etc/hosts && exec "$@"'
    with link.client_side.entered():
        command = ("/usr/bin/unshare", "--mount", "/bin/sh", "-c", script, "sh", *OXIDIZE)
        lab.spawn((*command, "client", "--no-holder", "-c", str(client.config_path)), client.name)
    wait_for("the client to listen", client.takeover_socket.exists)
    ping(lab, link.client_side, DirectLink.INNER_SERVER, 2)
    link.place_server("192.0.2.9", "2001:db8::9")
    with hosts.open("w") as file:  # the same file, not another one in its place: it is mounted
        file.write("192.0.2.9 vpn.example.org\n")
    ping(lab, link.client_side, DirectLink.INNER_SERVER, 2)
    assert client.status()["peers"][0]["endpoint"] == f"192.0.2.9:{PORT}"
    assert "the server has another address" in client.log


def test_a_client_started_without_a_network_connects_later(lab: Lab) -> None:
    link = DirectLink(lab)
    server = GoServer(link)
    client = link.client(server.public_key)
    server.serve(client.identity.public)
    link.set_link("down")
    client.start()
    assert client.status()["connection"]["state"] == "connecting"
    link.set_link("up")
    wait_for_state(client, "connected")
    ping(lab, link.client_side, DirectLink.INNER_SERVER, 2)


def test_a_client_gives_up_after_its_configured_retries(lab: Lab) -> None:
    link = DirectLink(lab)
    client = link.client(bytes(range(32)), max_reconnect_attempts=3, reconnect_delay_ms=30)
    pid = client.spawn()
    assert lab.wait_ended(pid) == 3
    (last,) = (line for line in client.log.splitlines() if line.startswith("oxidize:"))
    assert re.search(r"giving up on 192\.0\.2\.1:51820: the port is closed; max_reconnect_attempts = 3 are", last)


def test_an_outage_is_seen_in_status_and_metrics(lab: Lab) -> None:
    link = DirectLink(lab)
    server = GoServer(link)
    client = link.client(server.public_key, metrics_listen="127.0.0.1:9091")
    server.serve(client.identity.public)
    client.start()
    wait_for_state(client, "connected")
    server.stop()
    ping_pid = Ping(lab, link.client_side, DirectLink.INNER_SERVER, "waiting")
    wait_for_state(client, "reconnecting")
    shown = client.command("status", "--client").output
    assert re.search(r"connection +reconnecting to 192\.0\.2\.1:51820, for .*(retry|retries)", shown), shown
    server.start()
    wait_for_state(client, "connected")
    ping_pid.stop()
    metrics = client.metrics()
    assert metrics["oxidize_outages_total"] == metrics["oxidize_reconnects_total"] == 1
    assert metrics["oxidize_outage_seconds_count"] == 1
    assert metrics['oxidize_connection_state{state="connected"}'] == 1
    assert metrics["oxidize_buffered_packets_total"] >= metrics["oxidize_replayed_packets_total"] > 0
    assert [word for word in ("connecting", "reconnecting") if client.log.count(f"connection {word} ") != 1] == []
    assert client.log.count("connection connected ") == 2

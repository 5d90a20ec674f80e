"""`oxidize client` where the tests of the kernel's WireGuard have one: its traffic, its endpoint, what it cannot reach.

The other side is wireguard-go, in the namespace of a server.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.traffic import padding
from tests.support.traffic.direct_link import PORT, DirectLink, GoServer
from tests.support.traffic.padding import assert_padded_within_mtu
from tests.support.traffic.ping import INTERVAL_SECS, Ping, ping
from tests.support.traffic.second_uplink import second_uplink
from tests.support.traffic.server import Identity, Lab, wait_for
from tests.support.traffic.shared_site import errors_of_ping, run

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "ip", "nft")]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as made:
        yield made


def test_a_client_carries_a_flood_follows_its_file_and_says_what_it_cannot_reach(lab: Lab) -> None:
    link = DirectLink(lab)
    server = GoServer(link)
    client = link.client(server.public_key)
    server.serve(client.identity.public)
    client.start()
    for namespace, target in (
        (link.client_side, DirectLink.INNER_SERVER),
        (link.server_side, DirectLink.INNER_CLIENT),
    ):
        ping(lab, namespace, target, 1)
        text = run(namespace, "ping", "-n", "-c", "10", "-f", "-W", "5", target)
        assert "10 packets transmitted, 10 received, 0% packet loss" in text
    for option in (("-I", client.status()["interface"]), ("-m", "1")):  # bound to the interface; with a mark of its own
        run(link.client_side, "ping", "-n", "-c", "2", "-i", "0.05", *option, "-W", "5", DirectLink.INNER_SERVER)

    # Another family and another port of the server, which it does not announce; and another MTU.
    server.wireguard.wg("set", server.wireguard.name, "listen-port", str(PORT + 1))
    client.write_config(server=f"[{DirectLink.SERVER6}]:{PORT + 1}", mtu=padding.MTU)
    client.replace()
    ping(lab, link.client_side, DirectLink.INNER_SERVER, 3)
    (peer,) = client.status()["peers"]
    assert peer["endpoint"] == f"[{DirectLink.SERVER6}]:{PORT + 1}"

    assert_padded_within_mtu(
        link.client_side, DirectLink.INNER_SERVER, link.server_side, DirectLink.SERVER_LINK, client.port
    )

    # An address of the tunnel's network that the server is not asked for.
    client.write_config(server=f"[{DirectLink.SERVER6}]:{PORT + 1}", allowed_ips=[f"{DirectLink.INNER_SERVER}/32"])
    client.replace()
    assert errors_of_ping(link.client_side, "10.9.0.77") == [
        f"From 10.9.0.77 icmp_seq={number} Destination Host Unreachable" for number in (1, 2)
    ]
    ping(lab, link.client_side, DirectLink.INNER_SERVER, 2)


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_the_source_address_of_a_client_follows_a_better_way_to_the_server(lab: Lab, ipv6: bool) -> None:
    """The second uplink drops what comes from the first one's address, as providers do."""
    link = DirectLink(lab)
    server = GoServer(link)
    first, target = (DirectLink.CLIENT6, DirectLink.SERVER6) if ipv6 else (DirectLink.CLIENT, DirectLink.SERVER)
    client = link.client(server.public_key, f"[{target}]:{PORT}" if ipv6 else f"{target}:{PORT}")
    server.serve(client.identity.public)
    client.start()

    def wait_until_seen_at(source: str) -> None:
        shown = f"[{source}]" if ipv6 else source
        wait_for(f"packets from {shown}", lambda: server.wireguard.endpoint() == f"{shown}:{client.port}")
        pinging.wait_for_replies(20)

    with second_uplink(link.client_side, link.server_side, first, target) as second:
        pinging = Ping(lab, link.client_side, DirectLink.INNER_SERVER, "better-way")
        wait_until_seen_at(first)
        second.take()
        wait_until_seen_at(second.near)
        second.leave()
        wait_until_seen_at(first)
        lost = pinging.stop().lost
        assert len(lost) * INTERVAL_SECS < 1, lost  # it would be seconds if only a new handshake moved it


def test_a_client_takes_up_a_changed_private_key(lab: Lab) -> None:
    link = DirectLink(lab)
    server = GoServer(link)
    client = link.client(server.public_key)
    server.serve(client.identity.public)
    client.start()
    ping(lab, link.client_side, DirectLink.INNER_SERVER, 2)
    client.change_key(Identity.make())
    assert client.reload().status == 0
    server.serve(client.identity.public)
    ping(lab, link.client_side, DirectLink.INNER_SERVER, 2)

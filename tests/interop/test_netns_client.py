"""`oxidize client` where the tests of the kernel's WireGuard have one: its traffic, its endpoint, what it cannot reach.

The other side is wireguard-go, in the namespace of a server.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.traffic.direct_link import PORT, DirectLink, GoServer
from tests.support.traffic.ping import ping
from tests.support.traffic.server import Identity, Lab
from tests.support.traffic.shared_site import errors_of_ping, run

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "ip")]


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

    # Another family and another port of the server, which it does not announce.
    server.wireguard.wg("set", server.wireguard.name, "listen-port", str(PORT + 1))
    client.write_config(server=f"[{DirectLink.SERVER6}]:{PORT + 1}")
    client.replace()
    ping(lab, link.client_side, DirectLink.INNER_SERVER, 3)
    (peer,) = client.status()["peers"]
    assert peer["endpoint"] == f"[{DirectLink.SERVER6}]:{PORT + 1}"

    # An address of the tunnel's network that the server is not asked for.
    client.write_config(server=f"[{DirectLink.SERVER6}]:{PORT + 1}", allowed_ips=[f"{DirectLink.INNER_SERVER}/32"])
    client.replace()
    assert errors_of_ping(link.client_side, "10.9.0.77") == [
        f"From 10.9.0.77 icmp_seq={number} Destination Host Unreachable" for number in (1, 2)
    ]
    ping(lab, link.client_side, DirectLink.INNER_SERVER, 2)


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

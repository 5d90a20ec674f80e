"""What a reload is asked for, it does: endpoints, keys, networks, and the interface and routes as they should be.

The other side is wireguard-go. The scenarios are those of the tests of the kernel's WireGuard, with a reload where
these call `wg set`.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.traffic.namespaces import set_addresses
from tests.support.traffic.ping import INTERVAL_SECS, Ping, ping
from tests.support.traffic.routed_client import EVERYTHING, FAR4, Place
from tests.support.traffic.second_uplink import second_uplink
from tests.support.traffic.server import OXIDIZE, Identity, Lab, wait_for
from tests.support.traffic.shared_site import SharedSite, peer_table, run
from tests.support.traffic.site import Site

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "ip")]

NETWORKS = 20_000  # of one peer; put in one by one they stop all packets for seconds


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedSite]:
    with Lab(tmp_path_factory.mktemp("reloads")) as lab:
        yield SharedSite(lab)


# --- Endpoints ---


@pytest.mark.parametrize("ipv6", [False, True], ids=["of the same family", "of the other family"])
def test_an_endpoint_that_was_changed_in_the_file_is_used_at_once(site: SharedSite, ipv6: bool) -> None:
    """The peer has moved without a word, so only the file says where it is."""
    site.join_all()
    client = site.clients[0]
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    client.wireguard.wg("set", client.wireguard.name, "listen-port", "4242")
    where = f"[{client.outer6}]:4242" if ipv6 else f"{client.outer4}:4242"
    site.configure(client.table(endpoint=where))
    assert client.peer_status()["endpoint"] == where
    for target in (client.inner4, client.inner6):
        ping(site.lab, site.namespace, target, 3, wait=2)
    client.wireguard.wg("set", client.wireguard.name, "listen-port", "4243")
    ping(site.lab, client.namespace, Site.SERVER4, 2)  # it says itself where it is, later than the file
    site.configure(client.table(endpoint=where))
    assert client.peer_status()["endpoint"].endswith(":4243")


# --- Keys ---


def test_a_changed_private_key_is_taken_up_and_its_peers_shake_hands_with_it(site: SharedSite) -> None:
    site.join_all()
    client = site.clients[0]
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    with server_key(site, Identity.make()):
        outcome = site.reload(client.table())
        assert outcome.status == 0, outcome
        site.meet(client)
        ping(site.lab, client.namespace, Site.SERVER4, 2)
        for target in (client.inner4, client.inner6):
            ping(site.lab, site.namespace, target, 2)
    assert site.reload(client.table()).status == 0
    site.meet(client)
    ping(site.lab, client.namespace, Site.SERVER4, 2)


@contextmanager
def server_key(site: SharedSite, identity: Identity) -> Iterator[None]:
    """Replace the private key in the server's file while entered."""
    before = site.server.identity
    site.server.change_key(identity)
    try:
        yield
    finally:
        site.server.change_key(before)


# --- Routes and the interface ---


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_the_source_address_follows_a_better_way_to_the_peer(site: SharedSite, ipv6: bool) -> None:
    """The second uplink drops what comes from the first one's address, as providers do."""
    site.join_all()
    client = site.clients[0]
    site.meet(client, ipv6=ipv6)
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    first, target = (client.server6, client.outer6) if ipv6 else (client.server4, client.outer4)
    with second_uplink(site.namespace, client.namespace, first, target) as second:
        pinging = Ping(site.lab, site.namespace, client.inner4, f"better-way-{6 if ipv6 else 4}")
        pinging.wait_for_replies(5)
        second.take()
        pinging.wait_for_replies(20)
        second.leave()
        pinging.wait_for_replies(20)
        lost = pinging.stop().lost
        assert len(lost) * INTERVAL_SECS < 1, lost  # it would be 15 s if only a new handshake moved it


def test_an_interface_that_was_down_has_its_addresses_and_routes_again(site: SharedSite) -> None:
    """The kernel removes IPv6 addresses and all routes of an interface that goes down."""
    client = site.clients[0]
    networks = [*client.table().allowed_ips, "10.70.0.0/24", "fd70::/64"]
    site.configure(peer_table(client, networks))
    site.meet(client)
    set_addresses(
        client.namespace,
        client.wireguard.name,
        [f"{client.inner4}/24", f"{client.inner6}/64", "10.70.0.1/24", "fd70::1/64"],
        1420,
    )
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    interface = str(site.server.status()["interface"])
    for state in ("down", "up"):
        run(site.namespace, "ip", "link", "set", interface, state)
    assert site.reload(peer_table(client, networks)).status == 0
    for target in (client.inner4, client.inner6, "10.70.0.1", "fd70::1"):
        ping(site.lab, site.namespace, target, 2)
    # And without a reload, while serving.
    for state in ("down", "up"):
        run(site.namespace, "ip", "link", "set", interface, state)
    wait_for("the routes", lambda: "fd70::/64" in run(site.namespace, "ip", "-6", "route", "show", "dev", interface))
    for target in (client.inner4, client.inner6, "10.70.0.1", "fd70::1"):
        ping(site.lab, site.namespace, target, 2)


# --- Networks ---


def test_many_networks_come_and_go_and_lose_no_packet(site: SharedSite) -> None:
    one, other = site.clients
    site.join_all()
    for client in site.clients:
        ping(site.lab, client.namespace, Site.SERVER4, 2)
    half = NETWORKS // 2
    networks = [f"10.{64 + at // 250}.{at % 250}.0/25" for at in range(half)]
    networks += [f"fd0b:{at:x}::/32" for at in range(half)]
    pinging = Ping(site.lab, one.namespace, Site.SERVER4, "while-networks-change")
    pinging.wait_for_replies(10)
    for more, expected in ((networks, half), ([], 0)):
        outcome = site.reload(one.table(), peer_table(other, [*other.table().allowed_ips, *more]))
        assert (outcome.status, outcome.output.startswith("reloaded")) == (0, True), outcome
        assert routes(site) == (expected, expected)  # the answer comes when they are in
        pinging.wait_for_replies(10)
    assert pinging.stop().lost == ()


def routes(site: SharedSite) -> tuple[int, int]:
    """Return how many routes of the many lead into the server's interface, of IPv4 and of IPv6."""
    interface = str(site.server.status()["interface"])
    lines4, lines6 = (
        run(site.namespace, "ip", version, "route", "show", "dev", interface).splitlines() for version in ("-4", "-6")
    )
    return sum("/25 " in line for line in lines4), sum(line.startswith("fd0b:") for line in lines6)


# --- The caller of a reload ---


def test_the_answer_of_a_reload_that_turns_the_full_tunnel_on_ends(tmp_path: Path) -> None:
    """What the reload starts must not keep the caller's pipes: a shell waits for their end."""
    with Lab(tmp_path) as lab:
        place = Place(lab, allowed_ips=["10.9.0.0/24"])
        place.client.start()
        ping(lab, place.here, "10.9.0.1", 2)
        place.client.write_config(allowed_ips=list(EVERYTHING))
        with place.here.entered():
            command = [*OXIDIZE, "reload", "--client", "-c", str(place.client.config_path)]
            done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=20)
        assert (done.returncode, done.stdout.startswith("reloaded")) == (0, True), done
        place.assert_full()
        ping(lab, place.here, FAR4, 2)

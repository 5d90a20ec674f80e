"""What is said about a peer while it has traffic: its networks, key and keepalive, each changed by a reload.

The other side is wireguard-go. The scenarios are those of the tests of the kernel's WireGuard, with a reload where
these call `wg set`.
"""

import signal
from collections.abc import Iterator

import pytest

from oxidize.protocol.constants import DATA_OVERHEAD
from tests.support.traffic.capture import Capture
from tests.support.traffic.namespaces import Namespace, set_addresses
from tests.support.traffic.ping import Ping, ping
from tests.support.traffic.server import Identity, Lab, PeerTable, kill, wait_for
from tests.support.traffic.shared_site import SharedSite, peer_table
from tests.support.traffic.site import PORT, Site
from tests.support.traffic.wireguard_go import INNER_MTU, WireguardGo

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "ip")]

MOVING4, MOVING6 = "10.9.0.99", "fd09::99"  # an address that goes from one peer to the other
LOW_ORDER = (bytes(32), bytes((1, *bytes(31))))  # points of which every private key makes the same secret


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedSite]:
    with Lab(tmp_path_factory.mktemp("peers")) as lab:
        yield SharedSite(lab)


# --- Networks ---


def test_an_address_goes_to_another_peer_and_back(site: SharedSite) -> None:
    site.join_all()
    moving = [f"{MOVING4}/32", f"{MOVING6}/128"]
    for client in site.clients:
        addresses = [f"{client.inner4}/24", f"{client.inner6}/64", *moving]
        set_addresses(client.namespace, client.wireguard.name, addresses, INNER_MTU)
        ping(site.lab, client.namespace, Site.SERVER4, 2)
    for owner, other in (site.clients, site.clients[::-1], site.clients):
        site.configure(peer_table(owner, [*owner.table().allowed_ips, *moving]), other.table())
        before = owner.peer_status()["received_packets"], other.peer_status()["received_packets"]
        for target in (MOVING4, MOVING6):
            ping(site.lab, site.namespace, target, 3)
        after = owner.peer_status()["received_packets"], other.peer_status()["received_packets"]
        assert (after[0] - before[0], after[1] - before[1]) == (6, 0)
        # The peer that has lost the address may no longer send from it.
        dropped = site.drops().get("source_not_allowed", 0)
        with other.namespace.entered():
            command = ("/usr/bin/ping", "-n", "-c", "1", "-W", "0.1", "-I", MOVING4, Site.SERVER4)
            site.lab.wait_ended(site.lab.spawn(command, "not-allowed"))
        site.wait_for_drop("source_not_allowed", dropped + 1)


def test_one_peer_may_have_networks_inside_its_other_networks(site: SharedSite) -> None:
    client = site.clients[0]
    networks = ["10.0.0.0/8", "10.9.0.0/24", "100.64.0.0/10", "fd00::/8", "fd09::/64"]
    site.configure(peer_table(client, networks))
    site.meet(client)
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    for target in (client.inner4, client.inner6):
        ping(site.lab, site.namespace, target, 2)
    assert sorted(client.peer_status()["allowed_ips"]) == sorted(networks)


def test_a_network_moves_between_peers_whose_networks_contain_it(site: SharedSite) -> None:
    """The longest prefix decides, for packets to a peer and for the sources of packets from it."""
    site.join_all()
    one, other = site.clients
    moving = [f"{MOVING4}/32", f"{MOVING6}/128"]
    for client in site.clients:
        addresses = [f"{client.inner4}/24", f"{client.inner6}/64", *moving]
        set_addresses(client.namespace, client.wireguard.name, addresses, INNER_MTU)
        ping(site.lab, client.namespace, Site.SERVER4, 2)
    wide = [*one.table().allowed_ips, "10.9.0.0/24", "fd09::/64"]
    pinging = Ping(site.lab, other.namespace, Site.SERVER4, "while-networks-move")
    pinging.wait_for_replies(5)
    # The other's own addresses lie within the networks of the first one all the while.
    for networks, owner, loser in (([], one, other), (moving, other, one), ([], one, other)):
        site.configure(peer_table(one, wide), peer_table(other, [*other.table().allowed_ips, *networks]))
        before = owner.peer_status()["received_packets"], loser.peer_status()["received_packets"]
        for target in (MOVING4, MOVING6):
            ping(site.lab, site.namespace, target, 3)
        after = owner.peer_status()["received_packets"], loser.peer_status()["received_packets"]
        assert after[0] - before[0] >= 6
        assert after[1] - before[1] == 0 or loser is other  # which pings the server meanwhile
        dropped = site.drops().get("source_not_allowed", 0)
        with loser.namespace.entered():
            command = ("/usr/bin/ping", "-n", "-c", "1", "-W", "0.1", "-I", MOVING4, Site.SERVER4)
            site.lab.wait_ended(site.lab.spawn(command, "not-allowed"))
        site.wait_for_drop("source_not_allowed", dropped + 1)
    assert pinging.stop().lost == ()


def test_the_networks_of_each_peer_are_those_that_wg_gives_it(site: SharedSite) -> None:
    """The oracle is wg, in a namespace of its own: for nested networks, and for the same one in two peers."""
    client = site.clients[0]
    client_table = client.table()
    claimed = [
        ["10.0.0.0/8", "10.9.1.0/24", "fd00::/8"],
        ["10.9.1.0/24", "10.9.1.128/25", "172.16.0.0/12"],
        ["172.16.0.0/12", "10.9.1.128/32", "fd77::/64"],
        ["fd77::/64", "fd00::/9", "10.0.0.0/9"],
    ]
    peers = [PeerTable(f"p{at}", Identity.make().public, tuple(own)) for at, own in enumerate(claimed)]
    with Lab(site.lab.folder / "oracle") as lab:
        lab.folder.mkdir()
        oracle = WireguardGo(lab, Namespace(lab.stack), ["10.9.0.1/24"])
        for peer in (client_table, *peers):
            oracle.set_peer(peer.public_key, ",".join(peer.allowed_ips))
        lines = oracle.wg("show", oracle.name, "allowed-ips").splitlines()
    expected = {key: sorted(networks.split()) for key, _, networks in (line.partition("\t") for line in lines)}
    outcome = site.reload(client_table, *peers)
    assert outcome.status == 0, outcome
    found = {peer["public_key"]: sorted(peer["allowed_ips"]) or ["(none)"] for peer in site.server.status()["peers"]}
    assert found == expected


def test_many_peers_with_many_networks_or_with_none_are_all_there(site: SharedSite) -> None:
    client = site.clients[0]
    many = [
        PeerTable(f"many-{number}", Identity.make().public, tuple(f"10.{number + 100}.{at}.0/24" for at in range(52)))
        for number in range(40)
    ]
    wide = PeerTable("wide", Identity.make().public, tuple(f"fd0a:{at:x}::/32" for at in range(1, 198)))
    idle = [PeerTable(f"idle-{number}", Identity.make().public, (f"10.9.1.{number}/32",)) for number in range(29)]
    site.configure(client.table(), *many, wide, *idle)
    site.meet(client)
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    found = {peer["name"]: peer["allowed_ips"] for peer in site.server.status()["peers"]}
    assert found == {peer.name: list(peer.allowed_ips) for peer in site.server.peers}


def test_a_peer_is_removed_under_a_flood_and_comes_back(site: SharedSite) -> None:
    site.join_all()
    one, other = site.clients
    for client in site.clients:
        ping(site.lab, client.namespace, Site.SERVER4, 2)
    pinging = Ping(site.lab, other.namespace, Site.SERVER4, "beside-the-flood")
    pinging.wait_for_replies(5)
    with one.namespace.entered():
        flood = site.lab.spawn(("/usr/bin/ping", "-n", "-q", "-f", Site.SERVER4), "flood")
    strays = site.drops().get("unknown_index", 0)
    site.configure(other.table())
    wait_for("packets of the removed peer", lambda: site.drops().get("unknown_index", 0) > strays + 20)
    site.configure(one.table(), other.table())
    kill(flood, signal.SIGINT)
    site.lab.wait_ended(flood)
    site.meet(one)
    ping(site.lab, one.namespace, Site.SERVER4, 2)
    assert pinging.stop().lost == ()


def test_a_silent_peer_is_removed_while_packets_wait_for_it(site: SharedSite) -> None:
    site.join_all()
    one, silent = (
        site.clients[0],
        PeerTable("silent", Identity.make().public, ("10.9.0.77/32",), endpoint="192.0.2.6:9"),
    )
    ping(site.lab, one.namespace, Site.SERVER4, 2)
    site.configure(one.table(), silent)
    staged = site.totals()["buffered_packets"]
    with site.namespace.entered():
        waiting = site.lab.spawn(("/usr/bin/ping", "-n", "-q", "-c", "200", "-i", "0.002", "10.9.0.77"), "waiting")
    wait_for("packets to wait", lambda: site.totals()["buffered_packets"] > staged + 20)
    site.configure(one.table())
    kill(waiting, signal.SIGINT)
    site.lab.wait_ended(waiting)
    assert site.server.status()["state"] == "healthy"
    ping(site.lab, one.namespace, Site.SERVER4, 2)


# --- Keys ---


def test_a_preshared_key_changes_on_both_sides_under_traffic(site: SharedSite) -> None:
    client = site.clients[0]
    site.join_all()
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    pinging = Ping(site.lab, client.namespace, Site.SERVER4, "while-the-key-changes")
    for key in (bytes(range(32)), bytes(range(1, 33))):
        pinging.wait_for_replies(5)
        client.preshared_key = key
        assert site.reload(client.table()).status == 0
        client.connect()
    pinging.wait_for_replies(5)
    assert pinging.stop().lost == ()
    handshakes = site.totals()["handshakes_responder"]
    site.meet(client)
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    assert site.totals()["handshakes_responder"] == handshakes + 1
    client.preshared_key = None


def test_keys_that_no_peer_may_have_are_refused_and_nothing_is_sent(site: SharedSite) -> None:
    """The server's own key, and points of low order, with which anyone could compute the secrets."""
    client = site.clients[0]
    site.configure(client.table())
    site.meet(client)
    with Capture(site.namespace, f"client{client.number}", PORT) as capture:
        for key in (site.server.identity.public, *LOW_ORDER):
            refused = PeerTable(
                "refused", key, ("10.9.0.77/32",), endpoint=f"{client.outer4}:9", persistent_keepalive=1
            )
            outcome = site.reload(client.table(), refused)
            assert outcome.status == 2
            assert "public_key" in outcome.errors
        capture.stop()
    assert capture.datagrams == []
    ping(site.lab, client.namespace, Site.SERVER4, 2)


# --- The server's own port ---


def test_another_port_is_warned_of_and_waits_for_a_restart(site: SharedSite) -> None:
    """The socket is handed over, so a reload keeps its port where `wg set` moves at once."""
    site.join_all()
    client = site.clients[0]
    outcome = site.reload(client.table(), listen=f"[::]:{PORT + 1}")
    assert outcome.status == 0
    assert "listen has changed, but the socket is handed over as it is: stop and start" in outcome.errors, outcome
    assert site.server.port == PORT
    ping(site.lab, client.namespace, Site.SERVER4, 2)


# --- Keepalives ---


def test_keepalives_end_and_begin_again_by_a_reload(site: SharedSite) -> None:
    """The other peer is the clock: its keepalives go on."""
    quiet, clock = site.clients
    site.configure(quiet.table(keepalive=1), clock.table(keepalive=1))
    for client in site.clients:
        site.meet(client)
        ping(site.lab, client.namespace, Site.SERVER4, 1)
    sent = quiet.peer_status()["sent_bytes"]
    wait_for("a keepalive", lambda: quiet.peer_status()["sent_bytes"] > sent)

    site.configure(quiet.table(keepalive=0), clock.table(keepalive=1))
    sent, ticks = quiet.peer_status()["sent_bytes"], clock.peer_status()["sent_bytes"]
    wait_for("keepalives to the other", lambda: clock.peer_status()["sent_bytes"] >= ticks + 2 * DATA_OVERHEAD)
    assert quiet.peer_status()["sent_bytes"] == sent

    site.configure(quiet.table(keepalive=1), clock.table(keepalive=1))
    wait_for("a keepalive again", lambda: quiet.peer_status()["sent_bytes"] > sent)

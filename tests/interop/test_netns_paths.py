"""The outer network changes under a tunnel: addresses, routes, translations, interfaces, loops.

The other side is wireguard-go. The scenarios are those of the tests of the kernel's WireGuard.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.ping import ping
from tests.support.traffic.server import Identity, Lab, PeerTable, b64, wait_for
from tests.support.traffic.shared_site import SharedSite, peer_table, run
from tests.support.traffic.site import PORT, Site
from tests.support.traffic.wireguard_go import WireguardGo

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "ip", "nft")]

LOOP_DATAGRAMS_MAX = 40  # of handshakes and packets, where a loop makes thousands


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedSite]:
    with Lab(tmp_path_factory.mktemp("paths")) as lab:
        yield SharedSite(lab)


@contextmanager
def server_addresses(site: SharedSite, number: int, *addresses: str) -> Iterator[None]:
    """Give the server these outer addresses on a client's link while entered."""
    client = site.clients[number - 1]
    set_addresses(site.namespace, f"client{number}", addresses)
    try:
        yield
    finally:
        set_addresses(site.namespace, f"client{number}", [f"{client.server4}/30", f"{client.server6}/64"])
        client.move(client.outer4, client.outer6)


# --- Outer addresses ---


def test_both_sides_change_the_family_of_their_endpoints(site: SharedSite) -> None:
    client = site.clients[0]
    for ipv6 in (False, True, False):
        outer = f"[{client.outer6}]" if ipv6 else client.outer4
        port = client.wireguard.listen_port()
        site.configure(client.table(endpoint=f"{outer}:{port}"))
        site.meet(client, ipv6=ipv6)
        ping(site.lab, client.namespace, Site.SERVER4, 2)
        ping(site.lab, site.namespace, client.inner6, 2)
        assert client.peer_status()["endpoint"] == f"{outer}:{port}"


def test_a_peer_is_answered_from_the_address_that_it_calls(site: SharedSite) -> None:
    """Of two addresses in each family, the kernel would choose the first for what it sends by itself."""
    site.join_all()
    client = site.clients[0]
    base, base6 = client.server4.rpartition(".")[0], client.server6.rpartition("::")[0]
    ours4 = [client.server4, f"{base}.252"]
    ours6 = [client.server6, f"{base6}::5"]
    addresses = [f"{ours4[0]}/24", f"{ours4[1]}/24", *(f"{address}/64" for address in ours6)]
    with server_addresses(site, 1, *addresses):
        set_addresses(client.namespace, client.link, [f"{client.outer4}/24", f"{client.outer6}/64"])
        for address in (*ours4, *ours6):
            endpoint = f"[{address}]:{PORT}" if ":" in address else f"{address}:{PORT}"
            site.meet(client)
            site.call(client, endpoint)
            ping(site.lab, client.namespace, Site.SERVER4, 2)
            assert client.wireguard.endpoint() == endpoint


def test_a_peer_is_answered_from_an_address_of_another_interface(site: SharedSite) -> None:
    site.join_all()
    client = site.clients[0]
    other = site.clients[1].server4
    run(client.namespace, "ip", "route", "replace", f"{other}/32", "via", client.server4)
    site.meet(client)
    site.call(client, f"{other}:{PORT}")
    ping(site.lab, client.namespace, Site.SERVER4, 3)
    assert client.wireguard.endpoint() == f"{other}:{PORT}"
    run(client.namespace, "ip", "route", "del", f"{other}/32")


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_the_server_falls_over_to_its_other_address(site: SharedSite, ipv6: bool) -> None:
    """The address that a session used goes away: the next packet of the server leaves from the one that is left."""
    site.join_all()
    client = site.clients[0]
    site.meet(client, ipv6=ipv6)
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    base, base6 = client.server4.rpartition(".")[0], client.server6.rpartition("::")[0]
    with server_addresses(site, 1, f"{base}.252/24", f"{base6}::5/64"):
        set_addresses(client.namespace, client.link, [f"{client.outer4}/24", f"{client.outer6}/64"])
        ping(site.lab, site.namespace, client.inner4, 2)
        assert client.wireguard.endpoint() == (f"[{base6}::5]" if ipv6 else f"{base}.252") + f":{PORT}"


# --- A router between both, which translates addresses ---


class Translated:
    """A wireguard-go behind a router that forgets a mapping after three seconds without a packet.

    outer: the endpoints as which the router lets it appear, one after the other.
    """

    def __init__(self, site: SharedSite, *, ipv6: bool) -> None:
        self._site = site
        self.router, self.inside = Namespace(site.lab.stack), Namespace(site.lab.stack)
        link, outside, within, length, self._table = (
            ("router6", "2001:db8:7::", "fd66::", 64, "ip6 nat")
            if ipv6
            else ("router4", "203.0.113.", "192.168.66.", 24, "ip nat")
        )
        join(site.namespace, link, self.router, "out0")
        join(self.router, "in0", self.inside, "up0")
        set_addresses(site.namespace, link, [f"{outside}1/{length}"])
        set_addresses(self.router, "out0", [f"{outside}{number}/{length}" for number in (2, 3)])
        set_addresses(self.router, "in0", [f"{within}1/{length}"])
        set_addresses(self.inside, "up0", [f"{within}2/{length}"])
        run(self.inside, "ip", "route", "add", "default", "via", f"{within}1")
        hosts = [f"[{outside}{number}]" if ipv6 else f"{outside}{number}" for number in (1, 2, 3)]
        self._server, *self.outer = map(":".join, zip(hosts, (str(PORT), "1000", "2000"), strict=True))
        self.map_to(self.outer[0])
        for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
            run(self.router, "sysctl", "-qw", f"net.netfilter.{name}=3")
        run(self.router, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.inner = "10.9.0.56" if ipv6 else "10.9.0.54"
        self._wireguard = WireguardGo(site.lab, self.inside, [f"{self.inner}/24"])
        self.table = PeerTable(link, self._wireguard.identity.public, (f"{self.inner}/32",))

    def connect(self) -> None:
        """Configure the server, which knows this peer, and ping it."""
        key = self._site.server.identity.public
        self._wireguard.set_peer(key, f"{Site.SERVER4}/32", endpoint=self._server, keepalive=1)
        ping(self._site.lab, self.inside, Site.SERVER4, 2)

    def map_to(self, endpoint: str) -> None:
        """Translate to this endpoint from the next packet on that finds no mapping."""
        run(self.router, "nft", f"add table {self._table}; flush table {self._table}")
        run(self.router, "nft", f"add chain {self._table} post {{ type nat hook postrouting priority srcnat; }}")
        run(self.router, "nft", f"add rule {self._table} post oifname out0 meta l4proto udp snat to {endpoint}")

    def set_keepalive(self, secs: int) -> None:
        """Send a keepalive at this interval; 0 for none."""
        key = b64(self._site.server.identity.public)
        self._wireguard.wg("set", self._wireguard.name, "peer", key, "persistent-keepalive", str(secs))

    def endpoint(self) -> str:
        """Return where the server sends to."""
        (found,) = (peer for peer in self._site.server.status()["peers"] if peer["name"] == self.table.name)
        return str(found["endpoint"])


def test_peers_behind_translating_routers_stay_reachable_and_are_followed(site: SharedSite) -> None:
    """One of IPv4 and one of IPv6, at once, for each waits for its router to forget."""
    both = [Translated(site, ipv6=ipv6) for ipv6 in (False, True)]
    site.configure(*(there.table for there in both))
    for there in both:
        there.connect()
        assert there.endpoint() == there.outer[0]
    received = site.totals()["received_keepalives"]
    wait_for("three keepalives of each", lambda: site.totals()["received_keepalives"] >= received + 6)
    for there in both:
        ping(site.lab, site.namespace, there.inner, 2)
        there.map_to(there.outer[1])
        there.set_keepalive(0)
    wait_for("the mappings to be forgotten", lambda: not any(mappings(there.router) for there in both))
    for there in both:
        there.set_keepalive(1)
    wait_for("the server to follow", lambda: all(there.endpoint() == there.outer[1] for there in both))
    for there in both:
        ping(site.lab, site.namespace, there.inner, 2)


def mappings(router: Namespace) -> str:
    """Return the mappings of a router that have not ended: a line each."""
    return run(router, "cat", "/proc/net/nf_conntrack")


# --- Tunnels in tunnels, and loops ---


def test_a_tunnel_runs_inside_the_tunnel(site: SharedSite) -> None:
    site.join_all()
    client = site.clients[0]
    ours, theirs = (
        WireguardGo(site.lab, namespace, [f"10.77.0.{number}/24"])
        for number, namespace in ((1, site.namespace), (2, client.namespace))
    )
    ours.wg("set", ours.name, "listen-port", "7777")
    ours.set_peer(theirs.identity.public, "10.77.0.2/32")
    theirs.set_peer(ours.identity.public, "10.77.0.1/32", endpoint=f"{Site.SERVER4}:7777")
    sent = site.totals()["received_packets"]
    for namespace, target in ((client.namespace, "10.77.0.1"), (site.namespace, "10.77.0.2")):
        ping(site.lab, namespace, target, 3)
    assert site.totals()["received_packets"] >= sent + 6


def test_the_tunnel_runs_inside_another_tunnel(site: SharedSite) -> None:
    site.join_all()
    client = site.clients[0]
    ours, theirs = (
        WireguardGo(site.lab, namespace, [f"10.78.0.{number}/24"])
        for number, namespace in ((1, site.namespace), (2, client.namespace))
    )
    ours.wg("set", ours.name, "listen-port", "7778")
    ours.set_peer(theirs.identity.public, "10.78.0.2/32")
    theirs.set_peer(ours.identity.public, "10.78.0.1/32", endpoint=f"{client.server4}:7778")
    site.call(client, f"10.78.0.1:{PORT}")
    for namespace, target in ((client.namespace, Site.SERVER4), (site.namespace, client.inner6)):
        ping(site.lab, namespace, target, 3)
    assert client.peer_status()["endpoint"].startswith("10.78.0.2:")


def test_the_way_to_one_peer_leads_through_the_tunnel_to_another_one(site: SharedSite) -> None:
    """The datagrams to the peer at the far end are packets of the same interface: onion routing."""
    client = site.clients[0]
    far = WireguardGo(site.lab, client.namespace, ["10.79.0.2/24"])
    far.wg("set", far.name, "listen-port", "7779")
    far.set_peer(site.server.identity.public, "10.79.0.1/32")
    table = PeerTable("far", far.identity.public, ("10.79.0.2/32",), endpoint=f"{client.inner4}:7779")
    addresses = [f"{Site.SERVER4}/24", f"{Site.SERVER6}/64", "10.79.0.1/24"]
    site.configure(client.table(), table, address=addresses)
    site.meet(client)
    ping(site.lab, client.namespace, Site.SERVER4, 1)
    sent = client.peer_status()["sent_packets"]
    ping(site.lab, site.namespace, "10.79.0.2", 3)
    assert client.peer_status()["sent_packets"] >= sent + 3


def test_an_endpoint_inside_the_tunnel_itself_makes_no_loop(site: SharedSite) -> None:
    client = site.clients[0]
    astray = PeerTable("astray", Identity.make().public, ("10.66.0.0/24",), endpoint=f"10.66.0.1:{PORT}")
    site.configure(client.table(), astray)
    site.meet(client)
    before = site.totals()["sent_datagrams"]
    flood(site, "10.66.0.2")
    assert site.totals()["sent_datagrams"] - before <= LOOP_DATAGRAMS_MAX
    ping(site.lab, client.namespace, Site.SERVER4, 2)


def test_two_tunnels_through_each_other_make_no_loop(site: SharedSite) -> None:
    """Each interface is the way to the endpoint of the other one's peer."""
    client = site.clients[0]
    crossing = PeerTable("crossing", Identity.make().public, ("10.67.0.0/24",), endpoint=f"10.68.0.1:{PORT}")
    site.configure(client.table(), crossing)
    site.meet(client)
    other = WireguardGo(site.lab, site.namespace, ["10.68.0.9/24"])
    other.set_peer(Identity.make().public, "10.68.0.0/24", endpoint=f"10.67.0.1:{PORT}")
    before = site.totals()["sent_datagrams"]
    for target in ("10.67.0.2", "10.68.0.2"):
        flood(site, target)
    assert site.totals()["sent_datagrams"] - before <= LOOP_DATAGRAMS_MAX
    ping(site.lab, client.namespace, Site.SERVER4, 2)


def flood(site: SharedSite, target: str) -> None:
    """Send a hundred packets to an address from which no answer comes."""
    command = ("/usr/bin/ping", "-n", "-q", "-c", "100", "-i", "0.002", "-W", "0.1", target)
    with site.namespace.entered():
        site.lab.wait_ended(site.lab.spawn(command, "flood"))


# --- Routes and interfaces ---


def test_a_peer_with_every_address_leaves_the_servers_default_route_alone(site: SharedSite) -> None:
    client, other = site.clients
    run(site.namespace, "ip", "route", "replace", "default", "via", client.outer4)
    run(site.namespace, "ip", "route", "replace", "default", "via", other.outer4, "metric", "50")
    before = run(site.namespace, "ip", "route", "show", "default")
    outcome = site.reload(peer_table(client, ["0.0.0.0/0", "::/0"]))
    assert outcome.status == 0, outcome
    site.meet(client)
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    ping(site.lab, site.namespace, client.inner4, 2)
    ping(site.lab, site.namespace, client.outer4, 2)
    assert set(before.splitlines()) <= set(run(site.namespace, "ip", "route", "show", "default").splitlines())
    run(site.namespace, "ip", "route", "flush", "default")
    site.configure(client.table())


def test_the_interface_serves_in_another_namespace_until_it_is_deleted(tmp_path: Path) -> None:
    """The socket stays where it was made, so the outer network and the inner one may be in two namespaces."""
    with Lab(tmp_path) as lab:
        site = SharedSite(lab, clients=1)
        (client,) = site.clients
        client.connect()
        ping(lab, client.namespace, Site.SERVER4, 2)
        interface, elsewhere = site.server.status()["interface"], Namespace(lab.stack)
        run(site.namespace, "ip", "link", "set", interface, "netns", elsewhere.path)
        set_addresses(elsewhere, interface, [f"{Site.SERVER4}/24", f"{Site.SERVER6}/64"])
        for source, target in ((elsewhere, client.inner4), (client.namespace, Site.SERVER6)):
            ping(lab, source, target, 3)
        pid = site.server.status()["pid"]
        run(elsewhere, "ip", "link", "del", interface)
        assert lab.wait_ended(pid) == 1
        assert "was removed while in use; restart the service to create it again" in site.server.log_path.read_text()

"""Packets that no peer gets, on the kernel: `ping`, `connect` and forwarding hosts are told, and told by an ICMP error.

The scenarios are those in which the kernel's own WireGuard is expected to answer "host unreachable".
"""

import errno
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.ping import ping
from tests.support.traffic.server import WAIT_SECS, Lab, kill, wait_for
from tests.support.traffic.shared_site import SharedSite, errors_of_ping, run
from tests.support.traffic.site import Site

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "ip", "nft")]

HOST_UNREACHABLE, ADDRESS_UNREACHABLE = "Destination Host Unreachable", "Destination unreachable: Address unreachable"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedSite]:
    with Lab(tmp_path_factory.mktemp("unreachable")) as lab:
        made = SharedSite(lab)
        run(made.namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        yield made


def assert_unreachable(namespace: Namespace, target: str) -> None:
    """Fail unless each ping to an address is answered by an error."""
    text = ADDRESS_UNREACHABLE if ":" in target else HOST_UNREACHABLE
    assert errors_of_ping(namespace, target) == [f"From {target} icmp_seq={number} {text}" for number in (1, 2)]


def connect_error(namespace: Namespace, target: str) -> str:
    """Return the name of the error with which a TCP connection fails before any timeout."""
    with namespace.entered(), socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET) as connection:
        connection.settimeout(WAIT_SECS)
        return errno.errorcode[connection.connect_ex((target, 9))]


def test_an_address_of_no_peer_is_unreachable_from_the_server(site: SharedSite) -> None:
    site.join_all()
    before = site.totals()["unreachables_sent"]
    for target in ("10.9.0.200", "fd09::200"):
        assert_unreachable(site.namespace, target)
        assert connect_error(site.namespace, target) == "EHOSTUNREACH"
    assert site.totals()["unreachables_sent"] == before + 6


def test_a_peer_without_endpoint_is_unreachable_until_it_comes(site: SharedSite) -> None:
    site.configure()
    site.configure(*(client.table() for client in site.clients))  # its endpoints are not those of before
    client = site.clients[0]
    site.meet(client, knows_endpoint=False)
    for target in (client.inner4, client.inner6):
        assert_unreachable(site.namespace, target)
    site.meet(client)
    ping(site.lab, client.namespace, Site.SERVER4, 2)
    for target in (client.inner4, client.inner6):
        ping(site.lab, site.namespace, target, 2)


def test_a_removed_peer_is_unreachable_for_the_server_and_for_the_other_peers(site: SharedSite) -> None:
    site.join_all()
    one, other = site.clients
    site.meet(one, *other.table().allowed_ips)
    site.meet(other, *one.table().allowed_ips)
    ping(site.lab, other.namespace, Site.SERVER4, 2)
    for target in (other.inner4, other.inner6):
        ping(site.lab, one.namespace, target, 2)

    site.configure(one.table())
    for target in (other.inner4, other.inner6):
        assert_unreachable(site.namespace, target)
        assert_unreachable(one.namespace, target)

    site.configure(one.table(), other.table())
    site.meet(other, *one.table().allowed_ips)
    ping(site.lab, other.namespace, Site.SERVER4, 2)
    for target in (other.inner4, other.inner6):
        ping(site.lab, one.namespace, target, 2)


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_the_error_reaches_a_sender_whose_address_was_translated(site: SharedSite, ipv6: bool) -> None:
    """A host behind a peer's NAT hears about the address that it asked for: the error quotes the translated packet."""
    site.join_all()
    one, other = site.clients
    family, sender, mapped, target, length, text = (
        ("ip6", "fd66::1", one.inner6, other.inner6, 128, ADDRESS_UNREACHABLE)
        if ipv6
        else ("ip", "192.168.9.1", one.inner4, other.inner4, 32, HOST_UNREACHABLE)
    )
    site.meet(one, f"{target}/{length}")
    run(one.namespace, "ip", "addr", "replace", f"{sender}/{length}", "dev", "lo")
    table = f"{family} translated"
    run(one.namespace, "nft", f"add table {table}")
    run(one.namespace, "nft", f"add chain {table} post {{ type nat hook postrouting priority srcnat; }}")
    run(one.namespace, "nft", f"add rule {table} post {family} saddr {sender} snat to {mapped}")
    site.configure(one.table())
    ping(site.lab, one.namespace, Site.SERVER4, 2)
    command = ("/usr/bin/ping", "-n", "-c", "1", "-W", "1", "-I", sender, target)
    with one.namespace.entered():
        lines = site.lab.folder / "translated.log"
        pid = site.lab.spawn(command, "translated")
    site.lab.wait_ended(pid)
    assert f"From {target} icmp_seq=1 {text}" in lines.read_text()


def test_packets_for_a_removed_peer_under_a_flood_do_not_disturb_the_others(site: SharedSite) -> None:
    site.join_all()
    one, other = site.clients
    for client in site.clients:
        ping(site.lab, client.namespace, Site.SERVER4, 1)
    with site.namespace.entered():
        flood = site.lab.spawn(("/usr/bin/ping", "-n", "-q", "-f", other.inner4), "flood")
    site.configure(one.table())
    dropped = site.drops().get("no_route", 0)
    wait_for("the flood to be dropped", lambda: site.drops().get("no_route", 0) > dropped + 50)
    ping(site.lab, one.namespace, Site.SERVER4, 10)
    site.configure(one.table(), other.table())
    site.meet(other)
    ping(site.lab, other.namespace, Site.SERVER4, 5)
    kill(flood, signal.SIGINT)
    site.lab.wait_ended(flood)


def test_an_untouched_server_has_dropped_nothing(tmp_path: Path) -> None:
    """The kernel sends router solicitations and reports of listeners on every interface that comes up."""
    with Lab(tmp_path) as lab:
        server = Site(lab).server
        server.start()
        wait_for("the kernel's multicast", lambda: server.status()["totals"]["multicast_packets"])
        assert not any(server.status()["drops"].values())
        assert server.status()["totals"]["unreachables_sent"] == 0

"""All kinds of packets in both directions and families, before and after a reload that changes the MTU.

The other side is wireguard-go. The scenarios are those of the tests of the kernel's WireGuard.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.traffic import padding
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.padding import assert_padded_within_mtu
from tests.support.traffic.ping import ping
from tests.support.traffic.server import WAIT_SECS, Lab, wait_for
from tests.support.traffic.shared_site import SharedSite, run
from tests.support.traffic.site import PORT, Site
from tests.support.traffic.transfer import CHUNK_BYTES, Transfer
from tests.support.traffic.wireguard_go import INNER_MTU

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "ip")]

LARGE_MTU = 34_736  # bytes; the outer datagrams are fragmented
TRANSFERS = 2  # at once, each way and family
BURSTS, BURST_DATAGRAMS = 5, 40  # a burst fits into every queue on the way
ODD_SIZES = (0, 1, 15, 16, 17, 39, INNER_MTU - 57, INNER_MTU - 29, INNER_MTU - 28, INNER_MTU - 27, 9_000, 65_000)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedSite]:
    with Lab(tmp_path_factory.mktemp("traffic")) as lab:
        made = SharedSite(lab, clients=1)
        made.clients[0].connect()
        yield made


def ways_of(site: SharedSite) -> list[tuple[Namespace, Namespace, str]]:
    """Return sender, receiver and its address for both directions and families."""
    (client,) = site.clients
    return [
        (client.namespace, site.namespace, Site.SERVER4),
        (client.namespace, site.namespace, Site.SERVER6),
        (site.namespace, client.namespace, client.inner4),
        (site.namespace, client.namespace, client.inner6),
    ]


def exchange(site: SharedSite) -> None:
    """Fail unless transfers in both directions and families arrive intact."""
    with ExitStack() as stack:
        transfers = [stack.enter_context(Transfer(*way)) for way in ways_of(site) for _ in range(TRANSFERS)]
        wait_for("bytes of all", lambda: all(each.received_bytes >= 4 * CHUNK_BYTES for each in transfers))
        for transfer in transfers:
            transfer.assert_intact()


@pytest.mark.parametrize("ipv6", [False, True], ids=["over IPv4", "over IPv6"])
def test_a_flood_of_pings_loses_none_and_both_sides_count_the_same(site: SharedSite, ipv6: bool) -> None:
    (client,) = site.clients
    site.configure()
    site.join_all()
    site.meet(client, ipv6=ipv6)
    for namespace, _, target in ways_of(site):
        text = run(namespace, "ping", "-n", "-c", "10", "-f", "-W", "5", target)
        assert "10 packets transmitted, 10 received, 0% packet loss" in text
    status = client.peer_status()
    ours = status["sent_bytes"], status["received_bytes"]
    wait_for("both sides to agree", lambda: client.wireguard.transfer() == ours)


def test_transfers_at_once_in_all_directions_arrive_intact(site: SharedSite) -> None:
    site.join_all()
    exchange(site)


def test_bursts_of_datagrams_of_all_sizes_arrive_as_they_were_sent(site: SharedSite) -> None:
    site.join_all()
    for sender, receiver, address in ways_of(site):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with receiver.entered():
            receiving = socket.socket(family, socket.SOCK_DGRAM)
        with sender.entered():
            sending = socket.socket(family, socket.SOCK_DGRAM)
        with receiving, sending:
            receiving.bind((address, 0))
            receiving.settimeout(WAIT_SECS)
            sending.connect(receiving.getsockname())
            for burst in range(BURSTS):
                sent = [os.urandom(size) for size in range(burst, INNER_MTU, INNER_MTU // BURST_DATAGRAMS)]
                for datagram in sent:
                    sending.send(datagram)
                assert sorted(receiving.recv(INNER_MTU) for _ in sent) == sorted(sent)


def test_packets_of_odd_sizes_and_with_options_are_answered(site: SharedSite) -> None:
    site.join_all()
    (client,) = site.clients
    for namespace, target in (
        (client.namespace, Site.SERVER4),
        (client.namespace, Site.SERVER6),
        (site.namespace, client.inner4),
    ):
        for size in ODD_SIZES:
            text = run(namespace, "ping", "-n", "-q", "-c", "1", "-s", str(size), "-W", "5", target)
            assert "1 received" in text, f"{size} bytes to {target}"
    for option in (("-R",), ("-T", "tsonly"), ("-T", "tsandaddr")):
        assert "1 received" in run(client.namespace, "ping", "-n", "-q", "-c", "1", *option, "-W", "5", Site.SERVER4)


def test_no_packet_is_padded_beyond_the_mtu(site: SharedSite) -> None:
    """A packet of the whole MTU would otherwise be larger than what the path lets through."""
    (client,) = site.clients
    site.configure(client.table(), mtu=padding.MTU)
    site.meet(client)
    ping(site.lab, client.namespace, Site.SERVER4, 1)
    for target in (client.inner4, client.inner6):
        assert_padded_within_mtu(site.namespace, target, client.namespace, client.link, PORT)


def test_a_large_mtu_is_taken_up_by_a_reload(site: SharedSite) -> None:
    (client,) = site.clients
    site.configure(client.table(), mtu=LARGE_MTU)
    interface = site.server.status()["interface"]
    assert f"mtu {LARGE_MTU}" in run(site.namespace, "ip", "link", "show", interface)
    run(client.namespace, "ip", "link", "set", client.wireguard.name, "mtu", str(LARGE_MTU))
    site.meet(client)
    for size in (1_500, 30_000, LARGE_MTU - 28):
        for namespace, target in ((client.namespace, Site.SERVER4), (site.namespace, client.inner4)):
            run(namespace, "ping", "-n", "-q", "-M", "do", "-c", "1", "-s", str(size), "-W", "5", target)
    exchange(site)
    run(client.namespace, "ip", "link", "set", client.wireguard.name, "mtu", str(INNER_MTU))
    site.configure(client.table())
    assert f"mtu {INNER_MTU}" in run(site.namespace, "ip", "link", "show", interface)
    ping(site.lab, client.namespace, Site.SERVER4, 2)

"""Twenty reloads under real traffic: unmodified wireguard-go clients, the kernel's ping and TCP."""

import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.support.traffic.capture import Capture
from tests.support.traffic.ping import Ping, ping, wait_for_replies
from tests.support.traffic.server import Footprint, is_gone, wait_for
from tests.support.traffic.site import PORT, Client, Site
from tests.support.traffic.transfer import Transfer
from tests.support.traffic.transport_messages import assert_no_nonce_twice, transport_pairs

pytestmark = [pytest.mark.handoff, pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping")]

GENERATIONS = 20
TCP_GAP_SECS_MAX = 5.0  # generous: a stall is longer, retransmission on a loaded machine is not


def connect_all(site: Site) -> list[Client]:
    """Return two clients with sessions, one of them over IPv6 outside and with a preshared key."""
    clients = [site.add_client(), site.add_client(preshared_key=bytes(range(32)))]
    site.server.start()
    for client, ipv6 in zip(clients, (False, True), strict=True):
        client.connect(ipv6=ipv6)
        ping(site.lab, client.namespace, Site.SERVER4, 2)
    return clients


def knock_at_a_closed_port(client: Client) -> None:
    """Provoke port-unreachable errors in both families, to prove that the captures see them."""
    for family, address in ((socket.AF_INET, client.server4), (socket.AF_INET6, client.server6)):
        with client.namespace.entered(), socket.socket(family, socket.SOCK_DGRAM) as knocking:
            knocking.sendto(b"?", (address, PORT + 1))


def test_twenty_reloads_lose_no_packet_of_kernel_traffic(
    site: Site, record_property: Callable[[str, object], None]
) -> None:
    clients = connect_all(site)
    first, second = clients
    server = site.server
    pids, footprints = [server.status()["pid"]], []
    sent_before = server.status()["totals"]["sent_datagrams"]
    with ExitStack() as stack:
        captures = [stack.enter_context(Capture(client.namespace, client.link, PORT)) for client in clients]
        pings = [
            Ping(site.lab, client.namespace, target, f"ping-{client.number}-{target}")
            for client in clients
            for target in (Site.SERVER4, Site.SERVER6)
        ]
        up = stack.enter_context(Transfer(first.namespace, site.namespace, Site.SERVER4))
        down = stack.enter_context(Transfer(site.namespace, second.namespace, second.inner6))
        handshakes = [client.wireguard.latest_handshake() for client in clients]
        assert all(handshakes)
        wait_for_replies(pings, 10)
        for _ in range(GENERATIONS):
            pids.append(server.replace()["pid"])
            wait_for_replies(pings, 5)
            footprints.append(Footprint.of(pids[-1]))
        wait_for_replies(pings, 50)
        up.assert_intact()
        down.assert_intact()
        results = [pinging.stop() for pinging in pings]
        assert [client.wireguard.latest_handshake() for client in clients] == handshakes

        def all_seen() -> bool:
            sent: int = server.status()["totals"]["sent_datagrams"] - sent_before
            return sum(len(capture.datagrams) for capture in captures) == sent

        wait_for("the captures to have seen all that the server says it sent", all_seen)
        assert [capture.port_unreachables for capture in captures] == [0, 0]
        for client in clients:
            knock_at_a_closed_port(client)
        for capture in captures:
            capture.stop()

    pairs = [pair for capture in captures for pair in transport_pairs(capture.datagrams)]
    assert_no_nonce_twice(pairs, at_least=sum(result.transmitted for result in results) // 2)
    for result in results:
        assert (result.lost, result.duplicated, result.errors) == ((), (), ())
    assert [capture.port_unreachables for capture in captures] == [2, 2]
    for name, transfer in (("up", up), ("down", down)):
        record_property(f"tcp_{name}_bytes", transfer.sent_bytes)
        record_property(f"tcp_{name}_longest_gap_ms", round(transfer.longest_gap_secs * 1000))
        assert transfer.longest_gap_secs < TCP_GAP_SECS_MAX
    footprints[-1].assert_no_larger_than(footprints[0])
    assert all(is_gone(pid) for pid in pids[:-1])
    assert server.processes() == {pids[-1]}
    totals = server.status()["totals"]
    assert totals["takeovers_succeeded"] == GENERATIONS
    assert totals["handshakes_responder"] == len(clients)

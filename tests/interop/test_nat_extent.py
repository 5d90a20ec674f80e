"""[server.nat]: what is translated, to which address, and which ports reach a client, with the kernel's own traffic."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.traffic.namespaces import Namespace, join, set_addresses
from tests.support.traffic.nftables import handles, rules, tables
from tests.support.traffic.ping import Ping, ping, wait_for_replies
from tests.support.traffic.relay import BEYOND4, BEYOND6, UPLINK4, UPLINK6, World, source_seen
from tests.support.traffic.releases import Release
from tests.support.traffic.server import WAIT_SECS
from tests.support.traffic.shared_site import run
from tests.support.traffic.site import Client, Site
from tests.support.traffic.transfer import Transfer
from tests.support.traffic.udp_flows import Flows

pytestmark = [pytest.mark.handoff, pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "nft")]

EXTRA4, EXTRA6 = "198.51.100.9", "2001:db8:ffff::9"  # further addresses of the server's uplink
SECOND4, SECOND_HOST4 = "203.0.113.1", "203.0.113.2"  # of a second uplink, and of the host there
PORT = 8080
SILENCE_SECS = 0.5  # after which an answer, which takes a millisecond here, does not come


def port_forward(**values: object) -> dict[str, object]:
    return {"protocol": "tcp", "port": PORT, "to": "10.9.0.2:80", **values}


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextmanager
def service(namespace: Namespace, protocol: str, port: int) -> Iterator[list[str]]:
    """Answer every datagram, or byte of a connection, and record the addresses that they come from."""
    sources: list[str] = []
    with namespace.entered():
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        listening = socket.socket(socket.AF_INET6, kind)
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the one before linger
        listening.bind(("::", port))

        def serve_tcp() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted, peer = listening.accept()
                    with accepted:
                        sources.append(peer[0].removeprefix("::ffff:"))
                        accepted.sendall(accepted.recv(1))

        def serve_udp() -> None:
            with contextlib.suppress(OSError):
                while True:
                    data, peer = listening.recvfrom(1)
                    if not data:
                        return
                    sources.append(peer[0].removeprefix("::ffff:"))
                    listening.sendto(data, peer)

        if protocol == "tcp":
            listening.listen()
        thread = threading.Thread(target=serve_tcp if protocol == "tcp" else serve_udp)
        thread.start()
        try:
            yield sources
        finally:
            # It ends both waits: of a connection by an error, of a datagram without one.
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def is_answered(namespace: Namespace, protocol: str, address: str, port: int, wait_secs: float = WAIT_SECS) -> bool:
    """Send a byte; return whether it comes back from where it was sent to. False: refused, or nothing came."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with namespace.entered():
        sending = socket.socket(family_of(address), kind)
    with sending:
        sending.settimeout(wait_secs)
        try:
            sending.connect((address, port))
            sending.send(b"!")
            return sending.recv(1) == b"!"
        except (ConnectionError, TimeoutError):
            return False


def udp_source(client: Namespace, receiver: Namespace, address: str) -> str:
    """Send a datagram from a client to a host; return the source address that the host sees."""
    with receiver.entered():
        receiving = socket.socket(family_of(address), socket.SOCK_DGRAM)
    with client.entered():
        sending = socket.socket(family_of(address), socket.SOCK_DGRAM)
    with receiving, sending:
        receiving.bind((address, 0))
        receiving.settimeout(WAIT_SECS)
        sending.sendto(b"?", receiving.getsockname())
        return str(receiving.recvfrom(1)[1][0])


@pytest.fixture
def second(world: World) -> Client:
    """A second client, connected once the server is started."""
    return world.site.add_client()


def add_second_uplink(world: World) -> Namespace:
    """Join a host by an interface of its own."""
    host = Namespace(world.site.lab.stack)
    join(world.site.namespace, "uplink1", host, "lan0")
    set_addresses(world.site.namespace, "uplink1", [f"{SECOND4}/24"])
    set_addresses(host, "lan0", [f"{SECOND_HOST4}/24"])
    return host


def add_addresses(world: World) -> None:
    set_addresses(
        world.site.namespace,
        "uplink0",
        [f"{UPLINK4}/24", f"{UPLINK6}/64", f"{EXTRA4}/24", f"{EXTRA6}/64"],
    )


# --- What leaves ---


def test_packets_leave_with_the_address_of_snat(world: World) -> None:
    add_addresses(world)
    world.start(nat={"snat": EXTRA4})
    masqueraded = source_seen(world, BEYOND6)
    assert source_seen(world, BEYOND4) == EXTRA4
    (other,) = {UPLINK6, EXTRA6} - {masqueraded}  # which of the two the kernel takes is its own choice
    world.configure(nat={"snat": [other, EXTRA4]})
    world.site.server.replace()
    assert (source_seen(world, BEYOND4), source_seen(world, BEYOND6)) == (EXTRA4, other)


def test_only_the_named_sources_are_translated(world: World, second: Client) -> None:
    world.start(nat={"sources": [f"{world.client.inner4}/32", f"{second.inner6}/128"]})
    world.connect(second)
    for client, sources in ((world.client, (UPLINK4, world.client.inner6)), (second, (second.inner4, UPLINK6))):
        found = tuple(udp_source(client.namespace, world.beyond, address) for address in (BEYOND4, BEYOND6))
        assert found == sources


def test_packets_are_translated_only_by_the_named_interface(world: World) -> None:
    host = add_second_uplink(world)
    world.start(nat={"interface": "uplink0"})
    world.reach_also(f"{SECOND_HOST4}/32")
    assert udp_source(world.client.namespace, world.beyond, BEYOND4) == UPLINK4
    assert udp_source(world.client.namespace, host, SECOND_HOST4) == world.client.inner4
    world.configure(nat={"interface": "uplink1"})
    world.site.server.replace()
    assert udp_source(world.client.namespace, world.beyond, BEYOND4) == world.client.inner4
    assert udp_source(world.client.namespace, host, SECOND_HOST4) == SECOND4


def test_a_server_whose_address_is_a_host_translates_what_its_peers_send(world: World) -> None:
    world.start(address=[f"{Site.SERVER4}/32", f"{Site.SERVER6}/128"])
    assert (source_seen(world, BEYOND4), source_seen(world, BEYOND6)) == (UPLINK4, UPLINK6)


def test_sources_of_every_address_leave_the_traffic_of_other_interfaces_alone(world: World) -> None:
    host = add_second_uplink(world)
    for namespace, via in ((host, SECOND4), (world.beyond, UPLINK4)):
        run(namespace, "ip", "route", "add", "default", "via", via)
    world.start(nat={"sources": ["0.0.0.0/0"]})
    assert udp_source(world.client.namespace, world.beyond, BEYOND4) == UPLINK4
    assert udp_source(host, world.beyond, BEYOND4) == SECOND_HOST4


# --- What is forwarded in ---


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(("address", "to"), [(UPLINK4, "10.9.0.2:80"), (UPLINK6, "[fd09::2]:80")])
def test_a_forwarded_port_reaches_the_client_with_the_address_of_who_sends(
    world: World, protocol: str, address: str, to: str
) -> None:
    world.start(nat={"forward": [port_forward(protocol=protocol, to=to)]})
    ping(world.site.lab, world.client.namespace, Site.SERVER4, 2)
    with service(world.client.namespace, protocol, 80) as sources:
        assert is_answered(world.beyond, protocol, address, PORT)
        assert sources == [BEYOND6 if ":" in address else BEYOND4]
        other = {"tcp": "udp", "udp": "tcp"}[protocol]
        assert not is_answered(world.beyond, other, address, PORT, SILENCE_SECS)
        assert not is_answered(world.beyond, protocol, address, PORT + 1, SILENCE_SECS)


def test_a_range_of_both_protocols_keeps_its_ports(world: World) -> None:
    world.start(nat={"forward": [port_forward(protocol="both", port="8000-8002", to="10.9.0.2")]})
    ping(world.site.lab, world.client.namespace, Site.SERVER4, 2)
    for protocol in ("tcp", "udp"):
        for port in (8000, 8002):
            with service(world.client.namespace, protocol, port) as sources:
                assert is_answered(world.beyond, protocol, UPLINK4, port)
            assert sources == [BEYOND4]
        for port in (7999, 8003):
            with service(world.client.namespace, protocol, port) as sources:
                assert not is_answered(world.beyond, protocol, UPLINK4, port, SILENCE_SECS)
            assert sources == []


def test_a_masqueraded_forward_reaches_a_client_without_a_default_route(world: World) -> None:
    world.start(nat={"forward": [port_forward(masquerade=True), port_forward(protocol="udp", masquerade=True)]})
    world.forget_beyond()
    ping(world.site.lab, world.client.namespace, Site.SERVER4, 2)
    for protocol in ("tcp", "udp"):
        with service(world.client.namespace, protocol, 80) as sources:
            assert is_answered(world.beyond, protocol, UPLINK4, PORT)
        assert sources == [Site.SERVER4]
    with service(world.client.namespace, "udp", 80) as sources:  # not forwarded: the client's own name for this port
        assert is_answered(world.site.namespace, "udp", "10.9.0.2", 80)
    assert sources == [Site.SERVER4]


def test_only_what_is_sent_to_this_machine_is_forwarded(world: World, second: Client) -> None:
    """A client's own connections to the same port of others are its own; to the server's address they are not."""
    world.start(nat={"forward": [port_forward()]})
    world.connect(second)
    for client in (world.client, second):
        ping(world.site.lab, client.namespace, Site.SERVER4, 2)
    with service(world.client.namespace, "tcp", 80) as inside, service(world.beyond, "tcp", PORT) as outside:
        assert is_answered(second.namespace, "tcp", BEYOND4, PORT)
        assert (inside, outside) == ([], [UPLINK4])
        assert is_answered(second.namespace, "tcp", Site.SERVER4, PORT)
        assert (inside, outside) == ([second.inner4], [UPLINK4])
    world.configure(nat={"forward": [port_forward(address="0.0.0.0/0", interface=world.interface)]})
    world.site.server.replace()
    with service(world.client.namespace, "tcp", 80) as inside, service(world.beyond, "tcp", PORT) as outside:
        assert is_answered(second.namespace, "tcp", BEYOND4, PORT)  # it is caught on its way
        assert (inside, outside) == ([second.inner4], [])
        assert not is_answered(world.beyond, "tcp", UPLINK4, PORT, SILENCE_SECS)


def test_a_forward_is_for_its_interface_and_its_address(world: World) -> None:
    add_addresses(world)
    host = add_second_uplink(world)
    world.start(nat={"forward": [port_forward(address=[EXTRA4]), port_forward(port=81, interface="uplink1")]})
    world.reach_also(f"{SECOND_HOST4}/32")
    ping(world.site.lab, world.client.namespace, Site.SERVER4, 2)
    with service(world.client.namespace, "tcp", 80) as sources:
        assert is_answered(world.beyond, "tcp", EXTRA4, PORT)
        assert not is_answered(world.beyond, "tcp", UPLINK4, PORT, SILENCE_SECS)
        assert is_answered(host, "tcp", SECOND4, 81)
        assert not is_answered(world.beyond, "tcp", EXTRA4, 81, SILENCE_SECS)
    assert sources == [BEYOND4, SECOND_HOST4]


# --- The table ---


def test_the_table_has_exactly_these_rules(world: World) -> None:
    forwards = [
        port_forward(protocol="both", masquerade=True),
        port_forward(port="8000-8010", to="fd09::2", interface="uplink0", address=["2001:db8::/64", EXTRA6]),
    ]
    nat = {"sources": ["10.9.0.0/25", "192.168.7.0/24", "::/0"], "interface": "uplink0", "snat": EXTRA4}
    world.start(nat={**nat, "forward": forwards})
    name = world.interface
    found = rules(world.site.namespace, world.table)
    assert found[found.index("chain postrouting {") :] == [
        "chain postrouting {",
        "type nat hook postrouting priority srcnat; policy accept;",
        "ip daddr 10.9.0.2 tcp dport 80 ct status dnat masquerade",
        "ip daddr 10.9.0.2 udp dport 80 ct status dnat masquerade",
        f'oifname "uplink0" ip saddr 10.9.0.0/25 snat ip to {EXTRA4}',
        f'oifname "uplink0" iifname "{name}" ip saddr 192.168.7.0/24 snat ip to {EXTRA4}',
        f'oifname "uplink0" iifname "{name}" meta nfproto ipv6 masquerade',
        "}",
        "chain prerouting {",
        "type nat hook prerouting priority dstnat; policy accept;",
        f"meta nfproto ipv4 fib daddr type local tcp dport {PORT} dnat ip to 10.9.0.2:80",
        f"meta nfproto ipv4 fib daddr type local udp dport {PORT} dnat ip to 10.9.0.2:80",
        'iifname "uplink0" ip6 daddr 2001:db8::/64 tcp dport 8000-8010 dnat ip6 to fd09::2',
        f'iifname "uplink0" ip6 daddr {EXTRA6} tcp dport 8000-8010 dnat ip6 to fd09::2',
        "}",
        "}",
    ]
    status = world.site.server.status()
    assert (status["nat"], status["nat_rules"]["interface"]) == (True, "uplink0")
    assert f"10.9.0.0/25, 192.168.7.0/24 by uplink0, to {EXTRA4}" in world.site.server.command("status").output


def test_reloads_change_the_extent_under_traffic(world: World) -> None:
    add_addresses(world)
    world.start()
    for address in (BEYOND4, BEYOND6):
        ping(world.site.lab, world.client.namespace, address, 3)
    made = handles(world.site.namespace)
    with ExitStack() as stack:
        client, lab = world.client.namespace, world.site.lab
        pings = [Ping(lab, client, address, f"ping-{address}", interval=0.1) for address in (BEYOND4, BEYOND6)]
        transfers = [stack.enter_context(Transfer(client, world.beyond, address)) for address in (BEYOND4, BEYOND6)]
        flow = stack.enter_context(Flows(client, world.beyond, BEYOND4))
        wait_for_replies(pings, 5)
        for nat in ({"snat": EXTRA4, "forward": [port_forward()]}, True, {"snat": [EXTRA4, EXTRA6]}, True):
            world.configure(nat=nat)
            world.site.server.replace()
            wait_for_replies(pings, 5)
        for transfer in transfers:
            transfer.assert_intact()
        flow.stop()
        results = [pinging.stop() for pinging in pings]
    assert set(flow.sources) == {UPLINK4, EXTRA4}
    assert flow.sources.total() == flow.sent > 100
    for result in results:
        assert (result.lost, result.duplicated, result.errors) == ((), (), ())
    assert set(made) <= set(handles(world.site.namespace)), "the chains stay, so that flows are translated throughout"
    world.configure(nat=False)
    world.site.server.replace()
    assert tables(world.site.namespace) == []


def test_a_port_that_the_tunnel_has_is_refused_before_anything_is_changed(world: World) -> None:
    """The socket keeps its port while `listen` has another one."""
    world.start()
    before, pid = rules(world.site.namespace, world.table), world.site.server.status()["pid"]
    forward = port_forward(protocol="udp", port=51820)
    world.configure(nat={"forward": [forward]}, listen="[::]:51821")
    outcome = world.site.server.reload()
    assert outcome.status in {1, 2}
    assert "server.nat.forward[1].port = 51820: expected no UDP port 51820, which is the tunnel's own" in outcome.errors
    assert world.site.server.status()["pid"] == pid
    assert rules(world.site.namespace, world.table) == before
    ping(world.site.lab, world.client.namespace, BEYOND4, 2)


# --- Releases that know only `true` and `false` ---


def test_an_older_release_refuses_a_table_and_takes_over_with_true(world: World, golden: Release) -> None:
    server, namespace = world.site.server, world.site.namespace
    world.start(nat={"sources": ["10.9.0.2/32"], "forward": [port_forward()]})
    ping(world.site.lab, world.client.namespace, BEYOND4, 2)
    before, pid = rules(namespace, world.table), server.status()["pid"]
    outcome = server.reload(golden.environ())
    assert outcome.status in {1, 2}
    assert "server.nat = {…}: expected true or false" in outcome.errors
    assert server.status()["pid"] == pid
    assert rules(namespace, world.table) == before
    pinging = Ping(world.site.lab, world.client.namespace, BEYOND4, "ping-releases", interval=0.1)
    pinging.wait_for_replies(5)
    world.configure()
    assert server.reload(golden.environ()).status == 0
    assert server.status()["release"] == golden.version
    pinging.wait_for_replies(5)
    assert not any("dnat" in rule or "/32" in rule for rule in rules(namespace, world.table))
    assert any("ip saddr 10.9.0.0/24 masquerade" in rule for rule in rules(namespace, world.table))
    world.configure(nat={"sources": ["10.9.0.2/32"], "forward": [port_forward()]})
    assert server.reload().status == 0
    pinging.wait_for_replies(5)
    assert rules(namespace, world.table) == before
    result = pinging.stop()
    assert (result.lost, result.duplicated, result.errors) == ((), (), ())

"""`nat = true`: a client reaches a host behind the server, which has no route back, while the server is replaced."""

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.traffic.capture import ETH_P_ALL, ETH_P_IP
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.nftables import handles, nft, rules, tables
from tests.support.traffic.ping import Ping, ping, wait_for_replies
from tests.support.traffic.relay import BEYOND4, BEYOND6, UPLINK4, UPLINK6, World, source_seen
from tests.support.traffic.server import Footprint, fault, kill, wait_for
from tests.support.traffic.site import Site
from tests.support.traffic.transfer import Transfer
from tests.support.traffic.udp_flows import Flows
from tests.support.traffic.wireguard_go import INNER_MTU

pytestmark = [pytest.mark.handoff, pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "nft")]

GENERATIONS = 5
PING_INTERVAL_SECS = 0.1
_SYN, _ACK = 0x02, 0x10
_MSS_OPTION = 2

# A firewall of another program, which admits the test's traffic and has no counters that change by themselves.
OTHERS = """
table inet firewall {
	set known { type ipv4_addr; elements = { 192.0.2.200 } }
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr @known drop
	}
}
table ip nat {
	chain postrouting {
		type nat hook postrouting priority srcnat + 10; policy accept;
		ip saddr 192.0.2.200 masquerade
	}
}
"""


def test_packets_to_a_host_beyond_the_server_survive_its_replacement(world: World) -> None:
    world.start()
    for address in (BEYOND4, BEYOND6):
        ping(world.site.lab, world.client.namespace, address, 3)
    before, made = rules(world.site.namespace, world.table), handles(world.site.namespace)
    footprints = []
    with ExitStack() as stack:
        client, lab = world.client.namespace, world.site.lab
        pings = [
            Ping(lab, client, address, f"ping-{address}", interval=PING_INTERVAL_SECS) for address in (BEYOND4, BEYOND6)
        ]
        transfers = [stack.enter_context(Transfer(client, world.beyond, address)) for address in (BEYOND4, BEYOND6)]
        flows = [stack.enter_context(Flows(client, world.beyond, address)) for address in (BEYOND4, BEYOND6)]
        wait_for_replies(pings, 5)
        for _ in range(GENERATIONS):
            pid = world.site.server.replace()["pid"]
            assert rules(world.site.namespace, world.table) == before
            assert handles(world.site.namespace) == made  # the same tables, not new ones
            wait_for_replies(pings, 5)
            footprints.append(Footprint.of(pid))
        wait_for_replies(pings, 10)
        for transfer in transfers:
            transfer.assert_intact()
        for flow, uplink in zip(flows, (UPLINK4, UPLINK6), strict=True):
            flow.stop()
            assert flow.sources == {uplink: flow.sent}
            assert flow.sent > 100 * GENERATIONS
        results = [pinging.stop() for pinging in pings]
    for result in results:
        assert (result.lost, result.duplicated, result.errors) == ((), (), ())
        assert result.transmitted > 5 * GENERATIONS
    footprints[-1].assert_no_larger_than(footprints[0])
    assert world.site.server.status()["totals"]["takeovers_succeeded"] == GENERATIONS


def test_the_nat_table_has_exactly_these_rules(world: World) -> None:
    world.start()
    name = world.site.server.status()["interface"]
    assert rules(world.site.namespace, world.table) == [
        f"table {world.table} {{",
        "flags owner",
        "chain forward {",
        "type filter hook forward priority mangle; policy accept;",
        f'iifname "{name}" tcp flags syn / syn,rst tcp option maxseg size set rt mtu',
        f'oifname "{name}" tcp flags syn / syn,rst tcp option maxseg size set rt mtu',
        "}",
        "chain postrouting {",
        "type nat hook postrouting priority srcnat; policy accept;",
        f'oifname != "{name}" oifname != "lo" ip saddr 10.9.0.0/24 masquerade',
        f'oifname != "{name}" oifname != "lo" ip6 saddr fd09::/64 masquerade',
        "}",
        "}",
    ]
    assert "nat" in world.site.server.command("status").output.splitlines()[2]


def test_only_packets_that_leave_the_tunnel_are_translated(world: World) -> None:
    world.start()
    assert (source_seen(world, BEYOND4), source_seen(world, BEYOND6)) == (UPLINK4, UPLINK6)
    inside = World(world.site, world.client, world.site.namespace)  # to the server itself
    assert source_seen(inside, Site.SERVER4) == world.client.inner4
    assert source_seen(inside, Site.SERVER6) == world.client.inner6


# --- MSS ---


@contextmanager
def syns_at(namespace: Namespace, name: str) -> Iterator[list[tuple[int, int]]]:
    """Record (flags, MSS) of each TCP SYN on an interface; the list is complete at exit."""
    found: list[tuple[int, int]] = []
    with namespace.entered():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    with raw:
        raw.bind((name, ETH_P_ALL))
        raw.settimeout(0.2)
        yield found
        while True:
            try:
                packet, address = raw.recvfrom(2048)
            except TimeoutError:
                return
            start, kind = (20, packet[9]) if address[1] == ETH_P_IP else (40, packet[6])
            if kind == socket.IPPROTO_TCP and packet[start + 13] & _SYN:
                found.append((packet[start + 13], _mss(packet[start:])))


def _mss(segment: bytes) -> int:
    options = segment[20 : (segment[12] >> 4) * 4]
    while options:
        if options[0] == _MSS_OPTION:
            return int(struct.unpack_from(">H", options, 2)[0])
        options = options[1:] if options[0] == 1 else options[options[1] :]
    return 0


@pytest.mark.parametrize(("address", "headers"), [(BEYOND4, 40), (BEYOND6, 60)])
def test_the_mss_fits_the_tunnel_in_both_directions(world: World, address: str, headers: int) -> None:
    mtu = 1300  # less than the client believes, and than the network beyond has
    world.start(mtu=mtu)
    with (
        syns_at(world.client.namespace, world.client.wireguard.name) as at_client,
        syns_at(world.beyond, "lan0") as at_host,
    ):
        source_seen(world, address)
    assert at_client == [(_SYN, INNER_MTU - headers), (_SYN | _ACK, mtu - headers)]
    assert at_host == [(_SYN, mtu - headers), (_SYN | _ACK, 1500 - headers)]


# --- The life of the table ---


def test_tables_of_other_programs_are_kept(world: World) -> None:
    namespace, server = world.site.namespace, world.site.server
    nft(namespace, "-f", "-", text=OTHERS)
    before = nft(namespace, "list", "ruleset")
    world.start()
    ping(world.site.lab, world.client.namespace, BEYOND4, 3)
    server.replace()
    assert tables(namespace) == ["inet firewall", "ip nat", world.table]
    world.configure(nat=False)
    server.replace()
    assert nft(namespace, "list", "ruleset") == before
    world.configure()
    server.replace()
    server.stop()
    assert nft(namespace, "list", "ruleset") == before


def test_the_nat_table_ends_with_a_server_without_holder(world: World) -> None:
    world.start()
    world.site.server.replace()
    nft(world.site.namespace, "flush", "ruleset")  # no other process can remove the table
    assert tables(world.site.namespace) == [world.table]
    pid = world.site.server.status()["pid"]
    kill(pid)
    world.site.lab.wait_ended(pid)
    wait_for("the table to be gone", lambda: not tables(world.site.namespace))


def test_reloads_switch_nat_on_change_it_and_switch_it_off(world: World) -> None:
    namespace, server = world.site.namespace, world.site.server
    world.start(nat=False)
    ping(world.site.lab, world.client.namespace, Site.SERVER4, 2)
    assert tables(namespace) == []
    world.configure()
    server.replace()
    ping(world.site.lab, world.client.namespace, BEYOND4, 2)
    world.configure(address=["10.9.0.1/24"], mtu=1280)
    server.replace()
    assert not any("ip6" in rule for rule in rules(namespace, world.table))
    ping(world.site.lab, world.client.namespace, BEYOND4, 2)
    world.configure(nat=False)
    assert server.reload().status == 0
    assert tables(namespace) == []  # at once, not with the predecessor's end


def test_the_nat_table_follows_a_renamed_interface(world: World) -> None:
    world.start()
    before = world.table
    world.configure(interface="other0")
    world.site.server.replace()
    assert world.table == "inet oxidize-other0" != before
    assert tables(world.site.namespace) == [world.table]
    ping(world.site.lab, world.client.namespace, BEYOND4, 2)


# --- What hinders it ---


def test_a_missing_sysctl_is_named_with_its_remedy(world: World) -> None:
    world.forward(v4=0, v6=0)
    world.configure()
    outcome = world.site.server.command("server")
    assert outcome.status == 2
    for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        assert f"the sysctl {name} is '0'" in outcome.errors
        assert f"`sysctl -w {name}=1`" in outcome.errors
    assert tables(world.site.namespace) == []
    world.forward(v6=0)
    world.configure(address=["10.9.0.1/24"])  # what is not needed is not asked for
    world.site.server.start()


def test_a_reload_that_cannot_apply_nat_leaves_the_predecessor_serving(world: World) -> None:
    world.start()
    ping(world.site.lab, world.client.namespace, BEYOND4, 2)
    before, pid = rules(world.site.namespace, world.table), world.site.server.status()["pid"]
    world.forward(v6=0)
    world.configure(address=["10.9.0.1/24", "10.8.0.1/24", "fd09::1/64"])
    outcome = world.site.server.reload()
    assert outcome.status in {1, 2}
    assert "net.ipv6.conf.all.forwarding" in outcome.errors
    assert world.site.server.status()["pid"] == pid
    assert rules(world.site.namespace, world.table) == before
    ping(world.site.lab, world.client.namespace, BEYOND4, 2)


def test_a_successor_that_dies_before_it_owns_leaves_the_nat_rules_unchanged(world: World) -> None:
    world.start()
    ping(world.site.lab, world.client.namespace, BEYOND4, 2)
    before, pid = rules(world.site.namespace, world.table), world.site.server.status()["pid"]
    world.configure(address=["10.9.0.1/24", "10.8.0.1/24", "fd09::1/64"])
    where = "oxidize.runtime.succession:Succession._own"
    assert world.site.server.reload(fault(where, "exit", world.site.lab.folder / "mark")).status == 1
    assert world.site.server.status()["pid"] == pid
    assert rules(world.site.namespace, world.table) == before
    ping(world.site.lab, world.client.namespace, BEYOND4, 2)


def test_a_successor_serves_even_if_it_cannot_change_the_nat_table(world: World) -> None:
    world.start()
    ping(world.site.lab, world.client.namespace, BEYOND4, 2)
    before = rules(world.site.namespace, world.table)
    outcome = world.site.server.reload(fault("oxidize.hostnet.nat:Nat.apply", "raise", world.site.lab.folder / "mark"))
    assert outcome.status == 0
    assert "serving without all of its settings" in outcome.errors
    assert rules(world.site.namespace, world.table) == before
    ping(world.site.lab, world.client.namespace, BEYOND4, 2)


def test_a_foreign_table_with_the_name_of_the_nat_table_is_kept(world: World) -> None:
    world.start(nat=False)
    table = world.table
    nft(world.site.namespace, "add", "table", *table.split())
    world.configure()
    outcome = world.site.server.reload()
    assert outcome.status in {1, 2}
    assert f"`nft delete table {table}`" in outcome.errors
    assert tables(world.site.namespace) == [table]
    ping(world.site.lab, world.client.namespace, Site.SERVER4, 2)


def test_a_nat_table_that_another_process_owns_is_kept(world: World) -> None:
    world.start()
    before = rules(world.site.namespace, world.table)
    world.configure(takeover_socket=str(world.site.lab.folder / "second.sock"), listen="[::]:51821", metrics_listen="")
    outcome = world.site.server.command("server")
    assert outcome.status == 2
    assert "another process" in outcome.errors
    assert rules(world.site.namespace, world.table) == before

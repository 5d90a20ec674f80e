"""A client that routes all traffic through its tunnel to Debian's wireguard-go: routes, rules and leftovers."""

import os
import secrets
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from oxidize.config.values import FWMARK_DEFAULT
from oxidize.hostnet.netlink import ROUTE_PROTOCOL
from oxidize.hostnet.policy_routing import RULE_PRIORITY
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.oxidize_client import OxidizeClient
from tests.support.traffic.ping import ping
from tests.support.traffic.routed_client import EVERYTHING, FAR4, FAR6, NEAR4, NEAR6, PORT, SERVER4, SERVER6, Place
from tests.support.traffic.server import Lab, is_gone, wait_for

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "ip")]

ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
ICMPV6 = 58
NEIGHBOUR_DISCOVERY = range(133, 138)  # RFC 4861


class Seen:
    """The IP packets that passed an interface: (IP protocol, source, destination)."""

    def __init__(self) -> None:
        self.packets: list[tuple[int, str, str]] = []

    def look(self, protocol: int, packet: bytes) -> None:
        if protocol == ETH_P_IP:
            source, destination = (socket.inet_ntop(socket.AF_INET, packet[at : at + 4]) for at in (12, 16))
            self.packets.append((packet[9], source, destination))
        elif protocol == ETH_P_IPV6 and not (packet[6] == ICMPV6 and packet[40] in NEIGHBOUR_DISCOVERY):
            source, destination = (socket.inet_ntop(socket.AF_INET6, packet[at : at + 16]) for at in (8, 24))
            if not packet[24:40].startswith(b"\xff"):  # multicast: reports of listeners, which the kernel sends
                self.packets.append((packet[6], source, destination))

    def conversations(self) -> set[tuple[int, frozenset[str]]]:
        return {(protocol, frozenset((source, destination))) for protocol, source, destination in self.packets}


@contextmanager
def watching(namespace: Namespace, name: str) -> Iterator[Seen]:
    """Record all packets of an interface while entered."""
    seen, ending = Seen(), threading.Event()
    with namespace.entered():
        watcher = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        watcher.bind((name, ETH_P_ALL))
    watcher.settimeout(0.1)

    def run() -> None:
        while True:
            try:
                packet, address = watcher.recvfrom(2_000)
            except TimeoutError:
                if ending.is_set():
                    return
                continue
            seen.look(address[1], packet)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield seen
    finally:
        ending.set()
        thread.join()
        watcher.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


# --- What goes where ---


@pytest.mark.parametrize("ipv6", [False, True], ids=["over IPv4", "over IPv6"])
@pytest.mark.parametrize("rp_filter", [0, 1], ids=["no rp_filter", "strict rp_filter"])
def test_all_traffic_except_to_the_server_goes_through_the_tunnel(lab: Lab, ipv6: bool, rp_filter: int) -> None:
    place = Place(lab, ipv6=ipv6)
    for name in ("all", "up0"):
        place.sysctl(f"ipv4/conf/{name}/rp_filter", rp_filter)
    place.client.start()
    place.assert_full()
    with watching(place.here, "up0") as up, watching(place.here, "lan0") as lan:
        for target in (FAR4, FAR6):
            ping(lab, place.here, target, 10)
        for target in (NEAR4, NEAR6):
            ping(lab, place.here, target, 2)
        ping(lab, place.here, "192.0.2.1", 2)  # the router, which is on the link
    outer = (17, frozenset(("2001:db8:1::2", SERVER6) if ipv6 else ("192.0.2.2", SERVER4)))
    assert up.conversations() == {outer, (1, frozenset(("192.0.2.1", "192.0.2.2")))}
    assert lan.conversations() == {(1, frozenset((NEAR4, "192.168.7.2"))), (ICMPV6, frozenset((NEAR6, "fd07::2")))}
    # No loop: 20 requests and their replies, a handshake and a few keepalives.
    assert len([packet for packet in up.packets if packet[0] == 17]) < 60
    assert place.client.status()["totals"]["sent_datagrams"] < 30
    place.client.stop()


def test_only_the_family_with_a_default_route_is_rerouted(lab: Lab) -> None:
    place = Place(lab, allowed_ips=["0.0.0.0/0", "fd09::/64"])
    place.client.start()
    assert (place.rules(4), place.rules(6)) == (place.our_rules(), [])
    with watching(place.here, "up0") as up:
        ping(lab, place.here, FAR4, 2)
        ping(lab, place.here, SERVER6, 2)
    assert up.conversations() == {
        (17, frozenset(("192.0.2.2", SERVER4))),
        (ICMPV6, frozenset(("2001:db8:1::2", SERVER6))),
    }


def test_forwarded_traffic_of_any_port_goes_through_the_tunnel(lab: Lab) -> None:
    place = Place(lab)
    place.client.start()
    ping(lab, place.here, FAR4, 2)
    place.sysctl("ipv4/ip_forward", 1)
    with place.near.entered():
        subprocess.run(["ip", "route", "add", "default", "via", "192.168.7.2"], check=True)
    before = place.client.status()["totals"]["sent_packets"]
    with watching(place.here, "up0") as up, place.near.entered(), socket.socket(type=socket.SOCK_DGRAM) as neighbour:
        neighbour.bind(("", place.client.port))
        for _ in range(5):
            neighbour.sendto(b"?", (FAR4, 9))
        wait_for("all of it", lambda: place.client.status()["totals"]["sent_packets"] >= before + 5)
    assert up.conversations() == {(17, frozenset(("192.0.2.2", SERVER4)))}


# --- When it ends ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_client_leaves_no_rule_or_route_behind(lab: Lab, number: signal.Signals) -> None:
    place = Place(lab)
    place.client.start()
    place.assert_full()
    (guard,) = place.guards()
    place.client.stop(number)
    if number != signal.SIGKILL:
        assert place.rules(4) == place.rules(6) == []  # at once: not by the guard
    place.wait_bare()
    wait_for("the guard to end", lambda: is_gone(guard) or lab.wait_ended(guard) == 0)
    ping(lab, place.here, SERVER4, 2)


def test_the_cleanup_guard_outlives_the_generation_that_started_it(lab: Lab) -> None:
    place = Place(lab)
    place.client.start()
    ping(lab, place.here, FAR4, 2)
    rules, guards = place.rules(), place.guards()
    with watching(place.here, "up0") as up:
        for _ in range(2):
            place.client.replace()
            assert place.rules() == rules
            ping(lab, place.here, FAR4, 3)
    assert up.conversations() == {(17, frozenset(("192.0.2.2", SERVER4)))}
    assert place.guards() == guards
    assert "change=" not in place.client.log.split("took over")[-1]
    place.client.kill()
    place.wait_bare()
    wait_for("the guard to end", lambda: not place.guards())


def test_the_cleanup_guard_keeps_what_the_next_client_has_adopted(lab: Lab) -> None:
    place = Place(lab)
    place.client.start()
    (guard,) = place.guards()
    os.kill(guard, signal.SIGSTOP)
    place.client.kill()
    assert len(place.rules()) == 4  # still installed
    place.client.start()
    place.assert_full()
    os.kill(guard, signal.SIGCONT)
    assert lab.wait_ended(guard) == 0
    place.assert_full()
    ping(lab, place.here, FAR4, 2)
    place.client.stop()
    place.wait_bare()


def test_leftovers_of_a_former_client_are_adopted_or_removed(lab: Lab) -> None:
    place = Place(lab)
    proto = ("proto", str(ROUTE_PROTOCOL))
    for family in ("-4", "-6"):
        main = ("lookup", "main", "suppress_prefixlength", "0", "pref", str(RULE_PRIORITY + 2), *proto)
        place.ip(family, "rule", "add", *main)
        place.ip(family, "rule", "add", "not", "fwmark", "4711", "lookup", "4711", "pref", "30003", *proto)
    place.client.start()
    place.assert_full()
    place.client.stop()
    place.wait_bare()


# --- Reloads ---


def test_routing_rules_follow_a_reload(lab: Lab) -> None:
    place = Place(lab, allowed_ips=["10.9.0.0/24", FAR4])
    place.client.start()
    assert place.rules(4) == place.rules(6) == []
    assert len(place.guards()) == 1  # for the packet filter
    ping(lab, place.here, FAR4, 2)

    place.client.write_config(allowed_ips=EVERYTHING)
    place.client.replace()
    place.assert_full()
    ping(lab, place.here, FAR6, 2)

    place.client.write_config(allowed_ips=EVERYTHING, fwmark=4711)
    with watching(place.here, "up0") as up:
        place.client.replace()
        ping(lab, place.here, FAR6, 2)
    assert len(up.packets) < 20
    assert place.rules(6) == [*place.our_rules(6)[:2], "not from all fwmark 0x1267 lookup 4711 proto 151"]

    other = f"ox{secrets.token_hex(5)}"
    place.client.write_config(allowed_ips=EVERYTHING, interface=other)
    place.client.replace()
    place.assert_full()
    assert f"default dev {other} proto" in place.ip("route", "show", "table", str(FWMARK_DEFAULT))
    ping(lab, place.here, FAR4, 2)

    place.client.write_config(allowed_ips=["::/0"], interface=other)
    place.client.replace()
    assert (place.rules(4), place.rules(6)) == ([], place.our_rules(6))
    place.client.write_config(network="userspace", allowed_ips=["10.9.0.1/32"])
    place.client.replace()
    place.wait_bare()


def test_a_failed_reload_keeps_the_routing(lab: Lab) -> None:
    place = Place(lab, allowed_ips=["0.0.0.0/0"])
    place.client.start()
    rules = place.rules()
    foreign = ("not", "fwmark", "51820", "lookup", "51820")
    place.ip("-6", "rule", "add", *foreign)
    place.client.write_config(allowed_ips=EVERYTHING)
    outcome = place.client.reload()
    assert outcome.status == 1
    assert "IPv6: another program sends all packets into a tunnel of its own" in outcome.errors
    assert "still serves" in outcome.errors
    assert place.rules() == rules
    ping(lab, place.here, FAR4, 2)
    place.client.write_config(allowed_ips=["0.0.0.0/0"])
    place.client.replace()
    place.client.stop()
    assert (place.rules(4), place.rules(6)) == ([], ["not from all fwmark 0xca6c lookup 51820"])


# --- Other programs ---


def test_routing_of_other_programs_is_kept(lab: Lab) -> None:
    place = Place(lab)
    place.ip("rule", "add", "from", "10.77.0.0/16", "lookup", "77")
    place.ip("route", "add", "10.78.0.0/16", "dev", "lan0", "table", "77")
    theirs = place.rules()
    place.client.start()
    place.client.replace()
    assert place.rules() == [*place.our_rules(), *theirs]
    place.client.kill()
    wait_for("our rules to be gone", lambda: place.rules() == theirs)
    assert "10.78.0.0/16" in place.ip("route", "show", "table", "77")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("rule", "add", "not", "fwmark", "51820", "lookup", "51820"), "end that tunnel (wg-quick down)"),
        (("rule", "add", "fwmark", str(FWMARK_DEFAULT), "lookup", "main"), "choose another fwmark"),
        (
            ("route", "add", "default", "dev", "lan0", "table", str(FWMARK_DEFAULT)),
            "interface lan0 has a route in table",
        ),
    ],
    ids=["a full tunnel", "the mark", "the table"],
)
def test_conflicting_routing_of_another_program_is_an_error_before_any_change(
    lab: Lab, command: tuple[str, ...], said: str
) -> None:
    place = Place(lab)
    place.ip(*command)
    rules = place.rules()
    assert said in place.client.start_in_vain()
    assert place.rules() == rules
    assert place.interface not in place.ip("link")
    place.client.write_config(allowed_ips=["10.9.0.0/24"])
    place.client.start()  # nothing of that matters without a default route
    place.client.stop()
    assert place.rules() == rules


def test_a_second_client_with_a_default_route_is_refused(lab: Lab) -> None:
    place = Place(lab)
    place.client.start()
    second = OxidizeClient(
        lab,
        f"{SERVER4}:{PORT}",
        place.server.identity.public,
        address=["10.8.0.2/24"],
        allowed_ips=["0.0.0.0/0"],
        name="second",
        inside=place.here.entered,
        interface=f"ox{secrets.token_hex(5)}",
    )
    assert "by another tunnel of Oxidize" in second.start_in_vain()
    second.write_config(allowed_ips=["10.8.0.0/24"])
    second.start()
    second.stop()
    place.assert_full()
    ping(lab, place.here, FAR4, 2)

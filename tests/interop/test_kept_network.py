"""What another program takes away from a server's or a client's network is put back, while traffic goes on.

The disturbances are those of network managers: a link that goes down and up, flushed addresses, rules and tables, a
changed MTU.
"""

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from oxidize.config.values import FWMARK_DEFAULT
from oxidize.hostnet.policy_routing import RULE_PRIORITY
from tests.support.traffic.namespaces import Namespace
from tests.support.traffic.ping import Ping, ping, wait_for_replies
from tests.support.traffic.routed_client import FAR4, FAR6, Place
from tests.support.traffic.server import Lab, wait_for
from tests.support.traffic.site import Site

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "ip")]

_OUR_RULES = range(RULE_PRIORITY + 1, RULE_PRIORITY + 4)
SITE4, SITE6 = "198.51.100.0/24", "fd77::/48"
DISTURBANCES = {
    "down and up": ("link set {name} down", "link set {name} up"),
    "down": ("link set {name} down",),
    "addresses flushed": ("addr flush dev {name}",),
    "routes flushed": ("route flush dev {name} proto 151", "-6 route flush dev {name} proto 151"),
    "another MTU": ("link set {name} mtu 1280",),
    "a short queue": ("link set {name} txqueuelen 10",),
    "longer bursts": ("link set {name} gso_max_segs 64",),
    "an address of its own": ("addr add 10.77.0.1/24 dev {name}",),
}


def ip(namespace: Namespace, *arguments: str) -> str:
    with namespace.entered():
        return subprocess.run(["ip", *arguments], capture_output=True, check=True, text=True).stdout


def state_of(namespace: Namespace, name: str) -> tuple[object, ...]:
    """Return state, MTU, queue, segments, addresses and managed routes of an interface."""
    (link,) = json.loads(ip(namespace, "-j", "-d", "addr", "show", "dev", name))
    addresses = {
        f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"] if not each["local"].startswith("fe80:")
    }
    routes = {
        each["dst"]
        for family in ("-4", "-6")
        for each in json.loads(ip(namespace, "-j", family, "route", "show", "dev", name, "proto", "151") or "[]")
    }
    return "UP" in link["flags"], link["mtu"], link["txqlen"], link["gso_max_segs"], addresses, routes


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


@pytest.mark.parametrize("commands", DISTURBANCES.values(), ids=list(DISTURBANCES))
def test_a_server_puts_back_whatever_is_taken_from_its_interface(site: Site, commands: Sequence[str]) -> None:
    client = site.add_client()
    (table,) = site.server.peers
    site.server.peers[:] = [replace(table, allowed_ips=(*table.allowed_ips, SITE4, SITE6))]
    site.server.write_config()
    site.server.start()
    client.connect()
    pings = [Ping(site.lab, client.namespace, target, f"ping{target}") for target in (Site.SERVER4, Site.SERVER6)]
    wait_for_replies(pings, 5)
    name = site.server.status()["interface"]
    before = state_of(site.namespace, name)
    assert before[5] == {SITE4, SITE6}
    for command in commands:
        ip(site.namespace, *command.format(name=name).split())
    wait_for("a repair", lambda: site.server.status()["totals"]["network_repairs"] or None)
    wait_for("the state before", lambda: state_of(site.namespace, name) == before or None)
    wait_for_replies(pings, 5)
    status = site.server.status()
    assert (status["state"], status["network_missing"]) == ("healthy", [])
    assert status["totals"]["handshakes_responder"] == 1
    assert site.server.log_path.read_text().count("put back what was missing") == status["totals"]["network_repairs"]
    for each in pings:
        each.stop()


def test_a_reload_puts_back_what_was_taken_while_nobody_looked(site: Site) -> None:
    client = site.add_client()
    pid = site.server.start()
    client.connect()
    ping(site.lab, client.namespace, Site.SERVER4)
    name = site.server.status()["interface"]
    before = state_of(site.namespace, name)
    subprocess.run(["kill", "-STOP", str(pid)], check=True)
    ip(site.namespace, "addr", "flush", "dev", name)
    subprocess.run(["kill", "-CONT", str(pid)], check=True)
    assert site.server.reload().status == 0
    assert state_of(site.namespace, name) == before
    ping(site.lab, client.namespace, Site.SERVER4)


def test_what_cannot_be_put_back_is_neither_healthy_nor_forgotten(site: Site) -> None:
    site.add_client()
    site.server.start()
    name = site.server.status()["interface"]
    with site.namespace.entered():
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    wait_for("the state", lambda: site.server.status()["state"] == "degraded" or None)
    (missing,) = site.server.status()["network_missing"]
    assert "disable_ipv6" in missing
    assert _health(site) == 503
    with site.namespace.entered():
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("0")
    wait_for("the state", lambda: site.server.status()["state"] == "healthy" or None)
    assert _health(site) == 200


def _health(site: Site) -> int:
    with site.namespace.entered():
        try:
            with urllib.request.urlopen("http://127.0.0.1:9090/health", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


TUNNEL = {
    **{name: DISTURBANCES[name] for name in ("down and up", "addresses flushed")},
    "table flushed": (f"route flush table {FWMARK_DEFAULT}", f"-6 route flush table {FWMARK_DEFAULT}"),
    "rules removed": tuple(f"{family} rule del pref {number}" for family in ("-4", "-6") for number in _OUR_RULES),
}


@pytest.mark.parametrize("commands", TUNNEL.values(), ids=list(TUNNEL))
def test_a_full_tunnel_stays_full_whatever_is_taken_from_it(lab: Lab, commands: Sequence[str]) -> None:
    place = Place(lab)
    place.client.start()
    pings = [Ping(lab, place.here, target, f"ping{target}") for target in (FAR4, FAR6)]
    wait_for_replies(pings, 5)
    before = state_of(place.here, place.interface)
    for command in commands:
        place.ip(*command.format(name=place.interface).split())
    wait_for("a repair", lambda: place.client.status()["totals"]["network_repairs"] or None)
    wait_for("the state before", lambda: state_of(place.here, place.interface) == before or None)
    wait_for("the rules of IPv4", lambda: place.rules(4) == place.our_rules(4) or None)
    wait_for("the rules of IPv6", lambda: place.rules(6) == place.our_rules(6) or None)
    wait_for("the route of IPv4", lambda: place.interface in place.ip("route", "get", FAR4) or None)
    wait_for("the route of IPv6", lambda: place.interface in place.ip("route", "get", FAR6) or None)
    wait_for_replies(pings, 5)
    assert place.client.status()["connection"]["state"] == "connected"
    for each in pings:
        each.stop()
    place.client.stop()

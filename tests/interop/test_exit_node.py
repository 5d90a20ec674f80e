"""A server whose peer is the way out: the machine's traffic goes through that peer, the tunnel's own packets do not.

The peer is wireguard-go behind a router (`routed_client.Place`), where a client of these tests has its server.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxidize.config.values import FWMARK_DEFAULT
from oxidize.hostnet.netlink import ROUTE_PROTOCOL
from tests.support.traffic.ping import Ping, ping
from tests.support.traffic.routed_client import EVERYTHING, FAR4, FAR6, NEAR4, PORT, SERVER4, Place
from tests.support.traffic.server import Identity, Lab, PeerTable, Server, kill, wait_for

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "ip")]

LISTEN = 51_821


class Exit:
    """The server, in the place of a client, and its peer."""

    def __init__(self, lab: Lab, *, metric: bool) -> None:
        self.place = Place(lab)
        place = self.place
        if metric:
            place.ip("route", "del", "default")
            place.ip("route", "add", "default", "via", "192.0.2.1", "metric", "100")
        self.defaults = self.default_routes()
        way_out = place.server.identity.public
        self.server = Server(
            lab,
            [
                PeerTable("exit", way_out, ("10.9.0.1/32", *EVERYTHING), endpoint=f"{SERVER4}:{PORT}"),
                PeerTable("laptop", Identity.make().public, ("10.9.0.3/32",)),
            ],
            listen=f"[::]:{LISTEN}",
            network="tun",
            address=["10.9.0.2/24", "fd09::2/64"],
            interface=place.interface,
            inside=place.here.entered,
        )
        self.server.write_config(drain_timeout_secs=0)
        place.server.set_peer(self.server.identity.public, "10.9.0.2/32,fd09::2/128")

    def default_routes(self) -> str:
        """Return the default routes of the main table."""
        return self.place.ip("route", "show", "default") + self.place.ip("-6", "route", "show", "default")

    def rules(self) -> tuple[bool, bool]:
        """Return whether there are rules of this program, of IPv4 and of IPv6."""
        found = [any(f"proto {ROUTE_PROTOCOL}" in rule for rule in self.place.rules(version)) for version in (4, 6)]
        return found[0], found[1]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


@pytest.mark.parametrize("metric", [False, True], ids=["no metric", "metric 100"])
def test_a_peer_is_the_way_out_through_reload_and_crash_and_no_longer_after_a_stop(lab: Lab, metric: bool) -> None:
    way = Exit(lab, metric=metric)
    place, server = way.place, way.server
    for name in ("all", "up0"):
        place.sysctl(f"ipv4/conf/{name}/rp_filter", 1)
    server.start()
    assert way.rules() == (True, True)
    for target in (FAR4, FAR6, NEAR4):
        ping(lab, place.here, target, 3)
    assert f"fwmark {FWMARK_DEFAULT:#x}" in "".join(place.rules())
    pinging = Ping(lab, place.here, FAR4, "through-the-exit")
    pinging.wait_for_replies(5)
    server.replace()
    pinging.wait_for_replies(5)
    assert pinging.stop().lost == ()
    assert way.defaults == way.default_routes()  # the machine's own are as they were
    # Some other program takes a rule away.
    place.ip("rule", "del", "pref", "30003")
    wait_for("the rule", lambda: "30003:" in place.ip("rule"))
    pid = server.status()["pid"]
    kill(pid, signal.SIGTERM)
    assert lab.wait_ended(pid) == 0
    place.wait_bare()
    assert way.defaults == way.default_routes()


def test_the_rules_go_with_a_process_that_is_killed_and_with_the_default_route(lab: Lab) -> None:
    way = Exit(lab, metric=False)
    server = way.server
    pid = server.start()
    kill(pid, signal.SIGKILL)
    lab.wait_ended(pid)
    way.place.wait_bare()
    server.start()
    ping(lab, way.place.here, FAR4, 2)
    way_out, laptop = server.peers
    server.peers = [PeerTable("exit", way_out.public_key, ("10.9.0.1/32",), endpoint=way_out.endpoint), laptop]
    server.write_config(drain_timeout_secs=0)
    server.replace()
    way.place.wait_bare()
    ping(lab, way.place.here, "10.9.0.1", 2)
    server.peers = [way_out, laptop]
    server.write_config(drain_timeout_secs=0)
    server.replace()
    assert way.rules() == (True, True)
    ping(lab, way.place.here, FAR4, 2)
    pid = server.status()["pid"]
    kill(pid, signal.SIGTERM)
    assert lab.wait_ended(pid) == 0
    way.place.wait_bare()


def test_a_second_tunnel_with_a_default_route_is_refused(lab: Lab) -> None:
    way = Exit(lab, metric=False)
    way.place.client.write_config(takeover_socket=str(lab.folder / "other.sock"), interface="second0")
    way.server.start()
    way.place.client.takeover_socket = lab.folder / "other.sock"
    assert "has a route in table" in way.place.client.start_in_vain()
    assert way.rules() == (True, True)

"""The end of a peer's access, and what disables one, as unmodified clients see it: wireguard-go and its ping.

Sources: wg(8), "latest-handshakes"; the oracle is what `wg show` says at the client.
"""

import time
from collections.abc import Iterator

import pytest

from tests.support.traffic.ping import Ping, ping, wait_for_replies
from tests.support.traffic.server import Lab, wait_for
from tests.support.traffic.shared_site import SharedSite
from tests.support.traffic.site import Client, Site

pytestmark = [pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping", "ip")]

LATER_SECS = 8.0  # until access ends: enough for a reload and a session, on a busy machine


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedSite]:
    with Lab(tmp_path_factory.mktemp("access")) as lab:
        yield SharedSite(lab)


def reload_with(site: SharedSite, line: str) -> None:
    """Serve both clients, with a line in the table of the second one."""
    site.server.peers = [client.table() for client in site.clients]
    site.server.write_config()
    with site.server.config_path.open("a") as file:
        file.write(f"{line}\n")
    with site.namespace.entered():
        site.server.replace(here=True)
    site._served = site.server.config_path.read_text()


def has_shaken_hands(client: Client) -> bool:
    shown = client.wireguard.wg("show", client.wireguard.name, "latest-handshakes")
    return any(int(line.split()[1]) for line in shown.splitlines())


def assert_refused(site: SharedSite, guest: Client) -> None:
    """Fail unless a client without a session gets none."""
    dropped = site.drops().get("unknown_peer", 0)
    site.meet(guest)
    calling = Ping(site.lab, guest.namespace, Site.SERVER4, "refused")
    site.wait_for_drop("unknown_peer", dropped + 1)
    assert calling.replies() == 0
    calling.stop()
    assert not has_shaken_hands(guest)


def test_access_ends_at_its_time_and_the_other_client_loses_nothing(site: SharedSite) -> None:
    site.join_all()
    _, guest = site.clients
    ends_at = time.gmtime(time.time() + LATER_SECS)
    reload_with(site, f"expires = {time.strftime('%Y-%m-%dT%H:%M:%SZ', ends_at)}")
    pings = [Ping(site.lab, client.namespace, Site.SERVER4, f"until-{client.number}") for client in site.clients]
    wait_for_replies(pings, 10)
    assert has_shaken_hands(guest)
    wait_for("the end of access", lambda: bool(site.server.status()["inactive_peers"]))
    before = pings[1].replies()
    wait_for_replies(pings[:1], 50)
    assert pings[1].replies() - before <= 2, "what was in flight"
    pings[1].stop()
    assert_refused(site, guest)
    result = pings[0].stop()
    assert (result.lost, result.duplicated) == ((), ()), result.summary()
    (found,) = site.server.status()["inactive_peers"]
    assert (found["name"], found["reason"]) == (f"client-{guest.number}", "expired")


def test_a_disabled_client_is_refused_and_comes_back_with_the_configuration_that_it_has(site: SharedSite) -> None:
    site.join_all()
    other, guest = site.clients
    pinging = Ping(site.lab, other.namespace, Site.SERVER4, "beside")
    pinging.wait_for_replies(10)
    for client in site.clients:
        ping(site.lab, client.namespace, Site.SERVER4, 2)
    reload_with(site, "enabled = false")
    assert_refused(site, guest)
    reload_with(site, "enabled = true")
    site.meet(guest)
    ping(site.lab, guest.namespace, Site.SERVER4, 2)
    assert has_shaken_hands(guest)
    result = pinging.stop()
    assert (result.lost, result.duplicated) == ((), ()), result.summary()

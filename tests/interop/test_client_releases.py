"""Clients of the present code and of every release in service replace each other under the kernel's ping."""

from pathlib import Path

import pytest

from tests.support.traffic.direct_link import DirectLink, GoServer
from tests.support.traffic.ping import Ping, ping
from tests.support.traffic.releases import PRESENT, Release
from tests.support.traffic.server import Lab

pytestmark = [pytest.mark.handoff, pytest.mark.root, pytest.mark.needs("wireguard-go", "wg", "ping")]


def test_clients_of_the_present_code_and_a_release_in_service_replace_each_other(
    golden: Release, tmp_path: Path
) -> None:
    with Lab(tmp_path) as lab:
        link = DirectLink(lab)
        server = GoServer(link)
        client = link.client(server.public_key)
        server.serve(client.identity.public)
        client.start(golden.environ(), golden.bare_options)
        ping(lab, link.client_side, DirectLink.INNER_SERVER, 2)
        pinging = Ping(lab, link.client_side, DirectLink.INNER_SERVER, "continuous-ping")
        pinging.wait_for_replies(10)
        for release in (PRESENT, golden, PRESENT, golden, PRESENT):
            assert client.replace(release.environ())["release"] == release.version
            pinging.wait_for_replies(10)
        result = pinging.stop()
        assert (result.lost, result.duplicated, result.errors) == ((), (), ()), client.log
        totals = client.status()["totals"]
        # A busy machine may be silent for as long as an outage, which costs a handshake.
        assert totals["handshakes_initiator"] == 1 + totals["outages"], client.log
